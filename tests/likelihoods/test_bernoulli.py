import mpmath
import pytest
import torch
from torch.nn import functional

from kldiv import BernoulliNLL, ContinuousBernoulliNLL


class TestBernoulliNLL:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
    def test_against_fifty_digits(self, dtype, tolerance):
        logits = torch.tensor([0.0, 1e-8, 0.5, 3.0, 20.0, 36.0, 80.0], dtype=dtype)
        for logit in torch.cat([logits, -logits]):
            for target in (0.0, 1.0, 0.3):
                value = BernoulliNLL("sum")(logit[None], torch.tensor([target], dtype=dtype)).item()
                with mpmath.workdps(80):
                    t, x = mpmath.mpf(torch.tensor(target, dtype=dtype).item()), mpmath.mpf(logit.item())
                    truth = t * mpmath.log1p(mpmath.exp(-x)) + (1 - t) * mpmath.log1p(mpmath.exp(x))
                assert abs(value - truth) <= tolerance * truth, (logit, target)

    @pytest.mark.parametrize("target", [0.0, 0.25, 1.0])
    def test_gradient_is_sigmoid_minus_target_everywhere(self, target):
        logits = torch.tensor([[-100.0, -1.0, 0.0, 1.0, 100.0]], dtype=torch.float64, requires_grad=True)
        BernoulliNLL("sum")(logits, torch.full_like(logits, target)).backward()
        torch.testing.assert_close(logits.grad, torch.sigmoid(logits.detach()) - target)

    def test_sums_over_everything_but_the_example(self):
        logits, target = torch.randn(4, 1, 8, 8), torch.rand(4, 1, 8, 8)
        elements = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        torch.testing.assert_close(BernoulliNLL("none")(logits, target), elements.sum((1, 2, 3)))
        torch.testing.assert_close(BernoulliNLL()(logits, target), elements.sum() / 4)

    def test_is_normalised(self):
        logits = torch.randn(50, 1)
        mass = sum(torch.exp(-BernoulliNLL("none")(logits, torch.full_like(logits, t))) for t in (0.0, 1.0))
        torch.testing.assert_close(mass, torch.ones(50))

    def test_half_precision_computes_in_float32(self):
        logits = torch.full((2, 100_000), 2.0).half()
        value = BernoulliNLL()(logits, torch.zeros_like(logits))
        assert value.dtype == torch.float32
        assert value.isfinite()


class TestContinuousBernoulliNLL:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
    def test_against_fifty_digits(self, dtype, tolerance):
        for logit in (1e-6, 0.1, 0.499, 0.501, 3.0, 40.0, 500.0):
            for sign in (1, -1):
                for target in (0.0, 0.3, 1.0):
                    given, t = (torch.tensor([v], dtype=dtype) for v in (sign * logit, target))
                    value = ContinuousBernoulliNLL("sum")(given, t).item()
                    with mpmath.workdps(50):
                        x = mpmath.mpf(given.item())
                        truth = -x * mpmath.mpf(t.item()) + mpmath.log(mpmath.expm1(x) / x)
                    assert abs(value - truth) <= tolerance * max(1, abs(truth)), (sign * logit, target)

    def test_is_normalised(self):
        grid = torch.linspace(0, 1, 20001, dtype=torch.float64)[:, None]
        for logit in (-30.0, -0.3, 0.0, 2.0):
            density = torch.exp(-ContinuousBernoulliNLL("none")(torch.full_like(grid, logit), grid))
            assert torch.trapezoid(density, grid[:, 0]).item() == pytest.approx(1.0, abs=1e-5)

    def test_gradient_is_mean_minus_target_everywhere(self):
        logits = torch.tensor([[-1e3, -5.0, -0.4, 0.0, 0.4, 5.0, 1e3]], dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(ContinuousBernoulliNLL("sum")(logits, torch.full_like(logits, 0.3)), logits)
        x = logits.detach()
        x = torch.where(x == 0, 1e-9, x)
        mean = torch.where(
            x.abs() < 1e-3, 0.5, torch.where(x > 0, 1 / -torch.expm1(-x), torch.exp(x) / torch.expm1(x)) - 1 / x
        )
        torch.testing.assert_close(gradient, mean - 0.3, rtol=1e-9, atol=1e-9)
