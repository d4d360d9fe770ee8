"""The density of a mixture of diagonal normals: three matrix products, and one tensor of examples times components."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from kldiv.kernels.autograd import blocks_of_rows, exp2_, gradients_again, is_plain_backward
from kldiv.kernels.memory import workspace
from kldiv.numerics import LOG2_E

__all__ = [
    "Plain",
    "mixture_log_density",
]


Plain = Callable[[Tensor, Tensor, Tensor, Tensor, torch.dtype], Tensor]

_BLOCK = 2**18
"""Numbers in a block of examples and components."""

_NEAR = 512.0
"""Of the squared distances from the mean of the means, over the smallest variance: 2e-6 of a gradient are lost."""

_LARGEST_LOG_PRECISION = 300.0


def mixture_log_density(
    value: Tensor, mean: Tensor, log_var: Tensor, log_weights: Tensor, dtype: torch.dtype, plain: Plain
) -> Tensor:
    r"""ln sum_k exp(log_weights_k) N(value; mean_k, exp(log_var_k)), with the error bound of the plain formula.

    Args:
        value: (\*shape, D).
        mean, log_var: (K, D).
        log_weights: (K,), in ``float64``.
        dtype: of the result and of the exponentials.
        plain: the formula, for a second derivative.
    Returns: shape.
    """
    rows: Tensor = _MixtureLogDensity.apply(
        value.reshape(-1, value.shape[-1]), mean, log_var, log_weights, dtype, plain
    )
    return rows.view(value.shape[:-1])


class _MixtureLogDensity(Function):
    """In ``float64`` but for the powers; kept are these, and what goes into products, the components in bits."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, mean: Tensor, log_var: Tensor, log_weights: Tensor, dtype: torch.dtype, plain: Plain
    ) -> Tensor:
        ctx.save_for_backward(value, mean, log_var, log_weights)
        ctx.plain = plain
        dims = mean.shape[1]
        # squares beside first powers; the means are counted from their mean, as the values are
        of_value, of_component = (log_weights.new_empty(len(rows), 2 * dims) for rows in (value, mean))
        squares, z = of_value[:, :dims], of_value[:, dims:]
        z.copy_(value)
        wide_mean = mean.double()
        center = wide_mean.mean(0)
        centred = wide_mean - center
        z.sub_(center).clamp_(-1e60, 1e60)
        torch.mul(z, z, out=squares)
        precision = log_var.double().mul(-LOG2_E).clamp_(max=LOG2_E * _LARGEST_LOG_PRECISION).exp2_()
        torch.mul(precision, -0.5, out=of_component[:, :dims])
        scaled = torch.mul(centred, precision, out=of_component[:, dims:])
        constant = torch.linalg.vecdot(centred, scaled).add_(log_var.sum(1, dtype=torch.float64))
        constant = LOG2_E * (log_weights - 0.5 * constant.add_(dims * math.log(2 * math.pi)))
        of_component.mul_(LOG2_E)
        exponentials = value.new_empty(len(value), len(mean), dtype=dtype)
        totals, result = (value.new_empty(len(value), dtype=dtype) for _ in range(2))
        for block in _blocks(exponentials):
            part = exponentials[block]
            terms = torch.addmm(constant, of_value[block], of_component.T, out=_work(part, torch.float64))
            largest = terms.amax(1).clamp_(min=-1e300)
            total = torch.sum(exp2_(part.copy_(terms.sub_(largest[:, None]))), 1, out=totals[block])
            result[block] = (total.log2() + largest) / LOG2_E
        ctx.found = exponentials, totals, of_value, of_component, centred, precision
        # where a difference of first powers loses little, float32 does for the gradient of the value
        ctx.is_near = value.is_cpu and value.numel() > 0 and (squares.amax() * precision.amax()).item() < _NEAR
        return result

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        value, mean, log_var, log_weights = ctx.saved_tensors
        if is_plain_backward(upstream):
            given = value, mean, log_var, log_weights, upstream.dtype
            return *gradients_again(ctx, lambda: ctx.plain(*given), upstream), None, None
        exponentials, totals, of_value, of_component, centred, precision = ctx.found
        dims = mean.shape[1]
        of_row = (upstream / totals)[:, None]
        to_value = to_mean = to_log_var = to_log_weights = None
        if ctx.needs_input_grad[0]:
            to_value = torch.empty_like(value)
            for_value = of_component.to(upstream.dtype if ctx.is_near else torch.float64)
            for block in _blocks(exponentials):
                z, part = of_value[block, dims:], exponentials[block]
                products = (part if ctx.is_near else _work(part, torch.float64).copy_(part)) @ for_value
                found = products[:, :dims].mul(z).mul_(2).add_(products[:, dims:]).mul_(of_row[block] / LOG2_E)
                to_value[block] = found if ctx.is_near else found.masked_fill_(z.abs() >= 1e60, 0)
        if any(ctx.needs_input_grad[1:]):
            # the column after them counts; zeros make it a multiple of 12, for which MKL takes half the time on some
            # processors
            weighted = of_value.new_zeros(len(of_value), 2 * dims + 12 - 2 * dims % 12)
            torch.mul(of_value, of_row, out=weighted[:, : 2 * dims])
            weighted[:, 2 * dims] = of_row[:, 0]
            sums = weighted.new_zeros(len(mean), weighted.shape[1])
            for block in _blocks(exponentials):
                part = exponentials[block]
                sums.addmm_(_work(part, torch.float64).copy_(part).T, weighted[block])
            squares, first, count = sums[:, : 2 * dims + 1].split([dims, dims, 1], 1)
            to_log_weights = count[:, 0] if ctx.needs_input_grad[3] else None
        if any(ctx.needs_input_grad[1:3]):
            from_mean = torch.addcmul(first, count, centred, value=-1)  # sum z - count mean
            to_mean = (from_mean * precision).to(mean.dtype)
            # and sum z^2 - 2 mean sum z + count mean^2
            squares.addcmul_(centred, first.add_(from_mean), value=-1).mul_(precision)
            squares.masked_fill_(log_var < -_LARGEST_LOG_PRECISION, 0)
            to_log_var = squares.sub_(count).mul_(0.5).to(log_var.dtype)
        return to_value, to_mean, to_log_var, to_log_weights, None, None


def _blocks(shares: Tensor) -> list[Any]:
    return blocks_of_rows(shares, _BLOCK) if shares.is_cpu else [slice(None)]


def _work(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Of the shape; on a CPU it is memory that the next block uses again."""
    return workspace(like.shape, dtype, 1)[0] if like.is_cpu else torch.empty_like(like, dtype=dtype)
