"""Closed forms between two families, from what p expects of the statistics in q's log-density.

A class for each family p computes its expectations, a function for each family q makes of them the divergence to q, and
the decorator of the class names the q it has a form to. Pairs that are regrouped have files of their own.
"""

from kldiv.exact.two_families import gamma_weibull, half_line, line, unit_interval  # noqa: F401 (each registers forms)
from kldiv.exact.two_families.infinite import infinite
from kldiv.exact.two_families.interval import OfUniform

__all__ = [
    "OfUniform",
    "infinite",
]
