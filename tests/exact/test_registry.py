import pytest
import torch
from torch.distributions import Distribution, Exponential, ExponentialFamily, Normal

from kldiv import kl_divergence, register_kl
from kldiv.exact.registry import CLOSED_FORMS, find_closed_form


@pytest.fixture
def registry():
    before = dict(CLOSED_FORMS)
    yield
    CLOSED_FORMS.clear()
    CLOSED_FORMS.update(before)


class Base(Distribution):
    def __init__(self):
        super().__init__(validate_args=False)


class Derived(Base):
    pass


@pytest.mark.usefixtures("registry")
def test_the_most_specific_pair_wins():
    register_kl(Base, Base)(lambda p, q: torch.tensor(1.0))
    assert kl_divergence(Derived(), Derived()).item() == 1.0
    register_kl(Base, Derived)(lambda p, q: torch.tensor(2.0))
    assert kl_divergence(Derived(), Derived()).item() == 2.0
    register_kl(Derived, Base)(lambda p, q: torch.tensor(3.0))  # the first argument decides first
    assert kl_divergence(Derived(), Derived()).item() == 3.0
    register_kl(Derived, Derived)(lambda p, q: torch.tensor(4.0))
    assert kl_divergence(Derived(), Derived()).item() == 4.0
    assert kl_divergence(Base(), Base()).item() == 1.0


class Loaded(Exponential):
    pass


@pytest.mark.usefixtures("registry")
def test_across_both_registries_the_specific_wins_and_ties_are_ours(monkeypatch):
    p, q = Loaded(torch.tensor(1.0)), Exponential(torch.tensor(2.0))
    torch_registry = torch.distributions.kl._KL_REGISTRY
    monkeypatch.setitem(torch_registry, (Loaded, Exponential), lambda p, q: torch.tensor(7.0))
    register_kl(Exponential, Exponential)(lambda p, q: torch.tensor(5.0))
    assert kl_divergence(p, q).item() == 7.0
    assert kl_divergence(q, q).item() == 5.0  # torch has this pair too
    register_kl(Loaded, Exponential)(lambda p, q: torch.tensor(6.0))
    assert kl_divergence(p, q).item() == 6.0


def test_registering_what_is_no_distribution_raises():
    with pytest.raises(TypeError, match="subclasses"):
        register_kl(Normal, torch.Tensor)


def test_nothing_of_torch_is_overridden():
    functions = {pair: form.__module__ for pair, form in torch.distributions.kl._KL_REGISTRY.items()}
    ours = [pair for pair, module in functions.items() if module.startswith("kldiv")]
    assert ours
    assert all(any(kind.__module__.startswith("kldiv") for kind in pair) for pair in ours)


def test_every_pair_of_torch_is_ours():
    theirs = set(torch.distributions.kl._KL_REGISTRY) - {(ExponentialFamily, ExponentialFamily)}
    assert not [pair for pair in theirs if pair not in CLOSED_FORMS]


def test_an_exponential_family_of_the_users_own_is_computed_in_float64():
    class Rate(ExponentialFamily):
        arg_constraints = {}

        def __init__(self, rate):
            self.rate = rate
            super().__init__(rate.shape, validate_args=False)

        @property
        def _natural_params(self):
            return (-self.rate,)

        def _log_normalizer(self, x):
            return -torch.log(-x)

    p, q = Rate(torch.tensor(1.0)), Rate(torch.tensor(1.001))
    assert find_closed_form(Rate, Rate).__module__ == "torch.distributions.kl"
    expected = kl_divergence(Exponential(p.rate), Exponential(q.rate))
    torch.testing.assert_close(kl_divergence(p, q), expected, rtol=1e-5, atol=0)
    assert kl_divergence(p, q).dtype == torch.float32
