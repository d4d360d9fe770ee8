"""Pairs of two families, table by table: what p expects of the few statistics that q's log-density is made of.

.. math:: D_{KL}(p\\|q) = E_p \\ln p - E_p \\ln q

One class a family says what it knows of p; one function a family says what :math:`-E_p\\ln q` is in those terms; a pair
is registered wherever the first knows what the second asks for. Where p's support is not within q's, D is infinite.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    Cauchy,
    ContinuousBernoulli,
    Exponential,
    FisherSnedecor,
    Gamma,
    Gumbel,
    HalfCauchy,
    HalfNormal,
    InverseGamma,
    Kumaraswamy,
    Laplace,
    LogNormal,
    Normal,
    Pareto,
    StudentT,
    Uniform,
    Weibull,
)

from kldiv.exact.dirichlet import beta_concentrations, kl_dirichlet_concentrations
from kldiv.exact.expectations import (
    FAMILIES,
    Expectations,
    OfBeta,
    OfContinuousBernoulli,
    OfGamma,
    OfUniform,
    OfWeibull,
    PositiveExpectations,
    mean_log,
)
from kldiv.exact.gamma import gamma_parameters
from kldiv.exact.registry import CLOSED_FORMS, register_kl
from kldiv.numerics import (
    bregman,
    bregman_lgamma,
    check_broadcast,
    digamma_minus_log,
    expm1mx,
    log_sinc,
    log_sinc_first,
    log_sinc_second,
    non_negative,
    stirling_error,
    xmlog1p,
)

__all__ = [
    "infinite",
    "kl_beta_continuous_bernoulli",
    "kl_beta_uniform",
    "kl_continuous_bernoulli_exponential",
    "kl_continuous_bernoulli_uniform",
    "kl_gamma_weibull",
    "kl_to_gamma",
    "kl_to_gumbel",
    "kl_to_inverse_gamma",
    "kl_to_laplace",
    "kl_to_log_normal",
    "kl_to_normal",
    "kl_to_weibull",
    "kl_uniform_beta",
    "kl_uniform_continuous_bernoulli",
    "kl_uniform_pareto",
    "kl_weibull_gamma",
]


_LOG_2PI = math.log(2 * math.pi)


def kl_to_normal(p: Expectations, q: Normal) -> Tensor:
    r"""From the mean and the variance of p.

    .. math:: E\ln p + \ln\sigma + \tfrac12\ln 2\pi + \frac{\mathrm{Var}\,x + (E x - \mu)^2}{2\sigma^2}

    Source: Kullback & Leibler 1951, with the entropies of Lazo & Rathie 1978.
    """
    loc, scale = q.loc.double(), q.scale.double()
    distance = (p.mean() - loc) / scale
    spread = (p.variance() / scale) / scale + distance * distance
    return p.negative_entropy() + 0.5 * _LOG_2PI + torch.log(scale) + 0.5 * spread


def kl_to_laplace(p: Expectations, q: Laplace) -> Tensor:
    r"""From the mean distance of p's x from q's centre.

    .. math:: E\ln p + \ln 2b + \frac{E|x - \mu|}{b}

    Source: Kullback & Leibler 1951, with the entropies of Lazo & Rathie 1978.
    """
    loc, scale = q.loc.double(), q.scale.double()
    return p.negative_entropy() + math.log(2) + torch.log(scale) + p.absolute(loc) / scale


def kl_to_gumbel(p: Expectations, q: Gumbel) -> Tensor:
    r"""From the cumulant generating function of p.

    .. math:: E\ln p + \ln s + 1 + \varphi(v) + \left[\ln E e^{-x/s} + \tfrac{E x}{s}\right],
              \quad v = \ln E e^{-(x-\mu)/s}, \quad \varphi(u) = e^u - 1 - u

    Source: Kullback & Leibler 1951, with the entropies of Lazo & Rathie 1978.
    """
    loc, scale = q.loc.double(), q.scale.double()
    gap = p.cumulant_gap(1 / scale)
    v = torch.where(gap.isinf(), 0.0, gap) + (loc - p.mean()) / scale
    return p.negative_entropy() + torch.log(scale) + 1 + expm1mx(v) + gap


def kl_to_gamma(p: PositiveExpectations, q: Gamma | Exponential) -> Tensor:
    r"""From E x and E ln x, on the scale of y = ln x.

    .. math:: E\ln p_y + \alpha\,\varphi(v) + \alpha\left[\ln E x - E\ln x\right] + g(\alpha),
              \quad v = \ln\tfrac{\beta\,E x}{\alpha}, \quad g(a) = \ln\Gamma(a) - a\ln a + a

    Source: Kullback & Leibler 1951, with the entropies of Lazo & Rathie 1978.
    """
    return _kl_to_gamma(p, *gamma_parameters(q), 1.0)


def kl_to_inverse_gamma(p: PositiveExpectations, q: InverseGamma) -> Tensor:
    r"""That to a gamma distribution of 1/x.

    .. math:: E\ln p_y + \alpha\,\varphi(v) + \alpha\left[\ln E \tfrac1x + E\ln x\right] + g(\alpha),
              \quad v = \ln\tfrac{\beta\,E (1/x)}{\alpha}, \quad g(a) = \ln\Gamma(a) - a\ln a + a

    Source: Kullback & Leibler 1951, with the entropies of Lazo & Rathie 1978.
    """
    return _kl_to_gamma(p, *gamma_parameters(q), -1.0)


def kl_to_weibull(p: PositiveExpectations, q: Weibull) -> Tensor:
    r"""From E x^k and E ln x, on the scale of y = ln x.

    .. math:: E\ln p_y - \ln k + 1 + \varphi(w) + \left[\ln E x^k - k E\ln x\right],
              \quad w = \ln\frac{E x^k}{\lambda^k}, \quad \varphi(u) = e^u - 1 - u

    Source: Kullback & Leibler 1951, with the entropies of Lazo & Rathie 1978.
    """
    scale, concentration = q.scale.double(), q.concentration.double()
    gap = p.power_gap(concentration)
    w = gap + concentration * (p.log_mean() - torch.log(scale))
    return p.log_negative_entropy() - torch.log(concentration) + 1 + expm1mx(w) + gap


def kl_to_log_normal(p: PositiveExpectations, q: LogNormal) -> Tensor:
    r"""From the mean and the variance of y = ln x.

    .. math:: E\ln p_y + \ln\sigma + \tfrac12\ln 2\pi + \frac{\mathrm{Var}\,y + (E y - \mu)^2}{2\sigma^2}

    Source: Kullback & Leibler 1951, with the entropies of Lazo & Rathie 1978.
    """
    loc, scale = q.loc.double(), q.scale.double()
    distance = (p.log_mean() - loc) / scale
    spread = p.log_variance() / scale.square() + distance * distance
    return p.log_negative_entropy() + 0.5 * _LOG_2PI + torch.log(scale) + 0.5 * spread


@register_kl(Weibull, Gamma)
def kl_weibull_gamma(p: Weibull, q: Gamma) -> Tensor:
    r"""As to any gamma distribution; regrouped where that is close to exponential, as the Weibull one may be.

    .. math:: \varphi(v) + \alpha B(\tfrac1k, 1) + B(\alpha, 1) - (\alpha - 1)(v + \ln k),
              \quad v = \ln\left(\beta\lambda\,\Gamma(1 + \tfrac1k)\right)

    with B the Bregman divergence of the log-gamma function.

    Source: Bauckhage 2013, "Computing the Kullback-Leibler divergence between two generalized gamma distributions".
    """
    of_p, (alpha, beta) = OfWeibull(p), gamma_parameters(q)
    near, c = (alpha - 1).abs() < 0.5, alpha - 1
    v = torch.log(beta) + of_p.log_power(torch.ones((), dtype=alpha.dtype, device=alpha.device))
    k, one = of_p.concentration, torch.ones((), dtype=alpha.dtype, device=alpha.device)
    of_shapes = alpha * bregman_lgamma(1 / k, one, (1 - k) / k) + bregman_lgamma(alpha, one, c)
    close = expm1mx(v) + of_shapes - c * (v + torch.log(k))
    return non_negative(torch.where(near, close, kl_to_gamma(of_p, q)))


@register_kl(Gamma, Weibull)
def kl_gamma_weibull(p: Gamma, q: Weibull) -> Tensor:
    r"""As to any Weibull distribution; regrouped where both may be close to an exponential one.

    .. math:: \varphi(w) + B(\alpha + k, \alpha + 1) + B(1, \alpha) - h(\alpha - 1) + h(k - 1)
              - \frac{(k-1)(\alpha-1)}{\alpha}, \quad w = \ln\frac{E x^k}{\lambda^k}, \quad h(x) = x - \ln(1 + x)

    with B the Bregman divergence of the log-gamma function.

    Source: Bauckhage 2013, "Computing the Kullback-Leibler divergence between two generalized gamma distributions".
    """
    of_p, scale, k = OfGamma(p), q.scale.double(), q.concentration.double()
    alpha, one = of_p.concentration, torch.ones((), dtype=k.dtype, device=k.device)
    near = ((alpha - 1).abs() < 0.5) & ((k - 1).abs() < 0.5)
    c, x = (torch.where(near, value - 1, 0.0) for value in (alpha, k))
    a = 1 + c
    of_power = bregman_lgamma(a + 1 + x, a + 1, x)
    digamma = digamma_minus_log(a + 1) + torch.log1p(c + 1)
    w = of_power + digamma * x + torch.log1p(c) - k * torch.log(of_p.rate * scale)
    close = expm1mx(torch.where(near, w, 0.0)) + of_power + bregman_lgamma(one, a, -c)
    close = close - xmlog1p(c) + xmlog1p(x) - x * c / a
    return non_negative(torch.where(near, close, kl_to_weibull(of_p, q)))


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
    return _to_uniform(bregman(zero, logits, -logits, log_sinc, log_sinc_first, log_sinc_second), q)


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


@register_kl(Uniform, Pareto)
def kl_uniform_pareto(p: Uniform, q: Pareto) -> Tensor:
    r"""From E ln x, infinite where p's interval starts before m.

    .. math:: E\ln p_y - \ln\alpha + \alpha(E\ln x - \ln m), \quad y = \ln x

    Source: Kullback & Leibler 1951.
    """
    scale, alpha = q.scale.double(), q.alpha.double()
    of_p = OfUniform(p)
    value = of_p.log_negative_entropy() - torch.log(alpha) + alpha * (of_p.log_mean() - torch.log(scale))
    return value.masked_fill(of_p.low < scale, torch.inf)


def infinite(p: Any, q: Any) -> Tensor:
    r"""Infinite: p has mass where q has none, whatever their parameters.

    .. math:: \infty

    Source: Kullback & Leibler 1951.
    """
    shape = check_broadcast(p=p.batch_shape, q=q.batch_shape)
    return torch.full(shape, torch.inf, dtype=torch.float64, device=_device(p))


def _kl_to_gamma(p: PositiveExpectations, alpha: Tensor, beta: Tensor, sign: float) -> Tensor:
    power = torch.full((), sign, dtype=alpha.dtype, device=alpha.device)
    v = torch.log(beta) - torch.log(alpha) + p.log_power(power)
    return p.log_negative_entropy() + alpha * (expm1mx(v) + p.power_gap(power)) + stirling_error(alpha)


def _to_uniform(to_unit: Tensor, q: Uniform) -> Tensor:
    low, high = q.low.double(), q.high.double()
    outside = (low > 0) | (high < 1)
    width = torch.log1p(torch.where(outside, 0.0, (high - 1) - low))
    return (to_unit + width).masked_fill(outside, torch.inf)


def _minus_log_width(low: Tensor, high: Tensor) -> Tensor:
    # of an interval within (0, 1); elsewhere something finite
    return -torch.log1p(-(low + (1 - high)).clamp(min=-1e300, max=1 - 1e-16))


def _device(distribution: Any) -> torch.device:
    while isinstance(getattr(distribution, "base_dist", None), torch.distributions.Distribution):
        distribution = distribution.base_dist
    tensors = (value for value in distribution.__dict__.values() if isinstance(value, Tensor))
    return next(tensors, torch.zeros(())).device


# what each family of q asks for; the first group is on the whole line, the second needs a positive p
_ON_THE_LINE: dict[type, tuple[Any, tuple[str, ...]]] = {
    Normal: (kl_to_normal, ("mean", "variance", "negative_entropy")),
    Laplace: (kl_to_laplace, ("absolute", "negative_entropy")),
    Gumbel: (kl_to_gumbel, ("mean", "cumulant_gap", "negative_entropy")),
}
_ON_THE_HALF_LINE: dict[type, tuple[Any, tuple[str, ...]]] = {
    Gamma: (kl_to_gamma, ("power_gap", "log_mean", "log_negative_entropy")),
    Exponential: (kl_to_gamma, ("power_gap", "log_mean", "log_negative_entropy")),
    InverseGamma: (kl_to_inverse_gamma, ("power_gap", "log_mean", "log_negative_entropy")),
    Weibull: (kl_to_weibull, ("power_gap", "log_mean", "log_negative_entropy")),
    LogNormal: (kl_to_log_normal, ("log_mean", "log_variance", "log_negative_entropy")),
}

# these know of ln x but of no other power of x than the first
_FIRST_POWER_ALONE = (Uniform, Beta)


def _register_pairs() -> None:
    for type_p, family in FAMILIES.items():
        asked = dict(_ON_THE_LINE)
        if issubclass(family, PositiveExpectations):
            asked |= _ON_THE_HALF_LINE
        for type_q, (form, names) in asked.items():
            if type_p is type_q or (type_p, type_q) in CLOSED_FORMS:
                continue
            if type_p in _FIRST_POWER_ALONE and type_q in (InverseGamma, Weibull):
                continue
            base = PositiveExpectations if type_q in _ON_THE_HALF_LINE else Expectations
            if all(getattr(family, name) is not getattr(base, name) for name in names):
                register_kl(type_p, type_q)(_from(family, form, type_p is Uniform and type_q in _ON_THE_HALF_LINE))


def _from(family: type[Expectations], form: Any, masked: bool) -> Any:
    def closed_form(p: Any, q: Any) -> Tensor:
        value = non_negative(form(family(p), q))
        return value.masked_fill(p.low < 0, torch.inf) if masked else value

    closed_form.__name__, closed_form.__doc__, closed_form.__module__ = form.__name__, form.__doc__, form.__module__
    return closed_form


def _register_infinite() -> None:
    line = (Normal, Laplace, Gumbel, Cauchy, StudentT)
    half_line = (Gamma, Exponential, InverseGamma, LogNormal, HalfNormal, HalfCauchy, Weibull, FisherSnedecor)
    unit = (Beta, ContinuousBernoulli, Kumaraswamy)
    for wider, narrower in (
        (line, (*half_line, Pareto, *unit, Uniform)),
        (half_line, (Pareto, *unit, Uniform)),
        ((Pareto,), (*unit, Uniform)),
        (unit, (Pareto,)),
    ):
        for type_p in wider:
            for type_q in narrower:
                register_kl(type_p, type_q)(infinite)


_register_pairs()
_register_infinite()
