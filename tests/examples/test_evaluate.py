import pytest
import torch
from torch import nn

import kldiv
from examples.vae.evaluate import evaluate
from examples.vae.model import VAE


class LinearEncoder(nn.Module):
    """A posterior that is wider than the true one, so that the weights have a finite variance."""

    def __init__(self, loadings):
        super().__init__()
        precision = torch.eye(2) + loadings.T @ loadings
        self.register_buffer("gain", torch.linalg.solve(precision, loadings.T))
        self.register_buffer("variance", 1.5 * torch.linalg.inv(precision).diagonal())

    def forward(self, image):
        mean = image.flatten(1) @ self.gain.T
        return kldiv.DiagonalNormal(mean, self.variance.log().expand_as(mean))


class LinearDecoder(nn.Module):
    def __init__(self, loadings):
        super().__init__()
        self.register_buffer("loadings", loadings)

    def forward(self, sample):
        return (sample @ self.loadings.T).unflatten(-1, (1, 2, 2))


def test_against_the_exact_likelihood_of_a_linear_gaussian_model():
    loadings = torch.tensor([[1.0, 0.0], [0.5, 0.0], [0.0, 0.7], [0.0, -0.4]])
    model = VAE(LinearEncoder(loadings), LinearDecoder(loadings), kldiv.ELBOLoss(kldiv.GaussianNLL()))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(203, 1, 2, 2, generator=generator)
    marginal = torch.distributions.MultivariateNormal(torch.zeros(4), torch.eye(4) + loadings @ loadings.T)
    truth = marginal.log_prob(images.flatten(1)).mean().item()

    result = evaluate(model, images, importance_samples=400, batch_size=150)
    # the gate of 4 standard errors has a false-alarm rate of 6e-5; the noise has a fixed seed
    assert abs(result.log_likelihood - truth) < 4 * result.log_likelihood_standard_error
    assert result.log_likelihood_standard_error < 0.02
    posterior = model.encoder(images)
    kl = kldiv.ExactKLLoss().per_dimension(posterior)
    torch.testing.assert_close(result.kl_per_dimension, kl.mean(0))
    assert result.kl == pytest.approx(kl.sum(1).mean().item(), rel=1e-5)
    assert result.negative_elbo == pytest.approx(result.reconstruction + result.kl, rel=1e-5)
    assert result.negative_elbo > -truth - 0.1
    assert result.active_units == int((posterior.mean.var(0) > 0.01).sum()) == 2
    again = evaluate(model, images, importance_samples=400, batch_size=150)
    assert (again.negative_elbo, again.log_likelihood) == (result.negative_elbo, result.log_likelihood)


def test_leaves_the_mode_as_it_was():
    loadings = torch.zeros(4, 2)
    model = VAE(LinearEncoder(loadings), LinearDecoder(loadings), kldiv.ELBOLoss(kldiv.GaussianNLL())).train()
    evaluate(model, torch.zeros(3, 1, 2, 2), importance_samples=20)
    assert model.training
