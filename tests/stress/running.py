"""Many cases in several processes, with a state on disk from which a later run goes on."""

import contextlib
import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from tests.stress.case import Failure, drawn_property, run_case
from tests.stress.properties import PROPERTIES

CHUNK = 50
"""Cases between two reports of a process."""


class State:
    """What was run: cases of each property and the failures. Written beside the file, and then renamed."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.cases: Counter[str] = Counter()
        self.failures: list[Failure] = []
        self.done: set[int] = set()  # chunks
        self.weights = {name: PROPERTIES[name].weight for name in sorted(PROPERTIES)}
        if path is not None and path.exists():
            saved = json.loads(path.read_text())
            if saved["weights"] != self.weights:
                raise SystemExit(f"{path} is of other properties than there are now: remove it, or give another STATE=")
            self.cases.update(saved["cases"])
            self.failures = [Failure(*each) for each in saved["failures"]]
            self.done = set(saved["done"])

    def add(self, chunk: int, cases: Counter[str], failures: Iterable[Failure]) -> None:
        self.done.add(chunk)
        self.cases.update(cases)
        self.failures.extend(failures)

    def save(self) -> None:
        if self.path is None:
            return
        saved: dict[str, Any] = {
            "weights": self.weights,
            "cases": self.cases,
            "failures": sorted(self.failures),
            "done": sorted(self.done),
        }
        beside = self.path.with_name(f"{self.path.name}.new")
        beside.write_text(json.dumps(saved, indent=1))
        os.replace(beside, self.path)

    def table(self) -> str:
        """Property, cases, failures."""
        failed = Counter(failure.name for failure in self.failures)
        width = max(map(len, ["property", *self.cases]))
        rows = [f"{'property':{width}}  {'cases':>8}  {'failures':>8}"]
        rows += [f"{name:{width}}  {self.cases[name]:8d}  {failed[name]:8d}" for name in sorted(self.cases)]
        return "\n".join([*rows, f"{'all':{width}}  {self.cases.total():8d}  {failed.total():8d}"])


def run_chunk(chunk: int, size: int = CHUNK) -> tuple[int, Counter[str], list[Failure]]:
    """The cases of one chunk, whose numbers are their seeds."""
    cases: Counter[str] = Counter()
    failures = []
    for seed in range(chunk * CHUNK, chunk * CHUNK + size):
        name = drawn_property(seed)
        cases[name] += 1
        if (failure := run_case(name, seed)) is not None:
            failures.append(failure)
    return chunk, cases, failures


def prepare() -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    torch.set_num_threads(1)


def results(chunks: list[int], processes: int) -> Iterator[tuple[int, Counter[str], list[Failure]]]:
    """Of each chunk as it ends, with no more in flight than there are processes, twice."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=prepare) as pool:
        waiting = iter(chunks)
        running = {pool.submit(run_chunk, chunk) for _, chunk in zip(range(2 * processes), waiting, strict=False)}
        try:
            while running:
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for each in ended:
                    yield each.result()
                running |= {pool.submit(run_chunk, chunk) for _, chunk in zip(ended, waiting, strict=False)}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def run(cases: int, processes: int, path: Path | None) -> State:
    """Runs what is left of so many cases, in whole chunks, and shows failures and the way gone."""
    state = State(path)
    chunks = [chunk for chunk in range(-(-cases // CHUNK)) if chunk not in state.done]
    started = shown = saved = time.monotonic()
    ran = 0
    try:
        with contextlib.closing(results(chunks, processes)) as ended:
            for chunk, counted, failures in ended:
                state.add(chunk, counted, failures)
                ran += counted.total()
                for failure in failures:
                    show(failure)
                now = time.monotonic()
                if now - saved > 5:
                    state.save()
                    saved = now
                if now - shown > 30:
                    rate = ran / (now - started)
                    print(
                        f"{state.cases.total()} cases, {len(state.failures)} failures, {rate:.0f} a second", flush=True
                    )
                    shown = now
    finally:
        state.save()
    if ran:
        seconds = time.monotonic() - started
        print(f"{ran} cases in {seconds:.0f} s, {ran / seconds / processes:.1f} a second and process")
    return state


def show(failure: Failure) -> None:
    print(
        f"FAILED --property {failure.name!r} --seed {failure.seed}: {failure.description}: {failure.error}", flush=True
    )
