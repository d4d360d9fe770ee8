"""Entropies and divergences of probability tables: relative, cross, Jeffreys and Jensen-Shannon.

A table is a tensor of non-negative numbers, and ``dim`` says over which of its dimensions they sum to one: one
dimension, or a tuple of them for a joint table. All others are batch. Everything is computed in ``float64`` and
returned in the widest dtype of the tables, ``float32`` at least.

A table is read as :math:`P = p / \\sum p`, so that rounded probabilities are a distribution too. How far its sum may be
from one depends on its dtype, with :math:`\\epsilon` the dtype's resolution, :math:`\\sigma` its smallest subnormal
number and n the number of entries that are summed:

.. math:: 10^{-6}\\sqrt n + 4\\epsilon + n\\sigma

For ten entries that is 3.2e-6 in ``float64``, 3.6e-6 in ``float32``, 0.004 in ``float16`` and 0.03 in ``bfloat16``. The
check synchronises with the device, once for both tables. ``validate=False`` leaves it out, and so does
``torch.compile``. ``torch.func.vmap`` allows no such check and needs ``validate=False``. Unchecked, a table of any
positive sum is read as P (two ``float64`` tables of unlike sums lose the digits in which they agree), and for other
tables the value means nothing.
"""

import math

import torch
from torch import Tensor

from kldiv.numerics import check_broadcast, kl_term, log_ratio

__all__ = [
    "cross_entropy",
    "entropy",
    "jeffreys",
    "jensen_shannon",
    "relative_entropy",
]


def relative_entropy(
    p: Tensor, q: Tensor, dim: int | tuple[int, ...] = -1, base: float | None = None, *, validate: bool = True
) -> Tensor:
    r"""D_KL(P||Q) of two probability tables, per table, in nats: what is lost where Q stands in for P.

    .. math:: D_{KL}(P \| Q) = \sum P \ln\frac{P}{Q} = \sum \left(P \ln\frac{P}{Q} - P + Q\right),
              \quad P = \frac{p}{\sum p},\ Q = \frac{q}{\sum q},\ 0 \ln 0 = 0

    Args:
        p, q: probabilities, floating point, of shapes that broadcast.
        dim: the dimension of the broadcast shape that is summed, or several for joint tables.
        base: of the logarithm, above 1: 2 for bits. ``None`` is e, for nats.
        validate: whether to check the numbers in the tables (see :mod:`kldiv.tables`).
    Returns: the broadcast shape without ``dim``. Never negative, ``inf`` where Q is 0 and P is not; relative error
        below 1e-12, in ``float32`` below 1e-6, however close the two are. An entry of p that is 0 adds the constant 0:
        its own gradient leaves out the logarithm's infinite slope, and a zero in both tables does no harm.
    Raises:
        ValueError: shapes that do not broadcast (the message holds both), a table without entries, a base of 1 or
            below; and, unless ``validate=False``, a table that does not sum to one or holds a negative number or NaN.
        TypeError: a table that is not a floating point tensor.
    Source: Kullback & Leibler 1951, section 2; Cover & Thomas 2006, equation 2.26.

    >>> p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5])
    >>> relative_entropy(p, q, base=2), relative_entropy(q, p)
    (tensor(1.), tensor(inf))
    """
    (p, q), dims, dtype = _read(dim, validate, p=p, q=q)
    return _in_base(_kl_terms(p, q, dims).sum(dims), base, dtype)


def entropy(p: Tensor, dim: int | tuple[int, ...] = -1, base: float | None = None, *, validate: bool = True) -> Tensor:
    r"""H(P), the entropy of a probability table, per table, in nats.

    .. math:: H(P) = -\sum P \ln P, \quad P = \frac{p}{\sum p},\ 0 \ln 0 = 0

    Args: as :func:`relative_entropy` has them.
    Returns: the shape without ``dim``. Never negative, accurate also where one outcome is nearly certain.
    Raises: what :func:`relative_entropy` does.
    Source: Shannon 1948, section 6.

    >>> entropy(torch.tensor([0.5, 0.25, 0.25, 0.0]), base=2)
    tensor(1.5000)
    """
    (p,), dims, dtype = _read(dim, validate, p=p)
    return _in_base((p / p.sum(dims, keepdim=True) * -_log_shares(p, dims)).sum(dims), base, dtype)


def cross_entropy(
    p: Tensor, q: Tensor, dim: int | tuple[int, ...] = -1, base: float | None = None, *, validate: bool = True
) -> Tensor:
    r"""H(P, Q), the mean code length of outcomes of P in the code of Q, per table, in nats.

    .. math:: H(P, Q) = -\sum P \ln Q = H(P) + D_{KL}(P \| Q)

    Args: as :func:`relative_entropy` has them.
    Returns: the broadcast shape without ``dim``. Never negative, ``inf`` where Q is 0 and P is not. Linear in P, so
        that the gradient is the true one at zeros of P; an outcome that Q lacks as well adds the constant 0.
    Raises: what :func:`relative_entropy` does.
    Source: Cover & Thomas 2006, theorem 5.4.3.

    >>> p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5])
    >>> cross_entropy(p, q, base=2)
    tensor(2.)
    """
    (p, q), dims, dtype = _read(dim, validate, p=p, q=q)
    terms = _infinite(p, q) - p / p.sum(dims, keepdim=True) * _log_shares(q, dims)
    return _in_base(terms.sum(dims), base, dtype)


def jeffreys(
    p: Tensor, q: Tensor, dim: int | tuple[int, ...] = -1, base: float | None = None, *, validate: bool = True
) -> Tensor:
    r"""J(P, Q), Jeffreys' divergence of two probability tables, per table, in nats: both directions together.

    .. math:: J(P, Q) = D_{KL}(P \| Q) + D_{KL}(Q \| P) = \sum (P - Q) \ln\frac{P}{Q}

    Args: as :func:`relative_entropy` has them.
    Returns: the broadcast shape without ``dim``. Never negative, ``inf`` where one of the two alone is 0.
    Raises: what :func:`relative_entropy` does.
    Source: Jeffreys 1946; Kullback & Leibler 1951, section 2.

    >>> jeffreys(torch.tensor([0.75, 0.25]), torch.tensor([0.25, 0.75])) / math.log(3)
    tensor(1.)
    """
    (p, q), dims, dtype = _read(dim, validate, p=p, q=q)
    return _in_base((_kl_terms(p, q, dims) + _kl_terms(q, p, dims)).sum(dims), base, dtype)


def jensen_shannon(
    p: Tensor, q: Tensor, dim: int | tuple[int, ...] = -1, base: float | None = None, *, validate: bool = True
) -> Tensor:
    r"""JS(P, Q), the Jensen-Shannon divergence of two probability tables, per table, in nats.

    .. math:: JS(P, Q) = \tfrac12 D_{KL}(P \| M) + \tfrac12 D_{KL}(Q \| M), \quad M = \tfrac12 (P + Q)

    Args: as :func:`relative_entropy` has them.
    Returns: the broadcast shape without ``dim``. Never negative, never infinite, at most :math:`\ln 2` (in the dtype's
        rounding; 1 to the base 2), which it is where P and Q have no outcome in common.
    Raises: what :func:`relative_entropy` does.
    Source: Lin 1991.

    >>> jensen_shannon(torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]), base=2)
    tensor([1., 0.])
    """
    (p, q), dims, dtype = _read(dim, validate, p=p, q=q)
    share_p, share_q, excess = _shares(p, q, dims)
    # the mixture M lies half-way: M - P = Q - M
    mixture, half = 0.5 * (share_p + share_q), 0.5 * excess
    terms = kl_term(share_p, mixture, half) + kl_term(share_q, mixture, -half)
    value = 0.5 * terms.sum(dims)
    # rounding may exceed ln 2 by the last digit: taken off, and the gradient left as it is
    return _in_base(value - (value.detach() - math.log(2)).clamp(min=0), base, dtype)


def _kl_terms(p: Tensor, q: Tensor, dims: tuple[int, ...]) -> Tensor:
    share_p, share_q, excess = _shares(p, q, dims)
    lost = (q == 0) & (p > 0)
    finite = kl_term(share_p, torch.where(lost, share_p, share_q), torch.where(lost, 0.0, excess))
    return finite + _infinite(p, q)


def _shares(p: Tensor, q: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """P, Q and Q - P. The difference is formed from q - p: that of the rounded P and Q would be little but rounding."""
    difference = q - p
    sum_p, sum_q, sum_difference = (table.sum(dims, keepdim=True) for table in (p, q, difference))
    # unchecked tables may have any two sums, and then q - p says nothing
    alike = sum_difference.abs() < 0.5 * sum_p
    excess = torch.where(alike, difference * sum_p - p * sum_difference, q * sum_p - p * sum_q) / sum_p / sum_q
    return p / sum_p, q / sum_q, excess


def _log_shares(p: Tensor, dims: tuple[int, ...]) -> Tensor:
    """ln P, and 0 where P is 0."""
    total = p.sum(dims, keepdim=True)
    # an entry of more than half falls short of the total by the sum of the others: 1 - P would lose their digits
    most = p > 0.5 * total
    difference = torch.where(most, -torch.where(most, 0.0, p).sum(dims, keepdim=True), p - total)
    # a difference of 0 is a logarithm of 0, with a gradient of 0
    return log_ratio(p, total, torch.where(p > 0, difference, 0.0))


def _infinite(p: Tensor, q: Tensor) -> Tensor:
    """``inf`` where q alone is 0, and 0 elsewhere. Apart from the normalisers, whose gradient would be inf * 0."""
    lost = (q == 0) & (p > 0)
    return torch.where(lost, p, 0.0) / torch.where(lost, q, 1.0)


def _in_base(value: Tensor, base: float | None, dtype: torch.dtype) -> Tensor:
    if base is None:
        return value.to(dtype)
    if not 1 < base < math.inf:
        raise ValueError(f"base is {base}, and must be a finite number above 1: 2 for bits, None for nats")
    return (value / math.log(base)).to(dtype)


def _read(
    dim: int | tuple[int, ...], validate: bool, **tables: Tensor
) -> tuple[list[Tensor], tuple[int, ...], torch.dtype]:
    """The tables in ``float64`` and of one shape, the dimensions to sum over, and the dtype of the result."""
    dtype = torch.float32
    for name, table in tables.items():
        if not isinstance(table, Tensor):
            raise TypeError(f"{name} is a {type(table).__name__}, and must be a tensor: torch.tensor({name})")
        if not table.is_floating_point():
            raise TypeError(
                f"{name} is a table of {table.dtype}, and probabilities are floating point. For a table of counts, "
                f"write {name} / {name}.sum({dim}, keepdim=True)"
            )
        dtype = torch.promote_types(dtype, table.dtype)
    shape = check_broadcast(**{name: table.shape for name, table in tables.items()})
    dims = _dimensions(dim, shape)
    wide = [table.double().expand(shape) for table in tables.values()]
    if validate and not torch.compiler.is_compiling():
        size = math.prod(shape[axis] for axis in dims)
        tolerances = [_tolerance(table.dtype, size) for table in tables.values()]
        _check([table.detach() for table in wide], list(tables), dims, tolerances)
    return wide, dims, dtype


def _dimensions(dim: int | tuple[int, ...], shape: torch.Size) -> tuple[int, ...]:
    given = (dim,) if isinstance(dim, int) else tuple(dim)
    if any(not -len(shape) <= axis < len(shape) for axis in given):
        raise ValueError(f"dim is {dim}, and the shape {tuple(shape)} of the tables has no such dimension")
    dims = tuple(axis % len(shape) for axis in given)
    if len(set(dims)) < len(dims):
        raise ValueError(f"dim is {dim}, which names one of the dimensions of {tuple(shape)} twice")
    if not dims or 0 in [shape[axis] for axis in dims]:
        raise ValueError(f"dim is {dim} in tables of shape {tuple(shape)}: a table without entries sums to 0, not to 1")
    return dims


def _tolerance(dtype: torch.dtype, size: int) -> float:
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    return 1e-6 * math.sqrt(size) + 4 * eps + size * eps * tiny


def _check(tables: list[Tensor], names: list[str], dims: tuple[int, ...], tolerances: list[float]) -> None:
    sums = [table.sum(dims) for table in tables]
    good = [
        (table >= 0).all() & ((total - 1).abs() <= tolerance).all()
        for table, total, tolerance in zip(tables, sums, tolerances, strict=True)
    ]
    if torch.stack(good).all():  # the one synchronisation
        return
    for name, table in zip(names, tables, strict=True):
        outside = table[~(table >= 0)]
        if len(outside):
            raise ValueError(
                f"{name} holds {outside[0].item():.6g}, and probabilities are numbers from 0 to 1. "
                f"For log-probabilities write {name}.exp(), for logits {name}.softmax({_written(dims)})"
            )
    for name, total, tolerance in zip(names, sums, tolerances, strict=True):
        outside = total[~((total - 1).abs() <= tolerance)]
        if len(outside):
            raise ValueError(
                f"{name} sums to {outside[0].item():.9g}, and a table must sum to 1 within {tolerance:.2g}. To make it "
                f"one, write {name} / {name}.sum({_written(dims)}, keepdim=True); validate=False reads it so, unchecked"
            )


def _written(dims: tuple[int, ...]) -> str:
    return str(dims[0]) if len(dims) == 1 else str(dims)
