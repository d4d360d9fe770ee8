import math

import pytest
import torch

from kldiv.functional import kl_categorical
from kldiv.kernels import categorical as kernel
from kldiv.kernels.categorical import categorical_kl
from kldiv.kernels.categorical import categorical_kl_formula as formula


@pytest.fixture(params=[1, 24, 2**17], autouse=True)
def block(request, monkeypatch):
    monkeypatch.setattr(kernel, "_BLOCK", request.param)
    monkeypatch.setattr(kernel, "_LARGE", 0)


def pair(perturbation, shift=0.0, shape=(7, 8), spread=3.0):
    generator = torch.Generator().manual_seed(0)
    p = spread * torch.randn(shape, generator=generator)
    q = p + perturbation * torch.randn(shape, generator=generator) + shift
    return p.requires_grad_(), q.requires_grad_()


@pytest.mark.parametrize("shift", [0.0, 3.0, -100.0])
@pytest.mark.parametrize("perturbation", [1e-3, 0.1, 3.0, 60.0])
def test_against_the_plain_formula_in_double_precision(perturbation, shift):
    given = pair(perturbation, shift)
    wide = [t.detach().double().requires_grad_() for t in given]
    found, expected = categorical_kl(*given), formula(*wide)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    upstream = torch.linspace(-1, 2, 7)
    for one, other in zip(
        torch.autograd.grad(found, given, upstream, retain_graph=True),
        torch.autograd.grad(expected, wide, upstream.double()),
        strict=True,
    ):
        torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=1e-7 * other.abs().max().item())


@pytest.mark.parametrize("perturbation", [3e-4, 1e-3, 2e-3, 4e-3, 1e-2, 0.1])
def test_nearly_equal_logits_in_the_hundreds(perturbation):
    """Whose powers are good to 13 digits."""
    given = [(logits.detach() + 650).requires_grad_() for logits in pair(perturbation, shape=(200, 8))]
    wide = [t.detach().double().requires_grad_() for t in given]
    found, expected = categorical_kl(*given), formula(*wide)
    torch.testing.assert_close(found.double(), expected, rtol=3e-7, atol=0)
    for one, other in zip(
        torch.autograd.grad(found.sum(), given), torch.autograd.grad(expected.sum(), wide), strict=True
    ):
        assert ((one.double() - other).abs() / other.abs().amax(1, keepdim=True)).max() < 1e-6


@pytest.mark.parametrize("shift", [0.0, -40.0])
@pytest.mark.parametrize("perturbation", [0.1, 10.0])
def test_gradients_of_rows_that_are_all_but_certain(perturbation, shift):
    """Each row's to 1e-6 of its own largest, which may be 1e-15."""
    given = pair(perturbation, shift, shape=(200, 5), spread=10.0)
    wide = [t.detach().double().requires_grad_() for t in given]
    found = torch.autograd.grad(categorical_kl(*given).sum(), given)
    for one, other in zip(found, torch.autograd.grad(formula(*wide).sum(), wide), strict=True):
        assert ((one.double() - other).abs() / other.abs().amax(1, keepdim=True)).max() < 1e-6


def test_zero_probabilities_and_wild_logits_in_their_own_way_and_by_the_plain_formula(monkeypatch):
    plain = []

    def counted(p, q):
        plain.append(len(p))
        return formula(p, q)

    monkeypatch.setattr(kernel, "categorical_kl_formula", counted)
    p, q = (t.detach() for t in pair(1.0))
    masked = p.clone()
    masked[:, 2] = -math.inf
    both = q.clone()
    both[:, 2] = -math.inf
    for one, other, is_plain in (
        (masked, q, False),
        (masked, both, False),
        (masked.nan_to_num(neginf=-1e9), q, False),
        (masked.nan_to_num(neginf=-1e9), both, True),  # in real numbers the first has mass there
        (p, both, True),
        (p + 800, q, True),
        (p - 800, q, True),
    ):
        plain.clear()
        given = [one.clone().requires_grad_(), other.clone().requires_grad_()]
        found = categorical_kl(*given)
        assert bool(plain) == is_plain
        torch.testing.assert_close(found, formula(one, other))
        if found.isfinite().all():
            expected = torch.autograd.grad(formula(*given).sum(), given)
            torch.testing.assert_close(torch.autograd.grad(found.sum(), given), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("perturbation", [1e-11, 1e-9, 1e-8, 1e-7, 1e-6])
def test_very_close_logits_near_zero(perturbation):
    given = pair(perturbation, spread=1e-6)
    wide = [t.detach().double() for t in given]
    torch.testing.assert_close(categorical_kl(*given).double(), formula(*wide), rtol=1e-6, atol=0)


def test_zero_probabilities_saturation_and_infinity():
    p = torch.tensor([[0.0, -math.inf, 1.0], [0.0, 0.0, 0.0], [0.0, 900.0, -900.0], [0.0, 1.0, 2.0], [math.nan, 0, 0]])
    q = torch.tensor([[0.0, 1.0, -math.inf], [0.0, -math.inf, 0.0], [500.0, -900.0, 900.0], [0.0, 1.0, 2.0], [0, 0, 0]])
    for rows in (slice(0, 5), slice(0, 1), slice(2, 4)):
        given = [t[rows].clone().requires_grad_() for t in (p, q)]
        plain = [t[rows].clone().requires_grad_() for t in (p, q)]
        found, expected = categorical_kl(*given), formula(*plain)
        torch.testing.assert_close(found, expected, equal_nan=True)
        finite = found.isfinite()
        for one, other in zip(
            torch.autograd.grad(found[finite].sum(), given),
            torch.autograd.grad(expected[finite].sum(), plain),
            strict=True,
        ):
            torch.testing.assert_close(one[finite], other[finite], rtol=1e-6, atol=1e-7)


def test_twice_differentiable_and_a_graph_that_is_kept():
    given = pair(1.0, shape=(2, 3))
    found, expected = (
        torch.autograd.functional.hessian(f, given)
        for f in (lambda p, q: categorical_kl(p, q).sum(), lambda p, q: formula(p, q).sum())
    )
    torch.testing.assert_close(found, expected)
    value = categorical_kl(*given).sum()
    first = torch.autograd.grad(value, given, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(value, given), first)


def test_the_function_is_the_same_wherever_it_is_computed():
    p, q = pair(1.0, shape=(3, 5, 4))
    for dim in (-1, 0, 1):
        found, value = kl_categorical(p, q, dim), formula(p, q, dim)
        assert "ViewBackward" in type(found.grad_fn).__name__
        torch.testing.assert_close(found, value)
        torch.testing.assert_close(torch.autograd.grad(found.sum(), (p, q)), torch.autograd.grad(value.sum(), (p, q)))
    torch.testing.assert_close(kl_categorical(p, q[0]), formula(p, q[0].expand_as(p)))
    torch.testing.assert_close(torch.func.vmap(kl_categorical)(p, q), kl_categorical(p, q))
    assert kl_categorical(p[:0], q[:0]).shape == (0, 5)


@pytest.mark.parametrize("wanted", [0, 1])
def test_where_one_alone_wants_a_gradient(wanted):
    given = [t.detach() for t in pair(1.0)]
    given[wanted].requires_grad_()
    found, expected = categorical_kl(*given).sum(), formula(*given).sum()
    (first,), (plain) = (torch.autograd.grad(v, given[wanted], create_graph=True) for v in (found, expected))
    torch.testing.assert_close(first, plain[0])
    second = [torch.autograd.grad(g.square().sum(), given[wanted])[0] for g in (first, plain[0])]
    torch.testing.assert_close(*second)
