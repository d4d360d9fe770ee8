"""A sample that was given, taken back to where posterior and prior go through the same transforms."""

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform

from kldiv.distributions import Pair, last_transforms
from kldiv.monte_carlo.looks import is_read_freely
from kldiv.monte_carlo.samplers import Draws

__all__ = [
    "before_transforms",
]


_CANDIDATES = 32
"""Fresh draws from which one is taken, where a sample cannot be taken back."""
_TOLERANCE = 0.05
"""Of the standard deviation, and of 1: a sample that its dtype rounds by more cannot be taken back."""


def before_transforms(pair: Pair, posterior: Distribution, sample: Tensor) -> Tensor | None:
    r"""The sample of the posterior as it was before the transforms that ``pair`` has left off.

    A transform that remembers what it was last called with gives that back. Otherwise it is inverted in ``float64``. A
    map that saturates rounds many numbers to one, such as tanh to 1: there a fresh draw is taken that is rounded as
    badly. Its law is that of the posterior where the map saturates, so that the mean stays what it is.

    Args:
        pair: the two before the shared transforms, of which the posterior is the first.
        posterior: the posterior as it was given, whose transforms may remember their last call.
        sample: (\*samples, \*batch, \*event), of the posterior.
    Returns: the sample of ``pair.p``, with the gradient of the one given; ``None`` where a transform has no inverse.
    """
    transforms = last_transforms(posterior, pair.transforms_left)
    try:
        while transforms and _remembers(transforms[-1], sample):
            sample = transforms.pop().inv(sample)
        if not transforms:
            return sample
        with torch.no_grad():
            lost = _is_lost(pair.p, transforms, sample)
        is_read = is_read_freely(lost)
        if is_read and not lost.any():
            return _inverse(transforms, sample.double())
        # the inverse has no derivative at the ends; nor has exp at infinity, not even times 0
        kept = sample.detach() if is_read and lost.all() else torch.where(lost, sample.detach(), sample)
        base = _inverse(transforms, kept.double())
    except (KeyError, NotImplementedError):
        return None
    before = lost if lost.shape == base.shape else _of_event(lost, sample.ndim - base.ndim, len(pair.p.event_shape))
    return torch.where(before, _drawn_anew(pair.p, transforms, sample, base), base)


def _remembers(transform: Transform, y: Tensor) -> bool:
    return getattr(transform, "_cached_x_y", (None, None))[1] is y


def _inverse(transforms: list[Transform], y: Tensor) -> Tensor:
    for transform in reversed(transforms):
        y = transform.inv(y)
    return y


def _is_lost(p: Distribution, transforms: list[Transform], y: Tensor) -> Tensor:
    """Where the spacing of numbers about y is, before the transforms, no longer small; of y's shape, by whole event."""
    limits = torch.finfo(y.dtype)
    # torch's sigmoid is cut off at the smallest normal number
    spacing = 4 * (limits.eps * y.double().abs() + limits.tiny)
    spread = (_inverse(transforms, y.double() + spacing) - _inverse(transforms, y.double() - spacing)).abs()
    try:
        tolerance = _TOLERANCE * p.stddev.nan_to_num(nan=1.0).clamp(max=1.0)
    except (NotImplementedError, AttributeError):
        tolerance = torch.full((), _TOLERANCE, device=y.device)
    exact = spread <= tolerance  # False where the spread is NaN
    events = len(p.event_shape)
    exact = exact.flatten(exact.ndim - events).all(-1) if events else exact
    more = y.ndim - exact.ndim
    lost = ~exact.reshape(*exact.shape, *[1] * more).expand(y.shape)
    is_nan = y.isnan()  # nothing is made up for such a sample
    return lost & ~(is_nan.flatten(is_nan.ndim - more).any(-1)[(..., *[None] * more)] if more else is_nan)


def _of_event(lost: Tensor, more: int, events: int) -> Tensor:
    """Of whole events of a shape, as one number for each event of another."""
    for _ in range(events + more):
        lost = lost[..., 0]
    return lost[(..., *[None] * events)]


def _drawn_anew(p: Distribution, transforms: list[Transform], sample: Tensor, base: Tensor) -> Tensor:
    """One of several fresh draws of p, which the transforms lose too if they lose any of these."""
    events = len(p.event_shape)
    batch = base.shape[: base.ndim - events]
    drawn = Draws(p, batch, _CANDIDATES, "iid", with_gradient=sample.requires_grad)()[:, 0]
    with torch.no_grad():
        y = drawn.to(sample.dtype)  # rounded and cut off as the sample was
        for transform in transforms:
            y = transform(y)
        distance = torch.where(y == sample, 0.0, (y.double() - sample.double()).abs())
        # any that is lost too, and where there is none the nearest
        cost = torch.where(_is_lost(p, transforms, y), 0.0, 1 + (distance / (1 + distance)).nan_to_num(nan=1.0))
        cost = cost.flatten(len(batch) + 1).mean(-1) if cost.ndim > len(batch) + 1 else cost
        chosen = cost.argmin(0)[(None, ..., *[None] * events)]
    return drawn.gather(0, chosen.expand(1, *drawn.shape[1:]))[0].to(base.dtype)
