import math

import mpmath
import pytest
import scipy.stats
import torch

from kldiv import NegativeBinomialNLL, PoissonNLL, ZeroInflatedNegativeBinomialNLL


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


def log_pmf(log_mean, log_theta, count):
    """ln NB(count) at 60 digits; of a dispersion that is infinite the Poisson distribution's."""
    mu, k = mpmath.exp(log_mean), mpmath.mpf(count)
    if log_theta == math.inf:
        return k * mpmath.log(mu) - mu - mpmath.loggamma(k + 1)
    theta = mpmath.exp(log_theta)
    of_zeros = -theta * mpmath.log1p(mu / theta)
    if k == 0:
        return of_zeros
    rising = sum(mpmath.log(theta + j) for j in range(count)) - mpmath.loggamma(k + 1)
    return rising + of_zeros - k * mpmath.log1p(theta / mu)


class TestTheEndsOfTheNegativeBinomial:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("log_theta", [-1e3, -700.0, -80.0, 80.0, 590.0, 610.0, 1e3, math.inf])
    def test_against_many_digits(self, dtype, log_theta):
        for log_mean in (-1e3, -80.0, 0.0, 5.0):
            for count in (0, 1, 7):
                m, h, t = (torch.tensor([[v]], dtype=dtype) for v in (log_mean, log_theta, count))
                m.requires_grad_()
                value = NegativeBinomialNLL()((m, h), t)
                (gradient,) = torch.autograd.grad(value, m)
                with mpmath.workdps(1000):
                    truth = -log_pmf(mpmath.mpf(log_mean), log_theta, count)
                    mu = mpmath.exp(mpmath.mpf(log_mean))
                    theta = mpmath.exp(mpmath.mpf(log_theta))
                    slope = (mu - count) / (1 + (mu / theta if log_theta < math.inf else 0))
                tolerance = 1e-6 if dtype == torch.float32 else 1e-10
                assert abs(value.item() - truth) <= tolerance * max(1e-30, truth), (log_mean, count)
                assert abs(gradient.item() - slope) <= tolerance * max(1e-30, abs(slope), count), (log_mean, count)

    def test_a_mean_of_zero(self):
        log_mean = torch.tensor([[-math.inf, -math.inf]], requires_grad=True)
        each = NegativeBinomialNLL().per_element((log_mean,), torch.tensor([[0.0, 1.0]]))
        assert each.tolist() == [[0.0, math.inf]]
        each[0, 0].backward()
        assert log_mean.grad.tolist() == [[0.0, 0.0]]
        assert NegativeBinomialNLL()(log_mean[:, :1], torch.zeros(1, 1)).item() == 0.0

    def test_parameters_broadcast_to_the_target(self):
        target = torch.poisson(torch.full((6, 3), 4.0))
        log_mean, log_theta = torch.randn(6, 1), torch.randn(3)
        wide = NegativeBinomialNLL()((log_mean.expand(6, 3), log_theta.expand(6, 3)), target)
        torch.testing.assert_close(NegativeBinomialNLL()((log_mean, log_theta), target), wide)
        own = NegativeBinomialNLL(log_theta)(log_mean.expand(6, 3), target)
        torch.testing.assert_close(own, wide)
        with pytest.raises(ValueError, match=r"log_mean \(6, 2\).*\(6, 3\)"):
            NegativeBinomialNLL()((torch.zeros(6, 2), log_theta), target)


class TestZeroInflatedNegativeBinomialNLL:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
    def test_against_many_digits(self, dtype, tolerance):
        cases = [
            (m, h, x, k) for m in (-20.0, 0.0, 6.0) for h in (-20.0, 0.0, 20.0) for x in LOGITS for k in (0, 1, 30)
        ]
        columns = [torch.tensor(column, dtype=dtype)[:, None].requires_grad_() for column in zip(*cases, strict=True)]
        *parameters, target = columns
        values = ZeroInflatedNegativeBinomialNLL("none")(parameters, target)
        gradients = torch.autograd.grad(values.sum(), parameters)
        for row, (log_mean, log_theta, logit, count) in enumerate(cases):

            def nats(m, h, x, count=count):
                log_p, absent = log_pmf(m, h, count), 1 / (1 + mpmath.exp(x))
                return -mpmath.log((1 - absent if count == 0 else 0) + absent * mpmath.exp(log_p))

            with mpmath.workdps(250):
                at = (mpmath.mpf(log_mean), mpmath.mpf(log_theta), mpmath.mpf(logit))
                truth = nats(*at)
                slopes = [mpmath.diff(nats, at, tuple(int(i == j) for j in range(3))) for i in range(3)]
            assert abs(values[row].item() - truth) <= tolerance * abs(truth), cases[row]
            for gradient, slope in zip(gradients, slopes, strict=True):
                assert abs(gradient[row].item() - slope) <= tolerance * max(1e-3, abs(slope)), cases[row]

    def test_is_normalised(self):
        target = torch.arange(400.0, dtype=torch.float64)[:, None]
        parameters = [torch.full_like(target, v) for v in (1.2, 0.5, -0.3)]
        nats = ZeroInflatedNegativeBinomialNLL("none")(parameters, target)
        assert torch.exp(-nats).sum().item() == pytest.approx(1.0, abs=1e-12)

    def test_without_extra_zeros_it_is_the_negative_binomial(self):
        target = torch.poisson(torch.full((6, 3), 2.0))
        log_mean, log_theta = torch.randn(6, 3), torch.randn(3)
        value = ZeroInflatedNegativeBinomialNLL()((log_mean, log_theta, torch.full((), -torch.inf)), target)
        torch.testing.assert_close(value, NegativeBinomialNLL()((log_mean, log_theta), target))

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match=r"log_mean, log_dispersion, logits.*sequence of 2"):
            ZeroInflatedNegativeBinomialNLL()((torch.zeros(2, 2),) * 2, torch.zeros(2, 2))
        with pytest.raises(ValueError, match=r"one tensor \(2, 2\)"):
            ZeroInflatedNegativeBinomialNLL()(torch.zeros(2, 2), torch.zeros(2, 2))


LOGITS = (-200.0, -30.0, -1.0, 0.0, 2.0, 30.0)
