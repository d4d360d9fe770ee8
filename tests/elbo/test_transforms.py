import math

import pytest
import torch
from torch import distributed, nn

from kldiv import (
    BernoulliNLL,
    Capacity,
    DiagonalNormal,
    ELBOLoss,
    FreeBits,
    LinearWarmup,
    OptimalGaussianNLL,
    kl_divergence,
)
from tests.two_processes import in_two_processes

KL = torch.tensor([[0.2, 1.0, 0.0], [0.4, 3.0, 0.1]], dtype=torch.float64)


class TestFreeBits:
    def test_per_dimension(self):
        torch.testing.assert_close(FreeBits(0.5)(KL), torch.tensor([[0.5, 2.0, 0.5]] * 2).double())
        torch.testing.assert_close(FreeBits(0.25)(KL), torch.tensor([[0.3, 2.0, 0.25]] * 2).double())
        torch.testing.assert_close(FreeBits(0.25, batch_mean=False)(KL), KL.clamp(min=0.25))

    @pytest.mark.parametrize("per", ["group", "example"])
    def test_per_group_and_per_example(self, per):
        totals = KL.sum(1, keepdim=True)
        torch.testing.assert_close(FreeBits(2.0, per, batch_mean=False)(KL), totals.clamp(min=2.0))
        torch.testing.assert_close(FreeBits(2.0, per)(KL), totals.mean().clamp(min=2.0).expand(2, 1))
        assert FreeBits(2.0, per)(KL.reshape(2, 1, 3, 1)).shape == (2, 1, 1, 1)
        assert FreeBits(2.0, per)(KL[:, 0]).shape == (2, 1)

    def test_what_is_free_has_no_gradient(self):
        kl = KL.clone().requires_grad_()
        FreeBits(0.5)(kl).sum().backward()
        assert kl.grad.tolist() == [[0, 1, 0], [0, 1, 0]]  # the mean's 1/2, and both examples have it

    def test_no_free_bits_are_none(self):
        torch.testing.assert_close(FreeBits(0.0)(KL).sum(), KL.sum())
        assert FreeBits(0.5)(KL[:0]).shape == (0, 3)

    def test_groups_of_a_hierarchy(self):
        posteriors = [DiagonalNormal(torch.full((4, d), 0.5), torch.zeros(4, d)) for d in (2, 3)]  # 1/8 nat a dimension
        x, logits = torch.rand(4, 8), torch.zeros(4, 8)

        def shaped(**options):
            terms = ELBOLoss(BernoulliNLL(), transform=FreeBits(**options))(logits, x, posteriors)
            return (terms.loss - terms.reconstruction).item()

        for batch_mean in (True, False):
            assert shaped(nats=0.2, batch_mean=batch_mean) == pytest.approx(5 * 0.2)
            assert shaped(nats=0.3, per="group", batch_mean=batch_mean) == pytest.approx(0.3 + 3 / 8)
            assert shaped(nats=0.5, per="example", batch_mean=batch_mean) == pytest.approx(5 / 8)
            assert shaped(nats=0.7, per="example", batch_mean=batch_mean) == pytest.approx(0.7)

    def test_bad_arguments(self):
        for options, says in (({"nats": -1.0}, "nats=-1.0"), ({"nats": 1.0, "per": "batch"}, "per='batch'")):
            with pytest.raises(ValueError, match=says):
                FreeBits(**options)
        assert repr(FreeBits(0.1)) == "FreeBits(nats=0.1, per='dimension', batch_mean=True)"


class TestCapacity:
    def test_the_distance_of_the_mean_total(self):
        total = KL.sum(1).mean()
        torch.testing.assert_close(Capacity(5.0, 10.0)(KL), (10 * (5 - total)).expand(2, 1))
        torch.testing.assert_close(Capacity(1.0, 10.0)(KL), (10 * (total - 1)).expand(2, 1))

    def test_the_total_is_that_of_all_groups(self):
        posteriors = [DiagonalNormal(torch.ones(4, d), torch.zeros(4, d)) for d in (2, 3)]  # 2.5 nats
        terms = ELBOLoss(BernoulliNLL(), transform=Capacity(1.0, 10.0))(torch.zeros(4, 8), torch.rand(4, 8), posteriors)
        assert (terms.loss - terms.reconstruction).item() == pytest.approx(15.0)
        assert terms.kl.item() == pytest.approx(2.5)

    def test_a_schedule_inside_counts_the_steps_of_the_elbo(self):
        elbo = ELBOLoss(BernoulliNLL(), transform=Capacity(LinearWarmup(steps=4, end=8.0), gain=1.0))
        elbo.step()
        posterior = DiagonalNormal(torch.zeros(4, 2), torch.zeros(4, 2))
        terms = elbo(torch.zeros(4, 8), torch.rand(4, 8), posterior)
        assert (terms.loss - terms.reconstruction).item() == pytest.approx(2.0)
        assert "transform.nats.steps_taken" in elbo.state_dict()

    def test_bad_arguments(self):
        for options, says in (((-1.0, 1.0), "nats=-1.0"), ((1.0, 0.0), "gain=0.0"), ((math.inf, 1.0), "nats=inf")):
            with pytest.raises(ValueError, match=says):
                Capacity(*options)


def test_transforms_chain():
    posteriors = [DiagonalNormal(torch.full((4, d), 0.5), torch.zeros(4, d)) for d in (2, 3)]
    chain = nn.Sequential(FreeBits(0.2), Capacity(3.0, 2.0))
    terms = ELBOLoss(BernoulliNLL(), transform=chain)(torch.zeros(4, 8), torch.rand(4, 8), posteriors)
    assert (terms.loss - terms.reconstruction).item() == pytest.approx(2 * (3 - 1.0))


@pytest.mark.filterwarnings("ignore:the output depends on no parameter")
@pytest.mark.parametrize("transform", [FreeBits(0.3), FreeBits(0.3, batch_mean=False), Capacity(1.0, 2.0)], ids=repr)
def test_examples_of_no_weight_are_as_if_padded(transform):
    """Two examples and two that are padding, N being four, against the two with N as their divisor."""
    torch.manual_seed(0)
    mean, log_var = torch.randn(2, 4, 3, dtype=torch.float64)
    mean[2:] = torch.nan
    mean = mean.requires_grad_()
    weight = torch.tensor([1.0, 1.0, 0.0, 0.0]).double()
    posterior = DiagonalNormal(mean, log_var, validate_args=False)
    elbo = ELBOLoss(BernoulliNLL(), transform=transform)
    terms = elbo(torch.zeros(4, 8).double(), torch.rand(4, 8).double(), posterior, sample_weight=weight)
    kl = kl_divergence(DiagonalNormal(mean[:2], log_var[:2], 2), DiagonalNormal(*torch.zeros(2, 2, 3).double(), 2))
    assert terms.kl.item() == pytest.approx(kl.sum().item() / 4)
    each = 0.5 * (log_var[:2].exp() - 1 - log_var[:2] + mean[:2].detach() ** 2)
    if isinstance(transform, Capacity):
        expected = 2 * abs(each.sum() / 2 - 1) * 2 / 4
    elif transform.batch_mean:
        expected = (each.sum(0) / 2).clamp(min=0.3).sum() * 2 / 4
    else:
        expected = each.clamp(min=0.3).sum() / 4
    torch.testing.assert_close((terms.loss - terms.reconstruction).detach(), expected.detach())
    terms.loss.backward()
    assert mean.grad[:2].isfinite().all()
    assert not mean.grad[2:].any()


def shaped_loss(mean, transform):
    if isinstance(transform, OptimalGaussianNLL):
        return transform(mean, torch.zeros_like(mean))
    posterior, zeros = DiagonalNormal(mean, torch.zeros_like(mean)), torch.zeros(len(mean), 4).double()
    return ELBOLoss(BernoulliNLL(), transform=transform)(zeros, zeros, posterior).loss


def one_of_two(rank):
    torch.manual_seed(0)
    means = torch.randn(6, 3, dtype=torch.float64)
    results = []
    for transform in (FreeBits(0.3), FreeBits(1.0, "group"), Capacity(4.0, 2.0), OptimalGaussianNLL()):
        mean = means[3 * rank : 3 * rank + 3].clone().requires_grad_()
        loss = shaped_loss(mean, transform)
        (gradient,) = torch.autograd.grad(loss, mean)
        results.append((loss.item(), gradient.tolist()))
    if rank == 0:  # no collective runs in eval mode: the other process is not there to answer
        shaped_loss(means[:3], FreeBits(0.3).eval())
    alone = [distributed.new_group([member]) for member in range(2)][rank]  # every process makes both
    for make in (lambda **options: FreeBits(0.3, **options), lambda **options: Capacity(4.0, 2.0, **options)):
        mean = means[3 * rank : 3 * rank + 3]
        in_group, expected = shaped_loss(mean, make(process_group=alone)), shaped_loss(mean, make().eval())
        assert in_group.item() == expected.item()
    return results


@pytest.mark.filterwarnings("ignore:the output depends on no parameter")
def test_two_processes_are_one_with_the_joined_batch(tmp_path):
    found = in_two_processes(one_of_two, tmp_path)
    torch.manual_seed(0)
    means = torch.randn(6, 3, dtype=torch.float64)
    for k, transform in enumerate((FreeBits(0.3), FreeBits(1.0, "group"), Capacity(4.0, 2.0), OptimalGaussianNLL())):
        mean = means.clone().requires_grad_()
        loss = shaped_loss(mean, transform)
        (gradient,) = torch.autograd.grad(loss, mean)
        average = sum(found[rank][k][0] for rank in range(2)) / 2
        assert average == pytest.approx(loss.item(), abs=1e-12)
        # DDP averages the gradients of shared parameters: each process's part, halved
        parts = torch.tensor(found[0][k][1] + found[1][k][1], dtype=torch.float64) / 2
        torch.testing.assert_close(parts, gradient, rtol=0, atol=1e-12)


def nats_of(transform, **options):
    """What the transform makes of four examples with 2 nats in each of three latents."""
    posterior = DiagonalNormal(torch.full((4, 3), 2.0), torch.zeros(4, 3))
    terms = ELBOLoss(BernoulliNLL(), transform=transform, reduction="sum")(
        torch.zeros(4, 8), torch.rand(4, 8), posterior, **options
    )
    return (terms.loss - terms.reconstruction).item()


def test_weights_go_in_before_the_first_batch_statistic_and_no_earlier():
    chain = nn.Sequential(FreeBits(3.0, batch_mean=False), Capacity(1.0, 1.0))
    # two examples of 9 nats, and padding has no free bits and no capacity
    assert nats_of(chain, sample_weight=torch.tensor([1.0, 1.0, 0.0, 0.0])) == pytest.approx(2 * 8)
    nested = nn.Sequential(nn.Sequential(*chain[:1]), chain[1])
    assert nats_of(nested, sample_weight=torch.tensor([1.0, 1.0, 0.0, 0.0])) == pytest.approx(2 * 8)


@pytest.mark.parametrize("batch_mean", [False, True])
def test_masked_latents_cost_no_free_bits(batch_mean):
    mask = torch.tensor([True, False, False])
    assert nats_of(FreeBits(0.5, batch_mean=batch_mean), latent_mask=mask) == pytest.approx(4 * 2)
    assert nats_of(FreeBits(2.5, batch_mean=batch_mean), latent_mask=mask) == pytest.approx(4 * 2.5)
