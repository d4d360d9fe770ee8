"""The KL of categories from logits, in one pass by blocks of rows: no tensor of their size but the two gradients."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from kldiv.kernels.autograd import blocks_of_rows, fused, gradients_again, has_triton, in_eager, is_plain_backward
from kldiv.kernels.memory import new_like, workspace
from kldiv.numerics import LOG2_E

__all__ = [
    "Plain",
    "categorical_kl",
    "has_categorical_kl",
]


Plain = Callable[[Tensor, Tensor], Tensor]

_BLOCK = 2**18
"""Numbers in a block, of which four are held in ``float64``."""


def has_categorical_kl(logits_p: Tensor, logits_q: Tensor) -> bool:
    """Whether :func:`categorical_kl` takes them: ``float32`` on a CPU, or on CUDA with Triton."""
    if logits_p.is_cuda:
        one_kind = logits_p.dtype == logits_q.dtype == torch.float32 and logits_p.device == logits_q.device
        return one_kind and in_eager() and has_triton(logits_p.device)
    return fused(logits_p, logits_q)


def categorical_kl(logits_p: Tensor, logits_q: Tensor, plain: Plain) -> Tensor:
    """D_KL(softmax(logits_p) || softmax(logits_q)) along the last dimension, in nats, with its bounds of accuracy.

    Args:
        logits_p, logits_q: of one shape; :func:`has_categorical_kl` says of which kind.
        plain: the formula for the rest: a block where only q has a probability of 0, or whose numbers leave
            ``float64``; and for a second derivative.
    Returns: the shape without its last dimension.
    """
    p, q = (logits.reshape(-1, logits.shape[-1]) for logits in (logits_p, logits_q))
    wanted = [logits.requires_grad and torch.is_grad_enabled() for logits in (p, q)]
    if logits_p.is_cuda:
        from kldiv.kernels import triton_categorical  # Triton takes half a second to import

        return triton_categorical.categorical_kl(p, q, wanted, plain).view(logits_p.shape[:-1])
    values: Tensor = _CategoricalKL.apply(p, q, wanted, plain)
    return values.view(logits_p.shape[:-1])


class _CategoricalKL(Function):
    """The forward makes the gradients of what is added up, which the backward scales."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor, wanted: list[bool], plain: Plain) -> Tensor:
        ctx.save_for_backward(p, q)
        ctx.plain = plain
        values, ctx.gradients, ctx.rest = _fill(p, q, wanted)
        for block in ctx.rest:
            values[block] = plain(p[block], q[block])
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        p, q = ctx.saved_tensors
        if is_plain_backward(upstream):
            return *gradients_again(ctx, lambda: ctx.plain(p, q), upstream), None, None
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # a graph that was kept: these are used up
            _, gradients, _ = _fill(p, q, ctx.needs_input_grad[:2])
        if not (upstream == 1).all():
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(upstream[:, None])
        for block in ctx.rest:
            with torch.enable_grad():
                given = p[block].detach().requires_grad_(), q[block].detach().requires_grad_()
                found = torch.autograd.grad(ctx.plain(*given), given, upstream[block])
            for target, gradient in zip(gradients, found, strict=True):
                if target is not None:
                    target[block] = gradient
        return *gradients, None, None


def _fill(p: Tensor, q: Tensor, wanted: Any) -> tuple[Tensor, list[Tensor | None], list[Any]]:
    """The KL of each row, the gradients of their sum that are wanted, and the blocks where neither is to be used."""
    values, rest = p.new_empty(len(p)), []
    to_p, to_q = (new_like(t) if want else None for t, want in zip((p, q), wanted, strict=True))
    masked = False
    for block in blocks_of_rows(p, _BLOCK):
        some_to_p, some_to_q = (None if t is None else t[block] for t in (to_p, to_q))
        fill = functools.partial(_fill_block, p[block], q[block], values[block], some_to_p, some_to_q)
        done = fill(masked)
        if not done and not masked:
            masked = True  # and in the blocks to come, which will be of the same kind
            done = fill(masked)
        if not done:
            rest.append(block)
    return values, [to_p, to_q], rest


def _fill_block(p: Tensor, q: Tensor, values: Tensor, to_p: Tensor | None, to_q: Tensor | None, masked: bool) -> bool:
    """Whether it could be done: not where only q has a probability of 0, or where something leaves ``float64``.

    Args:
        masked: whether p has probabilities of 0.
    """
    if not p.numel():
        return False
    prob_p, prob_q, difference, work = workspace(p.shape, torch.float64, 4)
    prob_p.copy_(p)
    prob_q.copy_(q)
    if masked:  # where 0 times it is 0
        prob_p.clamp_(min=-1e30)
        prob_q.clamp_(min=-1e30)
    torch.sub(prob_p, prob_q, out=difference)
    if masked and not difference.amax() < 1e29:
        return False
    # unshifted: float64 holds the exponentials of what logits are, and what it does not is NaN below. A power of 2
    # takes half the time of an exponential
    sum_p, sum_q = (t.mul_(LOG2_E).exp2_().sum(1, keepdim=True) for t in (prob_p, prob_q))
    mean = torch.mul(prob_p, difference, out=work).sum(1, keepdim=True).div_(sum_p)
    kl = torch.log(sum_q / sum_p).add_(mean)
    if not (kl.abs() < 1e20).all():
        return False
    excess = torch.sub(mean, difference, out=difference)
    top = p.amax(1, keepdim=True).double().mul_(LOG2_E).exp2_()
    if (1 - top / sum_p).amin() < 1e-6:  # its excess is the rounding error of the mean: taken off in a second step
        excess.sub_(torch.mul(prob_p, excess, out=work).sum(1, keepdim=True).div_(sum_p))
    # the digits that are left: each sum has 13, of logits in the hundreds
    is_close = not (kl > 1e-6 * (1 + mean.abs())).all()
    if is_close:
        spread = torch.expm1(excess, out=work).sub_(excess).mul_(prob_p).sum(1, keepdim=True).div_(sum_p)
        if not spread.amax() < 1e300:
            return False
        if spread.amin() < 1e-17:  # e^u - 1 - u cancels in float64 too
            square = torch.mul(excess, excess, out=work).mul_(prob_p)
            series = torch.mul(excess, 1 / 6, out=prob_q).add_(0.5).mul_(square).sum(1, keepdim=True).div_(sum_p)
            spread = torch.where(spread < 1e-17, series, spread)
        kl = torch.log1p(spread)
    values.copy_(kl.squeeze(1))
    if to_p is not None or to_q is not None:
        less_p = prob_p.div_(sum_p.neg_())
    if to_q is not None and is_close:
        to_q.copy_(torch.sub(kl, excess, out=work).neg_().expm1_().mul_(less_p).neg_())
    elif to_q is not None:
        to_q.copy_(torch.addcdiv(less_p, prob_q, sum_q, out=prob_q))
    if to_p is not None:
        to_p.copy_(excess.mul_(less_p))
    return True
