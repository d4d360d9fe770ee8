"""Closed forms between two families, from the expectations under p of the statistics in q's log-density.

A class for each family p computes expectations. A function for each family q computes the divergence from them. The
decorator of the class names the families q. Pairs with a formula of their own are in files of their own.
"""

from kldiv.exact.two_families import gamma_weibull, half_line, line, unit_interval  # noqa: F401 (each registers forms)
from kldiv.exact.two_families.infinite import infinite
from kldiv.exact.two_families.interval import OfUniform

__all__ = [
    "OfUniform",
    "infinite",
]
