"""What is masked, or weighs 0, counts nothing: neither value nor gradient depends on what it holds, bit for bit."""

import pytest
import torch

from kldiv import DiagonalNormal, ELBOLoss, GaussianNLL, ImportanceWeightedELBOLoss, NegativeLogLikelihood
from tests.likelihoods.terms import TERMS, outputs_of

BROKEN = (torch.nan, torch.inf, -torch.inf, 6e4)


def beside(missing, shape):
    """Which entries of a tensor of that shape belong to missing elements."""
    if missing.ndim < len(shape):  # the categories' dimension
        axis = next(k for k in range(1, len(shape)) if shape[k] not in missing.shape or k == missing.ndim)
        return missing.unsqueeze(axis).expand(shape)
    if missing.shape[1] not in (1, shape[1]):  # channels of a mixture: one element after another
        return missing.repeat(1, shape[1] // missing.shape[1], *[1] * (len(shape) - 2))
    return missing.expand(shape)


def run(case, outputs, target, missing, fill=None, **options):
    """Values and gradients with the missing elements replaced."""
    term = case.make(reduction="none")
    leaves = [each.detach().clone() for each in outputs]
    if fill is not None:
        leaves = [each.masked_fill(beside(missing, each.shape), fill) for each in leaves]
        if target.is_floating_point():
            target = target.masked_fill(beside(missing, target.shape), fill)
        else:
            target = target.masked_fill(beside(missing, target.shape), -100)
    leaves = [each.requires_grad_() for each in leaves]
    value = term(leaves[0] if len(leaves) == 1 else leaves, target, **options)
    value.sum().backward()
    return [value.detach(), *(each.grad for each in leaves), *(p.grad for p in term.parameters() if p.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("case", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("form", ["boolean", "numbers", "weights"])
def test_neither_value_nor_gradient_depends_on_it(case, dtype, form):
    torch.manual_seed(0)
    outputs, target = outputs_of(case, dtype), case.target()
    target = target.to(dtype) if target.is_floating_point() else target
    missing = torch.rand(case.elements) < 0.4
    kept = ~missing
    given = {
        "boolean": {"mask": kept},
        "numbers": {"mask": kept.to(dtype)},
        "weights": {"element_weight": kept.to(dtype)},
    }[form]
    expected = run(case, outputs, target, missing, **given)
    assert all(each.isfinite().all() for each in expected)
    for fill in BROKEN:
        found = run(case, outputs, target, missing, fill, **given)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other), fill
    for gradient, output in zip(expected[1:], outputs, strict=False):
        assert (gradient[beside(missing, output.shape)] == 0).all()


@pytest.mark.parametrize("case", TERMS.values(), ids=TERMS)
def test_all_ones_are_no_mask_and_all_zeros_are_nothing(case):
    outputs, target = outputs_of(case), case.target()
    output = outputs[0] if len(outputs) == 1 else outputs
    plain = case.make(reduction="none")(output, target)
    for given in ({"mask": torch.ones(case.elements)}, {"element_weight": torch.ones(case.elements)}):
        torch.testing.assert_close(case.make(reduction="none")(output, target, **given), plain)
    nothing = case.make(reduction="none")(output, target, mask=torch.zeros(case.elements, dtype=torch.bool))
    assert (nothing == 0).all()


@pytest.mark.parametrize("case", TERMS.values(), ids=TERMS)
def test_weights_multiply_elements(case):
    outputs, target, weight = outputs_of(case), case.target(), torch.rand(case.elements)
    output = outputs[0] if len(outputs) == 1 else outputs
    term = case.make(reduction="none")
    term(output, target)  # of the optimal variance
    term.eval()
    prepared = term.prepared(output, target, None)
    if hasattr(term, "tracked_per_example"):
        each = GaussianNLL(term.variance.log().item()).per_element(prepared.parameters, prepared.target)
    else:
        each = term.per_element(prepared.parameters, prepared.target)
    expected = (each * weight).flatten(1).sum(1)
    torch.testing.assert_close(term(output, target, element_weight=weight), expected)


def test_the_optimal_variance_of_weighted_elements():
    case = TERMS["OptimalGaussian"]
    (output,), target, weight = outputs_of(case), case.target(), torch.rand(case.elements)
    variance = (weight * (target - output).square()).sum() / weight.sum()
    value = case.make()(output, target, element_weight=weight)
    torch.testing.assert_close(value, GaussianNLL(variance.log().item())(output, target, element_weight=weight))


@pytest.mark.parametrize("broken", BROKEN)
def test_inside_the_bounds(broken):
    torch.manual_seed(0)
    posterior = DiagonalNormal(torch.zeros(4, 2), torch.zeros(4, 2))
    sample, mask = posterior.rsample((5,)), torch.tensor([True, True, False])
    target, found = torch.randn(4, 3), []
    for fill in (0.0, broken):
        x = target.masked_fill(~mask, fill)
        weight = torch.zeros(5, 4, 3, requires_grad=True)
        output = (weight + sample[..., :1]).masked_fill(~mask, fill)
        one = ELBOLoss(GaussianNLL())(output[0], x, posterior, target_mask=mask).loss
        many = ImportanceWeightedELBOLoss(GaussianNLL())(output, x, posterior, sample=sample, target_mask=mask).loss
        (one + many).backward()
        found.append((one, many, weight.grad))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


class Own(torch.nn.Module):
    """A likelihood of the user's own, which knows of no mask."""

    def per_example(self, x_hat, x):
        return (x_hat - x).square().flatten(1).sum(1)


class OwnWithMask(Own):
    def per_example(self, x_hat, x, mask):
        return ((x_hat - x).square() * mask).flatten(1).sum(1)


class OwnTerm(NegativeLogLikelihood):
    def per_element(self, parameters, target):
        return (parameters[0] - target).square()


@pytest.mark.parametrize("make", [Own, OwnTerm])
def test_a_likelihood_of_the_users_own_without_a_mask(make):
    posterior = DiagonalNormal(torch.zeros(4, 2), torch.zeros(4, 2))
    terms = ELBOLoss(make())(torch.zeros(4, 3), torch.ones(4, 3), posterior)
    assert terms.reconstruction.item() == 3.0
    sample = posterior.rsample((5,))
    bound = ImportanceWeightedELBOLoss(make())(torch.zeros(5, 4, 3), torch.ones(4, 3), posterior, sample=sample)
    assert bound.reconstruction.item() == 3.0


@pytest.mark.parametrize("make", [OwnWithMask, OwnTerm])
def test_a_likelihood_of_the_users_own_with_a_mask(make):
    posterior = DiagonalNormal(torch.zeros(4, 2), torch.zeros(4, 2))
    mask = torch.tensor([1.0, 0.0, 1.0])
    terms = ELBOLoss(make())(torch.zeros(4, 3), torch.ones(4, 3), posterior, target_mask=mask)
    assert terms.reconstruction.item() == 2.0


def test_masks_are_named():
    x = torch.zeros(2, 3)
    with pytest.raises(TypeError, match=r"mask=.*element_weight=.*\(mean, log_var\)"):
        GaussianNLL()(x, x, torch.ones(2, 3))
    with pytest.raises(TypeError, match="positional"):
        GaussianNLL().per_example(x, x, torch.ones(2, 3))
