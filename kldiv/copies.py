"""Distributions again, with their parameters in another precision, or without gradient."""

import copy
import functools
import inspect
from collections.abc import Callable, Hashable
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform
from torch.distributions.transforms import _InverseTransform
from torch.distributions.utils import lazy_property


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


@functools.cache
def is_computed_late(kind: Hashable, name: str) -> bool:
    """Whether an attribute is one that torch computes when it is first asked for."""
    return isinstance(inspect.getattr_static(kind, name, None), lazy_property)
