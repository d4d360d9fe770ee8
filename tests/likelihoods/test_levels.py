import mpmath
import pytest
import torch

from kldiv import CategoricalNLL, DiscretizedLogisticMixtureNLL, bits_per_dimension


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


class TestConditionalChannels:
    def test_all_pixels_sum_to_one(self):
        levels = torch.cartesian_prod(*[torch.arange(3.0)] * 3) / 2
        for scale in (0.5, 3.0):
            output = scale * torch.randn(1, 20, 1, dtype=torch.float64)
            term = DiscretizedLogisticMixtureNLL(2, 3, conditional=True, reduction="none")
            nats = term(output.expand(27, 20, 1), levels[..., None].double())
            assert torch.exp(-nats).sum().item() == pytest.approx(1.0, abs=1e-12)

    def test_against_a_mixture_by_hand(self):
        k, output, target = 2, torch.randn(1, 20, 1), torch.tensor([0.2, 0.6, 1.0])
        weights, values = output[0, :k, 0].softmax(0), output[0, k:, 0]
        mean, log_scale, coefficient = (part.view(k, 3) for part in values.split(3 * k))
        total = 0.0
        for j in range(k):
            a = coefficient[j].tanh()
            means = mean[j] + torch.stack([torch.zeros(()), a[0] * target[0], a[1] * target[0] + a[2] * target[1]])
            one = torch.stack([torch.zeros(3), means, log_scale[j]], 0).view(1, 9, 1)
            total = total + weights[j] * torch.exp(-DiscretizedLogisticMixtureNLL(1, 6)(one, target.view(1, 3, 1)))
        value = DiscretizedLogisticMixtureNLL(k, 6, conditional=True)(output, target.view(1, 3, 1))
        torch.testing.assert_close(value, -torch.log(total))

    def test_without_coefficients_and_one_component_channels_are_independent(self):
        output, target = torch.randn(2, 6, 4, 4), torch.randint(256, (2, 3, 4, 4)) / 255
        joint = torch.cat([torch.zeros(2, 1, 4, 4), output, torch.zeros(2, 3, 4, 4)], 1)
        alone = torch.cat([torch.zeros(2, 3, 4, 4), output], 1)
        torch.testing.assert_close(
            DiscretizedLogisticMixtureNLL(1, conditional=True)(joint, target),
            DiscretizedLogisticMixtureNLL(1)(alone, target),
        )

    def test_draws_follow_the_law(self):
        torch.manual_seed(0)
        term = DiscretizedLogisticMixtureNLL(2, 3, conditional=True, reduction="none")
        output = torch.randn(1, 20, 1)
        pixels = torch.cartesian_prod(*[torch.arange(3.0)] * 3) / 2
        expected = torch.exp(-term(output.expand(27, 20, 1), pixels[..., None]))
        drawn = 2 * term.sample(output.expand(40_000, 20, 1))[..., 0]
        found = torch.bincount((drawn @ torch.tensor([9.0, 3.0, 1.0])).round().long(), minlength=27) / 40_000
        assert ((found - expected).abs() < 5 * (expected / 40_000).sqrt() + 1e-4).all()

    def test_masks_are_of_whole_pixels(self):
        term = DiscretizedLogisticMixtureNLL(2, conditional=True, reduction="none")
        output, target = torch.randn(3, 20, 4), torch.randint(256, (3, 3, 4)) / 255
        mask = torch.rand(3, 1, 4) < 0.5
        each = torch.stack([term(output[..., [i]], target[..., [i]]) for i in range(4)], 1)
        broken = output.masked_fill(~mask, torch.nan), target.masked_fill(~mask, torch.nan)
        torch.testing.assert_close(term(*broken, mask=mask), (each * mask[:, 0]).sum(1))

    def test_another_number_of_channels(self):
        with pytest.raises(ValueError, match=r"output \(4, 12, 8\) must be \(N, 2 \* \(1 \+ 2 C"):
            DiscretizedLogisticMixtureNLL(2, conditional=True)(torch.zeros(4, 12, 8), torch.zeros(4, 3, 8))


def test_bits_of_a_density_take_the_width_of_a_bin():
    assert bits_per_dimension(torch.tensor(0.0), 784, bin_width=1 / 256).item() == 8.0
    # a density that is flat within each of 256 bins, and the probabilities of these
    logits, target = torch.randn(256), torch.randint(256, (1, 50))
    nats = CategoricalNLL()(logits.expand(1, 50, 256), target)
    of_density = nats - 50 * torch.log(torch.tensor(256.0))
    torch.testing.assert_close(bits_per_dimension(of_density, 50, 1 / 256), bits_per_dimension(nats, 50))
    with pytest.raises(ValueError, match="bin_width=0"):
        bits_per_dimension(nats, 50, 0.0)
