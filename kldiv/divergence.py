"""kl_divergence(p, q): finds the closed form for two distributions, ours or torch's."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)
from torch.distributions import kl as torch_kl

from kldiv.distributions import DiagonalNormal, factorise, independent_dims, sum_rightmost, take_off, widened
from kldiv.exact import (
    CLOSED_FORMS,
    ClosedForm,
    bounded,
    check_once,
    continuous_bernoulli,
    dirichlet,
    discrete,
    gamma,
    gumbel,
    kumaraswamy,
    location_scale,
    multivariate_normal,
    no_form_for_these,
    normal,
    register_kl,
    two_families,
    von_mises,
)
from kldiv.functional import check_broadcast, kl_normal
from kldiv.spherical import HypersphericalUniform, PowerSpherical

__all__ = ["kl_divergence", "register_kl"]

FAMILIES = (
    normal,
    location_scale,
    gamma,
    gumbel,
    dirichlet,
    kumaraswamy,
    von_mises,
    bounded,
    continuous_bernoulli,
    discrete,
    multivariate_normal,
    two_families,
)
"""The modules whose closed forms entered themselves into the registry when they were imported."""


def kl_divergence(p: Distribution, q: Distribution) -> Tensor:
    r"""D_KL(p||q), exactly, in nats: the expectation of ln p - ln q under the first argument.

    The truth is that of the parameters on the objects, read as real numbers and used as they were given: logits,
    probabilities, log-variances, covariances. Computed in ``float64``, never negative and never NaN; ``inf`` where q
    has no mass and p has some. Relative errors are those of the result's dtype, and below 1e-12 in ``float64`` (1e-10
    where special functions are needed), however close the two are. Only where one is given by what the other's
    logarithm is (probabilities and logits, standard deviations and log-variances) a logarithm has to be rounded, which
    costs 1e-16 over the relative distance of the two.

    Args:
        p, q: distributions whose batch shapes broadcast together, of one event shape. In a VAE the posterior comes
            first and the prior second.
    Returns: the broadcast batch shape, in the widest dtype of the parameters, ``float32`` at least.
    Raises:
        NotImplementedError: no closed form is known for the two types, or for these parameters of theirs; the message
            names both types and a call that works. Whether a form is one for these parameters (equal counts, equal
            transforms) is looked up once, which waits for the device, unless either has ``validate_args=False``.
        TypeError: p or q is no distribution.
        ValueError: batch shapes that do not broadcast or event shapes that differ; the message holds both.

    >>> import torch
    >>> kl_divergence(Normal(torch.tensor([0.0, 1e-4]), 1.0), Normal(0.0, 1.0))
    tensor([0.0000e+00, 5.0000e-09])
    """
    for name, given in (("p", p), ("q", q)):
        if not isinstance(given, Distribution):
            raise TypeError(
                f"kl_divergence(p, q) takes two distributions, and {name} is a {type(given).__name__}. For tensors "
                "write kldiv.functional.kl_normal, kl_bernoulli or kl_categorical, for tables of probabilities "
                "kldiv.tables.relative_entropy, or wrap them: kldiv.DiagonalNormal(mean, log_var)"
            )
    batch_shape = check_broadcast(**{"p.batch_shape": p.batch_shape, "q.batch_shape": q.batch_shape})
    closed_form = find_closed_form(type(p), type(q))
    if p.event_shape != q.event_shape and closed_form not in _OF_UNEQUAL_EVENTS:
        raise ValueError(
            f"p has the event shape {tuple(p.event_shape)} and q {tuple(q.event_shape)} (batch shapes "
            f"{tuple(p.batch_shape)} and {tuple(q.batch_shape)}): one event must be the same for both. "
            "torch.distributions.Independent(distribution, dims) makes trailing batch dimensions part of the event"
        )
    dtype = torch.promote_types(parameter_dtype(p), parameter_dtype(q))
    if closed_form is None:
        # a scalar given by its log-variance has what a Normal has
        closed_form = find_closed_form(*(Normal if _is_scalar_normal(d) else type(d) for d in (p, q)))
        if closed_form is None:
            raise NotImplementedError(_no_closed_form(p, q))
        p, q = (_with_scale(d) if _is_scalar_normal(d) else d for d in (p, q))
    ours = closed_form.__module__.startswith("kldiv.")
    if closed_form.__module__ == torch_kl.__name__:
        # torch's closed forms compute in the dtype they are given, and some forget to broadcast
        parts = (widened(p, torch.float64), widened(q, torch.float64))
        value = _call(closed_form, *(d if d.batch_shape == batch_shape else d.expand(batch_shape) for d in parts))
        ours = True
    else:
        value = _call(closed_form, p, q)
    if ours:
        value = value.to(dtype)
    return value if value.shape == batch_shape else value.expand(batch_shape)


def _is_scalar_normal(distribution: Distribution) -> bool:
    return type(distribution) is DiagonalNormal and not distribution.event_shape


def _with_scale(distribution: Any) -> Normal:
    scale = torch.exp(0.5 * distribution.log_var.double())
    return Normal(distribution.mean.double(), scale, validate_args=False)


def parameter_dtype(distribution: Distribution) -> torch.dtype:
    """The widest dtype of the distribution's parameters, ``float32`` at least."""
    dtype = torch.float32
    for value in distribution.__dict__.values():
        if isinstance(value, Tensor) and value.is_floating_point():
            dtype = torch.promote_types(dtype, value.dtype)
        elif isinstance(value, Distribution):
            dtype = torch.promote_types(dtype, parameter_dtype(value))
    return dtype


def _call(closed_form: ClosedForm, p: Distribution, q: Distribution) -> Tensor:
    try:
        return closed_form(p, q)
    except NotImplementedError as error:  # some pairs have a form for some parameters only
        reason = f"{error}. " if str(error) else ""
        raise NotImplementedError(reason + _no_closed_form(p, q)) from error


def find_closed_form(type_p: type, type_q: type) -> ClosedForm | None:
    """The function of the most specific pair in our registry and torch's; ``None`` where neither has one."""
    for left in type_p.__mro__:
        for right in type_q.__mro__:
            for registry in (CLOSED_FORMS, torch_kl._KL_REGISTRY):  # ours first: it keeps ties
                if (left, right) in registry:
                    closed_form: ClosedForm = registry[left, right]
                    return closed_form
    return None


def is_registered_by_user(p: Distribution, q: Distribution) -> bool:
    """Whether the closed form of the pair is neither ours nor torch's: then the two are not to be taken apart."""
    closed_form = find_closed_form(type(p), type(q))
    return closed_form is not None and closed_form.__module__.split(".")[0] not in ("kldiv", "torch")


def _no_closed_form(p: Distribution, q: Distribution) -> str:
    types = f"{type(p).__name__}, {type(q).__name__}"
    if _is_continuous_scalar(p) and _is_continuous_scalar(q):
        otherwise = "Integrate it, kldiv.kl_quadrature(p, q), or register"
    elif isinstance(p, MixtureSameFamily) or isinstance(q, MixtureSameFamily):
        otherwise = "Estimate it, kldiv.estimate_kl(p, q, num_samples=64), bound it, kldiv.kl_bounds(p, q), or register"
    else:
        otherwise = "Estimate it, kldiv.estimate_kl(p, q, num_samples=64), or register"
    return (
        f"No closed form of D_KL({type(p).__name__} || {type(q).__name__}) is known. {otherwise} one: "
        f"@kldiv.register_kl({types})"
    )


def _is_continuous_scalar(distribution: Distribution) -> bool:
    support = getattr(type(distribution), "support", None)
    if distribution.event_shape or support is None:
        return False
    try:
        return not distribution.support.is_discrete  # type: ignore[union-attr]
    except NotImplementedError:
        return False


@register_kl(Independent, Independent)
def kl_independent(p: Any, q: Any) -> Tensor:
    r"""The sum over dimensions that are independent under both.

    .. math:: \sum_i D_{KL}(p_i\|q_i)

    Source: additivity, Kullback 1959, theorem 2.1.
    """
    dims = min(independent_dims(p), independent_dims(q))
    wrapped_in_vain = any(isinstance(d, Independent) and not d.reinterpreted_batch_ndims for d in (p, q))
    if dims == 0 and not wrapped_in_vain:
        raise no_form_for_these(p, q)
    return sum_rightmost(kl_divergence(take_off(p, dims), take_off(q, dims)), dims)


@register_kl(TransformedDistribution, TransformedDistribution)
def kl_transformed(p: TransformedDistribution, q: TransformedDistribution) -> Tensor:
    r"""Of the base distributions, where both go through the same invertible transforms.

    .. math:: D_{KL}(p\|q) = D_{KL}(p_0\|q_0)

    That the transforms are the same is looked up once, unless ``validate_args`` is False. Then they are trusted to be,
    but not where parameters of a family are inside, as the Kumaraswamy distribution's are.

    Source: invariance, Kullback & Leibler 1951, theorem 4.1.
    """
    same = len(p.transforms) == len(q.transforms)
    of_families = type(p) is not TransformedDistribution or type(q) is not TransformedDistribution
    for left, right in zip(p.transforms, q.transforms, strict=False):
        if not (left.bijective and right.bijective):
            raise no_form_for_these(p, q, f"{left} and {right}, which are not both invertible")
        if left is not right:
            holds_parameters = any(isinstance(value, Tensor) for value in left.__dict__.values())
            trusted = type(left) is type(right) and not (of_families and holds_parameters)
            same = same and (left == right if check_once(p, q) else trusted)
    if not same:
        raise no_form_for_these(p, q, "unequal transforms")
    dims = len(p.event_shape) - len(p.base_dist.event_shape)
    return sum_rightmost(kl_divergence(p.base_dist, q.base_dist), dims)


def kl_diagonal_normals(p: DiagonalNormal, q: DiagonalNormal) -> Tensor:
    r"""Of normal distributions given by log-variances.

    .. math:: \tfrac12\sum_i\left[\varphi(\lambda_{p,i} - \lambda_{q,i})
              + (\mu_{p,i}-\mu_{q,i})^2 e^{-\lambda_{q,i}}\right], \quad \varphi(u) = e^u - 1 - u

    Source: Kingma & Welling 2014, appendix B.
    """
    return sum_rightmost(kl_normal(p.mean, p.log_var, q.mean, q.log_var), p.event_dim)


def kl_diagonal_normal_to_normal(p: DiagonalNormal, q: Normal) -> Tensor:
    r"""Of scalars, one given by its log-variance.

    .. math:: \tfrac12\left[\varphi(\lambda_p - 2\ln\sigma_q) + \left(\tfrac{\mu_p-\mu_q}{\sigma_q}\right)^2\right]

    Source: Kingma & Welling 2014, appendix B.
    """
    return kl_normal(p.mean, p.log_var, q.loc.double(), normal.log_variance(q.scale))


def kl_normal_to_diagonal_normal(p: Normal, q: DiagonalNormal) -> Tensor:
    r"""Of scalars, one given by its log-variance.

    .. math:: \tfrac12\left[\varphi(2\ln\sigma_p - \lambda_q) + (\mu_p-\mu_q)^2 e^{-\lambda_q}\right]

    Source: Kingma & Welling 2014, appendix B.
    """
    return kl_normal(p.loc.double(), normal.log_variance(p.scale), q.mean, q.log_var)


def kl_with_full_covariance(p: Distribution, q: Distribution) -> Tensor:
    r"""Of two normal distributions, independent dimensions being a diagonal Cholesky factor.

    .. math:: \tfrac12\left[\sum_i \varphi(2\ln(1 + F_{ii})) + \sum_{i>j} F_{ij}^2
              + \left|L_q^{-1}(\mu_p - \mu_q)\right|^2\right], \quad F = L_q^{-1} L_p - 1

    Source: Kullback 1959, chapter 9.
    """
    return multivariate_normal.kl_multivariate_normal(*(_with_full_covariance(d, p, q) for d in (p, q)))


def _with_full_covariance(distribution: Distribution, p: Distribution, q: Distribution) -> Distribution:
    if isinstance(distribution, (MultivariateNormal, LowRankMultivariateNormal)):
        return distribution
    scalars = factorise(distribution)
    if isinstance(scalars, DiagonalNormal):
        mean, scale = scalars.mean, torch.exp(0.5 * scalars.log_var.double())
    elif isinstance(scalars, Normal):
        mean, scale = scalars.loc, scalars.scale.double()
    else:
        raise no_form_for_these(p, q)
    return MultivariateNormal(mean.double(), scale_tril=torch.diag_embed(scale), validate_args=False)


def kl_uniform_spheres(p: HypersphericalUniform, q: HypersphericalUniform) -> Tensor:
    r"""Zero: there is one uniform distribution on a sphere.

    .. math:: 0

    Source: Kullback & Leibler 1951.
    """
    shape = check_broadcast(p=p.batch_shape, q=q.batch_shape)
    return torch.zeros(shape, dtype=torch.float64, device=p.mean.device)


def kl_power_spherical_to_uniform(p: PowerSpherical, q: HypersphericalUniform) -> Tensor:
    r"""Of the beta distributions of (1 + m.x)/2; all else is uniform in both.

    .. math:: D_{KL}\left(\mathrm{Beta}(b + \kappa, b) \,\|\, \mathrm{Beta}(b, b)\right), \quad b = \tfrac{d-1}2

    Source: De Cao & Aziz 2020.
    """
    kappa = p.concentration.double()
    half = torch.full_like(kappa, 0.5 * (p.event_shape[-1] - 1))
    excess = torch.stack([-kappa, torch.zeros_like(kappa)], -1)
    return dirichlet.kl_dirichlet_concentrations(
        torch.stack([half + kappa, half], -1), torch.stack([half, half], -1), excess
    )


_OF_UNEQUAL_EVENTS = (discrete.kl_categoricals,)

_PAIRS: dict[tuple[type[Distribution], type[Distribution]], ClosedForm] = {
    (DiagonalNormal, DiagonalNormal): kl_diagonal_normals,
    (DiagonalNormal, Normal): kl_diagonal_normal_to_normal,
    (Normal, DiagonalNormal): kl_normal_to_diagonal_normal,
    (DiagonalNormal, Independent): kl_independent,
    (Independent, DiagonalNormal): kl_independent,
    (PowerSpherical, HypersphericalUniform): kl_power_spherical_to_uniform,
    (HypersphericalUniform, HypersphericalUniform): kl_uniform_spheres,
}
for _full in (MultivariateNormal, LowRankMultivariateNormal):
    for _diagonal in (Independent, DiagonalNormal):
        _PAIRS[_diagonal, _full] = _PAIRS[_full, _diagonal] = kl_with_full_covariance
for _types, _closed_form in _PAIRS.items():
    register_kl(*_types)(_closed_form)
    # pairs with a type of our own are torch's to find as well: torch.distributions.kl_divergence gives the same
    if any(kind.__module__.startswith("kldiv.") for kind in _types):
        torch_kl.register_kl(*_types)(_closed_form)  # type: ignore[no-untyped-call]
