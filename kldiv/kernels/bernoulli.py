"""-ln Bernoulli of logits with one sigmoid: by blocks that stay in cache, and for compilers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from kldiv.kernels.autograd import blocks_of_rows, gradients_again, is_plain_backward
from kldiv.kernels.memory import new_like, workspace

__all__ = [
    "Plain",
    "bernoulli_nll",
    "traced_bernoulli_nll",
]


Plain = Callable[[Tensor, Tensor], Tensor]

_ELEMENTS = 2**18
"""Numbers in a block."""


def bernoulli_nll(logits: Tensor, target: Tensor, plain: Plain) -> Tensor:
    r"""-[t ln sigmoid(l) + (1 - t) ln sigmoid(-l)], summed over all but dimension 0, in nats.

    .. math:: \max\left((1 - t)\,l,\, -t\,l\right) + \ln\left(1 + e^{-|l|}\right)

    Neither this nor the gradient, :math:`(1 - t)\,\sigma(l) - t\,\sigma(-l)`, cancels for large logits; a
    probability below 3e-39 is 0.

    Args:
        logits, target: (N, ...), of one shape, in ``float32``.
        plain: the formula of an element, for a second derivative.
    Returns: (N,).
    """
    values: Tensor = _BernoulliNLL.apply(logits.flatten(1), target.flatten(1), plain)
    return values


class _BernoulliNLL(Function):
    """The forward makes what is to be the gradient, while the sigmoid is at hand."""

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
    less_likely, certain, work = workspace(logits.shape, logits.dtype, 3)
    torch.abs(logits, out=less_likely).neg_().sigmoid_()
    positive = torch.gt(logits, 0, out=work)
    torch.sub(positive, target, out=certain)
    if derivative is not None:  # 1 - t less it, or -t and it: nothing but their sum is rounded
        torch.addcmul(less_likely, positive, less_likely, value=-2, out=derivative).add_(certain)
    # ln(1 + e^-|l|), of a probability that is at most a half
    log = torch.log1p(less_likely.neg_(), out=less_likely)
    torch.sum(certain.mul_(logits).sub_(log), 1, out=values)


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
