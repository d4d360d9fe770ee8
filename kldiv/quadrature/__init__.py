"""The KL divergence of two one-dimensional densities as an integral."""

from kldiv.quadrature.integral import QuadratureError, kl_quadrature

__all__ = [
    "QuadratureError",
    "kl_quadrature",
]
