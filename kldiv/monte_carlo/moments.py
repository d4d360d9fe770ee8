"""Mean and standard error of values that come in chunks, and the tails that no sample has seen."""

import math

import torch
from torch import Tensor
from torch.distributions import Distribution

from kldiv.distributions import log_prob
from kldiv.monte_carlo.samplers import Draws
from kldiv.numerics import expm1mx, sum_rightmost

__all__ = [
    "Moments",
    "variances_of_k3",
    "variances_or_none",
]


@torch.no_grad()
def variances_of_k3(p: Distribution, q: Distribution, sample: Tensor, event_dims: int = 0) -> tuple[Tensor, Tensor]:
    r"""The variance under p of k3, from samples of both distributions and from those of p alone.

    .. math:: E_p[f^2] = E_m\left[\tfrac pm f^2\right], \ m = \tfrac12 (p + q), \ f = \tfrac qp - 1 - \ln\tfrac qp

    Where q is wider than p, k3 has its variance from rare samples in p's tails, which q has in plenty.

    Args:
        sample: of p, (units, points, \*batch, \*event); as many are drawn of q.
        event_dims: how many trailing dimensions of the batch are independent and summed.
    Returns: the two, of the batch shape without these. ``inf`` for the first where it is infinite in ``float64``.
    Source: Hesterberg 1995 (defensive mixtures).
    """
    of_p = sample.flatten(0, 1)
    batch = of_p.shape[1 : of_p.ndim - len(p.event_shape)]
    of_q = Draws(q, batch, len(of_p), "iid", with_gradient=False)().flatten(0, 1).to(of_p.dtype)
    log_p, log_q = (torch.cat([log_prob(d, of_p), log_prob(d, of_q)]).double() for d in (p, q))
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    # where p has no mass nothing counts, whatever q has
    weight = torch.exp(log_p - log_m).masked_fill(log_p == -torch.inf, 0.0)
    value = expm1mx(log_q - log_p).masked_fill(log_p == -torch.inf, 0.0)
    first, second = (weight * value).mean(0), (weight * value.square()).mean(0)
    seen = value[: len(of_p)].var(0)
    return sum_rightmost((second - first.square()).clamp(min=0), event_dims), sum_rightmost(seen, event_dims)


def variances_or_none(p: Distribution, q: Distribution, sample: Tensor, event_dims: int) -> tuple[Tensor, Tensor]:
    try:
        return variances_of_k3(p, q, sample, event_dims)
    except (NotImplementedError, ValueError):  # a q without samples, or a density that refuses those of the other
        return torch.zeros(()), torch.zeros(())


class Moments:
    """Mean and standard error of values that come in chunks (units, *batch)."""

    _mean: Tensor
    """Of what is finite."""
    squares: Tensor
    """Sum of squared deviations from the mean, and of cubed ones."""
    cubes: Tensor
    infinite: Tensor

    def __init__(self) -> None:
        self.count = 0

    def add(self, values: Tensor) -> None:
        count, mean = len(values), values.mean(0)
        # beside the sums: a difference of infinities is none
        infinite = mean.masked_fill(mean.isfinite(), 0.0)
        values, mean = (each.masked_fill(~mean.isfinite(), 0.0) for each in (values, mean))
        deviations = values - mean
        squares, cubes = deviations.square().sum(0), deviations.pow(3).sum(0)
        if self.count:  # pairwise update: Pebay 2008
            a, b, distance = self.count, count, mean - self._mean
            count = a + b
            mean = self._mean + distance * (b / count)
            cubes = self.cubes + cubes + distance.pow(3) * (a * b * (a - b) / count**2)
            cubes = cubes + 3 * distance * (a * squares - b * self.squares) / count
            squares = self.squares + squares + distance.square() * (a * b / count)
            infinite = self.infinite + infinite
        self.count, self._mean, self.squares, self.cubes, self.infinite = count, mean, squares, cubes, infinite

    @property
    def mean(self) -> Tensor:
        return self._mean + self.infinite

    def standard_error(self, whole: Tensor, seen: Tensor) -> Tensor:
        """That of the mean, times what ``whole`` says of the variance beyond what samples have ``seen`` of it."""
        if self.count < 2:
            return torch.full_like(self.mean, torch.inf)
        error = (self.squares / (self.count * (self.count - 1))).sqrt()
        # where units are skewed, Student's interval covers too little: enlarged to the first order of what it lacks,
        # (1.08 skewness^2 - 0.07 kurtosis)/U at 95 % (Hall 1992, chapter 2), their ratio being that of a chi-square.
        # This skewness is the mean's, a unit's by sqrt(U)
        skewness = torch.where(self.squares > 0, self.cubes / self.squares**1.5, 0.0).nan_to_num(0.0)
        missed = torch.where(seen > 0, whole / seen, 1.0).clamp(min=1.0).sqrt()
        return torch.where(self.mean.isfinite(), error * (1 + skewness.square()) * missed, torch.inf)
