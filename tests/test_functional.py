import itertools
import random

import mpmath
import pytest
import torch

from kldiv.functional import bounded_log_var, kl_bernoulli, kl_categorical, kl_normal

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def true_kl_normal(mean_p, log_var_p, mean_q=0, log_var_q=0):
    with mpmath.workdps(50):
        mean_p, log_var_p, mean_q, log_var_q = (mpmath.mpf(float(v)) for v in (mean_p, log_var_p, mean_q, log_var_q))
        u = log_var_p - log_var_q
        return (mpmath.exp(u) - 1 - u + (mean_p - mean_q) ** 2 * mpmath.exp(-log_var_q)) / 2


def assert_right(parameters, dtype):
    tensors = [torch.tensor(value, dtype=dtype) for value in parameters]
    value = kl_normal(*tensors).item()
    truth = true_kl_normal(*tensors)
    if truth > torch.finfo(dtype).tiny:  # below it the dtype itself has no six digits
        assert abs(value - truth) <= TOLERANCE[dtype] * truth, (parameters, value, truth)
    assert value >= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_fifty_digits_on_a_grid_of_magnitudes(dtype):
    magnitudes = [sign * 10.0**power for sign in (1, -1) for power in (-8, -4, -1, 0, 1)]
    for mean, log_var in itertools.product(magnitudes, magnitudes):
        assert_right((mean, log_var), dtype)
        for prior in itertools.product((-10.0, 1e-8, 0.3), (10.0, -10.0, -1e-8)):
            assert_right((mean, log_var, *prior), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", [1.0, 1e-2, 1e-4, 1e-6])
def test_against_fifty_digits_however_close_the_two_are(dtype, distance):
    draw = random.Random(0)
    for _ in range(300):
        prior = [draw.choice([-1, 1]) * 10 ** draw.uniform(-8, 1) for _ in range(2)]
        assert_right((*(value * (1 + distance * draw.uniform(-1, 1)) for value in prior), *prior), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_fifty_digits_far_apart(dtype):
    # exp magnifies a rounding of the difference of log-variances by the difference
    draw = random.Random(0)
    for _ in range(1000):
        assert_right([draw.uniform(-10, 10) for _ in range(4)], dtype)
        assert_right([0.0, draw.uniform(25, 40), 0.0, draw.uniform(-40, -25)], dtype)


def test_the_copied_formula_fails_where_this_one_does_not():
    mean, log_var = torch.tensor(1e-4), torch.tensor(0.0)
    assert (-0.5 * (1 + log_var - mean**2 - log_var.exp())).item() != pytest.approx(5e-9, rel=0.1)
    assert kl_normal(mean, log_var).item() == pytest.approx(5e-9, rel=1e-6)


@pytest.mark.parametrize(
    ("parameters", "truth"),
    [
        ((1e-30, -100.0, 0.0, -100.0), 1.3440585e-17),  # exp(100) alone overflows
        ((1e-30, -100.0), 49.5),
        ((0.0, 0.0, 0.0, -1e6), float("inf")),
        ((0.0, -1e6, 0.0, -1e6), 0.0),
        ((1e-20, 0.0, 0.0, -1e6), float("inf")),
        ((0.0, 100.0, 0.0, 0.0), float("inf")),
        ((0.0, 3e38, 0.0, -3e38), float("inf")),
        ((0.0, float("-inf"), 0.0, 0.0), float("inf")),
        ((0.0, 5e7, 0.0, 1.5), float("inf")),  # whose difference is rounded by more than 1
        ((0.0, 1e30, 0.0, 200.0), float("inf")),
        ((0.0, 1.5, 0.0, 5e7), 2.5e7),
    ],
)
def test_at_the_edge_of_the_range(parameters, truth):
    assert kl_normal(*map(torch.tensor, parameters)).item() == pytest.approx(truth, rel=1e-6)


def test_float64_keeps_its_own_range():
    parameters = [torch.tensor(v, dtype=torch.float64) for v in (1e-200, -1300.0, 0.0, -1300.0)]
    assert kl_normal(*parameters).item() == pytest.approx(float(true_kl_normal(*parameters)), rel=1e-10)


def test_gradients_are_finite_where_the_truth_is():
    parameters = [torch.tensor(v, requires_grad=True) for v in (1e-30, -100.0, 0.0, -100.0)]
    gradients = torch.autograd.grad(kl_normal(*parameters), parameters)
    assert all(gradient.isfinite() for gradient in gradients)
    assert gradients[0].item() == pytest.approx(1e-30 * 2.6881171e43, rel=1e-5)


def test_gradcheck_first_and_second_order():
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(5, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(4)]
    assert torch.autograd.gradcheck(kl_normal, parameters)
    assert torch.autograd.gradgradcheck(kl_normal, parameters)


@pytest.mark.parametrize("log_var", [1e-6, -1e-3, 0.49, -0.51, 3.0])
def test_gradient_against_fifty_digits(log_var):
    parameter = torch.tensor(log_var, requires_grad=True)
    kl_normal(torch.tensor(0.0), parameter).backward()
    truth = float(mpmath.expm1(mpmath.mpf(parameter.item())) / 2)
    assert parameter.grad.item() == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(dtype):
    mean, log_var = torch.tensor([0.5, 300.0], dtype=dtype), torch.tensor([12.0, -3.0], dtype=dtype)
    value = kl_normal(mean, log_var)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, kl_normal(mean.float(), log_var.float()), rtol=0, atol=0)


def test_autocast_computes_in_float32():
    mean, log_var = torch.randn(4, 3), torch.randn(4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = kl_normal(mean, log_var, torch.randn(3), torch.randn(3))
    assert value.dtype == torch.float32


def test_priors_may_be_numbers_and_broadcast():
    mean, log_var = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    by_number = kl_normal(mean, log_var, 0.1, -0.3)
    prior = torch.full((3,), 0.1, dtype=torch.float64), torch.full((4, 1), -0.3, dtype=torch.float64)
    by_tensor = kl_normal(mean, log_var, *prior)
    assert by_number.shape == (4, 3)
    torch.testing.assert_close(by_number, by_tensor, rtol=0, atol=0)


def test_shapes_that_do_not_broadcast_raise_with_all_of_them():
    with pytest.raises(ValueError, match=r"mean_p \(4, 3\), log_var_p \(4, 3\), mean_q \(2,\)"):
        kl_normal(torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(2))


def test_compiled_and_eager_are_within_the_bound():
    pytest.importorskip("torch._inductor")
    parameters = [torch.randn(64) * 10 ** (-8 * torch.rand(64)) for _ in range(4)]
    compiled = torch.compile(kl_normal, fullgraph=True)
    for given in (parameters, parameters[:2]):
        true = kl_normal(*(parameter.double() for parameter in given))
        for found in (compiled(*given), kl_normal(*given)):
            torch.testing.assert_close(found.double(), true, rtol=1e-6, atol=0)


def test_function_transforms():
    parameters = tuple(torch.randn(5) for _ in range(4))
    torch.testing.assert_close(torch.func.vmap(kl_normal)(*parameters), kl_normal(*parameters))
    _, tangent = torch.func.jvp(kl_normal, parameters, tuple(torch.ones(5) for _ in range(4)))
    gradients = torch.func.grad(lambda *p: kl_normal(*p).sum(), argnums=(0, 1, 2, 3))(*parameters)
    torch.testing.assert_close(tangent, sum(gradients), rtol=1e-4, atol=1e-5)


# Logits: values and gradients of both are those of tests/exact/test_closed_forms.py, through the distributions


def true_kl_bernoulli(a, b):
    def sigmoid(x):
        return 1 / (1 + mpmath.exp(-x))

    a, b = mpmath.mpf(a), mpmath.mpf(b)
    return sigmoid(a) * mpmath.log(sigmoid(a) / sigmoid(b)) + sigmoid(-a) * mpmath.log(sigmoid(-a) / sigmoid(-b))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("distance", [1.0, 1e-2, 1e-5])
def test_kl_bernoulli_against_fifty_digits(dtype, tolerance, distance):
    draw = random.Random(0)
    for _ in range(200):
        logits = draw.uniform(-40, 40)
        others = (logits + 10 * distance * draw.uniform(-1, 1), logits * (1 + distance * draw.uniform(-1, 1)))
        a, b = (torch.tensor(v, dtype=dtype) for v in (logits, draw.choice(others)))
        with mpmath.workdps(60):
            truth = true_kl_bernoulli(a.item(), b.item())
        assert abs(kl_bernoulli(a, b).item() - truth) <= tolerance * truth
        with mpmath.workdps(60):
            to_fair = true_kl_bernoulli(a.item(), 0)
        assert abs(kl_bernoulli(a).item() - to_fair) <= tolerance * to_fair


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("constant", [0.0, 3.0, 100.0])
@pytest.mark.parametrize("distance", [1.0, 1e-2, 1e-5])
def test_kl_categorical_against_fifty_digits_whatever_is_added_to_the_logits(dtype, tolerance, constant, distance):
    draw = random.Random(0)
    for _ in range(30):
        spread = draw.choice((1, 10, 100))
        a = torch.tensor([spread * draw.uniform(-1, 1) for _ in range(draw.choice((2, 5, 50)))], dtype=dtype)
        b = a + torch.tensor([distance * draw.uniform(-1, 1) for _ in a], dtype=dtype) + constant
        with mpmath.workdps(60):
            logs = []
            for logits in (a, b):
                exact = [mpmath.mpf(v) for v in logits.tolist()]
                total = mpmath.log(sum(map(mpmath.exp, exact)))
                logs.append([v - total for v in exact])
            truth = sum(mpmath.exp(p) * (p - q) for p, q in zip(*logs, strict=True))
        if truth > torch.finfo(dtype).tiny:
            assert abs(kl_categorical(a, b).item() - truth) <= tolerance * truth


def test_logits_at_the_edge():
    inf = float("inf")
    a = torch.tensor([-inf, inf, -inf, inf, 0.0, 3.0, -inf, inf])
    b = torch.tensor([-inf, inf, inf, -inf, inf, -inf, 2.0, -2.0])
    assert kl_bernoulli(a, b).tolist() == pytest.approx([0, 0, inf, inf, inf, inf, 2.126928, 2.126928])
    assert kl_bernoulli(torch.tensor(3e38), torch.tensor(-3e38)).item() == pytest.approx(3e38)
    assert kl_categorical(torch.tensor([0.0, -3e38]), torch.tensor([-3e38, 0.0])).item() == pytest.approx(3e38)
    a = torch.tensor([[-inf, 0.0, 1.0], [0.0, 0.0, -inf], [-inf, -inf, 0.0], [1.0, 2.0, 3.0]], requires_grad=True)
    b = torch.tensor([[-inf, 1.0, 1.0], [1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [-inf, 0.0, 0.0]], requires_grad=True)
    value = kl_categorical(a, b)
    assert value.tolist() == pytest.approx([0.110944, 0.405465, 1.098612, inf], rel=1e-5)
    gradients = torch.autograd.grad(value[:3].sum(), (a, b))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[1][1].tolist() == pytest.approx([-1 / 6, -1 / 6, 1 / 3])


def test_logits_in_half_precision_and_dims():
    a, b = torch.randn(3, 5, 2).half(), torch.randn(5, 1).half()
    value = kl_categorical(a, b, dim=-2)
    assert (value.shape, value.dtype) == ((3, 2), torch.float32)
    torch.testing.assert_close(value, kl_categorical(a.float().mT, b.float().mT))
    assert kl_bernoulli(a).dtype == torch.float32
    torch.testing.assert_close(kl_categorical(a.float(), dim=1), kl_categorical(a.float(), torch.zeros(5, 1), dim=-2))


def test_unequal_numbers_of_categories_raise_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(4, 3\) has 3 categories along dim=-1 and logits_q \(1,\) 1"):
        kl_categorical(torch.zeros(4, 3), torch.zeros(1))
    with pytest.raises(ValueError, match=r"logits_p \(4,\), logits_q \(3,\)"):
        kl_bernoulli(torch.zeros(4), torch.zeros(3))


def test_gradients_of_logits():
    leaves = [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    for divergence in (kl_bernoulli, kl_categorical):
        assert torch.autograd.gradcheck(divergence, leaves)
        assert torch.autograd.gradgradcheck(divergence, leaves)


class TestBoundedLogVar:
    def test_within_its_limits_with_a_live_gradient(self):
        raw = torch.tensor([-1e6, -50.0, -1e-3, 0.0, 1.0, 50.0, 1e6], requires_grad=True)
        bounded = bounded_log_var(raw, limit=8.0)
        bounded.sum().backward()
        assert bounded.abs().max() <= 8.0
        assert (bounded.diff() > 0).all()
        assert raw.grad.min() > 1e-11
        assert raw.grad[3] == 1.0
        wide = raw.detach().double().requires_grad_()
        assert torch.autograd.gradcheck(lambda r: bounded_log_var(r, 8.0), wide[1:6].detach().requires_grad_())

    def test_half_precision_and_a_bad_limit(self):
        assert bounded_log_var(torch.tensor([6e4]).half()).dtype == torch.float32
        with pytest.raises(ValueError, match="limit=0"):
            bounded_log_var(torch.zeros(2), 0.0)
