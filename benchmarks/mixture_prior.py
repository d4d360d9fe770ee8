"""Density of a mixture prior: DiagonalNormalMixture against torch's MixtureSameFamily, alternating in one run.

python -m benchmarks.mixture_prior [--batch 256] [--components 500] [--dims 40] [--runs 25] [--threads 1] [--json FILE]

Time and peak memory are of one forward and backward pass with gradients to the sample and all parameters, in float32,
with the distributions made in it and validation off in both.
Memory is what is allocated beyond the inputs: the caching allocator's on CUDA, the profiler's count on a CPU. Errors
are against MixtureSameFamily in float64, for samples of the mixture at three standard deviations.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from benchmarks.measure import machine, peak_bytes, processor
from kldiv import DiagonalNormal, DiagonalNormalMixture

Parameters = tuple[Tensor, Tensor, Tensor]
LogProb = Callable[[Tensor, Parameters], Tensor]


def of_torch(z: Tensor, parameters: Parameters) -> Tensor:
    logits, mean, log_var = parameters
    normals = Normal(mean, torch.exp(0.5 * log_var), validate_args=False)
    components, weights = Independent(normals, 1, validate_args=False), Categorical(logits=logits, validate_args=False)
    return MixtureSameFamily(weights, components, validate_args=False).log_prob(z)


def of_kldiv(z: Tensor, parameters: Parameters) -> Tensor:
    logits, mean, log_var = parameters
    components, weights = (
        DiagonalNormal(mean, log_var, validate_args=False),
        Categorical(logits=logits, validate_args=False),
    )
    return DiagonalNormalMixture(weights, components, validate_args=False).log_prob(z)


def make(options: argparse.Namespace, std: float, device: torch.device) -> tuple[Tensor, Parameters]:
    """A sample of a mixture and its parameters: logits, mean, log_var."""
    shape = (options.components, options.dims)
    logits, mean = torch.randn(shape[0], device=device), torch.randn(shape, device=device)
    log_var = 2 * math.log(std) + 0.5 * torch.randn(shape, device=device)
    chosen = torch.randint(shape[0], (options.batch,), device=device)
    z = mean[chosen] + torch.exp(0.5 * log_var[chosen]) * torch.randn_like(mean[chosen])
    logits, mean, log_var, z = (value.requires_grad_() for value in (logits, mean, log_var, z))
    return z, (logits, mean, log_var)


def step(log_prob: LogProb, z: Tensor, parameters: Parameters) -> None:
    """Forward and backward."""
    torch.autograd.grad(log_prob(z, parameters).sum(), (z, *parameters))


def seconds(log_prob: LogProb, z: Tensor, parameters: Parameters) -> float:
    if z.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    step(log_prob, z, parameters)
    if z.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def largest_error(log_prob: LogProb, z: Tensor, parameters: Parameters) -> float:
    logits, mean, log_var = (p.double() for p in parameters)
    truth = of_torch(z.double(), (logits, mean, log_var))
    return (log_prob(z, parameters).double() - truth).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--components", type=int, default=500)
    parser.add_argument("--dims", type=int, default=40)
    parser.add_argument("--runs", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1, help="on cores shared with others more only wait")
    parser.add_argument("--json", help="file for the result")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kinds: dict[str, LogProb] = {"torch": of_torch, "kldiv": of_kldiv}

    errors = {}
    for std in (1.0, 0.1, 0.01):
        z, parameters = make(options, std, device)
        errors[str(std)] = {name: largest_error(log_prob, z, parameters) for name, log_prob in kinds.items()}
    z, parameters = make(options, 1.0, device)
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for run in range(-3, options.runs):
        for name, log_prob in kinds.items():
            step(log_prob, z, parameters)  # the caches hold what this one left, and not the other's
            taken = seconds(log_prob, z, parameters)
            if run >= 0:
                times[name].append(taken)
    quartile, median = (
        {name: statistics.quantiles(values, n=4)[place] for name, values in times.items()} for place in (0, 1)
    )
    peak = {
        name: peak_bytes(lambda log_prob=log_prob: step(log_prob, z, parameters)) for name, log_prob in kinds.items()
    }

    print(f"batch {options.batch}, components {options.components}, dimensions {options.dims}, {processor()}")
    print(f"{'':24}{'torch':>12}{'kldiv':>12}{'ratio':>8}")
    rows = {
        "milliseconds, median": {name: 1e3 * value for name, value in median.items()},
        "lower quartile": {name: 1e3 * value for name, value in quartile.items()},
        "peak MB": {name: value / 1e6 for name, value in peak.items()},
    }
    for label, row in rows.items():
        print(f"{label:24}{row['torch']:12.2f}{row['kldiv']:12.2f}{row['torch'] / row['kldiv']:8.1f}")
    for std, error in errors.items():
        print(f"{'error at deviation ' + std:24}{error['torch']:12.1e}{error['kldiv']:12.1e}")
    if options.json:
        result = {
            "batch": options.batch,
            "components": options.components,
            "dims": options.dims,
            "runs": options.runs,
            "seconds": median,
            "seconds_lower_quartile": quartile,
            "time_ratio": median["torch"] / median["kldiv"],
            "peak_bytes": peak,
            "memory_ratio": peak["torch"] / peak["kldiv"],
            "largest_absolute_error": errors,
            "device": device.type,
            **machine(),
        }
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
