"""How a time and a memory are measured: peers alternating in one run, medians, what is allocated beyond the inputs."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], object]


def alternate(peers: dict[str, Step], *, runs: int, inner: int = 1, turn: int = 1) -> dict[str, float]:
    """Median seconds of a call of each, the peers taking turns, the first two rounds apart.

    A turn is so many measurements of ``inner`` calls each. Where a peer frees tens of megabytes, the first calls after
    it take several times as long as those that follow, for it is in these that the allocator gives the peer's memory
    back: a turn of one would time that.
    """
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for run in range(-2, runs):
        for name, step in peers.items():
            step()  # caches and allocator hold what this one left, and not the other's
            for _ in range(turn):
                synchronise()
                start = time.perf_counter()
                for _ in range(inner):
                    step()
                synchronise()
                if run >= 0:
                    seconds[name].append((time.perf_counter() - start) / inner)
    return {name: statistics.median(values) for name, values in seconds.items()}


def synchronise() -> None:
    """Waits for CUDA, where it is used: to ask whether it is available takes a tenth of a millisecond."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_bytes(step: Step) -> int:
    """The most that a call has allocated at once, beyond what was there before: the profiler's count, CUDA's own."""
    step()
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's remarks on what machine this is
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    live = peak = 0
    events = profiler.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def gradients(loss: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Step:
    """Forward and backward, of a loss of these inputs."""
    return lambda: torch.autograd.grad(loss(*inputs), inputs)


def machine() -> dict[str, object]:
    """What a result file says of where it was measured."""
    return {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def processor() -> str:
    """The machine's name for its processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()
