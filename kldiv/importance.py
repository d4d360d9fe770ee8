"""Log-likelihoods by importance sampling."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kldiv.special import widen


class LogLikelihood(NamedTuple):
    """A log-likelihood estimated by importance sampling, in nats."""

    value: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor


def importance_log_likelihood(log_weights: Tensor, dim: int = 0) -> LogLikelihood:
    r"""ln p(x), estimated from the log-weights ln p(x, z_k) - ln q(z_k|x) of K samples of q, in nats.

    .. math:: \ln \frac1K \sum_k w_k, \qquad
              \mathrm{se} = \frac1{\bar w}\sqrt{\frac{\sum_k (w_k - \bar w)^2}{K (K-1)}}, \qquad
              \mathrm{ess} = \frac{(\sum_k w_k)^2}{\sum_k w_k^2}

    In expectation the value lies below ln p(x), and rises to it with K. The standard error is that of the delta
    method: sound while the effective sample size is large, too small where a few weights carry the sum.

    Args:
        log_weights: finite or ``-inf``, K along ``dim``; any other dimensions.
        dim: the dimension of the K samples.
    Returns: the three, in the shape of ``log_weights`` without ``dim``. With K = 1 the error is unknown, and
        ``inf``; where all weights are 0 the value is ``-inf``, the error ``inf`` and the effective sample size 0.
    Raises: ValueError: K = 0.
    Source: Burda, Grosse & Salakhutdinov 2016, eq. 8; Kong 1992 for the effective sample size.

    >>> importance_log_likelihood(torch.tensor([-1.0, -1.0])).value
    tensor(-1.)
    """
    if log_weights.ndim == 0 or log_weights.shape[dim] == 0:
        raise ValueError(f"log_weights of shape {tuple(log_weights.shape)} hold no sample along dim={dim}")
    (log_weights,) = widen(log_weights)
    samples = log_weights.shape[dim]
    peak = log_weights.detach().amax(dim, keepdim=True)
    impossible = (peak == -torch.inf).squeeze(dim)
    # finite in place of all -inf, whose gradient would be NaN
    value = torch.logsumexp(log_weights.masked_fill(peak == -torch.inf, 0), dim) - math.log(samples)
    value = value.masked_fill(impossible, -torch.inf)
    with torch.no_grad():
        weights = torch.exp(log_weights - peak)  # against the largest: a difference of neighbours is exact
        mean = weights.mean(dim)
        variance = (weights - mean.unsqueeze(dim)).square().sum(dim) / (samples * max(samples - 1, 1))
        standard_error = (variance.sqrt() / mean).masked_fill(impossible, torch.inf)
        if samples == 1:
            standard_error = torch.full_like(standard_error, torch.inf)
        size = (weights.sum(dim).square() / weights.square().sum(dim)).masked_fill(impossible, 0)
    return LogLikelihood(value, standard_error, size)
