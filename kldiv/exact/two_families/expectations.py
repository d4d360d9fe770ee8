"""Expectations, PositiveExpectations: what a family p computes for its closed forms to other families."""

from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Expectations",
    "PositiveExpectations",
]


class Expectations:
    """Expectations under a scalar distribution p, in ``float64``.

    A subclass is constructed from p. It implements what the functions ``kl_to_...`` of the families q in its decorator
    call, and nothing else.
    """

    def __init__(self, distribution: Any) -> None:
        raise NotImplementedError

    def outside(self, q: Any) -> Tensor | None:
        """Where p has mass outside of the support of q, so that the divergence is infinite; ``None``: nowhere."""
        return None

    def negative_entropy(self) -> Tensor:
        """E ln p."""
        raise NotImplementedError

    def mean(self) -> Tensor:
        """E x."""
        raise NotImplementedError

    def mean_from(self, centre: Tensor) -> Tensor:
        """E x - centre."""
        return self.mean() - centre

    def variance(self) -> Tensor:
        """Var x."""
        raise NotImplementedError

    def cumulant_gap(self, t: Tensor) -> Tensor:
        """ln E e^-tx + t E x for positive t, without cancellation for small t."""
        raise NotImplementedError

    def cumulant(self, t: Tensor) -> Tensor | None:
        """ln E e^-tx for positive t, where it has another form than that less t E x."""
        return None

    def absolute(self, centre: Tensor) -> Tensor:
        """E |x - centre|."""
        raise NotImplementedError


class PositiveExpectations(Expectations):
    """Expectations under a distribution on the positive reals, most of them of y = ln x."""

    def log_negative_entropy(self) -> Tensor:
        """E ln of the density of y."""
        raise NotImplementedError

    def log_mean(self) -> Tensor:
        """E y."""
        raise NotImplementedError

    def log_variance(self) -> Tensor:
        """Var y."""
        raise NotImplementedError

    def power_gap(self, power: Tensor) -> Tensor:
        """ln E x^power - power E y, for powers of any sign, without cancellation for small ones. Never negative."""
        raise NotImplementedError

    def log_power(self, power: Tensor) -> Tensor:
        """ln E x^power."""
        return self.power_gap(power) + power * self.log_mean()

    def variance_of_powers(self) -> Tensor:
        """Var x, from the first two powers."""
        two = torch.full_like(self.log_mean(), 2.0)
        gap = self.power_gap(two) - 2 * self.power_gap(0.5 * two)
        far = gap > 1  # where the square of the mean may underflow
        close = self.mean().square() * torch.expm1(torch.where(far, 0.0, gap))
        return torch.where(far, torch.exp(torch.where(far, self.log_power(two), 0.0)) * -torch.expm1(-gap), close)

    def negative_entropy(self) -> Tensor:
        return self.log_negative_entropy() - self.log_mean()

    def mean(self) -> Tensor:
        return torch.exp(self.log_power(torch.ones_like(self.log_mean())))
