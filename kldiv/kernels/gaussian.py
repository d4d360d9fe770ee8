"""The KL divergence of normals: of each element, and summed over all of them. The formula, and fused forms of it."""

import math
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
from kldiv.numerics import LOG2_E, broadcast, exact_difference, expm1mx, standardise, widen
from kldiv.reduction import sum_latent

__all__ = [
    "gaussian_kl",
    "normal_kl",
    "plain_gradients",
]


_BLOCK = 2**18
"""Numbers in a block. With what is computed from them they stay in the second-level cache."""

_TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


# Each element


def normal_kl(
    mean_p: Tensor, log_var_p: Tensor, mean_q: Tensor | None = None, log_var_q: Tensor | None = None
) -> Tensor:
    """D_KL(N(mean_p, exp(log_var_p)) || N(mean_q, exp(log_var_q))) per element, in nats.

    The error bounds are those of :func:`kldiv.functional.kl_normal`.

    Args:
        mean_p, log_var_p, mean_q, log_var_q: ``float32`` or wider, all of one dtype, of shapes that broadcast.
            ``None`` is 0.
    Returns: the broadcast shape.
    """
    parameters = mean_p, log_var_p, mean_q, log_var_q
    given = [tensor for tensor in parameters if tensor is not None]
    if not fuses_on_cpu(*given):
        return _normal_kl_formula(*parameters)
    joint = iter(broadcast(*given))
    values: Tensor = _NormalKL.apply(*(None if tensor is None else next(joint) for tensor in parameters))
    return values


def _normal_kl_formula(
    mean_p: Tensor, log_var_p: Tensor, mean_q: Tensor | None = None, log_var_q: Tensor | None = None
) -> Tensor:
    difference = mean_p if mean_q is None else mean_p - mean_q
    if log_var_q is None:
        return 0.5 * (expm1mx(log_var_p) + difference * difference)
    log_ratio, error = exact_difference(log_var_p, log_var_q)
    spread = expm1mx(log_ratio)
    # the first step of its Taylor series, to u = log_ratio + error. Above the clamp the spread is infinite, and an
    # error of the size of the log-variances must not add 0 * inf to it
    largest = 88.72 if log_ratio.dtype == torch.float32 else 709.7
    correction = torch.where(log_ratio < largest, error * torch.expm1(log_ratio.clamp(max=largest)), 0.0)
    distance = standardise(difference, log_var_q)
    return 0.5 * (spread + correction + distance * distance)


class _NormalKL(Function):
    """In ``float64``, where e^u - 1 - u cancels only for u below 4e-9. The backward computes everything again."""

    @staticmethod
    def forward(ctx: Any, mean_p: Tensor, log_var_p: Tensor, mean_q: Tensor | None, log_var_q: Tensor | None) -> Tensor:
        parameters = mean_p, log_var_p, mean_q, log_var_q
        ctx.save_for_backward(*parameters)
        ctx.options = ()
        values = new_like(mean_p)
        for block in blocks_of_rows(values, _BLOCK):
            distance, log_ratio, _ = _compare(parameters, block)
            spread = torch.expm1(log_ratio).sub_(log_ratio)
            if spread.numel() and not spread.amin().item() > 1e-17:  # it has cancelled, or is NaN for inf - inf
                spread = torch.where(log_ratio.abs() < 4e-9, 0.5 * log_ratio * log_ratio, spread)
                spread = torch.where(log_ratio == math.inf, log_ratio, spread)
            values[block] = spread.addcmul_(distance, distance).mul_(0.5)
        return values

    @staticmethod
    @falls_back_on(differentiated(_normal_kl_formula))
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [new_like(upstream) if needed else None for needed in ctx.needs_input_grad]
        to_mean_p, to_log_var_p, to_mean_q, to_log_var_q = gradients
        for block in blocks_of_rows(upstream, _BLOCK):
            distance, log_ratio, inverse_std = _compare(ctx.saved_tensors, block)
            if to_log_var_p is not None or to_log_var_q is not None:
                half = 0.5 * upstream[block]
                excess = torch.expm1_(log_ratio)
                if to_log_var_p is not None:
                    to_log_var_p[block] = excess * half
                if to_log_var_q is not None:
                    to_log_var_q[block] = excess.addcmul_(distance, distance).mul_(half).neg_()
            if to_mean_p is not None or to_mean_q is not None:
                slope = (distance if inverse_std is None else distance.mul_(inverse_std)).mul_(upstream[block])
                if to_mean_p is not None:
                    to_mean_p[block] = slope
                if to_mean_q is not None:
                    to_mean_q[block] = slope.neg_()
        return tuple(gradients)


def _compare(parameters: Any, block: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the KL of a block is made of, in ``float64``.

    Returns: the distance of the means in standard deviations of q; the logarithm of the ratio of variances, p's to q's;
        1 / standard deviation of q, ``None`` for 1.
    """
    mean_p, log_var_p, mean_q, log_var_q = parameters
    distance, log_ratio = mean_p[block].double(), log_var_p[block].double()
    if mean_q is not None:
        distance.sub_(mean_q[block])
    if log_var_q is None:
        return distance, log_ratio, None
    log_var_q = log_var_q[block].double()
    inverse_std = torch.exp2((-0.5 * LOG2_E * log_var_q).clamp(max=1000.0))  # finite: 0 times it must be 0
    return distance.mul_(inverse_std), log_ratio.sub_(log_var_q), inverse_std


# The sum over all elements, to the standard normal


def gaussian_kl(mean: Tensor, log_var: Tensor, divisor: int = 1) -> Tensor:
    """The sum of D_KL(N(mean, exp(log_var)) || N(0, 1)) over all elements, divided by ``divisor``, in nats.

    The error bounds are those of :func:`kldiv.functional.kl_normal`, for the value and the gradients.

    Args:
        mean, log_var: floating point, of one shape.
        divisor: the number of examples, for the mean over them.
    Returns: shape (), in ``float32`` for half precision and in the widest dtype otherwise.
    """
    if fuses_on_cpu(mean, log_var):
        if mean.numel() <= _BLOCK:
            total: Tensor = _GaussianKL.apply(mean, log_var, 1 / divisor)
        else:
            total = _LargeGaussianKL.apply(mean, log_var, 1 / divisor, gradients_wanted(mean, log_var))
        return total
    if fuses_on_cuda(mean, log_var, dtypes=_TRITON_DTYPES):
        from kldiv.kernels import triton_gaussian  # Triton takes half a second to import

        return triton_gaussian.gaussian_kl(mean, log_var, 1 / divisor)
    mean, log_var = widen(mean, log_var)
    if torch.compiler.is_compiling():  # one pass with the fewest operations
        return 0.5 / divisor * sum_latent(expm1mx(log_var) + mean * mean).sum()
    return sum_latent(normal_kl(mean, log_var)).sum() / divisor


def plain_gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    """The backward of ``ctx.scale`` times the sum in plain operations: the gradients of mean and log-variance."""
    mean, log_var = ctx.saved_tensors
    scale = upstream * ctx.scale
    to_mean, to_log_var = mean.float() * scale, 0.5 * torch.expm1(log_var.float()) * scale
    others = [None] * (len(ctx.needs_input_grad) - 2)
    return to_mean.to(mean.dtype), to_log_var.to(log_var.dtype), *others


class _GaussianKL(Function):
    """Of one block, in the fewest operations. The forward makes e^log_var - 1, which becomes a gradient."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_var: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mean, log_var)
        ctx.scale = scale
        ctx.gradients = excess = torch.expm1(log_var)
        return _scalar(0.5 * (scale * _twice_gaussian_kl(mean, log_var, excess)), mean)

    @staticmethod
    @falls_back_on(plain_gradients)
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        mean, log_var = ctx.saved_tensors
        excess = take_gradients(ctx)
        if excess is None:
            excess = torch.expm1(log_var)
        scale = ctx.scale * upstream.item()
        return mean * scale, excess.mul_(0.5 * scale), None


class _LargeGaussianKL(Function):
    """In one pass over blocks. The forward makes the gradients, and the backward scales them."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_var: Tensor, scale: float, wanted: list[bool]) -> Tensor:
        ctx.save_for_backward(mean, log_var)
        ctx.scale = scale
        value, ctx.gradients = _value_and_gradients(mean, log_var, scale, wanted)
        return value

    @staticmethod
    @falls_back_on(plain_gradients)
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = take_gradients(ctx)
        if gradients is None:
            mean, log_var = ctx.saved_tensors
            _, gradients = _value_and_gradients(mean, log_var, ctx.scale, ctx.needs_input_grad[:2])
        if upstream != 1:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(upstream)
        return *gradients, None, None


def _value_and_gradients(
    mean: Tensor, log_var: Tensor, scale: float, wanted: Any
) -> tuple[Tensor, list[Tensor | None]]:
    """``scale`` times the sum, and its gradients, ``None`` where they are not wanted."""
    gradients = [new_like(t) if want else None for t, want in zip((mean, log_var), wanted, strict=True)]
    to_mean, to_log_var = (None if t is None else t.view(-1) for t in gradients)
    means, log_vars, twice_kl = mean.reshape(-1), log_var.reshape(-1), 0.0
    work, spare = workspace(torch.Size([_BLOCK]), mean.dtype, 2)
    for start in range(0, len(means), _BLOCK):
        block = slice(start, min(start + _BLOCK, len(means)))
        size = block.stop - start
        excess = torch.expm1(log_vars[block], out=spare[:size] if to_log_var is None else to_log_var[block])
        twice_kl += _twice_gaussian_kl(means[block], log_vars[block], excess, work[:size])
        if to_mean is not None:
            torch.mul(means[block], scale, out=to_mean[block])
        if to_log_var is not None:
            excess.mul_(0.5 * scale)
    return _scalar(0.5 * (scale * twice_kl), mean), gradients


def _scalar(value: float, like: Tensor) -> Tensor:
    # torch refuses a number beyond the dtype's range
    return like.new_full((), math.inf if value > torch.finfo(like.dtype).max else value)


def _twice_gaussian_kl(mean: Tensor, log_var: Tensor, excess: Tensor, work: Tensor | None = None) -> float:
    """Twice the KL of a block, the sum of e^u - 1 - u + mean^2.

    Args:
        mean, log_var: of one shape, in ``float32``; u is the log-variance.
        excess: e^u - 1.
        work: memory of that shape to overwrite.
    """
    spread = torch.sub(excess, log_var, out=work).sum().item()
    if not _is_accurate(spread, excess):
        spread = _careful_spread(log_var)
    return spread + _squares(mean)


def _is_accurate(spread: float, excess: Tensor) -> bool:
    r"""Whether S, the sum of e^u - 1 - u in ``float32``, has lost few digits to cancellation.

    The terms e^u - 1 are accurate to 1e-7 of their size, and so S is to 1e-6 where their sizes add up to less than 8 S.
    One of two bounds on that sum has to say so:

    .. math:: \sum|e^u - 1| \le S + \sqrt{2 n S}, \qquad \sum|e^u - 1| \le \sqrt{n \sum (e^u - 1)^2}

    The first holds because :math:`|e^u - 1| \le d + \sqrt{2d}` with :math:`d = e^u - 1 - u`. It costs nothing, and is
    below 8 S where 2n < 49 S. The second is Cauchy and Schwarz's. Neither holds of a sum that is infinite or NaN.
    """
    count = excess.numel()
    return 2 * count < 49 * spread < math.inf or math.sqrt(count * _squares(excess)) < 8 * spread


def _careful_spread(log_var: Tensor) -> float:
    """The sum of e^u - 1 - u in ``float64``, or half the sum of u^2 where u is so small that float64 cancels too."""
    wide = log_var.double()
    squares = _squares(wide)
    if 1e-14 < squares < math.inf:
        return torch.expm1(wide).sub_(wide).sum().item()
    return 0.5 * squares  # at an infinite u it is inf, where inf - inf is NaN


def _squares(values: Tensor) -> float:
    flat = values.reshape(-1)
    return torch.dot(flat, flat).item()
