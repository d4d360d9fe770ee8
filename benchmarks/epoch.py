"""Seconds a training epoch: the example's trainer against a plain loop, alternating in one run.

python -m benchmarks.epoch [--config configs/mnist.yaml] [--epochs 7] [--script] [-- --data.root FOLDER ...]

The plain loop trains the same network on the same tensors in memory, with the loss that is copied everywhere:
binary_cross_entropy with a sum, and -0.5 * sum(1 + log_var - mean^2 - exp(log_var)). With --script it also trains an
epoch as the script of pytorch/examples feeds it: a PIL image and torchvision's ToTensor for each item, a DataLoader, a
loss read at every step.
"""

import argparse
import gzip
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks.measure import machine
from examples.vae.data import TensorBatches
from examples.vae.model import VAE
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


def script_epoch(plain: PlainLoop, root: str) -> float:
    """Seconds an image, as main.py of pytorch/examples' vae feeds and trains; the workers are for CUDA alone there."""
    device = next(plain.parameters()).device
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "MNIST", "raw")
        raw.mkdir(parents=True)
        for path in Path(root, "MNIST", "raw").iterdir():
            content = path.read_bytes()
            packed = path.suffix == ".gz"
            (raw / path.name.removesuffix(".gz")).write_bytes(gzip.decompress(content) if packed else content)
        items = datasets.MNIST(folder, train=True, transform=transforms.ToTensor())
    workers = {"num_workers": 1, "pin_memory": True} if device.type == "cuda" else {}
    total, start = 0.0, time.perf_counter()
    for k, (image, _) in enumerate(DataLoader(items, batch_size=128, shuffle=True, **workers)):
        plain.optimizer.zero_grad()
        loss = plain.loss(image.to(device).view(-1, 784))
        loss.backward()
        total += loss.item()
        plain.optimizer.step()
        if k % 10 == 0:
            print(f"{k} {loss.item() / len(image):.6f}", file=sys.stderr)
    return (time.perf_counter() - start) / len(items)


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


class Trained(NamedTuple):
    """What a run of the trainer leaves behind."""

    model: VAE
    batches: TensorBatches
    test: Tensor
    seconds: list[float]
    """Of each training epoch."""
    root: str
    """The folder of the data."""


def fit(config: str, epochs: int, rest: list[str], behind_the_clock: Callback | None = None) -> Trained:
    """Trains as examples.vae.train does, with progress bar, logging and checkpoints, in a folder that goes."""
    cli = make_cli(["--config", config, "--trainer.max_epochs", str(epochs), *rest], run=False)
    clock = next(callback for callback in cli.trainer.callbacks if isinstance(callback, EpochClock))
    if behind_the_clock is not None:  # which must not count it
        cli.trainer.callbacks.insert(cli.trainer.callbacks.index(clock) + 1, behind_the_clock)
    with tempfile.TemporaryDirectory() as folder:
        cli.trainer.loggers = [MetricsCSV(f"{folder}/metrics.csv")]
        for callback in cli.trainer.checkpoint_callbacks:
            callback.dirpath = folder
        cli.trainer.fit(cli.model, cli.datamodule)
    batches = cli.trainer.train_dataloader
    assert isinstance(batches, TensorBatches)
    device = batches.images.device
    return Trained(
        cli.model.to(device),
        batches,
        cli.datamodule.splits["test"][0].to(device),
        clock.seconds,
        str(cli.datamodule.root),
    )


def options_and_rest(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """What is ours, and what is the trainer's."""
    parser.add_argument("--config", default="configs/mnist.yaml")
    parser.add_argument("--json", help="file for the result")
    options, rest = parser.parse_known_args()
    return options, [argument for argument in rest if argument != "--"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=7, help="two at least: the first does not count")
    parser.add_argument("--script", action="store_true", help="an epoch as pytorch/examples trains, too")
    options, rest = options_and_rest(parser)
    torch.manual_seed(0)
    alternate = Alternate(PlainLoop())
    trained = fit(options.config, options.epochs, rest, alternate)
    # the first epoch warms up, and with model.compile it compiles
    ours, plain = (statistics.median(seconds[1:]) for seconds in (trained.seconds, alternate.seconds))
    result = {
        "seconds_trainer": ours,
        "seconds_plain_loop": plain,
        "ratio": ours / plain,
        "epochs": options.epochs,
        "config": options.config,
        "trainer_options": [option for option in rest if "/" not in option],
        "device": trained.batches.images.device.type,
    }
    print(f"\nseconds a training epoch, median of {options.epochs - 1}: trainer {ours:.2f}, plain loop {plain:.2f}")
    print(f"ratio {ours / plain:.2f}")
    if options.script:
        images = trained.batches.images
        script = len(images) * script_epoch(PlainLoop().to(images.device), trained.root)
        result |= {"seconds_script": script, "ratio_script": script / ours}
        print(f"fed as by pytorch/examples {script:.2f}, {script / ours:.1f} times the trainer's")
    if options.json:
        Path(options.json).write_text(json.dumps({**result, **machine()}, indent=2) + "\n")
    test = trained.test.flatten(1)
    print(
        f"test loss of the plain loop after {options.epochs} epochs: {alternate.plain.to(test.device).test(test):.2f}"
    )


if __name__ == "__main__":
    main()
