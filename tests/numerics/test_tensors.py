import torch

from kldiv.numerics.tensors import widen


def test_widen():
    a, b = widen(torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float64))
    assert a.dtype == b.dtype == torch.float64
    (c,) = widen(torch.zeros(2, dtype=torch.uint8))
    assert c.dtype == torch.float32
