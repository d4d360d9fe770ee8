"""Samplers: independent draws, antithetic pairs and scrambled Sobol points, as maps of uniform noise."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    OneHotCategoricalStraightThrough,
    TransformedDistribution,
)
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli

from kldiv.distributions import DiagonalNormal, GumbelSoftmax, device_of

__all__ = [
    "SAMPLERS",
    "SCRAMBLES",
    "Draws",
    "GivenDraws",
    "NoiseMap",
    "Sampler",
    "check_num_samples",
    "has_pathwise_gradient",
    "noise_map",
    "noise_of",
]


Sampler = Literal["iid", "antithetic", "sobol"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
SCRAMBLES = 8
"""Independent scrambles behind a standard error: with fewer its intervals cover too little, more waste points."""

_BITS = 30
"""Of a point of torch's Sobol engine."""


class NoiseMap(NamedTuple):
    r"""How uniform noise becomes a sample: :math:`x = g_\theta(u), u \sim U(0, 1)^k`."""

    noise_shape: torch.Size
    """The shape of the noise of one event."""
    sample: Callable[[Tensor], Tensor]
    r"""From noise (\*samples, \*batch, \*noise_shape) to samples (\*samples, \*batch, \*event)."""


def noise_map(p: Any) -> NoiseMap | None:
    """The map from uniform noise to samples of p, differentiable in its parameters; ``None`` where none is known.

    Known for normal distributions of any covariance, for scalars with an ``icdf``, for products of such
    (``Independent``) and for what ``TransformedDistribution`` makes of them.

    >>> noise_map(torch.distributions.Laplace(1.0, 2.0)).sample(torch.tensor(0.5))
    tensor(1.)
    """
    if _draws_as(p, Independent):
        inner = noise_map(p.base_dist)
        if inner is None:
            return None
        dims = p.reinterpreted_batch_ndims
        return NoiseMap(
            p.base_dist.batch_shape[len(p.base_dist.batch_shape) - dims :] + inner.noise_shape, inner.sample
        )
    if _draws_as(p, DiagonalNormal):
        return NoiseMap(p.event_shape, lambda u: p.mean + p.stddev * _normal(u, p.mean))
    if _draws_as(p, Normal):
        return NoiseMap(p.event_shape, lambda u: p.loc + p.scale * _normal(u, p.loc))
    if _draws_as(p, MultivariateNormal):
        return NoiseMap(p.event_shape, lambda u: p.loc + (p.scale_tril @ _normal(u, p.loc)[..., None])[..., 0])
    if _draws_as(p, LowRankMultivariateNormal):
        rank = p.cov_factor.shape[-1]

        def low_rank(u: Tensor) -> Tensor:
            z = _normal(u, p.loc)
            sample: Tensor = p.loc + (p.cov_factor @ z[..., :rank, None])[..., 0] + p.cov_diag.sqrt() * z[..., rank:]
            return sample

        return NoiseMap(torch.Size([rank + p.event_shape[0]]), low_rank)
    if not p.event_shape and _has_icdf(type(p)):
        return NoiseMap(torch.Size(), lambda u: _rounded(p.icdf(u), p))
    if _draws_as(p, TransformedDistribution):
        inner = noise_map(p.base_dist)
        if inner is None:
            return None

        def transformed(u: Tensor) -> Tensor:
            x = inner.sample(u)
            for transform in p.transforms:
                x = transform(x)
            return x

        return NoiseMap(inner.noise_shape, transformed)
    return None


def _draws_as(p: Any, kind: type[Distribution]) -> bool:
    # a subclass may draw in a way of its own, which its parameters do not tell
    return isinstance(p, kind) and type(p).rsample is kind.rsample and type(p).sample is kind.sample


def _has_icdf(kind: type[Distribution]) -> bool:
    if kind.icdf in (Distribution.icdf, TransformedDistribution.icdf):
        return False
    # an icdf that was inherited says nothing of a subclass that draws in another way
    defined_by = {name: next(c for c in kind.__mro__ if name in vars(c)) for name in ("icdf", "rsample", "sample")}
    return all(issubclass(defined_by["icdf"], defined_by[name]) for name in ("rsample", "sample"))


def _normal(u: Tensor, like: Tensor) -> Tensor:
    return torch.special.ndtri(u).to(like.dtype)  # type: ignore[no-any-return]


def _rounded(x: Tensor, p: Distribution) -> Tensor:
    dtypes = [v.dtype for v in p.__dict__.values() if isinstance(v, Tensor) and v.is_floating_point()]
    return x.to(dtypes[0]) if dtypes else x.to(torch.get_default_dtype())


class Draws:
    r"""Samples of p in independent units of equally many points, all at once or in chunks.

    A unit is what is independent of all others: a draw (``"iid"``), an antithetic pair, a scramble of a Sobol net. For
    Sobol every element of the batch has a random shift of its own (of the digits, by exclusive or, which keeps the net
    a net), so that the errors of two elements are independent though they share the net.

    Args:
        p: what is drawn from; its batch shape broadcasts to ``batch_shape``.
        batch_shape: each element has noise of its own.
        num_samples: in all.
        sampler: ``"iid"``, ``"antithetic"`` or ``"sobol"``.
        scrambles: of the Sobol net.
        with_gradient: whether samples carry a gradient, where p can give one.
    Raises: ValueError: a p without a known :func:`noise_map`; a ``num_samples`` that is no whole number of units.
    Source: Owen 1995 (scrambling), L'Ecuyer & Lemieux 2002 (digital shifts); antithetic: Hammersley & Morton 1956.
    """

    def __init__(
        self,
        p: Distribution,
        batch_shape: torch.Size,
        num_samples: int,
        sampler: Sampler,
        scrambles: int = SCRAMBLES,
        with_gradient: bool = True,
    ) -> None:
        check_num_samples(num_samples, sampler, scrambles)
        self.p, self.batch_shape, self.num_samples, self.sampler = p, batch_shape, num_samples, sampler
        self.with_gradient = with_gradient and has_pathwise_gradient(p)
        self.units = {"iid": num_samples, "antithetic": num_samples // 2, "sobol": scrambles}[sampler]
        self.points = num_samples // self.units
        if sampler == "iid":
            return
        noise = noise_map(p)
        if noise is None:
            raise ValueError(
                f"sampler={sampler!r} needs the map from uniform noise to a sample, and that of {type(p).__name__} is "
                "not known: it has no inverse cumulative distribution function (icdf). sampler='iid' would do"
            )
        self.noise = noise
        self.device = device_of(p)
        if sampler == "sobol":
            dims = math.prod(noise.noise_shape)
            if dims > torch.quasirandom.SobolEngine.MAXDIM:
                raise ValueError(
                    f"an event of {type(p).__name__} has {dims} dimensions, and Sobol points at most "
                    f"{torch.quasirandom.SobolEngine.MAXDIM}. sampler='antithetic' or 'iid' would do"
                )
            nets = [_sobol_net(self.points, dims) for _ in range(scrambles)]
            self.net = torch.stack(nets).to(self.device)
            self.shift = torch.randint(2**_BITS, (scrambles, 1, *batch_shape, dims), device=self.device)

    @property
    def length(self) -> int:
        """How many pieces chunks are cut from: units, or for Sobol the points of each scramble."""
        return self.points if self.sampler == "sobol" else self.units

    def __call__(self, start: int = 0, stop: int | None = None) -> Tensor:
        r"""Samples (units, points, \*batch, \*event), from the pieces ``start`` to ``stop`` of :attr:`length`."""
        stop = self.length if stop is None else stop
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.with_gradient):
            if self.sampler == "iid":
                draw = self.p.rsample if self.with_gradient else self.p.sample
                return _draw(draw, torch.Size([stop - start, 1]), self.p, self.batch_shape)
            if self.sampler == "antithetic":
                shape = (stop - start, 1, *self.batch_shape, *self.noise.noise_shape)
                half = torch.rand(shape, dtype=torch.float64, device=self.device)
                u = torch.cat([half, 1 - half], dim=1)
            else:
                net = self.net[:, start:stop]
                net = net.reshape(*net.shape[:2], *[1] * len(self.batch_shape), net.shape[-1])
                u = ((net ^ self.shift) + 0.5) / 2**_BITS
                u = u.reshape(*u.shape[:-1], *self.noise.noise_shape)
            # at 0 and 1 many a distribution is infinite; 1 - 2^-24 is the last float32 below 1
            return self.noise.sample(u.clamp(2**-24, 1 - 2**-24))


class GivenDraws(Draws):
    r"""Samples (\*samples, \*batch, \*event) that were given, taken to be independent."""

    def __init__(self, p: Distribution, sample: Tensor) -> None:
        self.p, self.batch_shape, self.sampler = p, p.batch_shape, "iid"
        shape = p.batch_shape + p.event_shape
        self.num_samples = self.units = sample.shape[: sample.ndim - len(shape)].numel()
        self.sample = sample.reshape(self.units, 1, *shape)
        self.points = 1

    def __call__(self, start: int = 0, stop: int | None = None) -> Tensor:
        whole = start == 0 and stop in (None, self.units)
        return self.sample if whole else self.sample[start:stop]


def check_num_samples(num_samples: int, sampler: Sampler, scrambles: int) -> None:
    """Raises: ValueError: a number of samples that is not a whole number of units."""
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples}: at least one sample is needed")
    if sampler == "antithetic" and num_samples % 2:
        raise ValueError(f"num_samples={num_samples} with sampler='antithetic': pairs are drawn, so it must be even")
    if sampler == "sobol" and num_samples % scrambles:
        raise ValueError(
            f"num_samples={num_samples} with sampler='sobol': {scrambles} independent scrambles of equally many points "
            f"give the standard error, so it must be a multiple of {scrambles}"
        )


def _sobol_net(points: int, dims: int) -> Tensor:
    """Integers (points, dims) of 30 bits, of one scramble."""
    if dims == 0:
        return torch.zeros(points, 0, dtype=torch.int64)
    engine = torch.quasirandom.SobolEngine(dims, scramble=True)  # type: ignore[no-untyped-call]
    net: Tensor = (engine.draw(points, dtype=torch.float64) * 2**_BITS).long()
    return net.clamp(max=2**_BITS - 1)  # the first point is rounded to float32, up to 1 at times


def _draw(
    draw: Callable[[torch.Size], Tensor], sample_shape: torch.Size, p: Distribution, batch_shape: torch.Size
) -> Tensor:
    """Independent samples (*sample_shape, *batch_shape, *event). p is not expanded: not every distribution can be."""
    own = p.batch_shape
    if own == batch_shape:
        return draw(sample_shape)
    lead = len(batch_shape) - len(own)
    # where a dimension of size 1 broadcasts, further samples take its place
    ones = [i for i, size in enumerate(own) if size != batch_shape[lead + i]]
    more = torch.Size([*batch_shape[:lead], *(batch_shape[lead + i] for i in ones)])
    sample = draw(sample_shape + more)
    first = len(sample_shape) + lead
    for k, i in enumerate(ones):
        sample = sample.transpose(first + k, first + len(ones) + i)
    return sample.reshape(sample_shape + batch_shape + p.event_shape)


def has_pathwise_gradient(p: Distribution) -> bool:
    """Whether gradients go through samples of p. Those of straight-through categories are not samples of them."""
    if isinstance(p, (GumbelSoftmax, OneHotCategoricalStraightThrough)):
        return False
    base = getattr(p, "base_dist", None)
    if base is None:
        # torch does not say of the one that it is reparametrised
        return p.has_rsample or _draws_as(p, LogitRelaxedBernoulli)
    return has_pathwise_gradient(base) and (p.has_rsample or not base.has_rsample)


@contextlib.contextmanager
def noise_of(source: torch.Generator | int | None) -> Iterator[None]:
    """A context whose noise comes from a generator or a seed, and which leaves the global random states alone.

    ``None``: the noise comes from the global generators.
    """
    if source is None:
        yield
        return
    # distributions draw from the global generators, which are seeded here and restored at the end
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        if isinstance(source, torch.Generator):
            source = int(torch.randint(2**62, (), generator=source, device=source.device))
        # torch.manual_seed would also seed generators that are not restored
        torch.default_generator.manual_seed(source)
        if devices:
            torch.cuda.manual_seed_all(source)
        yield
