"""Continuous Bernoulli distributions."""

import torch
from torch import Tensor
from torch.distributions import ContinuousBernoulli

from kldiv.distributions import as_logits, given
from kldiv.exact.registry import register_kl
from kldiv.numerics import bregman, log_ratio, log_sinc_second, log_sinc_tail, log_sinc_tail_first

__all__ = [
    "kl_continuous_bernoulli",
    "kl_of_logits",
]


@register_kl(ContinuousBernoulli, ContinuousBernoulli)
def kl_continuous_bernoulli(p: ContinuousBernoulli, q: ContinuousBernoulli) -> Tensor:
    r"""Of two continuous Bernoulli distributions, densities proportional to :math:`e^{\eta x}` on [0, 1].

    .. math:: B_A(\eta_q, \eta_p), \quad A(\eta) = \ln\frac{e^\eta - 1}{\eta}

    with :math:`\eta` the logits and :math:`B_A` the Bregman divergence, as of any exponential family.

    Source: Loaiza-Ganem & Cunningham 2019; Wainwright & Jordan 2008, section 5.2.2.
    """
    (kind_p, value_p), (kind_q, value_q) = given(p), given(q)
    if kind_p == kind_q == "probs":
        excess = log_ratio(value_q, value_p) - log_ratio(1 - value_q, 1 - value_p, value_p - value_q)
    else:
        excess = as_logits(kind_q, value_q) - as_logits(kind_p, value_p)
    logits_p, logits_q = as_logits(kind_p, value_p), as_logits(kind_q, value_q)
    return kl_of_logits(logits_p, logits_q, excess)


def kl_of_logits(p: Tensor, q: Tensor, excess: Tensor) -> Tensor:
    """From logits in ``float64``, and what q's exceed p's by."""
    # of the log-normaliser less |eta|/2, whose own divergence is |q| between signs and 0 within one
    value = bregman(q, p, excess, log_sinc_tail, log_sinc_tail_first, log_sinc_second)
    near = excess.abs() < 1 + 0.25 * p.abs()  # where it is an integral of second derivatives, which is all of it
    return torch.where(near | ((p < 0) == (q < 0)), value, value + q.abs())
