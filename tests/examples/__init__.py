"""The tests of examples/ need what the examples need, and are skipped, with that reason, where it is missing."""

import pytest

for package in ("lightning", "jsonargparse", "matplotlib", "sklearn", "tensorboard"):
    pytest.importorskip(package, reason=f"the examples need {package}")
