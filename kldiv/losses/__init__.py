"""KL terms as modules: losses by themselves, one term of the bound inside an ELBO; and the decomposition of the KL."""

from kldiv.losses.base import KLTerm, KLValues, check_posterior, check_sample_gradient
from kldiv.losses.decomposition import KLDecomposition, TotalCorrelationKLLoss, decompose_kl
from kldiv.losses.kl_terms import BalancedKLLoss, ExactKLLoss, MonteCarloKLLoss
from kldiv.losses.of_tensors import CategoricalKLLoss, GaussianKLLoss

__all__ = [
    "BalancedKLLoss",
    "CategoricalKLLoss",
    "ExactKLLoss",
    "GaussianKLLoss",
    "KLDecomposition",
    "KLTerm",
    "KLValues",
    "MonteCarloKLLoss",
    "TotalCorrelationKLLoss",
    "check_posterior",
    "check_sample_gradient",
    "decompose_kl",
]
