"""Every test starts from the same seeds, whichever ran before it in the same process."""

import random

import pytest


@pytest.fixture(autouse=True)
def _same_seeds():
    import torch  # not where pytest-xdist only hands out the tests

    random.seed(0)
    torch.manual_seed(0)
