"""Distributions of our own, and what is asked of any distribution: its parts, parameters, precision, support."""

from kldiv.distributions.density import log_density, log_prob
from kldiv.distributions.diagonal_normal import DiagonalNormal
from kldiv.distributions.gumbel_softmax import GumbelSoftmax
from kldiv.distributions.masking import align, masked_distribution, masked_sample, stop_gradient_unless
from kldiv.distributions.normal_mixture import DiagonalNormalMixture, log_weights
from kldiv.distributions.pair import GivenSample, Pair, check_distributions, check_measures, matched, result_dtype
from kldiv.distributions.parameters import (
    COVARIANCES,
    as_logits,
    device_of,
    given,
    given_name,
    log_chance,
    log_variance,
    materialise,
    mean_and_log_var,
    parameter_dtype,
    parameters_of,
)
from kldiv.distributions.parts import factorise, independent_dims, take_off, with_event_dims
from kldiv.distributions.precision import can_be_copied, converted, detached, in_double, widened
from kldiv.distributions.shared_transforms import last_transforms
from kldiv.distributions.spherical import HypersphericalUniform, PowerSpherical
from kldiv.distributions.support import (
    Support,
    as_tensor,
    has_moving_support,
    inside,
    single_transforms,
    support_of,
    without_common_transforms,
)

__all__ = [
    "COVARIANCES",
    "DiagonalNormal",
    "DiagonalNormalMixture",
    "GivenSample",
    "GumbelSoftmax",
    "HypersphericalUniform",
    "Pair",
    "PowerSpherical",
    "Support",
    "align",
    "as_logits",
    "as_tensor",
    "can_be_copied",
    "check_distributions",
    "check_measures",
    "converted",
    "detached",
    "device_of",
    "factorise",
    "given",
    "given_name",
    "has_moving_support",
    "in_double",
    "independent_dims",
    "inside",
    "last_transforms",
    "log_chance",
    "log_density",
    "log_prob",
    "log_variance",
    "log_weights",
    "masked_distribution",
    "masked_sample",
    "matched",
    "materialise",
    "mean_and_log_var",
    "parameter_dtype",
    "parameters_of",
    "result_dtype",
    "single_transforms",
    "stop_gradient_unless",
    "support_of",
    "take_off",
    "widened",
    "with_event_dims",
    "without_common_transforms",
]
