"""Likelihood terms: true normalised log-densities of the data, in nats."""

from kldiv.likelihoods.base import NegativeLogLikelihood
from kldiv.likelihoods.bernoulli import BernoulliNLL, ContinuousBernoulliNLL
from kldiv.likelihoods.continuous import GaussianNLL, LaplaceNLL, OptimalGaussianNLL
from kldiv.likelihoods.discrete import (
    CategoricalNLL,
    DiscretizedLogisticMixtureNLL,
    NegativeBinomialNLL,
    PoissonNLL,
    bits_per_dimension,
)

__all__ = [
    "BernoulliNLL",
    "CategoricalNLL",
    "ContinuousBernoulliNLL",
    "DiscretizedLogisticMixtureNLL",
    "GaussianNLL",
    "LaplaceNLL",
    "NegativeBinomialNLL",
    "NegativeLogLikelihood",
    "OptimalGaussianNLL",
    "PoissonNLL",
    "bits_per_dimension",
]
