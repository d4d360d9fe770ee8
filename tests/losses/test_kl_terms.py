import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Categorical,
    Gamma,
    Independent,
    Laplace,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
)

from kldiv import (
    BalancedKLLoss,
    BernoulliNLL,
    DiagonalNormal,
    ELBOLoss,
    ExactKLLoss,
    GaussianKLLoss,
    MixturePrior,
    MonteCarloKLLoss,
    TotalCorrelationKLLoss,
)
from kldiv.functional import kl_normal
from tests.marks import slow, sweep


def mixture(*event):
    return MixtureSameFamily(
        Categorical(logits=torch.zeros(2).double()),
        Independent(Normal(torch.stack([torch.zeros(event), torch.ones(event)]).double(), 1.0), len(event)),
    )


class TestExactKLLoss:
    def test_every_way_to_write_a_diagonal_posterior_is_the_same(self, parameters):
        mean, log_var = parameters
        normal = Normal(mean, torch.exp(0.5 * log_var))
        ways = [DiagonalNormal(mean, log_var, dims) for dims in range(3)] + [Independent(normal, d) for d in range(3)]
        for posterior in ways:
            torch.testing.assert_close(ExactKLLoss().per_dimension(posterior), kl_normal(mean, log_var))
            torch.testing.assert_close(ExactKLLoss("none")(posterior), kl_normal(mean, log_var).sum((1, 2)))
            for prior in (Normal(torch.zeros(2).double(), 1.0), DiagonalNormal(torch.zeros_like(mean), mean * 0, 2)):
                torch.testing.assert_close(
                    ExactKLLoss().per_example(posterior, prior), kl_normal(*parameters).sum((1, 2))
                )

    def test_uniform_prior_for_categories(self):
        posterior = Categorical(logits=torch.randn(4, 3, 5))
        expected = (posterior.probs * (posterior.logits + torch.tensor(5.0).log())).sum(-1)
        torch.testing.assert_close(ExactKLLoss().per_dimension(posterior), expected)

    def test_a_full_covariance_has_no_dimensions(self):
        posterior = MultivariateNormal(torch.zeros(4, 3), torch.eye(3) * 2)
        prior = MultivariateNormal(torch.zeros(3), torch.eye(3))
        expected = 3 * 0.5 * (2 - 1 - torch.tensor(2.0).log())
        torch.testing.assert_close(ExactKLLoss("none")(posterior, prior), expected.expand(4))
        with pytest.raises(ValueError, match="per_example"):
            ExactKLLoss().per_dimension(posterior, prior)

    def test_what_has_no_closed_form_shows_the_monte_carlo_term(self, parameters):
        with pytest.raises(NotImplementedError, match=r"ELBOLoss\(..., kl=kldiv.MonteCarloKLLoss\(\)\)"):
            ExactKLLoss()(DiagonalNormal(*parameters, event_dim=2), mixture(3, 2))

    def test_other_supports_need_a_prior(self):
        with pytest.raises(ValueError, match="prior=Gamma"):
            ExactKLLoss()(Gamma(torch.ones(2, 3), 1.0))

    def test_shapes(self, parameters):
        with pytest.raises(ValueError, match="dimension 0 of the batch is the example"):
            ExactKLLoss()(
                MultivariateNormal(torch.zeros(3), torch.eye(3)), MultivariateNormal(torch.zeros(3), torch.eye(3))
            )
        with pytest.raises(ValueError, match=r"\(5, 4, 3, 2\) must broadcast to the posterior's, \(4, 3, 2\)"):
            ExactKLLoss()(DiagonalNormal(*parameters), Normal(torch.zeros(5, 4, 3, 2), 1.0))
        with pytest.raises(TypeError, match=r"DiagonalNormal\(mean, log_var\)"):
            ExactKLLoss()(*parameters)


class TestMonteCarloKLLoss:
    def test_a_given_sample_against_the_hand_written_difference(self, parameters):
        posterior = DiagonalNormal(*parameters)
        base, prior = Normal(posterior.mean, posterior.stddev), Normal(torch.ones(2).double(), 2.0)
        sample = posterior.rsample((5,))
        expected = (base.log_prob(sample) - prior.log_prob(sample)).mean(0)
        term = MonteCarloKLLoss(num_samples=2)
        torch.testing.assert_close(term.per_dimension(posterior, prior, sample), expected)
        torch.testing.assert_close(term(posterior, prior, sample=sample), expected.sum() / 4)
        expected = base.log_prob(sample[0]) - prior.log_prob(sample[0])
        torch.testing.assert_close(term.per_dimension(posterior, prior, sample[0]), expected)

    def test_value_and_gradient_are_unbiased(self, parameters):
        # 40,000 draws; the 4-standard-error gate has a false-alarm rate of 6e-5 an entry, 24 entries and one seed
        torch.manual_seed(0)
        mean, log_var = (p[0, :2].clone().requires_grad_() for p in parameters)
        draws = 40_000
        value = MonteCarloKLLoss().per_dimension(DiagonalNormal(mean.expand(draws, 2, 2), log_var.expand(draws, 2, 2)))
        error = value.std(0) / draws**0.5
        assert ((value.mean(0) - kl_normal(mean, log_var)).abs() < 4 * error).all()
        estimates = torch.autograd.grad(value.mean(0).sum(), (mean, log_var))
        truths = torch.autograd.grad(kl_normal(mean, log_var).sum(), (mean, log_var))
        for estimate, truth in zip(estimates, truths, strict=True):
            # one pathwise gradient has a standard deviation of order exp(log_var) (1 + |mean|)
            assert ((estimate - truth).abs() < 4 * 10 / draws**0.5).all()

    def test_a_mixture_prior_is_estimated_per_example(self, parameters):
        posterior, prior = DiagonalNormal(*parameters, event_dim=2), mixture(3, 2)
        sample = posterior.rsample((2,))
        expected = (posterior.log_prob(sample) - prior.log_prob(sample)).mean(0)
        torch.testing.assert_close(MonteCarloKLLoss().per_example(posterior, prior, sample), expected)
        flat = Normal(posterior.mean, posterior.stddev)  # the posterior's own event dimensions do not matter
        torch.testing.assert_close(MonteCarloKLLoss().per_example(flat, prior, sample), expected)
        with pytest.raises(ValueError, match=r"prior, MixtureSameFamily.*per_example"):
            MonteCarloKLLoss().per_dimension(posterior, prior)

    def test_a_full_covariance_against_the_standard_normal(self):
        torch.manual_seed(0)
        posterior = MultivariateNormal(torch.ones(1000, 3), torch.eye(3))
        assert MonteCarloKLLoss(num_samples=50)(posterior).item() == pytest.approx(1.5, abs=0.05)

    def test_a_sample_without_gradient_raises_where_one_is_wanted(self, parameters):
        mean = parameters[0].requires_grad_()
        posterior = DiagonalNormal(mean, parameters[1])
        with pytest.raises(ValueError, match="rsample"):
            MonteCarloKLLoss()(posterior, sample=posterior.sample())
        with torch.no_grad():
            MonteCarloKLLoss()(posterior, sample=posterior.sample())

    def test_bad_options(self, parameters):
        for options, says in (
            ({"num_samples": 0}, "num_samples=0"),
            ({"value": "k9"}, "value='k9'"),
            ({"gradient": "reinforce"}, "gradient='reinforce'"),
            ({"sampler": "latin"}, "sampler='latin'"),
            ({"reduction": "mean"}, "batchmean"),
        ):
            with pytest.raises(ValueError, match=says):
                MonteCarloKLLoss(**options)
        for gradient in ("score", "adaptive"):
            with pytest.raises(ValueError, match="one Sobol scramble"):
                MonteCarloKLLoss(64, gradient=gradient, sampler="sobol")
        with pytest.raises(ValueError, match="must be even"):
            MonteCarloKLLoss(3, sampler="antithetic")(DiagonalNormal(*parameters))
        with pytest.raises(ValueError, match=r"sample has the shape \(4, 2\)"):
            MonteCarloKLLoss()(DiagonalNormal(*parameters), sample=torch.zeros(4, 2))
        with pytest.raises(ValueError, match="no rsample"):
            MonteCarloKLLoss()(Categorical(logits=torch.zeros(4, 3, requires_grad=True)))
        with pytest.raises(TypeError, match="posterior is a Tensor"):
            MonteCarloKLLoss()(torch.zeros(4, 2), sample=torch.zeros(4, 2))

    @pytest.mark.parametrize("gradient", ["pathwise", "sticking_the_landing", "adaptive", "score"])
    def test_a_given_sample_under_every_gradient(self, parameters, gradient):
        """Its leading dimensions count, not num_samples; the mean over many gives the gradient of the KL."""
        mean, log_var = (p.requires_grad_() for p in parameters)
        posterior, prior = DiagonalNormal(mean, log_var), Normal(torch.zeros(2).double(), 2.0)
        sample = posterior.sample((200, 50)) if gradient == "score" else posterior.rsample((200, 50))
        value = MonteCarloKLLoss(1, gradient=gradient).per_dimension(posterior, prior, sample)
        truth = ExactKLLoss().per_dimension(posterior, prior)
        assert ((value - truth) / truth.clamp(min=1)).abs().max() < 0.1
        found = torch.autograd.grad(value.sum(), (mean, log_var))
        expected = torch.autograd.grad(truth.sum(), (mean, log_var))
        for estimate, each in zip(found, expected, strict=True):
            # 10,000 draws of a spread that is 10 at most; of the score several times that
            torch.testing.assert_close(estimate, each, rtol=0, atol=2.0 if gradient == "score" else 0.5)

    def test_a_given_sample_must_be_enough(self, parameters):
        posterior = DiagonalNormal(parameters[0].requires_grad_(), parameters[1])
        for gradient, needed in (("score", 2), ("adaptive", 3)):
            term = MonteCarloKLLoss(8, gradient=gradient)
            term(posterior)
            with pytest.raises(ValueError, match=rf"needs at least {needed} of them; here are 1"):
                term(posterior, sample=posterior.rsample())
        # through the sample: refused for every gradient that goes there, not for the one that does not
        for gradient in ("pathwise", "sticking_the_landing", "adaptive"):
            with pytest.raises(ValueError, match=rf"carries no gradient.*gradient='{gradient}'.*rsample\(\)"):
                MonteCarloKLLoss(gradient=gradient)(posterior, sample=posterior.sample((4,)))
        MonteCarloKLLoss(gradient="score")(posterior, sample=posterior.sample((4,))).backward()

    @pytest.mark.parametrize("sampler", ["iid", "antithetic", "sobol"])
    def test_samplers_are_per_dimension_and_per_example(self, parameters, sampler):
        posterior, prior = DiagonalNormal(*parameters, event_dim=2), Laplace(torch.zeros(3, 2).double(), 1.0)
        torch.manual_seed(0)
        term = MonteCarloKLLoss(1024, sampler=sampler, reduction="none")
        assert term.per_dimension(posterior, prior).shape == (4, 3, 2)
        truth = ExactKLLoss("none")(posterior, prior)
        assert ((term(posterior, prior) / truth) - 1).abs().max() < (0.01 if sampler == "sobol" else 0.1)
        mixed = MonteCarloKLLoss(64, sampler=sampler, reduction="none")(posterior, mixture(3, 2))
        assert mixed.shape == (4,)

    @pytest.mark.parametrize(
        "options",
        sweep(
            [
                {},
                {"gradient": "sticking_the_landing"},
                {"gradient": "score"},
                {"value": "k3"},
                {"sampler": "antithetic"},
            ],
            [{}, {"gradient": "score"}],
        ),
        ids=str,
    )
    def test_compiles_whole(self, options):
        mean, log_var = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
        term, mean = MonteCarloKLLoss(4, **options), mean.requires_grad_()

        def loss(mean, log_var):
            return term(DiagonalNormal(mean, log_var))

        values = []
        for function in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
            torch.manual_seed(0)
            value = function(mean, log_var)
            values.append((value.detach(), *torch.autograd.grad(value, mean)))
        torch.testing.assert_close(*values)

    @slow
    @pytest.mark.parametrize("options", [{"sampler": "sobol"}, {"gradient": "adaptive"}], ids=str)
    def test_what_draws_in_python_compiles_around_it(self, options):
        mean, log_var = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
        mean = mean.requires_grad_()
        term = MonteCarloKLLoss(4, **options)
        compiled = torch.compile(lambda m, v: term(DiagonalNormal(m, v)), backend="aot_eager")
        torch.manual_seed(0)
        value = compiled(mean, log_var)
        torch.manual_seed(0)
        torch.testing.assert_close(value, term(DiagonalNormal(mean, log_var)))

    def test_repr_shows_every_option(self):
        assert repr(MonteCarloKLLoss()) == (
            "MonteCarloKLLoss(num_samples=1, value='k1', gradient='pathwise', sampler='iid', reduction='batchmean')"
        )


class TestHalfPrecision:
    def test_monte_carlo_draws_in_float32(self):
        # 4 standard errors: a false-alarm rate of 6e-5, one seed
        torch.manual_seed(0)
        mean, log_var = (torch.full((64, 16), value).bfloat16() for value in (3.0, -12.0))
        posterior = DiagonalNormal(mean, log_var)
        value = MonteCarloKLLoss(200, reduction="none")(posterior)
        assert value.dtype == torch.float32
        assert abs(value.mean() - ExactKLLoss()(posterior)) < 4 * value.std() / 8

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_torch_closed_forms_compute_in_float32(self, dtype):
        logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
        for posterior in (Categorical(logits=logits), Bernoulli(logits=logits)):
            prior = type(posterior)(logits=torch.zeros(3))
            value = ExactKLLoss("none")(posterior, prior)
            wide = ExactKLLoss("none")(type(posterior)(logits=posterior.logits.float()), prior)
            assert value.dtype == torch.float32
            # torch has rounded the normalised logits to the dtype, and no two ways to normalise them again agree closer
            torch.testing.assert_close(value, wide, rtol=0, atol=4 * torch.finfo(dtype).eps)
        value = MonteCarloKLLoss()(
            Normal((torch.zeros(4, 3) + 200).to(dtype), torch.ones(4, 3).to(dtype)),
            Normal(torch.zeros(3).to(dtype), torch.full((3,), 0.5).to(dtype)),
        )
        assert value.dtype == torch.float32
        assert value.isfinite()


def test_extreme_log_variances():
    posterior = DiagonalNormal(torch.zeros(64, 4), torch.full((64, 4), -200.0))
    torch.manual_seed(0)
    assert MonteCarloKLLoss(50)(posterior).item() == pytest.approx(ExactKLLoss()(posterior).item(), rel=1e-2)


class TestBalancedKLLoss:
    def pair(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        leaves = [torch.randn(4, 3, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(4)]
        return leaves, DiagonalNormal(*leaves[:2]), DiagonalNormal(*leaves[2:])

    @pytest.mark.parametrize("prior_weight", [0.0, 0.3, 0.8, 1.0])
    def test_the_value_is_the_kl_and_the_gradients_are_shared_out(self, prior_weight):
        leaves, posterior, prior = self.pair()
        balanced, plain = BalancedKLLoss(prior_weight)(posterior, prior), ExactKLLoss()(posterior, prior)
        assert balanced.item() == plain.item()
        found, expected = (torch.autograd.grad(loss, leaves) for loss in (balanced, plain))
        for k, share in enumerate([1 - prior_weight] * 2 + [prior_weight] * 2):
            torch.testing.assert_close(found[k], share * expected[k])

    @pytest.mark.filterwarnings("ignore:the output depends on no parameter")
    def test_per_dimension_and_inside_an_elbo(self):
        _, posterior, prior = self.pair()
        torch.testing.assert_close(
            BalancedKLLoss().per_dimension(posterior, prior), ExactKLLoss().per_dimension(posterior, prior)
        )
        terms = ELBOLoss(BernoulliNLL(), BalancedKLLoss())(torch.zeros(4, 8), torch.ones(4, 8), posterior, prior)
        torch.testing.assert_close(terms.kl, ExactKLLoss()(posterior, prior))

    def test_every_kind_of_distribution_is_detached(self):
        leaves, _, _ = self.pair()
        positive = [leaf.exp() for leaf in leaves]
        logits = leaves[0][:, None].expand(4, 2, 3)
        for posterior, prior in (
            (Gamma(*positive[:2]), Gamma(*positive[2:])),
            (Independent(Normal(leaves[0], positive[1]), 1), Independent(Normal(leaves[2], positive[3]), 1)),
            (OneHotCategorical(logits=logits), OneHotCategorical(logits=leaves[2][:, None])),
            (Bernoulli(torch.sigmoid(leaves[0])), Bernoulli(logits=leaves[2])),
            (MultivariateNormal(leaves[0], torch.diag_embed(positive[1])), MultivariateNormal(leaves[2], torch.eye(3))),
        ):
            posterior_only = BalancedKLLoss(0.0)(posterior, prior)
            gradients = torch.autograd.grad(posterior_only, leaves[2:], allow_unused=True, retain_graph=True)
            assert all(gradient is None or not gradient.any() for gradient in gradients)
            assert torch.autograd.grad(posterior_only, leaves[0], retain_graph=True)[0].abs().sum() > 0
            prior_only = BalancedKLLoss(1.0)(posterior, prior)
            gradients = torch.autograd.grad(prior_only, leaves[:2], allow_unused=True, retain_graph=True)
            assert all(gradient is None or not gradient.any() for gradient in gradients)

    def test_a_monte_carlo_term_with_the_decoders_sample(self):
        prior, (leaves, posterior, _) = MixturePrior(3, 3)(), self.pair()
        sample = posterior.rsample()
        term, plain = BalancedKLLoss(0.5, MonteCarloKLLoss()), MonteCarloKLLoss()
        found, expected = (t(posterior, prior, sample) for t in (term, plain))
        assert found.item() == pytest.approx(expected.item(), rel=1e-12)
        of = [*leaves[:2], prior.component_distribution.mean]
        gradients = (torch.autograd.grad(value, of, retain_graph=True) for value in (found, expected))
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, 0.5 * other)
        torch.manual_seed(0)
        term(posterior, prior).backward()

    def test_an_infinite_divergence_stays_one(self):
        posterior = Normal(torch.zeros(2, 1), 1.0)
        far = Normal(torch.full((2, 1), 1e30), 1e-30)
        assert BalancedKLLoss(0.8)(posterior, far).item() == torch.inf

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match=r"prior_weight=1\.5"):
            BalancedKLLoss(1.5)
        with pytest.raises(TypeError, match=r"DiagonalNormal\(mean, log_var\)"):
            BalancedKLLoss()(torch.zeros(2, 2), torch.zeros(2, 2))
        assert "prior_weight=0.8, reduction='batchmean'" in repr(BalancedKLLoss())

    @slow
    def test_compiles_whole(self):
        leaves, _, _ = self.pair()

        def loss(*leaves):
            posterior, prior = (DiagonalNormal(*leaves[k : k + 2], validate_args=False) for k in (0, 2))
            return BalancedKLLoss()(posterior, prior)

        torch.compiler.reset()
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*leaves), loss(*leaves))
        found, expected = (torch.autograd.grad(f(*leaves), leaves) for f in (compiled, loss))
        torch.testing.assert_close(found, expected)
        with torch._dynamo.config.patch(error_on_recompile=True):
            compiled(*(leaf.detach().clone().requires_grad_() for leaf in leaves))

    @pytest.mark.filterwarnings("ignore:the output depends on no parameter")
    def test_a_term_that_weighs_its_parts_keeps_its_kl(self):
        _, posterior, prior = self.pair()
        sample = posterior.rsample()
        term = BalancedKLLoss(0.5, TotalCorrelationKLLoss(100, total_correlation=6.0))
        terms = ELBOLoss(BernoulliNLL(), term)(torch.zeros(4, 8), torch.ones(4, 8), posterior, prior, sample=sample)
        torch.testing.assert_close(terms.kl, MonteCarloKLLoss()(posterior, prior, sample))
        with pytest.raises(ValueError, match="no KL of one dimension"):
            term.per_dimension(posterior, prior, sample)
        with pytest.raises(TypeError, match="GaussianKLLoss, which is not called with distributions"):
            BalancedKLLoss(kl=GaussianKLLoss())
