"""Shapes, precision and sums of plain tensors."""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor

__all__ = [
    "broadcast",
    "check_broadcast",
    "keep_precision",
    "sum_rightmost",
    "widen",
]


def broadcast(*values: Tensor) -> tuple[Tensor, ...]:
    """The values in the shape to which they broadcast."""
    return tuple(torch.broadcast_tensors(*values))  # type: ignore[no-untyped-call]


@overload
def widen(*values: Tensor | float) -> tuple[Tensor, ...]: ...
@overload
def widen(*values: Tensor | float | None) -> tuple[Any, ...]: ...
def widen(*values: Tensor | float | None) -> tuple[Any, ...]:
    """The values in one dtype to compute in: the widest of the tensors' dtypes, and ``float32`` at least.

    Args:
        values: tensors, at least one. Numbers become tensors of that dtype on the first one's device, and ``None``
            stays ``None``.

    >>> [v.dtype for v in widen(torch.ones(2, dtype=torch.float16), 0.5)]
    [torch.float32, torch.float32]
    """
    tensors = [value for value in values if isinstance(value, Tensor)]
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple([_in_dtype(value, dtype, tensors[0].device) for value in values])


def _in_dtype(value: Tensor | float | None, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.to(dtype)
    return None if value is None else torch.full((), value, dtype=dtype, device=device)


def keep_precision(convert: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The conversion without its loss of precision: a floating tensor keeps its dtype where that is wider.

    Sums to which little is added must stay in ``float64`` when a module is converted.
    """

    def converted(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return convert(tensor)
        # converting an empty tensor tells device and dtype, without rounding the numbers
        like = convert(torch.empty_like(tensor))
        return tensor.to(like.device, torch.promote_types(like.dtype, tensor.dtype))

    return converted


def check_broadcast(**shapes: torch.Size | None) -> torch.Size:
    """The shape to which the named shapes broadcast. ``None`` is left out.

    Raises: ValueError: if they do not; the message names each with its shape.

    >>> check_broadcast(mean=torch.Size([3, 1]), log_var=torch.Size([4]))
    torch.Size([3, 4])
    """
    joint: list[int] = []
    for shape in shapes.values():
        if shape is None:
            continue
        longer, shorter = (joint, list(shape)) if len(joint) >= len(shape) else (list(shape), joint)
        joint = list(longer)
        for axis in range(-len(shorter), 0):
            if longer[axis] != shorter[axis] and 1 not in (longer[axis], shorter[axis]):
                raise ValueError(
                    "the shapes do not broadcast: "
                    + ", ".join(f"{name} {tuple(s)}" for name, s in shapes.items() if s is not None)
                )
            joint[axis] = shorter[axis] if longer[axis] == 1 else longer[axis]
    return torch.Size(joint)


def sum_rightmost(values: Tensor, dims: int) -> Tensor:
    """The sum over the last ``dims`` dimensions."""
    return values.flatten(-dims).sum(-1) if dims else values
