import pytest
import torch

from examples.vae import InputError
from examples.vae.data import Digits, TensorBatches, mixed_seed

IMAGES, LABELS = torch.arange(23.0).view(23, 1, 1, 1), torch.arange(23)


def batches(**options):
    return TensorBatches(IMAGES, LABELS, 6, **options)


def test_every_example_once_with_its_label():
    for loader in (batches(), batches(seed=3)):
        given = list(loader)
        assert len(given) == len(loader) == 4
        labels = torch.cat([batch.label for batch in given])
        assert sorted(labels.tolist()) == list(range(23))
        assert torch.equal(torch.cat([batch.image for batch in given]).flatten().long(), labels)
        assert [batch.count for batch in given] == [6, 6, 6, 5]
        assert all(batch.weight is None for batch in given)


def test_the_order_follows_seed_and_epoch_alone():
    def order(seed, epoch):
        return torch.cat([batch.label for batch in batches(seed=seed, epoch=lambda: epoch)]).tolist()

    torch.manual_seed(0)
    first = order(0, 0)
    torch.manual_seed(1)
    assert order(0, 0) == first
    assert order(0, 1) != first
    assert order(1, 0) != first


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_processes_share_each_batch_and_padding_leaves_the_mean_as_it_is(world_size):
    whole = list(batches(seed=0))
    parts = list(zip(*(batches(seed=0, rank=rank, world_size=world_size) for rank in range(world_size)), strict=True))
    assert len(parts) == len(whole)
    for batch, shares in zip(whole, parts, strict=True):
        weights = [torch.ones(len(s.image)) if s.weight is None else s.weight for s in shares]
        assert len({len(share.image) for share in shares}) == 1
        assert all(share.count == batch.count for share in shares)
        kept = torch.cat([share.label[weight > 0] for share, weight in zip(shares, weights, strict=True)])
        assert torch.equal(kept, batch.label)
        means = [(s.image.flatten() * w).sum() / len(w) for s, w in zip(shares, weights, strict=True)]
        torch.testing.assert_close(sum(means) / world_size, batch.image.mean())


def test_more_processes_than_examples():
    loader = TensorBatches(IMAGES[:1], LABELS[:1], 6, rank=1, world_size=2)
    (batch,) = loader
    assert batch.weight.tolist() == [0.0]


def test_digits_in_three_splits_that_share_nothing():
    data = Digits()
    data.setup()
    assert {name: len(images) for name, (images, _) in data.splits.items()} == {"train": 1297, "val": 200, "test": 300}
    rows = torch.cat([images.flatten(1) for images, _ in data.splits.values()])
    assert len(rows) == 1797
    assert rows.min() == 0
    assert rows.max() == 1
    counts = [labels.bincount(minlength=10) for _, labels in data.splits.values()]
    assert all((count > 0).all() for count in counts)


@pytest.mark.parametrize("options", [{"val_size": 0}, {"test_size": 1797}, {"val_size": 1600}])
def test_a_split_that_takes_everything_is_refused(options):
    with pytest.raises(InputError, match="_size="):
        Digits(**options).setup()


def test_batch_sizes_are_checked():
    with pytest.raises(InputError, match="batch_size=0"):
        Digits(batch_size=0)


def test_mixed_seeds_differ():
    seeds = {mixed_seed(*parts) for parts in ((0, "train", 1), (0, "train", 2), (1, "train", 1), (0, "val", 1))}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
