"""Differentiable Kullback-Leibler terms for training variational auto-encoders."""

from kldiv import functional, tables
from kldiv.bounds import KLBounds, kl_bounds
from kldiv.distributions import (
    DiagonalNormal,
    DiagonalNormalMixture,
    GumbelSoftmax,
    HypersphericalUniform,
    PowerSpherical,
)
from kldiv.elbo import (
    GECO,
    Capacity,
    Controller,
    CosineWarmup,
    CyclicalWarmup,
    ELBOLoss,
    ELBOTerms,
    FreeBits,
    ImportanceWeightedELBOLoss,
    LinearWarmup,
    LogLikelihood,
    PIDController,
    Schedule,
    attach,
    estimate_log_likelihood,
    importance_log_likelihood,
    stream_log_likelihood,
)
from kldiv.exact import kl_divergence, register_kl
from kldiv.kernels import touch_constants
from kldiv.likelihoods import (
    BernoulliNLL,
    CategoricalNLL,
    ContinuousBernoulliNLL,
    DiscretizedLogisticMixtureNLL,
    GaussianNLL,
    LaplaceNLL,
    NegativeBinomialNLL,
    NegativeLogLikelihood,
    OptimalGaussianNLL,
    PoissonNLL,
    bits_per_dimension,
)
from kldiv.losses import (
    BalancedKLLoss,
    CategoricalKLLoss,
    ExactKLLoss,
    GaussianKLLoss,
    KLDecomposition,
    KLTerm,
    MonteCarloKLLoss,
    TotalCorrelationKLLoss,
    decompose_kl,
)
from kldiv.monte_carlo import KLEstimate, estimate_kl
from kldiv.priors import MixturePrior, VampPrior, standard_prior
from kldiv.quadrature import QuadratureError, kl_quadrature, kl_summation

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
    "QuadratureError",
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
    "kl_summation",
    "register_kl",
    "standard_prior",
    "stream_log_likelihood",
    "tables",
]
