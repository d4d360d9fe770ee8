"""Seconds a training epoch: the example's trainer against a plain loop, alternating in one run.

python -m benchmarks.epoch [--config configs/mnist.yaml] [--epochs 6] [-- --data.root FOLDER ...]

The plain loop trains the same network on the same tensors in memory, with the loss that is copied everywhere:
binary_cross_entropy with a sum, and -0.5 * sum(1 + log_var - mean^2 - exp(log_var)).
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.measure import machine
from examples.vae.data import TensorBatches
from examples.vae.recording import EpochClock, MetricsCSV
from examples.vae.train import make_cli


class PlainLoop(nn.Module):
    """784-400-20 as in pytorch/examples."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.mean, self.log_var = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)
        self.fc3, self.fc4 = nn.Linear(20, 400), nn.Linear(400, 784)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)

    def loss(self, image: Tensor) -> Tensor:
        """Summed over the batch."""
        hidden = functional.relu(self.fc1(image))
        mean, log_var = self.mean(hidden), self.log_var(hidden)
        sample = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        output = torch.sigmoid(self.fc4(functional.relu(self.fc3(sample))))
        reconstruction = functional.binary_cross_entropy(output, image, reduction="sum")
        return reconstruction - 0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp())

    def train_epoch(self, images: Tensor, batch_size: int) -> float:
        """Seconds."""
        start = time.perf_counter()
        for index in torch.randperm(len(images), device=images.device).split(batch_size):
            self.optimizer.zero_grad()
            self.loss(images[index]).backward()
            self.optimizer.step()
        if images.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    @torch.no_grad()
    def test(self, images: Tensor) -> float:
        """The test loss of an example."""
        return sum(self.loss(part).item() for part in images.split(1000)) / len(images)


class Alternate(Callback):
    """Runs an epoch of the plain loop after each of the trainer's."""

    def __init__(self, plain: PlainLoop) -> None:
        self.plain, self.seconds = plain, []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = trainer.train_dataloader
        assert isinstance(batches, TensorBatches)
        images = batches.images.flatten(1)
        with torch.random.fork_rng():
            self.seconds.append(self.plain.to(images.device).train_epoch(images, batches.batch_size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/mnist.yaml")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--json", help="file for the result")
    options, rest = parser.parse_known_args()
    rest = [argument for argument in rest if argument != "--"]
    cli = make_cli(["--config", options.config, "--trainer.max_epochs", str(options.epochs), *rest], run=False)
    torch.manual_seed(0)
    alternate = Alternate(PlainLoop())
    # behind the clock, which must not count it
    clock = next(callback for callback in cli.trainer.callbacks if isinstance(callback, EpochClock))
    cli.trainer.callbacks.insert(cli.trainer.callbacks.index(clock) + 1, alternate)
    with tempfile.TemporaryDirectory() as folder:
        cli.trainer.loggers = [MetricsCSV(f"{folder}/metrics.csv")]
        for callback in cli.trainer.checkpoint_callbacks:
            callback.dirpath = folder
        cli.trainer.fit(cli.model, cli.datamodule)
    ours, plain = statistics.median(clock.seconds), statistics.median(alternate.seconds)
    test = cli.datamodule.splits["test"][0].flatten(1)
    if options.json:
        result = {
            "seconds_trainer": ours,
            "seconds_plain_loop": plain,
            "ratio": ours / plain,
            "epochs": options.epochs,
            "config": options.config,
            "device": str(cli.trainer.strategy.root_device),
            **machine(),
        }
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nseconds a training epoch, median of {options.epochs}: trainer {ours:.2f}, plain loop {plain:.2f}")
    print(f"ratio {ours / plain:.2f}")
    print(f"test loss of the plain loop after {options.epochs} epochs: {alternate.plain.test(test.cpu()):.2f}")


if __name__ == "__main__":
    main()
