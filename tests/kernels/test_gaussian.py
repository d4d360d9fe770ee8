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
        monkeypatch.setattr(kernel, "_BLOCK", request.param)

    @pytest.mark.parametrize("scale", [1e-15, 1e-9, 1e-8, 1e-7, 1e-6, 1e-3, 1.0, 20.0])
    @pytest.mark.parametrize("shape", [(1, 1), (5, 6), (40, 3, 2)])
    def test_against_the_plain_formula_in_double_precision(self, scale, shape):
        generator = torch.Generator().manual_seed(0)
        mean, log_var = (scale * torch.randn(2, *shape, generator=generator)).requires_grad_().unbind()
        wide = [t.detach().double().requires_grad_() for t in (mean, log_var)]
        for loss, truth in (
            (gaussian_kl(mean, log_var, 4), 0.25 * kl_normal(*wide).sum()),
            (gaussian_kl(0 * mean, log_var), kl_normal(0 * wide[0], wide[1]).sum()),
        ):
            torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=0)
            found, expected = torch.autograd.grad(loss, (mean, log_var)), torch.autograd.grad(truth, wide)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=0)

    def test_infinities_and_nan(self):
        for value in (math.inf, -math.inf, math.nan, 100.0, 3e38):
            log_var = torch.tensor([0.5, value, 0.0])
            torch.testing.assert_close(
                gaussian_kl(torch.zeros(3), log_var), kl_normal(torch.zeros(3), log_var).sum(), equal_nan=True
            )
        assert gaussian_kl(torch.tensor([math.inf]), torch.zeros(1)).isinf()

    def test_strides_and_a_graph_that_is_kept(self):
        mean, log_var = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_().unbind()
        loss, plain = gaussian_kl(mean.T, log_var.T), kl_normal(mean, log_var).sum()
        torch.testing.assert_close(loss, plain)
        expected = torch.autograd.grad(plain, (mean, log_var))
        for _ in range(2):
            torch.testing.assert_close(torch.autograd.grad(loss, (mean, log_var), retain_graph=True), expected)

    @pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
    def test_gradients_that_are_wanted_of_a_loss_that_is_weighted(self, wanted):
        drawn = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
        mean, log_var = (t.requires_grad_(want) for t, want in zip(drawn, wanted, strict=True))
        leaves = [t for t in (mean, log_var) if t.requires_grad]
        found = torch.autograd.grad(3 * gaussian_kl(mean, log_var, 4), leaves)
        expected = torch.autograd.grad(0.75 * kernel._normal_kl_formula(mean, log_var).sum(), leaves)
        torch.testing.assert_close(found, expected)

    def test_twice_differentiable(self):
        generator = torch.Generator().manual_seed(0)
        mean, log_var = torch.randn(2, 3, 2, generator=generator).requires_grad_().unbind()
        found, expected = (
            torch.autograd.functional.hessian(f, (mean, log_var))
            for f in (lambda m, v: gaussian_kl(m, v, 2), lambda m, v: 0.5 * kl_normal(m, v).sum())
        )
        torch.testing.assert_close(found, expected)

    def test_the_loss_is_the_same_wherever_it_is_computed(self):
        mean, log_var = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
        loss = GaussianKLLoss()
        name = "_LargeGaussianKL" if mean.numel() > kernel._BLOCK else "_GaussianKL"
        assert name in str(loss(mean.clone().requires_grad_(), log_var).grad_fn)
        values = [loss(mean, log_var), loss(mean.double(), log_var.double()).float(), loss(mean, log_var, 0.0 * mean)]
        values += [torch.func.vmap(lambda m, v: loss(m[None], v[None]))(mean, log_var).mean()]
        values += [GaussianKLLoss("none")(mean, log_var).mean(), GaussianKLLoss("sum")(mean, log_var) / 6]
        for value in values:
            torch.testing.assert_close(value, values[0])
        gradient = torch.func.grad(loss)(mean, log_var)
        _, tangent = torch.func.jvp(lambda m: loss(m, log_var), (mean,), (torch.ones_like(mean),))
        torch.testing.assert_close(tangent, gradient.sum())


class TestNormalKL:
    @pytest.fixture(params=[4, 2**18], ids=["blocks", "at once"], autouse=True)
    def elements(self, request, monkeypatch):
        monkeypatch.setattr(kernel, "_BLOCK", request.param)

    @staticmethod
    def parameters(scale, shape, seed=0):
        """Two normals whose log-variances are so far apart, in float32."""
        generator = torch.Generator().manual_seed(seed)
        mean_p, log_var_p, mean_q, log_var_q = torch.randn(4, *shape, generator=generator)
        mean_q, log_var_q = mean_p + scale * mean_q, log_var_p + scale * log_var_q
        return [t.requires_grad_() for t in (mean_p, log_var_p, mean_q, log_var_q)]

    @pytest.mark.parametrize("scale", [1e-7, 1e-4, 1e-2, 1.0, 15.0])
    @pytest.mark.parametrize("shape", [(), (3,), (5, 6), (4, 3, 2), (0, 2)])
    @pytest.mark.parametrize("given", [(), (2,), (3,), (2, 3)], ids=["standard", "mean", "log_var", "both"])
    def test_against_the_plain_formula_in_double_precision(self, scale, shape, given):
        parameters = self.parameters(scale, shape)
        if not given:  # q is at 0
            parameters = [(scale * t).detach().requires_grad_() for t in parameters]
        chosen = [t if k < 2 or k in given else None for k, t in enumerate(parameters)]
        wide = [None if t is None else t.detach().double().requires_grad_() for t in chosen]
        found, expected = kl_normal(*chosen), kl_normal(*wide)
        assert "_NormalKL" in str(found.grad_fn)
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
        upstream = torch.linspace(-1, 2, found.numel()).view(shape)
        leaves = [[t for t in side if t is not None] for side in (chosen, wide)]
        for one, other in zip(
            torch.autograd.grad(found, leaves[0], upstream),
            torch.autograd.grad(expected, leaves[1], upstream.double()),
            strict=True,
        ):
            torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=0)

    def test_the_edges_of_the_domain(self):
        zero = torch.zeros(7)
        log_var = torch.tensor([0.0, 1e-30, math.inf, -math.inf, math.nan, 89.0, 1e-9])
        expected = [0.0, 2.5e-61, math.inf, math.inf, math.nan, 0.5 * math.exp(89) - 45, 2.5e-19]
        found = kl_normal(zero, log_var).double()
        torch.testing.assert_close(found, torch.tensor(expected).double(), equal_nan=True, rtol=1e-6, atol=0)
        # a q without width: infinite but where the means are one
        value = kl_normal(torch.tensor([0.0, 1e-3]), torch.zeros(2), torch.zeros(2), torch.full((2,), -1e30))
        assert value.tolist() == [math.inf, math.inf]
        wide = torch.full((2,), 1e30).requires_grad_()
        value = kl_normal(torch.tensor([0.0, 1.0]), torch.zeros(2), None, wide)
        torch.testing.assert_close(value, torch.full((2,), 5e29))
        assert torch.autograd.grad(value.sum(), wide)[0].tolist() == [0.5, 0.5]

    def test_broadcast_priors(self):
        mean_p, log_var_p, *_ = self.parameters(0.1, (5, 6))
        _, _, mean_q, log_var_q = self.parameters(0.1, (6,), seed=1)
        given = (mean_p, log_var_p, mean_q, log_var_q)
        wide = [t.detach().double().requires_grad_() for t in given]
        found, expected = kl_normal(*given), kl_normal(*wide)
        for one, other in zip(
            torch.autograd.grad(found.sum(), given), torch.autograd.grad(expected.sum(), wide), strict=True
        ):
            torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("wanted", range(4))
    def test_twice_differentiable_and_where_one_alone_wants_a_gradient(self, wanted):
        parameters = [t.detach() for t in self.parameters(0.5, (3, 2))]
        parameters[wanted].requires_grad_()
        values = [kl_normal(*parameters), kernel._normal_kl_formula(*parameters)]
        firsts = [torch.autograd.grad(v.sum(), parameters[wanted], create_graph=True)[0] for v in values]
        torch.testing.assert_close(*firsts)
        torch.testing.assert_close(*(torch.autograd.grad(g.square().sum(), parameters[wanted])[0] for g in firsts))

    def test_transforms_and_graphs_that_are_kept(self):
        mean, log_var, *_ = self.parameters(1.0, (5, 6))
        value = kl_normal(mean.T, log_var.T)
        expected = torch.autograd.grad(kernel._normal_kl_formula(mean, log_var).sum(), (mean, log_var))
        for _ in range(2):
            torch.testing.assert_close(torch.autograd.grad(value.sum(), (mean, log_var), retain_graph=True), expected)
        plain = mean.detach(), log_var.detach()
        gradient = torch.func.grad(lambda m: kl_normal(m, plain[1]).sum())(plain[0])
        torch.testing.assert_close(gradient, expected[0])


def test_a_mean_that_float32_holds_of_a_kl_that_it_does_not():
    mean, log_var = torch.zeros(2, 1000, 1)
    log_var[3] = 90.0
    expected = GaussianKLLoss()(mean.double(), log_var.double())
    torch.testing.assert_close(GaussianKLLoss()(mean, log_var).double(), expected, rtol=1e-6, atol=0)
