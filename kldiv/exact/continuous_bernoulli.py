"""Continuous Bernoulli distributions."""

import torch
from torch import Tensor
from torch.distributions import ContinuousBernoulli

from kldiv.exact import register_kl
from kldiv.exact.discrete import as_logits, given
from kldiv.special import bregman, log_ratio


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


def log_sinc(x: Tensor) -> Tensor:
    """ln(sinh(x/2) / (x/2)): the log-normaliser of a continuous Bernoulli distribution, less x/2."""
    x = x.abs()
    small = x < 0.5
    v, w = torch.where(small, x, 0.0), torch.where(small, 1.0, x)
    square = v * v
    series = torch.zeros_like(v)
    for coefficient in reversed(_LOG_SINC):
        series = (series + coefficient) * square
    return torch.where(small, series, 0.5 * w + torch.log(-torch.expm1(-w)) - torch.log(w))


def log_sinc_first(x: Tensor) -> Tensor:
    """The derivative of :func:`log_sinc`: the mean of a continuous Bernoulli distribution, less 1/2."""
    small = x.abs() < 0.5
    v, w = torch.where(small, x, 0.0), torch.where(small, 1.0, x)
    square = v * v
    series = torch.zeros_like(v)
    for k in range(len(_LOG_SINC), 0, -1):
        series = series * square + 2 * k * _LOG_SINC[k - 1]
    return torch.where(small, series * v, 0.5 / torch.tanh(0.5 * w) - 1 / w)


def log_sinc_second(x: Tensor) -> Tensor:
    """The second derivative of :func:`log_sinc`: the variance of a continuous Bernoulli distribution."""
    x = x.abs()
    small = x < 1
    v, w = torch.where(small, x, 0.0), torch.where(small, 2.0, x)
    square = v * v
    series = torch.zeros_like(v)
    for k in range(len(_LOG_SINC), 0, -1):
        series = series * square + 2 * k * (2 * k - 1) * _LOG_SINC[k - 1]
    # 1 / (4 sinh^2(w/2)), which does not overflow
    decay = torch.exp(-w) / torch.expm1(-w).square()
    return torch.where(small, series, 1 / (w * w) - decay)


# B_2k / (2k (2k)!), the coefficients of x^2k
_LOG_SINC = (
    1 / 24,
    -1 / 2880,
    1 / 181440,
    -1 / 9676800,
    1 / 479001600,
    -691 / 15692092416000,
    1 / 1046139494400,
    -3617 / 170729965486080000,
    43867 / 91963695909076992000,
    -174611 / 16057153253965824000000,
)
