"""The KL divergence of normals to the standard normal, summed, on CUDA: one Triton kernel each way.

Imported only where Triton is installed and a tensor is on CUDA.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from kldiv.kernels.autograd import falls_back_on, take_gradients
from kldiv.kernels.gaussian import plain_gradients
from kldiv.kernels.triton_math import half_excess_and_spread, jit, power_of_two, tl

__all__ = [
    "gaussian_kl",
]


_BLOCK = 2048
_PROGRAMS = 8
"""Per multiprocessor: enough to hide the latency of memory, and few enough for the last one to add up all parts."""


def gaussian_kl(mean: Tensor, log_var: Tensor, scale: float) -> Tensor:
    """``scale`` times the sum of D_KL(N(mean, exp(log_var)) || N(0, 1)) over all elements, in nats.

    Args:
        mean, log_var: of one shape and dtype, ``float32`` or half precision, on CUDA.
    Returns: shape (), in ``float32``.
    """
    total: Tensor = _GaussianKL.apply(mean, log_var, scale)
    return total


class _GaussianKL(Function):
    """The forward makes the gradients, and the backward writes them again unless the upstream gradient is 1."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_var: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mean, log_var)
        ctx.scale = scale
        ctx.gradients = _like(mean, log_var) if any(ctx.needs_input_grad) else None
        return _launch_forward(mean, log_var, ctx.gradients, scale)

    @staticmethod
    @falls_back_on(plain_gradients)
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        mean, log_var = ctx.saved_tensors
        gradients = take_gradients(ctx)
        again = gradients is None
        if gradients is None:
            gradients = _like(mean, log_var)
        _launch_backward(mean, log_var, gradients, upstream, ctx.scale, again)
        return *gradients, None


def _like(mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (mean, log_var))  # type: ignore[return-value]


def _launch_forward(mean: Tensor, log_var: Tensor, gradients: tuple[Tensor, Tensor] | None, scale: float) -> Tensor:
    """The value. Its gradients are written."""
    total = torch.empty((), dtype=torch.float32, device=mean.device)
    programs, block = _grid(mean)
    partials = total if programs == 1 else torch.empty(programs, dtype=torch.float64, device=mean.device)
    mean, log_var = _rows(mean), _rows(log_var)
    to_mean, to_log_var = (mean, log_var) if gradients is None else gradients
    with torch.cuda.device_of(mean):  # type: ignore[no-untyped-call]
        counter = total if programs == 1 else _counter(mean.device)
        _forward_kernel[(programs,)](
            mean,
            log_var,
            to_mean,
            to_log_var,
            partials,
            counter,
            total,
            mean.numel(),
            mean.shape[1],
            mean.stride(0),
            log_var.stride(0),
            scale,
            PROGRAMS=programs,
            HELD=power_of_two(programs),
            BLOCK=block,
            STRIDED=not (mean.is_contiguous() and log_var.is_contiguous()),
            WITH_GRADIENTS=gradients is not None,
        )
    return total


def _launch_backward(
    mean: Tensor, log_var: Tensor, gradients: tuple[Tensor, Tensor], upstream: Tensor, scale: float, again: bool
) -> None:
    """Writes the gradients, if ``again`` or if the upstream gradient is not 1. The device finds out: nothing waits."""
    programs, block = _grid(mean)
    mean, log_var = _rows(mean), _rows(log_var)
    with torch.cuda.device_of(mean):  # type: ignore[no-untyped-call]
        _backward_kernel[(programs,)](
            mean,
            log_var,
            *gradients,
            upstream,
            mean.numel(),
            mean.shape[1],
            mean.stride(0),
            log_var.stride(0),
            scale,
            PROGRAMS=programs,
            BLOCK=block,
            STRIDED=not (mean.is_contiguous() and log_var.is_contiguous()),
            AGAIN=again,
        )


def _rows(values: Tensor) -> Tensor:
    """(rows, columns) with a stride of 1 along columns. Half of an encoder's output is so already, and not copied."""
    flat = values.flatten(1) if values.ndim > 1 else values[None]
    return flat if flat.stride(1) == 1 or (flat.shape[1] == 1 and flat.is_contiguous()) else flat.contiguous()


def _grid(values: Tensor) -> tuple[int, int]:
    """How many programs, and how many numbers in a block."""
    if values.numel() <= 2 * _BLOCK:
        return 1, power_of_two(max(values.numel(), 128))
    most = _PROGRAMS * torch.cuda.get_device_properties(values.device).multi_processor_count if values.is_cuda else 4
    return min(most, -(-values.numel() // _BLOCK)), _BLOCK


_counters: dict[tuple[torch.device, int], Tensor] = {}


def _counter(device: torch.device) -> Tensor:
    """A zero for each stream, whose kernels run one after the other. The kernel sets it back to 0 when it ends."""
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros(1, dtype=torch.int32, device=device)  # the graph's own: it may be replayed on any stream
    key = device, torch.cuda.current_stream(device).cuda_stream
    if key not in _counters:
        _counters[key] = torch.zeros(1, dtype=torch.int32, device=device)
    return _counters[key]


@jit
def _load(pointer, at, mask, columns, stride, STRIDED: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """The numbers at these places, counted row by row, in ``float32``."""
    if STRIDED:
        row = at // columns
        place = row * stride + (at - row * columns)
    else:
        place = at
    return tl.load(pointer + place, mask=mask, other=0.0).to(tl.float32)


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    mean_pointer,
    log_var_pointer,
    to_mean_pointer,
    to_log_var_pointer,
    partials_pointer,
    counter_pointer,
    total_pointer,
    size,
    columns,
    mean_stride,
    log_var_stride,
    scale,
    PROGRAMS: tl.constexpr,  # noqa: N803
    HELD: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
    STRIDED: tl.constexpr,  # noqa: N803
    WITH_GRADIENTS: tl.constexpr,  # noqa: N803
):
    program = tl.program_id(0)
    found = tl.zeros([BLOCK], dtype=tl.float32)
    lost = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(program.to(tl.int64) * BLOCK, size, PROGRAMS * BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = at < size
        mean = _load(mean_pointer, at, mask, columns, mean_stride, STRIDED)
        log_var = _load(log_var_pointer, at, mask, columns, log_var_stride, STRIDED)
        excess, spread = half_excess_and_spread(log_var)
        # compensated summation (Kahan): a lane adds many numbers
        term = (spread + 0.5 * mean * mean) - lost
        new = found + term
        lost = tl.where(tl.abs(new) < float("inf"), (new - found) - term, 0.0)
        found = new
        if WITH_GRADIENTS:
            tl.store(to_mean_pointer + at, (mean * scale).to(to_mean_pointer.dtype.element_ty), mask=mask)
            tl.store(to_log_var_pointer + at, (excess * scale).to(to_log_var_pointer.dtype.element_ty), mask=mask)
    part = scale * tl.sum(found.to(tl.float64), 0)
    if PROGRAMS == 1:
        tl.store(total_pointer, part.to(tl.float32))
    else:
        tl.store(partials_pointer + program, part)
        tl.debug_barrier()
        before = tl.atomic_add(counter_pointer, 1, sem="acq_rel")
        if before == PROGRAMS - 1:  # the last program: all others have written their parts
            each = tl.arange(0, HELD)
            parts = tl.load(partials_pointer + each, mask=each < PROGRAMS, other=0.0, cache_modifier=".cg")
            tl.store(total_pointer, tl.sum(parts, 0).to(tl.float32))
            tl.store(counter_pointer, 0)


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    mean_pointer,
    log_var_pointer,
    to_mean_pointer,
    to_log_var_pointer,
    upstream_pointer,
    size,
    columns,
    mean_stride,
    log_var_stride,
    scale,
    PROGRAMS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
    STRIDED: tl.constexpr,  # noqa: N803
    AGAIN: tl.constexpr,  # noqa: N803
):
    upstream = tl.load(upstream_pointer)
    if AGAIN or upstream != 1.0:
        factor = upstream * scale
        for start in range(tl.program_id(0).to(tl.int64) * BLOCK, size, PROGRAMS * BLOCK):
            at = start + tl.arange(0, BLOCK)
            mask = at < size
            mean = _load(mean_pointer, at, mask, columns, mean_stride, STRIDED)
            log_var = _load(log_var_pointer, at, mask, columns, log_var_stride, STRIDED)
            excess, _ = half_excess_and_spread(log_var)
            tl.store(to_mean_pointer + at, (mean * factor).to(to_mean_pointer.dtype.element_ty), mask=mask)
            tl.store(to_log_var_pointer + at, (excess * factor).to(to_log_var_pointer.dtype.element_ty), mask=mask)
