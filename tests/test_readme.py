import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_blocks_run(block):
    torch.manual_seed(0)
    names = {}
    exec(block, names)
    assert names["terms"].loss.isfinite()
    assert names["elbo"].weight.steps_taken.item() == 20


def test_everything_it_points_to_exists():
    paths = re.findall(r"\]\(((?!http)[^)]+)\)", README) + re.findall(r"configs/\w+\.yaml", README)
    assert paths
    assert all((ROOT / path).exists() for path in paths)
