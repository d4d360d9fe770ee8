"""Fused forms behind the plain formulas: what stays in cache, and what is computed again instead of kept.

Each has a plain twin, to which it is tested, and which is taken where this one cannot be: under ``torch.compile``,
which fuses by itself, and under function transforms and forward-mode differentiation. :func:`in_eager` is where
that is decided.
"""

import functools
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = [
    "blocks_of_rows",
    "exp2_",
    "fused",
    "gradients_again",
    "has_triton",
    "in_eager",
    "is_plain_backward",
]


def fused(*tensors: Tensor) -> bool:
    """Whether an autograd function that looks at numbers may stand in for the plain formula: ``float32`` on a CPU."""
    return all(tensor.dtype == torch.float32 and tensor.is_cpu for tensor in tensors) and in_eager()


def in_eager() -> bool:
    """Whether nothing traces or transforms what is computed here."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and forward_ad._current_level < 0
    )


@functools.cache
def has_triton(device: torch.device) -> bool:
    """Whether Triton is there, and the CUDA device one that it compiles for."""
    found = torch.version.cuda is not None and importlib.util.find_spec("triton") is not None
    return found and torch.cuda.get_device_capability(device) >= (7, 0)


def blocks_of_rows(values: Tensor, numbers: int) -> list[Any]:
    """Indices of the blocks of a tensor's rows that hold about so many numbers each; all of it at once where it may."""
    if values.numel() <= numbers or not values.ndim:
        return [...]
    height = max(1, numbers * len(values) // values.numel())
    return [slice(start, start + height) for start in range(0, len(values), height)]


def exp2_(values: Tensor) -> Tensor:
    """2 to the power of what is not positive, in place: 0 from -126 on, where the normal numbers of ``float32`` end.

    On a CPU torch takes a third of the time for it that its exponential takes, which is up to seventy times slower
    again where the result leaves the normal numbers.
    """
    if values.dtype == torch.float32 and values.is_cpu:
        torch.threshold_(values, -126.0, -math.inf)
    return values.exp2_()


def is_plain_backward(upstream: Tensor) -> bool:
    """Whether a backward is to be of plain operations: differentiated again, or of many upstream gradients at once."""
    # those of torch.autograd.grad(is_grads_batched=True) are of a vmap that is older than function transforms
    batched: bool = torch._C._functorch.is_legacy_batchedtensor(upstream)
    return batched or torch.is_grad_enabled() or not in_eager()


def gradients_again(ctx: Any, formula: Callable[[], Any], upstream: Any) -> list[Tensor | None]:
    """The gradients of what was saved, out of plain operations: those that are wanted, ``None`` for the others."""
    wanted = [t if needed else None for t, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)]
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        values = formula()
    found = iter(torch.autograd.grad(values, [t for t in wanted if t is not None], upstream, create_graph=again))
    return [None if t is None else next(found) for t in wanted]
