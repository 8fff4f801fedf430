#!/usr/bin/env python3
"""The quantiser's door: other artifacts out of a trained run, without training; and what an artifact holds.

    python golf/quantize.py run=outputs/single/RUN quant=int6_gptq quant.rounding.damping=0.02
    python golf/quantize.py -m run=outputs/single/RUN quant=int6,int6_gptq codec=zstd,entropy
    python golf/quantize.py -m run=outputs/single/RUN +sweep=gptq_grid
    python golf/quantize.py inspect=outputs/single/RUN/artifact.golf

run: a folder that golf/train.py made, or several with commas; its training must have ended, its own export may have
failed. What may change is quant, codec and eval; the rest is as
the run was started. Each cell is a run folder of its own beside the source's, with the source as its parent.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # it held golf/ itself

from golf.artifact.contents import contents
from golf.checkpoint import load_tensors
from golf.files import path_of
from golf.launcher.grid import value_of
from golf.requantise import requantise
from golf.revisit import Door
from golf.terminal import Column, show_table, words

DOOR = Door(
    name="golf/quantize.py",
    usage=__doc__ or "",
    changeable=("quant", "codec", "eval"),
    prefix="requantised",
    act=requantise,
    artifact=False,
    columns={
        "BPB": lambda found: f"{found['val_bpb']:.4f}",
        "quant gap": lambda found: f"{found['quant_gap_bpb']:+.4f}",
        "bytes": lambda found: f"{found['artifact_bytes']:,}",
        "bits a weight": lambda found: f"{found['bits_per_param']:.3f}",
        "of the cap": lambda found: (
            f"{found['total_bytes'] / found['cap_bytes']:.1%}" + ("" if found["fits"] else " OVER")
        ),
        "seconds": lambda found: f"{found['quant_seconds']:.1f}",
    },
)


def inspected(given: list[str]) -> bool:
    if not given[0].startswith("inspect="):
        return False
    show_contents(path_of(value_of(given[0])))
    return True


def show_contents(path: Path) -> None:
    """A line for each tensor; the error where the run's weights lie beside the file."""
    beside = path.parent / "weights.safetensors"
    weights = load_tensors(beside)[0] if beside.exists() else None
    artifact, lines = contents(path, weights)
    total = sum(line.stored_bytes for line in lines)
    rows = [
        [
            line.name,
            " x ".join(map(str, line.shape)),
            line.format,
            f"{line.stored_bits:.3f}",
            f"{line.entropy_bits:.3f}",
            f"{line.stored_bytes:,}",
            f"{line.stored_bytes / total:.1%}",
            "" if line.error is None else f"{line.error:.2e}",
        ]
        for line in lines
    ]
    columns = [words("tensor"), Column("shape", spare=4), words("format", 1), Column("bits", spare=2)]
    columns += [Column("entropy", spare=3), Column("bytes"), Column("share", spare=5), Column("error", spare=1)]
    show_table(columns, rows, f"{path}: {artifact.size_bytes:,} bytes, codec {type(artifact.codec).__name__}")
    print(f"bits: a weight as stored alone, steps included; entropy: order 0, of its codes; {total:,} bytes in all")


def main(arguments: list[str]) -> int:
    """Exit code 2 and one line for bad input."""
    return DOOR.main(arguments, inspected)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
