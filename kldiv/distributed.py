"""Sums and batches over all processes, with gradients through the gathering."""

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd import Function

__all__ = [
    "world_gather",
    "world_mean",
    "world_rank",
    "world_size",
    "world_sum",
]


def world_size(group: Any = None) -> int:
    """How many processes the group has; 1 where torch.distributed is not initialised."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def world_rank(group: Any = None) -> int:
    """Which of them this is, from 0 on."""
    return dist.get_rank(group) if world_size(group) > 1 else 0


def world_sum(value: Tensor, group: Any = None) -> Tensor:
    """The sum of ``value`` over the processes of the group, the same on each; ``value`` itself where there is one.

    The gradient of every process's loss reaches the value of every process, so that gradients averaged over processes
    are those of the mean loss.

    Args:
        value: of one shape on all processes.
        group: a process group; ``None`` is the whole world.
    """
    if world_size(group) == 1:
        return value
    total: Tensor = _Sum.apply(value, group)
    return total


class _Sum(Function):
    """Sums forward, and in the backward what the processes ask of the sum."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return _Sum.apply(upstream, ctx.group), None


def world_mean(values: Tensor, group: Any = None) -> Tensor:
    """The mean over dimension 0, over the examples of all processes; 0 where there are none."""
    count = world_sum(torch.full((), float(values.shape[0]), dtype=values.dtype, device=values.device), group)
    return world_sum(values.sum(0), group) / count.clamp(min=1)


def world_gather(values: Tensor, group: Any = None) -> Tensor:
    """The values of all processes one after the other along dimension 0, with gradients as :func:`world_sum`'s.

    Args:
        values: of one shape on all processes.
        group: a process group; ``None`` is the whole world.
    """
    processes, rank = world_size(group), world_rank(group)
    if processes == 1:
        return values
    # as a sum, each process's in its own place: one primitive, whose gradient is known to be right
    parts = [values if process == rank else torch.zeros_like(values) for process in range(processes)]
    return world_sum(torch.cat(parts), group)
