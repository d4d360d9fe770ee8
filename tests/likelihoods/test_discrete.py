import math

import mpmath
import pytest
import scipy.stats
import torch
from torch.nn import functional

from kldiv import (
    CategoricalNLL,
    DiscretizedLogisticMixtureNLL,
    NegativeBinomialNLL,
    PoissonNLL,
    bits_per_dimension,
)


class TestCategoricalNLL:
    def test_is_cross_entropy_in_either_layout(self):
        logits, target = torch.randn(4, 5, 3, 2), torch.randint(5, (4, 3, 2))
        expected = functional.cross_entropy(logits, target, reduction="none").sum((1, 2))
        torch.testing.assert_close(CategoricalNLL(dim=1, reduction="none")(logits, target), expected)
        torch.testing.assert_close(CategoricalNLL(reduction="none")(logits.movedim(1, -1), target), expected)

    def test_is_normalised(self):
        logits = torch.randn(50, 7)
        mass = sum(torch.exp(-CategoricalNLL(reduction="none")(logits, torch.full((50,), k))) for k in range(7))
        torch.testing.assert_close(mass, torch.ones(50))

    def test_a_padded_sequence(self):
        logits = torch.randn(2, 4, 5, requires_grad=True)
        target = torch.randint(5, (2, 4))
        mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
        broken = target.masked_fill(mask == 0, -100)  # as loaders pad
        full = functional.cross_entropy(logits.movedim(-1, 1), target, reduction="none")
        value = CategoricalNLL(reduction="none")(logits, broken, mask=mask)
        torch.testing.assert_close(value, (full * mask).sum(1))
        value.sum().backward()
        assert (logits.grad[0, 2:] == 0).all()

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match=r"output \(4, 5, 3\) without its dimension -1.*target \(4, 3\)"):
            CategoricalNLL()(torch.zeros(4, 5, 3), torch.zeros(4, 3, dtype=torch.long))
        with pytest.raises(ValueError, match=r"target\.long\(\)"):
            CategoricalNLL()(torch.zeros(4, 3), torch.zeros(4))
        with pytest.raises(ValueError, match="dim=0"):
            CategoricalNLL(0)
        with pytest.raises(ValueError, match="no dimension dim=2"):
            CategoricalNLL(2)(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))


class TestPoissonNLL:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
    def test_against_fifty_digits(self, dtype, tolerance):
        for count in (0.0, 1.0, 2.0, 17.0, 1e3, 1e6):
            for log_rate in (-30.0, -1.0, 0.0, 2.5, 6.9, 13.8155):
                given, t = (torch.tensor([v], dtype=dtype) for v in (log_rate, count))
                value = PoissonNLL("sum")(given, t).item()
                with mpmath.workdps(50):
                    x, k = mpmath.mpf(given.item()), mpmath.mpf(t.item())
                    truth = mpmath.exp(x) - k * x + mpmath.loggamma(k + 1)
                # the log-rate's own rounding, times its derivative e^l - t, is no error of ours
                assert abs(value - truth) <= tolerance * truth, (count, log_rate)

    def test_is_normalised(self):
        log_rate = torch.linspace(-3, 3, 20, dtype=torch.float64)[:, None]
        mass = sum(torch.exp(-PoissonNLL("none")(log_rate, torch.full_like(log_rate, k))) for k in range(150))
        torch.testing.assert_close(mass, torch.ones(20).double())

    def test_gradient_is_rate_minus_count_everywhere(self):
        log_rate = torch.tensor([[-80.0, -1.0, 0.0, 5.0, 20.0]], dtype=torch.float64, requires_grad=True)
        for count in (0.0, 3.0, 1e4):
            (gradient,) = torch.autograd.grad(PoissonNLL("sum")(log_rate, torch.full_like(log_rate, count)), log_rate)
            torch.testing.assert_close(gradient, log_rate.detach().exp() - count)


class TestNegativeBinomialNLL:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_against_fifty_digits(self, dtype):
        for count in (0.0, 1.0, 40.0, 1e4):
            for log_mean in (-5.0, 0.0, 3.0, 9.0):
                for log_theta in (-20.0, -2.0, 0.0, 2.3, 2.31, 10.0, 25.0):
                    m, h, t = (torch.tensor([[v]], dtype=dtype) for v in (log_mean, log_theta, count))
                    value = NegativeBinomialNLL(reduction="sum")((m, h), t).item()
                    with mpmath.workdps(60):
                        mu, theta, k = mpmath.exp(m.item()), mpmath.exp(h.item()), mpmath.mpf(t.item())
                        truth = mpmath.loggamma(theta) + mpmath.loggamma(k + 1) - mpmath.loggamma(k + theta)
                        truth += theta * mpmath.log1p(mu / theta) + k * mpmath.log1p(theta / mu)
                    tolerance = 1e-6 if dtype == torch.float32 else 1e-10
                    assert abs(value - truth) <= tolerance * max(truth, 1e-3), (count, log_mean, log_theta)

    def test_against_scipy_and_the_poisson_limit(self):
        target = torch.arange(12.0).double()[:, None]
        log_mean, theta = torch.full_like(target, 1.2), 2.7
        expected = -scipy.stats.nbinom.logpmf(target, theta, theta / (theta + math.exp(1.2)))
        value = NegativeBinomialNLL(math.log(theta), reduction="none")(log_mean, target)
        torch.testing.assert_close(value, torch.as_tensor(expected)[:, 0])
        limit = NegativeBinomialNLL(30.0, reduction="none")(log_mean, target)
        torch.testing.assert_close(limit, PoissonNLL("none")(log_mean, target))

    def test_gradients(self):
        log_mean, log_theta = (torch.randn(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
        target = torch.tensor([[0.0, 3.0], [50.0, 1.0], [7.0, 0.0]]).double()
        term = NegativeBinomialNLL(reduction="sum")
        assert torch.autograd.gradcheck(lambda m, h: term((m, h), target), (log_mean, log_theta))
        assert torch.autograd.gradcheck(lambda m, h: term((m, h + 4), target), (log_mean, log_theta))
        extreme = torch.tensor([[-60.0, 60.0]], requires_grad=True)
        for given in (-60.0, 0.0, 60.0):
            value = term((extreme, torch.full_like(extreme, given)), torch.tensor([[2.0, 2.0]]))
            (gradient,) = torch.autograd.grad(value, extreme)
            assert gradient.isfinite().all()

    def test_options(self):
        term = NegativeBinomialNLL(learned=True)
        term(torch.zeros(4, 2), torch.ones(4, 2)).backward()
        assert term.log_dispersion.grad.isfinite()
        assert repr(term) == "NegativeBinomialNLL(log_dispersion=0, learned=True, reduction='batchmean')"
        with pytest.raises(ValueError, match="sequence of 3"):
            term([torch.zeros(4, 2)] * 3, torch.ones(4, 2))
        with pytest.raises(ValueError, match="not finite"):
            NegativeBinomialNLL(math.inf)


class TestDiscretizedLogisticMixtureNLL:
    def test_all_levels_sum_to_one(self):
        torch.manual_seed(0)
        for spread in (0.3, 3.0, 30.0):
            output = spread * torch.randn(1, 3 * 4 * 3, 2)
            levels = torch.arange(256.0) / 255
            target = levels[:, None, None].expand(256, 3, 2)
            nats = DiscretizedLogisticMixtureNLL(4).per_element((output.expand(256, -1, -1),), target)
            torch.testing.assert_close(torch.exp(-nats.double()).sum(0), torch.ones(3, 2).double(), rtol=1e-5, atol=0)

    def test_against_fifty_digits(self):
        term = DiscretizedLogisticMixtureNLL(1, levels=256)
        for level in (0, 1, 100, 254, 255):
            for mean in (0.0, 0.39, 5.0):
                for log_scale in (-9.0, -4.0, 0.0, 6.0):
                    output = torch.tensor([[0.0, mean, log_scale]], dtype=torch.float64)[..., None]
                    value = term(output, torch.tensor([[[level / 255]]], dtype=torch.float64)).item()
                    with mpmath.workdps(400):
                        x, s = mpmath.mpf(level) / 255, mpmath.exp(log_scale)

                        def cdf(at, mean=mean, s=s):
                            return 1 / (1 + mpmath.exp(-(at - mpmath.mpf(mean)) / s))

                        up = 1 if level == 255 else cdf(x + mpmath.mpf(1) / 510)
                        low = 0 if level == 0 else cdf(x - mpmath.mpf(1) / 510)
                        truth = -mpmath.log(up - low)
                    # beside t = level/255, which is rounded
                    assert abs(value - truth) <= 1e-9 * max(1, truth), (level, mean, log_scale)

    def test_channels_have_mixtures_of_their_own(self):
        term = DiscretizedLogisticMixtureNLL(2, reduction="none")
        output, target = torch.randn(3, 2 * 3 * 2, 4, 4), torch.randint(256, (3, 2, 4, 4)) / 255
        by_channel = sum(
            term(output.view(3, 3, 2, 2, 4, 4)[:, :, :, c].reshape(3, 6, 4, 4), target[:, [c]]) for c in range(2)
        )
        torch.testing.assert_close(term(output, target), by_channel)

    def test_gradients_are_finite_wherever_a_network_goes(self):
        torch.manual_seed(0)
        for scale in (1.0, 8.0, 20.0):  # beyond, the nats themselves are no float32
            output = (scale * torch.randn(64, 6, 5)).requires_grad_()
            value = DiscretizedLogisticMixtureNLL(2)(output, torch.randint(256, (64, 1, 5)) / 255)
            assert value.isfinite()
            (gradient,) = torch.autograd.grad(value, output)
            assert gradient.isfinite().all()

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match=r"output \(4, 6, 8\) must be \(N, 3 \* 2 \* C, ...\).*target \(4, 3, 8\)"):
            DiscretizedLogisticMixtureNLL(2)(torch.zeros(4, 6, 8), torch.zeros(4, 3, 8))
        with pytest.raises(ValueError, match="levels=1"):
            DiscretizedLogisticMixtureNLL(2, levels=1)


def test_bits_per_dimension():
    logits = torch.zeros(4, 3, 8, 8, 256)
    nats = CategoricalNLL(reduction="none")(logits, torch.zeros(4, 3, 8, 8, dtype=torch.long))
    torch.testing.assert_close(bits_per_dimension(nats, 3 * 8 * 8), torch.full((4,), 8.0))
    with pytest.raises(ValueError, match="dims=0"):
        bits_per_dimension(nats, 0)
