"""Every speed that is promised, in one run: make bench [ARGS="--only gaussian decomposition --json FILE --plot FILE"]

Ratios are of medians, kldiv and its peers taking turns, each group of rows in a process of its own: what memory the
allocator has is not that of the rows before. A row says what is to be reached and how far it is from there,
and one that falls short where the time goes. Rows of a GPU are left out where there is none.
"""

import argparse
import json
import math
import multiprocessing
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional

import kldiv
from benchmarks import mixture_prior
from benchmarks.measure import alternate, gradients, machine, peak_bytes, processor


class Row(NamedTuple):
    """One promise. ``value`` is a ratio, or in the unit of its name; ``None`` where it was left out."""

    name: str
    value: float | None
    reach: float
    at_most: bool
    aim: float | None = None
    note: str = ""
    tried: str = ""
    """Where the time goes and what was tried, told where the promise is not kept."""

    @property
    def distance(self) -> float | None:
        """How many times what is promised: 1 or less is reached."""
        if self.value is None:
            return None
        return self.value / self.reach if self.at_most else self.reach / self.value

    @property
    def verdict(self) -> str:
        if self.distance is None:
            return "left out"
        return "reached" if self.distance <= 1 else f"{100 * (self.distance - 1):.0f} % short"


SMALL = (
    "an empty autograd.Function is a third of the one-liner's time; the rest is five operations of a few us each way. "
    "Slower: float64 inside, a norm in place of a dot product"
)
LARGE = (
    "an exponential without cancellation is half of our time, memory the rest. Done: both gradients in one pass, in "
    "memory that was freed before; constants of torch's e^u - 1 read once, seven times slower until then with AVX-512"
)
COMPILED = (
    "with AVX-512, where the one-liner's exponential is quick, two clamps that keep NaN are all that we take beyond "
    "it. Done: arithmetic of their own for e^u - 1 - u and e^u - 1, forward and backward, without a call. Slower: "
    "torch's exponential and a polynomial near 0 (1.2), torch.where for the clamps (1.2), whole powers of 2 with a "
    "third clamp (1.2), fused multiplications, which keep what the backward has need of (1.2)"
)
CATEGORICAL = (
    "sixteen passes in float64, by which the bounds hold however close the two are, two of them powers of 2; new "
    "memory for two gradients is a fifth. Done: powers of 2, half the time of exponentials, and huge pages. No better: "
    "exponentials in float32 (2 to 6 %), other sizes of block, a normalising pass of its own, dot products"
)
MIXTURE = (
    "two of the three matrix products are in float64, a third of our time, for 1e-9 where squares written out lose "
    "1e-5; all of them in float32 are a quarter faster, with gradients of the variances good to 1e-5. The rest is a "
    "hundred operations on small tensors, as long in one block as in several"
)
LIKELIHOOD = (
    "the decoder's matrix products, the same in the loop, are two thirds of our time. Done: memory that each layer "
    "frees is kept for the next, a sigmoid in place of an exponential. No better: 200 to 5000 rows at a time (2000 are "
    "best), a logarithm for 32 pixels"
)
EPOCH = (
    "a millisecond a step in Lightning's hooks, callbacks and progress bar (python -m benchmarks.step), the rest in "
    "matrix products. Done: a fused optimiser, kernels for likelihood and KL, each term reduced once, no search for "
    "NVIDIA's library"
)
SCRIPT = (
    "to read one image after another took the script 6 s an epoch on one machine and 3 s on another, where the "
    "trainer's matrix products alone are half of the time asked for. Done: what the row before says"
)


def one_liner(mean: Tensor, log_var: Tensor) -> Tensor:
    """As it is copied everywhere."""
    return -0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp()) / len(mean)


def of_torch(mean: Tensor, log_var: Tensor) -> Tensor:
    q = Normal(mean, torch.exp(0.5 * log_var), validate_args=False)
    p = Normal(torch.zeros_like(mean), torch.ones_like(mean), validate_args=False)
    return torch.distributions.kl_divergence(q, p).sum() / len(mean)


def latents(*shape: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape).requires_grad_() for _ in range(2)]


def gaussian(options: argparse.Namespace) -> list[Row]:
    loss = kldiv.GaussianKLLoss()
    rows = []
    for shape, runs, inner, turn, reach, aim in (((128, 20), 60, 40, 1, 0.9, 0.75), ((4096, 1024), 9, 1, 7, 0.6, 0.4)):
        given = latents(*shape)
        peers = {"ours": gradients(loss, given), "one-liner": gradients(one_liner, given)}
        peers["torch"] = gradients(of_torch, given)
        found = alternate(peers, runs=runs, inner=inner, turn=turn)
        size = " x ".join(map(str, shape))
        note = f"one-liner {1e6 * found['one-liner']:.0f} us"
        note += f", torch.distributions {found['torch'] / found['one-liner']:.1f}"
        ratio = found["ours"] / found["one-liner"]
        rows.append(
            Row(f"GaussianKLLoss {size} / one-liner", ratio, reach, True, aim, note, SMALL if inner > 1 else LARGE)
        )
    given = latents(4096, 1024)
    extra = peak_bytes(gradients(loss, given)) / sum(t.nbytes for t in given)
    rows.append(Row("GaussianKLLoss, peak memory / both gradients", extra, 1.05, True))
    compiled = {"ours": gradients(torch.compile(loss), given), "one-liner": gradients(torch.compile(one_liner), given)}
    found = alternate(compiled, runs=9)
    ratio = found["ours"] / found["one-liner"]
    rows.append(Row("the same compiled / one-liner compiled", ratio, 1.15, True, 1.0, tried=COMPILED))
    return rows


def categorical(options: argparse.Namespace) -> list[Row]:
    """In the shape asked for on a GPU; on a CPU of a sixteenth of the rows."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    count = 8192 if device == "cuda" else 512
    given = [torch.randn(count, 32768, device=device).requires_grad_() for _ in range(2)]

    def in_torch(p: Tensor, q: Tensor) -> Tensor:
        log_p, log_q = functional.log_softmax(p, -1), functional.log_softmax(q, -1)
        return functional.kl_div(log_q, log_p, reduction="sum", log_target=True)

    steps = {
        "ours": gradients(lambda p, q: kldiv.functional.kl_categorical(p, q).sum(), given),
        "torch": gradients(in_torch, given),
    }
    found = alternate(steps, runs=5, turn=3)
    memory = {name: peak_bytes(step) for name, step in steps.items()}
    size = f"{count} x 32768"
    return [
        Row(
            f"log_softmax + kl_div / kl_categorical, {size}",
            found["torch"] / found["ours"],
            3.0,
            False,
            tried=CATEGORICAL,
        ),
        Row(f"kl_categorical, peak memory / theirs, {size}", memory["ours"] / memory["torch"], 0.5, True),
    ]


def mixture(options: argparse.Namespace) -> list[Row]:
    size = argparse.Namespace(batch=256, components=500, dims=40)
    torch.manual_seed(0)
    z, parameters = mixture_prior.make(size, 1.0, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    steps = {
        "ours": lambda: mixture_prior.step(mixture_prior.of_kldiv, z, parameters),
        "torch": lambda: mixture_prior.step(mixture_prior.of_torch, z, parameters),
    }
    found = alternate(steps, runs=7, turn=7)
    memory = {name: peak_bytes(step) for name, step in steps.items()}
    return [
        Row(
            "MixtureSameFamily / mixture prior, 256 x 500 x 40",
            found["torch"] / found["ours"],
            20.0,
            False,
            tried=MIXTURE,
        ),
        Row("mixture prior, peak memory / theirs", memory["ours"] / memory["torch"], 0.1, True),
    ]


def materialised(sample: Tensor, mean: Tensor, log_var: Tensor, dataset_size: int) -> Tensor:
    """Total correlation by a tensor of batch x batch x latent, with the right weights."""
    batch = len(mean)
    weights = torch.full((batch, batch), 1 / (batch - 1))
    weights.view(-1)[:: batch + 1] = 1 / dataset_size
    weights.view(-1)[1 :: batch + 1] = weights[-1, 0] = (dataset_size - batch + 1) / (dataset_size * (batch - 1))
    log_weights = weights.log()
    crossed = -0.5 * (math.log(2 * math.pi) + log_var + (sample[:, None] - mean) ** 2 * torch.exp(-log_var))
    conditional = -0.5 * (math.log(2 * math.pi) + log_var + (sample - mean) ** 2 * torch.exp(-log_var))
    joint = torch.logsumexp(log_weights + crossed.sum(2), 1)
    marginals = torch.logsumexp(log_weights[..., None] + crossed, 1).sum(1)
    prior = -0.5 * (math.log(2 * math.pi) + sample**2).sum(1)
    return (conditional.sum(1) - joint + 6 * (joint - marginals) + marginals - prior).mean()


def ours_decomposed(sample: Tensor, mean: Tensor, log_var: Tensor, dataset_size: int) -> Tensor:
    posterior = kldiv.DiagonalNormal(mean, log_var, validate_args=False)
    parts = kldiv.decompose_kl(sample, posterior, dataset_size=dataset_size)
    return (parts.mutual_information + 6 * parts.total_correlation + parts.dimension_wise).mean()


def posterior_batch(batch: int, dims: int) -> list[Tensor]:
    mean, log_var = (t.detach() for t in latents(batch, dims))
    sample = mean + torch.exp(0.5 * log_var) * torch.randn(batch, dims)
    return [t.requires_grad_() for t in (sample, mean, log_var)]


def decomposition(options: argparse.Namespace) -> list[Row]:
    rows = []
    given = posterior_batch(1024, 32)
    # as they are after training: a twelfth of the distance between them wide
    mean, log_var = given[1].detach().clone(), torch.full((1024, 32), -5.0)
    apart = [mean + torch.exp(0.5 * log_var) * torch.randn_like(mean), mean, log_var]
    apart = [t.requires_grad_() for t in apart]
    for name, some in (("1024 x 32", given), ("posteriors far apart", apart)):
        steps = {
            "ours": gradients(lambda *t: ours_decomposed(*t, 60_000), some),
            "materialised": gradients(lambda *t: materialised(*t, 60_000), some),
        }
        found = alternate(steps, runs=5)
        note = f"ours {1e3 * found['ours']:.0f} ms"
        ratio = found["materialised"] / found["ours"]
        rows.append(Row(f"materialised / decompose_kl, {name}", ratio, 5.0, False, None, note))
    large = posterior_batch(4096, 64)
    mebibytes = peak_bytes(gradients(lambda *t: ours_decomposed(*t, 60_000), large)) / 2**20
    return [*rows, Row("decompose_kl 4096 x 64, peak MiB", mebibytes, 600.0, True)]


def log_likelihood(options: argparse.Namespace) -> list[Row]:
    """5000 samples of each of 8 images, the 784-400-20 network."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))
    decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784))
    images, samples = torch.rand(8, 784), 5000

    def posterior_of(x: Tensor) -> kldiv.DiagonalNormal:
        return kldiv.DiagonalNormal(*encoder(x).chunk(2, 1), validate_args=False)

    @torch.no_grad()
    def per_image(encoded: int) -> list[float]:
        """An image after the other, samples by the hundred, of what the encoder makes of so many copies of it."""
        values = []
        for x in images:
            weights = []
            for _ in range(samples // 100):
                mean, log_var = encoder(x.repeat(encoded, 1)).chunk(2, 1)
                z = mean + torch.exp(0.5 * log_var) * torch.randn(100, 20)
                log_q = -0.5 * (log_var + (z - mean) ** 2 / torch.exp(log_var)).sum(1)
                log_p = -0.5 * (z**2).sum(1)
                output = torch.sigmoid(decoder(z))
                nll = functional.binary_cross_entropy(output, x.repeat(100, 1), reduction="none").sum(1)
                weights.append(log_p - log_q - nll)
            values.append((torch.logsumexp(torch.cat(weights), 0) - math.log(samples)).item())
        return values

    def ours() -> Tensor:
        return kldiv.estimate_log_likelihood(
            images, posterior_of, decoder, kldiv.BernoulliNLL(), num_samples=samples
        ).value

    found = alternate({"ours": ours, "pythae": lambda: per_image(100), "once": lambda: per_image(1)}, runs=5)
    note = f"the loop is that of pythae's get_nll; with one encoding an image {found['once'] / found['ours']:.1f}"
    return [
        Row(
            "per-image loop / estimate_log_likelihood",
            found["pythae"] / found["ours"],
            4.0,
            False,
            None,
            note,
            LIKELIHOOD,
        )
    ]


def epoch(options: argparse.Namespace) -> list[Row]:
    """Of configs/mnist.yaml with logging and progress bar, and of the plain loop, in processes of their own."""
    promised = (
        ("trainer epoch / plain loop in memory", "ratio", 1.1, True, ()),
        ("as pytorch/examples feeds it / trainer epoch", "ratio_script", 3.0, False, ()),
        ("trainer epoch with compile: true / plain loop", "ratio", 1.0, True, ("--model.compile", "true")),
    )
    if options.data is None:
        note = "no --data FOLDER with MNIST/raw in it"
        return [Row(name, None, reach, at_most, note=note) for name, _, reach, at_most, _ in promised]
    results: dict[tuple[str, ...], dict[str, float]] = {}
    rows = []
    for name, key, reach, at_most, extra in promised:
        if extra not in results:
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-m", "benchmarks.epoch", "--script", "--json", f"{folder}/epoch.json"]
                command += ["--", "--data.root", options.data, *extra]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                results[extra] = json.loads(Path(folder, "epoch.json").read_text())
        found = results[extra]
        note = f"plain loop {found['seconds_plain_loop']:.1f} s, trainer {found['seconds_trainer']:.1f} s"
        rows.append(Row(name, found[key], reach, at_most, None, note, SCRIPT if key == "ratio_script" else EPOCH))
    return rows


def scaling(options: argparse.Namespace) -> list[Row]:
    """From B to 16 B: the time over what the work grows to, 16 for the KL and 256 for the decomposition."""
    loss = kldiv.GaussianKLLoss()
    small, large = latents(1024, 256), latents(16384, 256)
    found = alternate({"B": gradients(loss, small), "16 B": gradients(loss, large)}, runs=9)
    rows = [Row("GaussianKLLoss, time from B to 16 B / 16", found["16 B"] / found["B"] / 16, 1.1, True)]
    few, many = posterior_batch(256, 16), posterior_batch(4096, 16)
    found = alternate(
        {
            "B": gradients(lambda *t: ours_decomposed(*t, 60_000), few),
            "16 B": gradients(lambda *t: ours_decomposed(*t, 60_000), many),
        },
        runs=3,
    )
    return [*rows, Row("decompose_kl, time from B to 16 B / 256", found["16 B"] / found["B"] / 256, 1.1, True)]


def cuda(options: argparse.Namespace) -> list[Row]:
    """Of 2^26 elements: the bandwidth reached, as a part of a copy's; of 128 x 20: the one-liner's time."""
    if not torch.cuda.is_available():
        rows = [("KL of 2^26 elements, float32: bandwidth / a copy's", 0.85, False)]
        rows += [("the same, bfloat16", 0.85, False), ("GaussianKLLoss 128 x 20 on CUDA / one-liner", 0.5, True)]
        return [Row(name, None, reach, at_most, note="no CUDA device") for name, reach, at_most in rows]
    loss, rows = kldiv.GaussianKLLoss(), []
    for dtype in (torch.float32, torch.bfloat16):
        given = [torch.randn(2**13, 2**13, device="cuda", dtype=dtype).requires_grad_() for _ in range(2)]
        targets = [torch.empty_like(t) for t in given]

        def copy(given: list[Tensor] = given, targets: list[Tensor] = targets) -> None:
            with torch.no_grad():
                for target, source in zip(targets, given, strict=True):
                    target.copy_(source)  # reads and writes what a KL with its gradients must

        found = alternate({"ours": gradients(loss, given), "copy": copy}, runs=9, inner=5)
        name = f"KL of 2^26 elements, {str(dtype).split('.')[1]}: bandwidth / a copy's"
        rows.append(Row(name, found["copy"] / found["ours"], 0.85, False))
    small = [t.detach().cuda().requires_grad_() for t in latents(128, 20)]
    found = alternate({"ours": gradients(loss, small), "one-liner": gradients(one_liner, small)}, runs=30, inner=40)
    return [*rows, Row("GaussianKLLoss 128 x 20 on CUDA / one-liner", found["ours"] / found["one-liner"], 0.5, True)]


GROUPS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "gaussian": gaussian,
    "categorical": categorical,
    "mixture": mixture,
    "decomposition": decomposition,
    "log_likelihood": log_likelihood,
    "scaling": scaling,
    "epoch": epoch,
    "cuda": cuda,
}


def measure(name: str, options: argparse.Namespace) -> list[Row]:
    """The rows of a group."""
    if options.threads:
        torch.set_num_threads(options.threads)
    return GROUPS[name](options)


def plot(rows: list[Row], path: Path) -> None:
    """A bar a row: how many times better than promised, on a scale of factors."""
    from matplotlib import ticker
    from matplotlib.figure import Figure

    shown = [row for row in rows if row.distance is not None][::-1]
    figure = Figure(figsize=(8, 0.6 + 0.34 * len(shown)), layout="constrained")
    axes = figure.subplots()
    better = [1 / row.distance for row in shown if row.distance is not None]
    colours = ["#1f5fa8" if value >= 1 else "#b8542f" for value in better]
    axes.barh([row.name for row in shown], [math.log2(value) for value in better], color=colours, height=0.6)
    axes.axvline(0, color="black", linewidth=1)
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{2**x:g}"))
    axes.xaxis.set_major_locator(ticker.MultipleLocator(1))
    for place, row in enumerate(shown):
        assert row.value is not None
        text = f"{row.value:.3g} ({'at most' if row.at_most else 'at least'} {row.reach:g})"
        end = max(0.0, -math.log2(row.distance or 1))
        axes.text(end + 0.08, place, text, va="center", fontsize=8)
    ends = [math.log2(value) for value in better]
    axes.set_xlim(min(-1.0, *ends) - 0.1, max(1.0, *ends) + 2.2)
    axes.set_xlabel(f"times better than promised, {processor()}")
    axes.tick_params(axis="y", labelsize=8, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path, dpi=200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--threads", type=int, help="torch's own number where it is not given")
    parser.add_argument("--data", help="folder with MNIST/raw in it, for the training epoch")
    parser.add_argument("--json", help="file for the result")
    parser.add_argument("--plot", help="file for a picture of it")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    rows = []
    for name in options.only:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measure, (name, options))
        for row in found:
            rows.append(row)
            value = "" if row.value is None else f"{row.value:.2f}"
            bound = f"{'at most' if row.at_most else 'at least'} {row.reach:g}"
            print(f"{row.name:54}{value:>9}  {bound:14} {row.verdict:14} {row.note}", flush=True)
            if row.distance is not None and row.distance > 1 and row.tried:
                print(textwrap.fill(row.tried, 110, initial_indent="    ", subsequent_indent="    "), flush=True)
    if options.plot:
        plot(rows, Path(options.plot))
    if options.json:
        result = {
            "rows": [{**row._asdict(), "verdict": row.verdict} for row in rows],
            **machine(),
        }
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
