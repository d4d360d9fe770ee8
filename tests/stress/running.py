"""Many cases in several processes, with a state on disk from which a later run goes on."""

import contextlib
import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

from tests.stress.case import Failure, drawn_property, run_case
from tests.stress.properties import PROPERTIES

CHUNK = 50
"""Cases between two reports of a process."""


class State:
    """What was run: cases of each property, those without a truth, failures. Written beside the file, then renamed."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.cases: Counter[str] = Counter()
        self.unchecked: Counter[str] = Counter()
        self.failures: list[Failure] = []
        self.done: set[int] = set()  # chunks
        self.weights = {name: PROPERTIES[name].weight for name in sorted(PROPERTIES)}
        if path is not None and path.exists():
            saved = json.loads(path.read_text())
            if saved["weights"] != self.weights:
                raise SystemExit(f"{path} is of other properties than there are now: remove it, or give another STATE=")
            self.cases.update(saved["cases"])
            self.unchecked.update(saved["unchecked"])
            self.failures = [Failure(*each) for each in saved["failures"]]
            self.done = set(saved["done"])

    def add(self, ran: "Chunk") -> None:
        self.done.add(ran.number)
        self.cases.update(ran.cases)
        self.unchecked.update(ran.unchecked)
        self.failures.extend(ran.failures)

    def save(self) -> None:
        if self.path is None:
            return
        saved: dict[str, Any] = {
            "weights": self.weights,
            "cases": self.cases,
            "unchecked": self.unchecked,
            "failures": sorted(self.failures),
            "done": sorted(self.done),
        }
        beside = self.path.with_name(f"{self.path.name}.new")
        beside.write_text(json.dumps(saved, indent=1))
        os.replace(beside, self.path)

    def table(self) -> str:
        """Property, cases, those of them that had no truth to compare with, failures."""
        failed = Counter(failure.name for failure in self.failures)
        width = max(map(len, ["property", *self.cases]))
        rows = [f"{'property':{width}}  {'cases':>8}  {'no truth':>8}  {'failures':>8}"]
        counts = (self.cases, self.unchecked, failed)
        for name in [*sorted(self.cases), "all"]:
            each = (count.total() if name == "all" else count[name] for count in counts)
            rows.append(f"{name:{width}}" + "".join(f"  {number:8d}" for number in each))
        return "\n".join(rows)


class Chunk(NamedTuple):
    """What one of the processes reports."""

    number: int
    cases: Counter[str]
    unchecked: Counter[str]
    failures: list[Failure]


def run_chunk(number: int, size: int = CHUNK) -> Chunk:
    """The cases of one chunk, whose numbers are their seeds."""
    chunk = Chunk(number, Counter(), Counter(), [])
    for seed in range(number * CHUNK, number * CHUNK + size):
        name = drawn_property(seed)
        outcome = run_case(name, seed)
        chunk.cases[name] += 1
        chunk.unchecked[name] += not outcome.is_checked
        if outcome.failure is not None:
            chunk.failures.append(outcome.failure)
    return chunk


def prepare() -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    torch.set_num_threads(1)


def results(chunks: list[int], processes: int) -> Iterator[Chunk]:
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
            for chunk in ended:
                state.add(chunk)
                ran += chunk.cases.total()
                for failure in chunk.failures:
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
