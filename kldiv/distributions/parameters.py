"""What a distribution was given: logits or probabilities, dtype, the tensors that want a gradient."""

import functools
import inspect
from collections.abc import Hashable
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import Distribution, Geometric
from torch.distributions.utils import lazy_property

__all__ = [
    "as_logits",
    "given",
    "is_computed_late",
    "log_variance",
    "materialise",
    "parameter_dtype",
    "parameters_of",
]


def materialise(distribution: Any) -> None:
    """Computes what torch computes when it is first asked for: a checkpoint must find the same twice."""
    for value in list(vars(distribution).values()):
        if isinstance(value, Distribution):
            materialise(value)
    for name in ("logits", "probs"):
        if is_computed_late(cast(Hashable, type(distribution)), name):
            getattr(distribution, name)


@functools.cache
def is_computed_late(kind: Hashable, name: str) -> bool:
    """Whether an attribute is one that torch computes when it is first asked for."""
    return isinstance(inspect.getattr_static(kind, name, None), lazy_property)


def parameter_dtype(distribution: Distribution) -> torch.dtype:
    """The widest dtype of the distribution's parameters, ``float32`` at least."""
    dtype = torch.float32
    for value in distribution.__dict__.values():
        if isinstance(value, Tensor) and value.is_floating_point():
            dtype = torch.promote_types(dtype, value.dtype)
        elif isinstance(value, Distribution):
            dtype = torch.promote_types(dtype, parameter_dtype(value))
    return dtype


def given(distribution: Any) -> tuple[str, Tensor]:
    """``"logits"`` or ``"probs"``, what the distribution was made of, and the values in ``float64``."""
    if isinstance(distribution, Geometric):  # which does not say; the other of the two is kept when it is asked for
        kind = next(name for name in distribution.__dict__ if name in ("probs", "logits"))
        return kind, getattr(distribution, kind).double()
    kind = "logits" if distribution._param is distribution.__dict__.get("logits") else "probs"
    return kind, distribution._param.double()


def as_logits(kind: str, value: Tensor) -> Tensor:
    """The logits of one outcome of two."""
    return value if kind == "logits" else torch.log(value) - torch.log1p(-value)


def log_variance(scale: Tensor) -> Tensor:
    """The log-variance of a standard deviation, in ``float64``."""
    return 2 * torch.log(scale.double())


def parameters_of(distribution: Distribution) -> list[Tensor]:
    """The tensors a distribution of torch's or ours is made of that want a gradient; none of another package's."""
    if not type(distribution).__module__.startswith(("torch.distributions.", "kldiv.")):
        return []
    found: list[Tensor] = []
    for value in distribution.__dict__.values():
        if isinstance(value, Tensor) and value.requires_grad and not any(value is other for other in found):
            found.append(value)
        elif isinstance(value, Distribution):
            found.extend(parameters_of(value))
    return found
