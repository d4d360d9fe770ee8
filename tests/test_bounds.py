import math

import pytest
import torch
from torch.distributions import (
    Categorical,
    Gumbel,
    Independent,
    Kumaraswamy,
    Laplace,
    LogNormal,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
    Uniform,
)

from kldiv import DiagonalNormal, KLBounds, kl_bounds, kl_divergence
from kldiv import bounds as module
from kldiv.quadrature.integral import kl_quadrature
from kldiv.tables import relative_entropy
from tests.marks import slow

PAIRS = 2048
DRAWS = 150
COUNTS = [(1, 3), (3, 1), (2, 2), (3, 2)]


def mixture(logits, components):
    weights = Categorical(logits=logits.expand(components.batch_shape), validate_args=False)
    return MixtureSameFamily(weights, components, validate_args=False)


def uniform(generator, low, high, *shape):
    return low + (high - low) * torch.rand(*shape, dtype=torch.float64, generator=generator)


def random_pair(count_p, count_q, dim, batch=PAIRS, seed=0):
    """From nearly equal to far apart, flat to nearly degenerate weights, scales of 1e-2 to 1e2."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    size = uniform(generator, -2, 2, batch, 1, 1)
    spread, scales, apart = (10 ** uniform(generator, -2, high, batch, 1, 1) for high in (1.5, 0.3, 1.5))
    temperature = 10 ** uniform(generator, -2, 1, batch, 1)
    centres = normal(batch, max(count_p, count_q), dim) * spread
    pair = []
    for count in (count_p, count_q):
        # component by component the mixtures resemble one another where apart is small
        mean = (centres[:, :count] + apart * normal(batch, count, dim)) * 10**size
        log_var = 2 * math.log(10.0) * (size + scales * normal(batch, count, dim).clamp(-2, 2) / 2)
        pair.append(mixture(temperature * normal(batch, count), DiagonalNormal(mean, log_var)))
    return pair


def log_density(pi, mean, log_var, x):
    """Of a mixture in one dimension at (batch, points)."""
    exponents = -0.5 * ((x[..., None, :] - mean) ** 2 / log_var.exp() + log_var + math.log(2 * math.pi))
    return torch.logsumexp(exponents + pi[..., None], -2)


def parts(distribution):
    """Log-weights, means and log-variances, (batch, K), (batch, K, 1), (batch, K, 1)."""
    components = distribution.component_distribution
    return distribution.mixture_distribution.logits, components.mean, components.log_var


def nodes(*distributions, points=60):
    """Composite Gauss-Legendre nodes and weights, (batch, N), fine wherever any component is narrow."""
    steps = torch.linspace(-14, 14, points, dtype=torch.float64)
    edges = torch.cat([(m + (0.5 * v).exp() * steps).flatten(1) for _, m, v in map(parts, distributions)], 1)
    edges = edges.sort(-1).values
    left, width = edges[:, :-1, None], edges.diff(dim=-1)[..., None]
    at = 0.5 + math.sqrt(0.15) * torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    weights = torch.tensor([5.0, 8.0, 5.0], dtype=torch.float64) / 18
    return (left + width * at).flatten(1), (width * weights).flatten(1)


def true_kl(p, q):
    x, weights = nodes(p, q)
    log_p, log_q = (log_density(*parts(d), x) for d in (p, q))
    return (weights * log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize(("count_p", "count_q"), COUNTS)
def test_bounds_contain_the_integral(count_p, count_q):
    p, q = random_pair(count_p, count_q, 1)
    truth, (lower, upper) = true_kl(p, q), kl_bounds(p, q)
    tolerance = 1e-9 + 3e-6 * truth  # the rule's, where scales differ a thousandfold
    assert (lower >= 0).all()
    assert (lower <= truth + tolerance).all()
    assert (truth <= upper + tolerance).all()
    # and are worth having: the mean of the upper gap is small against the divergence, the lower bound mostly positive
    assert ((upper - truth) / truth).median() < 0.25
    assert (lower > 0).double().mean() > 0.5


@pytest.mark.parametrize("mutation", ["direction", "weights of p", "weights of q"])
def test_the_random_pairs_tell_a_mistake(mutation):
    p, q = random_pair(3, 3, 1, batch=256)
    truth = true_kl(p, q)
    flat = torch.zeros(256, 3, dtype=torch.float64)
    lower, upper = {
        "direction": lambda: kl_bounds(q, p),
        "weights of p": lambda: kl_bounds(mixture(flat, p.component_distribution), q),
        "weights of q": lambda: kl_bounds(p, mixture(flat, q.component_distribution)),
    }[mutation]()
    assert ((lower > truth * 1.01) | (upper < truth * 0.99)).double().mean() > 0.05


@pytest.mark.parametrize("dim", [2, 4, 8])
def test_bounds_contain_the_mean_over_samples(dim):
    p, q = random_pair(3, 4, dim, batch=512, seed=dim)
    torch.manual_seed(dim)
    # component by component, so that a light one is not missed: (draws, batch, component)
    sample = p.component_distribution.sample((DRAWS,))
    flat = sample.transpose(1, 2).flatten(0, 1)
    ratios = (p.log_prob(flat) - q.log_prob(flat)).unflatten(0, (DRAWS, 3))
    weights = p.mixture_distribution.probs.mT
    estimate = (weights * ratios.mean(0)).sum(0)
    error = ((weights * ratios.std(0)).square().sum(0) / DRAWS).sqrt()
    lower, upper = kl_bounds(p, q)
    slack = 5 * error + 1e-9
    assert (lower <= estimate + slack).all()
    assert (estimate <= upper + slack).all()


@pytest.mark.parametrize("s", [0.1, 0.5, 1.0, 3.0])
def test_each_bound_by_itself(s, monkeypatch):
    monkeypatch.setattr(module, "_POWERS", (s,))
    generator = torch.Generator().manual_seed(0)
    p, q = (
        mixture(
            uniform(generator, -3, 3, 24, 3),
            DiagonalNormal(uniform(generator, -4, 4, 24, 3, 1), uniform(generator, -2, 2, 24, 3, 1)),
        )
        for _ in range(2)
    )
    x = torch.linspace(-120, 120, 6001, dtype=torch.float64)[None].expand(24, -1)
    log_step = math.log(240 / 6000)
    log_pi, mean, log_var = parts(p)
    log_a = -0.5 * ((x[:, None] - mean) ** 2 / log_var.exp() + log_var + math.log(2 * math.pi))
    entropy = 0.5 * (1 + math.log(2 * math.pi) + log_var[..., 0])

    for r in (p, q):
        log_weights = parts(r)[0]
        log_r = log_density(*parts(r), x)[:, None]
        truth = math.exp(log_step) * (log_a.exp() * (log_r - log_a)).sum(-1)
        divergences = module._pairwise_kl(p.component_distribution, r.component_distribution)
        lower = module._log_sum_exp(log_weights[:, None] - divergences)
        overlap = module._overlap_of(p.component_distribution, r.component_distribution)
        upper = module._upper_cross_entropy(log_weights, lower, overlap)
        integral = log_step + torch.logsumexp(s * log_a + log_r, -1)
        torch.testing.assert_close(upper, (s * entropy + integral).clamp(max=0), rtol=1e-9, atol=1e-9)
        assert (lower <= truth + 1e-9).all()
        assert (truth <= upper + 1e-9).all()
        if r is p:
            affinity = module._log_affinity(overlap, lower)
            integral = log_step + torch.logsumexp(0.5 * (log_a[:, :, None] + log_a[:, None]), -1)
            torch.testing.assert_close(affinity, integral, rtol=1e-9, atol=1e-9)
            bound = module._expectation(log_pi, module._log_sum_exp(log_pi[:, None] + affinity))
            assert (module._expectation(log_pi, truth) <= bound + 1e-9).all()
        else:
            matched = module._matched(log_pi, log_weights, divergences)
            assert (true_kl(p, q) <= matched + 1e-9).all()
            # convexity in p alone, which the steps start near, is worse
            assert (matched <= -module._expectation(log_pi, lower)).double().mean() > 0.95


def test_single_components_are_exact():
    p, q = (mixture(torch.zeros(1).double(), d.component_distribution) for d in random_pair(1, 1, 3, batch=64))
    plain_p, plain_q = (DiagonalNormal(*(t[:, 0] for t in parts(d)[1:])) for d in (p, q))
    exact = kl_divergence(plain_p, plain_q)
    for left, right in ((p, q), (plain_p, q), (p, plain_q)):
        for bound in kl_bounds(left, right):
            torch.testing.assert_close(bound, exact, rtol=1e-12, atol=0)


def test_lower_is_never_above_upper():
    for counts in ((3, 1, 2), (4, 1, 8), (4, 4, 1)):
        lower, upper = kl_bounds(*random_pair(*counts, batch=512, seed=5))
        assert (lower <= upper).all()


def test_a_single_q_leaves_the_entropy_of_p():
    p, _ = random_pair(4, 1, 1, batch=64)
    standard = DiagonalNormal(torch.zeros(1).double(), torch.zeros(1).double())
    cross = sum(
        weight * kl_divergence(DiagonalNormal(mean, log_var), standard)
        for weight, mean, log_var in zip(*(part.unbind(1) for part in (parts(p)[0].exp(), *parts(p)[1:])), strict=True)
    )
    lower, upper = kl_bounds(p, standard)
    assert (upper <= cross * (1 + 1e-12)).all()
    assert (cross - lower <= math.log(4) + 1e-9).all()


def test_identical_mixtures_are_exact_above_in_any_order():
    for count in (2, 5):
        p, _ = random_pair(count, 1, 2, batch=64)
        log_pi, mean, log_var = parts(p)
        again = mixture(log_pi.flip(1), DiagonalNormal(mean.flip(1), log_var.flip(1)))
        twice = mixture(
            torch.cat([log_pi, log_pi], 1), DiagonalNormal(*(torch.cat([v, v], 1) for v in (mean, log_var)))
        )
        for other in (p, again, twice):
            lower, upper = kl_bounds(p, other)
            assert (lower == 0).all()
            assert (upper <= 1e-12).all()
        assert (kl_bounds(twice, p).upper <= 1e-12).all()


def test_separated_components_are_tight():
    # the divergence of the weights is all there is, and from one to a mixture the logarithm of its weight
    mean = 2000.0 * torch.arange(3, dtype=torch.float64)[:, None] * torch.ones(2)
    components = DiagonalNormal(mean, torch.zeros_like(mean))
    log_pi, log_omega = (torch.tensor(v, dtype=torch.float64).log() for v in ([0.2, 0.3, 0.5], [0.6, 0.1, 0.3]))
    p, q = mixture(log_pi, components), mixture(log_omega, components)
    truth = (log_pi.exp() * (log_pi - log_omega)).sum()
    torch.testing.assert_close(kl_bounds(p, q).upper, truth, rtol=0, atol=1e-9)
    torch.testing.assert_close(kl_bounds(p, q).lower, truth, rtol=0, atol=1e-6)
    for bound in kl_bounds(DiagonalNormal(mean[1], torch.zeros(2).double()), q):
        torch.testing.assert_close(bound, -log_omega[1], rtol=0, atol=1e-6)
    far = DiagonalNormal(mean[0], torch.full((2,), 20.0).double())
    truth = (log_pi.exp() * (log_pi + kl_divergence(components, far))).sum()
    for bound in kl_bounds(p, far):
        torch.testing.assert_close(bound, truth, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", ["diagonal", "full", "to one", "from one"])
def test_gradients(kind):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3), (2, 3, 2), (2, 3, 2), (2,), (2, 2), (2, 2)]
    leaves = [
        torch.randn(*shape, dtype=torch.float64, generator=generator).mul(0.7).requires_grad_() for shape in shapes
    ]

    def bounds(logits_p, mean_p, log_var_p, logits_q, mean_q, log_var_q):
        if kind == "full":
            p, q = (
                MultivariateNormal(mean, scale_tril=torch.diag_embed(v.exp()) + 0.3 * torch.ones(2, 2).tril(-1))
                for mean, v in ((mean_p, log_var_p), (mean_q, log_var_q))
            )
        else:
            p, q = DiagonalNormal(mean_p, log_var_p), DiagonalNormal(3 + mean_q, log_var_q)
        p, q = mixture(logits_p, p), mixture(logits_q, q)
        if kind == "to one":
            q = DiagonalNormal(mean_q[0], log_var_q[0])
        if kind == "from one":
            p = DiagonalNormal(mean_p[:, 0], log_var_p[:, 0])
        return tuple(kl_bounds(p, q))

    assert torch.autograd.gradcheck(bounds, leaves, fast_mode=True)


@pytest.mark.parametrize("made_of", ["logits", "probs"])
def test_components_without_weight_count_nowhere(made_of):
    generator = torch.Generator().manual_seed(0)
    mean, log_var = (torch.randn(2, 3, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    weights = torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.3, 0.7]], dtype=torch.float64)
    weights = (weights.log() if made_of == "logits" else weights).requires_grad_()
    leaves = [weights, mean.requires_grad_(), log_var.requires_grad_()]
    p, q = (
        MixtureSameFamily(
            Categorical(**{made_of: weights[i]}, validate_args=False), DiagonalNormal(mean[i], log_var[i])
        )
        for i in (0, 1)
    )
    bounds = kl_bounds(p, q)
    keep_p, keep_q = [0, 2], [1, 2]
    fewer = kl_bounds(
        mixture(torch.zeros(2).double(), DiagonalNormal(mean[0, keep_p], log_var[0, keep_p])),
        mixture(
            torch.tensor([0.3, 0.7], dtype=torch.float64).log(), DiagonalNormal(mean[1, keep_q], log_var[1, keep_q])
        ),
    )
    torch.testing.assert_close(bounds, fewer, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(sum(bounds), leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[1][0, 1] == 0).all()
    assert (gradients[1][1, 0] == 0).all()


def test_disjoint_supports():
    def steps(*low):
        low = torch.tensor(low)
        return mixture(torch.zeros(len(low)), Uniform(low, low + 1, validate_args=False))

    assert kl_bounds(steps(0.0, 5.0), steps(0.0, 7.0)).upper == math.inf
    covered = kl_bounds(steps(0.0, 5.0), steps(5.0, 7.0, 0.0))
    assert covered.lower == 0
    torch.testing.assert_close(covered.upper, torch.tensor(1.5).log())
    assert [b.item() for b in kl_bounds(steps(0.0, 5.0), Uniform(3.0, 9.0))] == [math.inf, math.inf]
    # an infinite element leaves the gradient of the others
    logits, low = torch.zeros(2, requires_grad=True), torch.tensor([0.0, 5.0])
    p = mixture(logits, Uniform(low + torch.tensor([[0.0], [0.5]]), low + 1.5, validate_args=False))
    upper = kl_bounds(p, mixture(torch.zeros(2), Uniform(low + 0.5, low + 2))).upper
    assert upper[0] == math.inf
    assert torch.autograd.grad(upper[upper.isfinite()].sum(), logits)[0].isfinite().all()
    one, both = kl_bounds(steps(0.0, 5.0), Uniform(0.0, 6.0)), math.log(3)
    assert one.lower <= both
    assert one.upper >= both
    assert one.upper.isfinite()


def test_half_precision_and_the_widest_dtype():
    half = [[part.half() for part in parts(d)] for d in random_pair(2, 3, 2, batch=8)]
    narrow = [mixture(log, DiagonalNormal(mean, log_var)) for log, mean, log_var in half]
    # logits that are normalised in half precision are not
    given = [(d.mixture_distribution.logits, *parts) for d, (_, *parts) in zip(narrow, half, strict=True)]
    wide = [mixture(log.double(), DiagonalNormal(mean.double(), log_var.double())) for log, mean, log_var in given]
    for bound, exact in zip(kl_bounds(*narrow), kl_bounds(*wide), strict=True):
        assert bound.dtype == torch.float32
        torch.testing.assert_close(bound, exact.float(), rtol=1e-6, atol=1e-7)
    assert kl_bounds(narrow[0], wide[1]).lower.dtype == torch.float64


def test_batch_shapes_broadcast():
    generator = torch.Generator().manual_seed(0)

    def components(*shape):
        return DiagonalNormal(*(torch.randn(*shape, dtype=torch.float64, generator=generator) for _ in range(2)))

    p, q = (
        mixture(torch.zeros(3).double(), components(4, 1, 3, 2)),
        mixture(torch.zeros(2).double(), components(5, 2, 2)),
    )
    together = kl_bounds(p, q)
    assert isinstance(together, KLBounds)
    assert together.lower.shape == together.upper.shape == (4, 5)
    for i, j in ((0, 0), (3, 4)):
        alone = kl_bounds(
            mixture(torch.zeros(3).double(), DiagonalNormal(*(v[i, 0] for v in parts(p)[1:]))),
            mixture(torch.zeros(2).double(), DiagonalNormal(*(v[j] for v in parts(q)[1:]))),
        )
        torch.testing.assert_close(alone, KLBounds(*(bound[i, j] for bound in together)))


def test_one_covariance_for_many_means():
    # which the distribution keeps in a shape of its own
    generator = torch.Generator().manual_seed(0)
    mean_p, mean_q = (torch.randn(*shape, 2, dtype=torch.float64, generator=generator) for shape in ((4, 3), (2, 1, 2)))
    tril = torch.tensor([[[1.0, 0.0], [0.5, 2.0]], [[3.0, 0.0], [-1.0, 1.0]]], dtype=torch.float64)
    weights = torch.zeros(1, dtype=torch.float64)
    for name, given in (("scale_tril", tril), ("covariance_matrix", tril @ tril.mT)):
        few, many = (
            kl_bounds(
                mixture(weights, MultivariateNormal(mean_p, **{name: given[0].expand(*batch_p, 2, 2)})),
                mixture(weights, MultivariateNormal(mean_q, **{name: given.expand(*batch_q, 2, 2)})),
            )
            for batch_p, batch_q in (((), (2,)), ((4, 3), (2, 1, 2)))
        )
        assert few.upper.shape == (2, 4)
        torch.testing.assert_close(few, many)


def test_all_ways_to_write_a_normal_are_the_same():
    p, q = random_pair(3, 2, 2, batch=4, seed=1)
    expected = kl_bounds(p, q)

    def written(distribution):
        log, mean, log_var = parts(distribution)
        variance = log_var.exp()
        factor = torch.zeros_like(variance)[..., None]
        factor[..., 0, 0] = (0.3 * variance[..., 0]).sqrt()
        rest = variance - factor[..., 0].square()
        for components in (
            DiagonalNormal(mean, log_var),
            Independent(Normal(mean, variance.sqrt()), 1),
            MultivariateNormal(mean, scale_tril=torch.diag_embed(variance.sqrt())),
            MultivariateNormal(mean, torch.diag_embed(variance)),
            MultivariateNormal(mean, precision_matrix=torch.diag_embed(1 / variance)),
            LowRankMultivariateNormal(mean, factor, rest),
        ):
            yield mixture(log, components)

    for left in written(p):
        for right in written(q):
            torch.testing.assert_close(kl_bounds(left, right), expected, rtol=1e-7, atol=1e-9)


def test_rotated_covariances():
    # what a rotation does to both changes nothing
    p, q = random_pair(3, 2, 3, batch=16)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    turned = [
        mixture(log, MultivariateNormal(mean @ rotation.mT, rotation @ torch.diag_embed(log_var.exp()) @ rotation.mT))
        for log, mean, log_var in map(parts, (p, q))
    ]
    torch.testing.assert_close(kl_bounds(*turned), kl_bounds(p, q), rtol=1e-6, atol=1e-8)


def test_scalars_and_events_of_several_dimensions():
    p, q = random_pair(3, 2, 4, batch=8)
    expected = kl_bounds(p, q)
    square = [
        mixture(log, DiagonalNormal(mean.unflatten(-1, (2, 2)), log_var.unflatten(-1, (2, 2)), event_dim=2))
        for log, mean, log_var in map(parts, (p, q))
    ]
    torch.testing.assert_close(kl_bounds(*square), expected)
    p, q = random_pair(3, 2, 1, batch=8)
    scalars = [
        mixture(log, Normal(mean[..., 0], (0.5 * log_var[..., 0]).exp())) for log, mean, log_var in map(parts, (p, q))
    ]
    torch.testing.assert_close(kl_bounds(*scalars), kl_bounds(p, q))


def test_a_mixture_in_every_dimension_adds_up():
    p, q = (
        mixture(log[:, None], Normal(mean.mT, (0.5 * log_var.mT).exp()))
        for log, mean, log_var in map(parts, random_pair(3, 2, 4, batch=8))
    )
    together, apart = kl_bounds(Independent(p, 1), Independent(q, 1)), kl_bounds(p, q)
    torch.testing.assert_close(together, KLBounds(*(bound.sum(-1) for bound in apart)))
    standard = DiagonalNormal(torch.zeros(4).double(), torch.zeros(4).double())
    assert kl_bounds(Independent(p, 1), standard).upper.shape == (8,)


def test_other_families():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(2, 500, 3, dtype=torch.float64, generator=generator).log()
    tables = torch.rand(2, 500, 3, 4, dtype=torch.float64, generator=generator) ** 4
    p, q = (mixture(weights[i], Categorical(tables[i])) for i in (0, 1))
    # a mixture of tables is a table
    table_p, table_q = (
        (d.mixture_distribution.probs[..., None] * d.component_distribution.probs).sum(-2) for d in (p, q)
    )
    truth, (lower, upper) = relative_entropy(table_p, table_q), kl_bounds(p, q)
    assert (lower <= truth).all()
    assert (truth <= upper).all()
    lower, upper = kl_bounds(p, Categorical(tables[1, :, 0]))
    truth = relative_entropy(table_p, tables[1, :, 0] / tables[1, :, 0].sum(-1, keepdim=True))
    assert (lower > 0).any()
    assert (lower <= truth).all()
    assert (truth <= upper).all()

    logits, location = torch.tensor([0.3, 0.0]), torch.tensor([-1.0, 2.0])
    p, q = mixture(logits, Laplace(location, 0.5)), mixture(-logits, Laplace(location + 0.5, 1.0))
    truth, (lower, upper) = kl_quadrature(p, q), kl_bounds(p, q)
    assert lower == 0
    assert truth <= upper <= truth + 0.5


def test_shared_transforms_are_allowed_and_those_of_each_component_are_not():
    location, scale = torch.tensor([[0.0, 1.0], [0.5, 3.0]]), torch.tensor([[1.0, 2.0], [0.5, 0.7]])
    logs, plain = (
        [mixture(torch.zeros(2), kind(location[i], scale[i])) for i in (0, 1)] for kind in (LogNormal, Normal)
    )
    assert kl_bounds(*logs).upper >= kl_bounds(*plain).lower  # without the integrals, but of the same divergence
    assert kl_bounds(*logs).upper.isfinite()
    with_own_form = [mixture(torch.zeros(2), Gumbel(location[i], scale[i])) for i in (0, 1)]
    assert kl_bounds(*with_own_form).upper > 0
    p, q = (mixture(torch.zeros(2), Kumaraswamy(scale[i], scale[1 - i])) for i in (0, 1))
    with pytest.raises(NotImplementedError, match=r"differ in their transforms[\s\S]*estimate_kl"):
        kl_bounds(p, q)


@slow
def test_compiles_as_one_graph():
    leaves = [torch.randn(2, 3, 2) for _ in range(2)] + [torch.randn(2, 3)]

    def bounds(mean, log_var, logits):
        q = MixtureSameFamily(
            Categorical(logits=logits, validate_args=False),
            DiagonalNormal(mean, log_var, validate_args=False),
            validate_args=False,
        )
        return kl_bounds(DiagonalNormal(mean[:, 0], log_var[:, 1], validate_args=False), q)

    torch.compiler.reset()
    values = []
    for function in (torch.compile(bounds, fullgraph=True, backend="aot_eager"), bounds):
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        value = function(*inputs)
        values.append((*value, *torch.autograd.grad(sum(bound.sum() for bound in value), inputs)))
    torch.testing.assert_close(*values)


def test_errors_help():
    components = DiagonalNormal(torch.zeros(2, 3), torch.zeros(2, 3))
    p, single = mixture(torch.zeros(2), components), DiagonalNormal(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"at least one MixtureSameFamily.*kldiv\.kl_divergence\(p, q\)"):
        kl_bounds(single, single)
    with pytest.raises(TypeError, match="q is a Tensor"):
        kl_bounds(p, torch.zeros(3))
    with pytest.raises(ValueError, match=r"\(3,\) and q \(4,\)"):
        kl_bounds(p, DiagonalNormal(torch.zeros(4), torch.zeros(4)))
    with pytest.raises(ValueError, match=r"p\.batch_shape \(2,\), q\.batch_shape \(3,\)"):
        kl_bounds(
            mixture(torch.zeros(3), components.__class__(*torch.zeros(2, 2, 3, 3))),
            DiagonalNormal(*torch.zeros(2, 3, 3)),
        )
    heavy = mixture(torch.zeros(2), StudentT(torch.ones(2)))
    with pytest.raises(NotImplementedError, match=r"StudentT.*kldiv\.estimate_kl\(p, q, num_samples=64\)"):
        kl_bounds(heavy, Normal(0.0, 1.0))
