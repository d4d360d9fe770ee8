import pytest
import torch
from torch.distributions import (
    Independent,
    Normal,
)

from kldiv import DiagonalNormal


@pytest.fixture
def parameters():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 2, generator=generator), torch.randn(4, 3, 2, generator=generator)


@pytest.mark.parametrize("event_dim", [0, 1, 2, 3])
def test_agrees_with_independent_normals(parameters, event_dim):
    mean, log_var = parameters
    ours = DiagonalNormal(mean, log_var, event_dim)
    theirs = Independent(Normal(mean, torch.exp(0.5 * log_var)), event_dim)
    sample = theirs.sample((5,))
    assert (ours.batch_shape, ours.event_shape) == (theirs.batch_shape, theirs.event_shape)
    torch.testing.assert_close(ours.log_prob(sample), theirs.log_prob(sample), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.entropy(), theirs.entropy(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.stddev, theirs.stddev)
    torch.testing.assert_close(ours.variance, theirs.variance)
    torch.testing.assert_close(ours.mode, theirs.mode)
    assert ours.support.check(sample).shape == sample.shape[: 4 - event_dim]


def test_samples_follow_the_global_generator_and_carry_gradients(parameters):
    mean, log_var = (p.requires_grad_() for p in parameters)
    torch.manual_seed(0)
    sample = DiagonalNormal(mean, log_var).rsample((7,))
    torch.manual_seed(0)
    expected = mean + torch.exp(0.5 * log_var) * torch.randn(7, 4, 3, 2)
    torch.testing.assert_close(sample, expected)
    gradients = torch.autograd.grad(sample.sum(), (mean, log_var))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert not DiagonalNormal(mean, log_var).sample().requires_grad


def test_half_precision_samples_in_its_dtype_without_overflow():
    # exp(18) is infinite in float16, the standard deviation is 8103, and eight of those are still finite
    posterior = DiagonalNormal(torch.zeros(2, 3).half(), torch.full((2, 3), 18.0).half())
    sample = posterior.rsample()
    assert sample.dtype == torch.float16
    assert sample.isfinite().all()
    assert posterior.log_prob(sample).dtype == torch.float32


def test_an_empty_batch():
    posterior = DiagonalNormal(torch.zeros(0, 3), torch.zeros(0, 3))
    assert posterior.log_prob(posterior.rsample((2,))).shape == (2, 0)


def test_expand(parameters):
    expanded = DiagonalNormal(parameters[0][0, 0], parameters[1][0, 0]).expand((5,))
    assert (expanded.batch_shape, expanded.event_shape) == ((5,), (2,))
    assert expanded.rsample().shape == (5, 2)


def test_parameters_are_checked():
    with pytest.raises(ValueError, match=r"mean \(4, 3\), log_var \(2,\)"):
        DiagonalNormal(torch.zeros(4, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="event_dim=2"):
        DiagonalNormal(torch.zeros(3), torch.zeros(3), event_dim=2)
    with pytest.raises(ValueError, match="log_var"):
        DiagonalNormal(torch.zeros(2, 3), torch.full((2, 3), float("nan")), validate_args=True)
    with pytest.raises(ValueError, match="support"):
        DiagonalNormal(torch.zeros(2, 3), torch.zeros(2, 3), validate_args=True).log_prob(torch.full((2, 3), torch.nan))
