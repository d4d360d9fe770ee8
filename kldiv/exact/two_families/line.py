"""Expectations under distributions on the whole line: normal, Laplace, Gumbel."""

import math

import torch
from torch import Tensor
from torch.distributions import Gumbel, Laplace, Normal

from kldiv.exact.two_families.expectations import Expectations
from kldiv.exact.two_families.to_family import closed_forms
from kldiv.numerics import EULER, exponential_integral

__all__ = [
    "OfGumbel",
    "OfLaplace",
    "OfNormal",
]


_LOG_2PI = math.log(2 * math.pi)


@closed_forms(Normal, to=(Laplace, Gumbel))
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


@closed_forms(Laplace, to=(Normal, Gumbel))
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


@closed_forms(Gumbel, to=(Normal, Laplace))
class OfGumbel(Expectations):
    def __init__(self, distribution: Gumbel) -> None:
        self.loc, self.scale = distribution.loc.double(), distribution.scale.double()

    def negative_entropy(self) -> Tensor:
        return -1 - EULER - torch.log(self.scale)

    def mean(self) -> Tensor:
        return self.loc + EULER * self.scale

    def mean_from(self, centre: Tensor) -> Tensor:
        return (self.loc - centre) + EULER * self.scale

    def variance(self) -> Tensor:
        return math.pi**2 / 6 * self.scale.square()

    def absolute(self, centre: Tensor) -> Tensor:
        # the mean's distance, and twice the integral of the distribution function below the centre
        below = exponential_integral((self.loc - centre) / self.scale)
        return (self.loc - centre) + self.scale * (EULER + 2 * below)
