import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from kldiv import GaussianKLLoss
from kldiv.functional import kl_categorical, kl_normal
from kldiv.kernels import triton_gaussian as kernel
from tests.kernels.triton_interpreted import SHAPES, batch, check, check_categories, logits
from tests.marks import sweep

QUICK = "not against_the_plain_formula and not a_block"
"""The tests under the interpreter without its long sweeps."""

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("triton", "numpy"))),
    reason="Triton, which comes with the CUDA builds of torch, or NumPy is not installed",
)
@pytest.mark.parametrize(
    "chosen",
    sweep(
        ["", "not against_the_plain_formula and not a_block"], quick=["not against_the_plain_formula and not a_block"]
    ),
)
def test_under_the_interpreter(chosen):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/triton_interpreted.py"]
    command += ["-k", chosen] if chosen else []
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout


def test_without_cuda_nobody_asks_for_it():
    code = "import sys, torch, kldiv; kldiv.GaussianKLLoss()(torch.ones(4, 2), torch.zeros(4, 2)); "
    code += "assert 'kldiv.kernels.triton_gaussian' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@on_cuda
@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1.0, 10.0])
@pytest.mark.parametrize("shape", [*SHAPES, (8192, 513)])
def test_cuda_against_the_plain_formula(scale, shape):
    check(kernel.gaussian_kl, batch(scale, shape, device="cuda"))


@on_cuda
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_cuda_half_precision_and_strides(dtype, tolerance):
    check(kernel.gaussian_kl, batch(1.0, (400, 301), dtype, "cuda"), tolerance=tolerance)
    check(kernel.gaussian_kl, batch(1.0, (400, 301), dtype, "cuda", halves=True), tolerance=tolerance)
    check(kernel.gaussian_kl, batch(1.0, (400, 301), device="cuda", halves=True))


@on_cuda
@pytest.mark.parametrize("shape", [(128, 20), (4096, 1024)])
def test_cuda_takes_one_kernel_forward_and_one_backward_and_waits_for_nothing(shape):
    given, loss = batch(1.0, shape, device="cuda"), GaussianKLLoss()
    loss(*given).backward()  # compiles
    torch.cuda.synchronize()
    up = torch.ones((), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
            torch.autograd.grad(loss(*given), given, up)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    kernels = [e.name for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert len(kernels) == 2, kernels


@on_cuda
@pytest.mark.parametrize("shape", [(128, 20), (512, 300)])
def test_cuda_graphs_replay_it(shape):
    given, loss = batch(1.0, shape, device="cuda"), GaussianKLLoss()
    up = torch.full((), 2.0, device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            torch.autograd.grad(loss(*given), given, up)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = loss(*given)
        gradients = torch.autograd.grad(value, given, up)
    for scale in (1.0, 0.1, 2.0):
        with torch.no_grad():
            for t in given:
                t.copy_(scale * torch.randn_like(t))
        graph.replay()
        expected = kl_normal(*(t.double() for t in given)).sum() / shape[0]
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
        truth = 2 * given[0].double() / shape[0], torch.expm1(given[1].double()) / shape[0]
        for one, other in zip(gradients, truth, strict=True):
            torch.testing.assert_close(one.double(), other.detach(), rtol=1e-6, atol=0)


@on_cuda
@pytest.mark.parametrize(("perturbation", "shift"), [(1e-6, 100.0), (1e-3, 0.0), (0.1, -40.0), (3.0, 0.0), (30.0, 5.0)])
@pytest.mark.parametrize("shape", [(64, 300), (8, 50_000)])
def test_cuda_categories_against_the_plain_formula(perturbation, shift, shape):
    check_categories(logits(perturbation, shift, shape, device="cuda"))


@on_cuda
def test_cuda_categories_wait_for_nothing_and_hold_two_gradients():
    given = logits(1.0, shape=(512, 32_768), device="cuda")
    torch.autograd.grad(kl_categorical(*given).sum(), given)  # compiles
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(kl_categorical(*given).sum(), given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() - before < 1.05 * sum(t.nbytes for t in given)
