"""ln of the mixture of a batch's normal posteriors: nothing of the size batch times batch times dimensions is held."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from kldiv.kernels.autograd import exp2_, gradients_again, in_eager, is_plain_backward
from kldiv.numerics import LOG2_E, standardise

__all__ = [
    "log_mixtures",
    "weight_matrix",
]


_BLOCK = 2**19
"""Numbers in a block of rows and columns: some of them fit into the second-level cache."""

_SCALE = 0.5 * LOG2_E
"""Of squared distances: those in bits are the squares of scaled distances."""


def log_mixtures(
    sample: Tensor, mean: Tensor, log_var: Tensor, first: int, log_weights: tuple[float, float, float]
) -> tuple[Tensor, Tensor]:
    r"""ln of the mixture of a batch's normal posteriors, of all dimensions jointly and of each by itself.

    .. math:: \ln\sum_j W_{ij} \prod_d N_{ijd}, \qquad \sum_d \ln\sum_j W_{ij} N_{ijd},
              \qquad N_{ijd} = N(z_{id}; \mu_{jd}, e^{\lambda_{jd}})

    Nothing of the size rows times batch times dimensions is ever held.

    Args:
        sample: z, (rows, D).
        mean, log_var: :math:`\mu, \lambda`, (batch, D).
        first: the example of the batch from which the first row was drawn; the others follow.
        log_weights: ln W at the example itself, at the one after it, and elsewhere.
    Returns: two tensors (rows,).
    """
    if in_eager() and sample.shape[0] * mean.numel() >= _BLOCK:
        joint, marginals = _LogMixtures.apply(sample, mean, log_var, first, log_weights)
        return joint, marginals
    return _log_mixtures_plain(sample, mean, log_var, first, log_weights)


def _log_mixtures_plain(
    sample: Tensor, mean: Tensor, log_var: Tensor, first: int, log_weights: tuple[float, float, float]
) -> tuple[Tensor, Tensor]:
    # held where its square is still finite: 0 times it is to be 0
    distance = standardise(sample[:, None] - mean, log_var).clamp(-1e18, 1e18)
    crossed = -0.5 * (math.log(2 * math.pi) + log_var + distance * distance)
    weights = weight_matrix(sample, len(mean), first, log_weights)
    # a weight enters once, after the sum over dimensions
    return torch.logsumexp(crossed.sum(2) + weights, 1), torch.logsumexp(crossed + weights[..., None], 1).sum(1)


def weight_matrix(sample: Tensor, batch: int, first: int, log_weights: tuple[float, float, float]) -> Tensor:
    """ln W, (rows, batch)."""
    own, after, others = log_weights
    rows = torch.arange(len(sample), device=sample.device)
    weights = sample.new_full((len(sample), batch), others)
    if batch:
        weights[rows, (first + rows + 1) % batch] = after
        weights[rows, first + rows] = own
    return weights


class _LogMixtures(Function):
    """Forward and backward by blocks of rows, one dimension at a time, in memory that is used again and again.

    Logarithms are of base 2 until they are returned.
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
        blocks = _Blocks(sample, mean, log_var, first, log_weights)
        rows, dims = sample.shape
        marginals, joint = sample.new_empty(dims, rows), sample.new_empty(rows)
        softmax = sample.new_empty(rows, len(mean))
        for start, stop in blocks.rows():
            total = softmax[start:stop]
            for d in range(dims):
                _, log = blocks.log_normal(d, start, stop)
                if d:
                    total.add_(log)
                else:
                    total.copy_(log)
                blocks.weigh(log, start)
                marginals[d, start:stop] = _log_sum(log)
            blocks.weigh(total, start)
            joint[start:stop] = _log_sum(total)
            total.div_(total.sum(1, keepdim=True))
        ctx.save_for_backward(sample, mean, log_var)
        ctx.softmax, ctx.marginals = softmax, marginals
        ctx.first, ctx.log_weights = first, log_weights
        return joint / LOG2_E + log_weights[2], marginals.sum(0) / LOG2_E + dims * log_weights[2]

    @staticmethod
    def backward(ctx: Any, of_joint: Tensor, of_marginals: Tensor) -> tuple[Tensor | None, ...]:
        sample, mean, log_var = ctx.saved_tensors
        softmax, marginals = ctx.softmax, ctx.marginals
        if is_plain_backward(of_joint):
            given = sample, mean, log_var, ctx.first, ctx.log_weights
            return *gradients_again(ctx, lambda: _log_mixtures_plain(*given), (of_joint, of_marginals)), None, None
        blocks = _Blocks(sample, mean, log_var, ctx.first, ctx.log_weights)
        to_sample = torch.empty_like(blocks.sample)
        to_mean, to_log_var = torch.zeros_like(blocks.mean), torch.zeros_like(blocks.mean)
        for start, stop in blocks.rows():
            share = softmax[start:stop] * of_joint[start:stop, None]
            of_rows, ones = of_marginals[start:stop, None], sample.new_ones(stop - start)
            for d in range(len(to_mean)):
                distance, log = blocks.log_normal(d, start, stop)
                blocks.weigh(log, start)
                # of each pair: what the two logarithms ask of ln N
                asked = exp2_(log.sub_(marginals[d, start:stop, None])).mul_(of_rows).add_(share)
                to_log_var[d].sub_(torch.mv(asked.T, ones), alpha=_SCALE)
                asked.mul_(distance)
                to_sample[d, start:stop] = torch.mv(asked, blocks.precision[d]).neg_()
                to_mean[d].add_(torch.mv(asked.T, ones))
                to_log_var[d].add_(torch.mv(asked.mul_(distance).T, ones))
        to_mean.mul_(blocks.precision)
        return to_sample.T / _SCALE, to_mean.T / _SCALE, to_log_var.T / (2 * _SCALE), None, None


def _log_sum(log: Tensor) -> Tensor:
    """log2 of the sum of 2^log of each row. What it leaves there are these powers, over the largest."""
    peak = log.amax(1).clamp_(min=torch.finfo(log.dtype).min)  # not -inf, of which less itself is NaN
    return exp2_(log.sub_(peak[:, None])).sum(1).log2_().add_(peak)


class _Blocks:
    """A batch's normal densities at a block of rows of the sample, one dimension at a time."""

    def __init__(
        self, sample: Tensor, mean: Tensor, log_var: Tensor, first: int, log_weights: tuple[float, float, float]
    ) -> None:
        self.sample, self.mean, log_var = (t.detach().T.contiguous() for t in (sample, mean, log_var))
        # held where it is still finite: 0 times it is to be 0
        root = torch.exp((-0.5 * log_var).clamp(max=80.0 if log_var.dtype == torch.float32 else 700.0))
        self.precision = math.sqrt(_SCALE) * root
        self.constant = -_SCALE * (math.log(2 * math.pi) + log_var)
        self.first, self.excess = first, [LOG2_E * (weight - log_weights[2]) for weight in log_weights[:2]]
        self.batch = len(mean)
        self.height = min(len(sample), max(1, _BLOCK // self.batch))
        self.distance, self.log = (sample.new_empty(self.height, self.batch) for _ in range(2))

    def rows(self) -> list[tuple[int, int]]:
        count = self.sample.shape[1]
        return [(start, min(start + self.height, count)) for start in range(0, count, self.height)]

    def log_normal(self, d: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Scaled distances, and log2 N, of dimension d, (stop - start, batch): until the next call."""
        distance, log = self.distance[: stop - start], self.log[: stop - start]
        torch.sub(self.sample[d, start:stop, None], self.mean[d], out=distance).mul_(self.precision[d])
        distance.clamp_(-1e18, 1e18)  # where its square is still finite
        return distance, torch.addcmul(self.constant[d], distance, distance, value=-1, out=log)

    def weigh(self, log: Tensor, start: int) -> None:
        """Adds log2 W, but for what all pairs have."""
        own, after = self.excess
        log.diagonal(self.first + start).add_(own)
        neighbours = log.diagonal(self.first + start + 1)
        neighbours.add_(after)
        if len(neighbours) < len(log) and self.batch > 1:  # the last example's neighbour is the first
            log[-1, 0] += after
