"""How many pages new memory takes, by the system's own count."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kldiv
from kldiv.kernels.memory import new_like

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def page_faults(shape):
    """Of a call with a backward, the least of some: for the Gaussian loss, and for the KL of categories."""
    code = f"""
import resource, torch, kldiv
given = [torch.randn{shape}.requires_grad_() for _ in range(2)]
def faults(loss):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.autograd.grad(loss(*given), given)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for loss in (kldiv.GaussianKLLoss(), lambda p, q: kldiv.functional.kl_categorical(p, q).sum()):
    print(min(faults(loss) for _ in range(4)))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True
    )
    return [int(line) for line in run.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about glibc's allocator")
def test_gradients_are_made_in_memory_that_was_freed():
    """Of 16 MB each, which would be 8,192 pages."""
    assert max(page_faults((4096, 1024))) < 1000


@pytest.mark.skipif(
    not SWITCH.exists() or "[never]" in SWITCH.read_text(), reason="the system has no huge pages to give"
)
def test_large_gradients_are_had_in_huge_pages():
    """Of 40 MB each: two of them are 20,480 small pages, or 40 huge ones."""
    assert max(page_faults((320, 32768))) < 10_000


@pytest.mark.parametrize("columns", [3, 2**23 + 5])
def test_new_memory_is_contiguous_and_has_a_place_for_every_number(columns):
    like = torch.zeros(columns, 2).T
    made = new_like(like)
    assert made.is_contiguous()
    assert (made.shape, made.dtype) == (like.shape, like.dtype)
    assert (made.fill_(3.0) == 3).all()


def test_gradients_of_a_size_that_is_had_in_huge_pages():
    given = [torch.randn(2**13 + 1, 2**10).requires_grad_() for _ in range(2)]
    found = torch.autograd.grad(kldiv.GaussianKLLoss(reduction="sum")(*given), given)
    for gradient, expected in zip(found, (given[0], 0.5 * torch.expm1(given[1])), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=0)


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="only there are constants loaded under a mask"
)
def test_functions_are_not_slow_for_constants_that_nothing_has_read():
    """Several times e^x - 1 in ``float64``, which has none: in a process that has had nothing but finite numbers."""
    code = """
import statistics, time, torch, kldiv
def seconds(function, values):
    taken = []
    for _ in range(30):
        start = time.perf_counter()
        function(values)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
torch.set_num_threads(1)
values = torch.rand(2**16)
for function in (torch.expm1, torch.log1p):
    print(seconds(function, values) / seconds(torch.expm1, values.double()))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True
    )
    assert max(float(line) for line in run.stdout.split()) < 1.5
