import math

import pytest
import torch

from kldiv import GaussianKLLoss
from kldiv.functional import kl_normal
from kldiv.kernels import gaussian as kernel
from kldiv.kernels.gaussian import gaussian_kl


class TestGaussianKL:
    @pytest.fixture(params=[4, 2**15], ids=["blocks", "at once"], autouse=True)
    def elements(self, request, monkeypatch):
        monkeypatch.setattr(kernel, "_ELEMENTS", request.param)

    @pytest.mark.parametrize("scale", [1e-15, 1e-9, 1e-8, 1e-7, 1e-6, 1e-3, 1.0, 20.0])
    @pytest.mark.parametrize("shape", [(1, 1), (5, 6), (40, 3, 2)])
    def test_against_the_plain_formula_in_double_precision(self, scale, shape):
        generator = torch.Generator().manual_seed(0)
        mean, log_var = (scale * torch.randn(2, *shape, generator=generator)).requires_grad_().unbind()
        wide = [t.detach().double().requires_grad_() for t in (mean, log_var)]
        for loss, truth in (
            (gaussian_kl(mean, log_var, 0.25), 0.25 * kl_normal(*wide).sum()),
            (gaussian_kl(0 * mean, log_var, 1.0), kl_normal(0 * wide[0], wide[1]).sum()),
        ):
            torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=0)
            found, expected = torch.autograd.grad(loss, (mean, log_var)), torch.autograd.grad(truth, wide)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=0)

    def test_infinities_and_nan(self):
        for value in (math.inf, -math.inf, math.nan, 100.0, 3e38):
            log_var = torch.tensor([0.5, value, 0.0])
            torch.testing.assert_close(
                gaussian_kl(torch.zeros(3), log_var, 1.0), kl_normal(torch.zeros(3), log_var).sum(), equal_nan=True
            )
        assert gaussian_kl(torch.tensor([math.inf]), torch.zeros(1), 1.0).isinf()

    def test_strides_and_a_graph_that_is_kept(self):
        mean, log_var = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_().unbind()
        loss, plain = gaussian_kl(mean.T, log_var.T, 1.0), kl_normal(mean, log_var).sum()
        torch.testing.assert_close(loss, plain)
        expected = torch.autograd.grad(plain, (mean, log_var))
        for _ in range(2):
            torch.testing.assert_close(torch.autograd.grad(loss, (mean, log_var), retain_graph=True), expected)

    def test_twice_differentiable(self):
        generator = torch.Generator().manual_seed(0)
        mean, log_var = torch.randn(2, 3, 2, generator=generator).requires_grad_().unbind()
        found, expected = (
            torch.autograd.functional.hessian(f, (mean, log_var))
            for f in (lambda m, v: gaussian_kl(m, v, 0.5), lambda m, v: 0.5 * kl_normal(m, v).sum())
        )
        torch.testing.assert_close(found, expected)

    def test_the_loss_is_the_same_wherever_it_is_computed(self):
        mean, log_var = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
        loss = GaussianKLLoss()
        assert "_GaussianKL" in str(loss(mean.clone().requires_grad_(), log_var).grad_fn)
        values = [loss(mean, log_var), loss(mean.double(), log_var.double()).float(), loss(mean, log_var, 0.0 * mean)]
        values += [torch.func.vmap(lambda m, v: loss(m[None], v[None]))(mean, log_var).mean()]
        values += [GaussianKLLoss("none")(mean, log_var).mean(), GaussianKLLoss("sum")(mean, log_var) / 6]
        for value in values:
            torch.testing.assert_close(value, values[0])
        gradient = torch.func.grad(loss)(mean, log_var)
        _, tangent = torch.func.jvp(lambda m: loss(m, log_var), (mean,), (torch.ones_like(mean),))
        torch.testing.assert_close(tangent, gradient.sum())
