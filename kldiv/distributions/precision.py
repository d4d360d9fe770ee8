"""Copies of a distribution: in another precision, or without a gradient."""

import copy
from collections.abc import Callable, Hashable
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints
from torch.distributions.transforms import _InverseTransform

from kldiv.distributions.parameters import (
    PROBABILITIES,
    computed_names,
    given_name,
    is_computed_late,
    is_known_family,
    is_own,
    stored,
)

__all__ = [
    "can_be_copied",
    "converted",
    "detached",
    "foreign_part",
    "give_exact_logits",
    "in_double",
    "widened",
]


def can_be_copied(value: Any) -> bool:
    """Whether all parts of a distribution are torch's or ours: then its density takes ``float64``.

    A class derived from a family of these is of its kin where it holds tensors, numbers and further such distributions
    alone. Its own ``log_prob`` counts.
    """
    return foreign_part(value) is None


def foreign_part(value: Any, own: bool = True) -> Any:
    """The first part of a distribution that cannot be copied; ``None`` where every part can.

    Args:
        own: whether it is a part of a class of torch's or ours, which hold nothing else than data.
    """
    if isinstance(value, torch.nn.Module):
        return value
    if isinstance(value, _InverseTransform):
        return foreign_part(value.inv)
    if isinstance(value, (Distribution, Transform)):
        kind = type(value)
        if not is_known_family(kind):
            return value
        own = is_own(kind)
        parts = [part for name, part in vars(value).items() if name != "_inv"]
    elif isinstance(value, (list, tuple)):
        parts = list(value)
    else:
        return None if own or value is None or isinstance(value, _DATA) else value
    return next((found for part in parts if (found := foreign_part(part, own)) is not None), None)


_DATA = (Tensor, bool, int, float, complex, str, torch.dtype, torch.device, constraints.Constraint)


def in_double(value: Any, tensors: list[Tensor], made: dict[int, Tensor] | None = None) -> Any:
    """A private copy in ``float64``, on the graph of the original. See :func:`converted`.

    Args:
        tensors: the floating tensors that are met on the way are added to it.
        made: the copies of tensors by the identity of the original: one for several distributions that share some.
    """

    def double(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor.double()

    return converted(value, double, made)


def converted(value: Any, convert: Callable[[Tensor], Tensor], made: dict[int, Tensor] | None = None) -> Any:
    """A private copy of a distribution, its floating tensors and those of its parts converted, that validates nothing.

    A tensor that stands under two names is converted once, and is one tensor in the copy too.
    """
    made = {} if made is None else made
    if isinstance(value, Tensor) and value.is_floating_point():
        if torch.compiler.is_compiling():  # a guard on this very tensor would compile again for the next
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
    if isinstance(new, Distribution):
        new._validate_args = False
        for name in computed_names(new):  # the copy computes them again, in its own precision
            del vars(new)[name]
    for name, item in vars(new).items():
        if name != "_inv":
            vars(new)[name] = converted(item, convert, made)
    return new


def detached(distribution: Distribution) -> Any:
    """A private copy whose parameters carry no gradient.

    Raises: TypeError: a distribution of another package, which may hold its parameters anywhere.
    """
    if (part := foreign_part(distribution)) is not None:
        what = "" if part is distribution else f" holds a {type(part).__name__}, and"
        raise TypeError(
            f"{type(distribution).__name__}{what} is of another package, whose parameters cannot be detached: write it "
            "as a distribution of torch or kldiv, or as a subclass of one that holds tensors and distributions alone"
        )
    return converted(distribution, Tensor.detach)


def widened(distribution: Distribution, dtype: torch.dtype | None = None) -> Distribution:
    """The distribution with its parameters in ``dtype``; ``None``: half precision in ``float32``, others as they are.

    >>> widened(torch.distributions.Normal(torch.zeros(2).half(), 1.0)).loc.dtype
    torch.float32
    """
    wide: dict[str, Any] = {}
    converted: dict[int, Tensor] = {}  # by the identity of the tensor: what stands under two names is converted once
    for name, value in stored(distribution):
        if isinstance(value, Tensor) and value.is_floating_point():
            half = value.dtype in (torch.float16, torch.bfloat16)
            wanted = dtype or (torch.float32 if half else value.dtype)
            if wanted != value.dtype:
                new_value = value.to(wanted)
                # a guard on this very tensor would compile again for the next
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
    """Stores the logits of the probabilities that were given, in place: torch clamps 0 and 1 before it computes any."""
    for value in vars(distribution).values():
        if isinstance(value, Distribution):
            give_exact_logits(value)
    if given_name(distribution, PROBABILITIES) != "probs":
        return
    if not is_computed_late(cast(Hashable, type(distribution)), "logits"):
        return  # a subclass has logits of its own
    probs = distribution.probs
    if isinstance(distribution, torch.distributions.Categorical):
        zero = probs == 0
        distribution.logits = torch.log(torch.where(zero, 1.0, probs)).masked_fill(zero, -torch.inf)
    elif isinstance(distribution, torch.distributions.Bernoulli):
        inner = torch.where((probs > 0) & (probs < 1), probs, 0.5)
        logits = torch.log(inner) - torch.log1p(-inner)
        # torch subtracts logits in the density, and inf - inf is NaN: a finite number larger than any result
        distribution.logits = logits.masked_fill(probs <= 0, -1e300).masked_fill(probs >= 1, 1e300)
