"""The KL of normals to the standard normal, in one pass by blocks that stay in cache."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

_ELEMENTS = 2**18
"""Numbers in a block of elements: with what is made of them they stay in the second-level cache."""


def gaussian_kl(mean: Tensor, log_var: Tensor, scale: float) -> Tensor:
    r"""``scale`` times the sum of D_KL(N(mean, exp(log_var)) || N(0, 1)) over all elements, in nats; ``float32``.

    The bounds of :func:`kldiv.functional.kl_normal` hold, for value and gradients: sums are of ``float64``, and where
    the log-variances of a block are all tiny, so that :math:`e^\lambda - 1 - \lambda` would cancel, it is half their
    squares.

    Args:
        mean, log_var: of one shape, in ``float32``.
        scale: of the sum.
    Returns: shape ().
    """
    total: Tensor = _GaussianKL.apply(mean, log_var, scale)
    return total


class _GaussianKL(Function):
    """In one pass by blocks that stay in cache: the forward makes what is to be the gradient of the log-variance."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_var: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mean, log_var)
        ctx.scale = scale
        size = mean.numel()
        # what the backward makes the gradient of the log-variance of: not among the saved, for it is overwritten
        if size <= _ELEMENTS:
            excess = ctx.excess = torch.expm1(log_var)
            doubled = _twice_gaussian_kl(mean, log_var, excess)
        else:
            excess = ctx.excess = torch.empty_like(log_var, memory_format=torch.contiguous_format)
            m, u, e = mean.reshape(-1), log_var.reshape(-1), excess.view(-1)
            doubled, work = 0.0, m.new_empty(_ELEMENTS)
            for block in range(0, size, _ELEMENTS):
                some = slice(block, block + _ELEMENTS)
                torch.expm1(u[some], out=e[some])
                doubled += _twice_gaussian_kl(m[some], u[some], e[some], work[: min(_ELEMENTS, size - block)])
        total = 0.5 * scale * doubled
        return mean.new_full((), math.inf if total > torch.finfo(mean.dtype).max else total)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        mean, log_var = ctx.saved_tensors
        upstream = upstream * ctx.scale
        excess, ctx.excess = ctx.excess, None
        if torch.is_grad_enabled():  # to be differentiated again
            return mean * upstream, 0.5 * torch.expm1(log_var) * upstream, None
        if excess is None:  # a graph that was kept: this one is used up
            excess = torch.expm1(log_var)
        return mean * upstream, excess.mul_(0.5 * upstream), None


def _twice_gaussian_kl(mean: Tensor, log_var: Tensor, excess: Tensor, work: Tensor | None = None) -> float:
    """Of a block, with what e^log_var exceeds 1 by. On a CPU no number is waited for."""
    spread = torch.sub(excess, log_var, out=work).sum().item()
    # the excess is good to 1e-7 of itself; of the difference that is too little where it is a small part. The sum of
    # sizes is at most the root of the number times that of the squares
    if not 8 * spread > math.sqrt(excess.numel() * _squares(excess)):
        wide = log_var.double()
        squares = _squares(wide)
        # and here that of float64 runs out; at infinity inf - inf is NaN, and the squares are infinite
        careful = 1e-14 < squares < math.inf
        spread = torch.expm1(wide).sub_(wide).sum().item() if careful else 0.5 * squares
    return spread + _squares(mean)


def _squares(values: Tensor) -> float:
    flat = values.reshape(-1)
    return torch.dot(flat, flat).item()
