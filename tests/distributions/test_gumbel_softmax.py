import math

import pytest
import torch
from torch.distributions import Categorical, OneHotCategorical, RelaxedOneHotCategorical

from kldiv import (
    BernoulliNLL,
    ELBOLoss,
    ExactKLLoss,
    GumbelSoftmax,
    ImportanceWeightedELBOLoss,
    LinearWarmup,
    MonteCarloKLLoss,
    estimate_kl,
    kl_divergence,
)


@pytest.fixture
def logits():
    return torch.randn(6, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_its_kl_is_that_of_the_categories(logits):
    expected = kl_divergence(Categorical(logits=logits), Categorical(torch.ones(3).double()))
    torch.testing.assert_close(ExactKLLoss().per_dimension(GumbelSoftmax(logits, 0.1)), expected)
    prior = OneHotCategorical(logits=logits[0])
    expected = kl_divergence(Categorical(logits=logits), Categorical(logits=logits[0]))
    for q in (prior, GumbelSoftmax(logits[0], 5.0)):
        torch.testing.assert_close(ExactKLLoss().per_dimension(GumbelSoftmax(logits, 0.1), q), expected)


def test_relaxed_samples_have_the_law_of_torchs():
    """The mean and the second moments of 40,000 samples, against torch's, within four standard errors."""
    torch.manual_seed(0)
    logits = torch.tensor([1.0, 0.0, -0.5], dtype=torch.float64)
    ours = GumbelSoftmax(logits, 0.7).rsample((40_000,))
    torchs = RelaxedOneHotCategorical(torch.tensor(0.7).double(), logits=logits).rsample((40_000,))
    torch.testing.assert_close(ours.sum(-1), torch.ones(40_000).double())
    for power in (1, 2):
        difference = ours**power - torchs**power
        assert (difference.mean(0).abs() < 4 * difference.std(0) / 200).all()


def test_hard_samples_are_one_hot_with_a_gradient_and_follow_the_probabilities(logits):
    torch.manual_seed(0)
    sample = GumbelSoftmax(logits.requires_grad_(), 0.5, hard=True).rsample((20_000,))
    assert ((sample - sample.round()).abs() < 1e-12).all()
    error = (sample.mean(0) - logits.softmax(-1)).abs().max()
    assert error < 4.5 * 0.5 / math.sqrt(20_000)
    (gradient,) = torch.autograd.grad((sample * torch.arange(3)).sum(), logits)
    assert gradient.abs().min() > 0


def test_draws_of_the_categories_themselves(logits):
    sample = GumbelSoftmax(logits, 0.5).sample((5,))
    assert sample.shape == (5, 6, 4, 3)
    assert set(sample.unique().tolist()) == {0.0, 1.0}


def test_expand_keeps_everything(logits):
    wide = GumbelSoftmax(logits, 0.5, hard=True).expand((2, 6, 4))
    assert (wide.temperature, wide.hard, wide.batch_shape) == (0.5, True, (2, 6, 4))
    assert wide.rsample((7,)).shape == (7, 2, 6, 4, 3)


def test_inside_an_elbo(logits):
    """In a dozen lines: a decoder whose gradient reaches the logits, and the exact KL."""
    torch.manual_seed(0)
    weight = torch.randn(12, 8, dtype=torch.float64)
    temperature = LinearWarmup(steps=10, start=1.0, end=0.5).eval()
    posterior = GumbelSoftmax(logits.requires_grad_(), temperature())
    sample = posterior.rsample()
    terms = ELBOLoss(BernoulliNLL())(sample.flatten(1) @ weight, torch.ones(6, 8).double(), posterior)
    (gradient,) = torch.autograd.grad(terms.reconstruction, logits, retain_graph=True)
    assert gradient.abs().sum() > 0
    torch.testing.assert_close(terms.kl, ExactKLLoss()(Categorical(logits=logits)))


def test_monte_carlo_terms_take_no_relaxed_sample_for_one_of_the_categories(logits):
    posterior = GumbelSoftmax(logits.requires_grad_(), 0.5)
    with pytest.raises(ValueError, match="gradient='score' would do"):
        MonteCarloKLLoss()(posterior)
    with pytest.raises(ValueError, match="no reparametrised rsample"):
        ImportanceWeightedELBOLoss(BernoulliNLL())(
            torch.zeros(2, 6, 8), torch.ones(6, 8), posterior, sample=posterior.rsample((2,))
        )
    torch.manual_seed(0)
    estimate = estimate_kl(posterior, OneHotCategorical(logits=torch.zeros(3).double()), 4000, gradient="score")
    scores = (estimate.value - ExactKLLoss().per_dimension(posterior)) / estimate.standard_error
    assert scores.abs().max() < 4.5


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
def test_extreme_temperatures_and_logits(temperature):
    logits = torch.tensor([[200.0, -math.inf, 0.0]], requires_grad=True)
    sample = GumbelSoftmax(logits, temperature).rsample((100,))
    assert sample.isfinite().all()
    assert (sample[..., 1] == 0).all()
    sample[..., 0].sum().backward()
    assert logits.grad.isfinite().all()


def test_half_precision():
    sample = GumbelSoftmax(torch.zeros(1000, 4).half(), 0.01).rsample((100,))
    assert sample.dtype == torch.float16
    assert sample.isfinite().all()


def test_bad_temperatures():
    for temperature in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="temperature="):
            GumbelSoftmax(torch.zeros(2, 3), temperature)


def test_repr():
    assert repr(GumbelSoftmax(torch.zeros(2, 3), 0.5)) == (
        "GumbelSoftmax(batch_shape=(2,), event_shape=(3,), temperature=0.5, hard=False)"
    )
