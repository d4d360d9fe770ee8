"""Random pairs of normal vectors and of Wisharts. Their matrices are well or badly conditioned, up to 1e6."""

import contextlib
import math
import random

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    Wishart,
)

from kldiv import DiagonalNormal
from tests.oracles.divergences import true_kl
from tests.oracles.drawing import Draw, log_uniform, shift


def random_matrix(rng: random.Random, *shape: int) -> Tensor:
    return torch.tensor([rng.gauss(0, 1) for _ in range(math.prod(shape))], dtype=torch.float64).reshape(shape)


def near(rng: random.Random, scale_tril: Tensor, distance: float) -> Tensor:
    """L (1 + E) L' for a symmetric E of norm ``distance`` / 2."""
    noise = random_matrix(rng, *scale_tril.shape)
    noise = noise + noise.mT
    noise = noise * (distance / 2 / torch.linalg.matrix_norm(noise, 2))
    return scale_tril @ (torch.eye(len(noise), dtype=torch.float64) + noise) @ scale_tril.mT


def rotated(rng: random.Random, variances: Tensor) -> Tensor:
    basis, _ = torch.linalg.qr(random_matrix(rng, len(variances), len(variances)))
    return basis * variances @ basis.mT


def draw_variances(rng: random.Random, size: int) -> Tensor:
    unit, condition = log_uniform(rng, 1e-3, 1e3), log_uniform(rng, 1, 1e6)
    between = [1 / condition, 1.0, *(log_uniform(rng, 1 / condition, 1) for _ in range(size))]
    return unit * torch.tensor(between[-size:] if size < 2 else between[:size], dtype=torch.float64)


def matrix_parameter(rng: random.Random, covariance: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    name = rng.choice(("covariance_matrix", "precision_matrix", "scale_tril"))
    matrix = torch.linalg.cholesky(covariance)
    if name == "precision_matrix":
        matrix = torch.cholesky_inverse(matrix)
    if name == "covariance_matrix":
        matrix = covariance
    return {name: (matrix if name == "scale_tril" else (matrix + matrix.mT) / 2).to(dtype)}


def normal_vector(
    kind: str, rng: random.Random, mean: Tensor, factor: Tensor, diagonal: Tensor, distance: float, dtype: torch.dtype
) -> Distribution:
    """Of covariance W W' + D, perturbed by ``distance``."""
    factors = torch.tensor([math.exp(shift(rng, distance)) for _ in diagonal], dtype=torch.float64)
    if kind == "DiagonalNormal":
        return DiagonalNormal(mean.to(dtype), (diagonal * factors).log().to(dtype))
    if kind == "Independent":
        return Independent(Normal(mean.to(dtype), (diagonal * factors).sqrt().to(dtype)), 1)
    if kind == "LowRankMultivariateNormal":
        noise = random_matrix(rng, *factor.shape) * diagonal.sqrt()[:, None]
        perturbed = factor * (1 + distance / 4 * random_matrix(rng, *factor.shape)) + distance / 4 * noise
        return LowRankMultivariateNormal(mean.to(dtype), perturbed.to(dtype), (diagonal * factors).to(dtype))
    covariance = near(rng, torch.linalg.cholesky(factor @ factor.mT + torch.diag(diagonal)), distance)
    return MultivariateNormal(mean.to(dtype), **matrix_parameter(rng, covariance, dtype))


def retried(draw: Draw) -> Draw:
    """Matrices that are no longer positive definite once they are rounded are drawn again."""

    def again(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
        while True:
            with contextlib.suppress(ValueError, torch.linalg.LinAlgError):
                p, q = draw(rng, distance, dtype)
                true_kl(p, q)
                return p, q

    return again


NORMAL_VECTORS = ("MultivariateNormal", "LowRankMultivariateNormal", "Independent", "DiagonalNormal")


def normal_vectors(kind_p: str, kind_q: str) -> Draw:
    kinds = {kind_p, kind_q}

    def draw(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
        size = rng.randint(1, 6)
        diagonal = draw_variances(rng, size)
        factor = torch.zeros(size, rng.randint(1, 3), dtype=torch.float64)
        if kinds == {"MultivariateNormal"}:
            factor = torch.linalg.cholesky(rotated(rng, diagonal))
            diagonal = torch.zeros_like(diagonal)
        elif not kinds & {"Independent", "DiagonalNormal"}:
            factor = random_matrix(rng, *factor.shape) * diagonal.max().sqrt()
        scale = torch.linalg.cholesky(factor @ factor.mT + torch.diag(diagonal))
        mean = scale @ random_matrix(rng, size) * rng.choice((1, 1, 100))
        other = mean + distance * scale @ random_matrix(rng, size)
        # p too, where the other kind cannot follow it
        apart = distance if len(kinds) > 1 else 0.0
        p = normal_vector(kind_p, rng, mean, factor, diagonal, apart, dtype)
        return p, normal_vector(kind_q, rng, other, factor, diagonal, distance, dtype)

    return retried(draw)


def draw_wishart(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
    size = rng.randint(1, 5)
    scale = torch.linalg.cholesky(rotated(rng, draw_variances(rng, size)))
    df = size + log_uniform(rng, 1e-2, 1e4)
    sides = []
    for apart in (0.0, distance):
        covariance = near(rng, scale, apart)
        n = max(size, df * math.exp(shift(rng, apart)))
        sides.append(Wishart(torch.tensor(n, dtype=dtype), **matrix_parameter(rng, covariance, dtype)))
    return sides[0], sides[1]
