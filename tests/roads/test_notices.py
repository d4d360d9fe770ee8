"""What a bound says of an encoder that learns nothing from the reconstruction: once, and not where it learns."""

import pickle
import warnings

import pytest
import torch
from torch import distributions, nn
from torch.utils.checkpoint import checkpoint

from kldiv import (
    BalancedKLLoss,
    BernoulliNLL,
    DiagonalNormal,
    ELBOLoss,
    GumbelSoftmax,
    ImportanceWeightedELBOLoss,
    MonteCarloKLLoss,
    TotalCorrelationKLLoss,
)

X = torch.ones(6, 5)


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder, self.prior = nn.Linear(5, 8), nn.Linear(4, 5), nn.Linear(1, 8)

    def posterior(self, x=X):
        return DiagonalNormal(*self.encoder(x).chunk(2, -1))


def said(bound, *arguments, **options):
    """What a call says."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bound(*arguments, **options).loss.backward()
    return [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]


def categories(logits, kind=distributions.OneHotCategorical):
    return kind(logits=logits.unflatten(-1, (4, 2)))


DISCRETE = {
    "one-hot": lambda h: categories(h),
    "categories": lambda h: categories(h, distributions.Categorical),
    "bits": lambda h: distributions.Bernoulli(logits=h),
    "independent bits": lambda h: distributions.Independent(distributions.Bernoulli(logits=h), 1),
    "counts": lambda h: distributions.Poisson(h.exp()),
}


@pytest.mark.parametrize("kl", [None, MonteCarloKLLoss(), BalancedKLLoss()], ids=lambda kl: type(kl).__name__)
class TestSaid:
    def test_of_a_sample_without_a_graph_once(self, kl):
        vae, elbo = VAE(), ELBOLoss(BernoulliNLL(), kl)
        q = vae.posterior()
        (message,) = said(elbo, vae.decoder(q.sample()), X, q)
        assert "rsample()" in message
        assert 'gradient="score"' in message
        assert "GumbelSoftmax" in message
        q = vae.posterior()
        assert said(elbo, vae.decoder(q.sample()), X, q) == []

    def test_of_a_detached_sample(self, kl):
        vae = VAE()
        q = vae.posterior()
        assert said(ELBOLoss(BernoulliNLL(), kl), vae.decoder(q.rsample().detach()), X, q)

    def test_a_sample_that_is_given_without_a_gradient_raises_each_time(self, kl):
        vae, elbo = VAE(), ELBOLoss(BernoulliNLL(), kl)
        for _ in range(2):
            q = vae.posterior()
            z = q.sample()
            with pytest.raises(ValueError, match=r"rsample\(\)"):
                elbo(vae.decoder(z), X, q, sample=z)
        z = q.rsample()
        assert said(elbo, vae.decoder(z), X, q, sample=z) == []


@pytest.mark.parametrize("family", DISCRETE)
def test_of_discrete_posteriors(family):
    vae = VAE()
    q = DISCRETE[family](vae.encoder(X))
    prior = distributions.Poisson(1.0) if family == "counts" else None
    if family in ("bits", "independent bits"):
        prior = distributions.Independent(distributions.Bernoulli(logits=torch.zeros(8)), int(family != "bits"))
    z = q.sample()
    output = vae.decoder(z.flatten(1)[:, :4].float())
    (message,) = said(ELBOLoss(BernoulliNLL()), output, X, q, prior)
    assert 'gradient="score"' in message
    assert "GumbelSoftmax" in message
    q = DISCRETE[family](vae.encoder(X))
    with pytest.raises(ValueError, match=r"gradient=\"score\".*GumbelSoftmax"):
        ELBOLoss(BernoulliNLL())(output, X, q, prior, sample=z)


def test_a_score_gradient_needs_none_through_the_sample():
    vae = VAE()
    q = vae.posterior()
    z = q.sample((3,))
    elbo = ELBOLoss(BernoulliNLL(), MonteCarloKLLoss(gradient="score"))
    with pytest.warns(UserWarning, match="learns nothing"):  # of the KL alone is it a score
        elbo(vae.decoder(z[0]), X, q, sample=z)


def quiet_calls():
    """By name: what is given to an ELBO, in cases where the encoder learns or is not to learn."""

    def own_noise(vae):
        mean, log_var = vae.encoder(X).chunk(2, -1)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        return vae.decoder(z), X, DiagonalNormal(mean, log_var)

    def slices_taken_anew(vae):
        h = vae.encoder(X)
        z = h[:, :4] + torch.exp(0.5 * h[:, 4:]) * torch.randn(6, 4)
        return vae.decoder(z), X, DiagonalNormal(h[:, :4], h[:, 4:])

    def encoded_twice(vae):
        return vae.decoder(vae.posterior().rsample()), X, vae.posterior()

    def straight_through(vae):
        q = categories(vae.encoder(X), distributions.OneHotCategoricalStraightThrough)
        return vae.decoder(q.rsample()[..., 0]), X, q

    def straight_through_by_hand(vae):
        q = categories(vae.encoder(X))
        z = q.sample() + q.probs - q.probs.detach()
        return vae.decoder(z[..., 0]), X, q

    def gumbel_softmax(vae):
        q = categories(vae.encoder(X), GumbelSoftmax)
        return vae.decoder(q.rsample()[..., 0]), X, q

    def relaxed_bits(vae):
        logits = vae.encoder(X)[:, :4]
        z = distributions.RelaxedBernoulli(0.5, logits=logits).rsample()
        return vae.decoder(z), X, distributions.Bernoulli(logits=logits), distributions.Bernoulli(logits=torch.zeros(4))

    def frozen_encoder(vae):
        vae.encoder.requires_grad_(False)
        q = vae.posterior()
        return vae.decoder(q.sample()), X, q

    def frozen_decoder(vae):
        vae.decoder.requires_grad_(False)
        q = vae.posterior()
        return vae.decoder(q.rsample()), X, q

    def decoder_fed_with_more(vae):
        q = vae.posterior()
        return vae.decoder(q.rsample()) + X, X, q

    def skip_connection(vae):
        h = vae.encoder(X)
        q = DiagonalNormal(*h.chunk(2, -1))
        return vae.decoder(q.sample() + h[:, :4]), X, q

    def hierarchy(vae):
        top = vae.posterior()
        z = top.rsample()
        bottom = DiagonalNormal(0.5 * z, torch.zeros(6, 4))
        return vae.decoder(bottom.rsample()), X, [top, bottom], [None, DiagonalNormal(z, torch.zeros(6, 4))]

    def a_latent_of_the_prior_alone(vae):
        other = nn.Linear(5, 8)
        top, bottom = DiagonalNormal(*other(X).chunk(2, -1)), vae.posterior()
        prior = DiagonalNormal(top.rsample(), torch.zeros(6, 4))
        return vae.decoder(bottom.rsample()), X, [top, bottom], [None, prior]

    def steps_of_a_recurrence(vae):
        state, posteriors, outputs = torch.zeros(6, 5), [], []
        for _ in range(3):
            posteriors.append(vae.posterior(X + state))
            state = vae.decoder(posteriors[-1].rsample())
            outputs.append(state)
        return sum(outputs), X, posteriors

    def checkpointed(vae):
        q = vae.posterior()
        return checkpoint(vae.decoder, q.rsample(), use_reentrant=False), X, q

    def leaves(vae):
        mean = torch.zeros(6, 4, requires_grad=True)
        q = DiagonalNormal(mean, torch.zeros(6, 4))
        return vae.decoder(q.rsample()), X, q

    def full_covariance(vae):
        q = distributions.MultivariateNormal(vae.encoder(X)[:, :4], torch.eye(4))
        return vae.decoder(q.rsample()), X, q

    return {name: make for name, make in locals().items() if callable(make)}


@pytest.mark.parametrize("call", quiet_calls())
def test_quiet(call):
    assert said(ELBOLoss(BernoulliNLL()), *quiet_calls()[call](VAE())) == []


def test_quiet_where_nothing_is_trained():
    vae, elbo = VAE(), ELBOLoss(BernoulliNLL(), MonteCarloKLLoss())

    def call():
        q = vae.posterior()
        z = q.sample()
        return elbo(vae.decoder(z), X, q, sample=z)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            call()
        with torch.inference_mode():
            call()
        elbo = ELBOLoss(BernoulliNLL()).eval()
        call()
        elbo = ELBOLoss(BernoulliNLL())

        def loss(mean):
            return elbo(torch.zeros(6, 5), X, DiagonalNormal(mean, torch.zeros(6, 4), validate_args=False)).loss

        torch.func.grad(loss)(torch.zeros(6, 4))
        torch.vmap(torch.func.grad(loss))(torch.zeros(2, 6, 4))
        torch.compile(loss, backend="aot_eager")(torch.zeros(6, 4, requires_grad=True))
    with pytest.warns(UserWarning, match="learns nothing"):
        loss(torch.zeros(6, 4, requires_grad=True))


def test_a_hierarchy_whose_samples_are_all_detached():
    vae = VAE()
    top = vae.posterior()
    bottom = DiagonalNormal(*vae.encoder(X).chunk(2, -1))
    output = vae.decoder(top.sample() + bottom.sample())
    assert said(ELBOLoss(BernoulliNLL()), output, X, [top, bottom])


def test_one_of_two_groups_learns_nothing():
    vae, other = VAE(), nn.Linear(5, 8)
    first, second = vae.posterior(), DiagonalNormal(*other(X).chunk(2, -1))
    (message,) = said(ELBOLoss(BernoulliNLL()), vae.decoder(first.rsample() + second.sample()), X, [first, second])
    assert "posterior 1" in message


def test_a_bound_that_has_looked_is_copied_and_pickled():
    vae = VAE()
    elbo = ELBOLoss(BernoulliNLL())
    q = vae.posterior()
    elbo(vae.decoder(q.rsample()), X, q)
    q = vae.posterior()
    assert said(pickle.loads(pickle.dumps(elbo)), vae.decoder(q.sample()), X, q) == []


def importance(gradient="pathwise"):
    return ImportanceWeightedELBOLoss(BernoulliNLL(), gradient=gradient)


class TestImportanceWeighting:
    def test_a_sample_that_the_decoder_did_not_consume(self):
        vae, bound = VAE(), importance()
        q = vae.posterior()
        (message,) = said(bound, vae.decoder(q.rsample((3,))), X, q, sample=q.rsample((3,)))
        assert "z = posterior.rsample((K,))" in message
        q = vae.posterior()
        assert said(bound, vae.decoder(q.rsample((3,))), X, q, sample=q.rsample((3,))) == []

    def test_an_output_without_a_graph_to_the_encoder(self):
        vae = VAE()
        q = vae.posterior()
        z = q.rsample((3,))
        messages = said(importance(), vae.decoder(z.detach()), X, q, sample=z)
        assert "learns nothing" in messages[0]

    def test_a_sample_without_a_gradient(self):
        vae = VAE()
        q = vae.posterior()
        z = q.sample((3,))
        with pytest.raises(ValueError, match=r"rsample\(\)"):
            importance()(vae.decoder(z), X, q, sample=z)
        q = categories(vae.encoder(X))
        z = q.sample((3,))
        with pytest.raises(ValueError, match=r'gradient="score".*GumbelSoftmax'):
            importance()(vae.decoder(z[..., 0]), X, q, sample=z)

    @pytest.mark.parametrize(
        "consumed",
        [
            lambda z: z,
            lambda z: z.flatten(0, 1),
            lambda z: 2 * z,
            lambda z: torch.stack(list(z)),
            lambda z: z.clone(),
        ],
    )
    def test_quiet_where_it_was_consumed(self, consumed):
        vae = VAE()
        q = vae.posterior()
        z = q.rsample((3,))
        assert said(importance(), vae.decoder(consumed(z)).view(3, 6, 5), X, q, sample=z) == []

    @pytest.mark.parametrize("given", [lambda z: z.view(3, 6, 4), lambda z: z.clone(), lambda z: z.double().float()])
    def test_quiet_of_a_view_or_a_copy(self, given):
        vae = VAE()
        q = vae.posterior()
        z = q.rsample((3,))
        assert said(importance(), vae.decoder(z), X, q, sample=given(z)) == []

    def test_samples_drawn_one_by_one(self):
        vae = VAE()
        q = vae.posterior()
        zs = [q.rsample() for _ in range(3)]
        output = torch.stack([vae.decoder(z) for z in zs])
        assert said(importance(), output, X, q, sample=torch.stack(zs)) == []

    def test_a_latent_that_another_depends_on(self):
        vae = VAE()
        top = vae.posterior()
        z_top = top.rsample((3,))
        bottom = DiagonalNormal(0.5 * z_top, torch.zeros(3, 6, 4))
        z = bottom.rsample()
        assert said(importance(), vae.decoder(z), X, [top, bottom], sample=[z_top, z]) == []


def test_total_correlation():
    vae, elbo = VAE(), ELBOLoss(BernoulliNLL(), TotalCorrelationKLLoss(100))
    q = vae.posterior()
    z = q.rsample()
    assert said(elbo, vae.decoder(z), X, q, sample=z) == []
