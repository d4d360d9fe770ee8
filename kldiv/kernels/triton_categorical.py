"""The KL divergence of categorical distributions on CUDA: a Triton program for each row, which makes the gradients too.

Imported only where Triton is installed and a tensor is on CUDA.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from kldiv.kernels.autograd import differentiated, falls_back_on, take_gradients
from kldiv.kernels.categorical import categorical_kl_formula
from kldiv.kernels.triton_math import half_excess_and_spread, half_exponential, jit, power_of_two, tl

__all__ = [
    "categorical_kl",
]


_BLOCK = 4096


def categorical_kl(logits_p: Tensor, logits_q: Tensor, wanted: list[bool]) -> Tensor:
    """D_KL(softmax(logits_p) || softmax(logits_q)) of each row, in nats. It never waits for the device.

    Args:
        logits_p, logits_q: (rows, categories), in ``float32``, on CUDA.
        wanted: which of the two gradients will be asked for.
    Returns: (rows,).
    """
    values: Tensor = _CategoricalKL.apply(logits_p, logits_q, wanted)
    return values


class _CategoricalKL(Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor, wanted: list[bool]) -> Tensor:
        ctx.save_for_backward(p, q)
        ctx.options = ()
        values, ctx.gradients = _values_and_gradients(p, q, wanted)
        return values

    @staticmethod
    @falls_back_on(differentiated(categorical_kl_formula))
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = take_gradients(ctx)
        if gradients is None:
            p, q = ctx.saved_tensors
            _, gradients = _values_and_gradients(p, q, ctx.needs_input_grad[:2])
        for gradient in gradients:
            if gradient is not None and gradient.numel():
                with torch.cuda.device_of(gradient):  # type: ignore[no-untyped-call]
                    _scale_kernel[(len(gradient),)](
                        gradient, upstream, gradient.shape[1], upstream.stride(0), BLOCK=_block(gradient)
                    )
        return *gradients, None


def _values_and_gradients(p: Tensor, q: Tensor, wanted: Any) -> tuple[Tensor, list[Tensor | None]]:
    """The KL of each row, and the gradients of their sum, ``None`` where not wanted."""
    p, q = (t if t.stride(1) == 1 else t.contiguous() for t in (p, q))
    values = p.new_empty(len(p))
    to_p, to_q = (
        torch.empty_like(t, memory_format=torch.contiguous_format) if want else None
        for t, want in zip((p, q), wanted, strict=True)
    )
    if len(p):
        with torch.cuda.device_of(p):  # type: ignore[no-untyped-call]
            _row_kernel[(len(p),)](
                p,
                q,
                p if to_p is None else to_p,
                q if to_q is None else to_q,
                values,
                p.shape[1],
                p.stride(0),
                q.stride(0),
                BLOCK=_block(p),
                WITH_P=to_p is not None,
                WITH_Q=to_q is not None,
                num_warps=8 if p.shape[1] > 1024 else 4,
            )
    return values, [to_p, to_q]


def _block(rows: Tensor) -> int:
    return min(_BLOCK, power_of_two(max(rows.shape[1], 128)))


@jit
def _pair(x):  # type: ignore[no-untyped-def]
    """A ``float64`` number as the sum of two ``float32`` numbers."""
    high = x.to(tl.float32)
    return high, (x - high.to(tl.float64)).to(tl.float32)


@jit
def _difference(a, b):  # type: ignore[no-untyped-def]
    """a - b and the error of its rounding, as kldiv.numerics.special.exact_difference."""
    difference = a - b
    used = a - difference
    return difference, (a - (difference + used)) + (used - b)


@jit
def _exponential(x, high, low):  # type: ignore[no-untyped-def]
    """e^(x - high - low) to the last digits. 0 where it would be subnormal, and at -inf."""
    least = tl.maximum(x, -3e38)
    difference, error = _difference(least, high)
    value = 2.0 * half_exponential(difference)
    is_none = (difference < -87.0) | (x == float("-inf"))
    return tl.where(is_none, 0.0, value + value * (error - low))


@jit
def _excess(p, q, high, low):  # type: ignore[no-untyped-def]
    """q - p less its mean. 0 where p or q is -inf."""
    difference, error = _difference(q, p)
    excess = ((difference - high) - low) + error
    return tl.where((p > float("-inf")) & (q > float("-inf")), excess, 0.0)


@jit
def _load(pointer, start, columns, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    at = start + tl.arange(0, BLOCK)
    return tl.load(pointer + at, mask=at < columns, other=float("-inf"))


@jit
def _moments(p_row, q_row, columns, log_sum_p, mean, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """The means under p of e^u - 1 - u and of u, with u = q - p - mean of logits p and q."""
    p_high, p_low = _pair(log_sum_p)
    high, low = _pair(mean)
    shifted_high, shifted_low = _pair(log_sum_p + mean)
    spread = tl.full((), 0.0, tl.float64)
    first = tl.full((), 0.0, tl.float64)
    for start in range(0, columns, BLOCK):
        p, q = _load(p_row, start, columns, BLOCK), _load(q_row, start, columns, BLOCK)
        prob = _exponential(p, p_high, p_low)
        u = _excess(p, q, high, low)
        _, half = half_excess_and_spread(tl.minimum(u, 1.0))
        # e^u may be huge where p is tiny, but p e^u = q is not
        apart = _exponential(q, shifted_high, shifted_low) - prob * (1.0 + u)
        is_near = (u < 1.0) & (p > float("-inf"))
        spread += tl.sum(tl.where(is_near, 2.0 * prob * half, apart), 0).to(tl.float64)
        first += tl.sum(prob * u, 0).to(tl.float64)
    return spread, first


@jit
def _row_kernel(  # type: ignore[no-untyped-def]
    p_pointer,
    q_pointer,
    to_p_pointer,
    to_q_pointer,
    values_pointer,
    columns,
    p_stride,
    q_stride,
    BLOCK: tl.constexpr,  # noqa: N803
    WITH_P: tl.constexpr,  # noqa: N803
    WITH_Q: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64)
    p_row, q_row = p_pointer + row * p_stride, q_pointer + row * q_stride
    # the normalisers, and the mean of q - p to the accuracy of float32
    top_p = tl.full((), -3e38, tl.float32)
    top_q = tl.full((), -3e38, tl.float32)
    sum_p = tl.full((), 0.0, tl.float64)
    sum_q = tl.full((), 0.0, tl.float64)
    mean = tl.full((), 0.0, tl.float64)
    excluded = tl.full((), 0, tl.int32)
    for start in range(0, columns, BLOCK):
        p, q = _load(p_row, start, columns, BLOCK), _load(q_row, start, columns, BLOCK)
        new_p, new_q = tl.maximum(top_p, tl.max(p, 0)), tl.maximum(top_q, tl.max(q, 0))
        shrink = tl.exp((top_p - new_p).to(tl.float64))
        weight = _exponential(p, new_p, 0.0)
        sum_p = sum_p * shrink + tl.sum(weight, 0).to(tl.float64)
        mean = mean * shrink + tl.sum(weight * _excess(p, q, 0.0, 0.0), 0).to(tl.float64)
        sum_q = sum_q * tl.exp((top_q - new_q).to(tl.float64))
        sum_q += tl.sum(_exponential(q, new_q, 0.0), 0).to(tl.float64)
        top_p, top_q = new_p, new_q
        without_q = (q == float("-inf")) & (p > float("-inf"))
        excluded = tl.maximum(excluded, tl.max(without_q.to(tl.int32), 0))
    mean = mean / sum_p
    log_sum_p = top_p.to(tl.float64) + tl.log(sum_p)
    log_sum_q = top_q.to(tl.float64) + tl.log(sum_q)

    spread, first = _moments(p_row, q_row, columns, log_sum_p, mean, BLOCK)
    # where the mean is not accurate enough, once more with a better one
    again = first * first > 1e-10 * spread
    better = mean + tl.where(again, first, 0.0)
    new_spread, new_first = _moments(p_row, q_row, tl.where(again, columns, 0), log_sum_p, better, BLOCK)
    mean = better
    spread, first = tl.where(again, new_spread, spread), tl.where(again, new_first, first)

    # the logarithm of the mean of e^u, less the mean of u
    x = spread + first
    series = spread - x * x * (0.5 - x * (1.0 / 3 - x * (0.25 - 0.2 * x)))
    close = tl.where(tl.abs(x) < 1e-3, series, tl.log(1.0 + x) - first)
    apart = log_sum_q - log_sum_p - (mean + first)
    kl = tl.where(apart > 0.5, apart, close)
    tl.store(values_pointer + row, tl.where(excluded > 0, float("inf"), kl).to(tl.float32))

    if WITH_P or WITH_Q:
        p_high, p_low = _pair(log_sum_p)
        q_high, q_low = _pair(log_sum_q)
        high, low = _pair(mean)
        rest, value = first.to(tl.float32), kl.to(tl.float32)
        for start in range(0, columns, BLOCK):
            p, q = _load(p_row, start, columns, BLOCK), _load(q_row, start, columns, BLOCK)
            at = start + tl.arange(0, BLOCK)
            prob = _exponential(p, p_high, p_low)
            u = _excess(p, q, high, low) - rest
            if WITH_P:
                to_p = tl.where(excluded > 0, 0.0, -prob * u)
                tl.store(to_p_pointer + row * columns + at, to_p, mask=at < columns)
            if WITH_Q:
                log_ratio = u - value
                half, _ = half_excess_and_spread(log_ratio)
                # elsewhere u is rounded by more than the two probabilities are
                is_near = (tl.abs(log_ratio) < 0.55) & (tl.abs(u) < 3.0) & (p > float("-inf"))
                to_q = tl.where(is_near, 2.0 * prob * half, _exponential(q, q_high, q_low) - prob)
                to_q = tl.where(excluded > 0, 0.0, to_q)
                tl.store(to_q_pointer + row * columns + at, to_q, mask=at < columns)


@jit
def _scale_kernel(pointer, upstream_pointer, columns, upstream_stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Each row times its upstream gradient, unless that is 1."""
    row = tl.program_id(0).to(tl.int64)
    upstream = tl.load(upstream_pointer + row * upstream_stride)
    if upstream != 1.0:
        for start in range(0, columns, BLOCK):
            at = start + tl.arange(0, BLOCK)
            place = pointer + row * columns + at
            tl.store(place, upstream * tl.load(place, mask=at < columns, other=0.0), mask=at < columns)
