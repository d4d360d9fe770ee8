"""What a family of scalar distributions expects of the few statistics that others' log-densities are made of."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    ContinuousBernoulli,
    Exponential,
    Gamma,
    Gumbel,
    HalfNormal,
    InverseGamma,
    Laplace,
    LogNormal,
    Normal,
    Pareto,
    Uniform,
    Weibull,
)

from kldiv.distributions import as_logits, given
from kldiv.exact.dirichlet import beta_concentrations, kl_dirichlet_concentrations
from kldiv.exact.gamma import gamma_parameters
from kldiv.numerics import (
    EULER,
    bregman_lgamma,
    digamma_minus_log,
    exponential_integral,
    gamma_tail,
    kl_term,
    log_sinc,
    log_sinc_first,
    log_sinc_second,
    stirling_error,
    trigamma,
    xmlog1p,
)

__all__ = [
    "FAMILIES",
    "Expectations",
    "OfBeta",
    "OfContinuousBernoulli",
    "OfExponential",
    "OfGamma",
    "OfGumbel",
    "OfHalfNormal",
    "OfInverseGamma",
    "OfLaplace",
    "OfLogNormal",
    "OfNormal",
    "OfPareto",
    "OfUniform",
    "OfWeibull",
    "PositiveExpectations",
    "mean_log",
]


_LOG_2PI = math.log(2 * math.pi)


class Expectations:
    """What a family of scalar distributions knows of itself, in ``float64``. A subclass has what it has a form for."""

    def __init__(self, distribution: Any) -> None:
        self.distribution = distribution

    def negative_entropy(self) -> Tensor:
        """E ln p."""
        raise NotImplementedError

    def mean(self) -> Tensor:
        """E x."""
        raise NotImplementedError

    def variance(self) -> Tensor:
        raise NotImplementedError

    def cumulant_gap(self, t: Tensor) -> Tensor:
        """ln E e^-tx + t E x for positive t, without cancellation for small t."""
        raise NotImplementedError

    def absolute(self, centre: Tensor) -> Tensor:
        """E |x - centre|."""
        raise NotImplementedError


class PositiveExpectations(Expectations):
    """Of a distribution on the positive reals, seen in y = ln x."""

    def log_negative_entropy(self) -> Tensor:
        """E ln of the density of y."""
        raise NotImplementedError

    def log_mean(self) -> Tensor:
        """E ln x."""
        raise NotImplementedError

    def log_variance(self) -> Tensor:
        raise NotImplementedError

    def power_gap(self, power: Tensor) -> Tensor:
        """ln E x^power - power E ln x, for powers of any sign, without cancellation for small ones. Never negative."""
        raise NotImplementedError

    def log_power(self, power: Tensor) -> Tensor:
        """ln E x^power."""
        return self.power_gap(power) + power * self.log_mean()

    def variance_of_powers(self) -> Tensor:
        """Var x from the first two powers."""
        two = torch.full_like(self.log_mean(), 2.0)
        return self.mean().square() * torch.expm1(self.power_gap(two) - 2 * self.power_gap(0.5 * two))

    def negative_entropy(self) -> Tensor:
        return self.log_negative_entropy() - self.log_mean()

    def mean(self) -> Tensor:
        return torch.exp(self.log_power(torch.ones_like(self.log_mean())))


class OfNormal(Expectations):
    def __init__(self, distribution: Normal) -> None:
        self.loc, self.scale = distribution.loc.double(), distribution.scale.double()

    def negative_entropy(self) -> Tensor:
        return -0.5 * (1 + _LOG_2PI) - torch.log(self.scale)

    def mean(self) -> Tensor:
        return self.loc

    def variance(self) -> Tensor:
        return self.scale.square()

    def cumulant_gap(self, t: Tensor) -> Tensor:
        return 0.5 * (self.scale * t).square()

    def absolute(self, centre: Tensor) -> Tensor:
        z = (self.loc - centre) / self.scale
        spread = math.sqrt(2 / math.pi) * torch.exp(-0.5 * z * z)
        return self.scale * (spread + z * torch.erf(z / math.sqrt(2)))


class OfLaplace(Expectations):
    def __init__(self, distribution: Laplace) -> None:
        self.loc, self.scale = distribution.loc.double(), distribution.scale.double()

    def negative_entropy(self) -> Tensor:
        return -1 - math.log(2) - torch.log(self.scale)

    def mean(self) -> Tensor:
        return self.loc

    def variance(self) -> Tensor:
        return 2 * self.scale.square()

    def cumulant_gap(self, t: Tensor) -> Tensor:
        x = (self.scale * t).square()
        return torch.where(x < 1, -torch.log1p(-torch.where(x < 1, x, 0.0)), torch.inf)


class OfGumbel(Expectations):
    def __init__(self, distribution: Gumbel) -> None:
        self.loc, self.scale = distribution.loc.double(), distribution.scale.double()

    def negative_entropy(self) -> Tensor:
        return -1 - EULER - torch.log(self.scale)

    def mean(self) -> Tensor:
        return self.loc + EULER * self.scale

    def variance(self) -> Tensor:
        return math.pi**2 / 6 * self.scale.square()

    def absolute(self, centre: Tensor) -> Tensor:
        # the mean's distance, and twice the integral of the distribution function below the centre
        below = exponential_integral((self.loc - centre) / self.scale)
        return (self.loc - centre) + self.scale * (EULER + 2 * below)


class OfUniform(PositiveExpectations):
    """Of any interval; what is said of ln x holds for positive ones."""

    def __init__(self, distribution: Uniform) -> None:
        self.low, self.high = distribution.low.double(), distribution.high.double()
        self.width = self.high - self.low

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
        # of the first power: no other is asked for
        return torch.log(self.mean()) - self.log_mean()


class OfGamma(PositiveExpectations):
    """Of exponential ones too."""

    sign = 1

    def __init__(self, distribution: Gamma | Exponential | InverseGamma) -> None:
        self.concentration, self.rate = gamma_parameters(distribution)

    def variance(self) -> Tensor:
        return self.concentration / self.rate.square()

    def cumulant_gap(self, t: Tensor) -> Tensor:
        return self.concentration * xmlog1p(t / self.rate)

    def absolute(self, centre: Tensor) -> Tensor:
        mean = self.concentration / self.rate
        x = (self.rate * centre).clamp(min=0)
        below, density = gamma_tail(self.concentration, x)
        return (mean - centre) * (1 - 2 * below) + 2 * mean * density

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


class OfExponential(OfGamma):
    def absolute(self, centre: Tensor) -> Tensor:
        x = self.rate * centre
        inside = x.clamp(min=0)
        return torch.where(x > 0, inside + 1 + 2 * torch.expm1(-inside), 1 - x) / self.rate


class OfInverseGamma(OfGamma):
    sign = -1
    variance = Expectations.variance
    cumulant_gap = Expectations.cumulant_gap
    absolute = Expectations.absolute


class OfWeibull(PositiveExpectations):
    variance = PositiveExpectations.variance_of_powers

    def __init__(self, distribution: Weibull) -> None:
        self.scale, self.concentration = distribution.scale.double(), distribution.concentration.double()

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


class OfLogNormal(PositiveExpectations):
    variance = PositiveExpectations.variance_of_powers

    def __init__(self, distribution: LogNormal) -> None:
        self.loc, self.scale = distribution.loc.double(), distribution.scale.double()

    def log_negative_entropy(self) -> Tensor:
        return -0.5 * (1 + _LOG_2PI) - torch.log(self.scale)

    def log_mean(self) -> Tensor:
        return self.loc

    def log_variance(self) -> Tensor:
        return self.scale.square()

    def power_gap(self, power: Tensor) -> Tensor:
        return 0.5 * (power * self.scale).square()


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
        # of the first power: no other is asked for
        return torch.log(self.mean()) - self.log_mean()


class OfContinuousBernoulli(Expectations):
    def __init__(self, distribution: ContinuousBernoulli) -> None:
        self.logits = as_logits(*given(distribution))

    def negative_entropy(self) -> Tensor:
        return self.logits * log_sinc_first(self.logits) - log_sinc(self.logits)

    def mean(self) -> Tensor:
        return 0.5 + log_sinc_first(self.logits)

    def variance(self) -> Tensor:
        return log_sinc_second(self.logits)


FAMILIES: dict[type, type[Expectations]] = {
    Normal: OfNormal,
    Laplace: OfLaplace,
    Gumbel: OfGumbel,
    Uniform: OfUniform,
    Gamma: OfGamma,
    Exponential: OfExponential,
    InverseGamma: OfInverseGamma,
    Weibull: OfWeibull,
    LogNormal: OfLogNormal,
    HalfNormal: OfHalfNormal,
    Pareto: OfPareto,
    Beta: OfBeta,
    ContinuousBernoulli: OfContinuousBernoulli,
}


def mean_log(low: Tensor, high: Tensor, width: Tensor) -> Tensor:
    """The mean of ln x over an interval of positive numbers; of (0, high) where the interval starts below."""
    low, high = low.clamp(min=0), torch.where(high > 0, high, 1.0)
    narrow = width < 0.5 * high
    r = torch.where(narrow, width, 1.0) / torch.where(narrow, low, 1.0)
    near = torch.log(torch.where(narrow, low, 1.0)) + kl_term(1 + r, torch.ones_like(r), -r) / r
    far = (torch.xlogy(high, high) - torch.xlogy(low, low)) / torch.where(width > 0, width, 1.0) - 1
    return torch.where(narrow, near, far)
