"""Closed forms of the KL divergence, one file a family, and the registry in which they are found."""

from kldiv.exact import (  # each enters its forms into the registry
    continuous_bernoulli,
    diagonal_normal,
    dirichlet,
    discrete,
    gamma,
    gumbel,
    kumaraswamy,
    laplace_cauchy,
    multivariate_normal,
    normal,
    spherical,
    two_families,
    uniform_pareto,
    von_mises,
)
from kldiv.exact.divergence import kl_divergence, kl_transformed
from kldiv.exact.multivariate_normal import covariance
from kldiv.exact.registry import (
    find_closed_form,
    is_registered_by_user,
    no_form_for_these,
    register_kl,
    register_with_torch,
)

__all__ = [
    "continuous_bernoulli",
    "covariance",
    "diagonal_normal",
    "dirichlet",
    "discrete",
    "find_closed_form",
    "gamma",
    "gumbel",
    "is_registered_by_user",
    "kl_divergence",
    "kl_transformed",
    "kumaraswamy",
    "laplace_cauchy",
    "multivariate_normal",
    "no_form_for_these",
    "normal",
    "register_kl",
    "spherical",
    "two_families",
    "uniform_pareto",
    "von_mises",
]

register_with_torch()
