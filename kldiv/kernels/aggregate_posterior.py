"""The log-density of the aggregate posterior, the mixture of a batch's posteriors: the formula, and a fused form."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from kldiv.kernels.autograd import differentiated, exp2_, falls_back_on, in_eager
from kldiv.numerics import LOG2_E, standardise

__all__ = [
    "log_mixtures",
    "log_normal_mixtures",
]


_BLOCK = 2**19
"""Numbers in a block of rows and columns. A few such blocks fit into the second-level cache."""

_SCALE = 0.5 * LOG2_E
"""Times a squared distance in standard deviations, this is minus the log-density in bits, but for a constant."""


def log_normal_mixtures(
    sample: Tensor, mean: Tensor, log_var: Tensor, first: int, log_weights: tuple[float, float, float]
) -> tuple[Tensor, Tensor]:
    r"""ln of the mixture of a batch's normal posteriors, of all dimensions jointly and of each by itself, in nats.

    .. math:: \ln\sum_j W_{ij} \prod_d N_{ijd}, \qquad \sum_d \ln\sum_j W_{ij} N_{ijd},
              \qquad N_{ijd} = N(z_{id}; \mu_{jd}, e^{\lambda_{jd}})

    For large batches no tensor of the size rows times batch times dimensions is made.

    Args:
        sample: z, (rows, D).
        mean, log_var: :math:`\mu, \lambda`, (batch, D).
        first: the example of the batch from which the first row was drawn. The other rows follow.
        log_weights: ln W at the example itself, at the one after it, and elsewhere.
    Returns: two tensors (rows,).
    """
    if in_eager() and sample.shape[0] * mean.numel() >= _BLOCK:
        joint, marginals = _LogMixtures.apply(sample, mean, log_var, first, log_weights)
        return joint, marginals
    return _formula(sample, mean, log_var, first, log_weights)


def log_mixtures(log_density: Tensor, first: int, log_weights: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    r"""The same of any posteriors that factorise, in plain operations.

    Args:
        log_density: :math:`\ln q(z_{id} | x_j)`, (rows, batch, D).
        first, log_weights: as :func:`log_normal_mixtures` has them.
    Returns: two tensors (rows,).
    """
    weights = _weight_matrix(log_density[..., 0], first, log_weights)
    # a weight enters once, after the sum over dimensions
    joint = torch.logsumexp(log_density.sum(2) + weights, 1)
    return joint, torch.logsumexp(log_density + weights[..., None], 1).sum(1)


def _formula(
    sample: Tensor, mean: Tensor, log_var: Tensor, first: int, log_weights: tuple[float, float, float]
) -> tuple[Tensor, Tensor]:
    # the clamp keeps the square finite: a share of 0 times it must be 0
    distance = standardise(sample[:, None] - mean, log_var).clamp(-1e18, 1e18)
    log_density = -0.5 * (math.log(2 * math.pi) + log_var + distance * distance)
    return log_mixtures(log_density, first, log_weights)


def _weight_matrix(like: Tensor, first: int, log_weights: tuple[float, float, float]) -> Tensor:
    """ln W, (rows, batch), of the shape, dtype and device of ``like``."""
    own, after, others = log_weights
    count, batch = like.shape
    rows = torch.arange(count, device=like.device)
    weights = like.new_full((count, batch), others)
    if batch:
        weights[rows, (first + rows + 1) % batch] = after
        weights[rows, first + rows] = own
    return weights


class _LogMixtures(Function):
    """Forward and backward by blocks of rows, one dimension at a time, in memory that is used again and again.

    Logarithms are in bits until they are returned. A weight counts as its excess over the weight elsewhere, which is
    added to the results.
    """

    @staticmethod
    def forward(
        ctx: Any,
        sample: Tensor,
        mean: Tensor,
        log_var: Tensor,
        first: int,
        log_weights: tuple[float, float, float],
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(sample, mean, log_var)
        ctx.options = first, log_weights
        blocks = _Blocks(sample, mean, log_var, first, log_weights)
        rows, dims = sample.shape
        marginals, joint = sample.new_empty(dims, rows), sample.new_empty(rows)
        shares = sample.new_empty(rows, len(mean))
        for start, stop in blocks.rows():
            log_product = shares[start:stop]
            for d in range(dims):
                _, log_normal = blocks.log_normal(d, start, stop)
                if d:
                    log_product.add_(log_normal)
                else:
                    log_product.copy_(log_normal)
                marginals[d, start:stop], _ = _log_sum(blocks.add_weights_(log_normal, start))
            joint[start:stop], powers = _log_sum(blocks.add_weights_(log_product, start))
            powers.div_(powers.sum(1, keepdim=True))
        ctx.shares, ctx.marginals = shares, marginals
        return joint / LOG2_E + log_weights[2], marginals.sum(0) / LOG2_E + dims * log_weights[2]

    @staticmethod
    @falls_back_on(differentiated(_formula))
    def backward(ctx: Any, to_joint: Tensor, to_marginals: Tensor) -> tuple[Tensor | None, ...]:
        blocks = _Blocks(*ctx.saved_tensors, *ctx.options)
        to_sample = torch.empty_like(blocks.sample)
        to_mean, to_log_var = torch.zeros_like(blocks.mean), torch.zeros_like(blocks.mean)
        for start, stop in blocks.rows():
            of_joint = ctx.shares[start:stop] * to_joint[start:stop, None]
            of_marginals, ones = to_marginals[start:stop, None], to_joint.new_ones(stop - start)
            for d in range(len(to_mean)):
                distance, log_normal = blocks.log_normal(d, start, stop)
                blocks.add_weights_(log_normal, start)
                shares = exp2_(log_normal.sub_(ctx.marginals[d, start:stop, None]))
                # the gradient of each ln N: its share of both logarithms
                to_log_normal = shares.mul_(of_marginals).add_(of_joint)
                to_log_var[d].sub_(torch.mv(to_log_normal.T, ones), alpha=_SCALE)
                times_distance = to_log_normal.mul_(distance)
                to_sample[d, start:stop] = torch.mv(times_distance, blocks.inverse_std[d]).neg_()
                to_mean[d].add_(torch.mv(times_distance.T, ones))
                times_square = times_distance.mul_(distance)
                to_log_var[d].add_(torch.mv(times_square.T, ones))
        to_mean.mul_(blocks.inverse_std)
        return to_sample.T / _SCALE, to_mean.T / _SCALE, to_log_var.T / (2 * _SCALE), None, None


def _log_sum(log: Tensor) -> tuple[Tensor, Tensor]:
    """log2 of the sum of 2^log of each row, and 2^log over the largest of its row, which overwrites ``log``."""
    largest = log.amax(1).clamp_(min=torch.finfo(log.dtype).min)  # finite: -inf less -inf is NaN
    powers = exp2_(log.sub_(largest[:, None]))
    return powers.sum(1).log2_().add_(largest), powers


class _Blocks:
    """A batch's normal densities at a block of rows of the sample, one dimension at a time."""

    def __init__(
        self, sample: Tensor, mean: Tensor, log_var: Tensor, first: int, log_weights: tuple[float, float, float]
    ) -> None:
        self.sample, self.mean, log_var = (t.detach().T.contiguous() for t in (sample, mean, log_var))
        # the clamp keeps it finite: a distance of 0 times it must be 0
        inverse_std = torch.exp((-0.5 * log_var).clamp(max=80.0 if log_var.dtype == torch.float32 else 700.0))
        self.inverse_std = math.sqrt(_SCALE) * inverse_std  # so that distances are scaled: their squares are bits
        self.constant = -_SCALE * (math.log(2 * math.pi) + log_var)
        own, after, others = log_weights
        self.first, self.own, self.after = first, LOG2_E * (own - others), LOG2_E * (after - others)
        self.batch = len(mean)
        self.height = min(len(sample), max(1, _BLOCK // self.batch))
        self.distance, self.log = (sample.new_empty(self.height, self.batch) for _ in range(2))

    def rows(self) -> list[tuple[int, int]]:
        count = self.sample.shape[1]
        return [(start, min(start + self.height, count)) for start in range(0, count, self.height)]

    def log_normal(self, d: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Scaled distances and log2 N of dimension d, (stop - start, batch). The next call overwrites both."""
        distance, log = self.distance[: stop - start], self.log[: stop - start]
        torch.sub(self.sample[d, start:stop, None], self.mean[d], out=distance).mul_(self.inverse_std[d])
        distance.clamp_(-1e18, 1e18)  # where its square is still finite
        return distance, torch.addcmul(self.constant[d], distance, distance, value=-1, out=log)

    def add_weights_(self, log: Tensor, start: int) -> Tensor:
        """Adds the excess of log2 W over its value elsewhere, in place."""
        log.diagonal(self.first + start).add_(self.own)
        neighbours = log.diagonal(self.first + start + 1)
        neighbours.add_(self.after)
        if len(neighbours) < len(log) and self.batch > 1:  # the last example's neighbour is the first
            log[-1, 0] += self.after
        return log
