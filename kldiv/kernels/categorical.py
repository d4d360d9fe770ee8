"""The KL of categories from logits, by blocks of rows: no tensor of their size but the two gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from kldiv.kernels import blocks_of_rows, gradients_again, is_plain_backward, workspace

Plain = Callable[[Tensor, Tensor], Tensor]

_BLOCK = 2**18
"""Numbers in a block, of which three are held in ``float64``."""


def categorical_kl(logits_p: Tensor, logits_q: Tensor, plain: Plain) -> Tensor:
    """D_KL(softmax(logits_p) || softmax(logits_q)) along the last dimension, in nats, with its bounds of accuracy.

    Args:
        logits_p, logits_q: of one shape, in ``float32``.
        plain: the formula for the rest: a block with zero probabilities, or whose exponentials leave ``float64``; and
            for a second derivative.
    Returns: the shape without its last dimension.
    """
    categories = logits_p.shape[-1]
    rows: Tensor = _CategoricalKL.apply(logits_p.reshape(-1, categories), logits_q.reshape(-1, categories), plain)
    return rows.view(logits_p.shape[:-1])


class _CategoricalKL(Function):
    """Both passes go through the blocks, the second with what the first has found of each row."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor, plain: Plain) -> Tensor:
        rows = [_Rows(p[block], q[block], plain) for block in blocks_of_rows(p, _BLOCK)]
        ctx.save_for_backward(p, q)
        ctx.rows, ctx.plain = rows, plain
        return torch.cat([block.value for block in rows]).to(p.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        p, q = ctx.saved_tensors
        if is_plain_backward(upstream):
            return *gradients_again(ctx, lambda: ctx.plain(p, q), upstream), None
        to_p, to_q = (
            torch.empty_like(t) if wanted else None for t, wanted in zip((p, q), ctx.needs_input_grad, strict=False)
        )
        for block, rows in zip(blocks_of_rows(p, _BLOCK), ctx.rows, strict=True):
            found = rows.gradients(p[block], q[block], upstream[block, None])
            for target, gradient in zip((to_p, to_q), found, strict=True):
                if target is not None:
                    target[block] = gradient
        return to_p, to_q, None


class _Rows:
    """Of a block: the value, and for the backward the normaliser of p and the mean of the differences of logits."""

    def __init__(self, p: Tensor, q: Tensor, plain: Plain) -> None:
        self.plain = plain
        wide, difference, work = workspace(p.shape, torch.float64, 3)
        self.peak = wide.copy_(p).amax(1, keepdim=True)
        difference.copy_(q).sub_(wide)
        weights = wide.sub_(self.peak).exp_()
        self.sum = weights.sum(1, keepdim=True)
        self.mean = torch.mul(weights, difference, out=work).sum(1, keepdim=True).div_(self.sum)
        excess = difference.sub_(self.mean)  # now centred
        spread = torch.expm1(excess, out=work).sub_(excess).mul_(weights).sum(1, keepdim=True).div_(self.sum)
        smallest, largest = (bound.item() for bound in torch.aminmax(spread)) if len(spread) else (1.0, 1.0)
        if smallest < 1e-17:  # e^u - 1 - u cancels in float64 too
            series = (weights * excess.square() * (0.5 + excess / 6)).sum(1, keepdim=True).div_(self.sum)
            spread = torch.where(spread < 1e-17, series, spread)
        # infinite or NaN: a probability of 0, or an exponential out of range
        self.is_plain = not (smallest >= -1e-12 and largest < 1e300)
        self.value = plain(p, q).double() if self.is_plain else torch.log1p(spread).squeeze(1)

    def gradients(self, p: Tensor, q: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
        """In memory that the next block uses again."""
        if self.is_plain:
            with torch.enable_grad():
                given = p.detach().requires_grad_(), q.detach().requires_grad_()
                to_p, to_q = torch.autograd.grad(self.plain(*given), given, upstream.squeeze(1))
            return to_p, to_q
        wide, excess, work = workspace(p.shape, torch.float64, 3)
        excess.copy_(q).sub_(wide.copy_(p)).sub_(self.mean)
        weights = wide.sub_(self.peak).exp_().mul_(upstream / self.sum)
        to_p = torch.mul(weights, excess, out=work).neg_()
        return to_p, excess.sub_(self.value[:, None]).expm1_().mul_(weights)
