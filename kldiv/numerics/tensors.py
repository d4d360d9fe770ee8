"""Shapes, precision and sums of plain tensors."""

from collections.abc import Callable

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
    """The values in their joint shape."""
    return tuple(torch.broadcast_tensors(*values))  # type: ignore[no-untyped-call]


def widen(*values: Tensor | float) -> tuple[Tensor, ...]:
    """The values in the one dtype in which to compute with them: the widest of the tensors', ``float32`` at least.

    Args:
        values: tensors, at least one; numbers among them become tensors beside it, in that dtype.

    >>> [v.dtype for v in widen(torch.ones(2, dtype=torch.float16), 0.5)]
    [torch.float32, torch.float32]
    """
    tensors = [value for value in values if isinstance(value, Tensor)]
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(
        value.to(dtype) if isinstance(value, Tensor) else torch.full((), value, dtype=dtype, device=tensors[0].device)
        for value in values
    )


def keep_precision(convert: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A conversion that leaves floating tensors as precise as they were: sums to which little is added."""

    def converted(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return convert(tensor)
        # what it does to another tensor says where to; the numbers themselves are not rounded on the way
        like = convert(torch.empty_like(tensor))
        return tensor.to(like.device, torch.promote_types(like.dtype, tensor.dtype))

    return converted


def check_broadcast(**shapes: torch.Size) -> torch.Size:
    """The shape to which the named shapes broadcast.

    Raises: ValueError: if they do not; the message names each with its shape.

    >>> check_broadcast(mean=torch.Size([3, 1]), log_var=torch.Size([4]))
    torch.Size([3, 4])
    """
    joint: list[int] = []
    for shape in shapes.values():
        longer, shorter = (joint, list(shape)) if len(joint) >= len(shape) else (list(shape), joint)
        joint = list(longer)
        for axis in range(-len(shorter), 0):
            if longer[axis] != shorter[axis] and 1 not in (longer[axis], shorter[axis]):
                raise ValueError(
                    "the shapes do not broadcast: " + ", ".join(f"{name} {tuple(s)}" for name, s in shapes.items())
                )
            joint[axis] = shorter[axis] if longer[axis] == 1 else longer[axis]
    return torch.Size(joint)


def sum_rightmost(values: Tensor, dims: int) -> Tensor:
    """The sum over the last ``dims`` dimensions."""
    return values.flatten(-dims).sum(-1) if dims else values
