"""The softmax loss, forward and backward: eager, whole logits, against fused, chunk after chunk; paired ratios.

    python benchmarks/loss.py [--tokens 8192] [--dim 512] [--vocab 1024 8192] [--pairs 7] [--device cuda --dtype bf16]

Both take turns, so that whatever else the machine does falls on both. Memory is that of one fp32 copy of the logits
that exist at a time; on a GPU also what was allocated at the peak.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from golf.losses import EntropyWeightsConfig, Loss, ZLossConfig
from golf.models.cross_entropy import chunk_rows, softcapped, softmax_loss

SOFTCAP = 30.0
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PLAIN = "cross_entropy"
LOSSES = {
    PLAIN: Loss({}),
    "z_loss": Loss({"z_loss": ZLossConfig(coefficient=1e-4)}),
    "entropy_weighted": Loss({"entropy_weighted": EntropyWeightsConfig(floor=0.5, ceiling=1.5)}),
}


def eager(x_ND: Tensor, table_VD: Tensor, targets_N: Tensor) -> Tensor:
    logits_NV = softcapped(F.linear(x_ND, table_VD.to(x_ND.dtype)).float(), SOFTCAP)
    return F.cross_entropy(logits_NV, targets_N)


def measure(action: Callable[[], Tensor], device: torch.device) -> tuple[float, int]:
    """Seconds of forward and backward, and bytes allocated at the peak beyond those before (0 on a CPU)."""
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    started = time.perf_counter()
    action().backward()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - started, (torch.cuda.max_memory_allocated() if on_gpu else 0) - before


def compare(tokens: int, dim: int, vocab: int, dtype: torch.dtype, device: torch.device, pairs: int) -> None:
    """Print a row for each loss: its time over that of eager cross entropy, and the logits that both hold."""
    torch.manual_seed(0)
    x_ND = torch.randn(tokens, dim, device=device, dtype=dtype, requires_grad=True)
    table_VD = (0.05 * torch.randn(vocab, dim, device=device)).requires_grad_()
    targets_N = torch.randint(vocab, (tokens,), device=device)
    rows = min(tokens, chunk_rows(vocab, device))

    def whole() -> Tensor:
        return eager(x_ND, table_VD, targets_N)

    for name, loss in LOSSES.items():

        def fused(loss: Loss = loss) -> Tensor:
            return softmax_loss(x_ND, table_VD, targets_N, softcap=SOFTCAP, loss=loss)[0]

        found: dict[Callable[[], Tensor], list[tuple[float, int]]] = {whole: [], fused: []}
        for action in (*found, *(pairs * list(found))):
            found[action].append(measure(action, device))
        ratios = sorted(new[0] / old[0] for old, new in list(zip(found[whole], found[fused], strict=True))[1:])
        held = " / ".join(f"{4 * vocab * count / 1e6:.1f}" for count in (tokens, rows))
        peak = " / ".join(f"{max(size for _, size in found[action]) / 1e6:.0f}" for action in (whole, fused))
        print(
            f"| {vocab} | {name} | {statistics.median(ratios):.2f} | {ratios[0]:.2f} .. {ratios[-1]:.2f} | {held} "
            f"| {peak if device.type == 'cuda' else '-'} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--vocab", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    args = parser.parse_args()
    print("| vocabulary | loss | time, fused / eager | spread of pairs | logits, MB, eager / fused | peak, MB |")
    print("|---|---|---|---|---|---|")
    for vocab in args.vocab:
        compare(args.tokens, args.dim, vocab, DTYPES[args.dtype], torch.device(args.device), args.pairs)


if __name__ == "__main__":
    main()
