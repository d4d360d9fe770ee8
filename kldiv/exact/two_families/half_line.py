"""Expectations under distributions on the half line: gamma and relatives, Weibull, log- and half-normal, Pareto."""

import math

import torch
from torch import Tensor
from torch.distributions import (
    Exponential,
    Gamma,
    Gumbel,
    HalfNormal,
    InverseGamma,
    Laplace,
    LogNormal,
    Normal,
    Pareto,
    Weibull,
)

from kldiv.exact.gamma import gamma_parameters
from kldiv.exact.two_families.expectations import PositiveExpectations
from kldiv.exact.two_families.to_family import closed_forms
from kldiv.numerics import (
    EULER,
    bregman_lgamma,
    digamma_minus_log,
    gamma_tail,
    stirling_error,
    trigamma,
    xmlog1p,
)

__all__ = [
    "OfExponential",
    "OfGamma",
    "OfHalfNormal",
    "OfInverseGamma",
    "OfLogNormal",
    "OfPareto",
    "OfWeibull",
]


_LOG_2PI = math.log(2 * math.pi)


class _OfGammaOrReciprocal(PositiveExpectations):
    sign: int
    """1 where x has a gamma distribution, -1 where 1/x has."""

    def __init__(self, distribution: Gamma | Exponential | InverseGamma) -> None:
        self.concentration, self.rate = gamma_parameters(distribution)

    def log_negative_entropy(self) -> Tensor:
        return self.concentration * digamma_minus_log(self.concentration) - stirling_error(self.concentration)

    def log_mean(self) -> Tensor:
        digamma = torch.log(self.concentration) + digamma_minus_log(self.concentration)
        return self.sign * (digamma - torch.log(self.rate))

    def log_variance(self) -> Tensor:
        return trigamma(self.concentration)

    def power_gap(self, power: Tensor) -> Tensor:
        shift = self.sign * power
        shift = shift + 0 * self.concentration
        finite = self.concentration + shift > 0
        shift = torch.where(finite, shift, 0.0)
        gap = bregman_lgamma(self.concentration + shift, self.concentration, shift)
        return torch.where(finite, gap, torch.inf)


@closed_forms(Gamma, to=(Normal, Laplace, Gumbel, InverseGamma, LogNormal))
class OfGamma(_OfGammaOrReciprocal):
    sign = 1

    def mean(self) -> Tensor:
        return self.concentration / self.rate

    def variance(self) -> Tensor:
        return self.concentration / self.rate.square()

    def cumulant_gap(self, t: Tensor) -> Tensor:
        return self.concentration * xmlog1p(t / self.rate)

    def cumulant(self, t: Tensor) -> Tensor:
        return -self.concentration * torch.log1p(t / self.rate)

    def absolute(self, centre: Tensor) -> Tensor:
        mean = self.concentration / self.rate
        x = (self.rate * centre).clamp(min=0)
        below, density = gamma_tail(self.concentration, x)
        return (mean - centre) * (1 - 2 * below) + 2 * mean * density


@closed_forms(Exponential, to=(Normal, Laplace, Gumbel, InverseGamma, LogNormal))
class OfExponential(OfGamma):
    def absolute(self, centre: Tensor) -> Tensor:
        x = self.rate * centre
        inside = x.clamp(min=0)
        return torch.where(x > 0, inside + 1 + 2 * torch.expm1(-inside), 1 - x) / self.rate


@closed_forms(InverseGamma, to=(Gamma, Exponential, Weibull, LogNormal))
class OfInverseGamma(_OfGammaOrReciprocal):
    sign = -1


@closed_forms(Weibull, to=(Normal, InverseGamma, LogNormal))
class OfWeibull(PositiveExpectations):
    def __init__(self, distribution: Weibull) -> None:
        self.scale, self.concentration = distribution.scale.double(), distribution.concentration.double()

    def variance(self) -> Tensor:
        return self.variance_of_powers()

    def log_negative_entropy(self) -> Tensor:
        return torch.log(self.concentration) - EULER - 1

    def log_mean(self) -> Tensor:
        return torch.log(self.scale) - EULER / self.concentration

    def log_variance(self) -> Tensor:
        return math.pi**2 / 6 / self.concentration.square()

    def power_gap(self, power: Tensor) -> Tensor:
        shift = power / self.concentration
        finite = shift > -1
        shift = torch.where(finite, shift, 0.0)
        gap = bregman_lgamma(1 + shift, torch.ones_like(shift), shift)
        return torch.where(finite, gap, torch.inf)


@closed_forms(LogNormal, to=(Normal, Gamma, Exponential, InverseGamma, Weibull))
class OfLogNormal(PositiveExpectations):
    def __init__(self, distribution: LogNormal) -> None:
        self.loc, self.scale = distribution.loc.double(), distribution.scale.double()

    def variance(self) -> Tensor:
        return self.variance_of_powers()

    def log_negative_entropy(self) -> Tensor:
        return -0.5 * (1 + _LOG_2PI) - torch.log(self.scale)

    def log_mean(self) -> Tensor:
        return self.loc

    def log_variance(self) -> Tensor:
        return self.scale.square()

    def power_gap(self, power: Tensor) -> Tensor:
        return 0.5 * (power * self.scale).square()


@closed_forms(HalfNormal, to=(Normal, Gamma, Exponential, InverseGamma, Weibull, LogNormal))
class OfHalfNormal(PositiveExpectations):
    def __init__(self, distribution: HalfNormal) -> None:
        self.scale = distribution.scale.double()

    def variance(self) -> Tensor:
        return (1 - 2 / math.pi) * self.scale.square()

    def log_negative_entropy(self) -> Tensor:
        return torch.full_like(self.scale, 0.5 * math.log(2 / math.pi) - 0.5 - 0.5 * (EULER + math.log(2)))

    def log_mean(self) -> Tensor:
        return torch.log(self.scale) - 0.5 * (EULER + math.log(2))

    def log_variance(self) -> Tensor:
        return torch.full_like(self.scale, math.pi**2 / 8)

    def power_gap(self, power: Tensor) -> Tensor:
        # x^2 / 2 is a gamma variable of concentration 1/2
        shift = 0.5 * power + 0 * self.scale
        finite = shift > -0.5
        shift = torch.where(finite, shift, 0.0)
        gap = bregman_lgamma(0.5 + shift, torch.full_like(shift, 0.5), shift)
        return torch.where(finite, gap, torch.inf)


@closed_forms(Pareto, to=(Normal, Gamma, Exponential, InverseGamma, Weibull, LogNormal))
class OfPareto(PositiveExpectations):
    def __init__(self, distribution: Pareto) -> None:
        self.scale, self.alpha = distribution.scale.double(), distribution.alpha.double()

    def variance(self) -> Tensor:
        finite = self.alpha > 2
        alpha = torch.where(finite, self.alpha, 3.0)
        return torch.where(finite, (self.scale / (alpha - 1)).square() * (alpha / (alpha - 2)), torch.inf)

    def mean(self) -> Tensor:
        finite = self.alpha > 1
        alpha = torch.where(finite, self.alpha, 2.0)
        return torch.where(finite, self.scale * alpha / (alpha - 1), torch.inf)

    def log_negative_entropy(self) -> Tensor:
        return torch.log(self.alpha) - 1

    def log_mean(self) -> Tensor:
        return torch.log(self.scale) + 1 / self.alpha

    def log_variance(self) -> Tensor:
        return 1 / self.alpha.square()

    def power_gap(self, power: Tensor) -> Tensor:
        x = power / self.alpha
        return torch.where(x < 1, xmlog1p(-torch.where(x < 1, x, 0.0)), torch.inf)
