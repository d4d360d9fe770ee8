"""When a fused form stands in for its plain formula, and what fused forms share.

A fused form is an autograd function that works in blocks which stay in cache, and keeps little for its backward. Beside
each stands the plain formula, which is taken under ``torch.compile``, which fuses by itself, under function
transforms, in forward-mode differentiation, and for second derivatives.
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
    "differentiated",
    "exp2_",
    "falls_back_on",
    "fuses_on_cpu",
    "fuses_on_cuda",
    "gradients_wanted",
    "in_eager",
    "take_gradients",
]


_Backward = Callable[..., Any]
"""Of ``(ctx, *upstream)``: the gradients of all arguments of the forward."""


def fuses_on_cpu(*tensors: Tensor) -> bool:
    """Whether a fused form for ``float32`` on a CPU takes these tensors."""
    return all(tensor.dtype == torch.float32 and tensor.is_cpu for tensor in tensors) and in_eager()


def fuses_on_cuda(*tensors: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> bool:
    """Whether a Triton kernel for one of these dtypes takes these tensors: all of one dtype, on one CUDA device."""
    dtype, device = tensors[0].dtype, tensors[0].device
    if device.type != "cuda" or dtype not in dtypes:
        return False
    alike = all(tensor.dtype == dtype and tensor.device == device for tensor in tensors)
    return alike and in_eager() and _has_triton(device)


def in_eager() -> bool:
    """Whether nothing traces or transforms what is computed here."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and forward_ad._current_level < 0
    )


@functools.cache
def _has_triton(device: torch.device) -> bool:
    """Whether Triton is installed and compiles for this CUDA device."""
    found = torch.version.cuda is not None and importlib.util.find_spec("triton") is not None
    return found and torch.cuda.get_device_capability(device) >= (7, 0)


def falls_back_on(plain_backward: _Backward) -> Callable[[_Backward], _Backward]:
    """Decorates the backward of a fused form: ``plain_backward`` takes over where plain operations are needed.

    They are needed where the backward is differentiated again, and where it gets many upstream gradients at once.
    """

    def decorate(fused_backward: _Backward) -> _Backward:
        @functools.wraps(fused_backward)
        def backward(ctx: Any, *upstream: Tensor) -> Any:
            chosen = plain_backward if _needs_plain_operations(upstream[0]) else fused_backward
            return chosen(ctx, *upstream)

        return backward

    return decorate


def _needs_plain_operations(upstream: Tensor) -> bool:
    # torch.autograd.grad(is_grads_batched=True) uses a vmap that is older than function transforms
    batched: bool = torch._C._functorch.is_legacy_batchedtensor(upstream)
    return batched or torch.is_grad_enabled() or not in_eager()


def differentiated(formula: Callable[..., Any]) -> _Backward:
    """The backward that evaluates ``formula(*saved tensors, *ctx.options)`` and differentiates it."""

    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        wanted = [tensor for tensor, needed in zip(saved, ctx.needs_input_grad, strict=False) if needed]
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            value = formula(*saved, *ctx.options)
        gradients = iter(torch.autograd.grad(value, wanted, upstream, create_graph=again))
        return tuple(next(gradients) if needed else None for needed in ctx.needs_input_grad)

    return backward


def gradients_wanted(*tensors: Tensor) -> list[bool]:
    """Which of the tensors will be asked for a gradient. Inside of a forward there is no telling."""
    return [tensor.requires_grad and torch.is_grad_enabled() for tensor in tensors]


def take_gradients(ctx: Any) -> Any:
    """The gradients that the forward made, for the backward to overwrite.

    ``None`` in the second backward of a graph that was kept: it has to make them again.
    """
    gradients, ctx.gradients = ctx.gradients, None
    return gradients


def blocks_of_rows(values: Tensor, numbers: int) -> list[Any]:
    """Indices of blocks of rows, about ``numbers`` numbers each; one index for everything where it fits."""
    if values.numel() <= numbers or not values.ndim:
        return [...]
    height = max(1, numbers * len(values) // values.numel())
    return [slice(start, start + height) for start in range(0, len(values), height)]


def exp2_(values: Tensor) -> Tensor:
    """2^values in place, of values that are not positive. In ``float32`` on a CPU it is 0 below 2^-126.

    There torch's 2^x takes a third of the time of its e^x, but up to seventy times as long where the result is
    subnormal, below 2^-126.
    """
    if values.dtype == torch.float32 and values.is_cpu:
        torch.threshold_(values, -126.0, -math.inf)
    return values.exp2_()
