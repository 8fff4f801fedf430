"""Tokens per second of a training step, variants side by side: python benchmarks/train_step.py [override ...].

Each variant takes turns with the others, so that a busy machine slows all alike; the ratio is what to read.
Variants: the precision, torch.compile, and the microbatch, around the configuration as composed.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table

from golf.compose import compose
from golf.config import Run
from golf.dist import pick_device, pick_precision
from golf.launcher.slots import whole_machine
from golf.models.kernels import choose_backend
from golf.plan import flops_per_token, outline
from golf.schedules import Tick

ROUNDS = 5


def matmul_peak(dtype: torch.dtype, device: torch.device, size: int = 2048) -> float:
    """FLOP/s of a large square product, the best of a few."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = min(timed(lambda: a @ b, device) for _ in range(4))
    return 2 * size**3 / best


def timed(action: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def stepper(run: Run, dtype: torch.dtype, compiled: bool, micro: int) -> Callable[[], None]:
    """One optimizer step on made-up tokens, warm."""
    device = pick_device(run.compute.device)
    torch.manual_seed(run.seed)
    model = run.model.build().to(device)
    model.compute_dtype, model.attend = dtype, choose_backend(run.compute.attention, device).attend
    optimizer = run.optimizer.build(model, dtype)
    forward = torch.compile(model, dynamic=False) if compiled else model
    ids = torch.randint(run.model.vocab_size, (run.batch.sequences, run.batch.sequence_length + 1), device=device)
    parts = run.batch.sequences // micro

    def step() -> None:
        optimizer.zero_grad()
        for rows in ids.split(micro):
            (forward(rows[:, :-1], rows[:, 1:])["nll"] / parts).backward()
        optimizer.step(1.0, Tick(1, 0.5, 100))

    step()
    return step


def main() -> None:
    run = compose([*sys.argv[1:], "log=none"])
    as_a_worker = whole_machine().environment(run)
    if any(os.environ.get(k) != v for k, v in as_a_worker.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | as_a_worker)
    device = pick_device(run.compute.device)
    batches = run.batches(1)
    micro = batches.rows(batches.full)
    micros = sorted({micro, *(n for n in (4, 8) if run.batch.sequences % n == 0)})
    variants = {("fp32", False, micro): stepper(run, torch.float32, False, micro) for micro in micros}
    variants["fp32", True, micro] = stepper(run, torch.float32, True, micro)
    native = pick_precision("auto", device) == torch.bfloat16  # emulated bf16 is tens of times slower: not worth a wait
    if native:
        variants["bf16", False, micro] = stepper(run, torch.bfloat16, False, micro)
        variants["bf16", True, micro] = stepper(run, torch.bfloat16, True, micro)
    seconds: dict[tuple, list[float]] = {key: [] for key in variants}
    types = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if native else {})
    peaks = dict.fromkeys(types, 0.0)
    for _ in range(ROUNDS):
        for key, step in variants.items():
            seconds[key].append(timed(step, device))
        for name, dtype in types.items():  # in every round: a busy moment must not pass for the peak
            peaks[name] = max(peaks[name], matmul_peak(dtype, device))
    flops = flops_per_token(run, outline(run)) * run.batch.tokens_per_step
    first = statistics.median(seconds["fp32", False, micro])
    table = Table(title=f"{run.model.layers} x {run.model.dim}, {run.batch.tokens_per_step:,} tokens a step, {device}")
    for column in ("precision", "compile", "microbatch", "ms a step", "tokens/s", "ratio", "share of matmul peak"):
        table.add_column(column, justify="right")
    for key, times in seconds.items():
        median = statistics.median(times)
        table.add_row(
            key[0],
            str(key[1]),
            str(key[2]),
            f"{1000 * median:.0f}",
            f"{run.batch.tokens_per_step / median:,.0f}",
            f"{first / median:.2f}",
            f"{flops / median / peaks[key[0]]:.0%}",
        )
    Console().print(table)
    print("matmul peak, GFLOP/s:", {name: round(peak / 1e9) for name, peak in peaks.items()})


if __name__ == "__main__":
    main()
