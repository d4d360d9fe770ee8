"""Runs the core's tests where the examples' packages cannot be imported: python -m tests.without_examples"""

import sys

import pytest

for name in ("lightning", "torchvision", "torchmetrics", "jsonargparse", "matplotlib", "sklearn", "tensorboard"):
    sys.modules[name] = None  # type: ignore[assignment]

sys.exit(pytest.main(["--ignore=tests/examples", *sys.argv[1:]]))
