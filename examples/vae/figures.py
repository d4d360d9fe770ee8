"""The pictures of a run."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.distributions import ContinuousBernoulli

import kldiv
from examples.vae.model import VAE
from examples.vae.recording import read_metrics

OURS, LIGHT = "#1f5fa8", "#f0b27a"

COLLAPSED = 0.01
"""Nats below which a latent dimension is drawn black: it says next to nothing about the image."""


@torch.no_grad()
def draw_figures(model: VAE, images: Tensor, kl_per_dimension: Tensor, metrics: Path, folder: Path) -> dict[str, Path]:
    """Draws everything into the folder.

    Args:
        model: trained, on the device of the images.
        images: (N, C, H, W), of the test set.
        kl_per_dimension: (latent_dim,), means over the test set.
        metrics: the run's ``metrics.csv``.
        folder: for the files; it is made where it is missing.
    Returns: caption to file, in the order of a report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model._seed_noise("figures")
    to_what = "" if model.prior is None else " to the standard normal, which is not the prior"
    drawings = {
        "Test images and, below each, its reconstruction: the decoder's mean at the posterior's mean": (
            "reconstructions",
            _reconstructions(model, images[:20]),
        ),
        "Samples from the prior: the decoder's mean": ("samples", _samples(model, images)),
        f"A latent traversal: the dimensions of largest KL{to_what}, one at a time from -3 to 3, "
        "the others at an image's posterior mean": (
            "traversal",
            _traversal(model, images, kl_per_dimension),
        ),
        "Training curves": ("curves", _curves(metrics)),
        f"KL of each latent dimension{to_what}, mean over the test set": (
            "kl_per_dimension",
            _kl_bars(kl_per_dimension),
        ),
    }
    files = {}
    for caption, (name, figure) in drawings.items():
        files[caption] = folder / f"{name}.png"
        figure.savefig(files[caption], dpi=150, bbox_inches="tight")
    over_training = folder / "kl_per_dimension_over_training.png"  # drawn while it trained
    if over_training.is_file():
        caption = (
            f"The same over training{to_what}, mean over the validation set: a column ends where its validation was, "
            f"the largest of the last one is on top, and black is below {COLLAPSED} nats. Above, the active units"
        )
        files[caption] = over_training
    return files


def kl_over_training(
    steps: Sequence[int], kl_per_dimension: Tensor, active_units: Sequence[int], title: str = ""
) -> Figure:
    """A heat map of the KL of each latent dimension at each validation, and a line of the active units above it.

    Args:
        steps: optimiser steps before each of n validations, positive and increasing.
        kl_per_dimension: (n, latent_dim), in nats.
        active_units: n of them.
        title: of the figure.
    """
    kl = kl_per_dimension.T
    order = kl[:, -1].nan_to_num(0.0, 0.0).argsort(descending=True, stable=True)
    count, edges = len(order), [0, *steps]
    height = min(9.0, max(2.2, 0.125 * count))
    figure = Figure(figsize=(6.5, height + 1.2), layout="constrained")
    above, axes = figure.subplots(2, 1, sharex=True, height_ratios=(0.5, height))
    above.step(edges, [active_units[0], *active_units], where="pre", color=OURS, lw=1.2)
    above.annotate(
        str(active_units[-1]),
        (edges[-1], active_units[-1]),
        (4, 0),
        textcoords="offset points",
        va="center",
        color=OURS,
        in_layout=False,
    )
    above.set(ylim=(-0.06 * count, 1.1 * count), yticks=[0, count], title=title)
    above.set_ylabel("active\nunits", rotation=0, ha="right", va="center")
    above.spines[["top", "right"]].set_visible(False)
    above.tick_params(labelbottom=False)
    known = kl[kl.isfinite()].sort().values if kl.isfinite().any() else torch.zeros(1)
    # the first steps would take the colours from everything that follows
    most = max(
        known[math.ceil(0.99 * len(known)) - 1].item(), kl[order[0], -1].nan_to_num(0.0, 0.0).item(), 2 * COLLAPSED
    )
    cut = known[-1].item() > 1.25 * most
    largest = most if cut else max(known[-1].item(), most)
    norm = PowerNorm(0.5, vmin=COLLAPSED, vmax=largest)
    colours = colormaps["viridis"].with_extremes(under="black", bad="lightgrey")
    mesh = axes.pcolormesh(
        edges,
        range(count + 1),
        kl[order].numpy(),
        cmap=colours,
        norm=norm,
    )
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    axes.set(xlabel="optimiser steps", ylabel="latent dimension, sorted")
    if count <= 64:
        labels = [f"$z_{{{dim + 1}}}$" for dim in order.tolist()]
        axes.set_yticks([row + 0.5 for row in range(count)], labels, fontsize=8 if count <= 30 else 6)
        axes.tick_params(axis="y", length=0)
    ticks = [COLLAPSED]
    for tick in (digit * 10.0**power for power in range(-2, 7) for digit in (2, 5, 10)):
        if tick <= 1.001 * largest and norm(tick) > norm(ticks[-1]) + 0.08:
            ticks.append(tick)
    figure.colorbar(
        mesh,
        ax=axes,
        extend="both" if cut else "min",
        extendfrac=0.1 / height,
        label="KL (nats)",
        pad=0.02,
        aspect=14 * height,
        ticks=ticks,
        format="%g",
    )
    return figure


def decoded_mean(model: VAE, sample: Tensor) -> Tensor:
    """The mean image for z, in [0, 1]: that of the logits, or the output itself of other likelihoods."""
    output = model.decoder(sample)
    output = output if isinstance(output, Tensor) else output[0]
    if isinstance(model.elbo.reconstruction, kldiv.BernoulliNLL):
        return output.sigmoid()
    if isinstance(model.elbo.reconstruction, kldiv.ContinuousBernoulliNLL):
        return ContinuousBernoulli(logits=output).mean
    return output.clamp(0, 1)


def _reconstructions(model: VAE, images: Tensor) -> Figure:
    means = decoded_mean(model, model.encoder(images).mean)
    figure = Figure(figsize=(8, 3.6))
    half = len(images) // 2
    for axes, chosen in zip(figure.subplots(2, 1), (slice(0, half), slice(half, 2 * half)), strict=True):
        _show(axes, torch.stack([images[chosen], means[chosen]]))
        _rows(axes, ["original", "reconstruction"])
    return figure


def _samples(model: VAE, images: Tensor) -> Figure:
    prior = model.prior_of(model.encoder(images[:1]))
    means = decoded_mean(model, prior.sample((50,)))
    figure = Figure(figsize=(8, 4.1))
    _show(figure.subplots(), means.unflatten(0, (5, 10)))
    return figure


def _traversal(model: VAE, images: Tensor, kl_per_dimension: Tensor) -> Figure:
    dims = kl_per_dimension.argsort(descending=True)[:8].tolist()
    values = torch.linspace(-3, 3, 11, device=images.device)
    centre = model.encoder(images[:1]).mean[0]
    sample = centre.expand(len(dims), len(values), -1).clone()
    for row, dim in enumerate(dims):
        sample[row, :, dim] = values
    figure = Figure(figsize=(8, 0.72 * len(dims)))
    axes = figure.subplots()
    side = _show(axes, decoded_mean(model, sample))
    _rows(axes, [f"$z_{{{dim + 1}}}$" for dim in dims])
    axes.set_xticks(
        [side * (column + 0.5) for column in range(len(values))], [f"{round(v, 1) + 0.0:.1f}" for v in values.tolist()]
    )
    axes.set_xlabel("value of the latent dimension", labelpad=4)
    return figure


def _curves(metrics: Path) -> Figure:
    _, rows = read_metrics(metrics)
    figure = Figure(figsize=(9, 2.8))
    titles = {"negative_elbo": "negative ELBO", "reconstruction": "reconstruction", "kl": "KL"}
    for axes, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for split, colour, width in (("train", LIGHT, 0.8), ("val", OURS, 1.8)):
            points = [
                (int(row["step"]) + 1, float(row[f"{split}/{name}"])) for row in rows if row.get(f"{split}/{name}")
            ]
            label = {"train": "training batch", "val": "validation"}[split]
            if points:
                marker = "o" if len(points) == 1 else None  # a line of one point is invisible
                alpha = 0.6 if split == "train" else 1.0
                axes.plot(*zip(*points, strict=True), color=colour, lw=width, label=label, alpha=alpha, marker=marker)
        after = sorted(
            float(row[f"{s}/{name}"])
            for row in rows[len(rows) // 20 :]
            for s in ("train", "val")
            if row.get(f"{s}/{name}")
        )
        if after:  # the first steps would flatten everything that follows
            margin = 0.08 * (after[-1] - after[0]) + 1e-9
            axes.set_ylim(after[0] - margin, after[math.ceil(0.995 * (len(after) - 1))] + margin)
        axes.set(title=title, xlabel="optimiser steps")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("nats per example")
    figure.axes[0].legend(frameon=False)
    figure.tight_layout()
    return figure


def _kl_bars(kl_per_dimension: Tensor) -> Figure:
    order = kl_per_dimension.argsort(descending=True).tolist()
    figure = Figure(figsize=(min(9, max(5, 0.32 * len(order))), 2.8))
    axes = figure.subplots()
    axes.bar(range(len(order)), kl_per_dimension[order].tolist(), color=OURS)
    axes.set_xticks(range(len(order)), [str(dim + 1) for dim in order], fontsize=8 if len(order) <= 30 else 4)
    axes.set(xlabel="latent dimension, sorted", ylabel="nats")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _show(axes: object, grid: Tensor, gap: int = 1) -> int:
    """Shows images (rows, columns, C, H, W) and gives the side of a cell in pixels."""
    rows, columns, channels, height, width = grid.shape
    canvas = torch.ones(channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    shown = grid.cpu() if channels == 3 else 1 - grid.cpu()  # grey: dark strokes on white paper
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + gap), column * (width + gap)
            canvas[:, top : top + height, left : left + width] = shown[row, column]
    picture = canvas.permute(1, 2, 0) if channels == 3 else canvas[0]
    axes.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8)
    return width + gap


def _rows(axes: object, labels: Sequence[str]) -> None:
    height = axes.images[0].get_array().shape[0] / len(labels)
    axes.set_yticks([height * (row + 0.5) for row in range(len(labels))], labels)
