"""Tests that take long carry the marker ``slow``: ``make test`` leaves them out, ``make test-all`` runs everything."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest

slow = pytest.mark.slow


def sweep(values: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """The values of a parametrised test. Those that are not among the quick ones are slow."""
    values = list(values)
    missing = [value for value in quick if value not in values]
    assert not missing, f"no such value: {missing}"
    return [value if value in quick else pytest.param(value, marks=slow) for value in values]
