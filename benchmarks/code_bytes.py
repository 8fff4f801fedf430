"""Code bytes of submissions: the readable script, minified, and packed, at laptop scale.

    python benchmarks/code_bytes.py ["experiment=pr401 eval=ttt_sgd" ...]

For scale: the records' raw scripts have about 67,603 bytes (PR 401) to 158,000, their packed ones 15,516 to 31,999.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from golf.compose import compose
from golf.submission.entry import source_of
from golf.submission.pack import pack

ROWS = (
    "experiment=baseline_naive",
    "experiment=pr401",
    "experiment=pr584_baseline",
    "experiment=baseline_naive model=mla_128",
    "experiment=baseline_naive eval=ttt_sgd",
    "experiment=baseline_naive quant=int6_gptq codec=entropy",
)


def main(rows: list[str]) -> None:
    print("| configuration | source | minified | lzma | brotli | shipped |\n|---|---:|---:|---:|---:|---:|")
    for row in rows or ROWS:
        found = pack(source_of(compose(row.split())))
        sizes = (found.raw_bytes, found.minified_bytes, found.sizes["lzma"], found.sizes["brotli"], len(found.file))
        print(f"| {row} | {' | '.join(f'{size:,}' for size in sizes)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
