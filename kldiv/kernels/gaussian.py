"""The KL of normals, by blocks that stay in cache: the sum of it, and each element."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from kldiv.kernels.autograd import blocks_of_rows, fused, gradients_again, has_triton, in_eager, is_plain_backward
from kldiv.kernels.memory import new_like, workspace
from kldiv.numerics import LOG2_E, expm1mx, widen

__all__ = [
    "Plain",
    "gaussian_kl",
    "has_gaussian_kl",
    "normal_kl",
]


Plain = Callable[..., Tensor]

_OF_TRITON = (torch.float32, torch.float16, torch.bfloat16)

_ELEMENTS = 2**18
"""Numbers in a block of elements: with what is made of them they stay in the second-level cache."""


def has_gaussian_kl(mean: Tensor, log_var: Tensor) -> bool:
    """Whether :func:`gaussian_kl` takes them: ``float32`` on a CPU, also half precision on CUDA with Triton.

    Under ``torch.compile`` it takes whatever is floating.
    """
    if torch.compiler.is_compiling():
        return True
    if mean.is_cuda:
        one_kind = mean.dtype == log_var.dtype and mean.device == log_var.device
        return one_kind and mean.dtype in _OF_TRITON and in_eager() and has_triton(mean.device)
    return fused(mean, log_var)


def gaussian_kl(mean: Tensor, log_var: Tensor, scale: float) -> Tensor:
    r"""``scale`` times the sum of D_KL(N(mean, exp(log_var)) || N(0, 1)) over all elements, in nats; ``float32``.

    The bounds of :func:`kldiv.functional.kl_normal` hold, for value and gradients: sums are of ``float64``, and where
    the log-variances of a block are all tiny, so that :math:`e^\lambda - 1 - \lambda` would cancel, it is half their
    squares.

    Args:
        mean, log_var: of one shape; :func:`has_gaussian_kl` says of which kind.
        scale: of the sum.
    Returns: shape ().
    """
    if torch.compiler.is_compiling():
        mean, log_var = widen(mean, log_var)
        return 0.5 * scale * (expm1mx(log_var) + mean * mean).flatten(1).sum(1).sum()
    if mean.is_cuda:
        from kldiv.kernels import triton_gaussian  # Triton takes half a second to import

        return triton_gaussian.gaussian_kl(mean, log_var, scale)
    if mean.numel() <= _ELEMENTS:
        total: Tensor = _GaussianKL.apply(mean, log_var, scale)
    else:
        wanted = [t.requires_grad and torch.is_grad_enabled() for t in (mean, log_var)]
        total = _LargeGaussianKL.apply(mean, log_var, scale, wanted)
    return total


class _GaussianKL(Function):
    """Of one block, in the fewest operations: the forward makes what is to be the gradient of the log-variance."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_var: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mean, log_var)
        ctx.scale = scale
        # not among the saved, for it is overwritten
        excess = ctx.excess = torch.expm1(log_var)
        return _total(mean, scale * _twice_gaussian_kl(mean, log_var, excess))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        mean, log_var = ctx.saved_tensors
        excess, ctx.excess = ctx.excess, None
        if is_plain_backward(upstream):
            return _plain_gradients(mean, log_var, upstream * ctx.scale)
        if excess is None:  # a graph that was kept: this one is used up
            excess = torch.expm1(log_var)
        scale = ctx.scale * upstream.item()
        return mean * scale, excess.mul_(0.5 * scale), None


class _LargeGaussianKL(Function):
    """In one pass by blocks that stay in cache: the forward makes the gradients, which the backward scales."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_var: Tensor, scale: float, wanted: list[bool]) -> Tensor:
        ctx.save_for_backward(mean, log_var)
        ctx.scale = scale
        value, ctx.gradients = _fill(mean, log_var, scale, wanted)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        mean, log_var = ctx.saved_tensors
        if is_plain_backward(upstream):
            return *_plain_gradients(mean, log_var, upstream * ctx.scale), None
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # a graph that was kept: these are used up
            _, gradients = _fill(mean, log_var, ctx.scale, ctx.needs_input_grad[:2])
        if upstream != 1:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(upstream)
        return *gradients, None, None


def _fill(mean: Tensor, log_var: Tensor, scale: float, wanted: Any) -> tuple[Tensor, list[Tensor | None]]:
    """``scale`` times the sum, and the gradients that are wanted of it."""
    gradients = [new_like(t) if want else None for t, want in zip((mean, log_var), wanted, strict=True)]
    to_mean, to_log_var = (None if t is None else t.view(-1) for t in gradients)
    m, u, doubled = mean.reshape(-1), log_var.reshape(-1), 0.0
    work, spare = workspace(torch.Size([_ELEMENTS]), mean.dtype, 2)
    for start in range(0, len(m), _ELEMENTS):
        block = slice(start, min(start + _ELEMENTS, len(m)))
        size = block.stop - start
        excess = torch.expm1(u[block], out=spare[:size] if to_log_var is None else to_log_var[block])
        doubled += _twice_gaussian_kl(m[block], u[block], excess, work[:size])
        if to_mean is not None:
            torch.mul(m[block], scale, out=to_mean[block])
        if to_log_var is not None:
            excess.mul_(0.5 * scale)
    return _total(mean, scale * doubled), gradients


def _total(like: Tensor, doubled: float) -> Tensor:
    total = 0.5 * doubled
    return like.new_full((), math.inf if total > torch.finfo(like.dtype).max else total)


def _plain_gradients(mean: Tensor, log_var: Tensor, upstream: Tensor) -> tuple[Tensor | None, ...]:
    return mean * upstream, 0.5 * torch.expm1(log_var) * upstream, None


def _twice_gaussian_kl(mean: Tensor, log_var: Tensor, excess: Tensor, work: Tensor | None = None) -> float:
    """Of a block, with what e^log_var exceeds 1 by. On a CPU no number is waited for."""
    spread = torch.sub(excess, log_var, out=work).sum().item()
    # the excess is good to 1e-7 of itself; of the difference that is too little where it is a small part, less than an
    # eighth in sum. |e^u - 1| is at most d + sqrt(2 d), d the difference, and their sum S + sqrt(2 n S); and that of
    # sizes is at most the root of the number times that of the squares
    count = excess.numel()
    if not (2 * count < 49 * spread < math.inf or 8 * spread > math.sqrt(count * _squares(excess))):
        wide = log_var.double()
        squares = _squares(wide)
        # and here that of float64 runs out; at infinity inf - inf is NaN, and the squares are infinite
        careful = 1e-14 < squares < math.inf
        spread = torch.expm1(wide).sub_(wide).sum().item() if careful else 0.5 * squares
    return spread + _squares(mean)


def _squares(values: Tensor) -> float:
    flat = values.reshape(-1)
    return torch.dot(flat, flat).item()


def normal_kl(
    mean_p: Tensor, log_var_p: Tensor, mean_q: Tensor | None, log_var_q: Tensor | None, plain: Plain
) -> Tensor:
    """D_KL(N(mean_p, exp(log_var_p)) || N(mean_q, exp(log_var_q))) of each element, in nats, with its bounds.

    Args:
        mean_p, log_var_p, mean_q, log_var_q: of one shape, in ``float32``; ``None`` is 0.
        plain: the formula, for a second derivative.
    Returns: the same shape.
    """
    values: Tensor = _NormalKL.apply(mean_p, log_var_p, mean_q, log_var_q, plain)
    return values


class _NormalKL(Function):
    """In ``float64``, where nothing but a difference of less than 4e-9 cancels, and no number is kept of it."""

    @staticmethod
    def forward(
        ctx: Any, mean_p: Tensor, log_var_p: Tensor, mean_q: Tensor | None, log_var_q: Tensor | None, plain: Plain
    ) -> Tensor:
        given = mean_p, log_var_p, mean_q, log_var_q
        ctx.save_for_backward(*given)
        ctx.plain = plain
        values = new_like(mean_p)
        for block in blocks_of_rows(values, _ELEMENTS):
            distance, ratio, _ = _compare(given, block)
            spread = torch.expm1(ratio).sub_(ratio)
            if spread.numel() and not spread.amin().item() > 1e-17:
                # cancelled; or NaN, of infinity less infinity
                careful = torch.where(ratio.abs() < 4e-9, 0.5 * ratio * ratio, spread)
                spread = torch.where(ratio == math.inf, ratio, careful)
            values[block] = spread.addcmul_(distance, distance).mul_(0.5)
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors
        if is_plain_backward(upstream):
            return *gradients_again(ctx, lambda: ctx.plain(*given), upstream), None
        found = [new_like(upstream) if wanted else None for wanted in ctx.needs_input_grad[:4]]
        to_mean_p, to_log_var_p, to_mean_q, to_log_var_q = found
        for block in blocks_of_rows(upstream, _ELEMENTS):
            distance, ratio, root = _compare(given, block)
            half = 0.5 * upstream[block]
            if to_log_var_p is not None or to_log_var_q is not None:
                excess = torch.expm1_(ratio)
                if to_log_var_p is not None:
                    to_log_var_p[block] = excess * half
                if to_log_var_q is not None:
                    to_log_var_q[block] = excess.addcmul_(distance, distance).mul_(half).neg_()
            if to_mean_p is not None or to_mean_q is not None:
                of_mean = (distance if root is None else distance.mul_(root)).mul_(upstream[block])
                if to_mean_p is not None:
                    to_mean_p[block] = of_mean
                if to_mean_q is not None:
                    to_mean_q[block] = of_mean.neg_()
        return *found, None


def _compare(given: Any, block: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of a block: the distance in standard deviations of q, the difference of log-variances, the precision's root."""
    mean_p, log_var_p, mean_q, log_var_q = given
    distance, ratio = mean_p[block].double(), log_var_p[block].double()
    if mean_q is not None:
        distance.sub_(mean_q[block])
    if log_var_q is None:
        return distance, ratio, None
    log_var = log_var_q[block].double()
    root = torch.exp2((-0.5 * LOG2_E * log_var).clamp(max=1000.0))  # held where 0 times it is 0
    return distance.mul_(root), ratio.sub_(log_var), root
