"""The model: an encoder that returns a distribution, a decoder, and an ELBO made of terms."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.optim import Adam, Optimizer

import kldiv
from examples.vae import InputError
from examples.vae.data import Batch, mixed_seed


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of these sizes with ReLUs between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Encoder(nn.Module):
    """Images to q(z|x), a diagonal Gaussian.

    Args:
        input_shape: of an image, (C, H, W).
        hidden: sizes of the hidden layers.
        latent_dim: dimensions of z.
    """

    def __init__(self, input_shape: Sequence[int], hidden: Sequence[int], latent_dim: int) -> None:
        super().__init__()
        self.network = mlp([math.prod(input_shape), *hidden, 2 * latent_dim])

    def forward(self, image: Tensor) -> kldiv.DiagonalNormal:
        mean, log_var = self.network(image.flatten(1)).chunk(2, dim=1)
        # unchecked: a look at the values would wait for the device at every step
        return kldiv.DiagonalNormal(mean, log_var, validate_args=False)


class Decoder(nn.Module):
    """z of shape (*samples, latent_dim) to what the likelihood takes, (*samples, C, H, W).

    Args:
        latent_dim: dimensions of z.
        hidden: sizes of the hidden layers.
        output_shape: (C, H, W).
    """

    def __init__(self, latent_dim: int, hidden: Sequence[int], output_shape: Sequence[int]) -> None:
        super().__init__()
        self.output_shape = tuple(output_shape)
        self.network = mlp([latent_dim, *hidden, math.prod(output_shape)])

    def forward(self, sample: Tensor) -> Tensor:
        return self.network(sample).unflatten(-1, self.output_shape)


class VAE(LightningModule):
    """A variational auto-encoder.

    Args:
        encoder: images to a distribution of z.
        decoder: z to the output that the likelihood takes.
        elbo: the loss, whose terms can be swapped in the YAML file.
        prior: a module that returns the distribution of z when called without arguments, such as
            :class:`kldiv.MixturePrior`; ``None`` is the standard normal.
        optimizer: makes the optimiser of the parameters.
        compile: whether training steps run through ``torch.compile``. The first of each size of batch waits for it, a
            CPU needs a C++ compiler, and the noise is another than without.
    """

    seed = 0
    """Of the noise: each step draws from its own stream, so that a resumed run draws what it would have drawn."""

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        elbo: kldiv.ELBOLoss,
        prior: nn.Module | None = None,
        optimizer: OptimizerCallable = lambda parameters: Adam(parameters, lr=1e-3),
        compile: bool = False,  # noqa: A002
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.elbo, self.prior = encoder, decoder, elbo, prior
        self.optimizer, self.is_compiled = optimizer, compile

    def forward(self, image: Tensor, weight: Tensor | None = None) -> kldiv.ELBOTerms:
        """The terms of the bound for one sample of q(z|x) each."""
        return self.bound(self.encoder(image), image, weight)

    def bound(self, posterior: Distribution, image: Tensor, weight: Tensor | None = None) -> kldiv.ELBOTerms:
        """The same, of a posterior that is there already."""
        sample = posterior.rsample()
        prior = None if self.prior is None else self.prior()
        terms: kldiv.ELBOTerms = self.elbo(
            self.decoder(sample), image, posterior, prior, sample=self.reused(sample), sample_weight=weight
        )
        return terms

    def reused(self, sample: Tensor) -> Tensor | None:
        """The decoder's sample, for the KL term; ``None`` for one that is to take more samples and draws its own."""
        return sample if getattr(self.elbo.kl, "num_samples", 1) == 1 else None

    def prior_of(self, posterior: Distribution) -> Distribution:
        """p(z)."""
        prior: Distribution = kldiv.standard_prior(posterior) if self.prior is None else self.prior()
        return prior

    def on_fit_start(self) -> None:
        # one graph a size of batch, and an epoch has two: the last batch is smaller
        self.terms = torch.compile(self.forward, dynamic=False) if self.is_compiled else self.forward

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._seed_noise("train", self.trainer.current_epoch, batch_idx)
        terms = self.terms(batch.image, batch.weight)
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:
            logged = terms.detach()
            if not logged.loss.isfinite():
                raise InputError(
                    f"training diverged: the loss is {logged.loss.item()} after {self.global_step} steps. "
                    "A smaller learning rate is the first thing to try"
                )
            terms_of_all_groups = {name: value for name, value in logged._asdict().items() if name != "kl_per_group"}
            self.log_dict({f"train/{name}": value for name, value in terms_of_all_groups.items()})
            bar = {"elbo": -logged.negative_elbo, "reconstruction": logged.reconstruction, "kl": logged.kl}
            self.log_dict(bar, prog_bar=True, logger=False)
        return terms.loss

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        posterior, terms = self._evaluation_step("val", batch, batch_idx)
        return {"posterior": posterior, "terms": terms}  # for callbacks

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluation_step("test", batch, batch_idx)

    def _evaluation_step(self, split: str, batch: Batch, batch_idx: int) -> tuple[Distribution, kldiv.ELBOTerms]:
        self._seed_noise(split, batch_idx)
        posterior = self.encoder(batch.image)
        terms = self.bound(posterior, batch.image, batch.weight)
        metrics = {f"{split}/{name}": getattr(terms, name) for name in ("negative_elbo", "reconstruction", "kl")}
        self.log_dict(metrics, batch_size=batch.count, sync_dist=True)
        return posterior, terms

    def configure_optimizers(self) -> Optimizer:
        optimizer = self.optimizer(self.parameters())
        steps = self.trainer.estimated_stepping_batches
        kldiv.attach(self.elbo, optimizer, total_steps=int(steps) if math.isfinite(steps) else None)
        return optimizer

    def _seed_noise(self, *stream: object) -> None:
        # the generator of one device alone: torch.manual_seed goes through every backend, which takes a hundred times
        # as long
        seed = mixed_seed(self.seed, *stream, self.global_rank)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)
