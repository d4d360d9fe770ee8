import random
import warnings

import mpmath
import pytest
import torch

from kldiv.numerics.special import (
    _Expm1mx,
    bregman,
    exact_difference,
    expm1mx,
    kl_term,
    log_ratio,
    non_negative,
    xmlog1p,
)
from tests.marks import sweep


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 4e-7), (torch.float64, 1e-15)])
def test_expm1mx_over_the_whole_range(dtype, tolerance):
    top = 88 if dtype == torch.float32 else 709
    magnitudes = torch.logspace(-15, torch.tensor(top).log10(), 400, dtype=dtype)
    for u in torch.cat([magnitudes, -magnitudes, torch.linspace(-0.6, 0.6, 121, dtype=dtype)]):
        with mpmath.workdps(60):
            exact = mpmath.mpf(u.item())
            truth = mpmath.exp(exact) - 1 - exact
        assert abs(expm1mx(u).item() - truth) <= tolerance * truth, u


def test_expm1mx_at_its_ends():
    ends = torch.tensor([0.0, float("inf"), float("-inf"), 1e4, -1e30], requires_grad=True)
    value = expm1mx(ends)
    torch.testing.assert_close(value, torch.tensor([0.0, float("inf"), float("inf"), float("inf"), 1e30]))
    value.sum().backward()
    assert not ends.grad.isnan().any()


def test_exact_difference_loses_nothing():
    a = torch.randn(1000) * 10 ** torch.randint(-8, 9, (1000,))
    b = torch.randn(1000) * 10 ** torch.randint(-8, 9, (1000,))
    difference, error = exact_difference(a, b)
    assert (difference == a - b).all()
    with mpmath.workdps(60):
        for row in torch.stack([a, b, difference, error], 1).tolist():
            a_exact, b_exact, difference_exact, error_exact = map(mpmath.mpf, row)
            assert a_exact - b_exact == difference_exact + error_exact


def test_exact_difference_of_infinities_has_no_error():
    _, error = exact_difference(torch.tensor([float("inf"), 3e38]), torch.tensor([0.0, -3e38]))
    assert (error == 0).all()


def magnitudes(low, high, count, dtype):
    return torch.logspace(low, high, count, dtype=dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 4e-7), (torch.float64, 1e-15)])
def test_xmlog1p_over_the_whole_range(dtype, tolerance):
    top = 38 if dtype == torch.float32 else 300
    negative = -torch.cat([magnitudes(-15, -0.01, 200, dtype), 1 - magnitudes(-6, -1, 20, dtype)])
    for x in torch.cat([magnitudes(-15, top, 300, dtype), negative, torch.linspace(-0.6, 0.6, 121, dtype=dtype)]):
        with mpmath.workdps(330):
            exact = mpmath.mpf(x.item())
            truth = exact - mpmath.log1p(exact)
        assert abs(xmlog1p(x).item() - truth) <= tolerance * truth, x


def test_xmlog1p_at_its_ends():
    ends = torch.tensor([0.0, -1.0, float("inf"), 3e38], requires_grad=True)
    value = xmlog1p(ends)
    torch.testing.assert_close(value, torch.tensor([0.0, float("inf"), float("inf"), 3e38]))
    value.sum().backward()
    assert not ends.grad.isnan().any()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-7), (torch.float64, 5e-16)])
def test_log_ratio_and_kl_term_over_the_whole_range(dtype, tolerance):
    rng = random.Random(0)
    top = 18 if dtype == torch.float32 else 150
    for distance in (None, 1.0, 1e-2, 1e-5, 1e-7):
        for _ in range(100):
            q = 10 ** rng.uniform(-top, top)
            p = 10 ** rng.uniform(-top, top) if distance is None else q * (1 + distance * rng.uniform(-0.9, 1))
            p, q = torch.tensor(p, dtype=dtype), torch.tensor(q, dtype=dtype)
            with mpmath.workdps(350):
                exact_p, exact_q = mpmath.mpf(p.item()), mpmath.mpf(q.item())
                log = mpmath.log(exact_p / exact_q)
                term = exact_p * log - exact_p + exact_q
            # far apart the two logarithms are subtracted
            scale = max(abs(log), abs(mpmath.log(exact_p)) if abs(log) > 0.4 else 0)
            assert abs(log_ratio(p, q).item() - log) <= tolerance * scale
            if torch.finfo(dtype).tiny < term < torch.finfo(dtype).max:
                assert abs(kl_term(p, q).item() - term) <= 2 * tolerance * max(term, exact_p * scale), (p, q)
            assert kl_term(p, q) >= 0


def test_kl_term_at_the_edge():
    p = torch.tensor([0.0, 0.0, 0.5, 1e15], requires_grad=True)
    q = torch.tensor([0.0, 0.25, 0.0, 1e-15], requires_grad=True)
    value = kl_term(p, q)
    assert value.tolist() == pytest.approx([0.0, 0.25, float("inf"), 6.8077553e16], rel=1e-6)
    # whoever leaves the infinite one out finds no NaN in its place
    gradients = torch.autograd.grad(value[[0, 1, 3]].sum(), (p, q))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_better_known_difference_is_used():
    p, q = torch.tensor(1.0), torch.tensor(1.0)
    assert kl_term(p, q, torch.tensor(1e-10)).item() == pytest.approx(5e-21, rel=1e-6)
    assert log_ratio(p, q, torch.tensor(1e-10)).item() == pytest.approx(1e-10, rel=1e-6)


def test_bregman_of_the_exponential():
    a = torch.tensor([0.3, 0.3 + 1e-9, 5.0, -3.0, 0.3], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([0.3, 0.3, 4.0, 2.0, 1.29], dtype=torch.float64, requires_grad=True)
    value = bregman(a, b, a - b, torch.exp, torch.exp, torch.exp)
    torch.testing.assert_close(value, b.exp() * expm1mx(a - b), rtol=1e-13, atol=0)
    assert value[0] == 0
    assert torch.autograd.gradcheck(lambda a, b: bregman(a, b, a - b, torch.exp, torch.exp, torch.exp), (a, b))


def test_non_negative_leaves_the_gradient():
    x = torch.tensor([-1e-17, 2.0, float("inf")], requires_grad=True)
    value = non_negative(x)
    assert value.tolist() == [0.0, 2.0, float("inf")]
    value[:2].sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 0.0]


def test_what_compilers_are_given_is_as_good():
    """In float32, value and gradient: near 0, where the power of 2 changes, and as far as it is finite."""
    ends = torch.tensor([1e-16, -1e-12, 1e-6, 88.38, 88.72, -86.9, -87.1, -1e30])
    u = torch.cat([torch.linspace(-3, 3, 60001), torch.linspace(-90, 88, 1001), ends])
    u = u[u != 0].requires_grad_()
    value = _Expm1mx.apply(u)
    wide = u.detach().double()
    torch.testing.assert_close(value.double(), expm1mx(wide), rtol=5e-7, atol=0)
    (gradient,) = torch.autograd.grad(value.sum(), u)
    torch.testing.assert_close(gradient.double(), torch.expm1(wide), rtol=2e-7, atol=0)
    ends = torch.tensor([torch.inf, -torch.inf, 100.0, 0.0, torch.nan]).requires_grad_()
    value = _Expm1mx.apply(ends)
    (gradient,) = torch.autograd.grad(value.sum(), ends)
    assert str(value.tolist()) == "[inf, inf, inf, 0.0, nan]"
    assert str(gradient.tolist()) == "[inf, -1.0, inf, 0.0, nan]"


@pytest.mark.parametrize("transform", sweep(["grad", "jvp", "vmap", "hessian"], ["grad", "jvp"]))
def test_compiled_function_transforms(transform):
    def total(u):
        return expm1mx(u).sum()

    u = torch.tensor([-2.0, -0.1, 0.3, 2.0])
    transformed, expected = {
        "grad": (lambda u: torch.func.grad(total)(u), torch.expm1(u)),
        "jvp": (lambda u: torch.func.jvp(total, (u,), (u,))[1], (u * torch.expm1(u)).sum()),
        "vmap": (lambda u: torch.func.vmap(total)(u), expm1mx(u)),
        "hessian": (lambda u: torch.func.hessian(total)(u), torch.diag(torch.exp(u))),
    }[transform]
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(transformed, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(u), expected)
