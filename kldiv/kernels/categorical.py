"""The KL divergence of categorical distributions, from logits: the formula, and fused forms for many numbers."""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from kldiv.kernels.autograd import (
    blocks_of_rows,
    differentiated,
    falls_back_on,
    fuses_on_cpu,
    fuses_on_cuda,
    gradients_wanted,
    take_gradients,
)
from kldiv.kernels.memory import new_like, workspace
from kldiv.numerics import LOG2_E, exact_difference, expm1mx

__all__ = [
    "categorical_kl",
    "categorical_kl_formula",
]


_LARGE = 2**14
"""Numbers from which on the fused forms are taken. For fewer the formula costs no more."""

_BLOCK = 2**18
"""Numbers in a block, of which four are held in ``float64``."""


def categorical_kl(logits_p: Tensor, logits_q: Tensor, dim: int = -1) -> Tensor:
    """D_KL(softmax(logits_p) || softmax(logits_q)) along ``dim``, in nats.

    The error bounds are those of :func:`kldiv.functional.kl_categorical`.

    Args:
        logits_p, logits_q: ``float32`` or wider, of one shape and dtype.
        dim: the dimension of the categories.
    Returns: the shape without ``dim``.
    """
    on_cuda = logits_p.is_cuda
    fuses = fuses_on_cuda if on_cuda else fuses_on_cpu
    if logits_p.numel() < _LARGE or not fuses(logits_p, logits_q):
        return categorical_kl_formula(logits_p, logits_q, dim)
    logits_p, logits_q = logits_p.movedim(dim, -1), logits_q.movedim(dim, -1)
    p, q = (logits.reshape(-1, logits.shape[-1]) for logits in (logits_p, logits_q))
    wanted = gradients_wanted(p, q)
    values: Tensor
    if on_cuda:
        from kldiv.kernels import triton_categorical  # Triton takes half a second to import

        values = triton_categorical.categorical_kl(p, q, wanted)
    else:
        values = _CategoricalKL.apply(p, q, wanted)
    return values.view(logits_p.shape[:-1])


def categorical_kl_formula(logits_p: Tensor, logits_q: Tensor, dim: int = -1) -> Tensor:
    r"""The same in plain operations.

    .. math:: \ln\left(1 + \sum_k p_k\,\varphi(\delta_k - \bar\delta)\right), \quad \bar\delta = \sum_k p_k \delta_k,
              \quad \varphi(u) = e^u - 1 - u

    with :math:`\delta` the logits of q less those of p.
    """
    # in float32, the rounding of a = -30 leaves e^a five digits
    dtype, a, b = logits_p.dtype, logits_p.double(), logits_q.double()
    log_p = torch.log_softmax(a, dim)
    # p is 0 to the last digit below e^-800: a logit of -1e9 that stands for a mask would cost all digits of others
    none_p, none_q = log_p < -800, b == -torch.inf
    some = ~(none_p | none_q)
    only_q = none_p & ~none_q
    delta, error = exact_difference(torch.where(some, b, 0.0), torch.where(some, a, 0.0))
    p = torch.exp(log_p)
    # the mean in two steps: the second takes off what the first has rounded, and only the second needs a gradient
    mean = (p * delta).detach().sum(dim, keepdim=True)
    centred = torch.where(some, (delta - mean) + error, 0.0)
    rest = (p * centred).sum(dim, keepdim=True)
    centred = torch.where(some, centred - rest, 0.0)

    # ln of p e^u, u the centred difference. Where p alone is 0 this is finite: q's share of the mass
    log_p_exp = torch.where(some, log_p + centred, -torch.inf)
    of_q = torch.where(only_q, b, 0.0) - torch.logsumexp(a, dim, keepdim=True) - (mean + rest)
    log_p_exp = torch.where(only_q, of_q, log_p_exp)
    near = centred.abs() < 1
    far_terms = (torch.exp(log_p_exp.clamp(max=80.0)) - p * (1 + centred)).masked_fill(none_q, 0)
    terms = torch.where(near & some, p * expm1mx(torch.where(near, centred, 0.0)), far_terms)
    total = terms.sum(dim)
    close = total < 1
    value = torch.where(close, torch.log1p(torch.where(close, total, 0.0)), torch.logsumexp(log_p_exp, dim))
    return value.masked_fill((none_q & (a > -torch.inf)).any(dim), torch.inf).to(dtype)


class _CategoricalKL(Function):
    """By blocks of rows, (rows, categories). The forward makes the gradients of the sum, and the backward scales them.

    No other tensor of the logits' size is made. A block that :func:`_fill_block` cannot do is left to the formula.
    """

    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor, wanted: list[bool]) -> Tensor:
        ctx.save_for_backward(p, q)
        ctx.options = ()
        values, ctx.gradients, ctx.left_over = _values_and_gradients(p, q, wanted)
        for block in ctx.left_over:
            values[block] = categorical_kl_formula(p[block], q[block])
        return values

    @staticmethod
    @falls_back_on(differentiated(categorical_kl_formula))
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        p, q = ctx.saved_tensors
        gradients = take_gradients(ctx)
        if gradients is None:
            _, gradients, _ = _values_and_gradients(p, q, ctx.needs_input_grad[:2])
        if not (upstream == 1).all():
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(upstream[:, None])
        for block in ctx.left_over:
            with torch.enable_grad():
                logits = p[block].detach().requires_grad_(), q[block].detach().requires_grad_()
                found = torch.autograd.grad(categorical_kl_formula(*logits), logits, upstream[block])
            for gradient, of_block in zip(gradients, found, strict=True):
                if gradient is not None:
                    gradient[block] = of_block
        return *gradients, None


def _values_and_gradients(p: Tensor, q: Tensor, wanted: Any) -> tuple[Tensor, list[Tensor | None], list[Any]]:
    """The KL of each row, the gradients of their sum, ``None`` where not wanted, and the blocks where neither holds."""
    values, left_over = p.new_empty(len(p)), []
    to_p, to_q = (new_like(t) if want else None for t, want in zip((p, q), wanted, strict=True))
    masked = False
    for block in blocks_of_rows(p, _BLOCK):
        to_block_p, to_block_q = (None if t is None else t[block] for t in (to_p, to_q))
        fill = functools.partial(_fill_block, p[block], q[block], values[block], to_block_p, to_block_q)
        done = fill(masked)
        if not done and not masked:
            masked = True  # for the blocks to come too: they are likely to be of the same kind
            done = fill(masked)
        if not done:
            left_over.append(block)
    return values, [to_p, to_q], left_over


def _fill_block(p: Tensor, q: Tensor, values: Tensor, to_p: Tensor | None, to_q: Tensor | None, masked: bool) -> bool:
    """Writes the KL of each row and the gradients, unless it returns False: then it could not.

    That is where q alone has a probability of 0, and where something leaves the range of ``float64``. The names are
    those of the formula, with u for the centred difference. Each tensor of the workspace is used for several things in
    turn: a new name for the same memory means that the old one is not read any more.

    Args:
        masked: whether to allow for probabilities of 0 in p.
    """
    if not p.numel():
        return False
    logits_p, logits_q, difference, work = workspace(p.shape, torch.float64, 4)
    logits_p.copy_(p)
    logits_q.copy_(q)
    if masked:  # finite: a probability of 0 times the difference must be 0
        logits_p.clamp_(min=-1e30)
        logits_q.clamp_(min=-1e30)
    torch.sub(logits_p, logits_q, out=difference)
    if masked and not difference.amax() < 1e29:
        return False

    # Nothing is taken off the logits before the exponential: float64 holds e^x of most, and of the others kl is NaN or
    # infinite below. A power of 2 takes half the time of an exponential
    exp_p, exp_q = logits_p.mul_(LOG2_E).exp2_(), logits_q.mul_(LOG2_E).exp2_()
    sum_p, sum_q = exp_p.sum(1, keepdim=True), exp_q.sum(1, keepdim=True)
    mean = _mean(difference, exp_p, sum_p, work)
    kl = torch.log(sum_q / sum_p).add_(mean)
    if not (kl.abs() < 1e20).all():
        return False

    u = torch.sub(mean, difference, out=difference)
    largest = p.amax(1, keepdim=True).double().mul_(LOG2_E).exp2_()
    if (1 - largest / sum_p).amin() < 1e-6:  # nearly all of p in one category, where u is the rounding of the mean
        u.sub_(_mean(u, exp_p, sum_p, work))

    # kl has lost digits where it is small beside the sums. These have 13, of logits in the hundreds
    is_close = not (kl > 1e-6 * (1 + mean.abs())).all()
    if is_close:
        spread = _mean(torch.expm1(u, out=work).sub_(u), exp_p, sum_p, work)
        if not spread.amax() < 1e300:
            return False
        if spread.amin() < 1e-17:  # e^u - 1 - u has cancelled in float64 too: u^2 / 2 + u^3 / 6
            weighted_square = torch.mul(u, u, out=work).mul_(exp_p)
            series = torch.mul(u, 1 / 6, out=exp_q).add_(0.5).mul_(weighted_square).sum(1, keepdim=True).div_(sum_p)
            spread = torch.where(spread < 1e-17, series, spread)
        kl = torch.log1p(spread)
    values.copy_(kl.squeeze(1))

    if to_p is None and to_q is None:
        return True
    minus_prob_p = exp_p.div_(sum_p.neg_())
    if to_q is not None and is_close:  # p (e^(u - kl) - 1), which is q - p
        to_q.copy_(torch.sub(kl, u, out=work).neg_().expm1_().mul_(minus_prob_p).neg_())
    elif to_q is not None:
        to_q.copy_(torch.addcdiv(minus_prob_p, exp_q, sum_q, out=exp_q))
    if to_p is not None:
        to_p.copy_(u.mul_(minus_prob_p))
    return True


def _mean(values: Tensor, weights: Tensor, total: Tensor, work: Tensor) -> Tensor:
    """The weighted mean of each row, whose weights add up to ``total``. ``work`` is overwritten."""
    return torch.mul(values, weights, out=work).sum(1, keepdim=True).div_(total)
