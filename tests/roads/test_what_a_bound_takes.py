"""What an ELBO is given: a KL that is known, groups with a weight and a transform each, densities and weights."""

import pytest
import torch
from torch import distributions, nn

from kldiv import (
    GECO,
    BalancedKLLoss,
    BernoulliNLL,
    Capacity,
    DiagonalNormal,
    ELBOLoss,
    ExactKLLoss,
    FreeBits,
    KLTerm,
    LinearWarmup,
    NegativeLogLikelihood,
)
from kldiv.losses import KLValues

X = torch.ones(3, 5)
OUTPUT = torch.zeros(3, 5)


def groups():
    return [DiagonalNormal(torch.full((3, d), 0.5 * d), torch.zeros(3, d)) for d in (1, 2)]


class TestKnownKL:
    @pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 4)])
    @pytest.mark.parametrize("transform", [None, FreeBits(0.1, batch_mean=False), Capacity(1.0, 2.0)])
    def test_in_place_of_the_terms(self, shape, transform):
        torch.manual_seed(0)
        values = torch.rand(shape, requires_grad=True)
        elbo = ELBOLoss(BernoulliNLL(), weight=0.5, transform=transform)
        terms = elbo(OUTPUT, X, None, kl=values)
        torch.testing.assert_close(terms.kl, values.sum() / 3)
        torch.testing.assert_close(terms.negative_elbo, terms.reconstruction + terms.kl)
        if transform is None:
            torch.testing.assert_close(terms.loss, terms.reconstruction + 0.5 * terms.kl)
            (gradient,) = torch.autograd.grad(terms.loss, values)
            torch.testing.assert_close(gradient, torch.full(shape, 0.5 / 3))

    def test_beside_a_posterior(self):
        values = torch.rand(3, 2)
        torch.testing.assert_close(ELBOLoss(BernoulliNLL())(OUTPUT, X, groups()[1], kl=values).kl, values.sum() / 3)

    def test_of_one_group_of_two(self):
        values = torch.rand(3)
        terms = ELBOLoss(BernoulliNLL())(OUTPUT, X, [groups()[0], None], kl=[None, values])
        torch.testing.assert_close(terms.kl_per_group, (torch.tensor(0.125), values.mean()))
        terms = ELBOLoss(BernoulliNLL())(OUTPUT, X, None, kl=[values, 2 * values])
        torch.testing.assert_close(terms.kl, 3 * values.mean())

    def test_masks_and_weights(self):
        values = torch.tensor([[1.0, torch.inf], [2.0, 3.0], [torch.nan, torch.nan]], requires_grad=True)
        mask, weight = torch.tensor([[1, 0], [1, 1], [1, 1]]), torch.tensor([1.0, 2.0, 0.0])
        terms = ELBOLoss(BernoulliNLL())(OUTPUT, X, None, kl=values, latent_mask=mask, sample_weight=weight)
        assert terms.kl.item() == pytest.approx(11 / 3)
        (gradient,) = torch.autograd.grad(terms.loss, values)
        torch.testing.assert_close(gradient, torch.tensor([[1.0, 0], [2.0, 2.0], [0, 0]]) / 3)

    def test_a_weight_of_zero(self):
        values = torch.full((3,), torch.inf, requires_grad=True)
        terms = ELBOLoss(BernoulliNLL(), weight=LinearWarmup(10))(OUTPUT, X, None, kl=values)
        assert terms.loss == terms.reconstruction

    def test_half_precision(self):
        terms = ELBOLoss(BernoulliNLL())(OUTPUT, X, None, kl=torch.ones(3, 2).half())
        assert terms.kl.dtype == torch.float32

    def test_what_it_must_be(self):
        elbo = ELBOLoss(BernoulliNLL())
        for kl in (2.0, torch.tensor(2.0), torch.ones(3, dtype=torch.long)):
            with pytest.raises(TypeError, match=r"kl= is .*a tensor \(N,\) or \(N, \*latent\)"):
                elbo(OUTPUT, X, None, kl=kl)
        with pytest.raises(ValueError, match=r"KL of shape \(4,\)\) and the reconstruction 3"):
            elbo(OUTPUT, X, None, kl=torch.ones(4))
        with pytest.raises(TypeError, match="kl="):
            elbo(OUTPUT, X, None)


class TestEachGroup:
    def test_a_weight_for_each(self):
        elbo = ELBOLoss(BernoulliNLL(), weight=[2.0, LinearWarmup(4)])
        first, second = ELBOLoss(BernoulliNLL())(OUTPUT, X, groups()).kl_per_group
        for step in range(3):
            terms = elbo(OUTPUT, X, groups())
            torch.testing.assert_close(terms.loss, terms.reconstruction + 2 * first + step / 4 * second)
            assert terms.weight.tolist() == [2.0, step / 4]
            assert terms.negative_elbo == terms.reconstruction + terms.kl
            elbo.step()
        assert "weight.1.steps_taken" in elbo.state_dict()

    def test_a_transform_for_each(self):
        elbo = ELBOLoss(BernoulliNLL(), transform=[None, FreeBits(0.7)])
        terms = elbo(OUTPUT, X, groups())
        torch.testing.assert_close(terms.loss, terms.reconstruction + 0.125 + 2 * 0.7)
        elbo = ELBOLoss(BernoulliNLL(), transform=(FreeBits(0.7), Capacity(0.0, 2.0)), weight=(3.0, 0.5))
        terms = elbo(OUTPUT, X, groups())
        torch.testing.assert_close(terms.loss, terms.reconstruction + 3 * 0.7 + 0.5 * 2 * 1.0)

    def test_a_transform_of_all_with_a_weight_for_each(self):
        terms = ELBOLoss(BernoulliNLL(), transform=FreeBits(0.7), weight=[3.0, 0.5])(OUTPUT, X, groups())
        torch.testing.assert_close(terms.loss, terms.reconstruction + 3 * 0.7 + 0.5 * 1.4)
        with pytest.raises(ValueError, match="joins the groups"):
            ELBOLoss(BernoulliNLL(), transform=Capacity(1.0, 1.0), weight=[1.0, 2.0])(OUTPUT, X, groups())

    def test_a_controller_sees_its_own_group(self):
        elbo = ELBOLoss(BernoulliNLL(), weight=[1.0, GECO(1.0)])
        elbo(OUTPUT, X, groups())
        assert elbo.weight[1].observed[1] == 3

    def test_a_weight_of_zero_of_one_group(self):
        posteriors = groups()
        posteriors[1] = DiagonalNormal(torch.full((3, 2), 1e30), torch.zeros(3, 2))
        terms = ELBOLoss(BernoulliNLL(), weight=[1.0, 0.0])(OUTPUT, X, posteriors)
        torch.testing.assert_close(terms.loss, terms.reconstruction + 0.125)

    def test_numbers_that_do_not_fit(self):
        with pytest.raises(ValueError, match="weight has 2 entries and posterior 1"):
            ELBOLoss(BernoulliNLL(), weight=[1.0, 2.0])(OUTPUT, X, groups()[0])
        with pytest.raises(ValueError, match="transform has 3 entries and posterior 2"):
            ELBOLoss(BernoulliNLL(), transform=[None, None, FreeBits(0.1)])(OUTPUT, X, groups())
        with pytest.raises(ValueError, match="weight=-1"):
            ELBOLoss(BernoulliNLL(), weight=[1.0, -1.0])


class Density(KLTerm):
    """A term that notes what it is given."""

    def unreduced(self, posterior, prior=None, sample=None, *, sample_log_prob=None):
        self.given = sample, sample_log_prob
        return torch.zeros(posterior.batch_shape)

    def kl_values(self, posterior, prior=None, sample=None, *, sample_log_prob=None):
        return KLValues(self.unreduced(posterior, prior, sample, sample_log_prob=sample_log_prob))


class TestHandedOn:
    def test_the_density_of_a_sample(self):
        q, term = groups()[1], Density()
        z = q.rsample()
        log_prob = q.log_prob(z)
        ELBOLoss(BernoulliNLL(), term)(OUTPUT, X, q, sample=z, sample_log_prob=log_prob)
        assert term.given[1] is log_prob
        ELBOLoss(BernoulliNLL(), term)(OUTPUT, X, [q, q], sample=[z, z], sample_log_prob=[None, log_prob])
        assert term.given[1] is log_prob
        ELBOLoss(BernoulliNLL(), BalancedKLLoss(kl=term))(OUTPUT, X, q, sample=z, sample_log_prob=log_prob)
        assert term.given[1] is log_prob

    def test_a_closed_form_ignores_it_as_it_ignores_the_sample(self):
        q = groups()[1]
        z = q.rsample()
        terms = ELBOLoss(BernoulliNLL(), ExactKLLoss())(OUTPUT, X, q, sample=z, sample_log_prob=q.log_prob(z))
        assert terms.kl == 1.0

    def test_weights_of_elements(self):
        given = {}

        class Noting(NegativeLogLikelihood):
            def per_example(self, output, target, *, mask=None, **options):
                given.update(options)
                return output.sum(1)

        elbo, weight = ELBOLoss(Noting()), torch.rand(3, 5)
        elbo(OUTPUT, X, groups()[1])
        assert given == {}
        elbo(OUTPUT, X, groups()[1], element_weight=weight)
        assert given["element_weight"] is weight


class Given(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self):
        return self.value


class TestWeights:
    def test_a_parameter_is_refused_with_what_to_write(self):
        for weight in (nn.Parameter(torch.ones(())), torch.ones((), requires_grad=True)):
            with pytest.raises(TypeError, match=r"a module whose forward\(\) returns the parameter"):
                ELBOLoss(BernoulliNLL(), weight=weight)
        elbo = ELBOLoss(BernoulliNLL())
        with pytest.raises(TypeError, match=r"kldiv\.GECO"):
            elbo.weight = nn.Parameter(torch.ones(()))

    def test_what_is_to_be_written_has_its_gradient(self):
        parameter = nn.Parameter(torch.zeros(()))
        elbo = ELBOLoss(BernoulliNLL(), weight=Given(parameter))
        terms = elbo(OUTPUT, X, groups()[1])
        assert torch.autograd.grad(terms.loss, parameter)[0] == terms.kl

    @pytest.mark.parametrize("weight", [0.5, torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float64)])
    def test_numbers_and_modules_that_return_one(self, weight):
        for given in (weight, Given(weight)):
            terms = ELBOLoss(BernoulliNLL(), weight=given)(OUTPUT, X, groups()[1])
            assert terms.weight.shape == ()
            assert terms.loss.item() == pytest.approx(terms.reconstruction.item() + 0.5)
        terms = ELBOLoss(BernoulliNLL(), weight=Given(2))(OUTPUT, X, groups()[1])
        assert terms.loss == terms.reconstruction + 2

    def test_what_is_no_weight(self):
        for weight, says in (("1", "a str"), (None, "NoneType"), (torch.ones(2), r"\(2,\).*a list")):
            with pytest.raises((TypeError, ValueError), match=says):
                ELBOLoss(BernoulliNLL(), weight=weight)
        with pytest.raises(TypeError, match="Given gives a str as weight"):
            ELBOLoss(BernoulliNLL(), weight=Given("1"))(OUTPUT, X, groups()[1])


class TestOldCheckpoints:
    @pytest.mark.parametrize(
        "new", [LinearWarmup(10), GECO(1.0), [1.0, LinearWarmup(10)]], ids=["warm-up", "geco", "two"]
    )
    def test_of_a_number_load_into_a_schedule(self, new):
        model = nn.ModuleDict({"net": nn.Linear(2, 2), "elbo": ELBOLoss(BernoulliNLL(), weight=2.0)})
        later = nn.ModuleDict({"net": nn.Linear(2, 2), "elbo": ELBOLoss(BernoulliNLL(), weight=new)})
        with pytest.warns(UserWarning, match=r"has no elbo\.weight.*steps_taken\.fill_"):
            later.load_state_dict(model.state_dict())
        assert torch.equal(later["net"].weight, model["net"].weight)

    @pytest.mark.parametrize("old", [LinearWarmup(10), GECO(1.0), LinearWarmup(fraction=0.5)])
    def test_of_a_schedule_load_into_a_number(self, old):
        elbo = ELBOLoss(BernoulliNLL(), weight=old)
        assert not ELBOLoss(BernoulliNLL(), weight=2.0).load_state_dict(elbo.state_dict()).unexpected_keys

    def test_of_one_schedule_load_into_another(self):
        old = ELBOLoss(BernoulliNLL(), weight=GECO(1.0))
        old.step()
        new = ELBOLoss(BernoulliNLL(), weight=LinearWarmup(10))
        new.load_state_dict(old.state_dict())
        assert new.weight.steps_taken == 1

    def test_what_else_is_wrong_still_raises(self):
        elbo = ELBOLoss(BernoulliNLL(), weight=LinearWarmup(10))
        with pytest.raises(RuntimeError, match="typo"):
            elbo.load_state_dict({**elbo.state_dict(), "typo": torch.ones(())})


def test_a_sample_that_is_a_tuple():
    q = distributions.Normal(torch.zeros(3, 2), 1.0)

    class Own(KLTerm):
        def unreduced(self, posterior, prior=None, sample=None):
            return sample.sum(1, keepdim=True)

    for term in (Own(), BalancedKLLoss(kl=Own())):
        for method in (term, term.per_example, term.per_dimension):
            with pytest.raises(TypeError, match="the sample is a tuple"):
                method(q, None, (q.rsample(),))
