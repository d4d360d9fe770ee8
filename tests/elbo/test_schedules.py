import math

import pytest
import torch
from torch import nn

from kldiv import BernoulliNLL, CosineWarmup, CyclicalWarmup, ELBOLoss, LinearWarmup, attach


def test_linear_from_start_to_end_and_no_further():
    warmup = LinearWarmup(steps=4, start=0.2, end=1.0)
    values = []
    for _ in range(6):
        values.append(warmup().item())
        warmup.step()
    assert values == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def walk(schedule, steps):
    values = []
    for _ in range(steps):
        values.append(schedule().item())
        schedule.step()
    return values


def test_cosine_is_level_at_both_ends():
    expected = [0.2 + 0.8 * 0.5 * (1 - math.cos(math.pi * min(n / 6, 1))) for n in range(9)]
    assert walk(CosineWarmup(steps=6, start=0.2, end=1.0), 9) == pytest.approx(expected)
    gentle = CosineWarmup(steps=10_000_000, end=2.0)
    gentle.step()
    assert gentle().item() == pytest.approx(2 * (math.pi / 2e7) ** 2, rel=1e-5)


def test_cycles_rise_and_stay_level_and_begin_anew():
    values = walk(CyclicalWarmup(steps=20, cycles=2, rise=0.5, start=0.0, end=1.0), 24)
    cycle = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert values == pytest.approx(cycle + cycle + [1.0] * 4, abs=1e-5)
    assert walk(CyclicalWarmup(steps=4, cycles=1, rise=1.0, start=0.5), 6) == pytest.approx(
        [0.5, 0.625, 0.75, 0.875, 1.0, 1.0]
    )


def test_options_of_the_shapes():
    assert repr(CosineWarmup(fraction=0.2)) == "CosineWarmup(fraction=0.2, start=0.0, end=1.0)"
    assert "cycles=4, rise=0.5" in repr(CyclicalWarmup(steps=8))
    for options in ({"cycles": 0}, {"rise": 0.0}, {"rise": 1.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            CyclicalWarmup(steps=8, **options)
    elbo = ELBOLoss(BernoulliNLL(), weight=CyclicalWarmup(fraction=0.5, cycles=1))
    attach(elbo, torch.optim.SGD([nn.Parameter(torch.zeros(1))]), total_steps=8)
    elbo.step()
    assert elbo.weight().item() == pytest.approx(0.5)


def test_a_fraction_needs_a_total():
    warmup = LinearWarmup(fraction=0.5)
    with pytest.raises(RuntimeError, match=r"total_steps=\.\.\."):
        warmup()
    attach(nn.ModuleList([warmup]), torch.optim.SGD([nn.Parameter(torch.zeros(1))]), total_steps=8)
    for _ in range(2):
        warmup.step()
    assert warmup().item() == 0.5


def test_state_is_saved_with_the_total():
    saved, loaded = LinearWarmup(fraction=0.5), LinearWarmup(fraction=0.5)
    saved.total_steps = 8
    saved.step()
    loaded.load_state_dict(saved.state_dict())
    assert loaded().item() == saved().item() == 0.25
    assert all(isinstance(value, torch.Tensor) for value in saved.state_dict().values())


def test_counts_optimiser_steps_and_not_batches_or_validation():
    model = nn.Linear(2, 2)
    elbo = ELBOLoss(BernoulliNLL(), weight=LinearWarmup(steps=10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(elbo, optimizer)
    for batch in range(6):
        model(torch.randn(3, 2)).sum().backward()
        with torch.no_grad():
            elbo.eval()
            elbo.weight()
        if batch % 2:  # gradients accumulated over two batches
            optimizer.step()
    assert elbo.weight.steps_taken.item() == 3
    handle.remove()
    optimizer.step()
    assert elbo.weight.steps_taken.item() == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "either steps or fraction"),
        ({"steps": 3, "fraction": 0.1}, "either steps or fraction"),
        ({"steps": 0}, "steps=0"),
        ({"fraction": 1.5}, "fraction=1.5"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises(ValueError, match=says):
        LinearWarmup(**options)


def test_bad_total():
    with pytest.raises(ValueError, match="total_steps=0"):
        attach(LinearWarmup(fraction=0.1), torch.optim.SGD([nn.Parameter(torch.zeros(1))]), total_steps=0)


def test_repr_shows_every_option():
    assert repr(LinearWarmup(steps=3)) == "LinearWarmup(steps=3, start=0.0, end=1.0)"
    assert repr(LinearWarmup(fraction=0.25)) == "LinearWarmup(fraction=0.25, start=0.0, end=1.0)"


def test_what_attach_was_told_goes_before_what_was_saved():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    saved, loaded = LinearWarmup(fraction=0.5), LinearWarmup(fraction=0.5)
    for total in (None, 10):
        saved.total_steps = total
        attach(loaded, optimizer, total_steps=100)
        loaded.load_state_dict(saved.state_dict())
        assert loaded.total_steps == 100


def test_attached_twice_it_counts_once():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer, warmup = torch.optim.SGD([parameter]), LinearWarmup(steps=10)
    attach(warmup, optimizer)
    attach(warmup, optimizer, total_steps=20)
    assert warmup.total_steps == 20
    optimizer.step()
    assert warmup.steps_taken.item() == 1


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_gradient_scaler_skips_do_not_count(fused):
    parameter = nn.Parameter(torch.ones(1))
    optimizer, warmup = torch.optim.Adam([parameter], fused=fused), LinearWarmup(steps=10)
    attach(warmup, optimizer)
    scaler = torch.amp.GradScaler("cpu")
    for factor, counted in ((1.0, 1), (float("inf"), 1), (1.0, 2)):
        optimizer.zero_grad()
        scaler.scale((parameter * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert warmup.steps_taken.item() == counted


def test_a_schedule_that_two_attachments_hold_counts_once():
    optimizer, warmup = torch.optim.SGD([nn.Parameter(torch.zeros(1))]), LinearWarmup(steps=10)
    elbos = [ELBOLoss(BernoulliNLL(), weight=warmup) for _ in range(2)]
    handles = [attach(module, optimizer) for module in (*elbos, nn.ModuleList(elbos))]
    optimizer.step()
    assert warmup.steps_taken.item() == 1
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert warmup.steps_taken.item() == 1


def test_a_run_without_an_end_needs_no_total():
    warmup = LinearWarmup(steps=10)
    attach(warmup, torch.optim.SGD([nn.Parameter(torch.zeros(1))]), total_steps=math.inf)
    assert warmup().item() == 0.0
