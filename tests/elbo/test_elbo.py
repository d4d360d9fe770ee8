import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map

import kldiv
from kldiv import (
    BernoulliNLL,
    DiagonalNormal,
    ELBOLoss,
    ExactKLLoss,
    GaussianKLLoss,
    GaussianNLL,
    LinearWarmup,
    MixturePrior,
    MonteCarloKLLoss,
    attach,
)
from kldiv.functional import kl_normal
from tests.marks import slow
from tests.two_processes import in_two_processes


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    output, target = torch.randn(4, 6, generator=generator), torch.rand(4, 6, generator=generator)
    mean, log_var = torch.randn(4, 3, generator=generator), torch.randn(4, 3, generator=generator)
    return output, target, DiagonalNormal(mean, log_var)


def by_hand(output, target, posterior):
    reconstruction = functional.binary_cross_entropy_with_logits(output, target, reduction="none").sum(1)
    return reconstruction, kl_normal(posterior.mean, posterior.log_var)


class Halve(nn.Module):
    def forward(self, values):
        return values / 2


@pytest.mark.parametrize("reduction", ["batchmean", "sum", "none"])
def test_terms_against_hand_written_ones(batch, reduction):
    reduced = {"batchmean": torch.Tensor.mean, "sum": torch.Tensor.sum, "none": lambda values: values}[reduction]
    reconstruction, kl = by_hand(*batch)
    # a term's own reduction does not count
    elbo = ELBOLoss(BernoulliNLL("sum"), transform=Halve(), weight=3.0, reduction=reduction)
    terms = elbo(*batch)
    torch.testing.assert_close(terms.reconstruction, reduced(reconstruction))
    torch.testing.assert_close(terms.kl, reduced(kl.sum(1)))
    torch.testing.assert_close(terms.negative_elbo, reduced(reconstruction + kl.sum(1)))
    torch.testing.assert_close(terms.loss, reduced(reconstruction + 1.5 * kl.sum(1)))
    assert terms.weight.item() == 3.0


def test_negative_elbo_is_the_bound_whatever_the_weight(batch):
    plain, weighted = (ELBOLoss(BernoulliNLL(), weight=weight)(*batch) for weight in (1.0, 0.0))
    torch.testing.assert_close(plain.loss, plain.negative_elbo)
    torch.testing.assert_close(plain.negative_elbo, weighted.negative_elbo)
    torch.testing.assert_close(weighted.loss, weighted.reconstruction)


def test_is_the_same_in_training_and_validation(batch):
    elbo = ELBOLoss(BernoulliNLL(), weight=LinearWarmup(steps=4))
    elbo.step()
    training = elbo(*batch)
    torch.testing.assert_close(elbo.eval()(*batch), training)


@pytest.mark.filterwarnings("ignore:the output depends on no parameter")
def test_gradients_are_those_of_the_loss(batch):
    output, target, posterior = batch
    inputs = [v.clone().requires_grad_() for v in (output, posterior.mean, posterior.log_var)]
    loss = ELBOLoss(BernoulliNLL(), weight=0.5)(inputs[0], target, DiagonalNormal(*inputs[1:])).loss
    gradients = torch.autograd.grad(loss, inputs)
    torch.testing.assert_close(gradients[0], (torch.sigmoid(output) - target) / 4)
    torch.testing.assert_close(gradients[1], 0.5 * posterior.mean / 4)
    torch.testing.assert_close(gradients[2], 0.25 * torch.expm1(posterior.log_var) / 4)


def test_detach_drops_the_graph(batch):
    output = batch[0].requires_grad_()
    terms = ELBOLoss(BernoulliNLL())(output, *batch[1:])
    assert terms.loss.requires_grad
    detached = terms.detach()
    assert type(detached) is kldiv.ELBOTerms
    assert not any(term.requires_grad for term in tree_leaves(detached))


def test_the_terms_are_a_plain_named_tuple_whatever_passes_them_on(batch):
    output, target, posterior = batch
    terms = ELBOLoss(BernoulliNLL())(output, target, [posterior, posterior])
    assert terms._fields == ("loss", "negative_elbo", "reconstruction", "kl", "weight", "kl_per_group")
    loss, *_, kl_per_group = terms
    assert loss is terms.loss
    assert kl_per_group is terms.kl_per_group
    for passed_on in (tree_map(torch.clone, terms), pickle.loads(pickle.dumps(terms)), copy.deepcopy(terms)):
        assert type(passed_on) is kldiv.ELBOTerms
        torch.testing.assert_close(passed_on, terms)
    replaced = terms._replace(loss=terms.kl)
    assert replaced.loss is terms.kl
    assert replaced.kl_per_group is terms.kl_per_group


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder, self.unused = nn.Linear(6, 4), nn.Linear(2, 6), nn.Linear(1, 1)
        self.elbo = ELBOLoss(BernoulliNLL())

    def forward(self, x):
        posterior = DiagonalNormal(*self.encoder(x).chunk(2, 1))
        return self.elbo(self.decoder(posterior.mean), x, [posterior, posterior])


def terms_of_one_of_two(rank):
    torch.manual_seed(0)
    x, model = torch.rand(6, 6), Model()
    distributed_model = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    terms = distributed_model(x[3 * rank : 3 * rank + 3])
    terms.loss.backward()
    gradient = model.encoder.weight.grad.clone()
    model.zero_grad()
    model(x).loss.backward()  # of the joined batch
    torch.testing.assert_close(gradient, model.encoder.weight.grad)
    return type(terms).__name__, terms.kl.item(), [kl.item() for kl in terms.kl_per_group]


@slow
def test_the_terms_pass_through_distributed_data_parallel(tmp_path):
    for name, kl, kl_per_group in in_two_processes(terms_of_one_of_two, tmp_path):
        assert name == "ELBOTerms"
        assert len(kl_per_group) == 2
        assert sum(kl_per_group) == pytest.approx(kl)


def test_a_schedule_is_counted_saved_and_restored(batch):
    elbo = ELBOLoss(BernoulliNLL(), weight=LinearWarmup(steps=4))
    weights = []
    for _ in range(3):
        weights.append(elbo(*batch).weight.item())
        elbo.step()
    assert weights == [0.0, 0.25, 0.5]
    resumed = ELBOLoss(BernoulliNLL(), weight=LinearWarmup(steps=4))
    resumed.load_state_dict(copy.deepcopy(elbo.state_dict()))
    assert resumed(*batch).weight.item() == 0.75


def test_monte_carlo_uses_the_decoders_sample_or_draws_its_own(batch):
    output, target, posterior = batch
    elbo = ELBOLoss(BernoulliNLL(), MonteCarloKLLoss())
    sample = posterior.rsample()
    prior = DiagonalNormal(torch.zeros(3), torch.zeros(3))
    expected = (posterior.log_prob(sample) - prior.log_prob(sample)).mean()
    torch.testing.assert_close(elbo(output, target, posterior, sample=sample).kl, expected)
    assert elbo(output, target, posterior).kl != elbo(output, target, posterior).kl


def test_weights_and_masks_keep_n_as_the_divisor(batch):
    reconstruction, kl = by_hand(*batch)
    sample_weight = torch.tensor([1.0, 0.0, 2.0, 1.0])
    terms = ELBOLoss(BernoulliNLL())(*batch, sample_weight=sample_weight)
    torch.testing.assert_close(terms.loss, ((reconstruction + kl.sum(1)) * sample_weight).sum() / 4)
    torch.testing.assert_close(terms.kl, (kl.sum(1) * sample_weight).sum() / 4)
    latent_mask = torch.tensor([True, False, True])
    terms = ELBOLoss(BernoulliNLL())(*batch, latent_mask=latent_mask, target_mask=torch.zeros(4, 1))
    torch.testing.assert_close(terms.kl, kl[:, [0, 2]].sum() / 4)
    assert terms.reconstruction.item() == 0
    output, target, posterior = batch
    log_var = posterior.log_var.masked_fill(~latent_mask, torch.inf)  # a KL that is not finite, where it does not count
    masked = ELBOLoss(BernoulliNLL())(output, target, DiagonalNormal(posterior.mean, log_var), latent_mask=latent_mask)
    torch.testing.assert_close(masked.kl, terms.kl)
    with pytest.raises(ValueError, match=r"sample_weight \(2,\)"):
        ELBOLoss(BernoulliNLL())(*batch, sample_weight=torch.ones(2))
    with pytest.raises(ValueError, match=r"latent_mask \(5, 4, 3\)"):
        ELBOLoss(BernoulliNLL())(*batch, latent_mask=torch.ones(5, 4, 3))


def test_latent_groups_add(batch):
    output, target, posterior = batch
    other = DiagonalNormal(torch.ones(4, 2, 5), torch.zeros(4, 2, 5), event_dim=2)
    together = ELBOLoss(BernoulliNLL())(output, target, [posterior, other])
    alone = [ELBOLoss(BernoulliNLL())(output, target, group).kl for group in (posterior, other)]
    torch.testing.assert_close(together.kl, sum(alone))
    torch.testing.assert_close(together.kl_per_group, tuple(alone))
    assert not any(kl.requires_grad for kl in together.detach().kl_per_group)
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0])
    each = ELBOLoss(BernoulliNLL(), reduction="none")(output, target, [posterior, other], sample_weight=weight)
    torch.testing.assert_close(sum(each.kl_per_group), each.kl)
    (only,) = ELBOLoss(BernoulliNLL())(output, target, other).kl_per_group
    torch.testing.assert_close(only, alone[1])
    with pytest.raises(ValueError, match="prior has 1 entries and posterior 2"):
        ELBOLoss(BernoulliNLL())(output, target, [posterior, other], [None])


def test_an_empty_batch():
    terms = ELBOLoss(BernoulliNLL())(torch.zeros(0, 6), torch.zeros(0, 6), DiagonalNormal(*torch.zeros(2, 0, 3)))
    assert all(value.item() == 0 for value in terms[:4])


def test_what_is_called_with_tensors_is_refused(batch):
    with pytest.raises(TypeError, match=r"DiagonalNormal\(mean, log_var\)"):
        ELBOLoss(BernoulliNLL(), GaussianKLLoss())
    with pytest.raises(TypeError, match=r"DiagonalNormal\(mean, log_var\)"):
        ELBOLoss(BernoulliNLL())(*batch[:2], batch[2].mean)
    with pytest.raises(TypeError, match="Sigmoid"):
        ELBOLoss(nn.Sigmoid())


def test_bad_arguments(batch):
    output, target, posterior = batch
    for weight in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="weight="):
            ELBOLoss(BernoulliNLL(), weight=weight)
    with pytest.raises(ValueError, match="batchmean"):
        ELBOLoss(BernoulliNLL(), reduction="mean")
    with pytest.raises(ValueError, match=r"4 examples.*reconstruction 3"):
        ELBOLoss(BernoulliNLL())(output[:3], target[:3], posterior)


def test_half_precision_and_autocast_return_float32(batch):
    output, target, posterior = batch
    half = DiagonalNormal(posterior.mean.bfloat16(), posterior.log_var.bfloat16())
    terms = ELBOLoss(BernoulliNLL())(output.bfloat16(), target, half)
    assert all(term.dtype == torch.float32 for term in tree_leaves(terms))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ELBOLoss(BernoulliNLL())(*batch).loss.dtype == torch.float32


def test_repr_shows_every_option():
    text = repr(ELBOLoss(GaussianNLL(), weight=2.0))
    assert all(part in text for part in ("weight=2.0", "reduction='batchmean'", "GaussianNLL", "ExactKLLoss"))


def test_saving_and_continuing_equals_never_stopping():
    def run(stop_at=None):
        torch.manual_seed(0)
        data = torch.rand(32, 6)
        model = nn.Linear(6, 4), nn.Linear(2, 6)
        elbo = ELBOLoss(BernoulliNLL(), weight=LinearWarmup(steps=10))
        modules = nn.ModuleList([*model, elbo])
        optimizer = torch.optim.Adam(modules.parameters(), lr=0.01)
        attach(elbo, optimizer)
        losses = []
        for step in range(8):
            if step == stop_at:
                state, optimizer_state = copy.deepcopy((modules.state_dict(), optimizer.state_dict()))
                for parameter in modules.parameters():
                    nn.init.zeros_(parameter)
                elbo.weight.steps_taken.zero_()
                modules.load_state_dict(state)
                optimizer.load_state_dict(optimizer_state)
            torch.manual_seed(step)
            posterior = DiagonalNormal(*modules[0](data).chunk(2, 1))
            terms = elbo(modules[1](posterior.rsample()), data, posterior)
            optimizer.zero_grad()
            terms.loss.backward()
            optimizer.step()
            losses.append(terms.loss.item())
        return losses

    assert run() == run(stop_at=4)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13),
    reason="torch.compile traces the search for a closed form in torch 2.13, and does not in 2.6",
)
@slow
@pytest.mark.filterwarnings("ignore:the output depends on no parameter")
@pytest.mark.parametrize("kl", [ExactKLLoss, MonteCarloKLLoss])
def test_compiles_whole_from_a_cold_start(batch, kl):
    pytest.importorskip("torch._inductor")
    output, target, posterior = batch
    parameters = [v.clone().requires_grad_() for v in (output, posterior.mean, posterior.log_var)]
    sample = posterior.rsample()
    elbo = ELBOLoss(BernoulliNLL(), kl(), weight=LinearWarmup(steps=4, start=0.5))

    def loss(output, mean, log_var):
        noise = (sample - posterior.mean) / posterior.stddev
        of_parameters = mean + torch.exp(0.5 * log_var) * noise
        return elbo(output, target, DiagonalNormal(mean, log_var), sample=of_parameters).loss

    torch.compiler.reset()
    compiled, eager = torch.compile(loss, fullgraph=True)(*parameters), loss(*parameters)
    torch.testing.assert_close(compiled, eager)
    gradients = (torch.autograd.grad(value, parameters) for value in (compiled, eager))
    torch.testing.assert_close(*gradients)


def test_masked_elements_leave_gradients_alone():
    log_var = torch.zeros(2, 3).index_fill(0, torch.tensor([1]), torch.nan).requires_grad_()
    mean = torch.zeros(2, 3, requires_grad=True)
    mask = torch.tensor([[1.0], [0.0]])
    GaussianNLL()((mean, log_var), torch.ones(2, 3), mask=mask).backward()
    assert log_var.grad.isfinite().all()
    assert mean.grad.tolist() == [[-0.5] * 3, [0.0] * 3]


def test_an_example_of_weight_zero_counts_nothing_though_it_is_nan(batch):
    output, target, posterior = batch
    broken = output.clone()
    broken[1] = torch.nan
    sample_weight = torch.tensor([1.0, 0.0, 2.0, 1.0])
    elbo = ELBOLoss(BernoulliNLL())
    expected = elbo(output, target, posterior, sample_weight=sample_weight)
    torch.testing.assert_close(elbo(broken, target, posterior, sample_weight=sample_weight), expected)


def test_a_latent_mask_needs_latent_dimensions():
    posterior = DiagonalNormal(torch.zeros(3, 3), torch.zeros(3, 3))
    prior = torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3))
    elbo = ELBOLoss(BernoulliNLL(), MonteCarloKLLoss())
    with pytest.raises(ValueError, match="does not factorise"):
        elbo(torch.zeros(3, 2), torch.zeros(3, 2), posterior, prior, latent_mask=torch.tensor([1.0, 0.0, 0.0]))


def test_the_weight_can_be_set_anew(batch):
    elbo = ELBOLoss(BernoulliNLL(), weight=LinearWarmup(steps=4))
    elbo.weight = 2.0
    assert elbo(*batch).weight.item() == 2.0
    assert not list(elbo.buffers())
    elbo.weight = LinearWarmup(steps=4, start=0.5)
    assert elbo(*batch).weight.item() == 0.5
    with pytest.raises(ValueError, match="weight=-1"):
        elbo.weight = -1.0


@pytest.mark.filterwarnings("ignore:the output depends on no parameter")
def test_groups_may_be_a_tuple_and_gradients_reach_every_term(batch):
    output, target, posterior = batch
    mean = posterior.mean.clone().requires_grad_()
    groups = (DiagonalNormal(mean, posterior.log_var), DiagonalNormal(2 * mean, posterior.log_var))
    terms = ELBOLoss(BernoulliNLL())(output, target, groups, sample_weight=torch.ones(4))
    for term in (terms.negative_elbo, terms.kl, terms.loss):
        (gradient,) = torch.autograd.grad(term, mean, retain_graph=True)
        torch.testing.assert_close(gradient, 5 * mean.detach() / 4)


def test_a_learned_prior_asks_for_the_monte_carlo_term():
    posterior, x = DiagonalNormal(torch.zeros(4, 2), torch.zeros(4, 2)), torch.rand(4, 8)
    prior = MixturePrior(3, 2)
    z = posterior.rsample()
    with pytest.raises(NotImplementedError, match=r"ELBOLoss\(\.\.\., kl=kldiv\.MonteCarloKLLoss\(\)\)"):
        ELBOLoss(BernoulliNLL())(torch.zeros(4, 8), x, posterior, prior(), sample=z)
    terms = ELBOLoss(BernoulliNLL(), kl=MonteCarloKLLoss())(torch.zeros(4, 8), x, posterior, prior(), sample=z)
    torch.testing.assert_close(terms.kl, (posterior.log_prob(z) - prior().log_prob(z)).mean())
    terms.loss.backward()
    assert prior.mean.grad.abs().max() > 0


@pytest.mark.parametrize("kl", [MonteCarloKLLoss(), ExactKLLoss()], ids=["monte carlo", "exact"])
def test_a_compiled_elbo_takes_new_posteriors_without_compiling_again(kl):
    torch.compiler.reset()
    compiled = torch.compile(ELBOLoss(BernoulliNLL(), kl), fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            mean = torch.zeros(4, 2).requires_grad_() * 1
            posterior = DiagonalNormal(mean, torch.zeros(4, 2), validate_args=False)
            sample = posterior.rsample()
            compiled(torch.zeros(4, 8), torch.ones(4, 8), posterior, sample=sample).loss.backward()


def test_what_would_broadcast_on_the_quiet_raises(batch):
    output, target, posterior = batch

    class Weight(torch.nn.Module):
        def forward(self):
            return torch.ones(4, 1)

    class Total(torch.nn.Module):
        def forward(self, kl):
            return kl.sum()

    with pytest.raises(ValueError, match=r"Weight gives a weight of shape \(4, 1\)"):
        ELBOLoss(BernoulliNLL(), weight=Weight())(output, target, posterior)
    with pytest.raises(ValueError, match=r"Total makes \(\) of a KL of shape \(4, 3\)"):
        ELBOLoss(BernoulliNLL(), transform=Total())(output, target, posterior)
    elbo = ELBOLoss(BernoulliNLL(), kldiv.TotalCorrelationKLLoss(100))
    with pytest.raises(ValueError, match="TotalCorrelationKLLoss gives no KL of one dimension"):
        elbo(output, target, posterior, latent_mask=torch.ones(4, 3))
