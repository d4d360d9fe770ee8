"""Log-likelihoods of a data set by importance sampling, with thousands of samples an example in bounded memory."""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from kldiv.elbo.context import map_tensors, pieces, repeated, with_context
from kldiv.elbo.importance import ImportanceWeightedELBOLoss, LogLikelihood
from kldiv.elbo.terms import check_likelihood
from kldiv.kernels import keep_freed_memory

__all__ = [
    "estimate_log_likelihood",
    "stream_log_likelihood",
]


@torch.no_grad()
def stream_log_likelihood(
    log_weights: Callable[[int], Tensor], num_samples: int, *, chunk_size: int = 100
) -> LogLikelihood:
    """ln p(x), as :func:`kldiv.importance_log_likelihood` of all samples together, which are never all in memory.

    Args:
        log_weights: draws k samples, and gives the log-weights ln p(x, z) - ln q(z|x) of each example, (k, N): called
            with k again and again, without gradients.
        num_samples: K, of each example, at least 1.
        chunk_size: the most samples at a time, at least 1.
    Returns: the log-likelihood of each example, its standard error and the effective sample size, (N,) each, in nats.
    Raises: ValueError: numbers below 1; log-weights without k along dimension 0.
    Source: Burda, Grosse & Salakhutdinov 2016, eq. 8.

    >>> estimate = stream_log_likelihood(lambda k: torch.full((k, 2), -3.0), 1000)
    >>> estimate.value
    tensor([-3., -3.])
    """
    if num_samples < 1 or chunk_size < 1:
        raise ValueError(f"num_samples={num_samples}, chunk_size={chunk_size}: at least one sample")
    peak = total = squares = torch.zeros(())
    dtype = torch.float32
    for start in range(0, num_samples, chunk_size):
        size = min(chunk_size, num_samples - start)
        log = log_weights(size)
        if log.ndim == 0 or log.shape[0] != size:
            raise ValueError(
                f"log_weights({size}) has the shape {tuple(log.shape)}, and must begin with {size} samples"
            )
        dtype, log = torch.promote_types(log.dtype, torch.float32), log.double()
        if start == 0:
            peak = log.new_full(log.shape[1:], -torch.inf)
            total = squares = torch.zeros_like(peak)
        top = torch.maximum(peak, log.amax(0))
        base = top.masked_fill(top == -torch.inf, 0)  # all weights so far are 0
        weights, before = torch.exp(log - base), torch.exp(peak - base)
        total = total * before + weights.sum(0)
        squares = squares * before.square() + weights.square().sum(0)
        peak = top
    none = peak == -torch.inf
    value = (peak + torch.log(total / num_samples)).masked_fill(none, -torch.inf)
    error = torch.full_like(value, torch.inf)
    if num_samples > 1:
        spread = (squares - total.square() / num_samples).clamp(min=0)
        error = (torch.sqrt(spread * num_samples / (num_samples - 1)) / total).masked_fill(none, torch.inf)
    effective_sample_size = (total.square() / squares).masked_fill(none, 0)
    return LogLikelihood(value.to(dtype), error.to(dtype), effective_sample_size.to(dtype))


@torch.no_grad()
def estimate_log_likelihood(
    data: Tensor | Iterable[Any],
    encoder: Callable[..., Distribution],
    decoder: Callable[..., Any],
    reconstruction: nn.Module,
    prior: Distribution | Callable[..., Distribution] | None = None,
    *,
    num_samples: int = 5000,
    context: Any = None,
    max_rows: int | None = None,
) -> LogLikelihood:
    r"""ln p(x) of each example of a test set under a VAE, by importance sampling, in nats; ln p(x|y) with a context y.

    Examples are batched, so that the decoder always has about ``max_rows`` samples to work on; memory is bounded by
    these, however many examples and samples there are. Modules are put in eval mode for the time, and no gradient is
    kept. Seed torch's generator to have the same again. Where a latent's distribution depends on the sample of another,
    call :func:`stream_log_likelihood`.

    Args:
        data: (M, \*event), or an iterable of batches: tensors, or tuples that begin with one. Each batch is moved to
            where the encoder's parameters are.
        encoder: (n, \*event) to q(z|x), of batch shape (n, ...).
        decoder: samples (rows, \*latent) to what the likelihood takes, a tensor or a tuple of them, (rows, ...).
        reconstruction: the likelihood term, such as :class:`kldiv.BernoulliNLL`.
        prior: p(z), or a module or function that returns it when called; ``None``: the standard normal, uniform
            categories. A model that was trained with p(z|y) has to be given it here too: without it the figure is
            that of another model, and nothing shows it.
        num_samples: K, of each example.
        context: y, (M, ...), or a tuple or dictionary of such tensors, in the order of the data; with a loader, a
            function of its batch, ``lambda batch: batch[1]``. Its rows go along with those of the data, as
            ``encoder(x, y)``, ``decoder(z, y)`` and ``prior(y)``, to those of the three that take it: as an argument
            called ``context``, or as a second (of the prior a first) positional one without a default or with ``None``.
        max_rows: the most samples the decoder is given at a time; ``None``: 2000 on a CPU, whose caches hold no more,
            and 5000 elsewhere.
    Returns: value, standard error and effective sample size, (M,) each. The mean of the values is the figure that
        papers give, and ``standard_error.square().sum().sqrt() / M`` what importance sampling leaves open of it.
    Raises:
        ValueError: numbers below 1; shapes that do not fit; a context that none of the three takes.
        TypeError: a context that holds something else than tensors.
    Warns: UserWarning: the smallest effective sample size is below 10. Values tend to be too low there, and standard
        errors too small.
    Source: Burda, Grosse & Salakhutdinov 2016, eq. 8, with K = 5000 for the figures of the field.

    >>> from kldiv import BernoulliNLL, DiagonalNormal
    >>> def encoder(x):
    ...     return DiagonalNormal(torch.zeros(len(x), 2), torch.zeros(len(x), 2))
    >>> def decoder(z):
    ...     return torch.zeros(len(z), 8)
    >>> estimate_log_likelihood(torch.ones(3, 8), encoder, decoder, BernoulliNLL(), num_samples=20).value
    tensor([-5.5452, -5.5452, -5.5452])
    """
    device = _device_of(encoder)
    on_cpu = device is None or device.type == "cpu"
    if on_cpu:
        keep_freed_memory()
    if max_rows is None:
        max_rows = 2000 if on_cpu else 5000
    if num_samples < 1 or max_rows < 1:
        raise ValueError(f"num_samples={num_samples}, max_rows={max_rows}: at least one")
    prior_of = None if prior is None or isinstance(prior, Distribution) else prior
    encode, decode, make_prior = with_context(encoder, decoder, prior_of, context is not None)
    bound = ImportanceWeightedELBOLoss(check_likelihood(reconstruction))
    examples = max(1, max_rows // num_samples)
    found: list[LogLikelihood] = []
    with contextlib.ExitStack() as stack:
        for part in (encoder, decoder, reconstruction, prior):
            stack.enter_context(_in_eval_mode(part))
        for x, y in pieces(data, context, examples, device):
            posterior = encode(x, y)
            p = make_prior(y) if make_prior is not None else prior

            def log_weights(k: int, x: Tensor = x, y: Any = y, q: Distribution = posterior, p: Any = p) -> Tensor:
                sample = q.sample((k,))
                output = decode(sample.flatten(0, 1), map_tensors(lambda each: repeated(each, k), y))
                lead = sample.shape[:2]
                if isinstance(output, Tensor):
                    output = output.reshape(*lead, *output.shape[1:])
                else:
                    output = [each.reshape(*lead, *each.shape[1:]) for each in output]
                return bound.log_weights(output, x, q, p, sample=sample)

            found.append(stream_log_likelihood(log_weights, num_samples, chunk_size=max(1, max_rows // max(len(x), 1))))
    if not found:
        raise ValueError("data holds no batch")
    whole = LogLikelihood(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    _warn_of_few(whole.effective_sample_size, num_samples)
    return whole


_FEW = 10
"""An effective sample size below it is warned of."""


def _warn_of_few(effective_sample_size: Tensor, num_samples: int) -> None:
    if not len(effective_sample_size):
        return
    smallest, row = effective_sample_size.nan_to_num(0.0).min(0)
    if smallest < _FEW:
        rows = int((effective_sample_size.nan_to_num(0.0) < _FEW).sum())
        warnings.warn(
            f"the smallest effective sample size is {smallest.item():.3g} of num_samples={num_samples}, at row "
            f"{row.item()}, and {rows} of {len(effective_sample_size)} rows have less than {_FEW}: their values are "
            "carried by a few samples, tend to be too low, and their standard errors too small. Draw more "
            "(num_samples=...), see whether the prior is the one of training, or train a posterior that is wider",
            UserWarning,
            stacklevel=4,
        )


def _device_of(encoder: object) -> torch.device | None:
    """The device of a module; ``None`` for anything else, or for a module without tensors."""
    encoder = getattr(encoder, "__self__", encoder)  # a method: its model
    if not isinstance(encoder, nn.Module):
        return None
    tensor = next(encoder.parameters(), next(encoder.buffers(), None))
    return None if tensor is None else tensor.device


@contextlib.contextmanager
def _in_eval_mode(module: object) -> Iterator[None]:
    module = getattr(module, "__self__", module)
    if not isinstance(module, nn.Module):
        yield
        return
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
