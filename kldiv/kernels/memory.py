"""Memory that costs little time: used again, kept, or in huge pages. To fault a page in costs as much as to fill it."""

import ctypes
import functools
import math
import mmap
import threading
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = [
    "keep_freed_memory",
    "new_like",
    "touch_constants",
    "workspace",
]


_HUGE_PAGE_ADVICE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)
"""``None`` on systems that know no such advice."""


def workspace(shape: torch.Size, dtype: torch.dtype, count: int) -> list[Tensor]:
    """So many contiguous tensors on a CPU, in memory that this thread's next call uses again.

    Memory that is new at each call costs as much as an exponential of what is put there.
    """
    size = count * shape.numel()
    flat = _reused.flat.get(dtype)
    if flat is None or flat.numel() < size:
        with torch.inference_mode(False):  # else training could not write where a validation has been
            flat = _reused.flat[dtype] = torch.empty(size, dtype=dtype, device="cpu")
    return list(flat[:size].view(count, *shape).unbind())


def new_like(values: Tensor) -> Tensor:
    """A contiguous tensor like it, not filled, on a CPU in memory that is quick to touch first if it is large.

    From 1 MB on that is what was freed before, and from 32 MB on, which glibc takes from the system for one tensor
    and gives back with it, huge pages, on Linux. Source: madvise(2), MADV_HUGEPAGE.
    """
    size = values.numel() * values.itemsize
    if not values.is_cpu or size < 2**20:
        return torch.empty_like(values, memory_format=torch.contiguous_format)
    keep_freed_memory()
    made = torch.empty_like(values, memory_format=torch.contiguous_format)
    if size >= 2**25 and _HUGE_PAGE_ADVICE is not None:
        page = mmap.PAGESIZE
        start = -(-made.data_ptr() // page) * page
        _madvise()(start, (made.data_ptr() + size - start) // page * page, _HUGE_PAGE_ADVICE)
    return made


@functools.cache
def keep_freed_memory() -> None:
    """Has glibc keep up to 64 MB of what is freed, for the next who asks: else it goes back to the system.

    A page that comes anew costs a microsecond: a fifth of the time of a decoder's outputs, half of that of a KL of
    millions. glibc keeps twice the largest block that it has given back, if that is no larger than 32 MB: one of that
    size, which nobody touches, is freed here. Elsewhere it changes nothing. Source: mallopt(3), M_MMAP_THRESHOLD.
    """
    torch.empty(2**25 - 2**13, dtype=torch.uint8, device="cpu")


def touch_constants() -> None:
    """Reads what torch's e^x - 1 and ln(1 + x) have for the infinities, -0 and what is no number, in ``float32``.

    With AVX-512 these are loaded under a mask, mostly of no lane. While nothing has read the page that one lies on, the
    processor takes a tenth of a microsecond to find that it need not, and the functions are seven times slower. That
    lasts until some number needs the constants, in any thread of the process.
    """
    numbers = [math.inf, -math.inf, math.nan, -0.0, -2.0, 3e38]
    special = torch.tensor(16 * numbers, dtype=torch.float32, device="cpu")
    torch.expm1(special)
    torch.log1p(special)


@functools.cache
def _madvise() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None).madvise
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    found: Callable[[int, int, int], int] = function
    return found


class _Reused(threading.local):
    def __init__(self) -> None:
        self.flat: dict[torch.dtype, Tensor] = {}


_reused = _Reused()
