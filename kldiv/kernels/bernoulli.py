"""-ln Bernoulli of logits with one exponential: by blocks that stay in cache, and for compilers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from kldiv.kernels import blocks_of_rows, gradients_again, is_plain_backward
from kldiv.kernels.memory import new_like, workspace

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
    """The forward makes what is to be the gradient, while the exponential is at hand."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, plain: Plain) -> Tensor:
        ctx.save_for_backward(logits, target)
        ctx.plain, ctx.derivative = plain, None
        if ctx.needs_input_grad[0]:  # not among the saved, for it is overwritten
            ctx.derivative = new_like(logits)
        values = logits.new_empty(len(logits))
        for rows in blocks_of_rows(logits, _ELEMENTS):
            derivative = None if ctx.derivative is None else ctx.derivative[rows]
            _bernoulli_block(logits[rows], target[rows], values[rows], derivative)
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, target = ctx.saved_tensors
        if is_plain_backward(upstream):
            return *gradients_again(ctx, lambda: ctx.plain(logits, target).sum(1), upstream), None
        upstream = upstream[:, None]
        to_target = -logits * upstream if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, to_target, None
        derivative, ctx.derivative = ctx.derivative, None
        if derivative is None:  # a graph that was kept: this one is used up
            derivative = new_like(logits)
            for rows in blocks_of_rows(logits, _ELEMENTS):
                _bernoulli_block(logits[rows], target[rows], upstream.new_empty(len(logits))[rows], derivative[rows])
        return derivative.mul_(upstream), to_target, None


def _bernoulli_block(logits: Tensor, target: Tensor, values: Tensor, derivative: Tensor | None) -> None:
    """Writes the sums of the rows, and the derivative of each element."""
    exponential, certain, work = workspace(logits.shape, logits.dtype, 3)
    one = logits.new_ones(())
    torch.abs(logits, out=exponential).neg_().exp_()
    # 1 - t for a positive l, -t for another
    sign = torch.copysign(one, logits, out=work)
    torch.add(0.5 * one, sign, alpha=0.5, out=certain).sub_(target)
    if derivative is not None:  # less sigmoid(-l), and more by sigmoid(l)
        torch.div(exponential, torch.add(exponential, one, out=derivative), out=derivative).mul_(sign)
        torch.sub(certain, derivative, out=derivative)
    torch.sum(certain.mul_(logits), 1, out=values)
    values.add_(_sum_log1p(exponential))


def _sum_log1p(values: Tensor) -> Tensor:
    """The sum of ln(1 + v) of each row, of numbers between 0 and 1, which are overwritten: (N, M) to (N,).

    Of products of up to 32, less 1, to which 1 is never added: (1 + a)(1 + b) - 1 = a + b + ab.
    """
    width = values.shape[1]
    for _ in range(5):
        half = width // 2
        first, second = values[:, :half], values[:, width - half : width]
        first.addcmul_(first, second).add_(second)
        width -= half
    return torch.log1p_(values[:, :width]).sum(1)


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
