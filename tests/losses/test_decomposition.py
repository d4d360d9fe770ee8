import math

import pytest
import torch
from torch.distributions import (
    Beta,
    Categorical,
    Independent,
    Laplace,
    LogNormal,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Uniform,
)

from kldiv import (
    BernoulliNLL,
    DiagonalNormal,
    ELBOLoss,
    MixturePrior,
    MonteCarloKLLoss,
    TotalCorrelationKLLoss,
    decompose_kl,
)
from tests.marks import slow
from tests.two_processes import in_two_processes

ESTIMATORS = ("stratified", "weighted")


def hand_written(log_prob, sample, prior_log_prob, dataset_size, estimator):
    """Loops over examples, dimensions and pairs; weights as sentences of the paper say. In Python's floats."""
    batch, dims = sample.shape
    others = batch - 1
    parts = []
    for i in range(batch):
        weights = []
        for j in range(batch):
            if estimator == "weighted":
                weights.append(1 / (dataset_size * batch))
            elif j == i:
                weights.append(1 / dataset_size)
            elif j == (i + 1) % batch:
                weights.append((dataset_size - others) / (dataset_size * others))
            else:
                weights.append(1 / others)
        each = [[log_prob(j, d, sample[i, d]) for d in range(dims)] for j in range(batch)]
        joint = math.log(sum(w * math.exp(sum(e)) for w, e in zip(weights, each, strict=True)))
        marginals = sum(
            math.log(sum(w * math.exp(e[d]) for w, e in zip(weights, each, strict=True))) for d in range(dims)
        )
        prior = sum(prior_log_prob(sample[i, d]) for d in range(dims))
        parts.append((sum(each[i]) - joint, joint - marginals, marginals - prior))
    return torch.tensor(parts, dtype=torch.float64).T


def normals(batch, dims, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean, log_var, noise = torch.randn(3, batch, dims, dtype=torch.float64, generator=generator)
    return mean, log_var, mean + torch.exp(0.5 * log_var) * noise


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("batch", [2, 3, 7])
def test_against_a_hand_loop(estimator, batch):
    mean, log_var, sample = normals(batch, 3)

    def log_prob(j, d, z):
        lv = log_var[j, d]
        return (-0.5 * (math.log(2 * math.pi) + lv + (z - mean[j, d]) ** 2 * torch.exp(-lv))).item()

    def prior_log_prob(z):
        return (-0.5 * (math.log(2 * math.pi) + z * z)).item()

    expected = hand_written(log_prob, sample, prior_log_prob, 50, estimator)
    parts = decompose_kl(sample, DiagonalNormal(mean, log_var), dataset_size=50, estimator=estimator)
    torch.testing.assert_close(torch.stack(parts), expected, rtol=1e-10, atol=1e-10)
    for posterior in (Normal(mean, torch.exp(0.5 * log_var)), Independent(Normal(mean, torch.exp(0.5 * log_var)), 1)):
        again = decompose_kl(sample, posterior, dataset_size=50, estimator=estimator)
        torch.testing.assert_close(again, parts, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    ("make", "prior"),
    [
        (lambda a, b: Laplace(a, torch.exp(b)), Laplace(torch.tensor(0.0).double(), 2.0)),
        (lambda a, b: LogNormal(a, torch.exp(b)), LogNormal(torch.tensor(0.0).double(), 1.0)),
        (lambda a, b: Beta(torch.exp(a), torch.exp(b)), Beta(torch.tensor(2.0).double(), 2.0)),
        # supports that differ: what one example's posterior excludes
        (lambda a, b: Uniform(a, a + torch.exp(b)), Uniform(torch.tensor(-20.0).double(), 20.0)),
    ],
)
def test_other_families_against_a_hand_loop(make, prior, estimator):
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 2, dtype=torch.float64)
    posterior = make(a, b)
    sample = posterior.sample()

    def log_prob(j, d, z):
        one = make(a[j, d], b[j, d])
        return one.log_prob(z).item() if one.support.check(z) else -math.inf

    expected = hand_written(log_prob, sample, lambda z: prior.log_prob(z).item(), 20, estimator)
    parts = decompose_kl(sample, posterior, prior, dataset_size=20, estimator=estimator)
    torch.testing.assert_close(torch.stack(parts), expected, rtol=1e-9, atol=1e-9)


def test_categories():
    torch.manual_seed(0)
    logits = torch.randn(4, 3, 5, dtype=torch.float64)
    posterior = OneHotCategorical(logits=logits)
    sample = posterior.sample()
    parts = decompose_kl(sample, posterior, dataset_size=9)
    again = decompose_kl(sample.argmax(-1), Categorical(logits=logits), dataset_size=9)
    torch.testing.assert_close(parts, again)
    log = torch.log_softmax(logits, -1)
    kl = (log * sample).sum((1, 2)) + 3 * math.log(5)
    torch.testing.assert_close(sum(parts), kl)


N, D, B = 5000, 5, 64


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    scale = 0.1
    mean = torch.randn(N, D, dtype=torch.float64, generator=generator) * math.sqrt(1 - scale**2)
    sample = mean + scale * torch.randn(N, D, dtype=torch.float64, generator=generator)
    truth = torch.zeros(3, dtype=torch.float64)
    q, p = Normal(mean, scale), Normal(torch.zeros(()).double(), 1.0)
    conditional = q.log_prob(sample).sum(1)
    for rows in torch.arange(N).split(500):
        crossed = q.log_prob(sample[rows, None])
        joint = torch.logsumexp(crossed.sum(2), 1) - math.log(N)
        marginals = (torch.logsumexp(crossed, 1) - math.log(N)).sum(1)
        parts = conditional[rows] - joint, joint - marginals, marginals - p.log_prob(sample[rows]).sum(1)
        truth += torch.stack(parts).sum(1) / N
    return mean, torch.full_like(mean, 2 * math.log(scale)), sample, truth


@slow
class TestAgainstTheWholeDataSet:
    """N = 5000 examples in 5 dimensions, batches of 64; the truth is the sum over all of the data set."""

    def mean_parts(self, data, estimator):
        mean, log_var, sample, _ = data
        order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
        found = [
            torch.stack(
                decompose_kl(sample[b], DiagonalNormal(mean[b], log_var[b]), dataset_size=N, estimator=estimator)
            )
            for b in order.split(B)
            if len(b) == B
        ]
        return torch.cat(found, 1).mean(1)

    def test_stratified(self, data):
        found, truth = self.mean_parts(data, "stratified"), data[3]
        assert truth.tolist() == pytest.approx([8.40, 3.12, 0.01], abs=0.02)
        assert abs(found[0] - truth[0]) < 0.4
        assert (found - truth).abs().max() < 1.2

    def test_weighted_is_far_off_as_it_is_known_to_be(self, data):
        found = self.mean_parts(data, "weighted")
        assert found.tolist() == pytest.approx([12.7, 40.8, -42.0], abs=0.3)


def test_the_stratified_weights_are_unbiased_for_the_aggregate():
    """Over all batches of three out of five: the mean of the estimate of q(z) is q(z)."""
    import itertools

    mean, log_var, sample = normals(5, 2)
    q = DiagonalNormal(mean, log_var)
    z = sample[0]
    truth = torch.exp(DiagonalNormal(mean, log_var).log_prob(z)).mean()
    estimates = []
    for rest in itertools.permutations(range(1, 5), 2):
        chosen = [0, *rest]
        batch = DiagonalNormal(mean[chosen], log_var[chosen])
        parts = decompose_kl(sample[chosen], batch, dataset_size=5)
        estimates.append(torch.exp(q.log_prob(z)[0] - parts.mutual_information[0]))
    torch.testing.assert_close(torch.stack(estimates).mean(), truth, rtol=1e-12, atol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_parts_add_to_the_sampled_kl(estimator):
    mean, log_var, sample = normals(6, 4)
    posterior, prior = DiagonalNormal(mean, log_var), DiagonalNormal(*torch.full((2, 4), 0.5).double())
    kl = MonteCarloKLLoss().per_example(posterior, prior, sample)
    parts = decompose_kl(sample, posterior, prior, dataset_size=100, estimator=estimator)
    torch.testing.assert_close(sum(parts), kl)
    assert all(part.shape == (6,) for part in parts)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_batch_of_one_and_of_none(estimator):
    mean, log_var, sample = normals(1, 4)
    posterior = DiagonalNormal(mean, log_var)
    parts = decompose_kl(sample, posterior, dataset_size=100, estimator=estimator)
    assert parts.mutual_information.item() == pytest.approx(0, abs=1e-12)
    assert parts.total_correlation.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(parts.dimension_wise, MonteCarloKLLoss().per_example(posterior, None, sample))
    empty = decompose_kl(sample[:0], DiagonalNormal(mean[:0], log_var[:0]), dataset_size=100, estimator=estimator)
    assert [part.shape for part in empty] == [(0,)] * 3
    assert TotalCorrelationKLLoss(100)(DiagonalNormal(mean[:0], log_var[:0])).item() == 0


def test_latents_of_any_shape():
    mean, log_var, sample = normals(4, 12)
    flat = decompose_kl(sample, DiagonalNormal(mean, log_var), dataset_size=9)
    for event_dim in range(4):
        shaped = DiagonalNormal(*(t.reshape(4, 3, 2, 2) for t in (mean, log_var)), event_dim=event_dim)
        torch.testing.assert_close(decompose_kl(sample.reshape(4, 3, 2, 2), shaped, dataset_size=9), flat)


def test_narrow_posteriors_and_half_precision():
    mean, log_var, sample = (t.float() for t in normals(4, 3))
    narrow = decompose_kl(mean, DiagonalNormal(mean, torch.full_like(mean, -200.0)), dataset_size=1000)
    assert all(part.isfinite().all() for part in narrow)
    torch.testing.assert_close(narrow.mutual_information, torch.full((4,), math.log(1000)))
    half = decompose_kl(sample.half(), DiagonalNormal(mean.half(), log_var.half()), dataset_size=10)
    assert half.mutual_information.dtype == torch.float32


def test_gradients():
    mean, log_var, sample = normals(4, 2)
    noise = (sample - mean) * torch.exp(-0.5 * log_var)

    def parts(mean, log_var):
        posterior = DiagonalNormal(mean, log_var)
        return tuple(decompose_kl(mean + torch.exp(0.5 * log_var) * noise, posterior, dataset_size=30))

    assert torch.autograd.gradcheck(parts, (mean.requires_grad_(), log_var.requires_grad_()))


def test_what_does_not_factorise_raises():
    full = MultivariateNormal(torch.zeros(4, 2), torch.eye(2))
    diagonal = DiagonalNormal(torch.zeros(4, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"the posterior, MultivariateNormal.*does not factorise"):
        decompose_kl(full.sample(), full, dataset_size=10)
    with pytest.raises(ValueError, match=r"the prior, .*does not factorise"):
        decompose_kl(diagonal.sample(), diagonal, MixturePrior(3, 2)(), dataset_size=10)


def test_bad_arguments():
    mean, log_var, sample = normals(4, 2)
    posterior = DiagonalNormal(mean, log_var)
    with pytest.raises(ValueError, match="dataset_size=3 is less than the batch of 4"):
        decompose_kl(sample, posterior, dataset_size=3)
    with pytest.raises(ValueError, match=r"\(8, 4, 2\).*\(4, 2\)"):
        decompose_kl(sample.expand(8, 4, 2), posterior, dataset_size=10)
    for estimator in (lambda: decompose_kl(sample, posterior, dataset_size=9, estimator="mss"),):
        with pytest.raises(ValueError, match="estimator='mss'"):
            estimator()
    with pytest.raises(ValueError, match="estimator='mss'"):
        TotalCorrelationKLLoss(9, estimator="mss")
    with pytest.raises(ValueError, match="total_correlation=nan"):
        TotalCorrelationKLLoss(9, total_correlation=math.nan)
    with pytest.raises(TypeError, match="DiagonalNormal"):
        decompose_kl(sample, mean, dataset_size=9)


class TestTotalCorrelationKLLoss:
    def test_weighs_the_parts(self):
        mean, log_var, sample = normals(6, 3)
        posterior = DiagonalNormal(mean, log_var)
        term = TotalCorrelationKLLoss(
            50, mutual_information=0.5, total_correlation=6.0, dimension_wise=2.0, reduction="none"
        )
        mi, tc, dw = decompose_kl(sample, posterior, dataset_size=50)
        torch.testing.assert_close(term(posterior, None, sample), 0.5 * mi + 6 * tc + 2 * dw)

    def test_inside_an_elbo_the_bound_stays_one(self):
        mean, log_var, sample = normals(6, 3)
        posterior = DiagonalNormal(mean, log_var)
        logits, x = torch.zeros(6, 8).double(), torch.ones(6, 8).double()
        weighted = ELBOLoss(BernoulliNLL(), TotalCorrelationKLLoss(50, total_correlation=6.0))
        terms = weighted(logits, x, posterior, sample=sample)
        plain = ELBOLoss(BernoulliNLL(), MonteCarloKLLoss())(logits, x, posterior, sample=sample)
        torch.testing.assert_close(terms.kl, plain.kl)
        torch.testing.assert_close(terms.negative_elbo, plain.negative_elbo)
        tc = decompose_kl(sample, posterior, dataset_size=50).total_correlation.mean()
        torch.testing.assert_close(terms.loss, plain.loss + 5 * tc)

    def test_draws_its_own_sample(self):
        mean, log_var, _ = normals(6, 3)
        posterior = DiagonalNormal(mean.requires_grad_(), log_var)
        term = TotalCorrelationKLLoss(50)
        torch.manual_seed(0)
        first = term(posterior)
        torch.manual_seed(0)
        torch.testing.assert_close(first, term(posterior, None, posterior.rsample()))
        first.backward()
        assert mean.grad.abs().sum() > 0

    def test_a_gradient_that_would_be_wrong_raises(self):
        mean, log_var, sample = normals(6, 3)
        with pytest.raises(ValueError, match="the sample carries no gradient"):
            TotalCorrelationKLLoss(50)(DiagonalNormal(mean.requires_grad_(), log_var), None, sample)
        logits = torch.randn(6, 3, requires_grad=True)
        with pytest.raises(ValueError, match="Categorical has no reparametrised rsample"):
            TotalCorrelationKLLoss(50)(Categorical(logits=logits))
        with torch.no_grad():
            TotalCorrelationKLLoss(50)(Categorical(logits=logits))

    def test_has_no_dimensions(self):
        mean, log_var, _ = normals(6, 3)
        with pytest.raises(ValueError, match="use per_example"):
            TotalCorrelationKLLoss(50).per_dimension(DiagonalNormal(mean, log_var))

    def test_a_validation_set_may_be_larger_than_the_data_set(self):
        mean, log_var, _ = normals(6, 3)
        with pytest.raises(ValueError, match="dataset_size=5"):
            TotalCorrelationKLLoss(5)(DiagonalNormal(mean, log_var))
        assert TotalCorrelationKLLoss(5).eval()(DiagonalNormal(mean, log_var)).isfinite()

    def test_repr_shows_every_option(self):
        assert repr(TotalCorrelationKLLoss(50, total_correlation=6.0)) == (
            "TotalCorrelationKLLoss(dataset_size=50, mutual_information=1.0, total_correlation=6.0, "
            "dimension_wise=1.0, estimator='stratified', reduction='batchmean')"
        )

    @slow
    def test_compiles_whole(self):
        mean, log_var, sample = normals(6, 3)
        term = TotalCorrelationKLLoss(50, total_correlation=6.0)

        def loss(mean, log_var):
            return term(DiagonalNormal(mean, log_var, validate_args=False), None, sample)

        torch.compiler.reset()
        with torch.no_grad():
            compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(mean, log_var)
        torch.testing.assert_close(compiled, loss(mean, log_var))


def decomposed(rank=None):
    """Value and gradient of the term, for a normal and for another family, on one's part of the batch."""
    results = []
    for make in (lambda a, b: DiagonalNormal(a, b), lambda a, b: Laplace(a, torch.exp(b))):
        mean, log_var, sample = normals(6, 3)
        noise = (sample - mean) * torch.exp(-log_var)
        mine = slice(0, 6) if rank is None else slice(3 * rank, 3 * rank + 3)
        mean, log_var = (t[mine].clone().requires_grad_() for t in (mean, log_var))
        term = TotalCorrelationKLLoss(40, total_correlation=6.0)
        prior = Laplace(torch.zeros(3).double(), 1.0)
        loss = term(make(mean, log_var), prior, mean + torch.exp(log_var) * noise[mine])
        gradients = torch.autograd.grad(loss, (mean, log_var))
        results.append((loss.item(), [g.tolist() for g in gradients]))
        if rank == 0:  # alone
            term.eval()(make(mean, log_var), prior, mean)
    return results


@slow
def test_two_processes_are_one_with_the_joined_batch(tmp_path):
    found = in_two_processes(decomposed, tmp_path)
    for k, (loss, gradients) in enumerate(decomposed()):
        assert (found[0][k][0] + found[1][k][0]) / 2 == pytest.approx(loss, abs=1e-10)
        for one, two, whole in zip(found[0][k][1], found[1][k][1], gradients, strict=True):
            parts = torch.tensor(one + two, dtype=torch.float64) / 2
            torch.testing.assert_close(parts, torch.tensor(whole, dtype=torch.float64), rtol=0, atol=1e-10)


def test_one_collapsed_posterior_leaves_the_others_their_gradients():
    torch.manual_seed(0)
    mean = torch.zeros(4, 2, requires_grad=True)
    log_var = torch.tensor([[-200.0, 0.0], *[[0.0, 0.0]] * 3], requires_grad=True)
    posterior = DiagonalNormal(mean, log_var)
    TotalCorrelationKLLoss(100)(posterior).backward()
    assert mean.grad[1:].isfinite().all()
    assert log_var.grad[1:].isfinite().all()
