import math

import pytest
import torch

from kldiv import DiagonalNormal, decompose_kl
from kldiv.kernels import aggregate_posterior as kernel
from kldiv.kernels.aggregate_posterior import _formula, _weight_matrix, log_normal_mixtures

WEIGHTS = [(-8.5, -4.2, -4.1), (-9.0, -9.0, -9.0)]


def batch_of(rows, batch, dims, first, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    mean, log_var = torch.randn(2, batch, dims, dtype=torch.float64, generator=generator)
    noise = torch.randn(rows, dims, dtype=torch.float64, generator=generator)
    own = slice(first, first + rows)
    sample = mean[own] + torch.exp(0.5 * log_var[own]) * noise
    return [t.to(dtype).requires_grad_() for t in (sample, mean, log_var)]


@pytest.fixture(params=[1, 64, 10**9], ids=["row by row", "blocks", "at once"])
def block(request, monkeypatch):
    monkeypatch.setattr(kernel, "_BLOCK", request.param)
    apply = kernel._LogMixtures.apply
    return lambda *given: apply(*given)


class TestLogMixtures:
    @pytest.mark.parametrize("weights", WEIGHTS)
    @pytest.mark.parametrize(
        ("rows", "batch", "dims", "first"), [(7, 7, 3, 0), (3, 9, 2, 3), (3, 9, 2, 6), (1, 1, 2, 0), (2, 2, 1, 0)]
    )
    def test_blocks_against_the_plain_formula(self, block, rows, batch, dims, first, weights):
        given = batch_of(rows, batch, dims, first)
        found, expected = block(*given, first, weights), _formula(*given, first, weights)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        generator = torch.Generator().manual_seed(1)
        upstream = [torch.randn(rows, dtype=torch.float64, generator=generator) for _ in range(2)]
        for one, other in zip(
            torch.autograd.grad(found, given, upstream), torch.autograd.grad(expected, given, upstream), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)

    def test_twice_differentiable(self, block):
        given = batch_of(3, 4, 2, 1)
        assert torch.autograd.gradcheck(lambda *t: block(*t, 1, WEIGHTS[0]), given)
        assert torch.autograd.gradgradcheck(lambda *t: block(*t, 1, WEIGHTS[0]), given)

    @pytest.mark.parametrize("wanted", [0, 1, 2])
    def test_where_one_alone_wants_a_gradient(self, block, wanted):
        given = [t.detach() for t in batch_of(3, 4, 2, 1)]
        given[wanted].requires_grad_()
        values = [f(*given, 1, WEIGHTS[0]) for f in (block, _formula)]
        gradients = [torch.autograd.grad(sum(v).sum(), given[wanted], create_graph=True)[0] for v in values]
        torch.testing.assert_close(*gradients)
        torch.testing.assert_close(*(torch.autograd.grad(g.square().sum(), given[wanted])[0] for g in gradients))

    @pytest.mark.parametrize("log_var", [-300.0, -100.0, 60.0])
    def test_extreme_posteriors(self, block, log_var):
        mean = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
        spread = torch.full_like(mean, log_var).requires_grad_()
        values = block(mean.detach(), mean, spread, 0, WEIGHTS[0])
        assert all(value.isfinite().all() for value in values)
        gradients = torch.autograd.grad(sum(value.sum() for value in values), (mean, spread))
        assert all(gradient.isfinite().all() for gradient in gradients)

    def test_single_precision_is_as_good_as_the_plain_formulas(self, block):
        truth = log_normal_mixtures(*batch_of(50, 50, 8, 0), 0, WEIGHTS[0])
        given = batch_of(50, 50, 8, 0, torch.float32)
        found, plain = block(*given, 0, WEIGHTS[0]), _formula(*given, 0, WEIGHTS[0])
        for one, other, exact in zip(found, plain, truth, strict=True):
            assert (one - exact).abs().max() <= 2 * (other - exact).abs().max() + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_batches_take_the_blocks_and_nothing_of_their_size_is_held(dtype):
    torch.manual_seed(0)
    mean, log_var = torch.randn(2, 512, 16, dtype=dtype)
    posterior = DiagonalNormal(mean.requires_grad_(), log_var.requires_grad_())
    sample = posterior.rsample()
    parts = decompose_kl(sample, posterior, dataset_size=5000)
    assert "_LogMixtures" in str(parts.total_correlation.grad_fn.next_functions)
    wide = DiagonalNormal(mean.double(), log_var.double())
    expected = torch.logsumexp(
        wide.log_prob(sample.double()[:, None]) + _weight_matrix(sample[:, :1].expand(512, 512), 0, WEIGHTS[1]), 1
    )
    found, _ = log_normal_mixtures(sample, mean, log_var, 0, WEIGHTS[1])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


def test_function_transforms_and_forward_mode_take_the_plain_formula(monkeypatch):
    monkeypatch.setattr(kernel, "_BLOCK", 1)
    sample, mean, log_var = (t.detach() for t in batch_of(4, 4, 2, 0))

    def value(mean):
        return log_normal_mixtures(sample, mean, log_var, 0, WEIGHTS[0])[1].sum()

    gradient = torch.autograd.functional.jacobian(value, mean)
    torch.testing.assert_close(torch.func.grad(value)(mean), gradient)
    _, tangent = torch.func.jvp(value, (mean,), (torch.ones_like(mean),))
    torch.testing.assert_close(tangent, gradient.sum())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(mean, torch.ones_like(mean))
        assert math.isclose(torch.autograd.forward_ad.unpack_dual(value(dual)).tangent.item(), gradient.sum().item())


@pytest.mark.parametrize("distance", [1e17, 2.4e19, 1e20, 1e30])
def test_examples_out_of_reach_of_one_another(block, distance):
    """The square of a distance leaves ``float32``, and a sum of others is to hold what there is."""
    sample = torch.zeros(2, 2).requires_grad_()
    mean, log_var = torch.tensor([[distance, 0.0], [0.0, distance]]), torch.zeros(2, 2)
    joint, marginals = block(sample, mean, log_var, 0, (-1.0, -2.0, -3.0))
    plain = _formula(sample, mean, log_var, 0, (-1.0, -2.0, -3.0))
    assert (joint < -1e33).all()
    assert joint.isfinite().all()
    torch.testing.assert_close(marginals, plain[1], rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(joint.sum() + marginals.sum(), sample)
    assert gradient.isfinite().all()
