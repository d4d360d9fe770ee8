"""One of each likelihood, with a decoder's output and a target for it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kldiv import (
    BernoulliNLL,
    CategoricalNLL,
    ContinuousBernoulliNLL,
    DiscretizedLogisticMixtureNLL,
    GaussianNLL,
    LaplaceNLL,
    MultinomialNLL,
    NegativeBinomialNLL,
    NegativeLogLikelihood,
    OptimalGaussianNLL,
    PoissonNLL,
    StudentTNLL,
    ZeroInflatedNegativeBinomialNLL,
)

__all__ = ["TERMS", "Case", "outputs_of"]

N, K = 4, 3


class Case(NamedTuple):
    make: Callable[..., NegativeLogLikelihood]
    outputs: int
    """Tensors that the decoder emits."""
    shape: tuple[int, ...]
    """The shape of each."""
    target: Callable[[], Tensor]
    elements: tuple[int, ...] = (N, K)
    """The shape of masks."""


def counts() -> Tensor:
    return torch.poisson(torch.full((N, K), 3.0))


def student(**options: Any) -> NegativeLogLikelihood:
    return StudentTNLL(3.0, **options)


def mixture(**options: Any) -> NegativeLogLikelihood:
    return DiscretizedLogisticMixtureNLL(2, **options)


TERMS: dict[str, Case] = {
    "Bernoulli": Case(BernoulliNLL, 1, (N, K), lambda: torch.rand(N, K).round()),
    "ContinuousBernoulli": Case(ContinuousBernoulliNLL, 1, (N, K), lambda: torch.rand(N, K)),
    "Gaussian": Case(GaussianNLL, 1, (N, K), lambda: torch.randn(N, K)),
    "Gaussian, learned": Case(
        lambda **o: GaussianNLL(torch.zeros(K), learned=True, **o), 1, (N, K), lambda: torch.randn(N, K)
    ),
    "Gaussian, a pair": Case(GaussianNLL, 2, (N, K), lambda: torch.randn(N, K)),
    "Laplace": Case(LaplaceNLL, 2, (N, K), lambda: torch.randn(N, K)),
    "StudentT": Case(student, 2, (N, K), lambda: torch.randn(N, K)),
    "OptimalGaussian": Case(OptimalGaussianNLL, 1, (N, K), lambda: torch.randn(N, K)),
    "Categorical": Case(CategoricalNLL, 1, (N, K, 5), lambda: torch.randint(5, (N, K))),
    "Categorical, soft": Case(CategoricalNLL, 1, (N, K, 5), lambda: torch.rand(N, K, 5).softmax(-1)),
    "Categorical, dim=1": Case(lambda **o: CategoricalNLL(1, **o), 1, (N, 5, K), lambda: torch.randint(5, (N, K))),
    "Multinomial": Case(MultinomialNLL, 1, (N, K), counts, (N, 1)),
    "Poisson": Case(PoissonNLL, 1, (N, K), counts),
    "NegativeBinomial": Case(NegativeBinomialNLL, 1, (N, K), counts),
    "NegativeBinomial, a pair": Case(NegativeBinomialNLL, 2, (N, K), counts),
    "ZeroInflatedNegativeBinomial": Case(ZeroInflatedNegativeBinomialNLL, 3, (N, K), counts),
    "DiscretizedLogisticMixture": Case(mixture, 1, (N, 6 * K), lambda: torch.randint(256, (N, K)) / 255),
    "DiscretizedLogisticMixture, conditional": Case(
        lambda **o: mixture(conditional=True, **o),
        1,
        (N, 20, 2),
        lambda: torch.randint(256, (N, 3, 2)) / 255,
        (N, 1, 2),
    ),
}


def outputs_of(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """What the decoder emits: leaves."""
    return tuple(torch.randn(case.shape, dtype=dtype).requires_grad_() for _ in range(case.outputs))
