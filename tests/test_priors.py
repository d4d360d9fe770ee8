import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Gamma,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    TransformedDistribution,
)
from torch.distributions.transforms import AffineTransform

import kldiv
from kldiv import DiagonalNormal, DiagonalNormalMixture, MixturePrior, VampPrior, standard_prior


class Encoder(nn.Module):
    def __init__(self, inputs=6, latent=2):
        super().__init__()
        self.net = nn.Linear(inputs, 2 * latent)

    def forward(self, x):
        return DiagonalNormal(*self.net(x.flatten(1)).chunk(2, -1))


class VAE(nn.Module):
    def __init__(self, method=False):
        super().__init__()
        self.encoder = Encoder()
        self.prior = VampPrior(3, self.encode if method else self.encoder, (6,))

    def encode(self, x):
        return self.encoder(x)


@pytest.mark.parametrize("prior", [MixturePrior(4, 2), VampPrior(4, Encoder(), (6,))], ids=["mixture", "vamp"])
def test_compiles_whole(prior):
    z = torch.randn(5, 2)

    def density(z):
        return prior().log_prob(z)

    results = []
    for function in (density, torch.compile(density, fullgraph=True, backend="aot_eager")):
        prior.zero_grad()
        value = function(z)
        value.sum().backward()
        results.append([value, *(p.grad.clone() for p in prior.parameters())])
    torch.testing.assert_close(*results)


def test_mixture_prior_starts_as_it_says():
    prior = MixturePrior(500, 20)
    assert {name: tuple(p.shape) for name, p in prior.named_parameters()} == {
        "logits": (500,),
        "mean": (500, 20),
        "log_var": (500, 20),
    }
    assert prior.mean.mean().abs() < 0.05
    assert (prior.mean.std() - 1).abs() < 0.05
    assert not prior.logits.any()
    assert not prior.log_var.any()
    assert (prior().batch_shape, prior().event_shape) == ((), (20,))
    assert repr(prior) == "MixturePrior(num_components=500, latent_dim=20)"


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="num_components=0"):
        MixturePrior(0, 2)
    with pytest.raises(ValueError, match="latent_dim=-1"):
        MixturePrior(2, -1)
    with pytest.raises(ValueError, match="num_components=0"):
        VampPrior(0, Encoder(), (6,))


def test_mixture_prior_fits_a_known_mixture():
    components = DiagonalNormal(torch.tensor([[-2.0, 0.0], [2.0, 1.0]]), torch.tensor([[0.0, -2.0], [-1.0, 0.5]]))
    truth = DiagonalNormalMixture(Categorical(logits=torch.tensor([0.0, 1.0])), components)
    train, test = truth.sample((1000,)), truth.sample((1000,))
    prior = MixturePrior(2, 2)
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.1)
    for _ in range(130):
        optimizer.zero_grad()
        (-prior().log_prob(train).mean()).backward()
        optimizer.step()
    excess = (truth.log_prob(test) - prior().log_prob(test)).mean().item()
    assert abs(excess) < 0.02  # nine parameters of 1000 examples cost about 0.005 nats


def test_vamp_prior_is_the_mean_of_the_posteriors():
    encoder = Encoder()
    prior, z = VampPrior(5, encoder, (6,)), torch.randn(7, 2)
    total = torch.zeros(7)
    for k in range(5):
        total = total + encoder(prior.pseudo_inputs[k : k + 1]).log_prob(z).exp() / 5
    torch.testing.assert_close(prior().log_prob(z), total.log())
    # a density: it integrates to one
    points = torch.linspace(-12, 12, 301)
    grid = torch.cartesian_prod(points, points)
    assert prior().log_prob(grid).exp().sum().item() * (points[1] - points[0]).item() ** 2 == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "event", "type_"),
    [
        (lambda m: DiagonalNormal(m, 0.1 * m), (2, 3), DiagonalNormalMixture),
        (lambda m: DiagonalNormal(m, 0.1 * m, 2), (2, 3), DiagonalNormalMixture),
        (lambda m: Normal(m, 1 + m * m), (2, 3), DiagonalNormalMixture),
        (lambda m: Independent(Normal(m, 1 + m * m), 2), (2, 3), DiagonalNormalMixture),
        (lambda m: MultivariateNormal(m, torch.eye(3)), (2, 3), MixtureSameFamily),
        (lambda m: MultivariateNormal(m[:, 0], torch.eye(3)), (3,), MixtureSameFamily),
        (lambda m: Gamma(m.exp(), 1.0), (2, 3), MixtureSameFamily),
    ],
)
def test_vamp_prior_of_what_encoders_return(kind, event, type_):
    prior = VampPrior(4, lambda x: kind(x), (2, 3))
    mixture = prior()
    assert type(mixture) is type_
    assert (mixture.batch_shape, mixture.event_shape) == ((), event)
    z = 1 + torch.rand(5, *event)
    posterior = kind(prior.pseudo_inputs)
    each = posterior.log_prob(z[:, None]).reshape(5, 4, -1).sum(-1)
    torch.testing.assert_close(mixture.log_prob(z), torch.logsumexp(each, 1) - math.log(4), rtol=1e-5, atol=1e-5)
    mixture.log_prob(z).sum().backward()
    assert prior.raw_pseudo_inputs.grad.abs().sum() > 0
    assert mixture.sample((3,)).shape == (3, *event)


def test_pseudo_inputs_start_in_the_data_or_between_the_bounds():
    data = torch.randn(20, 2, 3).clamp(-2, 2)
    prior = VampPrior(20, Encoder(), (2, 3), data=data, low=-2, high=2)
    found = (prior.pseudo_inputs[:, None] == data).flatten(2).all(-1)
    assert (found.sum(0) == 1).all()  # without replacement
    assert not torch.equal(prior.pseudo_inputs, data)
    start = data.clone()
    with torch.no_grad():
        prior.raw_pseudo_inputs.zero_()
    assert torch.equal(data, start)
    prior = VampPrior(50, Encoder(), 6, low=-3, high=5)
    assert (prior.pseudo_inputs.min() < -2, prior.pseudo_inputs.max() > 4) == (True, True)
    assert torch.equal(prior.pseudo_inputs, prior.raw_pseudo_inputs)
    counts = VampPrior(2, Encoder(), (6,), data=torch.ones(3, 6, dtype=torch.uint8))
    assert counts.raw_pseudo_inputs.dtype == torch.float32


def test_pseudo_inputs_stay_inside_for_ever():
    prior = VampPrior(8, Encoder(), (6,), low=-0.3, high=0.7)
    optimizer = torch.optim.SGD(prior.parameters(), lr=10.0, momentum=0.9)
    touched = 0
    for step in range(200):
        optimizer.zero_grad()
        (torch.randn(8, 6) * prior.pseudo_inputs).sum().backward()
        optimizer.step()
        inside = prior.pseudo_inputs
        assert (inside >= -0.3).all()
        assert (inside <= 0.7).all()
        touched += step > 100 and bool((inside != 0.7).any() and (inside != -0.3).any())
    assert touched


@pytest.mark.parametrize(("raw", "blocked"), [(-0.5, 1.0), (1.5, -1.0), (0.0, None), (1.0, None), (0.5, None)])
def test_gradient_at_the_bounds_is_live(raw, blocked):
    prior = VampPrior(1, Encoder(), (1,))
    for slope in (1.0, -1.0):
        with torch.no_grad():
            prior.raw_pseudo_inputs.fill_(raw)
        prior.zero_grad()
        (slope * prior.pseudo_inputs).sum().backward()
        assert prior.raw_pseudo_inputs.grad.item() == (0 if slope == blocked else slope)


def test_a_pseudo_input_at_the_bound_comes_back():
    prior = VampPrior(1, Encoder(), (1,))
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.1)
    for target in (5.0, 0.2):
        for _ in range(200):
            optimizer.zero_grad()
            (prior.pseudo_inputs - target).square().sum().backward()
            optimizer.step()
        assert prior.pseudo_inputs.item() == pytest.approx(min(target, 1.0), abs=0.02)


@pytest.mark.parametrize("method", [False, True])
def test_the_encoder_is_registered_once(method):
    model = VAE(method)
    assert list(model.prior.state_dict()) == ["raw_pseudo_inputs"]
    assert list(dict(model.prior.named_parameters())) == ["raw_pseudo_inputs"]
    assert list(model.prior.modules()) == [model.prior]
    assert len(list(model.named_parameters(remove_duplicate=False))) == 3
    z = torch.randn(4, 2)
    model.prior().log_prob(z).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("method", [False, True])
@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_bound_to_its_own_encoder(method, make_copy):
    model, z = VAE(method), torch.randn(4, 2)
    before = model.prior().log_prob(z)
    other = make_copy(model)
    assert torch.equal(other.prior().log_prob(z), before)
    with torch.no_grad():
        other.encoder.net.bias.fill_(9.0)
    assert not torch.equal(other.prior().log_prob(z), before)
    assert torch.equal(model.prior().log_prob(z), before)


def test_the_whole_module_is_saved(tmp_path):
    model, z = VAE(), torch.randn(4, 2)
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(again.prior().log_prob(z), model.prior().log_prob(z))
    fresh = VAE()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.prior().log_prob(z), model.prior().log_prob(z))


def test_trains_in_an_elbo():
    model, decoder, x = VAE(), nn.Linear(2, 6), torch.rand(32, 6)
    elbo = kldiv.ELBOLoss(kldiv.BernoulliNLL(), kl=kldiv.MonteCarloKLLoss())
    optimizer = torch.optim.Adam([*model.parameters(), *decoder.parameters()], lr=0.05)
    losses = []
    for _ in range(25):
        posterior = model.encode(x)
        z = posterior.rsample()
        terms = elbo(decoder(z), x, posterior, model.prior(), sample=z)
        expected = posterior.log_prob(z) - model.prior().log_prob(z)
        torch.testing.assert_close(terms.kl, expected.mean())
        optimizer.zero_grad()
        terms.loss.backward()
        optimizer.step()
        losses.append(terms.loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])


def test_errors_of_the_vamp_prior():
    with pytest.raises(TypeError, match=r"tuple.*DiagonalNormal\(mean, log_var\)"):
        VampPrior(2, lambda x: (x, x), (6,))()
    with pytest.raises(TypeError, match="Tensor"):
        VampPrior(2, torch.zeros(2), (6,))
    with pytest.raises(ValueError, match=r"\(2, 6\).*DiagonalNormal.*batch shape \(1,\).*event shape \(6,\).* 2"):
        VampPrior(2, lambda x: DiagonalNormal(x[:1], x[:1]), (6,))()
    with pytest.raises(ValueError, match=r"batch shape \(\)"):
        VampPrior(2, lambda x: Normal(0.0, 1.0), (6,))()
    with pytest.raises(ValueError, match=r"\(3, 5\).*\(n, 6\).*2"):
        VampPrior(2, Encoder(), (6,), data=torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"\(1, 6\)"):
        VampPrior(2, Encoder(), (6,), data=torch.zeros(1, 6))
    with pytest.raises(ValueError, match=r"between 0 and 2, not inside of low=0\.0, high=1\.0"):
        VampPrior(1, Encoder(), (2,), data=torch.tensor([[0.0, 2.0]]))
    with pytest.raises(ValueError, match="not inside"):
        VampPrior(1, Encoder(), (2,), data=torch.tensor([[0.0, torch.nan]]))
    with pytest.raises(ValueError, match=r"low=1.* high=0"):
        VampPrior(1, Encoder(), (2,), low=1, high=0)
    with pytest.raises(ValueError, match="data="):
        VampPrior(1, Encoder(), (2,), low=-math.inf, high=math.inf)
    assert repr(VampPrior(2, Encoder(), (6,))) == "VampPrior(num_components=2, input_shape=(6,), low=0.0, high=1.0)"


def test_standard_prior_of_reals_and_categories():
    prior = standard_prior(MultivariateNormal(torch.zeros(5, 3).double(), torch.eye(3).double()))
    assert (prior.batch_shape, prior.event_shape, prior.mean.dtype) == ((), (3,), torch.float64)
    flow = TransformedDistribution(Normal(torch.zeros(5), 1.0), AffineTransform(1.0, 2.0))
    assert standard_prior(flow).event_shape == ()
    assert standard_prior(Categorical(logits=torch.randn(0, 4), validate_args=False)).probs.tolist() == [0.25] * 4
    assert isinstance(standard_prior(OneHotCategorical(logits=torch.randn(2, 4))), OneHotCategorical)


@pytest.mark.parametrize("posterior", [Gamma(torch.ones(2), 1.0), Bernoulli(torch.ones(2) / 2)])
def test_standard_prior_of_other_supports_raises_with_the_prior_to_write(posterior):
    with pytest.raises(ValueError, match=rf"prior={type(posterior).__name__}\("):
        standard_prior(posterior)
