"""Where a distribution has mass: an interval, and the ends of further intervals inside."""

import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Transform,
    TransformedDistribution,
    VonMises,
    constraints,
)
from torch.distributions.transforms import ComposeTransform, ExpTransform, IndependentTransform, SigmoidTransform

from kldiv.distributions.diagonal_normal import DiagonalNormal
from kldiv.numerics import check_broadcast

__all__ = [
    "Support",
    "as_tensor",
    "declared_support",
    "has_density_everywhere",
    "has_moving_support",
    "inside",
    "is_elementwise",
    "reaches_beyond",
    "single_transforms",
    "support_of",
    "without_common_transforms",
]


class Support(NamedTuple):
    """An interval, and the ends of further intervals inside it. A tensor is an end that moves with a parameter."""

    lower: Tensor | float
    upper: Tensor | float
    inner: tuple[Tensor, ...] = ()


def support_of(distribution: Any) -> Support:
    """The support of a one-dimensional distribution, or of each dimension of an ``Independent``."""
    if isinstance(distribution, VonMises):  # torch says that it is real: an angle may be given modulo 2 pi
        return Support(-math.pi, math.pi)
    if isinstance(distribution, Independent):
        return support_of(distribution.base_dist)
    if isinstance(distribution, MixtureSameFamily):
        component = distribution.component_distribution
        part = support_of(component)
        lower, upper, *inner = (
            end.expand(component.batch_shape) if isinstance(end, Tensor) else end
            for end in (part.lower, part.upper, *part.inner)
        )
        return Support(
            lower.amin(-1) if isinstance(lower, Tensor) else lower,
            upper.amax(-1) if isinstance(upper, Tensor) else upper,
            tuple(end for ends in (lower, upper, *inner) if isinstance(ends, Tensor) for end in ends.unbind(-1)),
        )
    if _is_of_transforms(distribution):
        # torch says the last transform's codomain, of which it may reach a part only
        support = support_of(distribution.base_dist)
        for transform in single_transforms(distribution.transforms):
            support = _image(transform, support)
        return support
    try:
        return _interval(distribution.support)
    except NotImplementedError:
        return Support(-math.inf, math.inf)


def _is_of_transforms(distribution: Any) -> bool:
    """Whether what the distribution says of its support is what its transforms say."""
    return inspect.getattr_static(type(distribution), "support") is vars(TransformedDistribution)["support"]


def has_density_everywhere(distribution: Any) -> bool:
    """Whether the support is all real numbers, or not told."""
    if type(distribution) in (DiagonalNormal, Normal, MultivariateNormal):  # for speed
        return True
    if isinstance(distribution, Independent):
        return has_density_everywhere(distribution.base_dist)
    if isinstance(distribution, MixtureSameFamily):
        return has_density_everywhere(distribution.component_distribution)
    if isinstance(distribution, TransformedDistribution) and _is_of_transforms(distribution):
        reached = (transform.codomain for transform in distribution.transforms)
        return has_density_everywhere(distribution.base_dist) and all(map(_is_real, reached))
    support = declared_support(distribution)
    return support is None or _is_real(support)


def _is_real(constraint: Any) -> bool:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint is constraints.real


def is_elementwise(distribution: Any) -> bool:
    """Whether every dimension of an event has an interval as its support, whatever the others are."""
    if isinstance(distribution, Independent):
        return is_elementwise(distribution.base_dist)
    if isinstance(distribution, TransformedDistribution) and _is_of_transforms(distribution):
        events = (t.domain.event_dim or t.codomain.event_dim for t in single_transforms(distribution.transforms))
        return is_elementwise(distribution.base_dist) and not any(events)
    return not distribution.event_shape or has_density_everywhere(distribution)


def reaches_beyond(p: Distribution, q: Distribution) -> Tensor | bool:
    r"""Whether the support of p is not inside that of q, by their ends, (\*batch) where these are tensors.

    ``False`` where the ends do not tell: among counts and categories, and where one of the two has no intervals.
    """
    if has_density_everywhere(q) or not (is_elementwise(p) and is_elementwise(q)):
        return False
    supports = declared_support(p), declared_support(q)
    if None in supports or any(support.is_discrete for support in supports):
        return False
    of_p, of_q = support_of(p), support_of(q)
    below, above = _is_less(of_p.lower, of_q.lower), _is_less(of_q.upper, of_p.upper)
    if below is True or above is True:
        return True
    outside = below | above
    if isinstance(outside, bool) or not p.event_shape:
        return outside
    shape = check_broadcast(p=p.batch_shape + p.event_shape, q=q.batch_shape + q.event_shape)
    return outside.expand(shape).flatten(-len(p.event_shape)).any(-1)


def _is_less(left: Tensor | float, right: Tensor | float) -> Tensor | bool:
    if not (isinstance(left, Tensor) or isinstance(right, Tensor)):
        return left < right
    like = left if isinstance(left, Tensor) else right
    left, right = (torch.as_tensor(end, dtype=torch.float64, device=like.device).detach() for end in (left, right))  # type: ignore[union-attr]
    return (left < right) & ~torch.isclose(left, right, rtol=1e-6, atol=0.0)  # ends may have been computed


def _interval(constraint: object) -> Support:
    lower, upper = getattr(constraint, "lower_bound", -math.inf), getattr(constraint, "upper_bound", math.inf)
    lower, upper = (end.double() if isinstance(end, Tensor) else float(end) for end in (lower, upper))
    return Support(lower, upper)


def single_transforms(transforms: Sequence[Transform]) -> Iterator[Transform]:
    """The elementwise transforms that a sequence of them is composed of."""
    for transform in transforms:
        if isinstance(transform, ComposeTransform):
            yield from single_transforms(transform.parts)
        elif isinstance(transform, IndependentTransform):
            yield transform.base_transform
        else:
            yield transform


def _image(transform: Transform, support: Support) -> Support:
    moves = any(isinstance(end, Tensor) for end in support[:2])
    if not moves and _interval(transform.domain) == support:
        return _interval(transform.codomain)
    images = []
    for end in (support.lower, support.upper, *support.inner):
        # an infinite end does not move, and its derivative would be 0 * inf
        if isinstance(end, Tensor):
            image = transform(torch.where(end.isfinite(), end, 0.5))
            images.append(torch.where(end.isfinite(), image, transform(end).detach()))
        else:
            image = transform(torch.tensor(end, dtype=torch.float64))
            images.append(image if math.isfinite(end) else image.detach())
    first, last, *inner = images
    return Support(torch.minimum(first, last), torch.maximum(first, last), tuple(inner))


def without_common_transforms(pair: list[Any]) -> list[Any]:
    """The two before the transforms that both end with: their divergence is the same.

    Near 1 a floating-point x has few digits left of 1 - x; the logit of x has all of them.
    """
    while all(type(d).log_prob is TransformedDistribution.log_prob and d.transforms for d in pair):
        last = [d.transforms[-1] for d in pair]
        if not isinstance(last[0], (ExpTransform, SigmoidTransform)) or type(last[0]) is not type(last[1]):
            break
        pair = [
            TransformedDistribution(d.base_dist, d.transforms[:-1], validate_args=False)
            if d.transforms[:-1]
            else d.base_dist
            for d in pair
        ]
    return pair


def inside(support: Support, points: Tensor, zeros: Tensor) -> Tensor:
    """The points; those outside the support, or on its ends, are replaced by some inner point."""
    lower, upper = as_tensor(support.lower, zeros), as_tensor(support.upper, zeros)
    above = torch.where(lower.isfinite(), lower + 1, torch.where(upper.isfinite(), upper - 1, zeros))
    other = torch.where(lower.isfinite() & upper.isfinite(), 0.5 * (lower + upper), above)
    return torch.where(points.isfinite() & (points > lower) & (points < upper), points, other)


def as_tensor(value: Tensor | float, zeros: Tensor) -> Tensor:
    """The value in the shape and dtype of ``zeros``."""
    return value.to(zeros).expand(zeros.shape) if isinstance(value, Tensor) else torch.full_like(zeros, value)


def has_moving_support(distribution: Distribution, known: bool) -> bool:
    """Whether the support depends on parameters that want a gradient: then the score's mean is not zero.

    Args:
        known: whether all parts of the distribution are torch's or ours, as :func:`can_be_copied` finds.
    """
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    support = declared_support(distribution)
    if support is None:
        return False
    ends: list[Any]
    if known and not distribution.event_shape:
        lower, upper, inner = support_of(distribution)
        ends = [] if support.is_discrete else [lower, upper, *inner]
    else:
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        ends = list(vars(support).values())
    return any(isinstance(end, Tensor) and end.requires_grad for end in ends)


def declared_support(distribution: Distribution) -> Any:
    """What the distribution says of its support; ``None`` where it says nothing."""
    try:
        return distribution.support
    except NotImplementedError:
        return None
