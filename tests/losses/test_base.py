import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Categorical,
    Independent,
    Laplace,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
)

from kldiv import BernoulliNLL, DiagonalNormal, ELBOLoss, ExactKLLoss, FreeBits, KLTerm, MonteCarloKLLoss
from kldiv.exact.registry import CLOSED_FORMS
from kldiv.losses import KLValues


def test_an_own_term_is_one_method():
    class Zero(KLTerm):
        def unreduced(self, posterior, prior=None, sample=None):
            return posterior.mean * 0

    posterior = Laplace(torch.ones(4, 3), 1.0)
    assert Zero()(posterior).item() == 0
    assert Zero().per_example(posterior).shape == (4,)
    assert Zero().per_dimension(posterior).shape == (4, 3)
    terms = ELBOLoss(BernoulliNLL(), Zero())(torch.zeros(4, 8), torch.ones(4, 8), posterior, latent_mask=torch.ones(3))
    assert terms.kl.item() == 0
    assert terms.loss.item() == terms.reconstruction.item()


@pytest.mark.parametrize("transform", [None, FreeBits(0.0, batch_mean=False)], ids=repr)
def test_an_own_term_may_put_a_penalty_in_the_place_of_the_kl(transform):
    class Doubled(KLTerm):
        def unreduced(self, posterior, prior=None, sample=None):
            return self.kl_values(posterior, prior, sample).in_loss

        def kl_values(self, posterior, prior=None, sample=None):
            kl = ExactKLLoss().unreduced(posterior, prior)
            return KLValues(kl, penalty=2 * kl)

    posterior, mask = DiagonalNormal(torch.ones(4, 3), torch.zeros(4, 3)), torch.tensor([1, 1, 0])
    assert Doubled()(posterior).item() == pytest.approx(3.0)
    elbo = ELBOLoss(BernoulliNLL(), Doubled(), transform=transform, weight=0.5)
    terms = elbo(torch.zeros(4, 8), torch.ones(4, 8), posterior, latent_mask=mask)
    assert terms.kl.item() == pytest.approx(1.0)
    assert (terms.loss - terms.reconstruction).item() == pytest.approx(0.5 * 2.0)
    assert (terms.negative_elbo - terms.reconstruction).item() == pytest.approx(1.0)


class TestVariablesAndGroups:
    def test_one_hot_categories_in_groups_are_variables_as_categories_are(self):
        logits = torch.randn(4, 3, 5)
        by_index = ExactKLLoss().per_dimension(Categorical(logits=logits))
        torch.testing.assert_close(ExactKLLoss().per_dimension(OneHotCategorical(logits=logits)), by_index)
        for posterior in (Independent(Categorical(logits=logits), 1), Independent(OneHotCategorical(logits=logits), 1)):
            torch.testing.assert_close(ExactKLLoss().per_dimension(posterior), by_index)

    def test_groups_of_full_covariance(self):
        posterior = MultivariateNormal(torch.ones(4, 2, 3), torch.eye(3))
        prior = MultivariateNormal(torch.zeros(3), torch.eye(3))
        torch.testing.assert_close(ExactKLLoss().unreduced(posterior, prior), torch.full((4, 2), 1.5))
        torch.testing.assert_close(ExactKLLoss("none")(posterior, prior), torch.full((4,), 3.0))

    def test_a_prior_broadcasts_to_a_full_covariance(self):
        posterior = MultivariateNormal(torch.zeros(4, 3), torch.eye(3))
        sample = posterior.sample((2,))
        for prior in (Normal(0.0, 1.0), Normal(torch.zeros(3), 1.0), DiagonalNormal(torch.zeros(3), torch.zeros(3))):
            value = MonteCarloKLLoss().per_example(posterior, prior, sample)
            torch.testing.assert_close(value, torch.zeros(4), atol=1e-6, rtol=0)

    def test_torch_closed_forms_broadcast_to_the_posterior(self):
        posterior, prior = Bernoulli(torch.tensor([[0.5, 0.5], [0.0, 0.5]])), Bernoulli(torch.tensor([0.0, 0.5]))
        inf = float("inf")
        assert ExactKLLoss().unreduced(posterior, prior).tolist() == [[inf, 0.0], [0.0, 0.0]]
        half = Bernoulli(torch.full((3,), 0.5))
        torch.testing.assert_close(ExactKLLoss()(Bernoulli(torch.full((4, 3), 0.5)), half), torch.tensor(0.0))

    def test_unequal_numbers_of_categories_raise(self):
        with pytest.raises(ValueError, match="5 categories and q 1"):
            ExactKLLoss()(Categorical(torch.ones(4, 5)), Categorical(torch.ones(1)))


class TestSubclasses:
    class Shifted(DiagonalNormal):
        def log_prob(self, value):
            return super().log_prob(value) - 5.0

    class Named(DiagonalNormal):
        pass

    def test_a_density_of_its_own_is_used(self):
        posterior = self.Shifted(torch.zeros(2, 3), torch.zeros(2, 3))
        value = MonteCarloKLLoss(reduction="none")(posterior, None, posterior.rsample())
        torch.testing.assert_close(value, torch.full((2,), -5.0))
        with pytest.raises(ValueError, match="per_example"):
            ExactKLLoss().per_dimension(posterior)

    def test_a_pair_of_its_own_is_used(self, monkeypatch):
        p, q = self.Named(torch.ones(2, 3), torch.zeros(2, 3)), DiagonalNormal(torch.zeros(3), torch.zeros(3))
        torch.testing.assert_close(ExactKLLoss("none")(p, q), torch.full((2,), 1.5))
        monkeypatch.setitem(CLOSED_FORMS, (self.Named, DiagonalNormal), lambda p, q: torch.full(p.batch_shape, 9.0))
        torch.testing.assert_close(ExactKLLoss("none")(p, q), torch.full((2,), 9.0))
