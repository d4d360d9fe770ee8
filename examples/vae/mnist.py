"""MNIST from a folder, or from the network into it."""

import contextlib
import gzip
import io
import math
import os
import re
import sys
import tempfile
import zlib
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor

from examples.vae import InputError

PARTS = {"train": "train", "test": "t10k"}


def load_mnist(root: str | Path) -> dict[str, tuple[Tensor, Tensor]]:
    """The images (N, 1, H, W) in bytes and labels (N,) of ``"train"`` and ``"test"``.

    Files in ``root/MNIST/raw`` are read as they are, unpacked or ``.gz``; if there are none torchvision downloads them.
    Raises: InputError: missing, truncated or foreign files, or a download that fails; the message names them.
    """
    raw = Path(root).expanduser() / "MNIST" / "raw"
    names = [f"{part}-{kind}" for part in PARTS.values() for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    missing = [name for name in names if _file(raw, name) is None]
    if len(missing) == len(names):
        folder = Path(root).expanduser()
        if any(_file(folder, name) for name in names):
            whole = folder.resolve().parent.parent if folder.resolve().match("MNIST/raw") else "a folder with MNIST/raw"
            raise InputError(f"{folder} holds the files of MNIST itself: give {whole} in its place")
        _download(raw.parent, names)
    elif missing:
        raise InputError(f"{raw} is no complete MNIST: {', '.join(missing)} (or .gz) missing")
    splits = {}
    for split, part in PARTS.items():
        images, labels = read_idx(raw, f"{part}-images-idx3-ubyte", 3), read_idx(raw, f"{part}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise InputError(f"{raw}: {part} has {len(images)} images and {len(labels)} labels")
        splits[split] = images[:, None], labels.long()
    return splits


def read_idx(folder: Path, name: str, dims: int) -> Tensor:
    """The bytes of an IDX file with that many dimensions.

    Raises: InputError: a file that is not of this format, or not of the length that its header says.
    """
    path = _file(folder, name)
    if path is None:
        raise InputError(f"{folder / name} does not exist")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    header = 4 + 4 * dims
    if len(content) < header or content[:4] != bytes([0, 0, 8, dims]):
        raise InputError(f"{path} is no IDX file of bytes with {dims} dimensions: it starts with {content[:4].hex()!r}")
    shape = [int.from_bytes(content[start : start + 4], "big") for start in range(4, header, 4)]
    if len(content) - header != math.prod(shape):
        expected = math.prod(shape)
        raise InputError(f"{path} is damaged: {len(content) - header} bytes of data where {shape} needs {expected}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).reshape(shape)


def _file(folder: Path, name: str) -> Path | None:
    try:
        return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from error


def _download(target: Path, names: list[str]) -> None:
    # into a folder beside the target, so that a broken download leaves nothing that looks like MNIST
    from torchvision.datasets import MNIST

    servers = " or ".join(sorted({urlsplit(url).netloc for url in MNIST.mirrors}))
    root, made = target.parent, not target.parent.exists()
    print(f"Downloading MNIST into {root}", file=sys.stderr)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".mnist-") as folder:
            with contextlib.redirect_stdout(io.StringIO()):
                MNIST(folder, download=True)
            (target / "raw").mkdir(parents=True, exist_ok=True)
            for path in (Path(folder) / "MNIST" / "raw").iterdir():
                os.replace(path, target / "raw" / path.name)
    except Exception as error:  # torchvision raises what the network or the disk gives it
        reasons = re.findall(r"<urlopen error (?:\[.*?\] )?(.*?)>", str(error)) or [" ".join(str(error).split())]
        if made and root.is_dir() and not any(root.iterdir()):
            root.rmdir()
        raise InputError(
            f"MNIST is not in {target / 'raw'}, and downloading it from {servers} into {root} failed: {reasons[-1]}.\n"
            f"Without a network, put {', '.join(names)} (or .gz) into FOLDER/MNIST/raw and run: "
            "make train CONFIG=configs/mnist.yaml DATA=FOLDER"
        ) from error
