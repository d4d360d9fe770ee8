"""A case: what it draws, what it asserts, and what it says when it fails."""

import random
import signal
import traceback
import warnings
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Case:
    """One random composition. Everything it draws follows from the property's name and the seed."""

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.seed = name, seed
        self.rng = random.Random(f"{name} {seed}")
        self.said: list[str] = []
        self.is_checked = True
        torch.manual_seed(zlib.crc32(f"{name} {seed}".encode()))

    def says(self, *parts: Any) -> None:
        """Adds to the description of what was drawn."""
        self.said.extend(map(str, parts))

    @property
    def description(self) -> str:
        return ", ".join(self.said)

    def choice(self, *options: T) -> T:
        return self.rng.choice(options)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def chosen(self, name: str, *options: T) -> T:
        """One of the options, which the description names."""
        value = self.rng.choice(options)
        self.says(f"{name}={value}")
        return value

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, dtype=torch.float64)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(shape, dtype=torch.float64)

    def close(self, what: str, found: Any, expected: Any, rtol: float, atol: float = 0.0) -> None:
        """Whether two tensors agree, infinities included; NaN agrees with nothing."""
        found, expected = (torch.as_tensor(each).detach().double() for each in (found, expected))
        assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
        right = (found == expected) | ((found - expected).abs() <= atol + rtol * expected.abs())
        right &= expected.isfinite() | (found == expected)
        if not right.all():
            index = int((~right).flatten().nonzero()[0])
            left, truth = found.flatten()[index].item(), expected.flatten()[index].item()
            raise AssertionError(f"{what}[{index}] = {left!r}, expected {truth!r} (rtol {rtol:.1e}, atol {atol:.1e})")


class Property(NamedTuple):
    run: Callable[[Case], None]
    weight: float
    """How often it is drawn: cheap and broad ones more often."""


PROPERTIES: dict[str, Property] = {}


def stress_property(name: str, weight: float = 1.0) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Decorator: enters a function of a case under a name."""

    def enter(run: Callable[[Case], None]) -> Callable[[Case], None]:
        assert name not in PROPERTIES, name
        PROPERTIES[name] = Property(run, weight)
        return run

    return enter


class Failure(NamedTuple):
    """Of a case that went wrong."""

    name: str
    seed: int
    description: str
    error: str


class Outcome(NamedTuple):
    is_checked: bool
    """Whether there was a truth to compare with."""
    failure: Failure | None


SECONDS = 60
"""A case that takes longer has failed."""


def run_case(name: str, seed: int, show: bool = False) -> Outcome:
    """Runs one case. Warnings are errors, other packages' apart.

    Args:
        show: whether the whole traceback is printed.
    """
    case = Case(name, seed)
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for package in ("torch", "zuko", "numpy", "scipy"):
                warnings.filterwarnings("ignore", module=package)
            PROPERTIES[name].run(case)
    except Exception as error:
        if show:
            traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        failure = Failure(name, seed, case.description, f"{type(error).__name__}: {lines[0]}"[:500])
        return Outcome(case.is_checked, failure)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if show:
        print(case.description)
    return Outcome(case.is_checked, None)


def too_long(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def drawn_property(seed: int) -> str:
    """Which property the case of this number has."""
    names = sorted(PROPERTIES)
    return random.Random(seed).choices(names, [PROPERTIES[name].weight for name in names])[0]
