"""Published numbers, from references.yaml: shown beside a sweep on their own track, never mixed into its tests."""

from dataclasses import dataclass
from pathlib import Path

import yaml

FILE = Path(__file__).with_name("references.yaml")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """One published result. bpb: mean over n seeds; sd: of the sample, None for one seed; max_bytes: code included."""

    name: str
    track: str
    bpb: float
    sd: float | None
    n: int
    max_bytes: int
    source: str


def references(track: str) -> list[Reference]:
    """The published results of one track, best first."""
    known = [Reference(**entry) for entry in yaml.safe_load(FILE.read_text())]
    return sorted((entry for entry in known if entry.track == track), key=lambda entry: entry.bpb)
