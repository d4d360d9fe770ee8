"""The density of a mixture of diagonal normals: three matrix products, and one tensor of examples times components."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from kldiv.kernels import blocks_of_rows, exp_, gradients_again, is_plain_backward
from kldiv.kernels.memory import workspace

Plain = Callable[[Tensor, Tensor, Tensor, Tensor, torch.dtype], Tensor]

_BLOCK = 2**18
"""Numbers in a block of examples and components."""

_NEAR = 512.0
"""Of the squared distances from the mean of the means, over the smallest variance: 2e-6 of a gradient are lost."""


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
    """In ``float64`` but for the exponentials; the shares of the components are kept, and what goes into products."""

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
        wide_mean, wide_log_var = mean.double(), log_var.double()
        center = wide_mean.mean(0)
        centred = wide_mean - center
        z.sub_(center).clamp_(-1e60, 1e60)
        torch.mul(z, z, out=squares)
        precision = wide_log_var.clamp(min=-300.0).neg_().exp_()
        torch.mul(precision, -0.5, out=of_component[:, :dims])
        scaled = torch.mul(centred, precision, out=of_component[:, dims:])
        constant = torch.addcmul(wide_log_var, centred, scaled).add_(math.log(2 * math.pi)).sum(1)
        constant = log_weights - 0.5 * constant
        shares = value.new_empty(len(value), len(mean), dtype=dtype)
        result = value.new_empty(len(value), dtype=dtype)
        for block in _blocks(shares):
            part = shares[block]
            terms = torch.addmm(constant, of_value[block], of_component.T, out=_work(part, torch.float64))
            largest = terms.amax(1, keepdim=True).clamp_(min=-1e300)
            total = exp_(part.copy_(terms.sub_(largest))).sum(1, keepdim=True)
            part.div_(total)
            result[block] = total.log_().add_(largest).squeeze(1)
        ctx.found = shares, of_value, of_component, centred, precision
        # where a difference of first powers loses little, float32 does for the gradient of the value
        is_near = value.is_cpu and value.numel() > 0 and (squares.amax() * precision.amax()).item() < _NEAR
        ctx.of_value_gradient = dtype if is_near else torch.float64
        return result

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        value, mean, log_var, log_weights = ctx.saved_tensors
        if is_plain_backward(upstream):
            given = value, mean, log_var, log_weights, upstream.dtype
            return *gradients_again(ctx, lambda: ctx.plain(*given), upstream), None, None
        shares, of_value, of_component, centred, precision = ctx.found
        dims = mean.shape[1]
        to_value, for_value = None, of_component
        if ctx.needs_input_grad[0]:
            to_value, for_value = torch.empty_like(value), of_component.to(ctx.of_value_gradient)
        count, sums = torch.zeros_like(log_weights), torch.zeros_like(of_component)
        for block in _blocks(shares):
            part, up = shares[block], upstream[block, None]
            if to_value is not None:
                z, products = of_value[block, dims:], _times(part, up, for_value.dtype) @ for_value
                products = products[:, :dims].mul(z).mul_(2).add_(products[:, dims:])
                to_value[block] = products.masked_fill_(z.abs() >= 1e60, 0)
            if any(ctx.needs_input_grad[1:]):
                asked = _times(part, up, torch.float64)
                count += asked.sum(0)
            if any(ctx.needs_input_grad[1:3]):
                sums.addmm_(asked.T, of_value[block])
        to_mean = to_log_var = None
        if any(ctx.needs_input_grad[1:3]):
            squares, first, each = sums[:, :dims], sums[:, dims:], count[:, None]
            first.addcmul_(each, centred, value=-1)  # from the mean: sum z - count mean
            if ctx.needs_input_grad[1]:
                to_mean = (first * precision).to(mean.dtype)
            if ctx.needs_input_grad[2]:
                # and sum z^2 - 2 mean sum z + count mean^2
                squares.addcmul_(centred, first, value=-2).addcmul_(each * centred, centred, value=-1)
                squares.mul_(precision).masked_fill_(log_var < -300, 0)
                to_log_var = squares.sub_(each).mul_(0.5).to(log_var.dtype)
        return to_value, to_mean, to_log_var, count if ctx.needs_input_grad[3] else None, None, None


def _blocks(shares: Tensor) -> list[Any]:
    return blocks_of_rows(shares, _BLOCK) if shares.is_cpu else [slice(None)]


def _times(shares: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.mul(shares, upstream, out=_work(shares, dtype))


def _work(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Of the shape; on a CPU it is memory that the next block uses again."""
    return workspace(like.shape, dtype, 1)[0] if like.is_cpu else torch.empty_like(like, dtype=dtype)
