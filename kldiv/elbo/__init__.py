"""The evidence lower bound: ELBOLoss, importance weighting, log-likelihoods, weights and transforms of the KL."""

from kldiv.elbo.controllers import GECO, Controller, PIDController
from kldiv.elbo.elbo import ELBOLoss
from kldiv.elbo.importance import ImportanceWeightedELBOLoss, LogLikelihood, importance_log_likelihood
from kldiv.elbo.log_likelihood import estimate_log_likelihood, stream_log_likelihood
from kldiv.elbo.schedules import CosineWarmup, CyclicalWarmup, LinearWarmup, Schedule, attach
from kldiv.elbo.terms import ELBOTerms
from kldiv.elbo.transforms import Capacity, FreeBits

__all__ = [
    "GECO",
    "Capacity",
    "Controller",
    "CosineWarmup",
    "CyclicalWarmup",
    "ELBOLoss",
    "ELBOTerms",
    "FreeBits",
    "ImportanceWeightedELBOLoss",
    "LinearWarmup",
    "LogLikelihood",
    "PIDController",
    "Schedule",
    "attach",
    "estimate_log_likelihood",
    "importance_log_likelihood",
    "stream_log_likelihood",
]
