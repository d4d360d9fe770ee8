"""Sums over the batches of all processes, with gradients through the gathering."""

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def world_sum(value: Tensor, group: Any = None) -> Tensor:
    """The sum of ``value`` over the processes of the group, the same on each; ``value`` itself where there is one.

    The gradient of every process's loss reaches the value of every process, so that gradients averaged over processes
    are those of the mean loss.

    Args:
        value: of one shape on all processes.
        group: a process group; ``None`` is the whole world.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return value
    total: Tensor = _WorldSum.apply(value, group)
    return total


def world_mean(values: Tensor, group: Any = None) -> Tensor:
    """The mean over dimension 0, over the examples of all processes; 0 where there are none."""
    count = world_sum(torch.full((), float(values.shape[0]), dtype=values.dtype, device=values.device), group)
    return world_sum(values.sum(0), group) / count.clamp(min=1)


class _WorldSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = value.detach().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
