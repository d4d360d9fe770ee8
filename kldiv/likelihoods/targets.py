"""The first look at targets: whether they lie in the support of their likelihood, and what to write if not."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kldiv.numerics import check_broadcast

__all__ = [
    "Seen",
    "Support",
    "can_look",
    "check_mask",
    "check_support",
    "joined",
    "look_at_mask",
    "look_at_target",
]


class Support(NamedTuple):
    """The values that a target may have: real numbers, unless it says less."""

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    """Whole numbers only."""

    def __str__(self) -> str:
        if self.whole:
            return f"whole numbers from {self.low:g}" + (f" to {self.high:g}" if math.isfinite(self.high) else "")
        return f"numbers in [{self.low:g}, {self.high:g}]"


Seen = dict[str, Tensor]
"""What is asked of the device, by name: tensors of shape (), fetched together."""


def can_look(target: Tensor) -> bool:
    """Whether the values of a target can be had: nothing traces or transforms it, and it has some."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if target.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    # a FakeTensor is a subclass
    return type(target) in (Tensor, torch.nn.Parameter) and not target.is_meta and target.numel() > 0


def look_at_target(target: Tensor, missing: Tensor | None) -> Seen:
    """The range of the elements that count, and the largest that is no whole number. NaN is passed over: it shows."""
    counts = ~target.isnan() if missing is None else ~(target.isnan() | missing)
    return {
        "low": torch.where(counts, target, torch.inf).amin(),
        "high": torch.where(counts, target, -torch.inf).amax(),
        "part": torch.where(counts & (target != target.round()), target, -torch.inf).amax(),
    }


def look_at_mask(mask: Tensor, like: Tensor) -> Seen:
    """An entry of the mask that is neither 0 nor 1, or ``-inf``."""
    if mask.dtype == torch.bool or not mask.numel():
        return {}
    mask = mask.to(like.dtype)
    return {"mask": torch.where((mask != 0) & (mask != 1), mask, -torch.inf).amax()}


def check_mask(mask: float) -> None:
    """Raises: ValueError: an entry of a mask that is neither 0 nor 1."""
    if mask != -math.inf:
        raise ValueError(
            f"the mask holds {mask:g}: a mask is boolean, or 0 and 1. For weights of elements write element_weight="
        )


def check_support(name: str, support: Support, seen: dict[str, float], tolerance: float) -> None:
    """Raises: ValueError: targets outside of the support, with their range and what to write."""
    low, high, part = seen["low"], seen["high"], seen["part"]
    if low > high:  # none counts
        return
    broken = support.whole and part != -math.inf
    inside = support.low - tolerance <= low and high <= support.high + tolerance
    if inside and high < math.inf and not broken:
        return
    fraction = f", {part:g} among them" if broken else ""
    raise ValueError(
        f"the target has values from {low:g} to {high:g}{fraction}, and {name} is of {support}: "
        f"{_what_to_write(support, low, high, whole=part == -math.inf)}. validate_args=False lets anything pass"
    )


def _what_to_write(support: Support, low: float, high: float, *, whole: bool) -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return "where elements are missing write mask=target.isfinite(), target_mask= in an ELBO"
    if support.whole:
        if whole:
            return "where a negative number stands for missing write mask=target >= 0, target_mask= in an ELBO"
        if low >= 0 and high <= 1:
            return "grey values are counts as (255 * target).round(), and have likelihoods of their own in BernoulliNLL"
        return "give the raw counts, neither scaled nor logarithms; for real values write kldiv.GaussianNLL()"
    if low >= 0:
        return "for an image of 256 levels write x / 255" if high <= 255 else f"write x / {high:g}"
    if low >= -1 and high <= 1:
        return "for values in [-1, 1] write (x + 1) / 2"
    return "scale them, (x - x.min()) / (x.max() - x.min()), or write kldiv.GaussianNLL() for real values"


def joined(shape: torch.Size, other: torch.Size) -> torch.Size | None:
    """The shape to which two broadcast, or ``None``."""
    try:
        return check_broadcast(parameter=shape, target=other)
    except ValueError:
        return None
