import pytest
import torch


@pytest.fixture
def parameters():
    """Means and log-variances of four examples with latents of shape (3, 2)."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(4, 3, 2, dtype=torch.float64, generator=generator) for _ in range(2))
