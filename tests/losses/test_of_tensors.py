import math

import pytest
import torch
from torch.distributions import Categorical

from kldiv import CategoricalKLLoss, GaussianKLLoss, kl_divergence
from kldiv.functional import kl_categorical, kl_normal


class TestGaussianKLLoss:
    def test_shapes_and_reductions(self, parameters):
        values = kl_normal(*parameters)
        torch.testing.assert_close(GaussianKLLoss().per_dimension(*parameters), values)
        torch.testing.assert_close(GaussianKLLoss().per_example(*parameters), values.sum((1, 2)))
        torch.testing.assert_close(GaussianKLLoss("none")(*parameters), values.sum((1, 2)))
        torch.testing.assert_close(GaussianKLLoss("sum")(*parameters), values.sum())
        torch.testing.assert_close(GaussianKLLoss()(*parameters), values.sum() / 4)

    def test_only_the_prior_broadcasts(self, parameters):
        mean, log_var = parameters
        prior = torch.randn(2).double(), torch.randn(3, 1).double()
        torch.testing.assert_close(
            GaussianKLLoss().per_dimension(mean, log_var, *prior), kl_normal(mean, log_var, *prior)
        )
        with pytest.raises(ValueError, match=r"mean \(4, 3, 2\) and log_var \(3, 2\)"):
            GaussianKLLoss()(mean, log_var[0])
        with pytest.raises(ValueError, match=r"prior_mean \(5, 4, 3, 2\) and prior_log_var None"):
            GaussianKLLoss()(mean, log_var, mean.expand(5, 4, 3, 2))

    def test_one_dimension_raises_with_how_to_add_one(self):
        with pytest.raises(ValueError, match=r"mean\[None\]"):
            GaussianKLLoss()(torch.zeros(3), torch.zeros(3))

    def test_an_empty_batch_gives_zero_and_zero_gradient(self):
        mean = torch.zeros(0, 3, requires_grad=True)
        loss = GaussianKLLoss()(mean, torch.zeros(0, 3))
        loss.backward()
        assert loss.item() == 0.0

    def test_half_precision_over_a_large_latent(self):
        mean = torch.full((2, 4, 32, 32), 6.0).half()
        assert GaussianKLLoss()(mean, torch.zeros_like(mean)).item() == pytest.approx(4 * 32 * 32 * 18)

    def test_mean_is_refused(self):
        with pytest.raises(ValueError, match="no KL divergence"):
            GaussianKLLoss("mean")

    def test_repr_shows_every_option(self):
        assert repr(GaussianKLLoss("sum")) == "GaussianKLLoss(reduction='sum')"


class TestCategoricalKLLoss:
    def test_shapes_and_reductions(self, parameters):
        values = kl_categorical(*parameters)
        assert values.shape == (4, 3)
        torch.testing.assert_close(CategoricalKLLoss().per_dimension(*parameters), values)
        torch.testing.assert_close(CategoricalKLLoss().per_example(*parameters), values.sum(1))
        torch.testing.assert_close(CategoricalKLLoss(reduction="none")(*parameters), values.sum(1))
        torch.testing.assert_close(CategoricalKLLoss(reduction="sum")(*parameters), values.sum())
        torch.testing.assert_close(CategoricalKLLoss()(*parameters), values.sum() / 4)

    def test_against_torch_and_by_hand(self, parameters):
        logits, prior = parameters
        expected = torch.distributions.kl_divergence(Categorical(logits=logits), Categorical(logits=prior))
        torch.testing.assert_close(CategoricalKLLoss().per_dimension(logits, prior), expected)
        p = logits.softmax(-1)
        uniform = (p * p.log()).sum((1, 2)) + 3 * math.log(2)
        torch.testing.assert_close(CategoricalKLLoss(reduction="none")(logits), uniform)
        torch.testing.assert_close(
            CategoricalKLLoss(reduction="none")(logits),
            kl_divergence(Categorical(logits=logits), Categorical(torch.ones(2))).sum(1),
        )

    def test_one_variable_an_example(self):
        assert CategoricalKLLoss(reduction="none")(torch.zeros(5, 3)).tolist() == [0.0] * 5

    def test_only_the_prior_broadcasts(self, parameters):
        logits, prior = parameters
        torch.testing.assert_close(
            CategoricalKLLoss().per_dimension(logits, prior[0, 0]), kl_categorical(logits, prior[0, 0])
        )
        with pytest.raises(ValueError, match=r"prior_logits \(5, 4, 3, 2\).*\(4, 3, 2\)"):
            CategoricalKLLoss()(logits, prior.expand(5, 4, 3, 2))
        with pytest.raises(ValueError, match=r"\(4, 3, 2\).*\(7,\)"):
            CategoricalKLLoss()(logits, torch.zeros(7))
        with pytest.raises(ValueError, match=r"logits\[None\]"):
            CategoricalKLLoss()(torch.zeros(3))
        with pytest.raises(ValueError, match="no KL divergence"):
            CategoricalKLLoss(reduction="mean")

    def test_zero_probabilities_half_precision_and_empty_batches(self):
        logits = torch.tensor([[0.0, -math.inf]], requires_grad=True)
        loss = CategoricalKLLoss()(logits)
        loss.backward()
        assert loss.item() == pytest.approx(math.log(2))
        assert logits.grad.tolist() == [[0.0, 0.0]]
        assert CategoricalKLLoss()(torch.zeros(2, 3).half()).dtype == torch.float32
        assert CategoricalKLLoss()(torch.zeros(0, 3)).item() == 0.0

    def test_repr_shows_every_option(self):
        assert repr(CategoricalKLLoss(reduction="sum")) == "CategoricalKLLoss(dim=-1, reduction='sum')"
