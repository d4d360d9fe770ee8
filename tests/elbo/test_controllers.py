import copy
import io
import math
import warnings

import pytest
import torch
from torch import nn

from kldiv import GECO, BernoulliNLL, DiagonalNormal, ELBOLoss, LinearWarmup, PIDController, attach
from tests.marks import slow
from tests.two_processes import in_two_processes


def observe(controller, reconstruction=0.0, kl=0.0, examples=4):
    controller.observe(torch.full((examples,), float(reconstruction)), torch.full((examples,), float(kl)))


def test_geco_against_a_hand_loop():
    weight = GECO(target=50.0, rate=0.01, momentum=0.9, start=2.0)
    expected, average = 2.0, None
    for value in (90.0, 70.0, 55.0, 40.0, 30.0):
        observe(weight, value)
        weight.step()
        average = value - 50 if average is None else 0.9 * average + 0.1 * (value - 50)
        expected *= math.exp(-0.01 * average)
        assert weight().item() == pytest.approx(expected, rel=1e-6)


def test_control_vae_against_a_hand_loop():
    weight = PIDController(target=10.0, proportional=0.5, integral=0.01, lowest=0.2, highest=5.0, start=0.3)
    integral = 0.1
    assert weight().item() == pytest.approx(0.3)
    for value in (30.0, 20.0, 5.0, 9.0, 11.0):
        observe(weight, kl=value)
        weight.step()
        error = 10.0 - value
        integral -= 0.01 * error
        assert weight().item() == pytest.approx(0.2 + integral + 0.5 / (1 + math.exp(error)), rel=1e-6)


def test_each_finds_its_target():
    """A plant in which weight costs reconstruction and takes KL away: R = 50 + 20 ln(1 + w), D = 30 / (1 + w)."""
    for weight in (
        GECO(target=70.0, rate=0.02, momentum=0.5, start=20.0),
        PIDController(target=12.0, proportional=0.1, integral=1e-2, highest=4.0),
    ):
        for _ in range(800):
            w = weight().item()
            observe(weight, 50 + 20 * math.log1p(w), 30 / (1 + w))
            weight.step()
        expected = math.e - 1 if isinstance(weight, GECO) else 1.5
        assert weight().item() == pytest.approx(expected, rel=1e-3)


def test_no_winding_up_at_a_bound():
    weight = PIDController(target=10.0, integral=0.01, highest=1.0)
    for _ in range(1000):  # far more than it takes to the bound
        observe(weight, kl=1000.0)
        weight.step()
    assert weight().item() == pytest.approx(1.0)
    for _ in range(12):
        observe(weight, kl=0.0)
        weight.step()
    assert weight().item() < 0.05
    geco = GECO(target=0.0, lowest=0.5, highest=2.0)
    for value, bound in ((1e30, 0.5), (-1e37, 2.0)):
        geco.average.fill_(math.nan)
        for _ in range(3):
            observe(geco, value)
            geco.step()
        assert geco().item() == bound


def test_a_target_that_moves():
    elbo = ELBOLoss(BernoulliNLL(), weight=PIDController(LinearWarmup(steps=10, end=20.0), 0.0, 0.01, highest=9.0))
    for _ in range(5):
        elbo.step()  # nothing was observed: only the target moves
    assert elbo.weight().item() == 0.0
    observe(elbo.weight, kl=30.0)
    elbo.step()
    assert elbo.weight().item() == pytest.approx(0.01 * (30 - 10))
    assert "weight.target.steps_taken" in elbo.state_dict()


def batch(seed, examples=6):
    generator = torch.Generator().manual_seed(seed)
    mean, log_var = torch.randn(2, examples, 3, dtype=torch.float64, generator=generator)
    logits = torch.randn(examples, 8, dtype=torch.float64, generator=generator)
    x = (torch.rand(examples, 8, dtype=torch.float64, generator=generator) > 0.5).double()
    return logits, x, mean, log_var


@pytest.mark.parametrize("make", [lambda: GECO(4.0, 0.05, 0.5), lambda: PIDController(1.0, 0.1, 0.05)])
class TestInsideAnELBO:
    def test_gradient_accumulation_is_one_large_batch(self, make):
        whole, parts = (ELBOLoss(BernoulliNLL(), weight=make()).double() for _ in range(2))
        for seed in range(3):
            logits, x, mean, log_var = batch(seed)
            whole(logits, x, DiagonalNormal(mean, log_var))
            for half in (slice(0, 3), slice(3, 6)):
                parts(logits[half], x[half], DiagonalNormal(mean[half], log_var[half]))
            whole.step()
            parts.step()
        assert parts.weight().item() == pytest.approx(whole.weight().item(), rel=1e-12)
        assert whole.weight().item() != make()().item()

    def test_validation_is_not_observed(self, make):
        elbo = ELBOLoss(BernoulliNLL(), weight=make()).eval()
        logits, x, mean, log_var = batch(0)
        elbo(logits, x, DiagonalNormal(mean, log_var))
        elbo.train().step()
        assert elbo.weight().item() == make()().item()
        assert elbo.weight.steps_taken.item() == 1

    def test_saved_and_restored(self, make):
        elbo, other = (ELBOLoss(BernoulliNLL(), weight=make()) for _ in range(2))
        for seed in range(4):
            if seed == 2:
                file = io.BytesIO()
                torch.save(elbo.state_dict(), file)
                file.seek(0)
                other.load_state_dict(torch.load(file, weights_only=True))
            for each in (elbo, other):
                logits, x, mean, log_var = batch(seed)
                terms = each(logits, x, DiagonalNormal(mean, log_var))
                each.step()
        assert other.weight().item() == elbo.weight().item() == pytest.approx(elbo.weight.weight.item())
        assert not terms.weight.requires_grad
        copy.deepcopy(elbo).step()

    @pytest.mark.filterwarnings("ignore:the output depends on no parameter")
    def test_the_graph_outlives_a_step(self, make):
        elbo = ELBOLoss(BernoulliNLL(), weight=make())
        logits, x, mean, log_var = batch(0)
        terms = elbo(logits, x, DiagonalNormal(mean.requires_grad_(), log_var))
        before = terms.weight.item()
        elbo.step()
        terms.loss.backward()
        assert terms.weight.item() == before

    def test_a_step_that_a_gradient_scaler_skips_moves_nothing(self, make):
        parameter = nn.Parameter(torch.ones(1))
        optimizer, controller = torch.optim.Adam([parameter], fused=True), make()
        attach(controller, optimizer)
        scaler = torch.amp.GradScaler("cpu")
        observe(controller, math.inf, math.inf)
        scaler.scale((parameter * math.inf).sum()).backward()
        scaler.step(optimizer)
        assert controller().item() == make()().item()
        assert controller.observed.tolist() == [0, 0]

    def test_nan_moves_nothing(self, make):
        controller = make()
        observe(controller, math.nan, math.nan)
        controller.step()
        assert controller().item() == make()().item()

    def test_state_keeps_its_precision(self, make):
        controller = make().to(torch.bfloat16)
        assert controller.weight.dtype == torch.float32
        assert make().double().weight.dtype == torch.float64
        assert controller.half().observed.dtype == torch.float32

    def test_padding_is_no_measurement(self, make):
        plain, padded = (ELBOLoss(BernoulliNLL(), weight=make()).double() for _ in range(2))
        logits, x, mean, log_var = batch(0)
        plain(logits[:2], x[:2], DiagonalNormal(mean[:2], log_var[:2]))
        weight = torch.tensor([1.0, 1.0, 0, 0, 0, 0]).double()
        padded(logits, x, DiagonalNormal(mean, log_var), sample_weight=weight)
        plain.step()
        padded.step()
        assert padded.weight().item() == pytest.approx(plain.weight().item(), rel=1e-12)

    def test_function_transforms_leave_nothing_behind(self, make):
        elbo = ELBOLoss(BernoulliNLL(), weight=make()).double()
        logits, x, mean, log_var = batch(0)
        torch.func.grad(lambda m: elbo(logits, x, DiagonalNormal(m, log_var, validate_args=False)).loss)(mean)
        elbo.step()
        assert elbo.weight().item() == make()().item()

    def test_what_is_observed_is_no_buffer_that_ranks_would_be_given(self, make):
        assert not any("observed" in name for name, _ in make().named_buffers())

    def test_compiles_whole(self, make):
        elbo = ELBOLoss(BernoulliNLL(), weight=make())
        eager = copy.deepcopy(elbo)
        torch.compiler.reset()
        compiled = torch.compile(elbo, fullgraph=True, backend="aot_eager")
        for seed in range(3):
            logits, x, mean, log_var = batch(seed)
            posterior = DiagonalNormal(mean, log_var, validate_args=False)
            found, expected = compiled(logits, x, posterior), eager(logits, x, posterior)
            torch.testing.assert_close(found.loss, expected.loss)
            elbo.step()
            eager.step()
        assert elbo.weight().item() == pytest.approx(eager.weight().item())


def controlled(rank=None):
    elbos = [ELBOLoss(BernoulliNLL(), weight=w).double() for w in (GECO(4.0, 0.05, 0.5), PIDController(1.0, 0.1, 0.05))]
    mine = slice(0, 6) if rank is None else slice(3 * rank, 3 * rank + 3)
    for seed in range(3):
        logits, x, mean, log_var = batch(seed)
        for elbo in elbos:
            elbo(logits[mine], x[mine], DiagonalNormal(mean[mine], log_var[mine]))
            elbo.step()
    return [elbo.weight().item() for elbo in elbos]


@slow
def test_two_processes_are_one_with_the_joined_batch(tmp_path):
    expected = controlled()
    for found in in_two_processes(controlled, tmp_path):
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: GECO(math.nan), "target=nan"),
        (lambda: GECO(1.0, rate=0.0), "rate=0.0"),
        (lambda: GECO(1.0, momentum=1.0), "momentum=1.0"),
        (lambda: GECO(1.0, lowest=0.0), "lowest=0.0"),
        (lambda: PIDController(1.0, lowest=2.0), "in order"),
        (lambda: PIDController(1.0, start=2.0), "start=2.0"),
        (lambda: PIDController(1.0, integral=-1.0), "integral=-1.0"),
    ],
)
def test_bad_options(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_repr_shows_every_option():
    assert repr(GECO(80.0)) == "GECO(target=80.0, lowest=0.0001, highest=10000.0, start=1.0, rate=0.001, momentum=0.99)"
    assert "proportional=0.01, integral=0.0001" in repr(PIDController(LinearWarmup(steps=3)))


class TestTheWarning:
    """A schedule that training uses and nobody steps."""

    def use(self, elbo, times):
        logits, x, mean, log_var = batch(0)
        for _ in range(times):
            elbo(logits, x, DiagonalNormal(mean, log_var))

    @pytest.mark.parametrize(
        "elbo",
        [
            ELBOLoss(BernoulliNLL(), weight=LinearWarmup(steps=10)),
            ELBOLoss(BernoulliNLL(), weight=GECO(1.0)),
        ],
        ids=["schedule", "controller"],
    )
    def test_after_a_hundred_uses_and_when_training_ends(self, elbo):
        for uses, ends in ((99, True), (100, False)):
            fresh = copy.deepcopy(elbo)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                self.use(fresh, 99)
            with pytest.warns(UserWarning, match=r"never stepped.*kldiv\.attach\(elbo, optimizer\)"):
                fresh.eval() if ends else self.use(fresh, uses - 99)
            with warnings.catch_warnings():  # once is enough
                warnings.simplefilter("error")
                fresh.train()
                self.use(fresh, 120)
                fresh.eval()

    def test_none_where_it_is_stepped_attached_or_only_validated(self):
        def new():
            return ELBOLoss(BernoulliNLL(), weight=LinearWarmup(steps=10))

        stepped, attached, validated, frozen = (new() for _ in range(4))
        attach(attached, torch.optim.SGD([nn.Parameter(torch.zeros(1))]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.use(stepped, 30)
            stepped.step()
            self.use(stepped, 120)
            self.use(attached, 120)
            self.use(validated.eval(), 120)
            with torch.no_grad():
                self.use(frozen, 120)
            for elbo in (stepped, attached, validated, frozen):
                elbo.eval()
