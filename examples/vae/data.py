"""Images that stay in memory, on the training device, and are batched by indexing."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from examples.vae import InputError
from examples.vae.mnist import load_mnist

Split = tuple[Tensor, Tensor]


class Batch(NamedTuple):
    """One process's part of a batch."""

    image: Tensor
    """(n, C, H, W), in [0, 1]."""
    label: Tensor
    """(n,)."""
    weight: Tensor | None
    """(n,): where the batch was padded so that all processes have equally many, 0 for padding; else ``None``."""
    count: int
    """Examples in the batch of all processes together."""


def mixed_seed(*parts: object) -> int:
    """A 63-bit seed from whatever tells one random stream from another: the run's seed, a purpose, a step."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class TensorBatches:
    """Batches of tensors by indexing, the same for any number of processes: each takes its slice of every batch.

    Args:
        images, labels: the data, on the device where it is wanted.
        batch_size: examples in a batch of all processes together.
        seed: of the order of an epoch; ``None``: as they stand.
        epoch: gives the number of the epoch that begins, so that a resumed run goes on in the same order.
        rank, world_size: of this process, and how many there are.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        seed: int | None = None,
        epoch: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.seed, self.epoch, self.rank, self.world_size = seed, epoch, rank, world_size

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.arange(len(self.images))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, "order", self.epoch()))
            order = torch.randperm(len(self.images), generator=generator)
        for index in order.to(self.images.device).split(self.batch_size):
            yield self._batch(index)

    def _batch(self, index: Tensor) -> Batch:
        count, weight = len(index), None
        share = -(-count // self.world_size)
        if share * self.world_size != count:
            padding = share * self.world_size - count
            # the processes' means over share examples each average to the mean over the true count
            weight = torch.full((share * self.world_size,), share * self.world_size / count, device=index.device)
            weight[count:] = 0
            index = torch.cat([index, index[:1].expand(padding)])
        mine = slice(self.rank * share, (self.rank + 1) * share)
        index = index[mine]
        return Batch(self.images[index], self.labels[index], None if weight is None else weight[mine], count)


class InMemoryImages(LightningDataModule):
    """Images of three splits: training never sees ``"test"``, and ``"val"`` chooses the checkpoint.

    Args:
        batch_size: examples in a training batch, of all processes together.
        eval_batch_size: the same in validation and test.
    """

    seed = 0
    """Of the order of the training examples."""

    def __init__(self, batch_size: int = 128, eval_batch_size: int = 1000) -> None:
        super().__init__()
        if batch_size < 1 or eval_batch_size < 1:
            raise InputError(f"batch_size={batch_size}, eval_batch_size={eval_batch_size}: at least one example")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.splits: dict[str, Split] = {}

    def load(self) -> dict[str, Split]:
        """The splits ``"train"``, ``"val"`` and ``"test"``: images (N, C, H, W) in [0, 1] and labels (N,)."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        if not self.splits:
            self.splits = self.load()

    def train_dataloader(self) -> TensorBatches:
        return self._batches("train", self.batch_size, seed=self.seed)

    def val_dataloader(self) -> TensorBatches:
        return self._batches("val", self.eval_batch_size)

    def test_dataloader(self) -> TensorBatches:
        return self._batches("test", self.eval_batch_size)

    def _batches(self, split: str, batch_size: int, seed: int | None = None) -> TensorBatches:
        trainer = self.trainer
        assert trainer is not None
        self.splits[split] = tuple(part.to(trainer.strategy.root_device) for part in self.splits[split])
        return TensorBatches(
            *self.splits[split],
            batch_size,
            seed=seed,
            epoch=lambda: trainer.current_epoch,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )


class Digits(InMemoryImages):
    """The 1,797 handwritten digits of 8 x 8 pixels that ship inside scikit-learn, in 17 grey values.

    Args:
        val_size, test_size: examples held out; the same ones in every run.
        batch_size, eval_batch_size: see :class:`InMemoryImages`.
    """

    def __init__(
        self, val_size: int = 200, test_size: int = 300, batch_size: int = 64, eval_batch_size: int = 300
    ) -> None:
        super().__init__(batch_size, eval_batch_size)
        self.val_size, self.test_size = val_size, test_size

    def load(self) -> dict[str, Split]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
        labels = torch.tensor(digits.target)
        # the file goes writer by writer: shuffled once, the splits are alike
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        images, labels = images[order], labels[order]
        rest, test = _hold_out(images, labels, self.test_size, "test_size")
        train, val = _hold_out(*rest, self.val_size, "val_size")
        return {"train": train, "val": val, "test": test}


class MNIST(InMemoryImages):
    """Handwritten digits of 28 x 28 grey values: 60,000 to train and validate with, 10,000 to test.

    Args:
        root: the folder with ``MNIST/raw`` in it, read as it is; where there is none torchvision downloads it.
        val_size: how many of the 60,000, the last ones, are held out for validation.
        batch_size, eval_batch_size: see :class:`InMemoryImages`.
    """

    def __init__(
        self,
        root: str | Path = "data",
        val_size: int = 5000,
        batch_size: int = 128,
        eval_batch_size: int = 1000,
    ) -> None:
        super().__init__(batch_size, eval_batch_size)
        self.root, self.val_size = root, val_size

    def load(self) -> dict[str, Split]:
        splits = {name: (images.float() / 255, labels) for name, (images, labels) in load_mnist(self.root).items()}
        train, val = _hold_out(*splits["train"], self.val_size, "val_size")
        return {"train": train, "val": val, "test": splits["test"]}


def _hold_out(images: Tensor, labels: Tensor, size: int, name: str) -> tuple[Split, Split]:
    if not 0 < size < len(images):
        raise InputError(f"{name}={size} must leave some of the {len(images)} examples on either side")
    return (images[:-size], labels[:-size]), (images[-size:], labels[-size:])
