"""What a trained model is worth on a test set."""

from dataclasses import dataclass

import torch
from torch import Tensor

import kldiv
from examples.vae.data import TensorBatches
from examples.vae.model import VAE
from kldiv.metrics import ActiveUnits, KLPerDimension, RateDistortion

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
    # of this process alone: the others do not evaluate
    active_units = ActiveUnits(ACTIVE, sync_on_compute=False)
    kl_per_dimension, curve = KLPerDimension(sync_on_compute=False), RateDistortion(sync_on_compute=False)
    for metric in (active_units, kl_per_dimension, curve):
        metric.to(images.device)
    for batch in TensorBatches(images, images, batch_size):
        posterior = model.encoder(batch.image)
        active_units.update(posterior)
        kl_per_dimension.update(posterior)
        curve.update(model.bound(posterior, batch.image), count=batch.count)
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
    means = curve.compute()
    return Evaluation(
        means["negative_elbo"].item(),
        means["distortion"].item(),
        means["rate"].item(),
        likelihood.value.mean().item(),
        likelihood.standard_error.square().sum().sqrt().item() / len(images),
        int(active_units.compute()),
        kl_per_dimension.compute().reshape(-1).float().cpu(),
    )
