"""Mean and standard error of values that come in chunks, and the tails that no sample has seen."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kldiv.distributions import Pair
from kldiv.monte_carlo.samplers import Draws
from kldiv.numerics import expm1mx, sum_rightmost

__all__ = [
    "Moments",
    "Variances",
    "variances_of_k3",
]


class Variances(NamedTuple):
    """The variance of k3 under p."""

    whole: Tensor
    """By samples of p and of q, which see the tails of p. ``inf`` where it is infinite in ``float64``."""
    seen: Tensor
    """By the samples of p alone."""


@torch.no_grad()
def variances_of_k3(pair: Pair, sample: Tensor, event_dims: int = 0) -> Variances | None:
    r"""The variance under p of k3, from samples of both distributions and from those of p alone.

    .. math:: E_p[f^2] = E_m\left[\tfrac pm f^2\right], \ m = \tfrac12 (p + q), \ f = \tfrac qp - 1 - \ln\tfrac qp

    Where q is wider than p, k3 has its variance from rare samples in p's tails, which q has in plenty.

    Args:
        sample: of p, (units, points, \*batch, \*event); as many are drawn of q.
        event_dims: how many trailing dimensions of the batch are independent and summed.
    Returns: the two, of the batch shape without these; ``None`` where q has no samples, or refuses those of p, or p
        those of q.
    Source: Hesterberg 1995 (defensive mixtures).
    """
    of_p = sample.flatten(0, 1)
    batch = of_p.shape[1 : of_p.ndim - len(pair.p.event_shape)]
    try:
        of_q = Draws(pair.q, batch, len(of_p), "iid", with_gradient=False)().flatten(0, 1).to(of_p.dtype)
        log_p, log_q = (torch.cat([log(of_p), log(of_q)]).double() for log in (pair.log_p, pair.log_q))
    except (NotImplementedError, ValueError):
        return None
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    # where p has no mass nothing counts, whatever q has
    weight = torch.exp(log_p - log_m).masked_fill(log_p == -torch.inf, 0.0)
    value = expm1mx(log_q - log_p).masked_fill(log_p == -torch.inf, 0.0)
    first, second = (weight * value).mean(0), (weight * value.square()).mean(0)
    whole, seen = (second - first.square()).clamp(min=0), value[: len(of_p)].var(0)
    return Variances(sum_rightmost(whole, event_dims), sum_rightmost(seen, event_dims))


class Moments:
    """Mean and standard error of values that come in chunks (units, *batch)."""

    finite_mean: Tensor
    """The mean, and 0 where it is infinite."""
    squares: Tensor
    """Sum of squared deviations from the mean."""
    cubes: Tensor
    """Sum of cubed deviations from the mean."""
    infinite: Tensor
    """The mean where it is infinite, and 0 elsewhere: kept apart, for a difference of infinities is NaN."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, values: Tensor) -> None:
        """A further chunk of values, (units, *batch)."""
        count, mean = len(values), values.mean(0)
        infinite = mean.masked_fill(mean.isfinite(), 0.0)
        values, mean = (each.masked_fill(~mean.isfinite(), 0.0) for each in (values, mean))
        deviations = values - mean
        squares, cubes = deviations.square().sum(0), deviations.pow(3).sum(0)
        if self.count:  # pairwise update: Pebay 2008
            a, b, distance = self.count, count, mean - self.finite_mean
            count = a + b
            mean = self.finite_mean + distance * (b / count)
            cubes = self.cubes + cubes + distance.pow(3) * (a * b * (a - b) / count**2)
            cubes = cubes + 3 * distance * (a * squares - b * self.squares) / count
            squares = self.squares + squares + distance.square() * (a * b / count)
            infinite = self.infinite + infinite
        self.count, self.finite_mean, self.squares, self.cubes, self.infinite = count, mean, squares, cubes, infinite

    @property
    def mean(self) -> Tensor:
        return self.finite_mean + self.infinite

    def standard_error(self, variances: Variances | None = None) -> Tensor:
        """That of the mean, enlarged by what ``variances`` know of the variance that no sample has seen."""
        if self.count < 2:
            return torch.full_like(self.mean, torch.inf)
        error = (self.squares / (self.count * (self.count - 1))).sqrt()
        # where units are skewed, Student's interval covers too little: enlarged to the first order of what it lacks,
        # (1.08 skewness^2 - 0.07 kurtosis)/U at 95 % (Hall 1992, chapter 2), their ratio being that of a chi-square.
        # This skewness is the mean's: a unit's divided by sqrt(U)
        skewness = torch.where(self.squares > 0, self.cubes / self.squares**1.5, 0.0).nan_to_num(0.0)
        error = error * (1 + skewness.square())
        if variances is not None:
            whole, seen = variances
            error = error * torch.where(seen > 0, whole / seen, 1.0).clamp(min=1.0).sqrt()
        return torch.where(self.mean.isfinite(), error, torch.inf)
