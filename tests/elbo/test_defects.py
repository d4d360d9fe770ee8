"""What the ELBO code in circulation gets wrong, one test each: the defect is shown, and is not here."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal

import kldiv
from kldiv import BernoulliNLL, DiagonalNormal, ELBOLoss, GaussianKLLoss, LinearWarmup


def one_liner(mean, log_var):
    return -0.5 * (1 + log_var - mean**2 - log_var.exp())


class TestTotalCorrelation:
    """N = 5000, D = 5, batches of 64 of a posterior whose true parts are about 8.4, 3.1 and 0.0."""

    N, D, B = 5000, 5, 64

    def batches(self):
        torch.manual_seed(0)
        mean = torch.randn(40 * self.B, self.D, dtype=torch.float64) * math.sqrt(0.99)
        sample = mean + 0.1 * torch.randn_like(mean)
        for chosen in torch.arange(len(mean)).split(self.B):
            yield sample[chosen], DiagonalNormal(mean[chosen], torch.full((self.B, self.D), math.log(0.01)).double())

    def parts(self, matrix, early=False):
        """The decomposition with a given ln W; ``early``: the weights added before the sum over dimensions."""
        found = []
        for z, q in self.batches():
            crossed = Normal(q.mean, q.stddev).log_prob(z[:, None])
            joint = (crossed + matrix[..., None]).sum(2) if early else crossed.sum(2) + matrix
            joint = torch.logsumexp(joint, 1)
            marginals = torch.logsumexp(crossed + matrix[..., None], 1).sum(1)
            prior = Normal(0.0, 1.0).log_prob(z).sum(1)
            found.append(torch.stack([q.log_prob(z) - joint, joint - marginals, marginals - prior]).mean(1))
        return torch.stack(found).mean(0).tolist()

    def ours(self):
        parts = [torch.stack(kldiv.decompose_kl(z, q, dataset_size=self.N)).mean(1) for z, q in self.batches()]
        return torch.stack(parts).mean(0).tolist()

    def right_matrix(self):
        m = self.B - 1
        weights = torch.full((self.B, self.B), 1 / m, dtype=torch.float64)
        flat, strata = weights.view(-1), (self.N - m) / (self.N * m)
        flat[:: self.B + 1], flat[1 :: self.B + 1] = 1 / self.N, strata
        weights[m, 0] = strata
        return weights.log()

    def test_a_matrix_that_fills_two_columns(self):
        m = self.B - 1
        weights = torch.full((self.B, self.B), 1 / m, dtype=torch.float64)
        flat, strata = weights.view(-1), (self.N - m) / (self.N * m)
        flat[:: m + 1], flat[1 :: m + 1] = 1 / self.N, strata  # as it is copied: a stride of B and not of B + 1
        weights[m, 0] = strata
        mutual_information, total_correlation, _ = self.parts(weights.log())
        assert mutual_information == pytest.approx(4.21, abs=0.1)
        assert total_correlation == pytest.approx(6.72, abs=0.15)
        assert self.ours() == pytest.approx(self.parts(self.right_matrix()), abs=1e-9)
        assert self.ours() == pytest.approx([8.50, 3.89, -0.85], abs=0.1)

    def test_log_weights_added_before_the_sum_over_dimensions(self):
        assert self.parts(self.right_matrix(), early=True)[1] < -5
        assert self.ours()[1] > 0

    def test_a_batch_of_one_divides_by_zero(self):
        posterior = DiagonalNormal(torch.ones(1, 3), torch.zeros(1, 3))
        parts = kldiv.decompose_kl(posterior.rsample(), posterior, dataset_size=self.N)
        assert all(part.isfinite().all() for part in parts)


def test_iwae_with_a_closed_form_inside_the_weights_is_no_bound():
    """z ~ N(0, 1), x|z ~ N(z, 1), x = 2, q = N(1, 1/4), K = 50."""
    torch.manual_seed(0)
    copies, k = 4000, 50
    posterior = DiagonalNormal(torch.ones(copies, 1).double(), torch.full((copies, 1), math.log(0.25)).double())
    sample = posterior.sample((k,))
    x = torch.full((copies, 1), 2.0).double()
    truth = Normal(0.0, math.sqrt(2)).log_prob(torch.tensor(2.0)).item()
    log_likelihood = Normal(sample, 1.0).log_prob(x).sum(2)
    closed = log_likelihood - kldiv.ExactKLLoss().per_example(posterior)
    wrong = (torch.logsumexp(closed, 0) - math.log(k)).mean().item()
    assert wrong == pytest.approx(-2.250, abs=0.003)
    assert wrong > truth + 0.01
    bound = kldiv.ImportanceWeightedELBOLoss(kldiv.GaussianNLL(), reduction="none")
    found = -bound(sample, x, posterior, sample=sample).loss
    assert found.mean().item() < truth + 4 * found.std().item() / math.sqrt(copies)
    assert found.mean().item() == pytest.approx(truth, abs=0.02)


def test_vamp_prior_with_a_misplaced_parenthesis():
    torch.manual_seed(0)
    network = nn.Linear(6, 4)

    def encoder(x):
        return DiagonalNormal(*network(x).chunk(2, -1))

    prior = kldiv.VampPrior(7, encoder, (6,))()
    parts = prior.component_distribution
    z = torch.randn(5, 2)
    by_hand = torch.stack(
        [Normal(m, s).log_prob(z).sum(1) for m, s in zip(parts.mean, parts.stddev, strict=True)]
    ).logsumexp(0) - math.log(7)
    torch.testing.assert_close(prior.log_prob(z), by_hand, rtol=1e-5, atol=1e-5)


class TestReductions:
    def test_a_beta_that_changes_its_meaning_with_the_size(self):
        """Twice the latents and twice the pixels are twice the nats: the ratio of the terms stays."""
        mean, log_var = torch.ones(4, 5), torch.full((4, 5), -1.0)
        elbo = ELBOLoss(BernoulliNLL(), weight=4.0)
        once = elbo(torch.ones(4, 8), torch.zeros(4, 8), DiagonalNormal(mean, log_var))
        wide = DiagonalNormal(mean.repeat(1, 2), log_var.repeat(1, 2))
        twice = elbo(torch.ones(4, 16), torch.zeros(4, 16), wide)
        for name in ("kl", "reconstruction", "loss"):
            torch.testing.assert_close(getattr(twice, name), 2 * getattr(once, name))
        for module in (BernoulliNLL, GaussianKLLoss, kldiv.ExactKLLoss):
            with pytest.raises(ValueError, match="no KL divergence"):
                module(reduction="mean")

    def test_a_weight_that_differs_between_training_and_validation(self):
        elbo = ELBOLoss(BernoulliNLL(), weight=0.1)
        given = torch.ones(4, 8), torch.zeros(4, 8), DiagonalNormal(torch.ones(4, 2), torch.zeros(4, 2))
        training, validation = elbo(*given), elbo.eval()(*given)
        torch.testing.assert_close(tuple(training), tuple(validation))
        torch.testing.assert_close(training.negative_elbo, training.reconstruction + training.kl)

    def test_a_kl_logged_with_the_wrong_sign(self):
        posterior = DiagonalNormal(torch.ones(4, 2), torch.zeros(4, 2))
        assert ELBOLoss(BernoulliNLL())(torch.zeros(4, 8), torch.ones(4, 8), posterior).kl > 0

    def test_a_missing_half(self):
        truth = kldiv.kl_quadrature(Normal(torch.tensor(0.7).double(), 0.4), Normal(torch.tensor(0.0).double(), 1.0))
        found = GaussianKLLoss()(torch.tensor([[0.7]]).double(), torch.tensor([[2 * math.log(0.4)]]).double())
        torch.testing.assert_close(found, truth)


class TestLogVariances:
    def test_a_clamp_without_gradient(self):
        log_var = torch.tensor([[-25.0, 30.0]], requires_grad=True)
        (dead,) = torch.autograd.grad(one_liner(0.0, log_var.clamp(-10, 10)).sum(), log_var)
        assert not dead.any()
        (live,) = torch.autograd.grad(GaussianKLLoss()(torch.zeros(1, 2), log_var), log_var)
        assert live.abs().min() > 0.4
        bounded = kldiv.functional.bounded_log_var(log_var, 10.0)
        (gradient,) = torch.autograd.grad(GaussianKLLoss()(torch.zeros(1, 2), bounded), log_var)
        assert gradient.abs().min() > 1e-3
        assert bounded.abs().max() < 10

    def test_half_precision_beyond_its_exponent(self):
        log_var = torch.tensor([[11.2]]).half()
        assert one_liner(torch.zeros(1, 1).half(), log_var).isinf()
        truth = 0.5 * (math.exp(log_var.item()) - 1 - log_var.item())
        assert GaussianKLLoss()(torch.zeros(1, 1).half(), log_var).item() == pytest.approx(truth, rel=1e-6)

    def test_half_precision_in_the_sum_over_a_large_latent(self):
        mean = torch.full((1, 4, 32, 32), 6.0).half()
        assert one_liner(mean, torch.zeros_like(mean)).sum().isinf()
        assert GaussianKLLoss()(mean, torch.zeros_like(mean)).item() == pytest.approx(4 * 32 * 32 * 18)

    def test_a_latent_of_two_dimensions_that_raises(self):
        for shape in ((3, 5), (3, 5, 2), (3, 1, 8, 8)):
            assert GaussianKLLoss("none")(torch.ones(shape), torch.zeros(shape)).shape == (3,)


class TestWarmUps:
    def train(self, elbo, optimizer, steps, batches_a_step=1):
        for _ in range(steps):
            for _ in range(batches_a_step):
                elbo(torch.zeros(2, 3), torch.ones(2, 3), DiagonalNormal(torch.ones(2, 1), torch.zeros(2, 1)))
            optimizer.step()

    def new(self):
        elbo = ELBOLoss(BernoulliNLL(), weight=LinearWarmup(steps=100))
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
        kldiv.attach(elbo, optimizer)
        return elbo, optimizer

    def test_one_counted_in_epochs_never_ends_on_small_runs(self):
        elbo, optimizer = self.new()
        self.train(elbo, optimizer, 100)  # a few epochs of a small data set
        assert elbo.weight().item() == 1.0

    def test_one_counted_in_forward_calls_runs_fast(self):
        elbo, optimizer = self.new()
        self.train(elbo, optimizer, 10, batches_a_step=4)
        elbo.eval()
        for _ in range(50):
            elbo(torch.zeros(2, 3), torch.ones(2, 3), DiagonalNormal(torch.ones(2, 1), torch.zeros(2, 1)))
        assert elbo.weight().item() == pytest.approx(0.1)

    def test_one_that_restarts_on_resume(self):
        elbo, optimizer = self.new()
        self.train(elbo, optimizer, 30)
        resumed, optimizer = self.new()
        resumed.load_state_dict(elbo.state_dict())
        self.train(resumed, optimizer, 10)
        assert resumed.weight().item() == pytest.approx(0.4)


def test_a_bernoulli_likelihood_on_sigmoid_outputs():
    logits = torch.tensor([[40.0, -40.0, 0.3]], requires_grad=True)
    target = torch.tensor([[0.0, 1.0, 1.0]])
    p = logits.sigmoid()
    saturated = -(target * torch.log(p) + (1 - target) * torch.log(1 - p)).sum()
    assert saturated.isinf()
    loss = BernoulliNLL()(logits, target)
    loss.backward()
    assert loss.item() == pytest.approx(80 + math.log(1 + math.exp(-0.3)), rel=1e-6)
    torch.testing.assert_close(logits.grad, logits.detach().sigmoid() - target)


def test_a_standard_error_on_an_importance_sampled_log_likelihood():
    estimate = kldiv.importance_log_likelihood(torch.randn(100, 3))
    assert (estimate.standard_error > 0).all()


class TestWhatUsersAskFor:
    def test_bernoulli_gradients_of_saturated_probabilities(self):
        p = torch.tensor([0.0, 1.0, 0.5], requires_grad=True)
        kl = kldiv.kl_divergence(Bernoulli(p), Bernoulli(torch.tensor(0.5)))
        assert kl.isfinite().all()
        logits = torch.tensor([-80.0, 80.0, 0.1], requires_grad=True)
        kldiv.kl_divergence(Bernoulli(logits=logits), Bernoulli(torch.tensor(0.5))).sum().backward()
        assert logits.grad.isfinite().all()

    def test_independent_against_a_full_covariance(self):
        diagonal = Independent(Normal(torch.ones(2), torch.tensor([0.5, 2.0])), 1)
        full = MultivariateNormal(torch.ones(2), torch.diag(torch.tensor([0.25, 4.0])))
        assert kldiv.kl_divergence(diagonal, full).item() == pytest.approx(0, abs=1e-6)
        assert kldiv.kl_divergence(full, diagonal).item() == pytest.approx(0, abs=1e-6)

    def test_a_total_correlation_that_comes_out_negative(self):
        torch.manual_seed(0)
        scale = torch.linalg.cholesky(0.2 * torch.eye(4).double() + 0.8)
        mean = torch.randn(500, 4).double() @ scale.T
        posterior = DiagonalNormal(mean, torch.full_like(mean, -2.0))
        found = kldiv.decompose_kl(posterior.rsample(), posterior, dataset_size=500).total_correlation.mean().item()
        assert found > 1  # of correlated latents

    def test_compilation_of_a_whole_training_step(self):
        def loss(mean, log_var, x):
            posterior = DiagonalNormal(mean, log_var, validate_args=False)
            return ELBOLoss(BernoulliNLL())(mean.sum(1, keepdim=True) * x, x, posterior).loss

        torch.compiler.reset()
        given = torch.ones(2, 3), torch.zeros(2, 3), torch.ones(2, 4)
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(*given)
        torch.testing.assert_close(compiled, loss(*given))
