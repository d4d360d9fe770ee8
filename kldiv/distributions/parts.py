"""Splitting a distribution into independent dimensions, and joining dimensions to an event."""

from torch.distributions import Distribution, Independent, OneHotCategorical

from kldiv.distributions.diagonal_normal import DiagonalNormal

__all__ = [
    "factorise",
    "independent_dims",
    "take_off",
    "with_event_dims",
]


def independent_dims(distribution: Distribution) -> int:
    """How many trailing event dimensions are independent by construction and can be taken off."""
    if not _is_taken_apart(distribution):
        return 0
    if isinstance(distribution, Independent):
        return int(distribution.reinterpreted_batch_ndims)
    assert isinstance(distribution, DiagonalNormal)
    return distribution.event_dim


def _is_taken_apart(distribution: Distribution) -> bool:
    # a subclass with its own density is not the product of its parts
    kind = type(distribution)
    return (isinstance(distribution, Independent) and kind.log_prob is Independent.log_prob) or (
        isinstance(distribution, DiagonalNormal) and kind.log_prob is DiagonalNormal.log_prob
    )


def take_off(distribution: Distribution, dims: int) -> Distribution:
    """The distribution with ``dims`` of its :func:`independent_dims` read as batch dimensions."""
    left = independent_dims(distribution) - dims
    if isinstance(distribution, DiagonalNormal):
        return DiagonalNormal(distribution.mean, distribution.log_var, left, validate_args=False)
    if not isinstance(distribution, Independent):
        return distribution
    base: Distribution = distribution.base_dist
    return Independent(base, left, validate_args=False) if left else base


def factorise(distribution: Distribution) -> Distribution | None:
    """The distribution of each variable by itself; ``None`` where an event is more than one independent variable.

    A variable has the event shape (), or that of one one-hot vector.

    >>> import torch
    >>> factorise(DiagonalNormal(torch.zeros(2, 3), torch.zeros(2, 3))).batch_shape
    torch.Size([2, 3])
    """
    while _is_taken_apart(distribution) and (distribution.event_shape or isinstance(distribution, Independent)):
        distribution = take_off(distribution, independent_dims(distribution))
    whole = isinstance(distribution, (DiagonalNormal, Independent)) and not _is_taken_apart(distribution)
    one_variable = not distribution.event_shape or isinstance(distribution, OneHotCategorical)
    return distribution if one_variable and not whole else None


def with_event_dims(distribution: Distribution, dims: int) -> Distribution:
    """The distribution with ``dims`` event dimensions, trailing batch dimensions joined or independent ones taken off.

    Raises: ValueError: event dimensions to take off that are not independent.
    """
    surplus = len(distribution.event_shape) - dims
    if surplus < 0:
        if isinstance(distribution, DiagonalNormal):
            return DiagonalNormal(distribution.mean, distribution.log_var, dims, validate_args=False)
        return Independent(distribution, -surplus, validate_args=False)
    if surplus > independent_dims(distribution):
        raise ValueError(
            f"{type(distribution).__name__} has the event shape {tuple(distribution.event_shape)}, and its dimensions "
            f"are not independent: it cannot be taken apart to {dims} event dimensions"
        )
    return take_off(distribution, surplus)
