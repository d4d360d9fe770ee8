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

    The noise comes from the model's seed. Weights of ``importance_samples`` samples each give the log-likelihood, in
    chunks that hold ``batch_size`` decoder outputs at a time.
    """
    training = model.training
    model.eval()
    model._seed_noise("evaluation")
    terms, means, kls, values, errors = [], [], [], [], []
    for batch in TensorBatches(images, images, batch_size):
        posterior = model.encoder(batch.image)
        terms.append(torch.stack(model(batch.image)[1:4]) * batch.count)
        means.append(posterior.mean)
        kls.append(kldiv.ExactKLLoss().per_dimension(posterior))
    chunk = max(1, min(importance_samples, batch_size // 10))
    for batch in TensorBatches(images, images, max(1, batch_size // chunk)):
        estimate = kldiv.importance_log_likelihood(_log_weights(model, batch.image, importance_samples, chunk))
        values.append(estimate.value)
        errors.append(estimate.standard_error)
    model.train(training)
    negative_elbo, reconstruction, kl = (torch.stack(terms).sum(0) / len(images)).tolist()
    return Evaluation(
        negative_elbo,
        reconstruction,
        kl,
        torch.cat(values).mean().item(),
        torch.cat(errors).square().sum().sqrt().item() / len(images),
        int((torch.cat(means).var(0) > ACTIVE).sum()),
        torch.cat(kls).mean(0).cpu(),
    )


def _log_weights(model: VAE, image: Tensor, samples: int, chunk: int) -> Tensor:
    # ln p(x|z) + ln p(z) - ln q(z|x), (samples, N)
    posterior = model.encoder(image)
    prior = model.prior_of(posterior)
    parts = []
    for start in range(0, samples, chunk):
        sample = posterior.rsample((min(chunk, samples - start),))
        output = model.decoder(sample)
        nll = model.elbo.reconstruction.per_example(output.flatten(0, 1), image.expand_as(output).flatten(0, 1))
        parts.append(prior.log_prob(sample) - posterior.log_prob(sample) - nll.view(output.shape[:2]))
    return torch.cat(parts)
