"""Differentiable Kullback-Leibler terms for training variational auto-encoders."""

from kldiv import functional, tables
from kldiv.bounds import KLBounds, kl_bounds
from kldiv.controllers import GECO, Controller, PIDController
from kldiv.decomposition import KLDecomposition, TotalCorrelationKLLoss, decompose_kl
from kldiv.discrete_reconstruction import (
    CategoricalNLL,
    DiscretizedLogisticMixtureNLL,
    NegativeBinomialNLL,
    PoissonNLL,
    bits_per_dimension,
)
from kldiv.distributions import DiagonalNormal, standard_prior
from kldiv.divergence import kl_divergence, register_kl
from kldiv.elbo import ELBOLoss, ELBOTerms
from kldiv.gumbel_softmax import GumbelSoftmax
from kldiv.importance import ImportanceWeightedELBOLoss, LogLikelihood, importance_log_likelihood
from kldiv.kernels.memory import touch_constants
from kldiv.log_likelihood import estimate_log_likelihood, stream_log_likelihood
from kldiv.losses import BalancedKLLoss, ExactKLLoss, KLTerm, MonteCarloKLLoss
from kldiv.mixtures import DiagonalNormalMixture
from kldiv.monte_carlo import KLEstimate, estimate_kl
from kldiv.priors import MixturePrior, VampPrior
from kldiv.quadrature import kl_quadrature
from kldiv.reconstruction import (
    BernoulliNLL,
    ContinuousBernoulliNLL,
    GaussianNLL,
    LaplaceNLL,
    NegativeLogLikelihood,
    OptimalGaussianNLL,
)
from kldiv.schedules import CosineWarmup, CyclicalWarmup, LinearWarmup, Schedule, attach
from kldiv.spherical import HypersphericalUniform, PowerSpherical
from kldiv.tensor_losses import CategoricalKLLoss, GaussianKLLoss
from kldiv.transforms import Capacity, FreeBits

__version__ = "0.1.0"

touch_constants()

__all__ = [
    "GECO",
    "BalancedKLLoss",
    "BernoulliNLL",
    "Capacity",
    "CategoricalKLLoss",
    "CategoricalNLL",
    "ContinuousBernoulliNLL",
    "Controller",
    "CosineWarmup",
    "CyclicalWarmup",
    "DiagonalNormal",
    "DiagonalNormalMixture",
    "DiscretizedLogisticMixtureNLL",
    "ELBOLoss",
    "ELBOTerms",
    "ExactKLLoss",
    "FreeBits",
    "GaussianKLLoss",
    "GaussianNLL",
    "GumbelSoftmax",
    "HypersphericalUniform",
    "ImportanceWeightedELBOLoss",
    "KLBounds",
    "KLDecomposition",
    "KLEstimate",
    "KLTerm",
    "LaplaceNLL",
    "LinearWarmup",
    "LogLikelihood",
    "MixturePrior",
    "MonteCarloKLLoss",
    "NegativeBinomialNLL",
    "NegativeLogLikelihood",
    "OptimalGaussianNLL",
    "PIDController",
    "PoissonNLL",
    "PowerSpherical",
    "Schedule",
    "TotalCorrelationKLLoss",
    "VampPrior",
    "attach",
    "bits_per_dimension",
    "decompose_kl",
    "estimate_kl",
    "estimate_log_likelihood",
    "functional",
    "importance_log_likelihood",
    "kl_bounds",
    "kl_divergence",
    "kl_quadrature",
    "register_kl",
    "standard_prior",
    "stream_log_likelihood",
    "tables",
]
