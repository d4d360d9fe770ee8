"""Bounds of the KL divergence of mixtures, from the divergences and integrals of their components."""

from kldiv.bounds.mixtures import KLBounds, kl_bounds

__all__ = [
    "KLBounds",
    "kl_bounds",
]
