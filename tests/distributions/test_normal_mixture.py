import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kldiv import DiagonalNormal, DiagonalNormalMixture, MixturePrior


def make(batch=(), count=4, event=(3,), dtype=torch.float64, std=1.0, seed=0):
    """Parameters of a mixture: logits, mean, log_var."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(*batch, count, *event, generator=generator, dtype=torch.float64)
    log_var = 2 * math.log(std) + 0.5 * torch.randn(mean.shape, generator=generator, dtype=torch.float64)
    logits = torch.randn(*batch, count, generator=generator, dtype=torch.float64)
    return tuple(p.to(dtype).requires_grad_() for p in (logits, mean, log_var))


def ours(logits, mean, log_var, dims=1, **options):
    return DiagonalNormalMixture(
        Categorical(logits=logits, **options), DiagonalNormal(mean, log_var, dims, **options), **options
    )


def theirs(logits, mean, log_var, dims=1):
    components = Independent(Normal(mean, torch.exp(0.5 * log_var)), dims)
    return MixtureSameFamily(Categorical(logits=logits), components)


@pytest.mark.parametrize("batch", [(), (2,), (5, 1, 2)])
@pytest.mark.parametrize(("count", "event"), [(1, (3,)), (4, (1,)), (7, (3,)), (3, (2, 3, 2)), (4, ())])
@pytest.mark.parametrize("samples", [(), (6,), (2, 3)])
def test_agrees_with_torch_in_value_and_gradient(batch, count, event, samples):
    parameters = make(batch, count, event)
    z = torch.randn((*samples, *batch, *event), dtype=torch.float64, requires_grad=True)
    results = [mixture(*parameters, len(event)).log_prob(z) for mixture in (ours, theirs)]
    assert results[0].shape == (*samples, *batch)
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(results[0])
    gradients = [torch.autograd.grad((result * weights).sum(), (z, *parameters)) for result in results]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(3,), (5, 3), (4, 5, 3), (1, 3), (4, 1, 3)])
def test_values_broadcast_against_the_batch_as_in_torch(shape):
    parameters, z = make((5,)), torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(ours(*parameters).log_prob(z), theirs(*parameters).log_prob(z))
    logits = parameters[0][0]
    torch.testing.assert_close(ours(logits, *parameters[1:]).log_prob(z), theirs(logits, *parameters[1:]).log_prob(z))


def test_agrees_with_multiple_precision_and_scipy():
    logits, mean, log_var = (p.detach() for p in make((), 5, (2,), std=0.01))
    for z in (mean[2] + 0.003, mean[0] - 0.05, torch.tensor([3.0, -7.0]).double()):
        bound = 1e-15 * torch.exp(-log_var).max().item() * (z - mean.mean(0)).square().sum().item()
        value = ours(logits, mean, log_var).log_prob(z).item()
        with mpmath.workdps(60):
            weights = [mpmath.exp(mpmath.mpf(v)) for v in logits.tolist()]
            total = mpmath.mpf(0)
            for weight, m, v in zip(weights, mean.tolist(), log_var.tolist(), strict=True):
                terms = [
                    mpmath.npdf(x, a, mpmath.exp(mpmath.mpf(b) / 2)) for x, a, b in zip(z.tolist(), m, v, strict=True)
                ]
                total += weight / mpmath.fsum(weights) * mpmath.fprod(terms)
            assert value == pytest.approx(float(mpmath.log(total)), rel=1e-15, abs=bound)
    scipys = stats.multivariate_normal(mean[0].numpy(), np.diag(log_var[0].exp().numpy())).logpdf(mean[1].numpy())
    assert ours(logits[:1], mean[:1], log_var[:1]).log_prob(mean[1]).item() == pytest.approx(scipys, rel=1e-12)


@pytest.mark.parametrize("std", [1.0, 0.1, 0.01])
def test_narrow_components_in_single_precision(std):
    logits, mean, log_var = (p.detach() for p in make((), 50, (40,), torch.float32, std))
    z = mean[torch.arange(200) % 50] + std * torch.randn(200, 40)
    gradients, values = [], []
    for dtype, mixture in ((torch.float32, ours), (torch.float64, theirs)):
        inputs = [p.to(dtype).requires_grad_() for p in (z, logits, mean, log_var)]
        values.append(mixture(*inputs[1:]).log_prob(inputs[0]))
        gradients.append(torch.autograd.grad(values[-1].sum(), inputs))
    assert values[0].dtype == torch.float32
    assert (values[0] - values[1]).abs().max() < 1e-4
    for single, double in zip(*gradients, strict=True):
        assert (single - double).abs().max() <= 1e-4 * double.abs().max()


def test_far_from_the_origin_nothing_cancels():
    logits, mean, log_var = make(std=0.01)
    z = mean[0].detach() + 0.01
    near, far = ours(logits, mean, log_var).log_prob(z), ours(logits, mean + 2.0**20, log_var).log_prob(z + 2.0**20)
    torch.testing.assert_close(far, near, rtol=0, atol=1e-5)  # the rounding of the shifted values


@pytest.mark.parametrize("batch", [(), (2,)])
def test_gradcheck_and_gradgradcheck(batch):
    parameters = make(batch, 2, (2,))
    z = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)

    def log_prob(z, *parameters):
        return ours(*parameters, validate_args=False).log_prob(z)

    inputs = (z, *parameters)
    assert torch.autograd.gradcheck(log_prob, inputs, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(log_prob, inputs, fast_mode=True)


def test_second_derivatives_in_single_precision():
    parameters = make(dtype=torch.float32)
    z = torch.randn(5, 3, requires_grad=True)
    hessians = []
    for mixture in (ours, theirs):
        (gradient,) = torch.autograd.grad(mixture(*parameters).log_prob(z).sum(), z, create_graph=True)
        hessians.append(torch.autograd.grad(gradient.square().sum(), (z, *parameters)))
    torch.testing.assert_close(*hessians, rtol=1e-3, atol=1e-4)


def test_function_transforms():
    parameters = [p.detach() for p in make()]
    z = torch.randn(6, 3, dtype=torch.float64)
    density = ours(*parameters, validate_args=False).log_prob
    torch.testing.assert_close(torch.func.vmap(density)(z), density(z))
    expected = torch.autograd.functional.jacobian(lambda z: density(z).sum(), z)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(density))(z), expected)
    tangent = torch.randn_like(z)
    torch.testing.assert_close(torch.func.jvp(density, (z,), (tangent,))[1], (expected * tangent).sum(-1))


def test_autocast_changes_nothing():
    parameters, z = make(dtype=torch.float32, std=0.01), torch.randn(6, 3)
    expected = ours(*parameters).log_prob(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(*parameters).log_prob(z), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    parameters = [p.detach() for p in make(dtype=dtype, std=0.01)]
    mixture = ours(*parameters)
    z = mixture.sample((5,))
    assert z.dtype == dtype
    values = mixture.log_prob(z)
    assert values.dtype == torch.float32
    # torch's Categorical normalises half-precision logits in half precision
    wide = ours(*(p.double() for p in (mixture.mixture_distribution.logits, *parameters[1:])))
    torch.testing.assert_close(values.double(), wide.log_prob(z.double()), rtol=1e-6, atol=1e-5)
    prior = MixturePrior(4, 3)
    nn.init.normal_(prior.logits, std=3.0)
    value = prior.to(dtype)().log_prob(z)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), prior.double()().log_prob(z.double()), rtol=1e-6, atol=1e-6)


def test_widest_dtype():
    logits, mean, log_var = make(dtype=torch.float32)
    assert ours(logits, mean, log_var.double()).log_prob(torch.zeros(3)).dtype == torch.float64
    assert ours(logits, mean, log_var).log_prob(torch.zeros(3).double()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_of_zero(dtype):
    logits, mean, log_var = make(dtype=dtype)
    with torch.no_grad():
        logits[1] = -torch.inf
    z = torch.randn(6, 3, dtype=dtype, requires_grad=True)
    without = [p[[0, 2, 3]] for p in (logits, mean, log_var)]
    value = ours(logits, mean, log_var).log_prob(z)
    torch.testing.assert_close(value, ours(*without).log_prob(z))
    gradients = torch.autograd.grad(value.sum(), (z, logits, mean, log_var), create_graph=True)
    assert all(g.isfinite().all() for g in gradients)
    assert all((g[1] == 0).all() for g in gradients[1:])
    (second,) = torch.autograd.grad(gradients[0].sum(), z)
    assert second.isfinite().all()
    probs = torch.tensor([0.5, 0.0, 0.5, 0.0], dtype=dtype)
    components = DiagonalNormal(1000 * mean, log_var)
    value = DiagonalNormalMixture(Categorical(probs=probs), components).log_prob(1000 * mean[1])
    assert value < -1e4  # torch's own logits would have the second weigh 1e-7


@pytest.mark.parametrize("log_var", [-900.0, -200.0, -100.0, 500.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wild_parameters_and_values_are_never_nan(log_var, dtype):
    log_vars = torch.tensor([[0.0, 0.0], [log_var, 0.0]], dtype=dtype, requires_grad=True)
    mean = torch.tensor([[0.0, 0.0], [3.0, 1.0]], dtype=dtype, requires_grad=True)
    z = torch.tensor([[0.5, 0.0], [-torch.inf, 0.0], [1e30, 0.0], [torch.nan, 0.0]], dtype=dtype, requires_grad=True)
    value = ours(torch.zeros(2, dtype=dtype), mean, log_vars).log_prob
    assert not value(z[:3]).isnan().any()
    assert value(z[1:3]).double().lt(-1e50).all() or log_var > 0
    gradients = torch.autograd.grad(value(z[:1]).sum(), (z, mean, log_vars))
    assert all(g.isfinite().all() for g in gradients)
    assert ours(torch.zeros(2, dtype=dtype), mean, log_vars, validate_args=False).log_prob(z[3]).isnan()


def test_expand_keeps_the_parameters_as_they_are():
    parameters = make(count=300, event=(20,))
    mixture, z = ours(*parameters), torch.randn(50, 20, dtype=torch.float64)
    expanded = mixture.expand((7, 50))
    assert (expanded.batch_shape, expanded.event_shape) == ((7, 50), (20,))
    assert expanded.component_distribution.mean.shape == (7, 50, 300, 20)
    assert expanded.mixture_distribution.logits.shape == (7, 50, 300)
    with LargestTensor() as largest:
        value = expanded.log_prob(z)
        sample = expanded.sample((2,))
    assert largest.numel <= 7 * 50 * 300
    assert sample.shape == (2, 7, 50, 20)
    torch.testing.assert_close(value, mixture.log_prob(z).expand(7, 50))
    assert expanded.expand((2, 7, 50)).log_prob(z).shape == (2, 7, 50)
    torch.testing.assert_close(expanded.log_prob(z[0]), value[:, :1].expand(7, 50))
    conditional = ours(*make((5, 1))).expand((2, 5, 3))
    z = torch.randn(3, 3, dtype=torch.float64)
    torch.testing.assert_close(conditional.log_prob(z), theirs(*make((5, 1))).expand((2, 5, 3)).log_prob(z))
    assert conditional.sample((4,)).shape == (4, 2, 5, 3, 3)
    assert torch.equal(conditional.component_distribution.mean[0, :, 0], make((5,))[1])
    with pytest.raises(ValueError, match=r"\(7, 50\).*\(3,\)"):
        expanded.expand((3,))


def test_empty_batches():
    mixture = ours(*make())
    z = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)
    assert mixture.log_prob(z).shape == (0,)
    (gradient,) = torch.autograd.grad(mixture.log_prob(z).sum(), z)
    assert gradient.shape == (0, 3)
    assert mixture.sample((0,)).shape == (0, 3)
    conditional = ours(*make((0,)), validate_args=False)  # torch cannot check empty parameters
    assert conditional.log_prob(conditional.sample((2,))).shape == (2, 0)


@pytest.mark.parametrize("batch", [(), (3,)])
def test_samples_are_from_the_mixture(batch):
    torch.manual_seed(0)
    logits, mean, log_var = make(batch, 3, (2,))
    with torch.no_grad():
        logits[..., 0] = -torch.inf
    mixture, count = ours(logits, mean, log_var), 20000
    z = mixture.sample((count,))
    assert not z.requires_grad
    assert z.shape == (count, *batch, 2)
    error = torch.sqrt(mixture.variance / count)
    assert ((z.mean(0) - mixture.mean).abs() < 5 * error).all()
    fourth = ((z - mixture.mean) ** 4).mean(0)
    error = torch.sqrt((fourth - mixture.variance**2) / count)
    assert ((z.var(0) - mixture.variance).abs() < 5 * error).all()
    # the component is chosen once an event: the dimensions are correlated as they should be
    centered = mean - mixture.mean[..., None, :]
    covariance = (mixture.mixture_distribution.probs * centered.prod(-1)).sum(-1)
    product = (z - mixture.mean).prod(-1)
    assert ((product.mean(0) - covariance).abs() < 5 * product.std(0) / math.sqrt(count)).all()


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that is made, views not counted."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.itemsize)
        return result


@pytest.mark.parametrize("batch", [(), (4,)])
def test_nothing_of_the_size_batch_by_components_by_dimensions(batch):
    parameters = make(batch, 100, (30,), torch.float32)
    z = torch.randn(64, *batch, 30, requires_grad=True)
    elements = z[..., 0].numel() * 100
    numels = []
    for mixture in (ours, theirs):
        with LargestTensor() as largest:
            mixture(*parameters).log_prob(z).sum().backward()
        numels.append(largest.numel)
    assert numels[0] <= elements
    assert numels[1] >= elements * 30


def test_validate_args():
    logits, mean, log_var = make()
    with pytest.raises(ValueError, match="support"):
        ours(logits, mean, log_var, validate_args=True).log_prob(torch.full((3,), torch.nan, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"value \(5,\), event_shape \(3,\)"):
        ours(logits, mean, log_var, validate_args=False).log_prob(torch.zeros(5, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"Normal.*DiagonalNormal\(mean, log_var\).*MixtureSameFamily"):
        DiagonalNormalMixture(Categorical(torch.ones(3)), Normal(torch.zeros(3), 1.0))
    with pytest.raises(ValueError, match="component"):
        ours(logits[:2], mean, log_var, validate_args=True)
    assert repr(ours(logits, mean, log_var)) == (
        "DiagonalNormalMixture(num_components=4, batch_shape=(), event_shape=(3,))"
    )


def test_the_parameters_are_found_where_torch_has_them():
    logits, mean, log_var = make()
    mixture = ours(logits, mean, log_var)
    assert isinstance(mixture, MixtureSameFamily)
    assert not mixture.has_rsample
    assert mixture.component_distribution.mean is mean or torch.equal(mixture.component_distribution.mean, mean)
    torch.testing.assert_close(mixture.component_distribution.stddev, torch.exp(0.5 * log_var))
    torch.testing.assert_close(mixture.mixture_distribution.logits, torch.log_softmax(logits, -1))
    for name in ("mean", "variance"):
        torch.testing.assert_close(getattr(mixture, name), getattr(theirs(logits, mean, log_var), name))
