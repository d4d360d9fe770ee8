"""Likelihood terms: true normalised log-densities of the data, in nats."""

from kldiv.likelihoods.base import NegativeLogLikelihood
from kldiv.likelihoods.bernoulli import BernoulliNLL, ContinuousBernoulliNLL
from kldiv.likelihoods.categories import CategoricalNLL, MultinomialNLL
from kldiv.likelihoods.continuous import GaussianNLL, LaplaceNLL, OptimalGaussianNLL, StudentTNLL
from kldiv.likelihoods.counts import NegativeBinomialNLL, PoissonNLL, ZeroInflatedNegativeBinomialNLL
from kldiv.likelihoods.distribution import DistributionNLL
from kldiv.likelihoods.levels import DiscretizedLogisticMixtureNLL, bits_per_dimension

__all__ = [
    "BernoulliNLL",
    "CategoricalNLL",
    "ContinuousBernoulliNLL",
    "DiscretizedLogisticMixtureNLL",
    "DistributionNLL",
    "GaussianNLL",
    "LaplaceNLL",
    "MultinomialNLL",
    "NegativeBinomialNLL",
    "NegativeLogLikelihood",
    "OptimalGaussianNLL",
    "PoissonNLL",
    "StudentTNLL",
    "ZeroInflatedNegativeBinomialNLL",
    "bits_per_dimension",
]
