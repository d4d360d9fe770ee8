"""Runs the core's tests where the examples' packages cannot be imported: python -m tests.without_examples"""

import sys

import pytest

PACKAGES = ("lightning", "torchvision", "torchmetrics", "jsonargparse", "matplotlib", "sklearn", "tensorboard")

if __name__ == "__main__":
    sys.modules.update(dict.fromkeys(PACKAGES))  # type: ignore[arg-type]  # None makes an import fail
    sys.exit(pytest.main(["--ignore=tests/examples", "--ignore=kldiv/metrics.py", *sys.argv[1:]]))
