import mpmath
import pytest
import torch

from kldiv import GaussianNLL, LaplaceNLL, NegativeBinomialNLL, OptimalGaussianNLL, StudentTNLL


class TestGaussianNLL:
    def test_against_torch_distributions(self):
        mean, log_var, target = (torch.randn(4, 3, dtype=torch.float64) for _ in range(3))
        normal = torch.distributions.Normal
        torch.testing.assert_close(
            GaussianNLL(0.5, reduction="none")(mean, target),
            -normal(mean, torch.tensor(0.25).double().exp()).log_prob(target).sum(1),
        )
        torch.testing.assert_close(
            GaussianNLL(reduction="none")((mean, log_var), target),
            -normal(mean, torch.exp(0.5 * log_var)).log_prob(target).sum(1),
        )

    def test_the_learned_variance_goes_to_the_optimal_one(self):
        torch.manual_seed(0)
        term, target = GaussianNLL(learned=True), 3 * torch.randn(500, 4)
        optimizer = torch.optim.Adam(term.parameters(), lr=0.1)
        for _ in range(200):
            optimizer.zero_grad()
            term(torch.zeros_like(target), target).backward()
            optimizer.step()
        assert term.log_var.item() == pytest.approx(target.square().mean().log().item(), abs=1e-3)
        assert "log_var" in term.state_dict()

    def test_is_normalised(self):
        grid = torch.linspace(-30, 30, 20001, dtype=torch.float64)[:, None]
        density = torch.exp(-GaussianNLL(1.0, reduction="none")(torch.zeros_like(grid), grid))
        assert torch.trapezoid(density, grid[:, 0]).item() == pytest.approx(1.0, abs=1e-10)

    def test_extreme_log_variances_keep_their_quotient(self):
        value = GaussianNLL()((torch.zeros(1, 1), torch.full((1, 1), -100.0)), torch.full((1, 1), 1e-30))
        assert value.item() == pytest.approx(0.5 * (1.8378771 - 100), rel=1e-6)

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="not finite"):
            GaussianNLL(float("inf"))
        with pytest.raises(ValueError, match="sequence of 3"):
            GaussianNLL()([torch.zeros(2, 2)] * 3, torch.zeros(2, 2))

    def test_repr_shows_every_option(self):
        assert repr(GaussianNLL(learned=True)) == "GaussianNLL(log_var=0, learned=True, reduction='batchmean')"


class TestOptimalGaussianNLL:
    def test_no_other_variance_is_better_for_the_batch(self):
        mean, target = torch.randn(2, 8, 5, dtype=torch.float64)
        value = OptimalGaussianNLL()(mean, target)
        log_vars = torch.linspace(-3, 3, 4001, dtype=torch.float64).tolist()
        others = [GaussianNLL(log_var)(mean, target).item() for log_var in log_vars]
        assert value.item() <= min(others) + 1e-12
        assert value.item() == pytest.approx(min(others), abs=1e-5)

    def test_gradient_is_that_of_the_minimum(self):
        mean, target = torch.randn(2, 8, 5, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda m: OptimalGaussianNLL()(m, target), mean.requires_grad_())
        (gradient,) = torch.autograd.grad(OptimalGaussianNLL()(mean, target), mean)
        log_var = (target - mean).square().mean().log().item()
        (expected,) = torch.autograd.grad(GaussianNLL(log_var)(mean, target), mean)
        torch.testing.assert_close(gradient, expected)  # the envelope theorem

    def test_eval_mode_has_the_variance_of_training(self):
        torch.manual_seed(0)
        term = OptimalGaussianNLL(momentum=0.1)
        with pytest.raises(RuntimeError, match="no batch in training mode"):
            term.eval()(torch.zeros(2, 2), torch.zeros(2, 2))
        targets = [scale * torch.randn(4, 3) for scale in (1.0, 2.0, 3.0)]
        for target in targets:
            term.train()(torch.zeros(4, 3), target)
        tracked = torch.stack([t.square().mean() for t in targets]).mean()  # a plain mean at first
        torch.testing.assert_close(term.variance, tracked)
        other = torch.randn(4, 3)
        expected = GaussianNLL(tracked.log().item(), reduction="none")(torch.zeros(4, 3), other)
        torch.testing.assert_close(term.eval().per_example(torch.zeros(4, 3), other), expected)
        torch.testing.assert_close(term.train().tracked_per_example(torch.zeros(4, 3), other), expected)
        assert term.batches.item() == 3
        loaded = OptimalGaussianNLL()
        loaded.load_state_dict(term.state_dict())
        torch.testing.assert_close(loaded.eval().per_example(torch.zeros(4, 3), other), expected)

    def test_is_normalised_in_eval_mode(self):
        term = OptimalGaussianNLL()
        term(torch.zeros(1, 1).double(), torch.full((1, 1), 1.7).double())
        grid = torch.linspace(-30, 30, 20001, dtype=torch.float64)[:, None]
        density = torch.exp(-term.eval().per_example(torch.zeros_like(grid), grid))
        assert torch.trapezoid(density, grid[:, 0]).item() == pytest.approx(1.0, abs=1e-10)

    def test_missing_elements_are_not_in_the_variance(self):
        mean, target = (
            torch.zeros(2, 3, requires_grad=True),
            torch.tensor([[1.0, torch.nan, 3.0], [2.0, 2.0, torch.nan]]),
        )
        term = OptimalGaussianNLL(reduction="none")
        value = term(mean, target, mask=~target.isnan())
        assert term.variance.item() == pytest.approx((1 + 9 + 4 + 4) / 4)
        assert value.sum().item() == pytest.approx(4 * 0.5 * (1 + 1.8378771 + torch.tensor(4.5).log().item()))
        value.sum().backward()
        assert mean.grad.isfinite().all()

    def test_perfect_reconstructions_and_options(self):
        mean = torch.ones(2, 2, requires_grad=True)
        OptimalGaussianNLL()(mean, torch.ones(2, 2)).backward()
        assert mean.grad.isfinite().all()
        assert repr(OptimalGaussianNLL()) == (
            "OptimalGaussianNLL(momentum=0.01, min_log_var=-20.0, reduction='batchmean')"
        )
        with pytest.raises(ValueError, match="momentum=0"):
            OptimalGaussianNLL(0)
        with pytest.raises(ValueError, match="min_log_var=-inf"):
            OptimalGaussianNLL(min_log_var=-float("inf"))


class TestLaplaceNLL:
    def test_against_torch_distributions(self):
        location, log_scale, target = (torch.randn(4, 3, dtype=torch.float64) for _ in range(3))
        laplace = torch.distributions.Laplace
        torch.testing.assert_close(
            LaplaceNLL(0.5, reduction="none")(location, target),
            -laplace(location, torch.tensor(0.5).double().exp()).log_prob(target).sum(1),
        )
        torch.testing.assert_close(
            LaplaceNLL(reduction="none")((location, log_scale), target),
            -laplace(location, log_scale.exp()).log_prob(target).sum(1),
        )

    def test_is_normalised(self):
        grid = torch.linspace(-80, 80, 80001, dtype=torch.float64)[:, None]
        density = torch.exp(-LaplaceNLL(1.0, reduction="none")(torch.zeros_like(grid), grid))
        assert torch.trapezoid(density, grid[:, 0]).item() == pytest.approx(1.0, abs=1e-6)

    def test_extreme_scales_keep_their_quotient(self):
        value = LaplaceNLL()((torch.zeros(1, 1), torch.full((1, 1), -100.0)), torch.full((1, 1), 1e-40))
        assert value.item() == pytest.approx(0.6931472 - 100 + 1e-40 * 2.6881171e43, rel=1e-4)

    def test_options(self):
        assert repr(LaplaceNLL(learned=True)) == "LaplaceNLL(log_scale=0, learned=True, reduction='batchmean')"
        assert "log_scale" in LaplaceNLL(learned=True).state_dict()
        with pytest.raises(ValueError, match="log_scale=inf"):
            LaplaceNLL(float("inf"))


class TestTheTrackedVariance:
    def tracked(self, *batches, dtype=torch.float32, mask=None):
        term = OptimalGaussianNLL().to(dtype)
        for values in batches:
            x = torch.as_tensor(values, dtype=dtype).expand(4, 2)
            term(torch.zeros_like(x), x, mask=mask)
        return term

    def test_a_batch_that_overflows_or_is_padding_alone_leaves_it(self):
        term = self.tracked(2.0, float("inf"), 2.0)
        assert term.variance.item() == pytest.approx(4.0)
        assert term.batches.item() == 2
        term(torch.zeros(4, 2), torch.ones(4, 2), mask=torch.zeros(4, 2))
        term(torch.zeros(0, 2), torch.ones(0, 2))
        assert term.variance.item() == pytest.approx(4.0)
        term.eval()(torch.zeros(4, 2), torch.ones(4, 2))

    def test_it_is_tracked_in_single_precision(self):
        term = self.tracked(*[2.0] * 120, *[2.3] * 400, dtype=torch.bfloat16)
        assert term.variance.dtype == torch.float32
        assert term.variance.item() == pytest.approx(5.29, rel=0.02)

    def test_what_was_loaded_is_known(self):
        loaded = OptimalGaussianNLL().eval()
        loaded.load_state_dict(self.tracked(2.0).state_dict())
        assert loaded(torch.zeros(4, 2), torch.zeros(4, 2)).isfinite()


class TestStudentTNLL:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
    @pytest.mark.parametrize("df", [1e-3, 0.5, 1.0, 4.0, 59.0, 61.0, 1e5, 1e12])
    def test_against_fifty_digits(self, dtype, tolerance, df):
        term = StudentTNLL(df)
        for difference in (0.0, 1e-20, 1e-3, 0.7, 3.0, 1e3, 1e15, 1e30):
            for log_scale in (-30.0, -1.0, 0.0, 2.0, 30.0):
                given, t, s = (torch.tensor([[v]], dtype=dtype) for v in (0.0, difference, log_scale))
                leaves = given.requires_grad_(), s.requires_grad_()
                value = term(leaves, t)
                gradients = torch.autograd.grad(value, leaves)
                with mpmath.workdps(50):
                    nu, d, x = mpmath.mpf(df), mpmath.mpf(t.item()), mpmath.mpf(s.item())
                    ratio = d**2 / nu * mpmath.exp(-2 * x)
                    constant = mpmath.loggamma(nu / 2) - mpmath.loggamma((nu + 1) / 2) + mpmath.log(nu * mpmath.pi) / 2
                    truth = constant + x + (nu + 1) / 2 * mpmath.log1p(ratio)
                    slope = (nu + 1) * d / (nu * mpmath.exp(2 * x) + d**2)
                    of_scale = 1 - (nu + 1) * ratio / (1 + ratio)
                size = abs(constant) + abs(x) + (nu + 1) / 2 * mpmath.log1p(ratio)
                if size > 1e38:
                    continue
                assert abs(value.item() - truth) <= tolerance * size, (difference, log_scale)
                assert abs(gradients[0].item() + slope) <= 3 * tolerance * max(slope, 1e-37), (difference, log_scale)
                assert abs(gradients[1].item() - of_scale) <= 3 * tolerance * (1 + abs(1 - of_scale))

    def test_against_torch_distributions_and_the_normal_limit(self):
        mean, log_scale, target = (torch.randn(4, 3, dtype=torch.float64) for _ in range(3))
        expected = -torch.distributions.StudentT(2.5, mean, log_scale.exp()).log_prob(target).sum(1)
        torch.testing.assert_close(StudentTNLL(2.5, reduction="none")((mean, log_scale), target), expected)
        torch.testing.assert_close(
            StudentTNLL(float("inf"), 0.5)(mean, target), GaussianNLL(1.0)(mean, target), rtol=1e-12, atol=0
        )

    def test_is_normalised(self):
        grid = torch.linspace(-4000, 4000, 800001, dtype=torch.float64)[:, None]
        density = torch.exp(-StudentTNLL(3.0, 0.5, reduction="none")(torch.zeros_like(grid), grid))
        assert torch.trapezoid(density, grid[:, 0]).item() == pytest.approx(1.0, abs=1e-8)

    def test_options(self):
        assert repr(StudentTNLL(3, learned=True)) == (
            "StudentTNLL(df=3, log_scale=0, learned=True, reduction='batchmean')"
        )
        for df in (0.0, -1.0, float("nan")):
            with pytest.raises(ValueError, match="must be positive"):
                StudentTNLL(df)
        assert StudentTNLL(1.0).mean(torch.zeros(2, 3)).isnan().all()


SCALED = {
    "GaussianNLL": GaussianNLL,
    "LaplaceNLL": LaplaceNLL,
    "StudentTNLL": lambda *given, **options: StudentTNLL(3.0, *given, **options),
    "NegativeBinomialNLL": NegativeBinomialNLL,
}


@pytest.mark.parametrize("make", SCALED.values(), ids=SCALED)
class TestAScaleForEachFeature:
    def test_is_that_of_the_decoder(self, make):
        location, target, scale = torch.randn(5, 3), torch.poisson(torch.full((5, 3), 2.0)), torch.randn(3)
        expected = make(reduction="none")((location, scale.expand(5, 3)), target)
        for term in (make(scale, reduction="none"), make(scale, learned=True, reduction="none")):
            torch.testing.assert_close(term(location, target), expected)
        torch.testing.assert_close(make(reduction="none")((location, scale), target), expected)

    def test_learned_ones_have_a_dimension_and_a_gradient(self, make):
        for given, shape in ((0.3, (1,)), (torch.tensor(0.3), (1,)), (torch.zeros(3), (3,))):
            term = make(given, learned=True)
            (parameter,) = term.parameters()
            assert parameter.shape == shape
            term(torch.randn(5, 3), torch.ones(5, 3)).backward()
            assert parameter.grad.isfinite().all()

    def test_fixed_ones_move_with_the_module_and_are_no_part_of_a_checkpoint(self, make):
        term = make(torch.zeros(3))
        assert not list(term.parameters())
        assert not term.state_dict()
        (buffer,) = term.double().buffers()
        assert buffer.dtype == torch.float64

    def test_checkpoints_of_one_without_dimensions_load(self, make):
        term = torch.nn.Sequential(make(learned=True))
        (name,) = term.state_dict()
        term.load_state_dict({name: torch.tensor(0.7)})
        assert term.state_dict()[name].tolist() == [pytest.approx(0.7)]
        features = torch.nn.Sequential(make(torch.zeros(3), learned=True))
        features.load_state_dict({name: torch.tensor(0.7)})
        assert features.state_dict()[name].tolist() == [pytest.approx(0.7)] * 3

    def test_other_features_raise(self, make):
        with pytest.raises(ValueError, match=r"\(3,\).*target \(5, 4\)"):
            make(torch.zeros(3))(torch.zeros(5, 4), torch.ones(5, 4))
        with pytest.raises(ValueError, match="one for each feature"):
            make(torch.zeros(5))(torch.zeros(5), torch.ones(5))  # five examples without features
        with pytest.raises(ValueError, match="not finite"):
            make(torch.tensor([0.0, torch.nan]))
        channels = make(torch.zeros(3, 1, 1))
        assert channels(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)).isfinite()
