"""What every likelihood term has: checks of shapes and masks."""

import pytest
import torch

import kldiv
from kldiv import BernoulliNLL, ContinuousBernoulliNLL, GaussianNLL, LaplaceNLL, likelihoods


def test_every_likelihood_is_a_public_name():
    assert set(likelihoods.__all__) <= set(kldiv.__all__)


def test_unequal_shapes_raise_with_both():
    with pytest.raises(ValueError, match=r"output \(4, 64\) and target \(4, 1, 8, 8\)"):
        BernoulliNLL()(torch.zeros(4, 64), torch.zeros(4, 1, 8, 8))
    with pytest.raises(TypeError, match="one tensor"):
        BernoulliNLL()((torch.zeros(4, 64),), torch.zeros(4, 64))
    with pytest.raises(ValueError, match="no dimensions"):
        BernoulliNLL()(torch.zeros(()), torch.zeros(()))


@pytest.mark.parametrize(
    "term",
    [BernoulliNLL("none"), GaussianNLL(reduction="none"), LaplaceNLL(reduction="none"), ContinuousBernoulliNLL("none")],
)
def test_missing_elements_count_nothing_though_they_are_nan(term):
    output = torch.randn(4, 3, requires_grad=True)
    target = torch.rand(4, 3)
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    full = torch.stack([term(output[:, [i]], target[:, [i]]) for i in range(3)], 1)
    broken = target.masked_fill(mask == 0, torch.nan)
    value = term(output, broken, mask=mask)
    torch.testing.assert_close(value, (full * mask).sum(1))
    value.sum().backward()
    assert output.grad.isfinite().all()
    with pytest.raises(ValueError, match=r"mask \(2, 4, 3\)"):
        term(output, target, mask=torch.ones(2, 4, 3))
