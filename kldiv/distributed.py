"""Sums, means and gathered batches over all processes, with gradients for every process."""

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


def world_size(process_group: Any = None) -> int:
    """The number of processes in the process group; 1 where torch.distributed is not initialised."""
    return dist.get_world_size(process_group) if dist.is_available() and dist.is_initialized() else 1


def world_rank(process_group: Any = None) -> int:
    """The rank of this process in the process group, from 0 on."""
    return dist.get_rank(process_group) if world_size(process_group) > 1 else 0


def world_sum(value: Tensor, process_group: Any = None) -> Tensor:
    """The sum of ``value`` over all processes, the same on each; ``value`` itself where there is one process.

    The loss of each process sends a gradient to the value of each process. Gradients averaged over processes are
    therefore those of the mean loss.

    Args:
        value: of one shape on all processes.
        process_group: the processes; ``None``: the whole world.
    """
    if world_size(process_group) == 1:
        return value
    total: Tensor = _Sum.apply(value, process_group)
    return total


class _Sum(Function):
    """The sum over processes; its backward pass is the sum of the upstream gradients over processes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, process_group: Any) -> Tensor:
        ctx.process_group = process_group
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=process_group)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return _Sum.apply(upstream, ctx.process_group), None


def world_mean(values: Tensor, process_group: Any = None) -> Tensor:
    """The mean over dimension 0, over the examples of all processes; 0 where there are none."""
    count = torch.full((), float(values.shape[0]), dtype=values.dtype, device=values.device)
    return world_sum(values.sum(0), process_group) / world_sum(count, process_group).clamp(min=1)


def world_gather(values: Tensor, process_group: Any = None) -> Tensor:
    """The values of all processes joined along dimension 0, in the order of the ranks, with gradients.

    Args:
        values: of one shape on all processes.
        process_group: the processes; ``None``: the whole world.
    """
    processes, rank = world_size(process_group), world_rank(process_group)
    if processes == 1:
        return values
    # a sum of zero-padded parts: its gradient is that of world_sum
    parts = [values if process == rank else torch.zeros_like(values) for process in range(processes)]
    return world_sum(torch.cat(parts), process_group)
