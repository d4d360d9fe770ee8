import math

import pytest
import torch
from torch.distributions import Categorical, Independent, Laplace, MixtureSameFamily, Normal, Poisson

from kldiv import DiagonalNormal, estimate_kl, kl_divergence


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_standard_error_is_that_of_the_mean():
    p, q = Normal(torch.tensor([0.0, 1.0]), 1.0), Laplace(torch.tensor([[0.0], [0.5], [2.0]]), 0.7)
    truth = kl_divergence(p, q)
    values, errors = zip(*(estimate_kl(p, q, 64, generator=seeded(seed)) for seed in range(300)), strict=True)
    values, errors = torch.stack(values), torch.stack(errors)
    assert values.shape == (300, 3, 2)
    assert ((values.mean(0) - truth).abs() < 4 * values.std(0) / math.sqrt(300)).all()
    covered = ((values - truth).abs() < 2.0 * errors).double().mean()
    assert 0.92 < covered < 0.98
    # independent noise for every element of the batch
    assert torch.corrcoef(values.flatten(1).T).fill_diagonal_(0).abs().max() < 0.3


def test_gradients_are_unbiased():
    loc, scale, other = (torch.tensor(v, requires_grad=True) for v in (0.3, 0.8, 1.1))
    expected = torch.autograd.grad(kl_divergence(Normal(loc, scale), Normal(0.0, other)), (loc, scale, other))
    value, error = estimate_kl(Normal(loc, scale), Normal(0.0, other), 100_000, generator=seeded())
    assert not error.requires_grad
    gradients = torch.autograd.grad(value, (loc, scale, other))
    torch.testing.assert_close(torch.stack(gradients), torch.stack(expected), rtol=0.03, atol=0.01)


def test_a_generator_reproduces_and_leaves_the_global_state_alone():
    p, q = Normal(torch.zeros(4), 1.0), Normal(torch.ones(4), 1.0)
    before = torch.get_rng_state()
    first, again = (estimate_kl(p, q, generator=seeded(3)).value for _ in range(2))
    assert (first == again).all()
    assert (torch.get_rng_state() == before).all()
    generator = seeded(3)
    estimate_kl(p, q, generator=generator)
    assert (estimate_kl(p, q, generator=generator).value != first).all()


def test_what_has_no_closed_form():
    mixture = MixtureSameFamily(Categorical(torch.ones(3)), Independent(Normal(torch.randn(3, 2), 1.0), 1))
    value, error = estimate_kl(DiagonalNormal(torch.zeros(4, 2), torch.zeros(4, 2)), mixture)
    assert value.shape == error.shape == (4,)
    rate = torch.tensor(2.0, requires_grad=True)
    with pytest.raises(ValueError, match=r"Poisson has no rsample.*no_grad"):
        estimate_kl(Poisson(rate), Poisson(3.0))
    (to_q,) = torch.autograd.grad(estimate_kl(Poisson(1.0), Poisson(rate), 5000, generator=seeded()).value, rate)
    assert to_q.item() == pytest.approx(1 - 1 / 2, abs=0.05)
    assert estimate_kl(Poisson(torch.tensor(1.0)), Poisson(2.0), 1).standard_error.item() == math.inf


def test_half_precision_samples_in_float32():
    p = Normal(torch.zeros(3).half(), torch.ones(3).half())
    assert estimate_kl(p, p).value.tolist() == [0, 0, 0]
    assert estimate_kl(p, p).value.dtype == torch.float32


def test_bad_arguments():
    normal = Normal(torch.zeros(2), 1.0)
    for options in ({"value": "k4"}, {"gradient": "none"}, {"sampler": "halton"}, {"num_samples": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            estimate_kl(normal, normal, **options)
    with pytest.raises(TypeError, match="q is a Tensor"):
        estimate_kl(normal, torch.zeros(2))
    with pytest.raises(ValueError, match="event shape"):
        estimate_kl(normal, Independent(normal, 1))
