"""The likelihood of a decoder whose output is a torch distribution."""

import pytest
import torch
from torch import distributions as D  # noqa: N812

from kldiv import BernoulliNLL, DiagonalNormal, DistributionNLL, ELBOLoss, GaussianNLL, PoissonNLL


def positive(*shape):
    return torch.rand(*shape) + 0.5


FAMILIES = {
    "Normal": lambda: (D.Normal(torch.randn(4, 3), positive(4, 3)), torch.randn(4, 3)),
    "Laplace": lambda: (D.Laplace(torch.randn(4, 3), positive(4, 3)), torch.randn(4, 3)),
    "StudentT": lambda: (D.StudentT(positive(4, 3), torch.randn(4, 3), positive(4, 3)), torch.randn(4, 3)),
    "LogNormal": lambda: (D.LogNormal(torch.randn(4, 3), positive(4, 3)), positive(4, 3)),
    "Gamma": lambda: (D.Gamma(positive(4, 3), positive(4, 3)), positive(4, 3)),
    "Beta": lambda: (D.Beta(positive(4, 3), positive(4, 3)), torch.rand(4, 3)),
    "Poisson": lambda: (D.Poisson(positive(4, 3)), torch.ones(4, 3)),
    "Bernoulli": lambda: (D.Bernoulli(logits=torch.randn(4, 3)), torch.ones(4, 3)),
    "Bernoulli of probabilities": lambda: (D.Bernoulli(torch.rand(4, 3)), torch.ones(4, 3)),
    "NegativeBinomial": lambda: (D.NegativeBinomial(positive(4, 3), logits=torch.randn(4, 3)), torch.ones(4, 3)),
    "Categorical": lambda: (D.Categorical(logits=torch.randn(4, 3, 5)), torch.ones(4, 3).long()),
    "MultivariateNormal": lambda: (
        D.MultivariateNormal(torch.randn(4, 3, 2), scale_tril=torch.eye(2) * positive(4, 3, 1, 1)),
        torch.randn(4, 3, 2),
    ),
    "Dirichlet": lambda: (D.Dirichlet(positive(4, 3, 5)), torch.rand(4, 3, 5).softmax(-1)),
}


class TestDistributionNLL:
    @pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
    def test_is_the_negative_of_log_prob(self, make):
        distribution, target = make()
        each = -distribution.log_prob(target)
        torch.testing.assert_close(DistributionNLL("none")(distribution, target), each.sum(1))
        torch.testing.assert_close(DistributionNLL()(D.Independent(distribution, 1), target), each.sum() / 4)

    @pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
    def test_masked_elements_count_nothing_whatever_they_hold(self, make):
        distribution, target = make()
        mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
        each = -distribution.log_prob(target)
        if target.is_floating_point():
            target = target.masked_fill((mask == 0).view(4, 3, *[1] * (target.ndim - 2)), torch.nan)
        value = DistributionNLL("none")(distribution, target, mask=mask)
        torch.testing.assert_close(value, (each * mask).sum(1))
        wide = mask.view(4, 3, *[1] * (target.ndim - 2))
        assert torch.equal(DistributionNLL("none")(distribution, target, mask=wide), value)

    def test_masked_parameters_do_not_reach_the_gradient(self):
        mask = torch.tensor([[True, False], [True, True]])
        found = []
        for broken in (0.0, torch.nan, torch.inf):
            mean = torch.zeros(2, 2, requires_grad=True)
            given = D.Normal(torch.where(mask, mean, mean + broken), 1.0, validate_args=False)
            value = DistributionNLL()(D.Independent(given, 1), torch.ones(2, 2), mask=mask)
            (gradient,) = torch.autograd.grad(value, mean)
            found.append((value.item(), gradient.tolist()))
        assert found[0] == found[1] == found[2]

    def test_is_the_same_as_the_likelihoods_that_take_tensors(self):
        mean, target = torch.randn(2, 4, 3)
        torch.testing.assert_close(DistributionNLL()(D.Normal(mean, 1.0), target), GaussianNLL()(mean, target))
        binary, counts = (target > 0).float(), torch.poisson(target.exp())
        torch.testing.assert_close(DistributionNLL()(D.Bernoulli(logits=mean), binary), BernoulliNLL()(mean, binary))
        torch.testing.assert_close(DistributionNLL()(D.Poisson(mean.exp()), counts), PoissonNLL()(mean, counts))
        weight = torch.rand(4, 3)
        torch.testing.assert_close(
            DistributionNLL()(D.Normal(mean, 1.0), target, element_weight=weight),
            GaussianNLL()(mean, target, element_weight=weight),
        )

    def test_inside_an_elbo(self):
        posterior = DiagonalNormal(torch.zeros(4, 2), torch.zeros(4, 2))
        target = torch.randn(4, 3)
        terms = ELBOLoss(DistributionNLL())(D.Normal(torch.zeros(4, 3), 1.0), target, posterior)
        torch.testing.assert_close(terms.reconstruction, GaussianNLL()(torch.zeros(4, 3), target))

    def test_shapes_and_supports(self):
        with pytest.raises(ValueError, match=r"batch shape \(4, 2\).*target \(4, 3\)"):
            DistributionNLL()(D.Normal(torch.zeros(4, 2), 1.0), torch.zeros(4, 3))
        with pytest.raises(ValueError, match=r"batch shape \(4, 1\).*target \(4,\)"):
            DistributionNLL()(D.Normal(torch.zeros(4, 1), 1.0), torch.zeros(4))
        with pytest.raises(ValueError, match=r"from -1 to 1.*Gamma"):
            DistributionNLL()(D.Gamma(torch.ones(2, 2), 1.0), torch.tensor([[-1.0, 1.0], [1.0, 1.0]]))
        with pytest.raises(TypeError, match=r"Normal\(mean, std\)"):
            DistributionNLL()(torch.zeros(4, 3), torch.zeros(4, 3))
        full = D.MultivariateNormal(torch.zeros(2, 2), torch.eye(2))
        with pytest.raises(ValueError, match=r"mask \(2, 2\).*\(2,\)"):
            DistributionNLL()(full, torch.zeros(2, 2), mask=torch.ones(2, 2))
