"""What is lost where one distribution stands in for another: python -m examples.lost_information [--out FOLDER]

Counts of worms' teeth against a uniform and a binomial model, the binomial fitted by gradient descent on the KL, and
one Gaussian fitted to two peaks in both directions, because D(P||Q) is not D(Q||P). Prints the figures and draws them.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Binomial, Categorical, MixtureSameFamily, Normal

from kldiv.tables import relative_entropy

OURS, LIGHT, GREY = "#1f5fa8", "#f0b27a", "#6b727b"

TEETH = torch.arange(11, dtype=torch.float64)
WORMS = torch.tensor([0.02, 0.03, 0.05, 0.14, 0.16, 0.15, 0.12, 0.08, 0.1, 0.08, 0.07], dtype=torch.float64)
"""The share of the worms that have 0, 1, ..., 10 teeth."""

GRID = torch.linspace(-20, 20, 4001, dtype=torch.float64)
TWO_PEAKS = MixtureSameFamily(
    Categorical(torch.tensor([0.6, 0.4], dtype=torch.float64)),
    Normal(torch.tensor([-2.0, 2.2], dtype=torch.float64), torch.tensor([0.8, 0.6], dtype=torch.float64)),
)


@dataclass
class BinomialFit:
    """A descent on D(worms || Binomial(10, probability)), from its start to its end."""

    probabilities: list[float]
    nats: list[float]


@dataclass
class GaussianFit:
    """One Gaussian Q in the place of the two-peaked density P."""

    mean: float
    stddev: float
    forward: float
    """D(P||Q), in nats."""
    reverse: float
    """D(Q||P), in nats."""


def uniform() -> Tensor:
    """The table that knows nothing of the worms."""
    return torch.full_like(WORMS, 1 / len(WORMS))


def binomial(logit: Tensor) -> Tensor:
    """The table of Binomial(10, sigmoid(logit)): (..., 11) for logits (..., 1)."""
    return Binomial(10, logits=logit).log_prob(TEETH).exp()


def fit_binomial(start: float = 0.1, steps: int = 60, learning_rate: float = 0.1) -> BinomialFit:
    """Gradient descent on the KL, in the logit of the probability of success."""
    logit = torch.tensor([start], dtype=torch.float64).logit().requires_grad_()
    optimizer = torch.optim.SGD([logit], lr=learning_rate)
    path = BinomialFit([], [])
    for step in range(steps + 1):
        loss = relative_entropy(WORMS, binomial(logit))
        path.probabilities.append(logit.sigmoid().item())
        path.nats.append(loss.item())
        if step < steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return path


def fit_gaussian(loss: Callable[[Tensor, Tensor], Tensor], starts: Sequence[float] = (-2.0, 0.0, 2.0)) -> GaussianFit:
    """The Gaussian Q of least ``loss(P, Q)``, on a fine grid, from the best of the starts for its mean.

    The reverse KL has a minimum at each peak, and a descent ends at the one where it starts.
    """
    p = _on_grid(TWO_PEAKS.log_prob(GRID))
    gaussians = [_descend(lambda q: loss(p, q), start) for start in starts]
    q = min(gaussians, key=lambda q: loss(p, _on_grid(q.log_prob(GRID))).item())
    table = _on_grid(q.log_prob(GRID))
    forward, reverse = relative_entropy(p, table).item(), relative_entropy(table, p).item()
    return GaussianFit(q.mean.item(), q.stddev.item(), forward, reverse)


def _descend(loss: Callable[[Tensor], Tensor], start: float) -> Normal:
    mean = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    log_stddev = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([mean, log_stddev], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(_on_grid(Normal(mean, log_stddev.exp()).log_prob(GRID)))
        value.backward()
        return value

    optimizer.step(closure)
    return Normal(mean.detach(), log_stddev.detach().exp())


def _on_grid(log_density: Tensor) -> Tensor:
    # the width of a cell cancels in P/Q, so that the tables' KL is the integral's
    return log_density.softmax(-1)


def draw_worms(probability: float) -> Figure:
    """The shares, and the two tables that stand in for them."""
    model = binomial(torch.tensor([probability], dtype=torch.float64).logit())
    lost = [f"$D(P\\Vert Q)$ = {relative_entropy(WORMS, q).item():.4f} nats" for q in (uniform(), model)]
    figure, axes = _axes()
    bars = axes.bar(TEETH.tolist(), WORMS.tolist(), color=LIGHT, label="worms, $P$")
    lines = axes.plot([-0.5, 10.5], [1 / 11, 1 / 11], color=GREY, lw=2, label=f"uniform: {lost[0]}")
    label = f"Binomial(10, {probability:.3f}): {lost[1]}"
    lines += axes.plot(TEETH.tolist(), model.tolist(), "o-", color=OURS, mec="white", label=label)
    axes.set(xlabel="teeth", ylabel="probability", xticks=TEETH.tolist(), ylim=(0, 0.36))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.legend(handles=[bars, *lines], loc="upper left", framealpha=1, edgecolor="none")
    return figure


def draw_descent(fit: BinomialFit) -> Figure:
    """The KL over the probability of success, and the way down."""
    probabilities = torch.linspace(0.05, 0.95, 361, dtype=torch.float64)
    nats = relative_entropy(WORMS, binomial(probabilities.logit()[:, None]))
    figure, axes = _axes()
    label = "$D(P\\Vert Q)$ of the worms and Binomial(10, $p$)"
    axes.plot(probabilities.tolist(), nats.tolist(), color=LIGHT, lw=3, label=label)
    label = "gradient descent, a dot a step"
    axes.plot(fit.probabilities, fit.nats, "o-", color=OURS, lw=1, mec="white", mew=0.7, label=label)
    end, least = fit.probabilities[-1], fit.nats[-1]
    axes.annotate(
        f"$p$ = {end:.3f}: {least:.4f} nats",
        (end, least),
        (end, least + 2.2),
        ha="center",
        arrowprops={"arrowstyle": "->", "color": GREY, "shrinkB": 6},
    )
    axes.set(xlabel="probability of success, $p$", ylabel="nats", ylim=(0, 1.05 * nats.max().item()))
    axes.legend(loc="upper right", framealpha=1, edgecolor="none")
    return figure


def draw_gaussians(covering: GaussianFit, seeking: GaussianFit) -> Figure:
    """The two peaks, and the Gaussian that is best in either direction."""
    figure, axes = _axes()
    axes.fill_between(
        GRID.numpy(), TWO_PEAKS.log_prob(GRID).exp().numpy(), color=LIGHT, alpha=0.6, lw=0, label="two peaks, $P$"
    )
    for fit, style, name in (
        (covering, "-", "least $D(P\\Vert Q)$, covers the mass"),
        (seeking, "--", "least $D(Q\\Vert P)$, seeks a mode"),
    ):
        density = Normal(fit.mean, fit.stddev).log_prob(GRID).exp()
        label = f"{name}:\n$D(P\\Vert Q)$ = {fit.forward:.2f}, $D(Q\\Vert P)$ = {fit.reverse:.2f} nats"
        axes.plot(GRID.tolist(), density.tolist(), style, color=OURS, lw=2, label=label)
    axes.set(xlabel="$x$", ylabel="density", xlim=(-7, 7), ylim=(0, 0.56))
    axes.legend(loc="upper right", framealpha=1, edgecolor="none")
    return figure


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 3.8))
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What is lost where one distribution stands in for another.")
    parser.add_argument("--out", type=Path, default=Path("runs/lost_information"), help="folder for the pictures")
    folder = parser.parse_args(arguments).out

    fit = fit_binomial()
    covering, seeking = fit_gaussian(relative_entropy), fit_gaussian(lambda p, q: relative_entropy(q, p))
    figures = {
        "worms": draw_worms(fit.probabilities[-1]),
        "descent": draw_descent(fit),
        "two_peaks": draw_gaussians(covering, seeking),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=200, bbox_inches="tight")

    print("Worms' teeth, P, and what a model Q of them loses: D(P||Q) in nats")
    print(f"  uniform                {relative_entropy(WORMS, uniform()).item():.4f}")
    for when, at in (("start", 0), ("end", -1)):
        name = f"Binomial(10, {fit.probabilities[at]:.3f})"
        print(f"  {name:<21}  {fit.nats[at]:.4f}  {when} of the gradient descent, {len(fit.nats) - 1} steps")
    print("One Gaussian Q for the two peaks of P, in nats")
    print("                    mean  stddev  D(P||Q)  D(Q||P)")
    for name, gaussian in (("least D(P||Q)", covering), ("least D(Q||P)", seeking)):
        numbers = f"{gaussian.mean:>6.3f}  {gaussian.stddev:>6.3f}  {gaussian.forward:>7.4f}  {gaussian.reverse:>7.4f}"
        print(f"  {name:<14}  {numbers}")
    print(f"Pictures: {', '.join(str(folder / name) + '.png' for name in figures)}")


if __name__ == "__main__":
    main()
