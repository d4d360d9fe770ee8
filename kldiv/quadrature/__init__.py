"""The KL divergence of two one-dimensional densities as an integral, and of two distributions of counts as a sum."""

from kldiv.quadrature.integral import QuadratureError, kl_quadrature
from kldiv.quadrature.summation import kl_summation

__all__ = [
    "QuadratureError",
    "kl_quadrature",
    "kl_summation",
]
