"""A KL of weight 0 counts nothing, in value and gradient, though it is infinite."""

import pytest
import torch
from torch import distributions, nn

from kldiv import (
    BalancedKLLoss,
    BernoulliNLL,
    Capacity,
    CosineWarmup,
    CyclicalWarmup,
    DiagonalNormal,
    ELBOLoss,
    ExactKLLoss,
    FreeBits,
    LinearWarmup,
    MonteCarloKLLoss,
)


class Zero(nn.Module):
    """A weight of 0, of which only its value tells that it is 0."""

    def forward(self):
        return torch.zeros(())


WEIGHTS = [0.0, LinearWarmup(steps=9), CosineWarmup(steps=9), CyclicalWarmup(steps=9), Zero()]
POSTERIORS = {
    "diagonal": lambda a, b: DiagonalNormal(a, b),
    "normal": lambda a, b: distributions.Independent(distributions.Normal(a, torch.exp(0.5 * b)), 1),
    "laplace": lambda a, b: distributions.Independent(distributions.Laplace(a, torch.exp(b)), 1),
    "full": lambda a, b: distributions.MultivariateNormal(a, scale_tril=torch.diag_embed(torch.exp(0.5 * b))),
}


def infinite(make=POSTERIORS["diagonal"], dtype=torch.float32):
    """A posterior and its sample's decoder's output; the KL overflows in its last example."""
    mean = torch.full((3, 2), 0.5, dtype=dtype)
    mean[-1] = 1e30 if dtype == torch.float32 else 1e200
    mean = mean.requires_grad_()
    log_var = torch.zeros(3, 2, dtype=dtype, requires_grad=True)
    weight = torch.tensor([[0.5, -0.5, 1.0], [1.0, 0.2, 0.1]], dtype=dtype, requires_grad=True)
    posterior = make(mean, log_var)
    return posterior, torch.tanh(mean + 0.1 * torch.exp(0.5 * log_var)) @ weight, [mean, log_var, weight]


@pytest.mark.parametrize("transform", [None, FreeBits(0.1), FreeBits(0.1, batch_mean=False), Capacity(1.0, 2.0)])
@pytest.mark.parametrize("kl", [ExactKLLoss(), MonteCarloKLLoss(2), BalancedKLLoss()], ids=lambda kl: type(kl).__name__)
@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda weight: type(weight).__name__)
def test_the_loss_is_the_reconstruction(weight, kl, transform):
    posterior, output, leaves = infinite()
    elbo = ELBOLoss(BernoulliNLL(), kl, weight=weight, transform=transform)
    terms = elbo(output, torch.ones(3, 3), posterior)
    assert terms.kl.item() == torch.inf
    assert terms.negative_elbo.item() == torch.inf
    assert terms.loss.item() == terms.reconstruction.item()
    found = torch.autograd.grad(terms.loss, leaves, retain_graph=True)
    assert all(map(torch.equal, found, torch.autograd.grad(terms.reconstruction, leaves)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", POSTERIORS)
def test_of_every_family(family, dtype):
    posterior, output, leaves = infinite(POSTERIORS[family], dtype)
    terms = ELBOLoss(BernoulliNLL(), weight=LinearWarmup(steps=9))(output, torch.ones_like(output), posterior)
    assert terms.loss.item() == terms.reconstruction.item()
    found = torch.autograd.grad(terms.loss, leaves, retain_graph=True)
    assert all(map(torch.equal, found, torch.autograd.grad(terms.reconstruction, leaves)))


def test_where_only_the_device_knows_the_weight():
    """Under function transforms, as under compile and on a GPU, no value is read."""
    _, _, leaves = infinite()
    elbo = ELBOLoss(BernoulliNLL(), weight=LinearWarmup(steps=9))

    def loss(mean, log_var, weight):
        posterior = DiagonalNormal(mean, log_var, validate_args=False)
        return elbo(torch.tanh(mean) @ weight, torch.ones(3, 3), posterior).loss

    def reconstruction(mean, log_var, weight):
        return BernoulliNLL()(torch.tanh(mean) @ weight, torch.ones(3, 3))

    found, expected = (torch.func.grad(f, argnums=(0, 1, 2))(*leaves) for f in (loss, reconstruction))
    assert all(map(torch.equal, found, expected))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves)
    torch.testing.assert_close(compiled, reconstruction(*leaves))
    torch.testing.assert_close(torch.autograd.grad(compiled, leaves), expected)


def test_the_kl_keeps_its_gradient_and_what_only_it_depends_on_has_one_of_zero():
    """Optimisers and DistributedDataParallel count on a gradient for every parameter."""
    mean = torch.ones(4, 2, requires_grad=True)
    prior_mean = torch.zeros(2, requires_grad=True)
    posterior, prior = DiagonalNormal(mean, torch.zeros(4, 2)), DiagonalNormal(prior_mean, torch.zeros(2))
    terms = ELBOLoss(BernoulliNLL(), weight=0.0)(mean.repeat(1, 4), torch.ones(4, 8), posterior, prior)
    (gradient,) = torch.autograd.grad(terms.kl, mean, retain_graph=True)
    torch.testing.assert_close(gradient, mean.detach() / 4)
    (gradient,) = torch.autograd.grad(terms.loss, prior_mean)
    assert gradient.tolist() == [0.0, 0.0]


def test_a_weight_is_no_longer_asked_once_steps_were_taken():
    warmup = LinearWarmup(steps=9)
    assert not warmup.has_moved
    warmup.step()
    assert warmup.has_moved
    warmup.steps_taken.zero_()
    assert not warmup.has_moved
    warmup.step(torch.tensor(1))  # of a gradient scaler, which may skip it
    assert not warmup.has_moved


def test_a_weight_above_zero_is_what_it_was():
    posterior, output, _ = infinite()
    elbo = ELBOLoss(BernoulliNLL(), weight=LinearWarmup(steps=9))
    elbo.step()
    assert elbo(output, torch.ones(3, 3), posterior).loss.item() == torch.inf
