import mpmath
import pytest
import torch

from kldiv.special import exact_difference, expm1mx, widen


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


def test_widen():
    a, b = widen(torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float64))
    assert a.dtype == b.dtype == torch.float64
    (c,) = widen(torch.zeros(2, dtype=torch.uint8))
    assert c.dtype == torch.float32
