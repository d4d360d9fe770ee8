import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal
from torch.utils._pytree import tree_map

import kldiv
from tests.marks import slow
from tests.two_processes import in_two_processes

torchmetrics = pytest.importorskip("torchmetrics", exc_type=ImportError)

from kldiv.metrics import ActiveUnits, KLPerDimension, RateDistortion  # noqa: E402

CUTS = ((0, 1), (1, 40), (40, 43), (43, 100))


def posterior_of(index=slice(None), shape=(5,), dtype=torch.float64):
    """Of a hundred examples: latents that vary by more and less, the last two hardly at all."""
    generator = torch.Generator().manual_seed(0)
    mean, log_var = torch.randn(2, 100, *shape, generator=generator, dtype=torch.float64)
    mean = mean * torch.logspace(0, -2, shape[-1], dtype=torch.float64) + 1
    return kldiv.DiagonalNormal(mean[index].to(dtype), log_var[index].to(dtype))


def expected_kl(q, weight=None):
    each = 0.5 * (q.log_var.exp() + q.mean**2 - 1 - q.log_var).numpy()
    return np.average(each, axis=0, weights=weight)


def terms_of(index=slice(None), reduction="none"):
    generator = torch.Generator().manual_seed(1)
    logits, x = torch.randn(2, 100, 7, generator=generator, dtype=torch.float64)
    elbo = kldiv.ELBOLoss(kldiv.BernoulliNLL(), weight=0.3, reduction=reduction)
    return elbo(logits[index], x[index].sigmoid(), posterior_of(index))


def nan_where(q, padding):
    """The same posterior with NaN in the place of padding."""
    mean, log_var = q.mean.clone(), q.log_var.clone()
    mean[padding], log_var[padding] = torch.nan, torch.nan
    return kldiv.DiagonalNormal(mean, log_var, validate_args=False)


class TestActiveUnits:
    def test_streamed_is_the_variance_of_the_whole(self):
        metric = ActiveUnits()
        for start, end in CUTS:
            metric.update(posterior_of(slice(start, end)))
        expected = np.var(posterior_of().mean.numpy(), axis=0, ddof=1)
        np.testing.assert_allclose(metric.variances(), expected, rtol=1e-12, atol=1e-15)
        assert metric.compute().item() == (expected > 0.01).sum() == 2
        assert (metric.compute().dtype, metric.compute().shape) == (torch.int64, ())

    @pytest.mark.parametrize("shape", [(1,), (2, 3, 4)])
    def test_latents_of_any_shape_and_means_as_a_tensor(self, shape):
        metric, mean = ActiveUnits(threshold=0.2), posterior_of(shape=shape).mean
        for start, end in CUTS:
            metric.update(mean[start:end])
        torch.testing.assert_close(metric.variances(), mean.var(0), rtol=1e-12, atol=1e-15)
        assert metric.compute().item() == (mean.var(0) > 0.2).sum()

    def test_one_latent_without_a_dimension_of_its_own(self):
        metric, mean = ActiveUnits(), posterior_of().mean[:, 0]
        metric.update(Normal(mean[:30], 1.0))
        metric.update(Normal(mean[30:], 1.0))
        torch.testing.assert_close(metric.variances(), mean.var(), rtol=1e-12, atol=0)

    def test_a_collapsed_latent_far_from_zero(self):
        torch.manual_seed(0)
        metric, mean = ActiveUnits(), torch.tensor([1e3, 1e3]) + 1e-3 * torch.randn(1000, 2)
        mean[:, 1] += 0.3 * torch.randn(1000)
        for batch in mean.split(64):
            metric.update(batch)
        torch.testing.assert_close(metric.variances(), mean.double().var(0), rtol=1e-4, atol=1e-8)
        assert metric.compute().item() == 1

    def test_identical_examples_have_no_negative_variance(self):
        metric = ActiveUnits(threshold=0.0)
        metric.update(torch.full((7, 3), 1234.56789))
        assert metric.variances().min() >= 0
        assert metric.variances().max() < 1e-9

    def test_weights_repeat_examples(self):
        mean, weight = posterior_of().mean, torch.arange(100) % 4
        metric = ActiveUnits()
        for start, end in CUTS:
            metric.update(mean[start:end], weight[start:end])
        repeated = mean.repeat_interleave(weight, dim=0)
        torch.testing.assert_close(metric.variances(), repeated.var(0), rtol=1e-12, atol=1e-15)

    def test_fewer_than_two_examples(self):
        metric = ActiveUnits()
        with pytest.warns(UserWarning, match="before the ``update``"):
            assert metric.compute().item() == 0
        metric.update(torch.ones(1, 3))
        assert metric.variances().isnan().all()
        assert metric.compute().item() == 0

    def test_bad_arguments(self):
        for threshold in (-1.0, float("nan")):
            with pytest.raises(ValueError, match=f"threshold={threshold}"):
                ActiveUnits(threshold)
        with pytest.raises(ValueError, match=r"shape \(5,\).*mean\[:, None\]"):
            ActiveUnits().update(torch.ones(5))
        with pytest.raises(TypeError, match="list"):
            ActiveUnits().update([1.0])
        with pytest.raises(ValueError, match="empty batch shape"):
            ActiveUnits().update(Normal(0.0, 1.0))
        flow = torch.distributions.TransformedDistribution(Normal(torch.zeros(4, 2), 1.0), [])
        with pytest.raises(NotImplementedError, match=r"TransformedDistribution.*\(N, \*latent\)"):
            ActiveUnits().update(flow)
        assert "threshold=0.5" in repr(ActiveUnits(0.5))


class TestKLPerDimension:
    @pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
    def test_streamed_is_the_mean_of_the_whole(self, shape):
        metric = KLPerDimension()
        for start, end in CUTS:
            metric.update(posterior_of(slice(start, end), shape))
        np.testing.assert_allclose(metric.compute(), expected_kl(posterior_of(shape=shape)), rtol=1e-12)
        assert metric.compute().dtype == torch.float64

    def test_float32_adds_up_in_float64(self):
        metric = KLPerDimension()
        metric.update(Normal(torch.full((1, 1), 1e4), 1.0))  # 5e7 nats
        for _ in range(100):
            metric.update(Normal(torch.ones(1, 1), 1.0))
        assert metric.compute().item() == pytest.approx((5e7 + 50) / 101, rel=1e-15)

    def test_a_prior_and_another_term(self):
        q, prior = posterior_of(), Independent(Normal(torch.ones(5).double(), 2.0), 1)
        exact, sampled = KLPerDimension(), KLPerDimension(kldiv.MonteCarloKLLoss())
        sample = q.sample((3,))
        for start, end in CUTS:
            part = posterior_of(slice(start, end))
            exact.update(part, prior)
            sampled.update(part, prior, sample[:, start:end])
        factors = Normal(q.mean, q.stddev), Normal(1.0, 2.0)
        torch.testing.assert_close(exact.compute(), torch.distributions.kl_divergence(*factors).mean(0))
        logs = factors[0].log_prob(sample) - factors[1].log_prob(sample)
        torch.testing.assert_close(sampled.compute(), logs.mean((0, 1)))

    @pytest.mark.parametrize("gradient", ["pathwise", "sticking_the_landing"])
    def test_in_training_it_takes_no_part_in_the_graph(self, gradient):
        log_var = torch.zeros(6, 2, requires_grad=True)
        q = kldiv.DiagonalNormal(torch.ones(6, 2, requires_grad=True), log_var)
        metric = KLPerDimension(kldiv.MonteCarloKLLoss(gradient=gradient))
        for watched in (metric, KLPerDimension(), ActiveUnits()):
            assert not watched(q).requires_grad
            watched.update(q)
            assert not watched.total.requires_grad
        metric.update(q, None, q.rsample())
        assert not metric.compute().requires_grad

    def test_bad_arguments(self):
        for term in (kldiv.GaussianKLLoss(), torch.nn.Linear(2, 2)):
            with pytest.raises(TypeError, match=type(term).__name__):
                KLPerDimension(term)
        full = MultivariateNormal(torch.zeros(4, 2), torch.eye(2))
        with pytest.raises(ValueError, match="does not factorise"):
            KLPerDimension().update(full)


class TestRateDistortion:
    def test_terms_of_each_example_and_means_of_batches(self):
        whole = terms_of()
        expected = {"rate": whole.kl, "distortion": whole.reconstruction, "negative_elbo": whole.negative_elbo}
        each, means = RateDistortion(), RateDistortion()
        for start, end in CUTS:
            each.update(terms_of(slice(start, end)))
            means.update(terms_of(slice(start, end), "batchmean"), count=end - start)
        for metric in (each, means):
            assert list(metric.compute()) == list(expected)
            for name, values in expected.items():
                assert metric.compute()[name].item() == pytest.approx(values.mean().item(), rel=1e-12)

    def test_a_batch_of_no_examples(self):
        metric = RateDistortion()
        metric.update(terms_of(slice(0, 9), "batchmean"), count=9)
        before = metric.compute()
        metric.update(kldiv.ELBOTerms(*torch.full((5,), torch.nan), ()), count=0)
        assert metric.compute() == before

    def test_bad_arguments(self):
        means = terms_of(reduction="batchmean")
        with pytest.raises(ValueError, match=r"count=None.*count=len\(x\)"):
            RateDistortion().update(means)
        with pytest.raises(ValueError, match="count=-1"):
            RateDistortion().update(means, count=-1)
        with pytest.raises(ValueError, match=r"sample_weight \(100,\).*reduction='none'"):
            RateDistortion().update(means, count=100, sample_weight=torch.ones(100))
        with pytest.raises(ValueError, match="count=7 and terms of 100"):
            RateDistortion().update(terms_of(), count=7)
        with pytest.raises(TypeError, match="Tensor"):
            RateDistortion().update(means.loss)


def flat(value):
    """What compute() gives, as one tensor."""
    return torch.stack(list(value.values())) if isinstance(value, dict) else value.double()


METRICS = {ActiveUnits: posterior_of, KLPerDimension: posterior_of, RateDistortion: terms_of}
each_metric = pytest.mark.parametrize(("metric_class", "data"), METRICS.items(), ids=lambda value: value.__name__)


@each_metric
def test_padding_counts_nothing_even_where_it_is_nan(metric_class, data):
    index, padding = [*range(30), 0, 0], slice(30, None)
    weight = torch.ones(32)
    weight[padding] = 0
    padded = data(index)
    if metric_class is RateDistortion:
        padded = tree_map(lambda term: term.where(weight > 0, torch.nan) if term.ndim else term, padded)
    else:
        padded = nan_where(padded, padding)
    metric, expected = metric_class(), metric_class()
    metric.update(padded, sample_weight=weight > 0)
    metric.update(padded, sample_weight=0 * weight)
    expected.update(data(slice(0, 30)))
    torch.testing.assert_close(flat(metric.compute()), flat(expected.compute()), rtol=1e-13, atol=0)


@each_metric
def test_weights_of_the_wrong_shape(metric_class, data):
    for shape in ((99,), (100, 1), ()):
        with pytest.raises(ValueError, match=r"must have the shape \(N,\): 100"):
            metric_class().update(data(), sample_weight=torch.ones(shape))


@each_metric
def test_forward_gives_the_batch_and_keeps_the_whole(metric_class, data):
    metric, whole = metric_class(), metric_class()
    for start, end in CUTS[1:]:
        alone = metric_class()
        alone.update(data(slice(start, end)))
        assert torch.equal(flat(metric(data(slice(start, end)))), flat(alone.compute()))
    whole.update(data(slice(1, 100)))
    torch.testing.assert_close(flat(metric.compute()), flat(whole.compute()), rtol=1e-12, atol=0)


@each_metric
def test_reset_pickle_copy_and_device(metric_class, data):
    metric, expected = metric_class(), metric_class()
    metric.update(data(slice(0, 50)))
    first = flat(metric.compute())
    for other in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric), metric.to("cpu"), metric.float()):
        assert torch.equal(flat(other.compute()), first)
        other.update(data(slice(50, 100)))
        expected.reset()
        expected.update(data())
        torch.testing.assert_close(flat(other.compute()), flat(expected.compute()), rtol=1e-12, atol=0)
        other.reset()
        other.update(data(slice(0, 50)))
        assert torch.equal(flat(other.compute()), first)


@each_metric
def test_before_any_example(metric_class, data):
    metric = metric_class()
    with pytest.warns(UserWarning, match="before the ``update``"):
        value = flat(metric.compute())
    assert value.item() == 0 if metric_class is ActiveUnits else value.isnan().all()
    metric.update(data(slice(0, 0)))
    value = flat(metric.compute())
    assert value.item() == 0 if metric_class is ActiveUnits else value.isnan().all()


@pytest.mark.parametrize("metric_class", [ActiveUnits, KLPerDimension])
def test_another_latent_shape_raises_and_changes_nothing(metric_class):
    for shape in ((1,), (3, 5), (4,)):
        metric = metric_class()
        metric.update(posterior_of())
        before = metric.compute()
        with pytest.raises(ValueError, match=rf"\({', '.join(map(str, shape))},?\), and that of earlier.*\(5,\)"):
            metric.update(posterior_of(shape=shape))
        assert torch.equal(metric.compute(), before)
        with pytest.raises(ValueError, match=r"earlier updates \(5,\)"):
            metric(posterior_of(shape=shape))
        metric.reset()
        metric.update(posterior_of(shape=shape))


def test_a_collection():
    metrics = torchmetrics.MetricCollection([ActiveUnits(), KLPerDimension(), RateDistortion()])
    for start, end in CUTS:
        part = slice(start, end)
        metrics.update(posterior=posterior_of(part), terms=terms_of(part), sample_weight=torch.ones(end - start))
    found = metrics.compute()
    assert set(found) == {"ActiveUnits", "KLPerDimension", "rate", "distortion", "negative_elbo"}
    assert found["ActiveUnits"].item() == 2
    assert found["rate"].item() == pytest.approx(found["KLPerDimension"].sum().item(), rel=1e-12)
    thresholds = torchmetrics.MetricCollection({"low": ActiveUnits(1e-5), "high": ActiveUnits(0.5)})
    for start, end in CUTS:
        thresholds.update(posterior_of(slice(start, end)))
    assert {name: value.item() for name, value in thresholds.compute().items()} == {"low": 5, "high": 1}


def watched(parts):
    """What the three say of the parts, (indices, weight) each; index 0 with weight 0 is NaN."""
    active, kl, rate = ActiveUnits(), KLPerDimension(), RateDistortion()
    for index, weight in parts:
        weight = torch.tensor(weight)
        q = nan_where(posterior_of(index), weight == 0)
        active.update(q, weight)
        kl.update(q, sample_weight=weight)
        rate.update(terms_of(index), sample_weight=weight)
    values = [active.compute().double()[None], active.variances(), kl.compute(), flat(rate.compute())]
    assert torch.equal(active.variances(), values[1])  # synchronised for the while only
    return torch.cat(values)


PARTS = (
    [([*range(61)], [1.0] * 61), ([*range(61, 64)], [2.0] * 3)],
    [([*range(64, 100), 0], [1.0] * 36 + [0.0])],
)


def one_of_two(rank):
    found = [watched(PARTS[rank])]
    found.append(watched(PARTS[0] if rank == 0 else [([0, 0], [0.0, 0.0])]))
    return [values.tolist() for values in found]


@slow
def test_two_processes_are_one_with_all_examples(tmp_path):
    found = in_two_processes(one_of_two, tmp_path)
    for k, parts in enumerate((PARTS[0] + PARTS[1], PARTS[0])):
        expected = watched(parts)
        for rank in range(2):
            np.testing.assert_allclose(found[rank][k], expected, rtol=1e-12, atol=1e-15)


@slow
def test_without_torchmetrics_the_error_says_what_to_install():
    code = "import sys; sys.modules['torchmetrics'] = None; import kldiv; import kldiv.metrics"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "ImportError: kldiv.metrics needs torchmetrics: pip install torchmetrics"


def test_kldiv_itself_does_not_import_torchmetrics():
    code = "import sys; import kldiv; sys.exit('torchmetrics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
