"""How noisy Monte Carlo estimates of a KL are: variances relative to iid samples, and what their intervals cover.

python -m benchmarks.estimators [--replicates 2000] [--json FILE] [--plot FILE]

Diagonal Gaussians against N(0, I) with gradients in the Gaussian's mean and log-variance: "near" the prior, and where
the posteriors of a VAE are. Every variance is over independent replicates, as a part of that of iid samples with the
value k1 and the pathwise gradient at equal numbers of samples. Coverage is that of 95 % intervals of Student's t.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import scipy.stats
import torch
from torch import Tensor
from torch.distributions import Distribution, Laplace, Normal

from kldiv import DiagonalNormal, MonteCarloKLLoss, estimate_kl, kl_divergence

REGIMES = {"near": (0.03, 0.03, 0.0), "vae": (1.2, 0.5, -1.5)}
"""Spread of the means, spread and centre of the log-variances."""
SAMPLES = 64
OPTIONS = {
    "k2": {"value": "k2"},
    "k3": {"value": "k3"},
    "analytic entropy": {"value": "analytic_entropy"},
    "antithetic": {"sampler": "antithetic"},
    "sobol": {"sampler": "sobol"},
    "sticking the landing": {"gradient": "sticking_the_landing"},
    "adaptive": {"gradient": "adaptive"},
    "score": {"gradient": "score"},
}
OF_GRADIENTS = ("antithetic", "sobol", "sticking the landing", "adaptive", "score")
OURS = "#1f5fa8"

Estimate = Callable[[Distribution], Tensor]


def parameters(regime: str, dims: int) -> tuple[Tensor, Tensor]:
    spread_of_means, spread, centre = REGIMES[regime]
    generator = torch.Generator().manual_seed(5)
    mean, log_var = torch.randn(2, dims, generator=generator, dtype=torch.float64)
    return spread_of_means * mean, centre + spread * log_var


def variances(estimate: Estimate, regime: str, dims: int, replicates: int) -> tuple[float, float]:
    """Of the value, and of the gradient, summed over parameters."""
    calls = 20  # each with a Sobol net of its own
    values, gradients = [], []
    for _ in range(calls):
        given = [t.expand(replicates // calls, dims).clone().requires_grad_() for t in parameters(regime, dims)]
        value = estimate(DiagonalNormal(*given))
        gradients.append(torch.cat(torch.autograd.grad(value.sum(), given), -1))
        values.append(value.detach())
    return torch.cat(values).var().item(), torch.cat(gradients).var(0).sum().item()


def loss(num_samples: int, **options: str) -> Estimate:
    return MonteCarloKLLoss(num_samples, **options, reduction="none")


def estimated(num_samples: int, **options: str) -> Estimate:
    def estimate(p: Distribution) -> Tensor:
        return estimate_kl(p, standard_normal(p), num_samples, **options).value

    return estimate


def standard_normal(p: Distribution) -> Distribution:
    zeros = torch.zeros(p.event_shape, dtype=torch.float64)
    return DiagonalNormal(zeros, zeros)


def relative_variances(regime: str, dims: int, replicates: int) -> dict[str, dict[str, float]]:
    value, gradient = variances(loss(SAMPLES), regime, dims, replicates)
    rows = {}
    for name, options in OPTIONS.items():
        of_value, of_gradient = variances(loss(SAMPLES, **options), regime, dims, replicates)
        rows[name] = {"gradient": of_gradient / gradient} if name in OF_GRADIENTS else {"value": of_value / value}
        if "sampler" in options:
            rows[name]["value"] = of_value / value
    for num_samples in (64, 1024) if dims <= 16 else ():
        fewer = replicates if num_samples == 64 else replicates // 4
        iid = variances(estimated(num_samples), regime, dims, fewer)
        sobol = variances(estimated(num_samples, sampler="sobol"), regime, dims, fewer)
        rows[f"sobol, eight scrambles, {num_samples}"] = {"value": sobol[0] / iid[0], "gradient": sobol[1] / iid[1]}
    return rows


def coverages(replicates: int) -> dict[str, dict[str, float]]:
    """Parts of 95 % intervals that hold the truth, 64 samples."""
    ones = torch.ones(replicates, dtype=torch.float64)
    cases: dict[str, tuple[Distribution, Distribution, str]] = {}
    for regime in REGIMES:
        for dims in (1, 2, 16, 128):
            p = DiagonalNormal(*(t.expand(replicates, dims) for t in parameters(regime, dims)))
            cases[f"k1, {regime}, {dims} dimensions"] = p, standard_normal(p), "k1"
            cases[f"k3, {regime}, {dims} dimensions"] = p, standard_normal(p), "k3"
            if regime == "vae":
                cases[f"analytic entropy, {regime}, {dims} dimensions"] = p, standard_normal(p), "analytic_entropy"
    for variance in (0.9, 0.7, 0.55):
        cases[f"k3, variance {variance}, 1 dimension"] = Normal(0 * ones, math.sqrt(variance)), Normal(0.0, 1.0), "k3"
    cases["k1, Normal to Laplace"] = Normal(ones, 2.0), Laplace(0.0, 0.2), "k1"
    cases["k1, Laplace to Normal"] = Laplace(0 * ones, 1.0), Normal(0.0, 0.5), "k1"
    rows = {}
    for name, (p, q, value) in cases.items():
        truth, rows[name] = kl_divergence(p, q), {}
        for sampler, units in (("iid", 64), ("antithetic", 32), ("sobol", 8)):
            estimate, error = estimate_kl(p, q, SAMPLES, value=value, sampler=sampler)
            quantile = scipy.stats.t.ppf(0.975, units - 1)
            rows[name][sampler] = ((estimate - truth).abs() < quantile * error).double().mean().item()
    return rows


def plot(result: dict[str, dict[str, dict[str, float]]], file: str) -> None:
    """Gradient variances as bars on a logarithmic axis, near and far."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.7))
    for axes, regime in zip(figure.subplots(1, 2, sharex=True, sharey=True), REGIMES, strict=True):
        rows = result[f"{regime}, 16 dimensions"]
        parts = [rows[name]["gradient"] for name in OF_GRADIENTS]
        axes.barh(OF_GRADIENTS, [part - 1 for part in parts], left=1, color=OURS, height=0.6)
        for name, part in zip(OF_GRADIENTS, parts, strict=True):
            towards, side = (1, "left") if part >= 1 else (-1, "right")
            label = {"textcoords": "offset points", "va": "center", "ha": side, "fontsize": 8}
            axes.annotate(f"{part:.2g}", (part, name), (3 * towards, 0), **label)
        axes.axvline(1, color="#222", lw=0.8)
        axes.set(xscale="log", xlim=(1e-5, 1e3), title={"near": "near the prior", "vae": "far from it"}[regime])
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    figure.supxlabel("variance of the gradient, as a part of that of iid pathwise samples", fontsize=10)
    figure.tight_layout()
    figure.savefig(file, dpi=150, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--json", help="file for the result")
    parser.add_argument("--plot", help="file for the picture")
    options = parser.parse_args()
    torch.manual_seed(0)
    result = {
        f"{regime}, {dims} dimensions": relative_variances(regime, dims, options.replicates)
        for regime in REGIMES
        for dims in (16, 128)
    }
    for setting, rows in result.items():
        print(f"\n{setting}: variance relative to iid, {SAMPLES} samples where no other number is said")
        print(f"{'':32}{'value':>10}{'gradient':>10}")
        for name, row in rows.items():
            cells = (f"{row[kind]:.2g}" if kind in row else "" for kind in ("value", "gradient"))
            print(f"{name:32}" + "".join(f"{cell:>10}" for cell in cells))
    covered = coverages(options.replicates)
    print(f"\ncoverage of 95 % intervals, {SAMPLES} samples")
    print(f"{'':42}" + "".join(f"{sampler:>12}" for sampler in ("iid", "antithetic", "sobol")))
    for name, row in covered.items():
        print(f"{name:42}" + "".join(f"{part:>12.3f}" for part in row.values()))
    if options.json:
        document = {
            "torch": torch.__version__,
            "replicates": options.replicates,
            "relative_variance": result,
            "coverage": covered,
        }
        Path(options.json).write_text(json.dumps(document, indent=2) + "\n")
    if options.plot:
        plot(result, options.plot)


if __name__ == "__main__":
    main()
