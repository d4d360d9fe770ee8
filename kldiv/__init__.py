"""Differentiable Kullback-Leibler terms for training variational auto-encoders."""

from kldiv import functional, tables
from kldiv.distributions import DiagonalNormal, standard_prior
from kldiv.divergence import kl_divergence, register_kl
from kldiv.elbo import ELBOLoss, ELBOTerms
from kldiv.importance import LogLikelihood, importance_log_likelihood
from kldiv.losses import ExactKLLoss, GaussianKLLoss, KLTerm, MonteCarloKLLoss
from kldiv.monte_carlo import KLEstimate, estimate_kl
from kldiv.quadrature import kl_quadrature
from kldiv.reconstruction import BernoulliNLL, GaussianNLL, NegativeLogLikelihood
from kldiv.schedules import LinearWarmup, Schedule, attach
from kldiv.spherical import HypersphericalUniform, PowerSpherical

__version__ = "0.1.0"

__all__ = [
    "BernoulliNLL",
    "DiagonalNormal",
    "ELBOLoss",
    "ELBOTerms",
    "ExactKLLoss",
    "GaussianKLLoss",
    "GaussianNLL",
    "HypersphericalUniform",
    "KLEstimate",
    "KLTerm",
    "LinearWarmup",
    "LogLikelihood",
    "MonteCarloKLLoss",
    "NegativeLogLikelihood",
    "PowerSpherical",
    "Schedule",
    "attach",
    "estimate_kl",
    "functional",
    "importance_log_likelihood",
    "kl_divergence",
    "kl_quadrature",
    "register_kl",
    "standard_prior",
    "tables",
]
