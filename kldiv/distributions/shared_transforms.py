"""The invertible transforms that two distributions end with alike: they change no divergence."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Transform, TransformedDistribution
from torch.distributions.transforms import ComposeTransform, IndependentTransform, _InverseTransform

__all__ = [
    "before_shared_transforms",
    "last_transforms",
]


def before_shared_transforms(p: Distribution, q: Distribution) -> tuple[Distribution, Distribution, int]:
    """The two before the invertible transforms that both end with, and how many these are.

    Transforms are the same where they are one object, or of one type with equal numbers and the same tensors. Other
    tensors are compared where that waits for no device, and where neither wants a gradient, which would be lost.
    """
    found = 0
    while (last_p := _transforms(p)) and (last_q := _transforms(q)):
        count = 0
        for left, right in zip(reversed(last_p), reversed(last_q), strict=False):
            if not (left.bijective and _same(left, right)):
                break
            count += 1
        if not count:
            break
        before = _without(p, count), _without(q, count)
        if any(new.batch_shape != old.batch_shape for new, old in zip(before, (p, q), strict=True)):
            break
        (p, q), found = before, found + count
    return p, q, found


def last_transforms(distribution: Distribution, count: int) -> list[Transform]:
    """The last ``count`` transforms of a distribution, the very objects, in the order in which samples go through."""
    found: list[Transform] = []
    while len(found) < count:
        transforms = _transforms(distribution)
        taken = min(count - len(found), len(transforms))
        found = transforms[len(transforms) - taken :] + found
        distribution = _without(distribution, taken)
    return found


def _transforms(distribution: Any) -> list[Transform]:
    if type(distribution).log_prob is Independent.log_prob:
        return _transforms(distribution.base_dist)
    # a subclass may have a density and draws of its own
    kind = type(distribution)
    if kind.log_prob is TransformedDistribution.log_prob and kind.rsample is TransformedDistribution.rsample:
        return _single(distribution.transforms)
    return []


def _single(transforms: list[Transform]) -> list[Transform]:
    found: list[Transform] = []
    for transform in transforms:
        found += _single(transform.parts) if isinstance(transform, ComposeTransform) else [transform]
    return found


def _without(distribution: Any, count: int) -> Distribution:
    if type(distribution).log_prob is Independent.log_prob:
        dims = distribution.reinterpreted_batch_ndims
        return Independent(_without(distribution.base_dist, count), dims, validate_args=False)
    transforms = _single(distribution.transforms)
    left = transforms[: len(transforms) - count]
    base: Distribution = distribution.base_dist
    return TransformedDistribution(base, left, validate_args=False) if left else base


def _same(left: Any, right: Any) -> bool:
    """Whether two transforms, or what these are made of, are equal without a doubt."""
    if left is right:
        return True
    left, right = (t.base_transform if isinstance(t, IndependentTransform) else t for t in (left, right))
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return _equal(left, right)
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return left == right
    if type(left) is not type(right):
        return False
    if isinstance(left, _InverseTransform):
        return _same(left.inv, right.inv)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, Transform) and not isinstance(left, torch.nn.Module):
        ours, others = (
            {name: value for name, value in vars(t).items() if name not in ("_inv", "_cached_x_y", "_cache_size")}
            for t in (left, right)
        )
        return ours.keys() == others.keys() and all(_same(value, others[name]) for name, value in ours.items())
    return False


def _equal(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape or left.device.type != "cpu" or right.device.type != "cpu":
        return False
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return not (left.requires_grad or right.requires_grad) and torch.equal(left.double(), right.double())
