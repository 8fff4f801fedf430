"""On a CUDA device only (make test-gpu): bf16, compile, flash attention against SDPA, nccl."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from golf.config import Run
from golf.models.kernels import choose_backend, sdpa
from tests.helpers.runs import Job

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
GPU = ["compute.device=cuda", "compute.precision=bf16"]


@pytest.mark.parametrize("compiled", ["false", "true"])
def test_a_run_in_bf16(compiled: str, job: Callable[..., Job]) -> None:
    one = job(*GPU, f"compute.compile={compiled}", "budget.max_steps=30")
    one.go()
    result = one.result()
    assert result["precision"] == "bf16" and result["peak_memory_bytes"] > 0
    assert result["evals"]["plain"]["val_loss"] < 5.5


def test_killed_and_resumed_on_a_gpu(job: Callable[..., Job]) -> None:
    one = job(*GPU, "budget.max_steps=3000", "log.every_steps=1", "checkpoint.every_steps=5")
    worker = one.start()
    one.wait_for_step(worker, 12)
    os.killpg(worker.pid, signal.SIGKILL)
    worker.communicate()
    again = one.start()
    one.wait_for_step(again, 20)
    os.killpg(again.pid, signal.SIGKILL)
    assert "resumed at step" in again.communicate()[0]


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("name", ["flex", "flash2", "flash3", "flash4"])
def test_kernels_equal_sdpa_and_take_fp32_callers(name: str, window: int | None) -> None:
    device = torch.device("cuda")
    try:
        attend = choose_backend(name, device).attend
    except ValueError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 64, heads, 64, device=device, requires_grad=True) for heads in (8, 4, 4))
    found, expected = (kernel(q, k, v, window) for kernel in (attend, sdpa))
    assert torch.allclose(found, expected, atol=0.03) and found.dtype == q.dtype
    gradients = [torch.autograd.grad(y.square().sum(), q)[0] for y in (found, expected)]
    assert torch.allclose(*gradients, atol=0.1)


def test_bf16_gradients_are_close_to_fp32(toy: Callable[..., Run]) -> None:
    run = toy(*GPU)
    model = run.model.build().cuda()
    ids = torch.randint(run.model.vocab_size, (4, 33), device="cuda")
    norms = {}
    for dtype in (torch.float32, torch.bfloat16):
        model.compute_dtype = dtype
        model.zero_grad()
        model(ids[:, :-1], ids[:, 1:])["nll"].backward()
        norms[dtype] = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
    assert norms[torch.bfloat16] == pytest.approx(norms[torch.float32], rel=0.05)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_nccl_trains_as_one(job: Callable[..., Job], tmp_path: Path) -> None:
    one, two = job(*GPU, outputs="one"), job(*GPU, "launch.nproc=2", outputs="two")
    one.go()
    two.go()
    assert one.result()["val_bpb"] == pytest.approx(two.result()["val_bpb"], abs=0.02)
    assert json.loads(two.folder.status.read_text())["state"] == "done"
