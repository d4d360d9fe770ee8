"""Flows of other packages: inverses that are only remembered, known log-probabilities, networks of another dtype."""

import pytest
import torch
import zuko
from torch import nn
from torch.distributions import (
    Independent,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Transform,
    TransformedDistribution,
    constraints,
)

from kldiv import DiagonalNormal, MixturePrior, MonteCarloKLLoss, estimate_kl
from tests.marks import sweep


class Remembered(Transform, nn.Module):
    """A network whose inverse is known for what it made last, as those of planar and radial flows are."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, dims):
        nn.Module.__init__(self)
        Transform.__init__(self, cache_size=1)
        self.first, self.second = nn.Parameter(torch.full((dims,), 0.4)), nn.Parameter(torch.full((dims,), 0.3))

    __hash__ = nn.Module.__hash__

    def _inverse(self, y):
        raise KeyError("expected to find y in the cache")


class Planar(Remembered):
    def _call(self, x):
        return x + self.first * torch.tanh(x @ self.second)[..., None]

    def log_abs_det_jacobian(self, x, y):
        return torch.log1p((1 - torch.tanh(x @ self.second).square()) * (self.first @ self.second))


class Radial(Remembered):
    def _call(self, x):
        away = x - self.first
        return x + 0.3 * away / (1 + away.norm(dim=-1, keepdim=True))

    def log_abs_det_jacobian(self, x, y):
        r = (x - self.first).norm(dim=-1)
        h = 1 / (1 + r)
        return (x.shape[-1] - 1) * torch.log1p(0.3 * h) + torch.log1p(0.3 * h - 0.3 * h**2 * r)


PRIORS = {
    "None of batch": lambda: DiagonalNormal(torch.zeros(3), torch.zeros(3)),
    "scalar": lambda: Normal(0.0, 1.0),
    "MultivariateNormal": lambda: MultivariateNormal(torch.zeros(3), torch.eye(3)),
    "mixture": lambda: MixturePrior(4, 3)(),
    "flow": lambda: zuko.flows.MAF(3, transforms=1, hidden_features=(8,))(),
}


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("kind", [Planar, Radial])
@pytest.mark.parametrize("lead", [(), (4,), (2, 3)], ids=str)
def test_a_flow_whose_inverse_is_only_remembered(kind, prior, lead):
    flow, q = kind(3), PRIORS[prior]()
    loc = torch.zeros(8, 3, requires_grad=True)
    p = TransformedDistribution(Independent(Normal(loc, 1.0), 1), [flow])
    z = p.rsample(lead)
    by_hand = (p.log_prob(z) - _log_prob(q, z)).reshape(-1, 8).mean(0)
    value = MonteCarloKLLoss(reduction="none")(p, q, z)
    torch.testing.assert_close(value, by_hand, rtol=1e-4, atol=1e-4)
    for parameter in (loc, flow.first):
        found, wanted = (torch.autograd.grad(v.sum(), parameter, retain_graph=True)[0] for v in (value, by_hand))
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert MonteCarloKLLoss(3)(p, q).isfinite()
    if q.event_shape:
        assert estimate_kl(p, q, 8).value.shape == (8,)
    MonteCarloKLLoss(gradient="score")(p, q, p.sample((2,))).backward()
    with pytest.raises(ValueError, match=r"KeyError: 'expected.*very tensor.*gradient='pathwise'"):
        MonteCarloKLLoss(gradient="sticking_the_landing")(p, q)
    with pytest.raises(ValueError, match="very tensor"):
        MonteCarloKLLoss()(p, q, z.clone())


def _log_prob(q, z):
    log = q.log_prob(z)
    return log if log.shape == z.shape[:-1] else log.sum(-1)


@pytest.mark.parametrize("lead", sweep([(), (5,), (2, 3)], [(), (5,)]), ids=str)
@pytest.mark.parametrize("prior", PRIORS)
def test_a_log_probability_that_is_known_is_not_evaluated_again(prior, lead):
    flow, q = zuko.flows.MAF(3, context=2, transforms=1, hidden_features=(8,)), PRIORS[prior]()
    p = flow(torch.randn(6, 2))
    sample, log_prob = p.rsample_and_log_prob(lead)
    parameters = list(flow.parameters())
    terms = [MonteCarloKLLoss(value=value, reduction="none") for value in ("k1", "k2", "k3")]
    expected = [term(p, q, sample) for term in terms]
    wanted = torch.autograd.grad(expected[0].sum(), parameters, retain_graph=True)

    def refused(x):
        raise AssertionError("evaluated again")

    p.log_prob = refused
    for term, value in zip(terms, expected, strict=True):
        for call in (term, term.per_example, term.unreduced, lambda *a, t=term, **k: t.kl_values(*a, **k).kl):
            torch.testing.assert_close(call(p, q, sample, sample_log_prob=log_prob), value, rtol=1e-4, atol=1e-5)
    found = torch.autograd.grad(terms[0](p, q, sample, sample_log_prob=log_prob).sum(), parameters)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_a_known_log_probability_of_our_own_families():
    loc = torch.randn(6, 3, requires_grad=True)
    for p, q in (
        (DiagonalNormal(loc, torch.zeros(6, 3)), DiagonalNormal(torch.zeros(3), torch.zeros(3))),
        (Normal(loc, 1.0), Normal(0.0, 1.0)),
        (Normal(loc, 1.0), MultivariateNormal(torch.zeros(3), torch.eye(3))),
        (MultivariateNormal(loc, torch.eye(3)), Normal(0.0, 1.0)),
        (MultivariateNormal(loc, torch.eye(3)), None),
        (Independent(Normal(loc, 1.0), 1), None),
    ):
        for lead in ((), (4,)):
            z = p.rsample(lead)
            term = MonteCarloKLLoss(reduction="none")
            expected, found = term(p, q, z), term(p, q, z, sample_log_prob=p.log_prob(z))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            gradients = (torch.autograd.grad(v.sum(), loc, retain_graph=True)[0] for v in (expected, found))
            torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    p = Normal(loc, 1.0)
    z = p.rsample()
    of_each = MonteCarloKLLoss().per_dimension(p, None, z, sample_log_prob=p.log_prob(z))
    torch.testing.assert_close(of_each, MonteCarloKLLoss().per_dimension(p, None, z), rtol=1e-4, atol=1e-5)
    p = OneHotCategorical(logits=torch.randn(6, 4, requires_grad=True))
    z = p.sample((3,))
    score = MonteCarloKLLoss(gradient="score")
    torch.testing.assert_close(score(p, None, z, sample_log_prob=p.log_prob(z)), score(p, None, z))


def test_what_no_known_log_probability_can_be():
    loc = torch.zeros(6, 3, requires_grad=True)
    p = DiagonalNormal(loc, torch.zeros(6, 3))
    z = p.rsample((2,))
    with pytest.raises(ValueError, match=r"shape \(6,\), and for a sample of shape \(2, 6, 3\).* must be \(2, 6\)"):
        MonteCarloKLLoss()(p, None, z, sample_log_prob=torch.zeros(6))
    with pytest.raises(ValueError, match="pass the sample too"):
        MonteCarloKLLoss()(p, sample_log_prob=torch.zeros(6))
    with pytest.raises(TypeError, match="sample_log_prob is a float"):
        MonteCarloKLLoss()(p, None, z, sample_log_prob=1.0)
    with pytest.raises(ValueError, match=r"events of shape \(3,\).*per_example"):
        MonteCarloKLLoss().per_dimension(p, None, z, sample_log_prob=p.log_prob(z))
    for gradient in ("sticking_the_landing", "adaptive", "score"):
        term = MonteCarloKLLoss(gradient=gradient)
        with pytest.raises(ValueError, match=rf"{gradient}.*gradient='pathwise' would do"):
            term(p, None, z, sample_log_prob=p.log_prob(z))
    with torch.no_grad():
        MonteCarloKLLoss(gradient="sticking_the_landing")(p, None, z, sample_log_prob=p.log_prob(z))


@pytest.mark.parametrize("name", sweep(["MAF", "NSF", "NICE", "NAF"], ["MAF", "NSF"]))
@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float32), (torch.float32, torch.float64)], ids=str)
def test_a_flow_of_another_dtype_gets_the_sample_as_it_takes_it(name, dtypes):
    torch.manual_seed(0)
    of_posterior, of_flow = dtypes
    flow = getattr(zuko.flows, name)(3, transforms=2, hidden_features=(8,)).to(of_flow)
    loc = torch.zeros(5, 3, dtype=of_posterior, requires_grad=True)
    p = DiagonalNormal(loc, torch.zeros_like(loc))
    z = p.rsample()
    for q in (flow(),):
        for sample in (None, z):
            value = MonteCarloKLLoss(reduction="none")(p, q, sample)
            assert value.dtype == torch.float64
            (gradient,) = torch.autograd.grad(value.sum(), loc, retain_graph=True)
            assert gradient.isfinite().all()
        expected = p.log_prob(z) - q.log_prob(z.to(of_flow))
        torch.testing.assert_close(value, expected.double(), rtol=1e-5, atol=1e-5)
        assert estimate_kl(p, q).value.isfinite().all()
    q = flow().expand((5,))
    w = q.rsample()
    assert MonteCarloKLLoss()(q, DiagonalNormal(0 * loc, 0 * loc), w.to(of_posterior)).isfinite()


def test_other_errors_of_a_flow_are_its_own():
    class Broken(Normal):
        network = nn.Linear(2, 2)

        def log_prob(self, value):
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        MonteCarloKLLoss()(Normal(torch.zeros(4, 2), 1.0), Broken(0.0, 1.0))
