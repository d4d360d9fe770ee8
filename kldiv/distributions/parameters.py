"""What a distribution's constructor was given: logits or probabilities, which matrix, a scale or a log-variance.

torch stores a parameter under the name by which it was given. Its other names are lazy properties: computed on first
access, and then stored as well. That access need not be the user's: to validate a ``OneHotCategorical``, a
``Multinomial`` or a relaxed distribution torch reads both ``logits`` and ``probs``. From torch 2.6 to 2.14 alike:

- A constructor stores what it was given before ``Distribution.__init__`` stores ``_batch_shape``. A lazy property is
  stored after that. ``copy``, ``deepcopy`` and ``pickle`` keep the order of ``__dict__``.
- ``expand`` copies every name that is stored, all before ``_batch_shape``, and then treats the logits as given. If a
  second name was stored, the result no longer tells which of the two was given. Nor does a distribution whose second
  name is first read inside a compiled graph.

Where it cannot be told, the better conditioned one is used: the Cholesky factor of a covariance; and logits, except
where torch computed them from a probability that it had clamped.
"""

import functools
import inspect
from collections.abc import Hashable
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    ExponentialFamily,
    Multinomial,
    Normal,
    OneHotCategorical,
    RelaxedBernoulli,
    RelaxedOneHotCategorical,
    Transform,
)
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical
from torch.distributions.utils import clamp_probs, lazy_property, probs_to_logits

from kldiv.distributions.diagonal_normal import DiagonalNormal

__all__ = [
    "COVARIANCES",
    "PROBABILITIES",
    "as_logits",
    "computed_names",
    "device_of",
    "given",
    "given_name",
    "is_computed_late",
    "is_known_family",
    "is_own",
    "log_chance",
    "log_variance",
    "materialise",
    "mean_and_log_var",
    "parameter_dtype",
    "parameters_of",
    "stored",
]


def materialise(distribution: Any) -> None:
    """Computes the lazy ``logits`` and ``probs`` now: a checkpoint must find the same attributes twice."""
    for value in list(vars(distribution).values()):
        if isinstance(value, Distribution):
            materialise(value)
    for name in ("logits", "probs"):
        if is_computed_late(cast(Hashable, type(distribution)), name):
            getattr(distribution, name)


@functools.cache
def is_computed_late(kind: Hashable, name: str) -> bool:
    """Whether an attribute is a lazy property, which torch computes on first access."""
    return isinstance(inspect.getattr_static(kind, name, None), lazy_property)


_TRACED = (
    "_mean",
    "_param",
    "_unbroadcasted_scale_tril",
    "base_dist",
    "_categorical",
    "_mixture_distribution",
    "_component_distribution",
    "_gamma",
    "_dirichlet",
)
"""Attributes with tensors or distributions, beside those that ``arg_constraints`` name."""


def stored(distribution: Distribution) -> list[tuple[str, Any]]:
    """The names and values of a distribution's attributes.

    Under ``torch.compile`` only names that we know: torch 2.11 and earlier does not trace through ``__dict__``.
    """
    if not torch.compiler.is_compiling():
        return list(distribution.__dict__.items())
    found: list[tuple[str, Any]] = []
    for name in (*distribution.arg_constraints, *_TRACED):
        if name in distribution.__dict__:
            found.append((name, distribution.__dict__.get(name)))
    return found


def parameter_dtype(distribution: Distribution) -> torch.dtype:
    """The widest dtype of the distribution's parameters, ``float32`` at least."""
    dtype = torch.float32
    for _, value in stored(distribution):
        if isinstance(value, Tensor) and value.is_floating_point():
            dtype = torch.promote_types(dtype, value.dtype)
        elif isinstance(value, Distribution):
            dtype = torch.promote_types(dtype, parameter_dtype(value))
    return dtype


PROBABILITIES = ("logits", "probs")
"""The names by which torch's families take probabilities."""

COVARIANCES = ("scale_tril", "covariance_matrix", "precision_matrix")
"""The names by which torch's families take a covariance."""

_HELD_BY: dict[type, str] = {
    OneHotCategorical: "_categorical",
    Multinomial: "_categorical",
    ExpRelaxedCategorical: "_categorical",
    RelaxedOneHotCategorical: "base_dist",
    RelaxedBernoulli: "base_dist",
}
"""Families that store their logits or probabilities in an inner distribution. All others store them themselves."""


def given_name(distribution: Distribution, names: tuple[str, ...]) -> str | None:
    """The name, of several for one parameter, by which it was given; ``None`` where that can no longer be told."""
    present = [name for name in names if name in distribution.__dict__]
    if len(present) > 1:
        order = list(distribution.__dict__)
        present = [name for name in present if order.index(name) < order.index("_batch_shape")]
    return present[0] if len(present) == 1 else None


def computed_names(distribution: Distribution) -> list[str]:
    """The names of parameters that torch has computed from the given ones, rounded to their precision."""
    found: list[str] = []
    for names in (PROBABILITIES, COVARIANCES):
        if (own := given_name(distribution, names)) is not None:
            found += [name for name in names if name != own and name in distribution.__dict__]
    return found


def given(distribution: Distribution) -> tuple[str, Tensor]:
    """``"logits"`` or ``"probs"``, whichever the distribution was given, and the values in ``float64``.

    torch normalises those of categories.
    """
    holder = _holder(distribution)
    name = given_name(holder, PROBABILITIES)
    if name is None:
        return "logits", _logits_of_both(holder.logits, holder.probs, not isinstance(holder, Categorical))
    return name, getattr(holder, name).double()


def _holder(distribution: Any) -> Any:
    for family, name in _HELD_BY.items():
        if isinstance(distribution, family):
            return _holder(getattr(distribution, name))
    return distribution


def _logits_of_both(logits: Tensor, probs: Tensor, is_binary: bool) -> Tensor:
    """The logits in ``float64`` where both are stored and either may have been computed from the other.

    Logits tell more than the probabilities computed from them, which round to 0 and 1. But probabilities outside of
    [eps, 1 - eps] are clamped to that interval before torch computes their logits: there the probability is used.
    """
    clamped = (clamp_probs(probs) != probs) & torch.isclose(
        logits, probs_to_logits(probs, is_binary), rtol=4 * torch.finfo(probs.dtype).eps, atol=0.0
    )
    # the branch that is not taken must have a finite gradient
    probs = torch.where(clamped, probs.double(), 0.5)
    return torch.where(clamped, as_logits("probs", probs) if is_binary else log_chance(probs), logits.double())


def as_logits(name: str, value: Tensor) -> Tensor:
    """The logits of one outcome of two, of what :func:`given` returns: infinite at 0 and 1, with a gradient of 0."""
    if name == "logits":
        return value
    none, certain = value <= 0, value >= 1
    inside = torch.where(none | certain, 0.5, value)
    logits = torch.log(inside) - torch.log1p(-inside)
    return logits.masked_fill(none, -torch.inf).masked_fill(certain, torch.inf)


def log_chance(probs: Tensor) -> Tensor:
    """The logarithm of probabilities: minus infinity at 0, with a gradient of 0, as a softmax has it there."""
    none = probs <= 0
    return torch.log(torch.where(none, 1.0, probs)).masked_fill(none, -torch.inf)


def mean_and_log_var(distribution: Distribution) -> tuple[Tensor, Tensor] | None:
    """The mean and the log-variance of independent normals, given by that or by a scale; ``None``: another family."""
    if isinstance(distribution, DiagonalNormal):
        return distribution.mean, distribution.log_var
    if isinstance(distribution, Normal) and type(distribution).log_prob is Normal.log_prob:
        return distribution.loc, log_variance(distribution.scale)
    return None


def log_variance(scale: Tensor) -> Tensor:
    """The log-variance of a standard deviation, in ``float64``."""
    return 2 * torch.log(scale.double())


def device_of(distribution: Distribution) -> torch.device:
    """Where the distribution's parameters are; the default device where it has none."""
    for _, value in stored(distribution):
        if isinstance(value, Tensor):
            return value.device
        if isinstance(value, Distribution):
            return device_of(value)
    return torch.get_default_device()


def is_known_family(kind: type) -> bool:
    """Whether a class of distributions or transforms is torch's or ours, or derived from a family of these."""
    if is_own(kind):
        return True
    # not derived from the abstract bases alone
    own = next((parent for parent in kind.__mro__ if is_own(parent)), Distribution)
    return own not in (Distribution, ExponentialFamily, Transform)


def is_own(kind: type) -> bool:
    """Whether a class is torch's or ours."""
    return kind.__module__.startswith(("torch.distributions.", "kldiv."))


def parameters_of(distribution: Distribution) -> list[Tensor]:
    """The tensors of a distribution of a known family that require a gradient; none of another package's."""
    if not is_known_family(type(distribution)):
        return []
    found: list[Tensor] = []
    for _, value in stored(distribution):
        if isinstance(value, Tensor) and value.requires_grad and not any(value is other for other in found):
            found.append(value)
        elif isinstance(value, Distribution):
            found.extend(parameters_of(value))
    return found
