"""Closed forms to each family q, from the expectations under p of the statistics in q's log-density.

.. math:: D_{KL}(p\\|q) = E_p \\ln p - E_p \\ln q
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributions import Exponential, Gamma, Gumbel, InverseGamma, Laplace, LogNormal, Normal, Weibull

from kldiv.exact.gamma import gamma_parameters
from kldiv.exact.registry import ClosedForm, register_kl
from kldiv.exact.two_families.expectations import Expectations, PositiveExpectations
from kldiv.numerics import expm1mx, non_negative, stirling_error

__all__ = [
    "closed_forms",
    "kl_to_gamma",
    "kl_to_gumbel",
    "kl_to_inverse_gamma",
    "kl_to_laplace",
    "kl_to_log_normal",
    "kl_to_normal",
    "kl_to_weibull",
    "to_family",
]


_LOG_2PI = math.log(2 * math.pi)

_Family = TypeVar("_Family", bound=type[Expectations])
_Form = Callable[[Any, Any], Tensor]

_TO: dict[type, _Form] = {}
"""The closed form to each family q, a function of the expectations under p and of q."""


def to_family(type_q: type) -> Callable[[_Form], _Form]:
    """Decorator: the function is the closed form to the family q."""

    def enter(form: _Form) -> _Form:
        _TO[type_q] = form
        return form

    return enter


@to_family(Normal)
def kl_to_normal(p: Expectations, q: Normal) -> Tensor:
    r"""From the mean and the variance of p.

    .. math:: E\ln p + \ln\sigma + \tfrac12\ln 2\pi + \frac{\mathrm{Var}\,x + (E x - \mu)^2}{2\sigma^2}

    Source: Kullback & Leibler 1951, with the entropies of Lazo & Rathie 1978.
    """
    loc, scale = q.loc.double(), q.scale.double()
    distance = p.mean_from(loc) / scale
    spread = (p.variance() / scale) / scale + distance * distance
    return p.negative_entropy() + 0.5 * _LOG_2PI + torch.log(scale) + 0.5 * spread


@to_family(Laplace)
def kl_to_laplace(p: Expectations, q: Laplace) -> Tensor:
    r"""From the mean distance of p's x from q's centre.

    .. math:: E\ln p + \ln 2b + \frac{E|x - \mu|}{b}

    Source: Kullback & Leibler 1951, with the entropies of Lazo & Rathie 1978.
    """
    loc, scale = q.loc.double(), q.scale.double()
    return p.negative_entropy() + math.log(2) + torch.log(scale) + p.absolute(loc) / scale


@to_family(Gumbel)
def kl_to_gumbel(p: Expectations, q: Gumbel) -> Tensor:
    r"""From the cumulant generating function of p.

    .. math:: E\ln p + \ln s + 1 + \varphi(v) + \left[\ln E e^{-x/s} + \tfrac{E x}{s}\right],
              \quad v = \ln E e^{-(x-\mu)/s}, \quad \varphi(u) = e^u - 1 - u

    Source: Kullback & Leibler 1951, with the entropies of Lazo & Rathie 1978.
    """
    loc, scale = q.loc.double(), q.scale.double()
    gap = p.cumulant_gap(1 / scale)
    v = torch.where(gap.isinf(), 0.0, gap) - p.mean_from(loc) / scale
    far, cumulant = gap > 1, p.cumulant(1 / scale)  # where the gap and the mean may cancel
    if cumulant is not None:
        v = torch.where(far, cumulant + loc / scale, torch.where(far, 0.0, v))
    return p.negative_entropy() + torch.log(scale) + 1 + expm1mx(v) + gap


@to_family(Gamma)
@to_family(Exponential)
def kl_to_gamma(p: PositiveExpectations, q: Gamma | Exponential) -> Tensor:
    r"""From E x and E ln x, on the scale of y = ln x.

    .. math:: E\ln p_y + \alpha\,\varphi(v) + \alpha\left[\ln E x - E\ln x\right] + g(\alpha),
              \quad v = \ln\tfrac{\beta\,E x}{\alpha}, \quad g(a) = \ln\Gamma(a) - a\ln a + a

    Source: Kullback & Leibler 1951, with the entropies of Lazo & Rathie 1978.
    """
    return _kl_to_gamma(p, *gamma_parameters(q), 1.0)


@to_family(InverseGamma)
def kl_to_inverse_gamma(p: PositiveExpectations, q: InverseGamma) -> Tensor:
    r"""That to a gamma distribution of 1/x.

    .. math:: E\ln p_y + \alpha\,\varphi(v) + \alpha\left[\ln E \tfrac1x + E\ln x\right] + g(\alpha),
              \quad v = \ln\tfrac{\beta\,E (1/x)}{\alpha}, \quad g(a) = \ln\Gamma(a) - a\ln a + a

    Source: Kullback & Leibler 1951, with the entropies of Lazo & Rathie 1978.
    """
    return _kl_to_gamma(p, *gamma_parameters(q), -1.0)


@to_family(Weibull)
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


@to_family(LogNormal)
def kl_to_log_normal(p: PositiveExpectations, q: LogNormal) -> Tensor:
    r"""From the mean and the variance of y = ln x.

    .. math:: E\ln p_y + \ln\sigma + \tfrac12\ln 2\pi + \frac{\mathrm{Var}\,y + (E y - \mu)^2}{2\sigma^2}

    Source: Kullback & Leibler 1951, with the entropies of Lazo & Rathie 1978.
    """
    loc, scale = q.loc.double(), q.scale.double()
    distance = (p.log_mean() - loc) / scale
    spread = p.log_variance() / scale.square() + distance * distance
    return p.log_negative_entropy() + 0.5 * _LOG_2PI + torch.log(scale) + 0.5 * spread


def _kl_to_gamma(p: PositiveExpectations, alpha: Tensor, beta: Tensor, sign: float) -> Tensor:
    power = torch.full((), sign, dtype=alpha.dtype, device=alpha.device)
    log_moment = torch.log(beta) + p.log_power(power)
    v = torch.log(beta) - torch.log(alpha) + p.log_power(power)
    # alpha e^v does not depend on alpha: far apart its two derivatives would cancel
    far = v > 1
    spread = torch.exp(torch.where(far, log_moment, 0.0)) - alpha * (1 + v.clamp(max=1e30))
    spread = torch.where(far, spread, alpha * expm1mx(torch.where(far, 0.0, v)))
    return p.log_negative_entropy() + spread + alpha * p.power_gap(power) + stirling_error(alpha)


def closed_forms(type_p: type, *, to: tuple[type, ...]) -> Callable[[_Family], _Family]:
    """Class decorator: registers the closed forms from p to other families, by the expectations that the class has.

    Args:
        type_p: the family p, under which the class takes expectations.
        to: the families q. The class has every expectation that ``kl_to_...`` of q calls.
    """

    def enter(expectations: _Family) -> _Family:
        for type_q in to:
            register_kl(type_p, type_q)(_closed_form(expectations, _TO[type_q]))
        return expectations

    return enter


def _closed_form(expectations: type[Expectations], form: _Form) -> ClosedForm:
    def closed_form(p: Any, q: Any) -> Tensor:
        of_p = expectations(p)
        value = non_negative(form(of_p, q))
        outside = of_p.outside(q)
        return value if outside is None else value.masked_fill(outside, torch.inf)

    # the page of closed forms shows the formula of kl_to_...
    closed_form.__name__, closed_form.__doc__, closed_form.__module__ = form.__name__, form.__doc__, form.__module__
    return closed_form
