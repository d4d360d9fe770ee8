"""What a trained model is worth on a test set."""

from dataclasses import dataclass

import torch
from torch import Tensor

import kldiv
from examples.vae.data import TensorBatches
from examples.vae.model import VAE

ACTIVE = 0.01
"""A latent is active if the variance of its posterior mean exceeds it (Burda, Grosse & Salakhutdinov 2016, 5.3)."""


@dataclass
class Evaluation:
    """Means over the test set, in nats per example."""

    negative_elbo: float
    reconstruction: float
    kl: float
    log_likelihood: float
    log_likelihood_standard_error: float
    """Of the importance sampling, for these test images: not of drawing others."""
    active_units: int
    kl_per_dimension: Tensor
    """(latent_dim,), to the standard normal, whatever the prior: a learned one has no KL of one dimension."""


@torch.no_grad()
def evaluate(model: VAE, images: Tensor, *, importance_samples: int = 100, batch_size: int = 500) -> Evaluation:
    """Evaluates the model on images (N, C, H, W), in eval mode, on the device where both are.

    The noise comes from the model's seed. ``importance_samples`` samples of each image give the log-likelihood,
    with at most ``batch_size`` images for the decoder at a time.
    """
    training = model.training
    model.eval()
    model._seed_noise("evaluation")
    terms, means, kls = [], [], []
    for batch in TensorBatches(images, images, batch_size):
        posterior = model.encoder(batch.image)
        terms.append(torch.stack(model(batch.image)[1:4]) * batch.count)
        means.append(posterior.mean)
        kls.append(kldiv.ExactKLLoss().per_dimension(posterior))
    likelihood = kldiv.estimate_log_likelihood(
        images,
        model.encoder,
        model.decoder,
        model.elbo.reconstruction,
        model.prior,
        num_samples=importance_samples,
        max_rows=batch_size,
    )
    model.train(training)
    negative_elbo, reconstruction, kl = (torch.stack(terms).sum(0) / len(images)).tolist()
    return Evaluation(
        negative_elbo,
        reconstruction,
        kl,
        likelihood.value.mean().item(),
        likelihood.standard_error.square().sum().sqrt().item() / len(images),
        int((torch.cat(means).var(0) > ACTIVE).sum()),
        torch.cat(kls).mean(0).cpu(),
    )
