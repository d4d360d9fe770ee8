import math
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from kldiv import (
    BernoulliNLL,
    DiagonalNormal,
    GaussianNLL,
    MixturePrior,
    estimate_log_likelihood,
    importance_log_likelihood,
    stream_log_likelihood,
)
from kldiv.elbo.context import with_context


class Encoder(nn.Module):
    """q(z|x) of z ~ N(0, 1), x|z ~ N(z, 1), somewhat too wide, with a dropout that must not act."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.dropout = nn.Dropout(0.9)

    def forward(self, x):
        mean = self.scale * self.dropout(x)
        return DiagonalNormal(mean, torch.full_like(mean, math.log(0.7)))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows = []

    def forward(self, z):
        assert not torch.is_grad_enabled()
        assert not self.training
        self.rows.append(len(z))
        return z


@pytest.mark.parametrize("chunk_size", [1, 7, 20, 1000])
@pytest.mark.parametrize("level", [0.0, -1e5, 300.0])
def test_a_stream_is_all_of_it_together(chunk_size, level):
    torch.manual_seed(0)
    weights = level + 3 * torch.randn(40, 5).double()
    weights[:, 1] = -torch.inf
    weights[:30, 2] = -torch.inf
    taken = 0

    def some(k):
        nonlocal taken
        taken += k
        return weights[taken - k : taken]

    found = stream_log_likelihood(some, 40, chunk_size=chunk_size)
    torch.testing.assert_close(found, importance_log_likelihood(weights), rtol=1e-9, atol=1e-9)
    assert taken == 40


def test_a_stream_of_nearly_equal_weights_keeps_its_error():
    generator = torch.Generator().manual_seed(0)
    weights = 1e-4 * torch.randn(5000, 2, dtype=torch.float64, generator=generator) - 700
    chunks = iter(weights.split(100))
    found = stream_log_likelihood(lambda k: next(chunks), 5000)
    torch.testing.assert_close(found, importance_log_likelihood(weights), rtol=1e-6, atol=0)


def test_one_sample_has_an_unknown_error():
    found = stream_log_likelihood(lambda k: torch.zeros(k, 2), 1)
    assert found.value.tolist() == [0, 0]
    assert found.standard_error.tolist() == [math.inf, math.inf]


@pytest.mark.parametrize("max_rows", [64, 1000, 5000])
def test_against_the_likelihood_in_closed_form(max_rows):
    torch.manual_seed(0)
    x = 1.4 * torch.randn(50, 1)
    encoder, decoder = Encoder(), Decoder()
    found = estimate_log_likelihood(x, encoder, decoder, GaussianNLL(), num_samples=500, max_rows=max_rows)
    truth = Normal(0.0, math.sqrt(2)).log_prob(x[:, 0])
    scores = (found.value - truth) / found.standard_error
    assert scores.abs().max() < 4.5
    assert 0.6 < scores.std() < 1.4  # the error is neither too small nor too large
    assert max(decoder.rows) <= max_rows
    assert sum(decoder.rows) == 50 * 500
    assert encoder.training and encoder.dropout.training and decoder.training  # noqa: PT018
    assert encoder.scale.grad is None


def test_batches_of_a_loader_and_modules_in_eval_mode():
    torch.manual_seed(0)
    x = torch.randn(10, 1)
    whole = estimate_log_likelihood(x, Encoder(), Decoder(), GaussianNLL(), num_samples=20_000)
    encoder = Encoder()
    encoder.dropout.eval()
    data = [(part, torch.zeros(len(part))) for part in x.split(4)]
    parts = estimate_log_likelihood(data, encoder, Decoder(), GaussianNLL(), num_samples=20_000)
    torch.testing.assert_close(whole.value, parts.value, atol=0.03, rtol=0)
    assert encoder.training
    assert not encoder.dropout.training


def test_a_learned_prior_plain_functions_and_outputs_of_two_tensors():
    torch.manual_seed(0)
    x = torch.randn(4, 2)

    def encoder(x):
        return DiagonalNormal(x, torch.zeros_like(x))

    def decoder(z):
        return z, torch.zeros_like(z)

    found = estimate_log_likelihood(x, encoder, decoder, GaussianNLL(), MixturePrior(3, 2), num_samples=50)
    again = estimate_log_likelihood(x, encoder, decoder, GaussianNLL(), MixturePrior(3, 2)(), num_samples=50)
    assert found.value.shape == again.value.shape == (4,)
    assert found.effective_sample_size.max() <= 50


def test_the_mode_is_restored_after_an_error():
    encoder = Encoder()
    with pytest.raises(ValueError, match="must have one shape"):
        estimate_log_likelihood(
            torch.zeros(3, 1), encoder, lambda z: torch.zeros(len(z), 5), BernoulliNLL(), num_samples=100
        )
    assert encoder.dropout.training


def test_bad_arguments():
    for options in ({"num_samples": 0}, {"max_rows": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            estimate_log_likelihood(torch.zeros(3, 1), Encoder(), Decoder(), GaussianNLL(), **options)
    with pytest.raises(ValueError, match="no batch"):
        estimate_log_likelihood([], Encoder(), Decoder(), GaussianNLL())
    with pytest.raises(ValueError, match=r"log_weights\(100\) has the shape \(3,\)"):
        stream_log_likelihood(lambda k: torch.zeros(3), 500)
    with pytest.raises(ValueError, match="chunk_size=0"):
        stream_log_likelihood(lambda k: torch.zeros(k), 500, chunk_size=0)
    with pytest.raises(TypeError, match="likelihood term"):
        estimate_log_likelihood(torch.zeros(3, 1), Encoder(), Decoder(), nn.MSELoss())


def test_a_models_methods_put_the_model_in_eval_mode():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.5))

        def encode(self, x):
            assert not self.training
            return DiagonalNormal(self.scale * x, torch.zeros_like(x))

        def decode(self, z):
            return z

    model = Model()
    estimate_log_likelihood(torch.zeros(3, 1), model.encode, model.decode, GaussianNLL(), num_samples=100)
    assert model.training


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about glibc's allocator")
def test_memory_is_not_given_back_between_the_decoders_layers():
    """Without that each of the calls faults some ten thousand pages in, 3 MB a layer."""
    code = """
import resource, torch, kldiv
decoder = torch.nn.Sequential(torch.nn.Linear(4, 400), torch.nn.ReLU(), torch.nn.Linear(400, 784))
x, likelihood = torch.rand(2, 784), kldiv.BernoulliNLL()
def call():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    posterior = lambda x: kldiv.DiagonalNormal(torch.zeros(len(x), 4), torch.zeros(len(x), 4))
    kldiv.estimate_log_likelihood(x, posterior, decoder, likelihood, num_samples=4000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(call() for _ in range(4)))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True
    )
    assert int(run.stdout) < 1000


class ConditionalGaussian:
    """z|y ~ N(2 y, 1), x|z, y ~ N(z - y, 1), and so x|y ~ N(y, 2) and z|x, y ~ N((x + 3 y) / 2, 1/2)."""

    def prior(self, y):
        return DiagonalNormal(2 * y, torch.zeros_like(y))

    def encode(self, x, y):
        return DiagonalNormal((x + 3 * y) / 2, torch.full_like(x, math.log(0.8)))

    def decode(self, z, y):
        return z - y

    def log_prob(self, x, y):
        return Normal(y, math.sqrt(2)).log_prob(x)[:, 0]


def conditional_data(count=37):
    torch.manual_seed(0)
    y = 2 * torch.randn(count, 1)
    return y + 1.4 * torch.randn(count, 1), y


def check_against(found, truth):
    scores = (found.value - truth) / found.standard_error
    assert scores.abs().max() < 4.5
    assert scores.std() < 1.4
    assert found.standard_error.max() < 0.05


@pytest.mark.parametrize("max_rows", [64, 1100, 5000])
@pytest.mark.parametrize("form", ["tensor", "tuple", "dict", "loader", "batches in order"])
def test_a_conditional_model_against_its_closed_form(form, max_rows):
    model, (x, y) = ConditionalGaussian(), conditional_data()
    encode, decode, prior, data, context = model.encode, model.decode, model.prior, x, y
    if form == "tuple":
        context = (y, y)
        encode, decode, prior = (
            lambda x, c: model.encode(x, c[0]),
            lambda z, c: model.decode(z, c[1]),
            lambda c: model.prior(c[0]),
        )
    elif form == "dict":
        context = {"y": y}
        encode, decode, prior = (
            lambda x, context: model.encode(x, context["y"]),
            lambda z, *, context: model.decode(z, context["y"]),
            lambda context=None: model.prior(context["y"]),
        )
    elif form == "loader":
        data, context = [(x[i : i + 8], y[i : i + 8]) for i in range(0, len(x), 8)], lambda batch: batch[1]
    elif form == "batches in order":
        data = x.split(8)
    found = estimate_log_likelihood(
        data, encode, decode, GaussianNLL(), prior, num_samples=500, context=context, max_rows=max_rows
    )
    check_against(found, model.log_prob(x, y))


def test_a_context_goes_to_those_who_take_it():
    model, (x, y) = ConditionalGaussian(), conditional_data()
    wide = DiagonalNormal(torch.zeros(1), torch.full((1,), 3.0))
    plain = estimate_log_likelihood(x, lambda x: wide.expand((len(x),)), lambda z: z, GaussianNLL(), num_samples=4000)

    def encoder(x, temperature=1.0):
        assert temperature == 1.0
        return wide.expand((len(x),))

    torch.manual_seed(1)
    of_decoder = estimate_log_likelihood(
        x, encoder, model.decode, GaussianNLL(), num_samples=4000, context=y, prior=DiagonalNormal(*torch.zeros(2, 1))
    )
    check_against(of_decoder, Normal(-y, math.sqrt(2)).log_prob(x)[:, 0])
    of_prior = estimate_log_likelihood(
        x, encoder, nn.Identity(), GaussianNLL(), model.prior, num_samples=4000, context=y / 4
    )
    check_against(of_prior, Normal(y / 2, math.sqrt(2)).log_prob(x)[:, 0])
    check_against(plain, Normal(0.0, math.sqrt(2)).log_prob(x)[:, 0])


class TakesContext(nn.Module):
    """Has a layer by the name under which wrappers hold what they wrap."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(1, 1)

    def forward(self, x, y):
        return x + y


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def compiled(module):
    return torch.compile(module, backend="eager")


@pytest.mark.parametrize("wrap", [lambda m: m, compiled, Wrapper, lambda m: Wrapper(compiled(m)), nn.DataParallel])
def test_wrapped_a_module_takes_what_it_takes(wrap):
    x, y = torch.ones(2, 1), torch.full((2, 1), 2.0)
    taken, _, _ = with_context(wrap(TakesContext()), nn.Identity(), None, True)
    assert torch.equal(taken(x, y), x + y)
    with pytest.raises(ValueError, match="neither"):
        with_context(wrap(nn.Identity()), nn.Identity(), None, True)


def test_what_no_context_can_be():
    model, (x, y) = ConditionalGaussian(), conditional_data()

    def estimate(data=x, encoder=model.encode, **options):
        return estimate_log_likelihood(data, encoder, model.decode, GaussianNLL(), model.prior, **options)

    with pytest.raises(ValueError, match=r"\(36, 1\) .*one row for each of 37"):
        estimate(context=y[1:])
    with pytest.raises(ValueError, match=r"\(74, 1\) must have one row for each of 37"):
        estimate(encoder=lambda x, y: pytest.fail("told before anything is computed"), context=torch.cat([y, y]))
    with pytest.raises(ValueError, match=r"one row for each of 37"):
        estimate(x.split(8), context=torch.cat([y, y]), num_samples=100)
    with pytest.raises(ValueError, match="one row for each of 8"):
        estimate(x.split(8), context=lambda batch: y)
    with pytest.raises(TypeError, match=r"context holds a str.*lambda batch"):
        estimate(context="y")
    loader = torch.utils.data.DataLoader(list(x), batch_size=5, shuffle=True)
    with pytest.raises(ValueError, match=r"shuffles.*lambda batch: batch\[1\]"):
        estimate(loader, context=y)
    with pytest.raises(ValueError, match="neither encoder, decoder nor prior takes it"):
        estimate_log_likelihood(x, lambda x: model.encode(x, y), nn.Identity(), GaussianNLL(), context=y)


def test_a_small_effective_sample_size_is_told_once():
    x = torch.cat([torch.zeros(5, 1), torch.full((1, 1), 60.0), torch.zeros(5, 1)])

    def encoder(x):
        return DiagonalNormal(torch.zeros_like(x), torch.zeros_like(x))

    with pytest.warns(
        UserWarning, match=r"effective sample size is .* of num_samples=300, at row 5, and 1 of 11"
    ) as told:
        estimate_log_likelihood(x, encoder, nn.Identity(), GaussianNLL(), num_samples=300, max_rows=700)
    assert len(told) == 1
    assert told[0].filename == __file__
    assert "num_samples=..." in str(told[0].message)
