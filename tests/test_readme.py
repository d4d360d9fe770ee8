import re
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_python_blocks_run():
    torch.manual_seed(0)
    training, sampling = ({}, {})
    for block, names in zip(re.findall(r"```python\n(.*?)```", README, re.DOTALL), (training, sampling), strict=True):
        exec(block, names)
    assert training["terms"].loss.isfinite()
    assert training["elbo"].weight.steps_taken.item() == 20
    assert (sampling["lower"] < sampling["upper"]).all()
    assert sampling["posterior"].mean.grad_fn is None
    assert sampling["posterior"].mean.grad.isfinite().all()


def test_everything_it_points_to_exists():
    paths = re.findall(r"\]\(((?!http)[^)]+)\)", README) + re.findall(r"configs/\w+\.yaml", README)
    assert paths
    assert all((ROOT / path).exists() for path in paths)
