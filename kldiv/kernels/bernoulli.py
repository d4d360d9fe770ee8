"""-ln Bernoulli(target | sigmoid(logits)): the formula, and fused forms of it with one sigmoid an element."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from kldiv.kernels.autograd import blocks_of_rows, differentiated, falls_back_on, fuses_on_cpu, take_gradients
from kldiv.kernels.memory import new_like, workspace
from kldiv.reduction import sum_latent

__all__ = [
    "bernoulli_nll",
    "bernoulli_nll_per_example",
]


_BLOCK = 2**18
"""Numbers in a block."""


def bernoulli_nll(logits: Tensor, target: Tensor) -> Tensor:
    r"""-[t ln sigmoid(l) + (1 - t) ln sigmoid(-l)] per element, in nats.

    Args:
        logits, target: ``float32`` or wider, of one shape and dtype.
    Returns: that shape and dtype.
    """
    if torch.compiler.is_compiling():
        values: Tensor = _CompiledNLL.apply(logits, target)
        return values
    return _formula(logits, target)


def bernoulli_nll_per_example(logits: Tensor, target: Tensor) -> Tensor:
    r"""-[t ln sigmoid(l) + (1 - t) ln sigmoid(-l)] summed over everything but dimension 0, in nats.

    The fused form neither cancels nor overflows at large logits. A probability below 3e-39 is 0 there.

    Args:
        logits, target: (N, ...), ``float32`` or wider, of one shape and dtype.
    Returns: (N,).
    """
    if target.ndim > 1 and fuses_on_cpu(logits, target):
        sums: Tensor = _BernoulliNLL.apply(logits.flatten(1), target.flatten(1))
        return sums
    return sum_latent(bernoulli_nll(logits, target))


def _formula(logits: Tensor, target: Tensor) -> Tensor:
    # torch's binary_cross_entropy_with_logits is (1 - t) l - ln sigmoid(l), which cancels for l << 0
    return -(target * functional.logsigmoid(logits) + (1 - target) * functional.logsigmoid(-logits))


def _formula_per_example(logits: Tensor, target: Tensor) -> Tensor:
    return _formula(logits, target).sum(1)


class _BernoulliNLL(Function):
    r"""The sums of rows, (N, elements). The forward makes the derivative of each element, while the sigmoid is there.

    .. math:: \max\left((1 - t)\,l,\, -t\,l\right) + \ln\left(1 + e^{-|l|}\right),
              \qquad (1 - t)\,\sigma(l) - t\,\sigma(-l)
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(logits, target)
        ctx.options = ()
        ctx.gradients = new_like(logits) if ctx.needs_input_grad[0] else None
        values = logits.new_empty(len(logits))
        _fill(logits, target, values, ctx.gradients)
        return values

    @staticmethod
    @falls_back_on(differentiated(_formula_per_example))
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, target = ctx.saved_tensors
        upstream = upstream[:, None]
        to_target = -logits * upstream if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, to_target
        derivative = take_gradients(ctx)
        if derivative is None:
            derivative = new_like(logits)
            _fill(logits, target, logits.new_empty(len(logits)), derivative)
        return derivative.mul_(upstream), to_target


def _fill(logits: Tensor, target: Tensor, values: Tensor, derivative: Tensor | None) -> None:
    """Writes the sum of each row, and the derivative of each element unless that is ``None``."""
    for rows in blocks_of_rows(logits, _BLOCK):
        _fill_block(logits[rows], target[rows], values[rows], None if derivative is None else derivative[rows])


def _fill_block(logits: Tensor, target: Tensor, values: Tensor, derivative: Tensor | None) -> None:
    less_likely, residual, positive = workspace(logits.shape, logits.dtype, 3)
    torch.abs(logits, out=less_likely).neg_().sigmoid_()  # the probability of the less likely outcome
    torch.gt(logits, 0, out=positive)
    torch.sub(positive, target, out=residual)  # 1 - t for a positive logit, -t for others
    if derivative is not None:  # 1 - t less the probability, or -t plus it: nothing but their sum is rounded
        torch.addcmul(less_likely, positive, less_likely, value=-2, out=derivative).add_(residual)
    certain = residual.mul_(logits)
    # ln(1 + e^-|l|) = -ln(1 - probability): of one that is at most 1/2
    log_likely = torch.log1p(less_likely.neg_(), out=less_likely)
    torch.sum(certain.sub_(log_likely), 1, out=values)


class _CompiledNLL(Function):
    """Each element, for compilers: one exponential, and a derivative that is right at 0.

    So is the second derivative, but for function transforms inside of compiled code.
    """

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
