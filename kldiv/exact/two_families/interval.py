"""Expectations under distributions on an interval: uniform, beta, continuous Bernoulli."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Beta, ContinuousBernoulli, Exponential, Gamma, Gumbel, Laplace, Normal, Uniform

from kldiv.distributions import as_logits, given
from kldiv.exact.dirichlet import beta_concentrations, kl_dirichlet_concentrations
from kldiv.exact.two_families.expectations import Expectations, PositiveExpectations
from kldiv.exact.two_families.to_family import closed_forms
from kldiv.numerics import digamma_minus_log, kl_term, log_sinc, log_sinc_second, log_sinc_tail, log_sinc_tail_first

__all__ = [
    "OfBeta",
    "OfContinuousBernoulli",
    "OfUniform",
    "mean_log",
]


@closed_forms(Uniform, to=(Normal, Laplace, Gumbel, Gamma, Exponential))
class OfUniform(PositiveExpectations):
    """Expectations over any interval; those of ln x over its positive part."""

    def __init__(self, distribution: Uniform) -> None:
        self.low, self.high = distribution.low.double(), distribution.high.double()
        self.width = self.high - self.low

    def outside(self, q: Any) -> Tensor | None:
        return self.low < 0 if isinstance(q, (Gamma, Exponential)) else None

    def negative_entropy(self) -> Tensor:
        return -torch.log(self.width)

    def mean(self) -> Tensor:
        return 0.5 * (self.low + self.high)

    def variance(self) -> Tensor:
        return self.width.square() / 12

    def cumulant_gap(self, t: Tensor) -> Tensor:
        return log_sinc(self.width * t)

    def absolute(self, centre: Tensor) -> Tensor:
        distance = (self.mean() - centre).abs()
        inside = (0.5 * self.width - distance).clamp(min=0)
        return distance + inside.square() / self.width

    def log_negative_entropy(self) -> Tensor:
        return self.negative_entropy() + self.log_mean()

    def log_mean(self) -> Tensor:
        return mean_log(self.low, self.high, self.width)

    def power_gap(self, power: Tensor) -> Tensor:
        # of the first power alone, which gamma distributions ask for
        return torch.log(self.mean()) - self.log_mean()


@closed_forms(Beta, to=(Normal, Gamma, Exponential))
class OfBeta(PositiveExpectations):
    def __init__(self, distribution: Beta) -> None:
        self.concentrations = beta_concentrations(distribution)
        self.one, self.zero = self.concentrations.unbind(-1)

    def negative_entropy(self) -> Tensor:
        return kl_dirichlet_concentrations(self.concentrations, torch.ones_like(self.concentrations))

    def mean(self) -> Tensor:
        return self.one / (self.one + self.zero)

    def variance(self) -> Tensor:
        total = self.one + self.zero
        return (self.one / total) * (self.zero / total) / (total + 1)

    def log_negative_entropy(self) -> Tensor:
        return self.negative_entropy() + self.log_mean()

    def log_mean(self) -> Tensor:
        total = self.one + self.zero
        return torch.log(self.one / total) + digamma_minus_log(self.one) - digamma_minus_log(total)

    def power_gap(self, power: Tensor) -> Tensor:
        # of the first power alone, which gamma distributions ask for
        return torch.log(self.mean()) - self.log_mean()


@closed_forms(ContinuousBernoulli, to=(Normal,))
class OfContinuousBernoulli(Expectations):
    def __init__(self, distribution: ContinuousBernoulli) -> None:
        self.logits = as_logits(*given(distribution))

    def negative_entropy(self) -> Tensor:
        return self.logits * log_sinc_tail_first(self.logits) - log_sinc_tail(self.logits)

    def mean(self) -> Tensor:
        return log_sinc_tail_first(self.logits) + (self.logits >= 0).to(self.logits.dtype)

    def variance(self) -> Tensor:
        return log_sinc_second(self.logits)


def mean_log(low: Tensor, high: Tensor, width: Tensor) -> Tensor:
    """The mean of ln x over an interval of positive numbers; of (0, high) where the interval starts below."""
    low, high = low.clamp(min=0), torch.where(high > 0, high, 1.0)
    narrow = width < 0.5 * high
    r = torch.where(narrow, width, 1.0) / torch.where(narrow, low, 1.0)
    near = torch.log(torch.where(narrow, low, 1.0)) + kl_term(1 + r, torch.ones_like(r), -r) / r
    far = (torch.xlogy(high, high) - torch.xlogy(low, low)) / torch.where(width > 0, width, 1.0) - 1
    return torch.where(narrow, near, far)
