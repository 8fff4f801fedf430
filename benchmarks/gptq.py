"""GPTQ on matrices of a record's size, ours against the paper's loop, matrix by matrix; equal error is checked.

    python benchmarks/gptq.py [--layers 12] [--shapes 2048x512 512x512] [--pairs 3]

Hessians are of made-up inputs that hang together and differ in power. Both take turns; the ratio is what to read.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from golf.quant.gptq import GPTQConfig
from golf.quant.grid import round_to_grid, stored_step

LIMIT, DAMPING, BLOCK = 31, 0.01, 128


def problem(layers: int, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """w_BOI, step_BO1, hessian_BII."""
    generator = torch.Generator().manual_seed(0)
    power = torch.arange(1, columns + 1) ** -0.5
    hessians = []
    for _ in range(layers):
        x_NI = (torch.randn(4 * columns, columns, generator=generator) * power) @ torch.linalg.qr(
            torch.randn(columns, columns, generator=generator)
        )[0]
        hessians.append(x_NI.T @ x_NI / len(x_NI))
    w_BOI = torch.randn(layers, rows, columns, generator=generator)
    return w_BOI, stored_step(w_BOI.std(dim=2, keepdim=True) * 12.85 / LIMIT), torch.stack(hessians)


def paper(w_OI: Tensor, step_O1: Tensor, hessian_II: Tensor) -> Tensor:
    """Algorithm 1 of arXiv 2210.17323 as it stands there, with act-order: an inverse, its Cholesky factor, and updates
    of all the columns of a block that are still to come, after each column."""
    order = hessian_II.diagonal().argsort(descending=True, stable=True)
    w = w_OI[:, order].clone()
    h = hessian_II[order][:, order]
    h = h + DAMPING * h.diagonal().mean() * torch.eye(len(h))
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    codes = torch.zeros_like(w, dtype=torch.int8)
    for start in range(0, w.shape[1], BLOCK):
        stop = min(start + BLOCK, w.shape[1])
        errors = torch.zeros_like(w[:, start:stop])
        for column in range(start, stop):
            code = round_to_grid(w[:, column : column + 1], step_O1, LIMIT)
            error = (w[:, column : column + 1] - code * step_O1) / upper[column, column]
            w[:, column:stop] -= error @ upper[column : column + 1, column:stop]
            codes[:, column], errors[:, column - start] = code[:, 0], error[:, 0]
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    return codes[:, order.argsort()]


def output_error(w_BOI: Tensor, code_BOI: Tensor, step_BO1: Tensor, hessian_BII: Tensor) -> float:
    e_BOI = w_BOI - code_BOI * step_BO1
    return ((e_BOI @ hessian_BII) * e_BOI).sum().item()


def timed(action: Callable[[], Tensor]) -> tuple[float, Tensor]:
    started = time.perf_counter()
    found = action()
    return time.perf_counter() - started, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--shapes", nargs="+", default=["2048x512", "512x512"])
    parser.add_argument("--pairs", type=int, default=3)
    chosen = parser.parse_args()
    for shape in chosen.shapes:
        rows, columns = map(int, shape.split("x"))
        print(f"{chosen.layers} x {shape}: {compare(*problem(chosen.layers, rows, columns), chosen.pairs)}", flush=True)


def compare(w: Tensor, step: Tensor, hessian: Tensor, pairs: int) -> str:
    """Both in turns; what came of it, in a line."""
    ours = GPTQConfig(damping=DAMPING, block=BLOCK, order="descending")
    times: list[tuple[float, float]] = []
    for _ in range(pairs):
        slow, theirs = timed(lambda: torch.stack([paper(*one) for one in zip(w, step, hessian, strict=True)]))
        fast, mine = timed(lambda: ours.round(w, step, LIMIT, hessian))
        times.append((slow, fast))
    nearest = output_error(w, round_to_grid(w, step, LIMIT), step, hessian)
    errors = [output_error(w, codes, step, hessian) / nearest for codes in (theirs, mine)]
    return (
        f"the paper's loop {min(t[0] for t in times):.2f} s, ours {min(t[1] for t in times):.2f} s, ratio "
        f"{statistics.median(a / b for a, b in times):.1f}; error over rounding to nearest {errors[0]:.4f} and "
        f"{errors[1]:.4f}; codes that differ {(theirs != mine).float().mean():.4%}"
    )


if __name__ == "__main__":
    main()
