"""Inside a bound, an example that weighs 0 is no part of any likelihood, whatever its target and output hold."""

import pytest
import torch
from torch.distributions import Dirichlet, Normal

from kldiv import DiagonalNormal, DistributionNLL, ELBOLoss
from tests.likelihoods.terms import TERMS, outputs_of


@pytest.mark.parametrize("case", TERMS.values(), ids=TERMS)
def test_what_it_holds_does_not_count(case):
    torch.manual_seed(0)
    outputs, target = outputs_of(case), case.target()
    weight, posterior, found = torch.tensor([1.0, 0.0, 2.0, 1.0]), DiagonalNormal(*torch.zeros(2, 4, 2)), []
    for fill in (None, torch.nan, 1e6):
        leaves, x = [each.detach().clone() for each in outputs], target.clone()
        if fill is not None:
            for each in (*leaves, x):
                each[1] = fill if each.is_floating_point() else -100
        leaves = [each.requires_grad_() for each in leaves]
        output = leaves[0] if len(leaves) == 1 else leaves
        loss = ELBOLoss(case.make())(output, x, posterior, sample_weight=weight).loss
        found.append([loss, *torch.autograd.grad(loss, leaves)])
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


@pytest.mark.parametrize("output", [Normal(torch.zeros(4, 3), 1.0), Dirichlet(torch.ones(4, 3))], ids=str)
def test_under_a_distribution(output):
    weight, posterior = torch.tensor([1.0, 0.0, 2.0, 1.0]), DiagonalNormal(*torch.zeros(2, 4, 2))
    target = torch.rand(4, 3).softmax(-1)
    broken = target.clone()
    broken[1] = torch.nan
    one, other = (ELBOLoss(DistributionNLL())(output, x, posterior, sample_weight=weight) for x in (target, broken))
    assert torch.equal(one.loss, other.loss)
