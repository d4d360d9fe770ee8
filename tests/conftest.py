"""Every test starts from the same seeds, whichever ran before it in the same process."""

import random

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_seeds():
    random.seed(0)
    torch.manual_seed(0)
