"""Closed forms of the KL divergence, one file a family, and the registry in which they are found."""

from kldiv.exact import (  # noqa: F401 (each registers its closed forms)
    categorical,
    continuous_bernoulli,
    counts,
    diagonal_normal,
    dirichlet,
    gamma,
    gumbel,
    kumaraswamy,
    laplace_cauchy,
    multivariate_normal,
    normal,
    spherical,
    trials,
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
    "covariance",
    "find_closed_form",
    "is_registered_by_user",
    "kl_divergence",
    "kl_transformed",
    "no_form_for_these",
    "register_kl",
]

register_with_torch()
