import mpmath
import pytest
import torch

from kldiv import importance_log_likelihood


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
