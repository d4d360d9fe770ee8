"""Fused forms of the KL terms that are computed most, each beside its plain formula and chosen by itself."""

from kldiv.kernels.aggregate_posterior import log_mixtures, log_normal_mixtures
from kldiv.kernels.bernoulli import bernoulli_nll, bernoulli_nll_per_example
from kldiv.kernels.categorical import categorical_kl
from kldiv.kernels.gaussian import gaussian_kl, normal_kl
from kldiv.kernels.memory import keep_freed_memory, touch_constants
from kldiv.kernels.mixture_density import mixture_log_density

__all__ = [
    "bernoulli_nll",
    "bernoulli_nll_per_example",
    "categorical_kl",
    "gaussian_kl",
    "keep_freed_memory",
    "log_mixtures",
    "log_normal_mixtures",
    "mixture_log_density",
    "normal_kl",
    "touch_constants",
]
