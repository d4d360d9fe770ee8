"""How much of the variance of k3 the samples of p have missed, by what samples of q say of it."""

import math

import torch
from torch import Tensor
from torch.distributions import Distribution

from kldiv.distributions import sum_rightmost
from kldiv.double import log_prob
from kldiv.samplers import Draws
from kldiv.special import expm1mx


@torch.no_grad()
def variances_of_k3(p: Distribution, q: Distribution, sample: Tensor, event_dims: int = 0) -> tuple[Tensor, Tensor]:
    r"""The variance under p of k3, from samples of both distributions and from those of p alone.

    .. math:: E_p[f^2] = E_m\left[\tfrac pm f^2\right], \ m = \tfrac12 (p + q), \ f = \tfrac qp - 1 - \ln\tfrac qp

    Where q is wider than p, k3 has its variance from rare samples in p's tails, which q has in plenty.

    Args:
        sample: of p, (units, points, \*batch, \*event); as many are drawn of q.
        event_dims: how many trailing dimensions of the batch are independent and summed.
    Returns: the two, of the batch shape without these. ``inf`` for the first where it is infinite in ``float64``.
    Source: Hesterberg 1995 (defensive mixtures).
    """
    of_p = sample.flatten(0, 1)
    batch = of_p.shape[1 : of_p.ndim - len(p.event_shape)]
    of_q = Draws(q, batch, len(of_p), "iid", with_gradient=False)().flatten(0, 1).to(of_p.dtype)
    log_p, log_q = (torch.cat([log_prob(d, of_p), log_prob(d, of_q)]).double() for d in (p, q))
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    # where p has no mass nothing counts, whatever q has
    weight = torch.exp(log_p - log_m).masked_fill(log_p == -torch.inf, 0.0)
    value = expm1mx(log_q - log_p).masked_fill(log_p == -torch.inf, 0.0)
    first, second = (weight * value).mean(0), (weight * value.square()).mean(0)
    seen = value[: len(of_p)].var(0)
    return sum_rightmost((second - first.square()).clamp(min=0), event_dims), sum_rightmost(seen, event_dims)
