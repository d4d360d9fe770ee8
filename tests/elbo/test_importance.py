import math

import mpmath
import pytest
import torch
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal, Uniform

from kldiv import (
    BernoulliNLL,
    DiagonalNormal,
    ELBOLoss,
    GaussianNLL,
    ImportanceWeightedELBOLoss,
    MixturePrior,
    MonteCarloKLLoss,
    OptimalGaussianNLL,
    importance_log_likelihood,
)


def test_against_fifty_digits():
    generator = torch.Generator().manual_seed(0)
    log_weights = 3 * torch.randn(20, 2, dtype=torch.float64, generator=generator) - 800
    estimate = importance_log_likelihood(log_weights)
    for column in range(2):
        with mpmath.workdps(50):
            weights = [mpmath.exp(mpmath.mpf(v)) for v in log_weights[:, column].tolist()]
            mean = sum(weights) / 20
            error = mpmath.sqrt(sum((w - mean) ** 2 for w in weights) / (20 * 19)) / mean
            size = sum(weights) ** 2 / sum(w * w for w in weights)
            truths = [float(v) for v in (mpmath.log(mean), error, size)]
        assert [part[column].item() for part in estimate] == pytest.approx(truths, rel=1e-10)


def test_dim_and_shape():
    log_weights = torch.randn(3, 5, 2)
    along_one = importance_log_likelihood(log_weights, dim=1)
    along_zero = importance_log_likelihood(log_weights.transpose(0, 1))
    assert along_one.value.shape == (3, 2)
    torch.testing.assert_close(along_one, along_zero)


def test_the_standard_error_covers_the_truth():
    # z ~ N(0,1), x|z ~ N(z,1), x = 2; proposal N(1, 1): the weights have a finite variance.
    # 95 % intervals of 400 runs cover 380 +- 4.4; the gate of 4 standard errors has a false-alarm rate of 6e-5
    torch.manual_seed(0)
    z = 1 + torch.randn(1000, 400, dtype=torch.float64)
    normal = torch.distributions.Normal(torch.tensor(0.0).double(), 1.0)
    log_weights = normal.log_prob(z) + normal.log_prob(2 - z) - normal.log_prob(z - 1)
    truth = torch.distributions.Normal(0.0, 2**0.5).log_prob(torch.tensor(2.0))
    estimate = importance_log_likelihood(log_weights)
    covered = ((estimate.value - truth).abs() < 1.96 * estimate.standard_error).sum().item()
    assert abs(covered - 380) < 4 * 4.4


def test_equal_weights_have_no_error_and_full_size():
    estimate = importance_log_likelihood(torch.full((7,), -3.0))
    assert estimate.value.item() == pytest.approx(-3.0)
    assert estimate.standard_error.item() == pytest.approx(0.0, abs=1e-6)
    assert estimate.effective_sample_size.item() == pytest.approx(7.0, rel=1e-5)


def test_at_the_edge():
    one = importance_log_likelihood(torch.tensor([-3.0]))
    assert (one.value.item(), one.standard_error.item()) == (-3.0, float("inf"))
    none = importance_log_likelihood(torch.full((3,), float("-inf")))
    assert [part.item() for part in none] == [float("-inf"), float("inf"), 0.0]
    some = importance_log_likelihood(torch.tensor([0.0, float("-inf")]))
    assert [part.item() for part in some] == pytest.approx([-0.6931472, 1.0, 1.0])
    assert importance_log_likelihood(torch.zeros(3).half()).value.dtype == torch.float32
    assert importance_log_likelihood(torch.tensor([0.0, torch.nan])).value.isnan()
    with pytest.raises(ValueError, match=r"\(0, 3\)"):
        importance_log_likelihood(torch.zeros(0, 3))


def test_gradient_is_the_normalised_weight():
    log_weights = torch.randn(5, dtype=torch.float64, requires_grad=True)
    importance_log_likelihood(log_weights).value.backward()
    torch.testing.assert_close(log_weights.grad, log_weights.detach().softmax(0))


@pytest.mark.parametrize("level", [-3000.0, -1e5])
def test_error_and_size_at_the_likelihoods_of_images(level):
    generator = torch.Generator().manual_seed(0)
    log_weights = (0.1 * torch.randn(5000, dtype=torch.float64, generator=generator) + level).float()
    narrow, wide = importance_log_likelihood(log_weights), importance_log_likelihood(log_weights.double())
    assert narrow.standard_error.item() == pytest.approx(wide.standard_error.item(), rel=1e-4)
    assert narrow.effective_sample_size.item() == pytest.approx(wide.effective_sample_size.item(), rel=1e-4)


def test_one_weight_that_carries_everything():
    for log_weights in (torch.tensor([1e5, 0.0]), torch.tensor([3e38, -3e38])):
        estimate = importance_log_likelihood(log_weights)
        assert (estimate.standard_error.item(), estimate.effective_sample_size.item()) == (1.0, 1.0)


def test_no_gradient_where_nothing_is_possible():
    log_weights = torch.full((3,), float("-inf"), requires_grad=True)
    importance_log_likelihood(log_weights).value.backward()
    assert log_weights.grad.tolist() == [0.0] * 3


class LinearGaussian:
    """z ~ N(0, 1), x|z ~ N(a z, 1) in one dimension, and a proposal wide enough for weights of finite variance."""

    def __init__(self, copies, x=2.0, slope=1.0, mean=0.8, log_var=-0.3):
        self.target = torch.full((copies, 1), x, dtype=torch.float64)
        self.parameters = {
            name: torch.full((copies, 1), value, dtype=torch.float64, requires_grad=True)
            for name, value in (("slope", slope), ("mean", mean), ("log_var", log_var))
        }
        self.truth = Normal(0.0, math.sqrt(1 + slope**2)).log_prob(torch.tensor(x)).item()

    def terms(self, loss, k):
        posterior = DiagonalNormal(self.parameters["mean"], self.parameters["log_var"])
        sample = posterior.rsample((k,))
        return loss(self.parameters["slope"] * sample, self.target, posterior, sample=sample)

    def gradients(self, loss, k):
        terms = self.terms(loss, k)
        found = torch.autograd.grad(terms.loss.sum(), list(self.parameters.values()))
        return dict(zip(self.parameters, (g[:, 0] for g in found), strict=True))


def bound(gradient="pathwise", reduction="none"):
    return ImportanceWeightedELBOLoss(GaussianNLL(), gradient=gradient, reduction=reduction)


class TestImportanceWeightedELBOLoss:
    def test_against_a_hand_loop(self):
        torch.manual_seed(0)
        mean, log_var = torch.randn(2, 3, 2, dtype=torch.float64)
        weight = torch.randn(4, 2, dtype=torch.float64)
        x = (torch.rand(3, 4) > 0.5).double()
        posterior, prior = DiagonalNormal(mean, log_var), DiagonalNormal(*torch.full((2, 2), 0.3).double())
        sample = posterior.rsample((5,))
        logits = sample @ weight.T
        loss = ImportanceWeightedELBOLoss(BernoulliNLL(), reduction="none")
        expected = torch.zeros(5, 3, dtype=torch.float64)
        for k in range(5):
            for n in range(3):
                log = Bernoulli(logits=logits[k, n]).log_prob(x[n]).sum()
                log = log + Normal(0.3, math.exp(0.15)).log_prob(sample[k, n]).sum()
                expected[k, n] = log - Normal(mean[n], torch.exp(0.5 * log_var[n])).log_prob(sample[k, n]).sum()
        found = loss.log_weights(logits, x, posterior, prior, sample=sample)
        torch.testing.assert_close(found, expected)
        terms = loss(logits, x, posterior, prior, sample=sample)
        truth = math.log(5) - torch.logsumexp(expected, 0)
        torch.testing.assert_close(terms.loss, truth)
        torch.testing.assert_close(terms.negative_elbo, truth)
        single = ELBOLoss(BernoulliNLL(), MonteCarloKLLoss(), reduction="none")
        each = [single(logits[k], x, posterior, prior, sample=sample[k]) for k in range(5)]
        torch.testing.assert_close(terms.reconstruction, sum(t.reconstruction for t in each) / 5)
        torch.testing.assert_close(terms.kl, sum(t.kl for t in each) / 5)
        assert terms.weight.item() == 1
        one = loss(logits[:1], x, posterior, prior, sample=sample[:1])
        torch.testing.assert_close(one.loss, each[0].negative_elbo)
        torch.testing.assert_close(
            ImportanceWeightedELBOLoss(BernoulliNLL())(logits, x, posterior, prior, sample=sample).loss, truth.mean()
        )

    def test_a_bound_that_tightens(self):
        torch.manual_seed(0)
        model = LinearGaussian(40_000)
        last = -math.inf
        for k in (1, 2, 5, 20, 50):
            value = -model.terms(bound(), k).negative_elbo.detach()
            mean, error = value.mean().item(), value.std().item() / 200
            assert last + 4 * error < mean < model.truth + 4 * error
            last = mean
        assert last == pytest.approx(model.truth, abs=0.01)
        # in expectation, K = 1 is the ELBO
        one = model.terms(bound(), 1).negative_elbo.detach()
        m, lv = 0.8, -0.3
        v = math.exp(lv)
        truth = 0.5 * (math.log(2 * math.pi) + (2 - m) ** 2 + v) + 0.5 * (v + m * m - 1 - lv)
        assert abs(one.mean().item() - truth) < 4 * one.std().item() / 200

    @pytest.mark.parametrize("k", [2, 5, 50])
    def test_dreg_has_the_same_expected_gradient_at_lower_variance(self, k):
        torch.manual_seed(0)
        model = LinearGaussian(40_000)
        pathwise, dreg = (model.gradients(bound(gradient), k) for gradient in ("pathwise", "dreg"))
        for name in ("slope", "mean", "log_var"):
            difference = pathwise[name] - dreg[name]  # of independent samples
            assert abs(difference.mean().item()) < 4 * difference.std().item() / 200
        for name in ("mean", "log_var"):
            assert dreg[name].var() < 0.8 * pathwise[name].var()

    def test_sticking_the_landing_at_one_sample(self):
        torch.manual_seed(0)
        model = LinearGaussian(40_000)
        found = model.gradients(bound("sticking_the_landing"), 1)
        m, v = 0.8, math.exp(-0.3)
        # of the ELBO in closed form: -ln p(x|z) is (x - a z)^2 / 2
        truth = {"slope": -2 * m + m * m + v, "mean": -(2 - m) + m, "log_var": 0.5 * v + 0.5 * (v - 1)}
        for name, gradient in found.items():
            assert abs(gradient.mean().item() - truth[name]) < 4 * gradient.std().item() / 200
        # at the true posterior it lands
        landed = LinearGaussian(100, mean=1.0, log_var=math.log(0.5))
        gradients = landed.gradients(bound("sticking_the_landing"), 1)
        assert max(gradients[name].abs().max().item() for name in ("mean", "log_var")) < 1e-12

    def test_dreg_at_one_sample_is_sticking_the_landing(self):
        found = []
        for gradient in ("dreg", "sticking_the_landing"):
            torch.manual_seed(0)
            found.append(LinearGaussian(10).gradients(bound(gradient), 1))
        torch.testing.assert_close(found[0], found[1])

    def test_sticking_the_landing_is_refused_beyond(self):
        with pytest.raises(ValueError, match=r"K = 5 samples is biased.*gradient='dreg'"):
            LinearGaussian(3).terms(bound("sticking_the_landing"), 5)

    def test_dreg_leaves_other_losses_alone(self):
        torch.manual_seed(0)
        model = LinearGaussian(6)
        mean = model.parameters["mean"]
        posterior = DiagonalNormal(mean, model.parameters["log_var"])
        sample = posterior.rsample((4,))
        terms = bound("dreg")(sample, model.target, posterior, sample=sample)
        bound("dreg")(sample, model.target, posterior, sample=sample)  # a second look changes nothing
        (alone,) = torch.autograd.grad(terms.loss.sum(), mean, retain_graph=True)
        (other,) = torch.autograd.grad(sample.square().sum(), mean, retain_graph=True)
        (both,) = torch.autograd.grad(terms.loss.sum() + sample.square().sum(), mean)
        torch.testing.assert_close(both, alone + other)
        torch.testing.assert_close(other, 2 * sample.detach().sum(0))

    def test_the_value_is_that_of_the_bound_whatever_the_gradient(self):
        values = []
        for gradient in ("pathwise", "dreg"):
            torch.manual_seed(0)
            values.append(LinearGaussian(10).terms(bound(gradient), 7).loss)
        assert torch.equal(*values)

    def test_a_sample_the_decoder_did_not_consume(self):
        model = LinearGaussian(6)
        posterior = DiagonalNormal(model.parameters["mean"], model.parameters["log_var"])
        sample = posterior.rsample((4,))
        with pytest.raises(ValueError, match="the very tensor that the decoder consumed"):
            bound("dreg")(2 * sample, model.target, posterior, sample=sample.view(4, 6, 1))
        for gradient in ("pathwise", "dreg"):
            with pytest.raises(ValueError, match="the sample carries no gradient"):
                bound(gradient)(sample, model.target, posterior, sample=sample.detach())
        with torch.no_grad():
            bound("dreg")(sample, model.target, posterior, sample=sample.detach())

    def test_groups(self):
        torch.manual_seed(0)
        x = torch.randn(3, 2).double()
        posteriors = [DiagonalNormal(*torch.randn(2, 3, d).double().requires_grad_()) for d in (2, 4)]
        samples = [q.rsample((5,)) for q in posteriors]
        output = samples[0] + samples[1][..., :2]
        joint_parameters = [torch.cat([getattr(q, n) for q in posteriors], 1) for n in ("mean", "log_var")]
        joint = DiagonalNormal(*joint_parameters)
        for gradient in ("pathwise", "dreg"):
            loss = bound(gradient, "batchmean")
            found = loss(output, x, posteriors, sample=samples)
            together = torch.cat(samples, -1)
            whole = loss(together[..., :2] + together[..., 2:4], x, joint, sample=together)
            torch.testing.assert_close(found.loss, whole.loss)
            torch.testing.assert_close(sum(found.kl_per_group), found.kl)
            leaves = [posteriors[0].mean, posteriors[1].log_var]
            torch.testing.assert_close(
                torch.autograd.grad(found.loss, leaves, retain_graph=True),
                torch.autograd.grad(whole.loss, leaves, retain_graph=True),
            )

    def test_a_hierarchy_whose_second_layer_depends_on_the_first_sample(self):
        """z1 ~ N(0, 1), z2|z1 ~ N(z1, 1), x|z2 ~ N(z2, 1): ln p(x) is that of N(0, 3)."""
        torch.manual_seed(0)
        copies, k = 2000, 200
        x = torch.full((copies, 1), 1.5, dtype=torch.float64)
        mean = torch.full((copies, 1), 1.0, dtype=torch.float64, requires_grad=True)
        q2 = DiagonalNormal(mean, torch.zeros_like(mean))
        z2 = q2.rsample((k,))
        q1 = DiagonalNormal(0.5 * z2, torch.full_like(z2, math.log(0.8)))
        z1 = q1.rsample()
        priors = [DiagonalNormal(z1, torch.zeros_like(z1)), None]
        terms = bound()(z2, x, [q2, q1], priors, sample=[z2, z1])
        truth = Normal(0.0, math.sqrt(3)).log_prob(torch.tensor(1.5)).item()
        assert -terms.loss.mean().item() == pytest.approx(truth, abs=0.005)
        assert terms.kl_per_group[1].shape == (copies,)
        terms.loss.sum().backward()
        with pytest.raises(ValueError, match="depends on another group's sample"):
            bound("dreg")(z2, x, [q2, q1], priors, sample=[z2, z1])

    def test_priors_and_likelihoods_of_every_kind(self):
        torch.manual_seed(0)
        x = torch.rand(3, 2)
        posterior = Independent(Normal(torch.zeros(3, 2, requires_grad=True), torch.ones(3, 2)), 1)
        sample = posterior.rsample((4,))
        for prior in (None, MixturePrior(3, 2)(), Independent(Normal(torch.zeros(2), 1.0), 1), Normal(0.0, 1.0)):
            for likelihood, output in (
                (GaussianNLL(), (sample, sample)),
                (OptimalGaussianNLL(), sample),
                (GaussianNLL(learned=True), sample),
            ):
                loss = ImportanceWeightedELBOLoss(likelihood, gradient="dreg")
                loss(output, x, posterior, prior, sample=sample).loss.backward(retain_graph=True)
        full = MultivariateNormal(torch.zeros(3, 2), torch.eye(2))
        assert bound()(full.sample((4,)), x, full, sample=full.sample((4,))).loss.isfinite().all()

    def test_optimal_variance_is_the_one_tracked(self):
        likelihood = OptimalGaussianNLL()
        loss = ImportanceWeightedELBOLoss(likelihood, reduction="none")
        posterior = DiagonalNormal(torch.zeros(3, 2), torch.zeros(3, 2))
        sample, x = posterior.rsample((4,)), torch.full((3, 2), 2.0)
        zeros = torch.zeros(4, 3, 2)
        terms = loss(zeros, x, posterior, sample=sample)
        assert likelihood.variance.item() == pytest.approx(4.0)
        expected = -2 * Normal(0.0, 2.0).log_prob(torch.tensor(2.0))
        torch.testing.assert_close(terms.reconstruction, expected.expand(3))
        loss.eval()
        loss(zeros, 5 * x, posterior, sample=sample)
        assert likelihood.variance.item() == pytest.approx(4.0)

    def test_weights_and_masks(self):
        torch.manual_seed(0)
        posterior = DiagonalNormal(*torch.randn(2, 3, 2))
        sample, x = posterior.rsample((4,)), torch.rand(3, 2)
        each = bound()(sample, x, posterior, sample=sample).loss
        weight = torch.tensor([1.0, 0.0, 2.0])
        x[1] = torch.nan
        terms = bound(reduction="batchmean")(sample, x, posterior, sample=sample, sample_weight=weight)
        torch.testing.assert_close(terms.loss, (each[0] + 2 * each[2]) / 3)
        mask = torch.tensor([True, False])
        half = bound().log_weights(sample, torch.nan_to_num(x), posterior, sample=sample, target_mask=mask)
        x[:, 1] = torch.nan
        x[1, 0] = 0
        torch.testing.assert_close(bound().log_weights(sample, x, posterior, sample=sample, target_mask=mask), half)

    def test_impossible_and_extreme_weights(self):
        mean = torch.zeros(3, 1, requires_grad=True)
        posterior = DiagonalNormal(mean, torch.full((3, 1), -60.0))
        sample = posterior.rsample((4,))
        for gradient in ("pathwise", "dreg"):
            terms = bound(gradient)(1e4 * sample, torch.full((3, 1), 1e4), posterior, sample=sample)
            (gradients,) = torch.autograd.grad(terms.loss.sum(), mean)
            assert gradients.isfinite().all()
        prior = Uniform(torch.tensor(1.0), 2.0)  # no sample is possible
        for gradient in ("pathwise", "dreg"):
            wide = DiagonalNormal(mean, torch.full((3, 1), -4.0))
            sample = wide.rsample((4,))
            terms = bound(gradient)(sample, torch.zeros(3, 1), wide, prior, sample=sample)
            assert (terms.loss == torch.inf).all()

    def test_bad_arguments(self):
        posterior = DiagonalNormal(torch.zeros(3, 2), torch.zeros(3, 2))
        sample, x = posterior.rsample((4,)), torch.zeros(3, 2)
        for bad in ({"gradient": "vimco"}, {"reduction": "mean"}):
            with pytest.raises(ValueError, match=next(iter(bad))):
                ImportanceWeightedELBOLoss(GaussianNLL(), **bad)
        with pytest.raises(TypeError, match="likelihood term"):
            ImportanceWeightedELBOLoss(torch.nn.MSELoss())
        with pytest.raises(ValueError, match=r"sample \(3, 2\).*output \(3, 2\).*posterior\.rsample\(\(K,\)\)"):
            bound()(sample[0], x, posterior, sample=sample[0])
        with pytest.raises(ValueError, match=r"output \(12, 2\)"):
            bound()(sample.flatten(0, 1), x, posterior, sample=sample)
        with pytest.raises(ValueError, match=r"\(4, 3, 3\).*\(3, 2\)"):
            bound()(sample, x, posterior, sample=torch.zeros(4, 3, 3))
        with pytest.raises(TypeError, match=r"DiagonalNormal\(mean, log_var\)"):
            bound()(sample, x, torch.zeros(3, 2), sample=sample)
        with pytest.raises(ValueError, match="sample has 1 entries and posterior 2"):
            bound()(sample, x, [posterior, posterior], sample=[sample])

    def test_half_precision(self):
        posterior = DiagonalNormal(torch.zeros(3, 2).half(), torch.zeros(3, 2).half())
        sample = posterior.rsample((4,))
        terms = bound()(sample, torch.zeros(3, 2).half(), posterior, sample=sample)
        assert terms.loss.dtype == terms.kl.dtype == torch.float32

    def test_compiles_whole(self):
        def loss(mean, log_var, noise, x):
            posterior = DiagonalNormal(mean, log_var, validate_args=False)
            sample = mean + torch.exp(0.5 * log_var) * noise
            return bound()(sample, x, posterior, sample=sample).loss

        torch.compiler.reset()
        torch.manual_seed(0)
        given = (*torch.randn(2, 3, 2), torch.randn(4, 3, 2), torch.randn(3, 2))
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(*given)
        torch.testing.assert_close(compiled, loss(*given))

    def test_repr_shows_every_option(self):
        assert "gradient='dreg', reduction='none'" in repr(bound("dreg"))

    def test_a_weight_of_zero_among_others_leaves_dreg_its_value_and_gradient(self):
        torch.manual_seed(0)
        mean = torch.zeros(3, 1, requires_grad=True)
        posterior = DiagonalNormal(mean, torch.zeros(3, 1))
        sample = posterior.rsample((8,))
        prior = Uniform(torch.tensor(-0.5), 0.5, validate_args=False)  # some samples are impossible
        target = torch.ones(3, 1)
        losses = [bound(g)(sample, target, posterior, prior, sample=sample).loss for g in ("pathwise", "dreg")]
        assert losses[0].isfinite().all()
        torch.testing.assert_close(losses[1], losses[0])
        (gradient,) = torch.autograd.grad(losses[1].sum(), mean)
        assert gradient.isfinite().all()
        assert gradient.abs().min() > 0

    def test_a_mask_of_another_shape(self):
        posterior = DiagonalNormal(torch.zeros(3, 2), torch.zeros(3, 2))
        sample = posterior.rsample((4,))
        with pytest.raises(ValueError, match=r"mask \(5,\)"):
            bound()(sample, torch.zeros(3, 2), posterior, sample=sample, target_mask=torch.ones(5))
