"""Relative error in float32 of kldiv and of torch.distributions, by how close p and q are, against fifty digits.

python -m benchmarks.accuracy [--draws 200] [--json FILE] [--plot FILE]

Parameters are of order one (log-uniform from 0.3 to 3), or concentrations of 1000 where the row says so; q's are p's,
each changed by the relative distance. Shown is the median of the relative errors; 1 and more is no digit at all.
"""

import argparse
import json
import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Dirichlet,
    Distribution,
    Exponential,
    Gamma,
    Geometric,
    Gumbel,
    Laplace,
    MultivariateNormal,
    Normal,
    Poisson,
)

from kldiv import kl_divergence
from tests.oracles import true_kl

DISTANCES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
OURS, TORCH = "#1f5fa8", "#e08a3c"

Draw = Callable[[random.Random, float], tuple[Distribution, Distribution]]


def of_positive(family: Callable[..., Distribution], *scales: float) -> Draw:
    """Parameters that are positive numbers of about these sizes."""

    def draw(rng: random.Random, distance: float) -> tuple[Distribution, Distribution]:
        p = [scale * 3 ** rng.uniform(-1, 1) for scale in scales]
        q = [value * (1 + distance * rng.uniform(0.3, 1)) for value in p]
        return family(*map(torch.tensor, p)), family(*map(torch.tensor, q))

    return draw


def of_vectors(family: Callable[..., Distribution], values: Callable[[random.Random], list[float]]) -> Draw:
    """One parameter that is a vector."""

    def draw(rng: random.Random, distance: float) -> tuple[Distribution, Distribution]:
        p = values(rng)
        q = [value * (1 + distance * rng.uniform(-1, 1)) for value in p]
        return family(torch.tensor(p)), family(torch.tensor(q))

    return draw


def of_covariances(rng: random.Random, distance: float) -> tuple[Distribution, Distribution]:
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    root = torch.randn(4, 4, generator=generator)
    noise = torch.randn(4, 4, generator=generator)
    covariance = root @ root.mT + torch.eye(4)
    scale = torch.linalg.cholesky(covariance)
    other = scale @ (torch.eye(4) + 0.1 * distance * (noise + noise.mT)) @ scale.mT
    other = 0.5 * (other + other.mT) + distance * torch.eye(4)
    return MultivariateNormal(torch.zeros(4), covariance), MultivariateNormal(torch.zeros(4), other)


FAMILIES: dict[str, Draw] = {
    "Normal": of_positive(Normal, 1.0, 1.0),
    "Laplace": of_positive(Laplace, 1.0, 1.0),
    "Gumbel": of_positive(Gumbel, 1.0, 1.0),
    "Exponential": of_positive(Exponential, 1.0),
    "Poisson": of_positive(Poisson, 1.0),
    "Geometric": of_positive(lambda logit: Geometric(logits=logit), 1.0),
    "Bernoulli": of_positive(lambda logit: Bernoulli(logits=logit), 1.0),
    "Categorical, 100": of_vectors(
        lambda logits: Categorical(logits=logits), lambda rng: [rng.gauss(0, 1) for _ in range(100)]
    ),
    "Gamma": of_positive(Gamma, 1.0, 1.0),
    "Gamma of concentration 1000": of_positive(Gamma, 1000.0, 1.0),
    "Beta": of_positive(Beta, 1.0, 1.0),
    "Beta of concentration 1000": of_positive(Beta, 1000.0, 1000.0),
    "Dirichlet, 10": of_vectors(Dirichlet, lambda rng: [3 ** rng.uniform(-1, 1) for _ in range(10)]),
    "MultivariateNormal, 4": of_covariances,
}


def measure(draw: Draw, distance: float, draws: int) -> dict[str, float]:
    """The median relative errors."""
    rng = random.Random(0)
    errors: dict[str, list[float]] = {"kldiv": [], "torch": []}
    for _ in range(draws):
        p, q = draw(rng, distance)
        truth = true_kl(p, q)
        for name, divergence in (("kldiv", kl_divergence), ("torch", torch.distributions.kl_divergence)):
            error = float(abs(divergence(p, q).item() - truth) / truth)
            errors[name].append(math.inf if math.isnan(error) else error)
    return {name: statistics.median(values) for name, values in errors.items()}


def plot(results: dict[str, dict[float, dict[str, float]]], path: Path) -> None:
    """One panel a family."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 5.4), layout="constrained")
    panels = figure.subplots(2, 7, sharex=True, sharey=True).flatten()
    for axes, (family, rows) in zip(panels, results.items(), strict=True):
        for name, colour, marker in (("torch", TORCH, "s"), ("kldiv", OURS, "o")):
            # an error of nothing at all is drawn at the bottom
            values = [max(row[name], 1e-9) for row in rows.values()]
            label = "kldiv" if name == "kldiv" else "torch.distributions"
            axes.loglog(list(rows), values, color=colour, marker=marker, markersize=3.5, linewidth=1.4, label=label)
        axes.axhspan(1, 1e6, color="0.92", zorder=0)
        axes.set_title(family.replace(" of concentration ", ",\nconcentration "), fontsize=9)
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_ylim(1e-9, 2e6)
        axes.set_xticks([1e-5, 1e-3, 1e-1])
        axes.minorticks_off()
        axes.tick_params(labelsize=8)
    panels[0].invert_xaxis()
    panels[0].text(0.9, 3e3, "no digit right", fontsize=7.5, color="0.4")
    figure.supxlabel("relative distance between p and q", fontsize=10)
    figure.supylabel("relative error in float32, median", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=10)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--plot", type=Path, help="file for the picture")
    options = parser.parse_args()
    results: dict[str, dict[float, dict[str, float]]] = {}
    print(f"{'family':<28} {'distance':>9} {'kldiv':>9} {'torch':>9}")
    for family, draw in FAMILIES.items():
        results[family] = {}
        for distance in DISTANCES:
            row = results[family][distance] = measure(draw, distance, options.draws)
            print(f"{family:<28} {distance:>9.0e} {row['kldiv']:>9.1e} {row['torch']:>9.1e}")
    if options.json:
        facts = {"draws": options.draws, "torch": torch.__version__, "median_relative_error": results}
        options.json.write_text(json.dumps(facts, indent=2) + "\n")
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
