"""What is masked or weighs 0 counts nothing, in value and gradient, bit for bit, whatever it holds."""

import math
import warnings

import pytest
import torch
from torch import distributions, nn

import kldiv
from kldiv import (
    BalancedKLLoss,
    BernoulliNLL,
    Capacity,
    DiagonalNormal,
    ELBOLoss,
    ExactKLLoss,
    FreeBits,
    GaussianNLL,
    HypersphericalUniform,
    ImportanceWeightedELBOLoss,
    MonteCarloKLLoss,
    OptimalGaussianNLL,
    PowerSpherical,
    TotalCorrelationKLLoss,
    kl_divergence,
    register_kl,
)

F64 = torch.float64


def normal(a, b):
    return distributions.Normal(a, torch.exp(b))


FACTORISING = {
    "diagonal": (DiagonalNormal, (0.0, 0.0)),
    "normal": (normal, (0.0, 0.0)),
    "independent": (lambda a, b: distributions.Independent(normal(a, b), 1), (0.0, 0.0)),
    "laplace": (lambda a, b: distributions.Laplace(a, torch.exp(b)), (0.0, 0.5)),
    "gumbel": (lambda a, b: distributions.Gumbel(a, torch.exp(b)), (0.0, 0.5)),
    "log normal": (lambda a, b: distributions.LogNormal(a, torch.exp(b)), (0.0, 0.5)),
    "gamma": (lambda a, b: distributions.Gamma(torch.exp(a), torch.exp(b)), (0.3, 0.5)),
    "beta": (lambda a, b: distributions.Beta(torch.exp(a), torch.exp(b)), (0.3, 0.5)),
    "weibull": (lambda a, b: distributions.Weibull(torch.exp(a), torch.exp(b)), (0.3, 0.5)),
    "kumaraswamy": (lambda a, b: distributions.Kumaraswamy(torch.exp(a), torch.exp(b)), (0.3, 0.5)),
    "von mises": (lambda a, b: distributions.VonMises(a, torch.exp(b)), (0.3, 0.5)),
    "student": (lambda a, b: distributions.StudentT(torch.exp(b) + 3, a), (0.3, 0.5)),
    "uniform": (lambda a, b: distributions.Uniform(a, a + torch.exp(b)), (-5.0, 3.0)),
    "exponential": (lambda a, b: distributions.Exponential(torch.exp(a) + 0 * b), (0.3, 0.5)),
    "poisson": (lambda a, b: distributions.Poisson(torch.exp(a) + 0 * b), (0.3, 0.5)),
    "bernoulli": (lambda a, b: distributions.Bernoulli(logits=a + 0 * b), (0.3, 0.5)),
    "bernoulli by probabilities": (lambda a, b: distributions.Bernoulli(probs=torch.sigmoid(a) + 0 * b), (0.3, 0.5)),
}
"""A posterior of two tensors, each dimension by itself, and the tensors of a prior."""

WHOLE = {
    "full": lambda a, b: distributions.MultivariateNormal(a, scale_tril=torch.diag_embed(torch.exp(b))),
    "by covariance": lambda a, b: distributions.MultivariateNormal(a, torch.diag_embed(torch.exp(b))),
    "low rank": lambda a, b: distributions.LowRankMultivariateNormal(a, a[..., None], torch.exp(b)),
    "mixture": lambda a, b: distributions.MixtureSameFamily(
        distributions.Categorical(logits=torch.stack([a[..., 0], b[..., 0]], -1)),
        distributions.Independent(
            distributions.Normal(torch.stack([a, -a], -2), torch.exp(torch.stack([b, b], -2))), 1
        ),
    ),
    "flow": lambda a, b: distributions.TransformedDistribution(
        distributions.Independent(distributions.Normal(a, torch.exp(b)), 1),
        [distributions.ComposeTransform([distributions.AffineTransform(0.0, 2.0)])],
    ),
    "dirichlet": lambda a, b: distributions.Dirichlet(torch.exp(a) + 0 * b),
    "sphere": lambda a, b: PowerSpherical(
        torch.nn.functional.normalize(a.nan_to_num(1.0, 1.0, 1.0) + 2, dim=-1), torch.exp(b[..., 0])
    ),
    "one-hot": lambda a, b: distributions.OneHotCategorical(logits=a + 0 * b),
}
"""A posterior that is one distribution at each of T steps."""


def tensors(hold, keep, shape=(3, 4, 2)):
    """Two tensors, with what they hold where they are masked."""
    torch.manual_seed(0)
    made = [0.3 * torch.randn(shape, dtype=F64) for _ in range(2)]
    keep = keep.reshape(*keep.shape, *[1] * (len(shape) - keep.ndim)).expand(shape)
    return [value.masked_fill(~keep, hold) for value in made]


def outcome(make, prior, kl, hold, keep, *, draws=False, **options):
    """Loss and gradients of an ELBO whose posterior holds something where it is masked."""
    leaves = [value.requires_grad_() for value in tensors(hold, keep)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distributions.Distribution.set_default_validate_args(False)
        try:
            posterior = make(*leaves)
            torch.manual_seed(1)
            elbo = ELBOLoss(BernoulliNLL(), kl)
            terms = elbo(torch.zeros(3, 2, dtype=F64), torch.ones(3, 2, dtype=F64), posterior, prior, **options)
        finally:
            distributions.Distribution.set_default_validate_args(__debug__)
    gradients = torch.autograd.grad(terms.loss, leaves, allow_unused=True)
    return [terms.loss.detach(), terms.kl.detach(), *(g for g in gradients if g is not None)]


HOLDS = [math.inf, -math.inf, math.nan, 2000.0, -2000.0]
MASK = torch.tensor([[True, True, False, True], [True, False, False, False], [True, True, True, True]])


def prior_of(make, values):
    return make(*(torch.full((2,), value, dtype=F64) for value in values))


@pytest.mark.parametrize("kl", [ExactKLLoss(), MonteCarloKLLoss(4, gradient="score")], ids=["exact", "monte carlo"])
@pytest.mark.parametrize("family", FACTORISING)
def test_masked_latents(family, kl):
    if (family in ("kumaraswamy", "student")) if isinstance(kl, ExactKLLoss) else family == "uniform":
        pytest.skip("no closed form, or no score")
    make, values = FACTORISING[family]
    prior = prior_of(make, values)
    mask = MASK[..., None] & torch.tensor([True, True])
    expected = outcome(make, prior, kl, 0.3, mask, latent_mask=mask)
    assert all(value.isfinite().all() for value in expected)
    for hold in HOLDS:
        found = outcome(make, prior, kl, hold, mask, latent_mask=mask)
        # parameters that overflow before they are a distribution's have a NaN in their own graph
        assert all(map(torch.equal, found[:2], expected[:2])), hold
    if isinstance(kl, ExactKLLoss):
        each = kl.per_dimension(make(*tensors(0.3, mask)), prior)
        torch.testing.assert_close(found[1], each[mask].sum() / 3)


@pytest.mark.parametrize("given", [False, True], ids=["exact", "a sample given"])
@pytest.mark.parametrize("hold", HOLDS)
def test_gradients_of_what_a_network_emits(hold, given):
    """A mean and a log-variance, which reach the KL as they are."""
    mask = MASK[..., None].expand(3, 4, 2)

    def run(hold):
        leaves = [value.requires_grad_() for value in tensors(hold, mask)]
        posterior = DiagonalNormal(*leaves, validate_args=False)
        torch.manual_seed(2)
        sample = leaves[0] + torch.randn(3, 4, 2, dtype=F64)
        elbo = ELBOLoss(BernoulliNLL(), MonteCarloKLLoss() if given else None)
        output = sample.masked_fill(~mask, 0).flatten(1)
        terms = elbo(output, torch.ones_like(output), posterior, sample=sample, latent_mask=mask)
        return [terms.loss.detach(), terms.kl.detach(), *torch.autograd.grad(terms.loss, leaves)]

    found, expected = run(hold), run(0.3)
    assert all(map(torch.equal, found, expected))
    assert not any(gradient[~mask].any() for gradient in found[2:])


@pytest.mark.parametrize("family", WHOLE)
def test_one_distribution_at_each_step(family):
    make = WHOLE[family]
    prior = HypersphericalUniform(2, dtype=F64) if family == "sphere" else prior_of(make, (0.0, 0.5))
    kl = MonteCarloKLLoss(8, gradient="score") if family in ("mixture", "flow") else ExactKLLoss()
    expected = outcome(make, prior, kl, 0.3, MASK, latent_mask=MASK)
    assert all(value.isfinite().all() for value in expected)
    for hold in HOLDS:
        if family in ("by covariance", "low rank"):
            continue  # torch factorises it when it is made, and raises
        found = outcome(make, prior, kl, hold, MASK, latent_mask=MASK)
        assert all(map(torch.equal, found[:2], expected[:2])), hold
    if isinstance(kl, ExactKLLoss):
        each = kl_divergence(make(*tensors(0.3, MASK)), prior)
        torch.testing.assert_close(expected[1], each[MASK].sum() / 3)


def test_five_of_six_steps():
    posterior = distributions.MultivariateNormal(torch.ones(2, 3, 4), torch.eye(4))
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    for kl in (ExactKLLoss(), BalancedKLLoss()):
        terms = ELBOLoss(BernoulliNLL(), kl)(torch.zeros(2, 3), torch.ones(2, 3), posterior, latent_mask=mask)
        assert terms.kl.item() == 5.0
    with pytest.raises(ValueError, match=r"write latent_mask=mask\[\.\.\., 0\]"):
        ELBOLoss(BernoulliNLL())(
            torch.zeros(2, 3), torch.ones(2, 3), posterior, latent_mask=mask[..., None].expand(2, 3, 4)
        )


def test_a_mask_of_steps_for_latents_of_steps():
    posterior = DiagonalNormal(torch.ones(2, 3, 4), torch.zeros(2, 3, 4))
    elbo, mask = ELBOLoss(BernoulliNLL()), torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"latent_mask \(2, 3\).*\(2, 3, 4\): write latent_mask=mask\[\.\.\., None\]"):
        elbo(torch.zeros(2, 3), torch.ones(2, 3), posterior, latent_mask=mask)
    assert elbo(torch.zeros(2, 3), torch.ones(2, 3), posterior, latent_mask=mask[..., None]).kl.item() == 6.0


def test_a_prior_of_each_step_may_hold_anything_there():
    posterior = DiagonalNormal(torch.ones(3, 4, 2), torch.zeros(3, 4, 2))
    mask = MASK[..., None].expand(3, 4, 2)

    def run(hold, kl):
        leaves = [value.requires_grad_() for value in tensors(hold, mask)]
        prior = DiagonalNormal(*leaves, validate_args=False)
        torch.manual_seed(1)
        elbo = ELBOLoss(BernoulliNLL(), kl)
        terms = elbo(torch.zeros(3, 2), torch.ones(3, 2), posterior, prior, latent_mask=mask)
        return [terms.loss.detach(), *torch.autograd.grad(terms.loss, leaves)]

    for kl in (ExactKLLoss(), MonteCarloKLLoss(3), BalancedKLLoss()):
        expected = run(0.3, kl)
        for hold in HOLDS:
            assert all(map(torch.equal, run(hold, kl), expected))


class OwnNLL(nn.Module):
    """A likelihood of a user's own, which takes no mask."""

    def per_example(self, output, target):
        return -torch.log(output * target).flatten(1).sum(1)


LIKELIHOODS = {
    "bernoulli": BernoulliNLL,
    "gaussian": lambda: GaussianNLL(learned=True),
    "optimal": OptimalGaussianNLL,
    "own": OwnNLL,
}


@pytest.mark.parametrize("kl", [ExactKLLoss(), MonteCarloKLLoss(3)], ids=["exact", "monte carlo"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_examples_of_weight_zero(likelihood, kl):
    """Against the examples without them, divided by the same N."""
    torch.manual_seed(0)
    mean, log_var = 0.3 * torch.randn(2, 4, 2, dtype=F64)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0], dtype=F64)
    rows = weight != 0
    target = 0.2 + 0.6 * torch.rand(4, 6, dtype=F64)
    matrix = torch.rand(2, 6, dtype=F64)

    def run(hold, chosen=slice(None)):
        leaves = [
            value.clone()[chosen].masked_fill(~rows[chosen, None], hold).requires_grad_() for value in (mean, log_var)
        ]
        torch.manual_seed(3)
        output = torch.sigmoid(leaves[0] @ matrix).masked_fill(~rows[chosen, None], hold)
        x = target[chosen].masked_fill(~rows[chosen, None], hold)
        term = LIKELIHOODS[likelihood]().double()
        elbo = ELBOLoss(term, kl, reduction="sum")
        posterior = DiagonalNormal(*leaves, validate_args=False)
        sample = leaves[0] + 0.5
        terms = elbo(output, x, posterior, sample=sample, sample_weight=weight[chosen])
        found = torch.autograd.grad(terms.loss, [*leaves, *term.parameters()], allow_unused=True)
        values = [t.detach() for t in terms[:4]]
        return values, [found[0], found[1]], list(found[2:])

    values, gradients, learned = run(0.3)
    for hold in HOLDS:
        found = run(hold)
        assert all(map(torch.equal, found[0], values)), hold
        assert all(torch.equal(a[rows], b[rows]) for a, b in zip(found[1], gradients, strict=True))
        assert all(map(torch.equal, found[2], learned))
        assert not found[1][1][~rows].any()
    alone = run(0.3, rows)
    torch.testing.assert_close(alone[0], values)
    torch.testing.assert_close(alone[1], [gradient[rows] for gradient in gradients])


OF_EVERY_KIND = {
    "counts": (kldiv.PoissonNLL, (4, 5), lambda: torch.randint(9, (4, 5)).float()),
    "categories": (kldiv.CategoricalNLL, (4, 3, 5), lambda: torch.randint(5, (4, 3))),
    "soft labels": (kldiv.CategoricalNLL, (4, 3, 5), lambda: torch.rand(4, 3, 5).softmax(-1)),
    "counts of categories": (kldiv.MultinomialNLL, (4, 5), lambda: torch.randint(9, (4, 5)).float()),
    "heavy tails": (lambda: kldiv.StudentTNLL(3.0), (4, 5), lambda: torch.randn(4, 5)),
    "grey": (kldiv.ContinuousBernoulliNLL, (4, 5), lambda: torch.rand(4, 5)),
}


@pytest.mark.parametrize("weighted_bound", [False, True], ids=["elbo", "importance"])
@pytest.mark.parametrize("kind", OF_EVERY_KIND)
def test_targets_of_every_kind(kind, weighted_bound):
    make, shape, draw = OF_EVERY_KIND[kind]
    torch.manual_seed(0)
    output, target = torch.randn(shape), draw()
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0])
    rows = weight != 0

    def run(hold, chosen=slice(None)):
        out, x = (t.clone() for t in (output, target))
        out[~rows] = hold
        if x.is_floating_point() and hold != 1.0:
            x[~rows] = hold
        out = out[chosen].requires_grad_()
        zeros = torch.zeros(len(out), 2)
        posterior = DiagonalNormal(zeros, zeros)
        if weighted_bound:
            bound, options = ImportanceWeightedELBOLoss(make(), reduction="sum"), {"sample": zeros.expand(3, -1, -1)}
            made = out.expand(3, *out.shape)
        else:
            bound, options, made = ELBOLoss(make(), reduction="sum"), {}, out
        loss = bound(made, x[chosen], posterior, sample_weight=weight[chosen], **options).loss
        return loss.detach(), *torch.autograd.grad(loss, out)

    expected = run(1.0)
    for hold in HOLDS:
        assert all(map(torch.equal, run(hold), expected)), hold
    loss, gradient = run(1.0, rows)
    torch.testing.assert_close((loss, gradient), (expected[0], expected[1][rows]))
    assert not expected[1][~rows].any()


@pytest.mark.parametrize("gradient", ["pathwise", "dreg"])
def test_importance_weights_of_examples_of_weight_zero(gradient):
    weight = torch.tensor([1.0, 0.0, 2.0])

    def run(hold):
        torch.manual_seed(0)
        mean, log_var = (0.3 * torch.randn(2, 3, 2)).masked_fill((weight == 0)[:, None], hold)
        leaves = [mean.requires_grad_(), log_var.requires_grad_()]
        sample = leaves[0] + torch.randn(4, 3, 2)
        loss = ImportanceWeightedELBOLoss(BernoulliNLL(), gradient=gradient)
        posterior = DiagonalNormal(*leaves, validate_args=False)
        terms = loss(sample, torch.ones(3, 2), posterior, sample=sample, sample_weight=weight)
        return [terms.loss.detach(), terms.kl.detach(), *torch.autograd.grad(terms.loss, leaves)]

    expected = run(0.3)
    for hold in HOLDS:
        assert all(map(torch.equal, run(hold), expected)), hold


@pytest.mark.parametrize("per", ["dimension", "group", "example"])
@pytest.mark.parametrize("batch_mean", [True, False])
def test_free_bits_charge_padding_nothing(per, batch_mean):
    """Twelve steps of five latents in each of two examples, the second one three steps long."""
    posterior = DiagonalNormal(torch.zeros(2, 12, 5), torch.zeros(2, 12, 5))
    mask = torch.ones(2, 12, 1, dtype=torch.bool)
    mask[1, 3:] = False
    elbo = ELBOLoss(BernoulliNLL(), transform=FreeBits(0.3, per, batch_mean))
    terms = elbo(torch.zeros(2, 3), torch.ones(2, 3), posterior, latent_mask=mask)
    expected = 0.3 * (12 + 3) * 5 / 2 if per == "dimension" else 0.3
    assert (terms.loss - terms.reconstruction).item() == pytest.approx(expected)
    # beyond the free bits it is the KL
    posterior = DiagonalNormal(torch.full((2, 12, 5), 2.0), torch.zeros(2, 12, 5))
    terms = elbo(torch.zeros(2, 3), torch.ones(2, 3), posterior, latent_mask=mask)
    torch.testing.assert_close(terms.loss, terms.negative_elbo)


@pytest.mark.parametrize(
    "transform",
    [
        FreeBits(0.3),
        FreeBits(0.3, "group"),
        FreeBits(0.3, "example"),
        FreeBits(0.3, batch_mean=False),
        Capacity(1.0, 2.0),
    ],
    ids=repr,
)
@pytest.mark.parametrize("groups", [1, 2])
def test_transforms_of_examples_of_weight_zero(transform, groups):
    torch.manual_seed(0)
    mean = 0.7 * torch.randn(5, 3, dtype=F64)
    weight = torch.tensor([1.0, 0, 1, 1, 0], dtype=F64)

    def run(chosen):
        posterior = DiagonalNormal(mean[chosen], torch.zeros_like(mean[chosen]))
        x = torch.ones(len(mean[chosen]), 2, dtype=F64)
        elbo = ELBOLoss(BernoulliNLL(), transform=transform, reduction="sum")
        return elbo(0 * x, x, [posterior] * groups, sample_weight=weight[chosen])[:4]

    torch.testing.assert_close(run(slice(None)), run(weight != 0))


def test_a_form_of_a_user_sees_its_own_prior():
    class Mine(distributions.Normal):
        pass

    seen = []

    @register_kl(Mine, Mine)
    def kl_mine(p, q):
        seen.append(q)
        return (p.loc - q.loc).abs()

    prior = Mine(torch.zeros(()), 1.0)
    posterior = Mine(torch.ones(2, 3), 1.0)
    mask = torch.tensor([[1, 0, 1], [1, 1, 1]])
    terms = ELBOLoss(BernoulliNLL())(torch.zeros(2, 1), torch.ones(2, 1), posterior, prior, latent_mask=mask)
    assert terms.kl.item() == 2.5
    assert seen == [prior]


def test_of_what_looks_across_the_batch_nothing_is_nan():
    mean = torch.tensor([[0.0, 1.0], [math.nan, math.nan], [1.0, 0.5]])
    elbo = ELBOLoss(BernoulliNLL(), TotalCorrelationKLLoss(100))
    weight = torch.tensor([1.0, 0.0, 1.0])
    posterior = DiagonalNormal(mean, torch.zeros(3, 2), validate_args=False)
    terms = elbo(torch.zeros(3, 2), torch.ones(3, 2), posterior, sample=mean + 0.1, sample_weight=weight)
    assert terms.loss.isfinite()
