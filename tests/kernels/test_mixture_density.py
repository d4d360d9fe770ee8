import math

import pytest
import torch

from kldiv.kernels import mixture_density as kernel
from kldiv.kernels.autograd import exp2_
from kldiv.kernels.mixture_density import _formula, mixture_log_density


def make(std, batch=9, count=5, dims=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    mean, log_var = draw(count, dims), 2 * math.log(std) + 0.5 * draw(count, dims)
    chosen = torch.arange(batch) % count
    value = mean[chosen] + torch.exp(0.5 * log_var[chosen]) * draw(batch, dims)
    log_weights = torch.log_softmax(draw(count).double(), 0)
    return [t.to(dtype).requires_grad_() for t in (value, mean, log_var)] + [log_weights.requires_grad_()]


def of_kernel(*given):
    return mixture_log_density(*given, torch.float32)


def in_double(given):
    wide = [t.detach().double().requires_grad_() for t in given]
    return wide, _formula(*wide, torch.float64)


@pytest.mark.parametrize("block", [1, 11, 2**18])
@pytest.mark.parametrize("std", [1.0, 0.1, 0.01])
def test_against_the_plain_formula_in_double_precision(std, block, monkeypatch):
    monkeypatch.setattr(kernel, "_BLOCK", block)
    given = make(std)
    wide, expected = in_double(given)
    found = of_kernel(*given)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    upstream = torch.linspace(-1, 2, 9)
    for one, other in zip(
        torch.autograd.grad(found, given, upstream),
        torch.autograd.grad(expected, wide, upstream.double()),
        strict=True,
    ):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=2e-6 * other.abs().max().item())


@pytest.mark.parametrize("near", [0.0, kernel._NEAR, math.inf])
def test_a_gradient_of_the_value_that_is_of_single_precision_where_that_does(near, monkeypatch):
    """A distance of the square root of 500 standard deviations is the largest for which they are."""
    monkeypatch.setattr(kernel, "_NEAR", near)
    errors = []
    for std in (0.7, 0.003):
        given = make(std, batch=256, count=100, dims=20)
        wide, expected = in_double(given)
        scale = (given[0] - given[1].mean(0)).square().max() * torch.exp(-given[2]).max()
        assert scale < 512 if std == 0.7 else scale > 1e5
        gradients = torch.autograd.grad(of_kernel(*given).sum(), given), torch.autograd.grad(expected.sum(), wide)
        errors.append(
            max(((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(*gradients, strict=True))
        )
    assert errors[0] < 2e-6
    assert errors[1] < 1e-6 if near < math.inf else errors[1] > 1e-5


def test_a_value_at_the_center_of_components_without_width():
    """No distance is far there, and the log-variances are beyond the least that is told apart."""
    mean = torch.tensor([[-1.0], [1.0]], requires_grad=True)
    log_var = torch.full((2, 1), -400.0, requires_grad=True)
    log_weights = torch.full((2,), math.log(0.5), dtype=torch.float64)
    given = torch.zeros(1, 1), mean, log_var, log_weights
    found, expected = (torch.autograd.grad(f, log_var)[0] for f in (of_kernel(*given), _formula(*given, torch.float32)))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [0, 3], [1, 2]])
def test_where_some_alone_want_a_gradient(wanted):
    given = [t.detach().requires_grad_(k in wanted) for k, t in enumerate(make(1.0))]
    asked = [given[k] for k in wanted]
    found, plain = of_kernel(*given), _formula(*given, torch.float32)
    for one, other in zip(
        torch.autograd.grad(found.sum(), asked), torch.autograd.grad(plain.sum(), asked), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_twice_differentiable_and_a_graph_that_is_kept():
    given = make(1.0, batch=3, count=2, dims=2)
    found, expected = (
        torch.autograd.functional.hessian(lambda *t, f=f: f(*t).sum(), tuple(given))
        for f in (of_kernel, lambda *t: _formula(*t, torch.float32))
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    value = of_kernel(*given).sum()
    first = torch.autograd.grad(value, given, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(value, given), first, rtol=0, atol=0)


def test_many_upstream_gradients_at_once():
    given = make(1.0)
    values, upstream = of_kernel(*given), torch.randn(2, 9, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(values, given, upstream, is_grads_batched=True, retain_graph=True)
    for together, *apart in zip(
        found, *(torch.autograd.grad(values, given, one, retain_graph=True) for one in upstream), strict=True
    ):
        torch.testing.assert_close(together, torch.stack(apart), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_power_that_underflows_is_zero(dtype):
    given = torch.tensor([0.0, -1.0, -125.0, -130.0, -1e30, -math.inf, math.nan], dtype=dtype)
    found = exp2_(given.clone())
    torch.testing.assert_close(found, torch.exp2(given), rtol=1e-6, atol=2e-38, equal_nan=True)
    assert found[4] == found[5] == 0
    if dtype == torch.float32:
        assert found[3] == 0
