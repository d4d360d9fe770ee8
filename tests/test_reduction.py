import pytest
import torch

from kldiv.reduction import check_reduction, reduce, sum_latent


def test_batchmean_divides_by_examples_and_an_empty_batch_gives_zero():
    assert reduce(torch.tensor([1.0, 2.0, 6.0]), "batchmean").item() == 3.0
    assert reduce(torch.zeros(0), "batchmean").item() == 0.0
    assert reduce(torch.tensor([1.0, 2.0]), "sum").item() == 3.0
    assert reduce(torch.tensor([1.0, 2.0]), "none").tolist() == [1.0, 2.0]


def test_sum_latent_keeps_the_example():
    assert sum_latent(torch.ones(2, 3, 4)).tolist() == [12.0, 12.0]
    assert sum_latent(torch.ones(2)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("reduction", "says"), [("mean", "batchmean"), ("avg", "'avg' is none of")])
def test_other_reductions_are_refused(reduction, says):
    with pytest.raises(ValueError, match=says):
        check_reduction(reduction)
