"""The mass that one distribution has where another has none."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Normal, OneHotCategorical

from kldiv.distributions.density import log_prob
from kldiv.distributions.diagonal_normal import DiagonalNormal
from kldiv.distributions.parameters import device_of
from kldiv.distributions.parts import factorise
from kldiv.distributions.support import (
    Support,
    as_tensor,
    declared_support,
    has_density_everywhere,
    inside,
    is_elementwise,
    reaches_beyond,
    support_of,
)
from kldiv.numerics import check_broadcast

__all__ = [
    "mass_off_support",
]


_ZERO = -1e290
"""ln of a probability of 0. A Bernoulli distribution's may be a finite number, for inf - inf is NaN."""


@torch.no_grad()
def mass_off_support(p: Any, q: Any) -> Tensor | float | None:
    r"""The mass of q off the support of p, (\*batch) or 0; ``None`` where it is not known.

    Both are torch's or ours. The support of one that does not tell it is taken to be everywhere.
    """
    if has_density_everywhere(p):
        return 0.0
    if isinstance(p, (Categorical, OneHotCategorical)) and isinstance(q, (Categorical, OneHotCategorical)):
        return (q.probs * (p.logits == -math.inf)).sum(-1)
    of_p, of_q = declared_support(p), declared_support(q)
    try:
        if not p.event_shape and of_p.is_discrete:
            return _of_counts(p, q)
        if of_p is of_q:
            return 0.0
        return _of_intervals(p, q) if is_elementwise(p) and is_elementwise(q) else None
    except NotImplementedError:  # no support to enumerate, no distribution function
        return None


def _of_counts(p: Any, q: Any) -> Tensor | float | None:
    if q.has_enumerate_support:
        x = _outcomes(q, p)
        off = log_prob(p, x, True) < _ZERO
        return (log_prob(q, x, True).exp() * off).sum(0)
    if p.has_enumerate_support:
        x = _outcomes(p, q)
        on = log_prob(p, x, True) > _ZERO
        return (1 - (log_prob(q, x, True).exp() * on).sum(0)).clamp(min=0)
    return 0.0 if getattr(p.support, "lower_bound", None) == 0 else None  # all counts


def _outcomes(finite: Any, other: Any) -> Tensor:
    """All that a variable can be, before the dimensions of both batches."""
    x: Tensor = finite.enumerate_support(expand=False)
    return x.reshape(-1, *[1] * max(len(finite.batch_shape), len(other.batch_shape)))


def _of_intervals(p: Distribution, q: Distribution) -> Tensor | float | None:
    if reaches_beyond(q, p) is False:
        return 0.0
    scalars: Any = factorise(q)
    if scalars is None:
        return None
    shape = check_broadcast(p=p.batch_shape + p.event_shape, q=scalars.batch_shape)
    zeros = torch.zeros(shape, dtype=torch.float64, device=device_of(q))
    lower, upper = (as_tensor(end, zeros) for end in support_of(p)[:2])
    least, most = (as_tensor(end, zeros) for end in support_of(scalars)[:2])
    below, above = (_mass_below(scalars, end, least, most) for end in (lower, upper))
    outside = below + (1 - above)
    return -torch.expm1(torch.log1p(-outside).flatten(-len(p.event_shape)).sum(-1)) if p.event_shape else outside


def _mass_below(q: Any, x: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """The mass of q below x. Off its own support torch gives some families what is none."""
    inner = (x > least) & (x < most)
    point = inside(Support(least, most), x, torch.zeros_like(x))
    q = Normal(q.mean, q.stddev, validate_args=False) if isinstance(q, DiagonalNormal) else q
    return torch.where(inner, q.cdf(point), (x >= most).to(x))
