"""-ln Bernoulli of logits with one exponential: by blocks that stay in cache, and for compilers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from kldiv.kernels import blocks_of_rows, gradients_again, workspace

Plain = Callable[[Tensor, Tensor], Tensor]

_ELEMENTS = 2**17
"""Numbers in a block."""


def bernoulli_nll(logits: Tensor, target: Tensor, plain: Plain) -> Tensor:
    r"""-[t ln sigmoid(l) + (1 - t) ln sigmoid(-l)], summed over all but dimension 0, in nats.

    .. math:: \max\left((1 - t)\,l,\, -t\,l\right) + \ln\left(1 + e^{-|l|}\right)

    Neither this nor the gradient, :math:`(1 - t)\,\sigma(l) - t\,\sigma(-l)`, cancels for large logits.

    Args:
        logits, target: (N, ...), of one shape, in ``float32``.
        plain: the formula of an element, for a second derivative.
    Returns: (N,).
    """
    values: Tensor = _BernoulliNLL.apply(logits.flatten(1), target.flatten(1), plain)
    return values


class _BernoulliNLL(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, plain: Plain) -> Tensor:
        ctx.save_for_backward(logits, target)
        ctx.plain = plain
        values, one = logits.new_empty(len(logits)), logits.new_ones(())
        for rows in blocks_of_rows(logits, _ELEMENTS):
            x, t = logits[rows], target[rows]
            value, work = workspace(x, 2)
            torch.mul(x, torch.sub(one, t, out=work), out=value)
            torch.maximum(value, torch.mul(x, t, out=work).neg_(), out=value)
            value.add_(torch.abs(x, out=work).neg_().exp_().log1p_())
            torch.sum(value, 1, out=values[rows])
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, target = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return *gradients_again(ctx, ctx.plain(logits, target).sum(1), upstream), None
        upstream = upstream[:, None]
        to_target = -logits * upstream if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, to_target, None
        to_logits, one = torch.empty_like(logits, memory_format=torch.contiguous_format), logits.new_ones(())
        for rows in blocks_of_rows(logits, _ELEMENTS):
            x, t, gradient = logits[rows], target[rows], to_logits[rows]
            (work,) = workspace(x, 1)
            torch.sigmoid(x, out=gradient).mul_(torch.sub(one, t, out=work))
            gradient.addcmul_(torch.neg(x, out=work).sigmoid_(), t, value=-1).mul_(upstream[rows])
        return to_logits, to_target, None


def traced_bernoulli_nll(logits: Tensor, target: Tensor) -> Tensor:
    """The same of each element, for compilers: logits and target of one shape and any dtype, and the result too."""
    values: Tensor = _TracedBernoulliNLL.apply(logits, target)
    return values


class _TracedBernoulliNLL(Function):
    """With a second derivative that is right at 0 too, but for function transforms inside of compiled code."""

    @staticmethod
    def forward(logits: Tensor, target: Tensor) -> Tensor:
        certain = torch.maximum(logits * (1 - target), -logits * target)
        return certain + torch.log1p(torch.exp(-logits.abs()))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        logits, target = ctx.saved_tensors
        derivative = (1 - target) * torch.sigmoid(logits) - target * torch.sigmoid(-logits)
        return upstream * derivative, -upstream * logits
