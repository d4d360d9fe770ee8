"""Continuous Bernoulli distributions."""

from torch import Tensor
from torch.distributions import ContinuousBernoulli

from kldiv.distributions import as_logits, given
from kldiv.exact.registry import register_kl
from kldiv.numerics import bregman, log_ratio, log_sinc, log_sinc_first, log_sinc_second

__all__ = [
    "kl_continuous_bernoulli",
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
    return bregman(logits_q, logits_p, excess, log_sinc, log_sinc_first, log_sinc_second)
