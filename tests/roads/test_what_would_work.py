"""Arguments as people write them: taken, or refused with the line that works."""

import warnings

import pytest
import torch
from torch import distributions, nn

from kldiv import (
    BernoulliNLL,
    Capacity,
    CategoricalKLLoss,
    CosineWarmup,
    CyclicalWarmup,
    DiagonalNormal,
    ELBOLoss,
    ExactKLLoss,
    FreeBits,
    GaussianNLL,
    GumbelSoftmax,
    LinearWarmup,
    MonteCarloKLLoss,
    PowerSpherical,
    TotalCorrelationKLLoss,
    attach,
    decompose_kl,
    kl_divergence,
)
from kldiv.functional import kl_categorical
from kldiv.priors import standard_prior


@pytest.mark.parametrize("warmup", [LinearWarmup, CosineWarmup, CyclicalWarmup])
def test_steps_by_position(warmup):
    assert warmup(1000).steps == 1000
    assert repr(warmup(1000)) == repr(warmup(steps=1000))
    with pytest.raises(ValueError, match=r"write fraction=0\.2"):
        warmup(0.2)
    with pytest.raises(ValueError, match="either steps or fraction"):
        warmup(1000, fraction=0.2)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (FreeBits(0.1), r"write transform=kldiv\.FreeBits\(\.\.\.\)"),
        (Capacity(1.0, 1.0), r"write transform=kldiv\.Capacity\(\.\.\.\)"),
        (nn.Identity(), "write transform="),
        (LinearWarmup(10), r"write weight=kldiv\.LinearWarmup\(\.\.\.\)"),
        (0.5, r"write weight=0\.5"),
        ("sum", "write reduction='sum'"),
        (None, "NoneType is none of transform="),
    ],
)
def test_an_argument_of_the_bound_out_of_place(value, says):
    with pytest.raises(TypeError, match=says):
        ELBOLoss(BernoulliNLL(), ExactKLLoss(), value)
    if not (value is None or type(value) is nn.Identity):
        with pytest.raises(TypeError, match=says):
            ELBOLoss(BernoulliNLL(), value)


def test_a_transform_that_is_no_module():
    with pytest.raises(TypeError, match=r"must be a module such as kldiv\.FreeBits"):
        ELBOLoss(BernoulliNLL(), transform=0.1)


class Wrapped(torch.optim.Optimizer):
    """As Accelerate wraps an optimiser: of the class, but without what its constructor makes."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self, closure=None):
        self.optimizer.step(closure)


class TestAttach:
    def test_counts_the_steps_of_a_wrapped_optimiser(self):
        elbo, parameter = ELBOLoss(BernoulliNLL(), weight=LinearWarmup(10)), nn.Parameter(torch.zeros(1))
        inner = torch.optim.SGD([parameter], lr=0.1)
        for optimizer in (Wrapped(inner), Wrapped(Wrapped(inner))):
            elbo.weight = LinearWarmup(10)
            handle = attach(elbo, optimizer)
            for _ in range(3):
                optimizer.step()
            assert elbo.weight.steps_taken == 3
            handle.remove()

    def test_what_is_no_optimiser(self):
        for optimizer in (nn.Linear(1, 1), [nn.Parameter(torch.zeros(1))]):
            with pytest.raises(TypeError, match=r"kldiv\.attach\(elbo, torch\.optim\.Adam"):
                attach(ELBOLoss(BernoulliNLL()), optimizer)

    def test_a_learned_parameter_that_no_optimiser_has(self):
        elbo, net = ELBOLoss(GaussianNLL(learned=True)), nn.Linear(1, 1)
        with pytest.warns(UserWarning, match=r"reconstruction\.log_var.*\*elbo\.parameters\(\)"):
            attach(elbo, torch.optim.SGD(net.parameters(), lr=0.1))

    def test_quiet_where_one_has(self):
        elbo, net = ELBOLoss(GaussianNLL(learned=True)), nn.Linear(1, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer = torch.optim.SGD([*net.parameters(), *elbo.parameters()], lr=0.1)
            attach(elbo, optimizer)
            attach(elbo, torch.optim.SGD(net.parameters(), lr=0.1))  # a second one, beside it
            elbo = ELBOLoss(GaussianNLL(learned=True).requires_grad_(False))
            attach(elbo, torch.optim.SGD(net.parameters(), lr=0.1))
            # of a whole model, what another optimiser has is not the bound's business
            model = nn.ModuleDict({"elbo": ELBOLoss(BernoulliNLL()), "net": net, "critic": nn.Linear(1, 1)})
            attach(model, torch.optim.SGD(net.parameters(), lr=0.1))


class TestCategoriesOfMaps:
    @pytest.mark.parametrize("dim", [1, 2, 3, -1, -2, -3])
    def test_against_the_function(self, dim):
        torch.manual_seed(0)
        logits = torch.randn(4, 3, 5, 6)
        expected = kl_categorical(logits, None, dim)
        term = CategoricalKLLoss(dim=dim)
        torch.testing.assert_close(term.per_dimension(logits), expected)
        torch.testing.assert_close(term(logits), expected.sum() / 4)
        prior = torch.randn(*[1] * (3 - dim % 4), logits.shape[dim]).movedim(-1, 0)
        moved = CategoricalKLLoss().per_dimension(logits.movedim(dim, -1), prior.reshape(-1))
        torch.testing.assert_close(term.per_dimension(logits, prior), moved)

    def test_one_category_of_ten_at_every_place(self):
        logits = torch.zeros(2, 10, 7, 7)
        logits[:, 0] = 50.0
        assert CategoricalKLLoss(dim=1)(logits).item() == pytest.approx(49 * torch.tensor(10.0).log().item())

    def test_what_it_must_be(self):
        with pytest.raises(ValueError, match=r"dim=1 for \(N, K, H, W\)"):
            CategoricalKLLoss(dim=0)
        with pytest.raises(TypeError, match=r"CategoricalKLLoss\(reduction='sum'\)"):
            CategoricalKLLoss("sum")
        for dim in (4, -4):
            with pytest.raises(ValueError, match="dimension 0 is the example"):
                CategoricalKLLoss(dim)(torch.zeros(2, 3, 4, 5))
        with pytest.raises(ValueError, match=r"prior_logits\.reshape\(3, 1, 1\)"):
            CategoricalKLLoss(1)(torch.zeros(2, 3, 4, 5), torch.zeros(3))


class TestGumbelSoftmax:
    def test_in_the_order_of_torch(self):
        logits = torch.zeros(4, 3)
        for temperature in (0.5, torch.tensor(0.5), 1):
            with pytest.raises(TypeError, match=r"write GumbelSoftmax\(logits, temperature=0\.5\)"):
                GumbelSoftmax(temperature, logits)

    def test_bits(self):
        torch.manual_seed(0)
        logits = torch.randn(4, 20)
        posterior = GumbelSoftmax(torch.stack([torch.zeros_like(logits), logits], -1))
        torch.testing.assert_close(posterior.probs[..., 1], torch.sigmoid(logits))
        bits = distributions.Bernoulli(logits=logits)
        expected = kl_divergence(bits, distributions.Bernoulli(logits=torch.zeros(20)))
        torch.testing.assert_close(ExactKLLoss().per_dimension(posterior), expected)

    @pytest.mark.parametrize(
        ("shape", "batch"), [((8, 6, 10), (6,)), ((8, 10), ()), ((8, 2, 3, 5), (2, 3)), ((10,), ())]
    )
    def test_its_standard_prior(self, shape, batch):
        for kind in (GumbelSoftmax, distributions.OneHotCategorical, distributions.Categorical):
            posterior = kind(logits=torch.randn(shape))
            prior = standard_prior(posterior)
            assert prior.batch_shape == batch
            torch.testing.assert_close(prior.probs, torch.full((*batch, shape[-1]), 1 / shape[-1]))
            expected = kl_divergence(posterior, kind(logits=torch.zeros(shape)))
            torch.testing.assert_close(kl_divergence(posterior, prior), expected)

    def test_its_standard_prior_where_variables_are_one_event(self):
        posterior = distributions.Independent(distributions.OneHotCategorical(logits=torch.randn(8, 6, 10)), 1)
        prior = standard_prior(posterior)
        assert (prior.batch_shape, prior.event_shape) == ((), (6, 10))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"scale": torch.ones(2, 3)}, r"log_var=2 \* scale\.log\(\).*Normal\(mean, scale\)"),
        ({"std": torch.ones(2, 3)}, r"log_var=2 \* std\.log\(\)"),
        ({"var": torch.ones(2, 3)}, r"log_var=var\.log\(\)"),
        ({"logvar": torch.ones(2, 3)}, r"log_var=logvar\)"),
        ({"log_std": torch.ones(2, 3)}, r"log_var=2 \* log_std\)"),
        ({"nonsense": 1}, "nonsense="),
        ({}, "log_var is missing"),
    ],
)
def test_a_diagonal_normal_of_something_else(given, says):
    with pytest.raises(TypeError, match=says):
        DiagonalNormal(torch.zeros(2, 3), **given)


def test_a_concentration_for_each_vector():
    loc = nn.functional.normalize(torch.randn(5, 3), dim=-1)
    with pytest.raises(ValueError, match=r"concentration \(5, 1\).*squeeze\(-1\)"):
        PowerSpherical(loc, torch.ones(5, 1))
    with pytest.raises(ValueError, match=r"squeeze\(-1\)"):
        PowerSpherical(loc.expand(2, 5, 3), torch.ones(2, 5, 1))
    assert PowerSpherical(loc, torch.ones(5, 1).squeeze(-1)).batch_shape == (5,)
    assert PowerSpherical(loc, torch.ones(2, 1)).batch_shape == (2, 5)
    assert PowerSpherical(loc[0], torch.ones(1)).batch_shape == (1,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (1, 0), (2, 3), (0, 2, 3), (2, 0, 3)])
class TestEmptyAndHalf:
    @pytest.mark.parametrize("estimator", ["stratified", "weighted"])
    @pytest.mark.parametrize("family", ["diagonal", "normal", "laplace", "gamma", "bits"])
    def test_the_decomposition(self, family, estimator, shape, dtype):
        torch.manual_seed(0)
        mean = torch.zeros(shape, dtype=dtype, requires_grad=True)
        posterior, prior = {
            "diagonal": lambda: (DiagonalNormal(mean, torch.zeros_like(mean)), None),
            "normal": lambda: (distributions.Normal(mean, torch.ones_like(mean)), None),
            "laplace": lambda: (distributions.Laplace(mean, torch.ones_like(mean)), None),
            "gamma": lambda: (
                distributions.Gamma(mean.exp(), torch.ones_like(mean)),
                distributions.Gamma(torch.ones(shape[1:], dtype=dtype), 1.0),
            ),
            "bits": lambda: (
                distributions.Bernoulli(logits=mean),
                distributions.Bernoulli(logits=torch.zeros(shape[1:], dtype=dtype)),
            ),
        }[family]()
        if family == "bits":
            parts = decompose_kl(posterior.sample(), posterior, prior, dataset_size=9, estimator=estimator)
        else:
            loss = TotalCorrelationKLLoss(9, estimator=estimator)(posterior, prior)
            loss.backward()
            assert loss.isfinite()
            assert mean.grad.isfinite().all()
            sample = mean.detach().exp()
            parts = decompose_kl(sample, posterior, prior, dataset_size=9, estimator=estimator)
        expected = torch.promote_types(dtype, torch.float32)
        for part in parts:
            assert part.shape == shape[:1]
            assert part.dtype == expected
            assert part.isfinite().all()
        if 0 in shape[1:]:
            assert not any(part.any() for part in parts[1:])

    @pytest.mark.parametrize("kl", [ExactKLLoss(), MonteCarloKLLoss(), TotalCorrelationKLLoss(9)], ids=repr)
    def test_the_bound(self, kl, shape, dtype):
        posterior = DiagonalNormal(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype))
        x = torch.zeros(shape[0], 4, dtype=dtype)
        weight = torch.ones(shape[0])
        for options in ({}, {"sample_weight": weight}):
            terms = ELBOLoss(BernoulliNLL(), kl, transform=Capacity(1.0, 1.0))(x, x, posterior, **options)
            assert terms.loss.isfinite()
            assert terms.loss.dtype == torch.promote_types(dtype, torch.float32)
