"""What an object stores: its family, and its parameters as exact mpmath numbers."""

from typing import Any

from mpmath import mpf
from torch import Tensor
from torch.distributions import Distribution, Independent

Parameters = dict[str, Any]  # mpf, or nested lists of them
PROBS = "probs or logits"
MATRIX = "covariance_matrix, precision_matrix or scale_tril"
PARAMETERS = {
    "Bernoulli": (PROBS,),
    "Beta": ("concentration1", "concentration0"),
    "Binomial": ("total_count", PROBS),
    "Categorical": (PROBS,),
    "Cauchy": ("loc", "scale"),
    "Chi2": ("df",),
    "ContinuousBernoulli": (PROBS,),
    "DiagonalNormal": ("mean", "log_var"),
    "Dirichlet": ("concentration",),
    "Exponential": ("rate",),
    "Gamma": ("concentration", "rate"),
    "Geometric": (PROBS,),
    "Gumbel": ("loc", "scale"),
    "HalfCauchy": ("scale",),
    "HalfNormal": ("scale",),
    "InverseGamma": ("concentration", "rate"),
    "Kumaraswamy": ("concentration1", "concentration0"),
    "Laplace": ("loc", "scale"),
    "LogNormal": ("loc", "scale"),
    "LowRankMultivariateNormal": ("loc", "cov_factor", "cov_diag"),
    "Multinomial": ("total_count", PROBS),
    "MultivariateNormal": ("loc", MATRIX),
    "NegativeBinomial": ("total_count", PROBS),
    "Normal": ("loc", "scale"),
    "OneHotCategorical": (PROBS,),
    "Pareto": ("scale", "alpha"),
    "Poisson": ("rate",),
    "StudentT": ("df", "loc", "scale"),
    "Uniform": ("low", "high"),
    "VonMises": ("loc", "concentration"),
    "Weibull": ("scale", "concentration"),
    "Wishart": ("df", MATRIX),
}


def family_of(distribution: Distribution) -> str:
    """The name of the first known class in the order of inheritance."""
    for kind in type(distribution).__mro__:
        if kind.__name__ in PARAMETERS:
            return kind.__name__
    raise NotImplementedError(f"no oracle for {type(distribution).__name__}")


def stored(distribution: Distribution) -> tuple[str, Parameters]:
    """The family and the parameters that the object stores, exactly.

    ``Independent(Normal(...), k)`` is the family ``"Independent(Normal)"``, its parameters flat lists.
    """
    if isinstance(distribution, Independent):
        base = distribution.base_dist
        if distribution.batch_shape or base.event_shape:
            raise NotImplementedError("only Independent of scalars, without a batch")
        family = family_of(base)
        return f"Independent({family})", {name: exact(value.flatten()) for name, value in tensors_of(base)}
    family = family_of(distribution)
    if distribution.batch_shape:
        raise ValueError(f"one distribution at a time, not a batch of {tuple(distribution.batch_shape)}")
    if family == "DiagonalNormal" and distribution.event_shape:
        return family, {name: exact(value.flatten()) for name, value in tensors_of(distribution)}
    return family, {name: exact(value) for name, value in tensors_of(distribution)}


def tensors_of(distribution: Distribution) -> list[tuple[str, Any]]:
    """Names and values of the parameters that the object was given."""
    tensors = []
    for parameter in PARAMETERS[family_of(distribution)]:
        owner, name = distribution, parameter
        if parameter == PROBS:
            owner = getattr(distribution, "_categorical", distribution)
            given = [key for key in owner.__dict__ if key in ("probs", "logits")]  # lazily made ones come later
            name = given[0]
            if hasattr(owner, "_param"):
                name = "logits" if owner._param is owner.__dict__.get("logits") else "probs"
        elif parameter == MATRIX:
            name = next(key for key in owner.__dict__ if key in MATRIX)
        tensors.append((name, getattr(owner, name)))
    return tensors


def exact(value: Any) -> Any:
    """A tensor as an mpf, or as nested lists of them."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().double().tolist()
    return [exact(v) for v in value] if isinstance(value, list) else mpf(value)
