"""Exponentials to the last digits, for the Triton kernels."""

from collections.abc import Callable
from typing import Any

__all__ = [
    "half_excess_and_spread",
    "half_exponential",
    "jit",
    "power_of_two",
    "tl",
]


jit: Callable[[Any], Any]
try:
    import triton
    from triton import language as tl

    jit = triton.jit
except ImportError:  # then nothing below is ever called
    tl = None

    def jit(function: Any) -> Any:
        return function


def power_of_two(number: int) -> int:
    """The least power of 2 that is not smaller."""
    return 1 << (number - 1).bit_length()


@jit
def half_exponential(u):  # type: ignore[no-untyped-def]
    """e^u / 2 for u above -87, to the last digits. The hardware's exponential loses digits as u grows."""
    # e^u = 2^n e^r
    held = tl.minimum(tl.maximum(u, -87.0), 90.0)
    n = tl.floor(held * 1.4426950408889634 + 0.5)
    r = (held - n * 0.693145751953125) - n * 1.428606765330187e-06
    p = 1.0 / 5040
    p = p * r + 1.0 / 720
    p = p * r + 1.0 / 120
    p = p * r + 1.0 / 24
    p = p * r + 1.0 / 6
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    # e^u / 2 in two halves: 2^128 is infinite
    whole = n.to(tl.int32) - 1
    half = whole >> 1
    first = ((half + 127) << 23).to(tl.float32, bitcast=True)
    second = ((whole - half + 127) << 23).to(tl.float32, bitcast=True)
    exponential = p * first * second
    exponential = tl.where(u > 90.0, float("inf"), exponential)
    return tl.where(u == u, exponential, u)


@jit
def half_excess_and_spread(u):  # type: ignore[no-untyped-def]
    """(e^u - 1) / 2 and (e^u - 1 - u) / 2, near 0 by the polynomial of kldiv.numerics.special."""
    exponential = half_exponential(u)
    s = 0.0001994575805414567
    s = s * u + 0.0013982985777479234
    s = s * u + 0.008333254259739131
    s = s * u + 0.041665954461295916
    s = s * u + 0.1666666666666738
    s = s * u + 0.5
    near = tl.abs(u) < 0.55
    close = 0.5 * u * u * s
    excess = tl.where(near, 0.5 * u + close, exponential - 0.5)
    spread = tl.where(near, close, exponential - 0.5 - 0.5 * tl.minimum(u, 1e30))
    return excess, spread
