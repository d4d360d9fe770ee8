"""The first look at a target: once, and then never again."""

import copy
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kldiv import (
    BernoulliNLL,
    CategoricalNLL,
    ContinuousBernoulliNLL,
    DiagonalNormal,
    DiscretizedLogisticMixtureNLL,
    ELBOLoss,
    GaussianNLL,
    ImportanceWeightedELBOLoss,
    MultinomialNLL,
    NegativeBinomialNLL,
    PoissonNLL,
    ZeroInflatedNegativeBinomialNLL,
)
from tests.likelihoods.terms import TERMS, outputs_of

COUNTS = {
    "Poisson": PoissonNLL,
    "NegativeBinomial": NegativeBinomialNLL,
    "ZeroInflatedNegativeBinomial": ZeroInflatedNegativeBinomialNLL,
    "Multinomial": MultinomialNLL,
}
UNIT = {
    "Bernoulli": BernoulliNLL,
    "ContinuousBernoulli": ContinuousBernoulliNLL,
    "DiscretizedLogisticMixture": lambda **options: DiscretizedLogisticMixtureNLL(1, **options),
}
WRONG = [
    *((kind, range_) for kind in UNIT for range_ in ((0, 255), (-1, 1), (0, 1.5), (-3, 3), (0, float("inf")))),
    *((kind, range_) for kind in COUNTS for range_ in ((-0.5, 3), (0, 0.7), (0, 1.3), (-1, 5), (0, float("inf")))),
]


def of(kind, target):
    """A likelihood's output for a target (N, K)."""
    zeros = torch.zeros_like(target, dtype=torch.promote_types(target.dtype, torch.float16))
    if kind == "DiscretizedLogisticMixture":
        return torch.cat([zeros] * 3, 1)
    return (zeros,) * 3 if kind.startswith("Zero") else zeros


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "range_"), WRONG, ids=str)
def test_outside_of_the_support_raises_with_the_range(kind, range_, dtype):
    term = (UNIT | COUNTS)[kind]()
    target = torch.tensor([[range_[0], range_[1]], [range_[0], range_[0]]]).to(dtype)
    met = rf"from {target.min().item():g} to {target.max().item():g}"
    for _ in range(2):  # it has not been looked at while it is wrong
        with pytest.raises(ValueError, match=met.replace("+", r"\+")):
            term(of(kind, target), target)
    (UNIT | COUNTS)[kind](validate_args=False)(of(kind, target), target)
    mask = target == target.round()
    mask &= (target >= 0) & (target <= (1 if kind in UNIT else 100))
    if kind != "Multinomial":
        assert term(of(kind, target), target, mask=mask).isfinite()


@pytest.mark.parametrize(
    ("term", "output", "target", "words"),
    [
        (BernoulliNLL(), torch.zeros(1, 2), [[0.0, 255.0]], r"x / 255"),
        (BernoulliNLL(), torch.zeros(1, 2), [[-1.0, 1.0]], r"\(x \+ 1\) / 2"),
        (DiscretizedLogisticMixtureNLL(1), torch.zeros(1, 3, 2), [[[-1.0, 1.0]]], r"\(x \+ 1\) / 2"),
        (PoissonNLL(), torch.zeros(1, 2), [[-0.5, 1.0]], "GaussianNLL"),
        (PoissonNLL(), torch.zeros(1, 2), [[0.5, 1.0]], r"\(255 \* target\)\.round\(\)"),
        (NegativeBinomialNLL(), torch.zeros(1, 1), [[1.3]], r"1\.3.*raw counts"),
        (PoissonNLL(), torch.zeros(1, 2), [[-1.0, 4.0]], "mask=target >= 0"),
        (CategoricalNLL(), torch.zeros(2, 3), [-100, 1], "mask=target != -100"),
        (CategoricalNLL(), torch.zeros(2, 3), [1, 3], r"categories 0 to 2.*target - 1"),
        (CategoricalNLL(dim=1), torch.zeros(1, 3, 2), [[-1, 1]], "mask=target != -1"),
    ],
)
def test_the_message_says_what_to_write(term, output, target, words):
    with pytest.raises(ValueError, match=words):
        term(output, torch.tensor(target))


@pytest.mark.parametrize("mask", [[[1.0, 0.5]], [[2, 1]], [[1.0, -1.0]]])
def test_a_mask_of_other_numbers_names_the_weights(mask):
    output, target, mask = torch.zeros(1, 2), torch.ones(1, 2), torch.tensor(mask)
    for term in (BernoulliNLL(), GaussianNLL()):
        with pytest.raises(ValueError, match="element_weight="):
            term(output, target, mask=mask)
    value = BernoulliNLL()(output, target, element_weight=torch.tensor([[1.0, 0.5]]))
    assert value.item() == pytest.approx(1.5 * 0.6931472)


def test_inside_of_the_support_is_quiet():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.bool):
        BernoulliNLL()(torch.zeros(2, 3), torch.ones(2, 3).to(dtype))
        PoissonNLL()(torch.zeros(2, 3), torch.ones(2, 3).to(dtype))
    BernoulliNLL()(torch.zeros(2, 3), torch.rand(2, 3))  # grey
    BernoulliNLL()(torch.zeros(1, 1), torch.tensor([[1 + 1.2e-7]]))  # an image that was resized
    PoissonNLL()(torch.zeros(1, 2), torch.tensor([[0.0, 1e9]]))
    PoissonNLL()(torch.zeros(0, 2), torch.zeros(0, 2))
    for case in TERMS.values():
        outputs = outputs_of(case)
        case.make()(outputs[0] if len(outputs) == 1 else outputs, case.target())


@pytest.mark.parametrize("training", [True, False])
def test_inside_the_bounds_in_either_mode(training):
    posterior = DiagonalNormal(torch.zeros(2, 2), torch.zeros(2, 2))
    target = torch.full((2, 3), 255.0)
    with pytest.raises(ValueError, match="x / 255"):
        ELBOLoss(BernoulliNLL()).train(training)(torch.zeros(2, 3), target, posterior)
    sample = posterior.rsample((4,))
    bound = ImportanceWeightedELBOLoss(BernoulliNLL()).train(training)
    with pytest.raises(ValueError, match="x / 255"):
        bound(torch.zeros(4, 2, 3), target, posterior, sample=sample)


class Looks(TorchDispatchMode):
    """Counts what asks the device for a number."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.amin.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", TERMS.values(), ids=TERMS)
def test_only_the_first_call_looks(case):
    term, outputs, target = case.make(), outputs_of(case), case.target()
    output = outputs[0] if len(outputs) == 1 else outputs
    mask = torch.ones(case.elements)
    with Looks() as first:
        term(output, target, mask=mask)
    with Looks() as later:
        term(output, target, mask=mask)
        term.eval()(output, target)
        copy.deepcopy(term)(output, target)
        pickle.loads(pickle.dumps(term))(output, target)
    unvalidated = case.make(validate_args=False)
    with Looks() as never:
        unvalidated(output, target, mask=mask)
    assert first.count <= 1
    assert later.count == never.count == 0


def test_nothing_looks_under_a_compiler_or_a_transform():
    target, logits = torch.full((2, 3), 255.0), torch.zeros(2, 3)
    assert torch.func.vmap(lambda x: BernoulliNLL().per_example(logits, x))(target[None]).shape == (1, 2)
    torch.func.grad(lambda x: BernoulliNLL()(x, target))(logits)
    torch._dynamo.reset()
    term = BernoulliNLL()
    compiled = torch.compile(term, backend="aot_eager", fullgraph=True)
    compiled(logits, target)
    with pytest.raises(ValueError, match="x / 255"):
        term(logits, target)
    term(logits, target / 255)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(logits, target)
    with torch.device("meta"):
        assert BernoulliNLL()(torch.zeros(2, 3), torch.zeros(2, 3)).is_meta


def test_the_constructor_shows_that_it_does_not_look():
    assert repr(BernoulliNLL(validate_args=False)) == "BernoulliNLL(reduction='batchmean', validate_args=False)"
    assert repr(BernoulliNLL()) == "BernoulliNLL(reduction='batchmean')"


def test_a_distribution_as_output_names_the_term_that_takes_it():
    normal = torch.distributions.Normal(torch.zeros(2, 3), 1.0)
    for case in TERMS.values():
        with pytest.raises((TypeError, ValueError), match="DistributionNLL"):
            case.make()(normal, torch.zeros(2, 3))
    with pytest.raises(TypeError, match="DistributionNLL"):
        GaussianNLL()((normal, normal), torch.zeros(2, 3))
