"""Compiled whole, every likelihood is what it is eagerly, masked or not."""

import pytest
import torch

from tests.likelihoods.terms import TERMS, outputs_of
from tests.marks import sweep


@pytest.mark.parametrize("name", sweep(TERMS, ["Gaussian, learned", "Categorical, soft"]))
def test_compiled_it_is_the_same(name):
    case = TERMS[name]
    outputs, target, mask = outputs_of(case), case.target(), torch.rand(case.elements) < 0.5
    term, found = case.make(reduction="none"), []
    torch._dynamo.reset()
    for call in (term, torch.compile(case.make(reduction="none"), backend="aot_eager", fullgraph=True)):
        for options in ({}, {"mask": mask}, {"element_weight": mask.float()}):
            value = call(outputs[0] if len(outputs) == 1 else outputs, target, **options)
            found.append([value, *torch.autograd.grad(value.sum(), outputs)])
    torch.testing.assert_close(found[:3], found[3:])
