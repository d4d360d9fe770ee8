"""The Triton kernels on a CPU, in a process of their own: TRITON_INTERPRET=1 pytest tests/kernels/triton_interpreted.py

Triton reads that variable once, when it is imported.
"""

import math

import pytest
import torch

from kldiv.functional import kl_normal
from kldiv.kernels import triton_categorical
from kldiv.kernels import triton_gaussian as kernel
from kldiv.kernels.categorical import categorical_kl_formula

SHAPES = [(1, 1), (128, 20), (3, 5), (40, 300), (4, 2, 1031), (0, 4)]

numpy_tells = pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
"""What a GPU does not: infinity less infinity where the other branch is taken."""


def batch(scale, shape, dtype=torch.float32, device="cpu", *, halves=False):
    """Means and log-variances; ``halves``: of one tensor, as an encoder gives them."""
    generator = torch.Generator().manual_seed(0)
    values = scale * torch.randn(2, *shape, generator=generator)
    if halves:
        both = torch.cat(list(values), 1).to(device, dtype).requires_grad_()
        return list(both.chunk(2, 1))
    return [t.to(device, dtype).requires_grad_() for t in values]


def check(function, given, scale=0.25, tolerance=1e-6):
    wide = [t.detach().double().requires_grad_() for t in given]
    truth = scale * kl_normal(*wide).sum()
    found = function(*given, scale)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=0)
    expected = torch.autograd.grad(truth, wide)
    for upstream in (1.0, -3.0):  # the first takes the gradients as the forward has made them, the second does not
        for _ in range(2):  # and once more of a graph that was kept
            up = torch.full_like(found, upstream)
            gradients = torch.autograd.grad(found, given, up, retain_graph=True)
            for one, other in zip(gradients, expected, strict=True):
                assert one.dtype == given[0].dtype
                torch.testing.assert_close(one.double(), upstream * other, rtol=tolerance, atol=0)
        found = function(*given, scale)


@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1.0, 10.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_plain_formula(scale, shape):
    check(kernel.gaussian_kl, batch(scale, shape))


def test_halves_of_a_tensor_and_other_strides():
    check(kernel.gaussian_kl, batch(1.0, (40, 301), halves=True))
    check(kernel.gaussian_kl, [t.mT for t in batch(1.0, (40, 301))])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_half_precision(dtype, tolerance):
    check(kernel.gaussian_kl, batch(1.0, (40, 300), dtype), tolerance=tolerance)


@numpy_tells
def test_edges_of_the_domain():
    for value in (math.inf, -math.inf, math.nan, 88.0, 88.9, 100.0, -1e30, 3e38, 0.0, 1e-40, -0.6, 1.0):
        log_var = torch.tensor([[0.5, value, 0.0]]).requires_grad_()
        found, plain = (f(torch.zeros(1, 3), log_var) for f in (lambda m, v: kernel.gaussian_kl(m, v, 1.0), kl_normal))
        torch.testing.assert_close(found, plain.sum(), equal_nan=True)
        (gradient,) = torch.autograd.grad(found, log_var)
        torch.testing.assert_close(gradient, (0.5 * torch.expm1(log_var.detach().double())).float(), equal_nan=True)


def test_twice_differentiable():
    given = batch(1.0, (3, 2))
    found, expected = (
        torch.autograd.functional.hessian(f, tuple(given))
        for f in (lambda m, v: kernel.gaussian_kl(m, v, 0.5), lambda m, v: 0.5 * kl_normal(m, v).sum())
    )
    torch.testing.assert_close(found, expected)


def logits(perturbation, shift=0.0, shape=(6, 300), spread=3.0, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    p = spread * torch.randn(shape, generator=generator)
    q = p + perturbation * torch.randn(shape, generator=generator) + shift
    return [t.to(device).requires_grad_() for t in (p, q)]


def categorical_kl(p, q):
    return triton_categorical.categorical_kl(p, q, [p.requires_grad, q.requires_grad])


def check_categories(given):
    """Values to 1e-6, and each row's gradients to 5e-6 of their largest."""
    wide = [t.detach().double().requires_grad_() for t in given]
    found, truth = categorical_kl(*given), categorical_kl_formula(*wide)
    torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=0)
    for upstream in (torch.ones_like(found), torch.linspace(-2, -1, len(found), device=found.device)):
        expected = torch.autograd.grad(truth, wide, upstream.double(), retain_graph=True)
        for _ in range(2):  # and once more of a graph that was kept
            gradients = torch.autograd.grad(found, given, upstream, retain_graph=True)
            for one, other in zip(gradients, expected, strict=True):
                error = (one.double() - other).abs() / other.abs().amax(1, keepdim=True)
                assert error[found.isfinite()].max() < 5e-6
        found = categorical_kl(*given)


@numpy_tells
@pytest.mark.parametrize(("perturbation", "shift"), [(1e-6, 100.0), (1e-3, 0.0), (0.1, -40.0), (3.0, 0.0), (30.0, 5.0)])
def test_categories_against_the_plain_formula(perturbation, shift):
    check_categories(logits(perturbation, shift))


@numpy_tells
def test_more_categories_than_a_block_and_fewer():
    check_categories(logits(0.1, 1.0, shape=(2, 5000)))
    check_categories(logits(1.0, shape=(3, 2)))
    assert categorical_kl(*logits(1.0, shape=(0, 4))).shape == (0,)


@numpy_tells
def test_probabilities_of_zero_and_equal_logits():
    p, q = (t.detach() for t in logits(1.0))
    masked, both = p.clone(), q.clone()
    masked[:, ::3] = both[:, ::3] = -math.inf
    for one, other in ((masked, q), (masked, both), (masked.nan_to_num(neginf=-1e9), q), (p, both), (p, p + 0.0)):
        given = [one.clone().requires_grad_(), other.clone().requires_grad_()]
        plain = [t.detach().clone().requires_grad_() for t in given]
        found, expected = categorical_kl(*given), categorical_kl_formula(*plain)
        torch.testing.assert_close(found, expected)
        gradients = torch.autograd.grad(found.sum(), given), torch.autograd.grad(expected.sum(), plain)
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@numpy_tells
def test_categories_twice_differentiable_one_gradient_alone_and_strides():
    given = logits(1.0, shape=(2, 3))
    found, expected = (
        torch.autograd.functional.hessian(lambda p, q, f=f: f(p, q).sum(), tuple(given))
        for f in (categorical_kl, categorical_kl_formula)
    )
    torch.testing.assert_close(found, expected)
    for wanted in (0, 1):
        given = [t.detach().requires_grad_(k == wanted) for k, t in enumerate(logits(1.0))]
        (one,) = torch.autograd.grad(categorical_kl(*given).sum(), given[wanted])
        (other,) = torch.autograd.grad(categorical_kl_formula(*given).sum(), given[wanted])
        torch.testing.assert_close(one, other)
    across = [t.detach().mT for t in logits(1.0, shape=(40, 6))]
    torch.testing.assert_close(categorical_kl(*across), categorical_kl_formula(*across))
