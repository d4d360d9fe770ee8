"""Closed forms of the registry: values to fifty digits, gradients by differences, shapes."""

import copy
import math
from typing import Any

import torch
from mpmath import mp
from torch import Tensor
from torch import distributions as D  # noqa: N812

from kldiv import kl_divergence
from tests.oracles import CROSS, FAMILIES, NoClosedFormError, stored, tolerance, true_kl
from tests.roads.test_ends_of_the_registry import DEFAULTS, PAIRS, REAL
from tests.roads.test_ends_of_the_registry import made as made_of_floats
from tests.stress import drawing
from tests.stress.case import Case, stress_property
from tests.stress.differences import check_gradient

SLOW = ("Gumbel", "Kumaraswamy to Beta")
"""Families whose oracle is an integral."""
FAST = [name for name in FAMILIES if name not in SLOW]


def written(distribution: D.Distribution) -> str:
    family, parameters = stored(distribution)
    values = {name: mp.nstr(value, 9) if not isinstance(value, list) else "..." for name, value in parameters.items()}
    return f"{family}({', '.join(f'{name}={value}' for name, value in values.items())})"


def check_value(case: Case, p: D.Distribution, q: D.Distribution, dtype: torch.dtype, rtol: float) -> None:
    value = kl_divergence(p, q)
    assert value.dtype == dtype, value.dtype
    assert value.shape == (), value.shape
    assert value.item() >= 0, value
    truth = true_kl(p, q)
    limits = torch.finfo(dtype)
    if truth > limits.max:
        assert value.item() >= limits.max * (1 - 1e-5), (value, mp.nstr(truth, 12))
    elif truth > limits.tiny:
        error = abs(value.item() - truth) / truth
        assert error <= rtol, f"{value.item()!r}, expected {mp.nstr(truth, 17)}, relative error {mp.nstr(error, 3)}"
    for each in (p, q):
        assert kl_divergence(each, each).item() == 0
        assert kl_divergence(each, copy.deepcopy(each)).item() == 0


@stress_property("closed form, one family", weight=14)
def one_family(case: Case) -> None:
    name = case.choice(*(FAMILIES if case.chance(0.02) else FAST))
    distance = 10 ** case.rng.uniform(-5, 0)
    dtype = case.choice(torch.float32, torch.float64)
    p, q = FAMILIES[name].draw(case.rng, distance, dtype)
    case.says(f"{name} {distance:.2g} apart, {dtype}", written(p), written(q))
    mixed = dtype == torch.float64 and ("logits to" in name or "to logits" in name or "Independent" in name)
    # a logarithm rounds off in float64 what the two may differ by
    allowed = max(1.0, 1e-2 / distance) if mixed else 1.0
    check_value(case, p, q, dtype, allowed * tolerance(FAMILIES[name].kind, dtype, p, q))


@stress_property("closed form, two families", weight=8)
def two_families(case: Case) -> None:
    types = case.choice(*CROSS)
    dtype = case.choice(torch.float32, torch.float64)
    p, q = CROSS[types].draw(case.rng, dtype)
    case.says(f"{' to '.join(types)}, {dtype}", written(p), written(q))
    check_value(case, p, q, dtype, tolerance(CROSS[types].kind, dtype, p, q))


@stress_property("closed form, half precision", weight=4)
def half_precision(case: Case) -> None:
    family = case.choice(*drawing.SCALARS)
    dtype = drawing.half(case)
    narrow = [
        {name: value.to(dtype) for name, value in drawing.parameters_of(case, family, (5,)).items()} for _ in range(2)
    ]
    p, q = (drawing.made(family, parameters) for parameters in narrow)
    wide = [drawing.made(family, {name: v.float() for name, v in parameters.items()}) for parameters in narrow]
    case.says(family, dtype)
    value = kl_divergence(p, q)
    assert value.dtype == torch.float32
    case.close("value", value, kl_divergence(*wide), rtol=1e-6)


@stress_property("closed form, ends of the range", weight=12)
def ends_of_the_range(case: Case) -> None:
    types = case.choice(*PAIRS)
    dtype = case.choice(torch.float32, torch.float64)
    sides = [dict(DEFAULTS[kind]) for kind in types]
    names = [(side, name) for side in range(2) for name in sides[side]]
    # float64 to the square root of its ends: what is squared beyond them is not representable
    reach = math.log(torch.finfo(torch.float32).max)
    for side, name in case.rng.sample(names, min(case.rng.randint(1, 2), len(names))):
        value = math.exp(case.rng.uniform(-reach, reach))
        sides[side][name] = value * (case.choice(-1, 1) if name in REAL else 1)
    for side in sides:
        if "low" in side and not side["low"] < side["high"]:
            # no further than the end, where high is there already: an infinite one is no parameter
            side["low"] = max(side["high"] - 1 - abs(side["high"]), -torch.finfo(dtype).max)
    p, q = (made_of_floats(kind, side, dtype) for kind, side in zip(types, sides, strict=True))
    case.says(f"{written(p)} to {written(q)}, {dtype}")
    value = kl_divergence(p, q).item()
    assert value >= 0, value
    try:
        truth = true_kl(p, q)
    except (NoClosedFormError, ArithmeticError, ValueError, NotImplementedError, MemoryError):
        truth = mp.nan
    case.is_checked = not mp.isnan(truth)
    if not case.is_checked:
        return
    limits = torch.finfo(dtype)
    if truth > limits.max * (1 - 1e-6):
        assert value > limits.max * (1 - 1e-5), (value, mp.nstr(truth, 9))
    elif truth < 1e3 * limits.tiny:
        assert value < 1e4 * limits.tiny
    else:
        rtol = 1e-5 if dtype == torch.float32 else 1e-9
        assert abs(value - truth) <= rtol * truth, f"{value!r}, expected {mp.nstr(truth, 17)}"


@stress_property("closed form, gradient", weight=8)
def gradient(case: Case) -> None:
    family = case.choice(*drawing.SCALARS)
    shape = drawing.shape_of(case, most=2, empty=0)
    sides = [drawing.parameters_of(case, family, shape) for _ in range(2)]
    names = list(sides[0])
    case.says(f"two {family} of shape {shape}")
    with torch.no_grad():
        sizes = kl_divergence(*(drawing.made(family, side) for side in sides)).clamp(min=1e-6)
    case.is_checked = bool(sizes.isfinite().all())  # a KL beyond float64 has no differences
    if not case.is_checked:
        return

    def value(*tensors: Tensor) -> Tensor:
        p = drawing.made(family, dict(zip(names, tensors[: len(names)], strict=True)))
        q = drawing.made(family, dict(zip(names, tensors[len(names) :], strict=True)))
        return (kl_divergence(p, q) / sizes).sum()

    tensors = [side[name] for side in sides for name in names]
    steps = [step for side in sides for step in drawing.steps_of(family, side)]
    check_gradient(case, value, tensors, steps, noise=1e-10)


@stress_property("closed form, batches", weight=6)
def batches(case: Case) -> None:
    """Of shapes that broadcast: each element is that of its own pair."""
    family = case.choice(*drawing.SCALARS)
    whole = drawing.shape_of(case, most=3, empty=0.15)
    shapes = [drawing.broadcasting_to(case, whole) for _ in range(2)]
    dtype = case.choice(torch.float32, torch.float64)
    sides = [
        {name: v.to(dtype) for name, v in drawing.parameters_of(case, family, shape, 2.0).items()} for shape in shapes
    ]
    case.says(f"{family} {shapes[0]} to {shapes[1]}, {dtype}")
    p, q = (drawing.made(family, side) for side in sides)
    value = kl_divergence(p, q)
    shape = torch.broadcast_shapes(*shapes)
    assert value.shape == shape
    assert value.dtype == dtype
    assert (value >= 0).all()
    rtol = 1e-5 if dtype == torch.float32 else 1e-10
    case.close("expanded", kl_divergence(p.expand(shape), q.expand(shape)), value, rtol=rtol)
    if math.prod(shape):
        index = tuple(case.rng.randrange(size) for size in shape)
        alone: list[Any] = [
            drawing.made(family, {name: v.expand(shape)[index] for name, v in side.items()}) for side in sides
        ]
        case.close("one", value[index], kl_divergence(*alone), rtol=rtol)
    if shape:
        dims = case.rng.randint(1, len(shape))
        joined = kl_divergence(*(D.Independent(d.expand(shape), dims) for d in (p, q)))
        case.close("Independent", joined, value.flatten(-dims).sum(-1), rtol=2 * rtol)


@stress_property("full covariance, gradient", weight=2)
def full_covariance(case: Case) -> None:
    dims, batch = case.rng.randint(1, 4), drawing.shape_of(case, most=1, empty=0)
    given = case.chosen("given", "scale_tril", "covariance_matrix", "precision_matrix")
    roots = [drawing.covariance_factor(case, *batch, dims=dims) for _ in range(2)]
    means = [case.normal(*batch, dims) for _ in range(2)]
    case.says(f"dims={dims}, batch={batch}")

    def value(*tensors: Tensor) -> Tensor:
        sides = []
        for mean, root in zip(tensors[:2], tensors[2:], strict=True):
            lower = root.tril()
            matrix = lower if given == "scale_tril" else lower @ lower.mT
            sides.append(D.MultivariateNormal(mean, validate_args=False, **{given: matrix}))
        return kl_divergence(*sides).sum()

    with torch.no_grad():
        covariances = [root @ root.mT for root in roots]
        if given == "precision_matrix":
            covariances = [torch.linalg.inv(c) for c in covariances]
        (p, q), difference = covariances, means[1] - means[0]
        inverse = torch.linalg.inv(q)
        by_hand = 0.5 * (
            (inverse @ p).diagonal(dim1=-2, dim2=-1).sum(-1)
            - dims
            + (difference[..., None, :] @ inverse @ difference[..., None])[..., 0, 0]
            + torch.logdet(q)
            - torch.logdet(p)
        )
    case.close("value", value(*means, *roots), by_hand.sum(), rtol=1e-8, atol=1e-8)
    check_gradient(case, value, [*means, *roots], [0.1] * 4, noise=1e-10)
