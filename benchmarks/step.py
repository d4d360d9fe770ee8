"""Where each millisecond of a training step goes.

python -m benchmarks.step [--config configs/mnist.yaml] [--json FILE] [-- --data.root FOLDER ...]

The parts of a step of the example's model are timed in a loop written by hand. What the trainer's step takes beyond
them is Lightning's: hooks, progress bar, logging. Medians over an epoch of each; the trainer's and the plain loop's
steps are means over one.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.epoch import PlainLoop, fit, options_and_rest
from benchmarks.measure import machine, processor, synchronise
from examples.vae.data import TensorBatches
from examples.vae.model import VAE


class Laps:
    """Seconds of each part, step by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        synchronise()
        self.seconds.setdefault(part, []).append(time.perf_counter() - start)


def by_hand(model: VAE, batches: TensorBatches) -> dict[str, float]:
    """Median seconds of each part of a step."""
    optimizer, laps = model.optimizer(model.parameters()), Laps()
    model.train()
    for k, (image, *_) in enumerate(batches):
        with laps.of("seed of the noise"):
            model._seed_noise("train", 0, k)
        with laps.of("encoder"):
            posterior = model.encoder(image)
        with laps.of("sample"):
            sample = posterior.rsample()
        with laps.of("decoder"):
            output = model.decoder(sample)
        with laps.of("likelihood"):
            model.elbo.reconstruction.per_example(output, image)
        with laps.of("KL"):
            model.elbo.kl.per_example(posterior)
        with laps.of("whole ELBO, both of these in it"):
            loss = model.elbo(output, image, posterior).loss
        with laps.of("backward"):
            optimizer.zero_grad()
            loss.backward()
        with laps.of("optimiser"):
            optimizer.step()
    return {part: statistics.median(values) for part, values in laps.seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options, rest = options_and_rest(parser)
    trained = fit(options.config, 2, rest)
    count = len(trained.batches)
    images = trained.batches.images.flatten(1)
    plain = PlainLoop().to(images.device)
    plain.train_epoch(images, trained.batches.batch_size)
    parts = {"trainer, whole step": trained.seconds[-1] / count}
    parts["plain loop, whole step"] = plain.train_epoch(images, trained.batches.batch_size) / count
    start = time.perf_counter()
    for _ in trained.batches:
        pass
    synchronise()
    parts["batch"] = (time.perf_counter() - start) / count
    parts |= by_hand(trained.model, trained.batches)
    own = sum(value for part, value in parts.items() if "step" not in part and part not in ("likelihood", "KL"))
    parts["Lightning"] = parts["trainer, whole step"] - own
    print(f"\n{processor()}, {torch.get_num_threads()} threads, milliseconds a step")
    for part, value in parts.items():
        print(f"{part:34}{1e3 * value:8.2f}")
    if options.json:
        result = {"milliseconds": {part: 1e3 * value for part, value in parts.items()}, "config": options.config}
        Path(options.json).write_text(json.dumps({**result, **machine()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
