"""mean(output) and sample(output): in the target's shape, the one the mean of the other."""

import pytest
import torch

from kldiv import (
    DiscretizedLogisticMixtureNLL,
    DistributionNLL,
    NegativeLogLikelihood,
    OptimalGaussianNLL,
    ZeroInflatedNegativeBinomialNLL,
)
from tests.likelihoods.terms import TERMS, outputs_of

DRAWS = 20_000


@pytest.mark.parametrize("case", TERMS.values(), ids=TERMS)
def test_shapes_supports_and_generators(case):
    term, outputs, target = case.make(), outputs_of(case), case.target()
    output = outputs[0] if len(outputs) == 1 else outputs
    term(output, target)  # of a variance that is tracked
    mean = term.mean(output)
    draws = [term.sample(output, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    soft = target.ndim == output[0].ndim + 1 and "Categorical" in repr(term) and target.is_floating_point()
    shape = target.shape[:-1] if soft else target.shape
    assert mean.shape == draws[0].shape == shape
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2]) or "Multinomial" in repr(term)
    assert not draws[0].requires_grad
    assert term.sample(output).isfinite().all()
    case.make()(output, draws[0])  # which looks at it
    half = tuple(each.detach().half() for each in outputs)
    assert term.mean(half[0] if len(half) == 1 else half).dtype == torch.float32


@pytest.mark.parametrize("name", [name for name in TERMS if not name.endswith("conditional")])
def test_the_mean_is_that_of_the_samples(name):
    torch.manual_seed(0)
    case = TERMS[name]
    term, outputs, target = case.make(), outputs_of(case), case.target()
    term(outputs[0] if len(outputs) == 1 else outputs, target)
    # every draw an example of its own
    many = [each.detach()[:1].repeat(DRAWS, *[1] * (each.ndim - 1)) for each in outputs]
    drawn = term.sample(many[0] if len(many) == 1 else many).double()
    mean = term.mean(many[0] if len(many) == 1 else many).double()[0]
    error = drawn.std(0) / DRAWS**0.5
    assert ((drawn.mean(0) - mean).abs() <= 6 * error + 1e-6).all()


@pytest.mark.parametrize("name", [name for name in TERMS if name != "Multinomial" and "soft" not in name])
def test_samples_have_the_entropy_of_the_density(name):
    """The mean of -ln p over samples is least for the law they are of: a small change of any parameter is no better."""
    torch.manual_seed(1)
    case = TERMS[name]
    term, outputs = case.make(reduction="none"), outputs_of(case)
    many = [each.detach()[:1].repeat(DRAWS, *[1] * (each.ndim - 1)) for each in outputs]
    term(outputs[0] if len(outputs) == 1 else outputs, case.target())
    term.eval()
    drawn = term.sample(many[0] if len(many) == 1 else many)
    many = [each.requires_grad_() for each in many]
    gradients = torch.autograd.grad(term(many[0] if len(many) == 1 else many, drawn).sum(), many)
    for gradient in gradients:  # the score has the mean 0
        wide = gradient.double()
        assert (wide.mean(0).abs() <= 6 * wide.std(0) / DRAWS**0.5 + 1e-6).all()


def test_of_wide_images_the_mean_is_of_levels():
    term = DiscretizedLogisticMixtureNLL(1, 3)
    output = torch.tensor([[[0.0], [0.4], [-1.0]]])
    levels = torch.arange(3.0).view(3, 1, 1) / 2
    mass = torch.exp(-term.per_element((output.expand(3, 3, 1),), levels))
    torch.testing.assert_close(term.mean(output), (mass * levels).sum(0, keepdim=True))


def test_extra_zeros_are_in_the_mean():
    output = torch.zeros(1, 1), torch.zeros(1, 1), torch.full((1, 1), 1.0)
    torch.testing.assert_close(ZeroInflatedNegativeBinomialNLL().mean(output), torch.sigmoid(-output[2]))


def test_a_distribution_has_its_own():
    normal = torch.distributions.Normal(torch.ones(2, 3), 1.0)
    term = DistributionNLL()
    assert torch.equal(term.mean(normal), torch.ones(2, 3))
    before = torch.get_rng_state()
    drawn = [term.sample(normal, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*drawn)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_of_the_users_own_names_the_method():
    class Squared(NegativeLogLikelihood):
        def per_element(self, parameters, target):
            return (parameters[0] - target).square()

    with pytest.raises(NotImplementedError, match=r"Squared has no mean\(output\)"):
        Squared().mean(torch.zeros(2, 3))
    with pytest.raises(NotImplementedError, match=r"Squared has no sample\(output"):
        Squared().sample(torch.zeros(2, 3))


def test_a_variance_that_was_not_tracked():
    with pytest.raises(RuntimeError, match="no batch in training mode"):
        OptimalGaussianNLL().sample(torch.zeros(2, 3))
