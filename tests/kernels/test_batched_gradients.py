"""torch.autograd.grad(is_grads_batched=True), which jacobian(vectorize=True) is made of."""

import pytest
import torch

import kldiv
from kldiv import functional
from kldiv.kernels.aggregate_posterior import log_normal_mixtures

FUNCTIONS = {
    "categorical": (functional.kl_categorical, [(4, 40_000)] * 2),
    "normal": (functional.kl_normal, [(4, 3)] * 4),
    "sum of normals": (kldiv.GaussianKLLoss(), [(4, 3)] * 2),
    "Bernoulli": (lambda logits: kldiv.BernoulliNLL().per_example(logits, torch.ones(4, 3)), [(4, 3)]),
    "log mixtures": (lambda *given: log_normal_mixtures(*given, 0, (-1.0, -2.0, -3.0))[0], [(256, 20)] * 3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_are_those_of_one_upstream_gradient_after_the_other(name):
    function, shapes = FUNCTIONS[name]
    torch.manual_seed(0)
    given = [torch.randn(shape).requires_grad_() for shape in shapes]
    values = function(*given)
    upstream = torch.randn(2, *values.shape)
    found = torch.autograd.grad(values, given, upstream, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(values, given, one, retain_graph=True) for one in upstream]
    for together, *apart in zip(found, *each, strict=True):
        apart = torch.stack(apart)
        torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5 * apart.abs().max().item())
