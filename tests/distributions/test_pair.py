import pytest
import torch
from torch.distributions import Categorical, Gamma, Normal, Poisson

from kldiv import MonteCarloKLLoss, estimate_kl


def test_two_kinds_of_density():
    categories = Categorical(logits=torch.zeros(4, 2))
    for term in (estimate_kl, MonteCarloKLLoss()):
        with pytest.raises(ValueError, match=r"of 2 categories and q, Normal, is continuous"):
            term(categories, Normal(0.0, 1.0))
        with pytest.raises(ValueError, match=r"of 2 categories and q, Categorical, is of 4 categories"):
            term(categories, Categorical(logits=torch.zeros(4)))
        with pytest.raises(ValueError, match=r"Poisson, is discrete and q, Gamma, is continuous"):
            term(Poisson(torch.ones(4)), Gamma(1.0, 1.0))
