"""The log-density of a mixture of diagonal normals: the formula, and a fused form of three matrix products."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from kldiv.kernels.autograd import blocks_of_rows, differentiated, exp2_, falls_back_on, in_eager
from kldiv.kernels.memory import workspace
from kldiv.numerics import LOG2_E

__all__ = [
    "mixture_log_density",
]


_BLOCK = 2**18
"""Numbers in a block of values times components."""

_NEAR = 512.0
"""Largest squared distance, in variances, for which the gradient of the value is computed in ``float32``.

The distance is from the mean of the means, the variance the smallest of all. 2e-6 of a gradient are lost.
"""

_LARGEST_LOG_PRECISION = 300.0


def mixture_log_density(
    value: Tensor, mean: Tensor, log_var: Tensor, log_weights: Tensor, dtype: torch.dtype
) -> Tensor:
    r"""ln sum_k exp(log_weights_k) N(value; mean_k, exp(log_var_k)), in nats.

    The error bound is that of :class:`kldiv.DiagonalNormalMixture`.

    Args:
        value: (\*shape, D).
        mean, log_var: (\*batch, K, D).
        log_weights: (\*batch, K), in ``float64``.
        dtype: of the result and of the exponentials.
    Returns: shape and batch, broadcast.
    """
    if mean.ndim > 2 or log_weights.ndim > 1 or not in_eager():
        return _formula(value, mean, log_var, log_weights, dtype)
    rows: Tensor = _MixtureLogDensity.apply(value.reshape(-1, value.shape[-1]), mean, log_var, log_weights, dtype)
    return rows.view(value.shape[:-1])


def _formula(z: Tensor, mean: Tensor, log_var: Tensor, log_weights: Tensor, dtype: torch.dtype) -> Tensor:
    z, mean, log_var = z.double(), mean.double(), log_var.double()
    # the density depends on no center, and so its gradient does not either
    center = mean.detach().mean(-2, keepdim=True)
    # the clamp: at infinity the density is 0, and inf - inf would be NaN
    z, mean = (z - center.squeeze(-2)).clamp(-1e60, 1e60), mean - center
    precision = torch.exp(-log_var.clamp(min=-_LARGEST_LOG_PRECISION))
    scaled = mean * precision
    constant = log_weights - 0.5 * (math.log(2 * math.pi) + log_var + mean * scaled).sum(-1)
    features, coefficients = torch.cat([z * z, z], -1), torch.cat([-0.5 * precision, scaled], -1)
    terms = torch.einsum("...d,...kd->...k", features, coefficients) + constant
    largest = terms.detach().amax(-1, keepdim=True).clamp(min=-1e300)
    # one exponential, where torch.logsumexp takes a second one in the backward pass
    return torch.log(torch.exp((terms - largest).to(dtype)).sum(-1)) + largest.squeeze(-1).to(dtype)


class _MixtureLogDensity(Function):
    """In ``float64`` but for the exponentials. These are kept, with what goes into the matrix products.

    The terms are in bits: a power of 2 takes less time than an exponential.
    """

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, mean: Tensor, log_var: Tensor, log_weights: Tensor, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(value, mean, log_var, log_weights)
        ctx.options = (dtype,)
        components = _components(mean, log_var, log_weights)
        features = _features(value, components)
        exponentials = value.new_empty(len(value), len(mean), dtype=dtype)
        totals, result = (value.new_empty(len(value), dtype=dtype) for _ in range(2))
        for block in _blocks(exponentials):
            of_block = exponentials[block]
            terms = _work(of_block, torch.float64)
            torch.addmm(components.constant, features[block], components.coefficients.T, out=terms)
            largest = terms.amax(1).clamp_(min=-1e300)
            exp2_(of_block.copy_(terms.sub_(largest[:, None])))
            total = torch.sum(of_block, 1, out=totals[block])
            result[block] = (total.log2() + largest) / LOG2_E
        ctx.exponentials, ctx.totals, ctx.features, ctx.components = exponentials, totals, features, components
        ctx.is_near = value.is_cpu and value.numel() > 0 and _largest_distance(features, components) < _NEAR
        return result

    @staticmethod
    @falls_back_on(differentiated(_formula))
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        value, mean, log_var, _ = ctx.saved_tensors
        of_value, *of_parameters = ctx.needs_input_grad[:4]
        upstream = (upstream / ctx.totals)[:, None]  # of the sum of the exponentials
        to_value = _value_gradient(ctx, upstream, value) if of_value else None
        to_mean = to_log_var = to_log_weights = None
        if any(of_parameters):
            sums = _component_sums(ctx, upstream)
            to_log_weights = sums.one[:, 0] if ctx.needs_input_grad[3] else None
            if any(of_parameters[:2]):
                to_mean, to_log_var = _component_gradients(sums, ctx.components, mean, log_var)
        return to_value, to_mean, to_log_var, to_log_weights, None


class _Components(NamedTuple):
    """K components in ``float64``. Their terms are ``features @ coefficients.T + constant``."""

    center: Tensor
    """The mean of the means, from which they and the values are counted: squares written out lose fewer digits."""
    mean: Tensor
    """Counted from the center."""
    precision: Tensor
    coefficients: Tensor
    """Of z^2 and of z, in bits, (K, 2 D)."""
    constant: Tensor
    """In bits, (K,)."""


class _Sums(NamedTuple):
    """Sums over the values, weighted with the upstream gradient and each component's share of the density, (K, ...)."""

    z_squared: Tensor
    z: Tensor
    one: Tensor


def _components(mean: Tensor, log_var: Tensor, log_weights: Tensor) -> _Components:
    dims = mean.shape[1]
    mean = mean.double()
    center = mean.mean(0)
    mean = mean - center
    precision = log_var.double().mul(-LOG2_E).clamp_(max=LOG2_E * _LARGEST_LOG_PRECISION).exp2_()
    coefficients = mean.new_empty(len(mean), 2 * dims)
    torch.mul(precision, -0.5, out=coefficients[:, :dims])
    scaled = torch.mul(mean, precision, out=coefficients[:, dims:])
    quadratic = torch.linalg.vecdot(mean, scaled).add_(log_var.sum(1, dtype=torch.float64))
    constant = LOG2_E * (log_weights - 0.5 * quadratic.add_(dims * math.log(2 * math.pi)))
    return _Components(center, mean, precision, coefficients.mul_(LOG2_E), constant)


def _features(value: Tensor, components: _Components) -> Tensor:
    """z^2 and z side by side, z counted from the center, (N, 2 D) in ``float64``."""
    dims = value.shape[1]
    features = components.center.new_empty(len(value), 2 * dims)
    z = features[:, dims:]
    z.copy_(value).sub_(components.center).clamp_(-1e60, 1e60)
    torch.mul(z, z, out=features[:, :dims])
    return features


def _largest_distance(features: Tensor, components: _Components) -> float:
    """Squared, from the center, over the smallest variance."""
    return (features[:, : features.shape[1] // 2].amax() * components.precision.amax()).item()


def _value_gradient(ctx: Any, upstream: Tensor, value: Tensor) -> Tensor:
    """The gradient of the value: 2 z times the mean coefficient of z^2, plus that of z."""
    dims = value.shape[1]
    to_value = torch.empty_like(value)
    # near the center, where the two parts cancel little, float32 is good enough
    dtype = upstream.dtype if ctx.is_near else torch.float64
    coefficients = ctx.components.coefficients.to(dtype)
    for block in _blocks(ctx.exponentials):
        z, weights = ctx.features[block, dims:], ctx.exponentials[block]
        products = (weights if ctx.is_near else _work(weights, dtype).copy_(weights)) @ coefficients
        slope = products[:, :dims].mul(z).mul_(2).add_(products[:, dims:]).mul_(upstream[block] / LOG2_E)
        to_value[block] = slope if ctx.is_near else slope.masked_fill_(z.abs() >= 1e60, 0)
    return to_value


def _component_sums(ctx: Any, upstream: Tensor) -> _Sums:
    features, exponentials = ctx.features, ctx.exponentials
    width = features.shape[1]
    # The column after the features counts. Zeros fill the columns up to a multiple of 12, for which MKL takes half the
    # time on some processors
    weighted = features.new_zeros(len(features), width + 12 - width % 12)
    torch.mul(features, upstream, out=weighted[:, :width])
    weighted[:, width] = upstream[:, 0]
    sums = weighted.new_zeros(exponentials.shape[1], weighted.shape[1])
    for block in _blocks(exponentials):
        shares = exponentials[block]
        sums.addmm_(_work(shares, torch.float64).copy_(shares).T, weighted[block])
    return _Sums(*sums[:, : width + 1].split([width // 2, width // 2, 1], 1))


def _component_gradients(sums: _Sums, components: _Components, mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the means and the log-variances. The sums of z^2 and z are overwritten."""
    from_mean = torch.addcmul(sums.z, sums.one, components.mean, value=-1)  # sum of z - mean
    to_mean = (from_mean * components.precision).to(mean.dtype)
    # sum of (z - mean)^2 = z^2 - mean (z + (z - mean))
    squares = sums.z_squared.addcmul_(components.mean, sums.z.add_(from_mean), value=-1).mul_(components.precision)
    squares.masked_fill_(log_var < -_LARGEST_LOG_PRECISION, 0)
    return to_mean, squares.sub_(sums.one).mul_(0.5).to(log_var.dtype)


def _blocks(exponentials: Tensor) -> list[Any]:
    return blocks_of_rows(exponentials, _BLOCK) if exponentials.is_cpu else [slice(None)]


def _work(like: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of this shape, on a CPU in memory that the next block uses again."""
    return workspace(like.shape, dtype, 1)[0] if like.is_cpu else torch.empty_like(like, dtype=dtype)
