"""Distributions on the unit interval to one another: beta, continuous Bernoulli and uniform."""

import torch
from torch import Tensor
from torch.distributions import Beta, ContinuousBernoulli, Exponential, Uniform

from kldiv.exact.continuous_bernoulli import kl_of_logits
from kldiv.exact.dirichlet import beta_concentrations, kl_dirichlet_concentrations
from kldiv.exact.registry import register_kl
from kldiv.exact.two_families.interval import OfBeta, OfContinuousBernoulli, mean_log
from kldiv.numerics import log_sinc, non_negative

__all__ = [
    "kl_beta_continuous_bernoulli",
    "kl_beta_uniform",
    "kl_continuous_bernoulli_exponential",
    "kl_continuous_bernoulli_uniform",
    "kl_uniform_beta",
    "kl_uniform_continuous_bernoulli",
]


@register_kl(Beta, Uniform)
def kl_beta_uniform(p: Beta, q: Uniform) -> Tensor:
    r"""That to Beta(1, 1) and the width of q's interval, where that holds (0, 1); else infinite.

    .. math:: D_{KL}(p\|\mathrm{Beta}(1,1)) + \ln(b - a)

    Source: Kullback & Leibler 1951.
    """
    return _to_uniform(OfBeta(p).negative_entropy(), q)


@register_kl(ContinuousBernoulli, Uniform)
def kl_continuous_bernoulli_uniform(p: ContinuousBernoulli, q: Uniform) -> Tensor:
    r"""That to logits of 0 and the width of q's interval, where that holds (0, 1); else infinite.

    .. math:: B_A(0, \eta) + \ln(b - a), \quad A(\eta) = \ln\frac{e^\eta - 1}{\eta}

    Source: Loaiza-Ganem & Cunningham 2019.
    """
    logits = OfContinuousBernoulli(p).logits
    zero = torch.zeros_like(logits)
    return _to_uniform(kl_of_logits(logits, zero, -logits), q)


@register_kl(ContinuousBernoulli, Exponential)
def kl_continuous_bernoulli_exponential(p: ContinuousBernoulli, q: Exponential) -> Tensor:
    r"""From the mean of p.

    .. math:: E\ln p - \ln\beta + \beta\,E x

    Source: Loaiza-Ganem & Cunningham 2019.
    """
    of_p, rate = OfContinuousBernoulli(p), q.rate.double()
    return of_p.negative_entropy() - torch.log(rate) + rate * of_p.mean()


@register_kl(Beta, ContinuousBernoulli)
def kl_beta_continuous_bernoulli(p: Beta, q: ContinuousBernoulli) -> Tensor:
    r"""From the mean of p.

    .. math:: D_{KL}(p\|\mathrm{Beta}(1,1)) + \ln\frac{\sinh(\eta/2)}{\eta/2} - \eta\left(E x - \tfrac12\right)

    Source: Loaiza-Ganem & Cunningham 2019.
    """
    of_p, logits = OfBeta(p), OfContinuousBernoulli(q).logits
    skew = 0.5 * (of_p.zero - of_p.one) / (of_p.one + of_p.zero)  # 1/2 - E x
    return non_negative(of_p.negative_entropy() + log_sinc(logits) + logits * skew)


@register_kl(Uniform, ContinuousBernoulli)
def kl_uniform_continuous_bernoulli(p: Uniform, q: ContinuousBernoulli) -> Tensor:
    r"""From the mean of p, infinite where its interval is not within (0, 1).

    .. math:: -\ln(b - a) + \ln\frac{\sinh(\eta/2)}{\eta/2} - \eta\left(\tfrac{a+b}2 - \tfrac12\right)

    Source: Loaiza-Ganem & Cunningham 2019.
    """
    low, high, logits = p.low.double(), p.high.double(), OfContinuousBernoulli(q).logits
    skew = 0.5 * ((1 - high) - low)
    value = non_negative(_minus_log_width(low, high) + log_sinc(logits) + logits * skew)
    return value.masked_fill((low < 0) | (high > 1), torch.inf)


@register_kl(Uniform, Beta)
def kl_uniform_beta(p: Uniform, q: Beta) -> Tensor:
    r"""From E ln x and E ln(1 - x), infinite where p's interval is not within (0, 1).

    .. math:: D_{KL}(\mathrm{Beta}(1,1)\|q) - \ln(b - a) - (\alpha-1)(E\ln x + 1) - (\beta-1)(E\ln(1-x) + 1)

    Source: Kullback & Leibler 1951.
    """
    low, high = p.low.double(), p.high.double()
    outside = (low < 0) | (high > 1)
    low, high = low.masked_fill(outside, 0.0), high.masked_fill(outside, 1.0)
    concentrations = beta_concentrations(q)
    one, zero = concentrations.unbind(-1)
    whole = kl_dirichlet_concentrations(torch.ones_like(concentrations), concentrations)
    logs, logs_of_rest = (mean_log(a, b, high - low) + 1 for a, b in ((low, high), (1 - high, 1 - low)))
    value = whole + _minus_log_width(low, high) - (one - 1) * logs - (zero - 1) * logs_of_rest
    return non_negative(value).masked_fill(outside, torch.inf)


def _to_uniform(to_unit: Tensor, q: Uniform) -> Tensor:
    low, high = q.low.double(), q.high.double()
    outside = (low > 0) | (high < 1)
    width = torch.log1p(torch.where(outside, 0.0, (high - 1) - low))
    return (to_unit + width).masked_fill(outside, torch.inf)


def _minus_log_width(low: Tensor, high: Tensor) -> Tensor:
    # of an interval within (0, 1); elsewhere something finite
    return -torch.log1p(-(low + (1 - high)).clamp(min=-1e300, max=1 - 1e-16))
