import gzip
import struct
from pathlib import Path

import pytest
import torch

from examples.vae import InputError
from examples.vae.data import MNIST
from examples.vae.mnist import load_mnist

COUNTS = {"train": 30, "t10k": 10}


def write_mnist(root, compress=False, counts=COUNTS):
    """A data set of MNIST's format: random images, and labels that say which image they belong to."""
    raw = Path(root) / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for part, count in counts.items():
        images = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=generator)
        contents = {
            f"{part}-images-idx3-ubyte": struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28) + images.numpy().tobytes(),
            f"{part}-labels-idx1-ubyte": struct.pack(">4BI", 0, 0, 8, 1, count) + bytes(n % 10 for n in range(count)),
        }
        for name, content in contents.items():
            if compress:
                (raw / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (raw / name).write_bytes(content)
    return raw


@pytest.fixture(autouse=True)
def _no_download(monkeypatch):
    torchvision = pytest.importorskip("torchvision", reason="the examples need torchvision")

    def refuse(*args, **kwargs):
        raise RuntimeError("Error downloading:\nTried https://server/, got:\n<urlopen error [Errno -2] no such name>\n")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", refuse)


@pytest.mark.parametrize("compress", [False, True])
def test_files_as_they_are_and_compressed(tmp_path, compress):
    raw = write_mnist(tmp_path, compress)
    before = sorted(raw.iterdir())
    for path in [raw, *raw.iterdir()]:
        path.chmod(0o555)
    splits = load_mnist(tmp_path)
    assert splits["train"][0].shape == (30, 1, 28, 28)
    assert splits["train"][0].dtype == torch.uint8
    assert splits["test"][1].tolist() == list(range(10))
    assert sorted(raw.iterdir()) == before
    raw.chmod(0o755)


def test_agrees_with_torchvision(tmp_path):
    from torchvision import datasets

    write_mnist(tmp_path)
    for train, split in ((True, "train"), (False, "test")):
        theirs = datasets.MNIST(tmp_path, train=train)
        images, labels = load_mnist(tmp_path)[split]
        assert torch.equal(images[:, 0], theirs.data)
        assert torch.equal(labels, theirs.targets)


def test_the_splits_of_the_data_module(tmp_path):
    write_mnist(tmp_path)
    data = MNIST(tmp_path, val_size=5)
    data.setup()
    assert {name: tuple(images.shape) for name, (images, _) in data.splits.items()} == {
        "train": (25, 1, 28, 28),
        "val": (5, 1, 28, 28),
        "test": (10, 1, 28, 28),
    }
    assert data.splits["train"][0].max() == 1.0
    with pytest.raises(InputError, match="val_size=5000"):
        MNIST(tmp_path).setup()


def test_a_part_that_is_missing_is_named(tmp_path):
    raw = write_mnist(tmp_path)
    (raw / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte"):
        load_mnist(tmp_path)


def test_the_raw_folder_itself_is_refused_with_the_one_to_give(tmp_path):
    raw = write_mnist(tmp_path)
    with pytest.raises(InputError, match=f"give {tmp_path} in its place"):
        load_mnist(raw)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: content[:-100], "is damaged"),
        (lambda content: content[:7], "is no IDX file"),
        (lambda content: b"", "is no IDX file"),
        (lambda content: b"<html>" + content, "is no IDX file"),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_damaged_files_are_named(tmp_path, damage, says, compress):
    raw = write_mnist(tmp_path, compress)
    path = next(raw.glob("train-images*"))
    content = gzip.decompress(path.read_bytes()) if compress else path.read_bytes()
    path.write_bytes(gzip.compress(damage(content)) if compress else damage(content))
    with pytest.raises(InputError, match=f"{path.name} {says}"):
        load_mnist(tmp_path)


@pytest.mark.parametrize("damage", [lambda packed: packed[:-20], lambda packed: b"no gzip", lambda packed: packed[:9]])
def test_damaged_archives_are_named(tmp_path, damage):
    raw = write_mnist(tmp_path, compress=True)
    path = raw / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte.gz cannot be read"):
        load_mnist(tmp_path)


def test_images_and_labels_of_unequal_number(tmp_path):
    raw = write_mnist(tmp_path)
    (raw / "train-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 2) + bytes(2))
    with pytest.raises(InputError, match="train has 30 images and 2 labels"):
        load_mnist(tmp_path)


def test_a_download_that_fails_says_what_where_and_what_to_do_and_leaves_nothing(tmp_path, capsys):
    root = tmp_path / "data"
    with pytest.raises(InputError) as caught:
        load_mnist(root)
    message = str(caught.value)
    for part in (str(root / "MNIST" / "raw"), "no such name", "t10k-labels-idx1-ubyte", "DATA=FOLDER", "from"):
        assert part in message
    assert len(message.splitlines()) == 2
    assert not root.exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("empty_before", [False, True])
def test_a_download_is_moved_into_place_whole(tmp_path, monkeypatch, empty_before):
    from torchvision import datasets

    class Downloads:
        mirrors = datasets.MNIST.mirrors

        def __init__(self, root, download):
            assert download
            write_mnist(root)

    if empty_before:  # what torchvision leaves of a download that failed
        (tmp_path / "data" / "MNIST" / "raw").mkdir(parents=True)
    monkeypatch.setattr(datasets, "MNIST", Downloads)
    assert len(load_mnist(tmp_path / "data")["train"][0]) == 30
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["MNIST"]
