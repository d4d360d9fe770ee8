"""Fused forms beside their plain formulas: what stays in cache, and what is computed again instead of kept."""

from kldiv.kernels.aggregate_posterior import log_mixtures, weight_matrix
from kldiv.kernels.autograd import fused, in_eager
from kldiv.kernels.bernoulli import bernoulli_nll, traced_bernoulli_nll
from kldiv.kernels.categorical import categorical_kl, has_categorical_kl
from kldiv.kernels.gaussian import gaussian_kl, has_gaussian_kl, normal_kl
from kldiv.kernels.memory import keep_freed_memory, touch_constants
from kldiv.kernels.mixture_density import mixture_log_density

__all__ = [
    "bernoulli_nll",
    "categorical_kl",
    "fused",
    "gaussian_kl",
    "has_categorical_kl",
    "has_gaussian_kl",
    "in_eager",
    "keep_freed_memory",
    "log_mixtures",
    "mixture_log_density",
    "normal_kl",
    "touch_constants",
    "traced_bernoulli_nll",
    "weight_matrix",
]
