"""A distribution in another precision, or without gradient: copies, however deep."""

import copy
from collections.abc import Callable, Hashable
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform
from torch.distributions.transforms import _InverseTransform

from kldiv.distributions.parameters import is_computed_late

__all__ = [
    "converted",
    "detached",
    "give_exact_logits",
    "in_double",
    "is_ours",
    "widened",
]


def is_ours(value: Any) -> bool:
    """Whether a distribution is made of torch's and ours alone, so that its density takes ``float64``."""
    if isinstance(value, _InverseTransform):
        return is_ours(value.inv)
    if isinstance(value, (Distribution, Transform)):
        known = type(value).__module__.startswith(("torch.distributions.", "kldiv."))
        return known and all(is_ours(part) for name, part in vars(value).items() if name != "_inv")
    if isinstance(value, (list, tuple)):
        return all(is_ours(part) for part in value)
    return not isinstance(value, torch.nn.Module)


def in_double(value: Any, tensors: list[Tensor]) -> Any:
    """A copy with floating tensors in ``float64``, however deep, on the graph of the original, and without validation.

    The floating tensors that were met are added to ``tensors``. One tensor under two names stays one.
    """

    def double(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor.double()

    return converted(value, double)


def converted(value: Any, convert: Callable[[Tensor], Tensor], made: dict[int, Tensor] | None = None) -> Any:
    """A copy of a distribution, however deep, of its floating tensors converted, and without validation.

    One tensor under two names stays one.
    """
    made = {} if made is None else made
    if isinstance(value, Tensor) and value.is_floating_point():
        if torch.compiler.is_compiling():  # compiled code would be of this very tensor, and compile again for the next
            return convert(value)
        if id(value) not in made:
            made[id(value)] = convert(value)
        return made[id(value)]
    if type(value) in (list, tuple):
        return type(value)(converted(item, convert, made) for item in value)
    if isinstance(value, _InverseTransform):
        return converted(value.inv, convert, made).inv
    if not isinstance(value, (Distribution, Transform)) or isinstance(value, torch.nn.Module):
        return value
    new = copy.copy(value)
    for name, item in vars(value).items():
        # what was computed from the parameters in their own precision is computed again
        param = vars(value).get("_param")
        if param is not None and item is not param and is_computed_late(cast(Hashable, type(value)), name):
            del vars(new)[name]
        elif name != "_inv":
            vars(new)[name] = converted(item, convert, made)
    if isinstance(new, Distribution):
        new._validate_args = False
    return new


def detached(distribution: Distribution) -> Any:
    """A copy whose parameters carry no gradient, and without validation.

    Raises: TypeError: a distribution that is not of torch's or ours, which may hold parameters anywhere.
    """
    if not is_ours(distribution):
        raise TypeError(
            f"{type(distribution).__name__} holds parts of another package, whose parameters cannot be detached: write "
            "it as a distribution of torch or kldiv"
        )
    return converted(distribution, Tensor.detach)


def widened(distribution: Distribution, dtype: torch.dtype | None = None) -> Distribution:
    """The distribution with its parameters in ``dtype``; ``None``: half-precision ones in ``float32``, others as are.

    >>> widened(torch.distributions.Normal(torch.zeros(2).half(), 1.0)).loc.dtype
    torch.float32
    """
    wide: dict[str, Any] = {}
    converted: dict[int, Tensor] = {}  # one tensor under two names stays one
    for name, value in distribution.__dict__.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            half = value.dtype in (torch.float16, torch.bfloat16)
            wanted = dtype or (torch.float32 if half else value.dtype)
            if wanted != value.dtype:
                new_value = value.to(wanted)
                # compiled code would be of this very tensor, and compile again for the next
                compiling = torch.compiler.is_compiling()
                wide[name] = new_value if compiling else converted.setdefault(id(value), new_value)
        elif isinstance(value, Distribution) and (inner := widened(value, dtype)) is not value:
            wide[name] = inner
    if not wide:
        return distribution
    new = copy.copy(distribution)
    new.__dict__.update(wide)
    return new


def give_exact_logits(distribution: Any) -> None:
    # torch's logarithm of a probability of 0 is that of the smallest number
    for value in vars(distribution).values():
        if isinstance(value, Distribution):
            give_exact_logits(value)
    probs = vars(distribution).get("_param")
    if probs is None or probs is not vars(distribution).get("probs"):
        return
    if isinstance(distribution, torch.distributions.Categorical):
        zero = probs == 0
        distribution.logits = torch.log(torch.where(zero, 1.0, probs)).masked_fill(zero, -torch.inf)
    elif isinstance(distribution, torch.distributions.Bernoulli):
        inner = torch.where((probs > 0) & (probs < 1), probs, 0.5)
        logits = torch.log(inner) - torch.log1p(-inner)
        # finite, for the difference of infinities in its density would be NaN; beyond what any result holds
        distribution.logits = logits.masked_fill(probs <= 0, -1e300).masked_fill(probs >= 1, 1e300)
