"""The KL divergence as a mean over samples: samplers, values, gradients and standard errors."""

from kldiv.monte_carlo.estimate import KLEstimate, average, check_options, estimate_kl
from kldiv.monte_carlo.estimators import Gradient, Plan, Value, check_scramble
from kldiv.monte_carlo.inverted import before_transforms
from kldiv.monte_carlo.samplers import Draws, GivenDraws, Sampler, has_pathwise_gradient

__all__ = [
    "Draws",
    "GivenDraws",
    "Gradient",
    "KLEstimate",
    "Plan",
    "Sampler",
    "Value",
    "average",
    "before_transforms",
    "check_options",
    "check_scramble",
    "estimate_kl",
    "has_pathwise_gradient",
]
