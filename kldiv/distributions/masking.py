"""Copies of a distribution that hold nothing, or pass no gradient on, where something is masked."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, TransformedDistribution
from torch.distributions import constraints as torch_constraints
from torch.distributions.transforms import Transform, _InverseTransform

from kldiv.distributions.precision import can_be_copied, converted

__all__ = [
    "align",
    "masked_distribution",
    "masked_sample",
    "stop_gradient_unless",
]


def align(keep: Tensor, ndim: int) -> Tensor:
    """``keep`` with dimensions of size 1 behind its own, ``ndim`` at least."""
    return keep.reshape(*keep.shape, *[1] * max(ndim - keep.ndim, 0))


def stop_gradient_unless(condition: Tensor, value: Any) -> Any:
    """A distribution or a tensor of the same values, whose gradient is 0, and never NaN, where the condition is False.

    A distribution of another package is returned as it is.

    Args:
        condition: a boolean of shape ().
    """

    def gate(tensor: Tensor) -> Tensor:
        return torch.where(condition, tensor, tensor.detach()) if tensor.requires_grad else tensor

    if isinstance(value, Distribution):
        return converted(value, gate) if can_be_copied(value) else value
    return gate(value) if isinstance(value, Tensor) else value


def masked_distribution(distribution: Distribution, keep: Tensor, batch_shape: torch.Size | None = None) -> Any:
    """A private copy with standard parameters where ``keep`` is False: the others' draws and gradients never see them.

    Where nothing is known of a parameter's range, it keeps its value there and loses its gradient. A distribution of
    another package is returned as it is.

    Args:
        keep: boolean, its leading dimensions those of the batch, and behind them, if any, those of independent events.
        batch_shape: what the distribution is expanded to; ``None``: its own.
    """
    if not can_be_copied(distribution):
        return distribution
    copied: Distribution = converted(distribution, lambda tensor: tensor)
    if batch_shape is not None and batch_shape != copied.batch_shape:
        copied = copied.expand(batch_shape)
    _fill(copied, keep, len(copied.batch_shape), {})
    return copied


@torch.no_grad()
def _standard_value(distribution: Any) -> Tensor:
    """A value in the support, of batch and event shape."""
    names = ("mode", "mean") if _is_discrete(distribution) else ("mean", "mode")
    for name in names:
        try:
            value: Tensor = getattr(distribution, name)
        except (NotImplementedError, AttributeError):
            continue
        return value
    drawn: Tensor = distribution.sample()
    return drawn


def _is_discrete(distribution: Distribution) -> bool:
    try:
        return bool(distribution.support.is_discrete)  # type: ignore[union-attr]
    except (NotImplementedError, AttributeError):
        return False


def masked_sample(sample: Tensor, keep: Tensor, masked: Distribution) -> Tensor:
    r"""The sample, (\*samples, \*batch, \*event), with another value of the support where ``keep`` is False.

    Args:
        masked: the posterior as :func:`masked_distribution` returns it.
    """
    shape = masked.batch_shape + masked.event_shape
    known = can_be_copied(masked)
    value = _standard_value(masked).to(sample.dtype) if known else sample.new_zeros(())
    return torch.where(align(keep, len(shape)), sample, value)


def _fill(distribution: Any, keep: Tensor, batch_dims: int, made: dict[int, Tensor]) -> None:
    """Fills the tensors of a private copy, in place; one that stands under two names is filled once."""
    inner = {
        Independent: ("base_dist",),
        TransformedDistribution: ("base_dist",),
        MixtureSameFamily: ("_mixture_distribution", "_component_distribution"),
    }
    names: tuple[str, ...] = next((found for kind, found in inner.items() if isinstance(distribution, kind)), ())
    own = vars(distribution)
    for name, value in own.items():
        if isinstance(value, Distribution):
            # the components of a mixture have a dimension more, and so have the parts of an Independent
            part_dims = len(value.batch_shape) if name in names else batch_dims
            if name != "_component_distribution" or part_dims > batch_dims:  # not components that all examples share
                _fill(value, keep, max(part_dims, batch_dims), made)
        elif isinstance(value, Tensor) and value.is_floating_point():
            own[name] = _filled(distribution, name, value, keep, batch_dims, made)
        elif name == "transforms":
            own[name] = [_filled_transform(part, keep, batch_dims, made) for part in value]


def _filled(
    distribution: Any, name: str, value: Tensor, keep: Tensor, batch_dims: int, made: dict[int, Tensor]
) -> Tensor:
    if id(value) in made:
        return made[id(value)]
    dims, standard = _standard(distribution, name.removeprefix("_unbroadcasted_"), value)
    if dims is None:
        return value
    made[id(value)] = torch.where(align(keep, max(batch_dims + dims, value.ndim)), value, standard)
    return made[id(value)]


def _standard(distribution: Any, name: str, value: Tensor) -> tuple[int | None, Tensor]:
    """How many event dimensions a parameter has, and a value that is in its range, whatever the distribution."""
    if name == "_param":  # torch's second name of logits or probabilities
        name = "logits" if "logits" in vars(distribution) else "probs"
    if name == "_mean":  # of a DiagonalNormal
        name = "mean"
    if name == "_capacitance_tril":
        return 2, torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
    constraint = distribution.arg_constraints.get(name)
    if constraint is None:
        return None, value
    dims = constraint.event_dim
    if isinstance(distribution, Categorical):
        size = value.shape[-1]
        uniform = -value.new_full((), float(max(size, 1))).log() if name == "logits" else value.new_full((), 1 / size)
        return 1, uniform
    if name in ("scale_tril", "covariance_matrix", "precision_matrix"):
        return 2, torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
    if name in ("cov_factor", "low") or isinstance(constraint, type(torch_constraints.real)):
        return 2 if name == "cov_factor" else 0, value.new_zeros(())
    if name in ("mean", "loc") and dims:  # vectors, unit vectors among them
        first = torch.zeros(value.shape[-1], dtype=value.dtype, device=value.device)
        first[:1] = 0.0 if constraint is torch_constraints.real_vector else 1.0
        return dims, first
    if constraint is torch_constraints.unit_interval:
        return 0, value.new_full((), 0.5)
    if name == "df" and dims == 0 and len(distribution.event_shape) == 2:  # Wishart's exceeds its dimension
        return 0, value.new_full((), float(distribution.event_shape[-1] + 1))
    return dims, value.new_ones(())


def _filled_transform(transform: Any, keep: Tensor, batch_dims: int, made: dict[int, Tensor]) -> Any:
    if isinstance(transform, _InverseTransform):
        return _filled_transform(transform.inv, keep, batch_dims, made).inv
    if not isinstance(transform, Transform):
        return transform
    for name, value in vars(transform).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            if id(value) not in made:
                mask = keep if keep.ndim >= value.ndim else align(keep, max(value.ndim, batch_dims))
                standard = value.new_zeros(()) if name == "loc" else torch.where(value < 0, -1.0, 1.0).to(value.dtype)
                made[id(value)] = torch.where(mask, value, standard)
            vars(transform)[name] = made[id(value)]
        elif isinstance(value, list):
            vars(transform)[name] = [_filled_transform(part, keep, batch_dims, made) for part in value]
    return transform
