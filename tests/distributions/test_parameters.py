"""What a distribution was given is found again, whatever was read, expanded or copied since."""

import copy
import math
import pickle

import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    ContinuousBernoulli,
    Geometric,
    Independent,
    Laplace,
    LowRankMultivariateNormal,
    Multinomial,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
    RelaxedBernoulli,
    RelaxedOneHotCategorical,
    Wishart,
)
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

from kldiv import DiagonalNormal, GumbelSoftmax, kl_divergence
from kldiv.distributions import as_logits, given, given_name, log_variance, mean_and_log_var
from kldiv.exact import covariance

TEMPERATURE = torch.tensor(0.7)
# of two outcomes: values near 1 and small ones, where float32 logits and probabilities do not tell the same
BINARY = {
    "Bernoulli": Bernoulli,
    "Binomial": lambda **given: Binomial(5, **given),
    "ContinuousBernoulli": ContinuousBernoulli,
    "Geometric": Geometric,
    "LogitRelaxedBernoulli": lambda **given: LogitRelaxedBernoulli(TEMPERATURE, **given),
    "NegativeBinomial": lambda **given: NegativeBinomial(5.0, **given),
    "RelaxedBernoulli": lambda **given: RelaxedBernoulli(TEMPERATURE, **given),
}
CATEGORIES = {
    "Categorical": Categorical,
    "ExpRelaxedCategorical": lambda **given: ExpRelaxedCategorical(TEMPERATURE, **given),
    "Multinomial": lambda **given: Multinomial(5, **given),
    "OneHotCategorical": OneHotCategorical,
    "OneHotCategoricalStraightThrough": OneHotCategoricalStraightThrough,
    "RelaxedOneHotCategorical": lambda **given: RelaxedOneHotCategorical(TEMPERATURE, **given),
}
FAMILIES = {**BINARY, **CATEGORIES}
VALUES = {
    ("binary", "logits"): torch.tensor([-40.0, -1.0, 0.3, 15.0, 19.0]),
    ("binary", "probs"): torch.tensor([1e-10, 0.2, 0.6, 0.999, 1 - 1e-6]),
    ("categories", "logits"): torch.tensor([[-40.0, 1.0, 2.0], [19.0, 0.3, -2.0]]),
    ("categories", "probs"): torch.tensor([[1e-10, 0.3, 0.7], [0.2, 0.3, 0.5]]),
}


def made(family, name):
    """A distribution of the family and the values that torch stored under the name it was given."""
    values = VALUES["binary" if family in BINARY else "categories", name]
    # torch.compile switches the default validation off for the whole process
    distribution = FAMILIES[family](**{name: values}, validate_args=True)
    return distribution, getattr(distribution, name).double()


@pytest.fixture(params=[(family, name) for family in FAMILIES for name in ("logits", "probs")], ids="-".join)
def case(request):
    return made(*request.param), request.param[1]


def assert_given(distribution, name, value):
    kind, found = given(distribution)
    assert kind == name
    assert found.dtype == torch.float64
    assert torch.equal(found, value)


def read_both(distribution):
    return distribution.logits, distribution.probs


def test_as_it_was_made(case):
    (distribution, value), name = case
    assert_given(distribution, name, value)


def test_after_both_were_read(case):
    (distribution, value), name = case
    read_both(distribution)
    assert_given(distribution, name, value)


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))])
def test_of_a_copy(case, duplicate, read):
    (distribution, value), name = case
    if read:
        read_both(distribution)
    assert_given(duplicate(distribution), name, value)


def test_after_both_were_read_of_a_copy(case):
    (distribution, value), name = case
    duplicate = copy.copy(distribution)
    read_both(duplicate)
    assert_given(duplicate, name, value)
    assert_given(distribution, name, value)


READ_BY_TORCH = (*(family for family in CATEGORIES if family != "Categorical"), "RelaxedBernoulli")
"""Families of which torch reads both names to validate them."""


@pytest.mark.parametrize("name", ["logits", "probs"])
@pytest.mark.parametrize("family", FAMILIES)
def test_expanded(family, name):
    distribution, value = made(family, name)
    wide = distribution.expand((3, *distribution.batch_shape))
    if family in READ_BY_TORCH:
        assert given(wide)[0] == "logits"
    else:
        assert_given(wide, name, value.expand(3, *value.shape))
        read_both(wide)
        assert_given(wide, name, value.expand(3, *value.shape))


@pytest.mark.parametrize("name", ["logits", "probs"])
@pytest.mark.parametrize("family", FAMILIES)
def test_expanded_after_both_were_read_it_is_the_same_to_rounding(family, name):
    distribution, value = made(family, name)
    read_both(distribution)
    kind, logits = given(distribution.expand((3, *distribution.batch_shape)))
    assert kind == "logits"
    if name == "logits":
        torch.testing.assert_close(logits, value.expand(3, *value.shape), rtol=1e-6, atol=0)
    else:
        true_logits = as_logits(name, value) if family in BINARY else torch.log(value)
        torch.testing.assert_close(logits, true_logits.expand(3, *value.shape), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_probabilities_of_0_and_1_are_found_again_after_expand(dtype):
    probs = torch.tensor([0.0, 0.25, 1.0], dtype=dtype, requires_grad=True)
    p = Bernoulli(probs)
    read_both(p)
    _, logits = given(p.expand((2, 3)))
    assert logits[1].tolist() == [-math.inf, pytest.approx(-math.log(3), rel=2e-3), math.inf]
    one_hot = OneHotCategorical(probs=torch.tensor([0.0, 0.5, 0.5], dtype=dtype), validate_args=True)
    assert given(one_hot.expand((2,)))[1][1, 0] == -math.inf
    uniform = OneHotCategorical(logits=torch.zeros(3, dtype=dtype))
    assert kl_divergence(uniform, one_hot).item() == math.inf
    assert kl_divergence(uniform, one_hot.expand((2,))).tolist() == [math.inf, math.inf]


def test_gradients_reach_what_was_given_through_expand():
    logits = torch.tensor([-120.0, -1.0, 17.0], requires_grad=True)  # the first rounds to a probability of 0
    p = Bernoulli(logits=logits)
    read_both(p)
    given(p.expand((2, 3)))[1].sum().backward()
    assert logits.grad.tolist() == [2.0, 2.0, 2.0]
    probs = torch.tensor([1e-10, 0.25], requires_grad=True)
    p = Bernoulli(probs)
    read_both(p)
    given(p.expand((2, 2)))[1].sum().backward()
    assert probs.grad.tolist() == pytest.approx([2e10, 2 / (0.25 * 0.75)], rel=1e-6)


def test_of_a_subclass():
    class Flagged(Bernoulli):
        def __init__(self, *, logits, flag):
            self.flag = flag
            super().__init__(logits=logits)

        def expand(self, batch_shape, _instance=None):
            new = self._get_checked_instance(Flagged, _instance)
            new.flag = self.flag
            return super().expand(batch_shape, _instance=new)

    class Relay(Categorical):
        """Logits that are computed whenever they are read."""

        logits = property(lambda self: torch.log_softmax(self.scores, -1))
        probs = property(lambda self: torch.softmax(self.scores, -1))

        def __init__(self, scores):
            self.scores = scores
            torch.distributions.Distribution.__init__(self, scores.shape[:-1], validate_args=False)

    value = torch.tensor([0.3, 18.0])
    p = Flagged(logits=value, flag="yes")
    assert_given(p.expand((2, 2)), "logits", value.expand(2, 2).double())
    read_both(p)
    assert_given(p, "logits", value.double())
    scores = torch.tensor([1.0, 2.0])
    assert_given(Relay(scores), "logits", torch.log_softmax(scores, -1).double())
    gumbel = GumbelSoftmax(torch.tensor([[1.0, 2.0]]))
    assert_given(gumbel, "logits", gumbel.logits.double())


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="its compiler does not read __dict__")
@pytest.mark.parametrize("name", ["logits", "probs"])
def test_under_compile(name):
    value = VALUES["binary", name]

    def found(distribution, value):
        inner = Bernoulli(**{name: value})
        before = given(distribution), given(inner)
        read_both(distribution)
        read_both(inner)
        return (*before, given(inner)), given(distribution)

    torch._dynamo.reset()
    compiled = torch.compile(found, fullgraph=True, backend="eager")
    known, (_, logits) = compiled(Bernoulli(**{name: value}, validate_args=False), value)
    for kind, values in known:
        assert kind == name
        assert torch.equal(values, value.double())
    # read for the first time inside of the graph: the order is lost, the values are not
    torch.testing.assert_close(logits, as_logits(name, value.double()), rtol=1e-6, atol=1e-7)


COVARIANCE = torch.tensor([[2.0, 0.3, 0.1], [0.3, 1.0, -0.2], [0.1, -0.2, 1.5]])
MATRICES = {
    "scale_tril": torch.linalg.cholesky(COVARIANCE),
    "covariance_matrix": COVARIANCE,
    "precision_matrix": torch.linalg.inv(COVARIANCE),
}
COVARIED = {
    "MultivariateNormal": lambda **given: MultivariateNormal(torch.zeros(2, 3), **given),
    "Wishart": lambda **given: Wishart(torch.full((2,), 5.0), **given),
}


@pytest.fixture(params=[(family, name) for family in COVARIED for name in MATRICES], ids="-".join)
def covaried(request):
    family, name = request.param
    return COVARIED[family](**{name: MATRICES[name]}), name


def assert_covariance(distribution, name):
    found = covariance(distribution)
    assert found.kind == name
    assert torch.equal(found.given.expand(2, 3, 3)[-1], MATRICES[name].double())


def read_all(distribution):
    return [getattr(distribution, name) for name in MATRICES]


def test_a_covariance_as_it_was_given_after_all_were_read_and_of_copies(covaried):
    distribution, name = covaried
    assert_covariance(distribution, name)
    read_all(distribution)
    for duplicate in (copy.copy, copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))):
        assert_covariance(duplicate(distribution), name)
    assert_covariance(distribution, name)


def test_a_covariance_after_expand(covaried):
    distribution, name = covaried
    wide = distribution.expand((4, 2))
    assert given_name(wide, tuple(MATRICES)) == name
    read_all(wide)
    assert given_name(wide, tuple(MATRICES)) == name
    read_all(distribution)
    wide = distribution.expand((4, 2))
    assert given_name(wide, tuple(MATRICES)) is None
    found = covariance(wide)
    assert found.kind == "scale_tril"
    torch.testing.assert_close(found.matrix.expand(4, 2, 3, 3)[1, 1], COVARIANCE.double(), rtol=1e-5, atol=1e-5)


def test_a_factor_that_was_given_keeps_its_digits_through_expand():
    factor = torch.tensor([[1.0, 0.0], [1.0, 1e-4]])  # whose covariance has a condition number of 4e8
    p, q = (MultivariateNormal(torch.zeros(1, 2), scale_tril=factor * s) for s in (1.0, 1.0 + 2.0**-10))
    before = kl_divergence(p, q)
    _ = p.covariance_matrix, q.covariance_matrix
    assert torch.equal(kl_divergence(p.expand((3,)), q.expand((3,))), before.expand(3))


def test_a_low_rank_covariance():
    factor, diagonal = torch.tensor([[1.0], [2.0]]), torch.tensor([0.1, 0.2])
    p = LowRankMultivariateNormal(torch.zeros(2), factor, diagonal)
    _ = p.covariance_matrix, p.precision_matrix, p.scale_tril
    for distribution in (p, p.expand((4,)), copy.copy(p), copy.deepcopy(p)):
        found = covariance(distribution)
        assert found.kind == "low_rank"
        assert torch.equal(found.given, factor.double())
        assert torch.equal(found.diagonal, diagonal.double())


def test_scales_and_log_variances():
    mean, log_var = torch.tensor([0.3, -1.0]), torch.tensor([1e-7, 2.0])
    for event_dim in (0, 1):
        found = mean_and_log_var(DiagonalNormal(mean, log_var, event_dim))
        assert all(map(torch.equal, found, (mean, log_var)))
    scale = torch.tensor([1.0 + 2.0**-20, 3.0])
    found = mean_and_log_var(Normal(mean, scale).expand((4, 2)))
    assert torch.equal(found[1], log_variance(scale).expand(4, 2))
    assert found[1][0, 0].item() == pytest.approx(2 * math.log1p(2.0**-20), rel=1e-9)
    assert mean_and_log_var(Laplace(mean, scale)) is None
    assert mean_and_log_var(Independent(Normal(mean, scale), 1)) is None

    class Folded(Normal):
        def log_prob(self, value):
            return super().log_prob(value.abs())

    assert mean_and_log_var(Folded(mean, scale)) is None
