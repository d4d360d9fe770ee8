"""Memory that is quick to get: used again, kept, or in huge pages. A page fault takes as long as filling the page."""

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
"""``None`` on systems without huge pages."""


def workspace(shape: torch.Size, dtype: torch.dtype, count: int) -> list[Tensor]:
    """``count`` contiguous tensors on a CPU, not filled, in memory that this thread's next call overwrites.

    New memory at each call takes as long as an exponential of every number in it.
    """
    size = count * shape.numel()
    flat = _reused.flat.get(dtype)
    if flat is None or flat.numel() < size:
        with torch.inference_mode(False):  # an inference tensor of a validation could not be written to in training
            flat = _reused.flat[dtype] = torch.empty(size, dtype=dtype, device="cpu")
    return list(flat[:size].view(count, *shape).unbind())


def new_like(values: Tensor) -> Tensor:
    """A contiguous tensor like ``values``, not filled. A large one on a CPU is in memory that is quick to get.

    From 1 MB on that is memory that was freed before. From 32 MB on glibc takes memory from the system for each tensor,
    and on Linux it is in huge pages. Source: madvise(2), MADV_HUGEPAGE.
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
    """Makes glibc keep up to 64 MB of freed memory for the next tensors, instead of giving it back to the system.

    A new page takes a microsecond: a fifth of the time of a decoder's outputs, half of that of a KL of millions. glibc
    keeps twice the size of the largest block that was freed, up to blocks of 32 MB, so a block of that size is freed
    here, untouched. With another allocator nothing changes. Source: mallopt(3), M_MMAP_THRESHOLD.
    """
    torch.empty(2**25 - 2**13, dtype=torch.uint8, device="cpu")


def touch_constants() -> None:
    """Makes torch read the constants of its ``float32`` e^x - 1 and ln(1 + x) for infinities, -0 and NaN.

    With AVX-512 they are loaded under a mask, which is nearly always empty. Until the page that holds them was read
    once, in any thread of the process, each such load takes a tenth of a microsecond, and the two functions are seven
    times slower.
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
