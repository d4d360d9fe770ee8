"""Arithmetic without cancellation: the primitives from which closed forms are built."""

from kldiv.numerics.gamma import (
    EULER,
    bregman_lgamma,
    bregman_stirling_error,
    digamma_minus_log,
    exponential_integral,
    gamma_tail,
    stirling_error,
    trigamma,
)
from kldiv.numerics.log_sinc import log_sinc, log_sinc_first, log_sinc_second, log_sinc_tail, log_sinc_tail_first
from kldiv.numerics.special import (
    LOG2_E,
    bregman,
    exact_difference,
    expm1mx,
    kl_term,
    log_ratio,
    non_negative,
    polynomial,
    standardise,
    xmlog1p,
)
from kldiv.numerics.tensors import broadcast, check_broadcast, keep_precision, sum_rightmost, widen

__all__ = [
    "EULER",
    "LOG2_E",
    "bregman",
    "bregman_lgamma",
    "bregman_stirling_error",
    "broadcast",
    "check_broadcast",
    "digamma_minus_log",
    "exact_difference",
    "expm1mx",
    "exponential_integral",
    "gamma_tail",
    "keep_precision",
    "kl_term",
    "log_ratio",
    "log_sinc",
    "log_sinc_first",
    "log_sinc_second",
    "log_sinc_tail",
    "log_sinc_tail_first",
    "non_negative",
    "polynomial",
    "standardise",
    "stirling_error",
    "sum_rightmost",
    "trigamma",
    "widen",
    "xmlog1p",
]
