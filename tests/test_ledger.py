"""What counts as training time."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from golf.ledger import Ledger


@pytest.mark.parametrize("way", [str, Path, os.fsencode], ids=["text", "path", "bytes"])
def test_files_are_seen_however_they_are_named(way: Any, tmp_path: Path) -> None:
    """And what other threads open belongs to training, whatever is going on."""
    shard = tmp_path / "train.bin"
    shard.write_bytes(b"text")

    def read() -> None:
        with open(way(shard), "rb") as file:
            file.read()

    with Ledger().watching({"train": [shard]}) as ledger:
        with ledger.phase("eval"):
            thread = threading.Thread(target=read)
            thread.start()
            thread.join()
            assert ledger.phases["train"]["opened"] == ["train"] and ledger.phases["eval"]["opened"] == []
            read()
        assert ledger.phases["eval"]["opened"] == ["train"]


def test_calibration_counts_where_it_reads_training_text() -> None:
    ledger = Ledger()
    ledger.add("train", 600.0, ("train",))
    ledger.add("calibrate", 14.0, ("train",))
    ledger.add("quantise", 3.0)
    ledger.add("eval", 90.0, ("val",))
    assert ledger.counted() == 614.0


def test_calibration_on_text_of_its_own_does_not() -> None:
    ledger = Ledger()
    ledger.add("train", 600.0, ("train",))
    ledger.add("calibrate", 14.0, ())
    assert ledger.counted() == 600.0


def test_scoring_the_text_that_was_trained_on_is_no_training() -> None:
    ledger = Ledger()
    ledger.add("train", 600.0, ("val",))
    ledger.add("eval", 90.0, ("val",))
    assert ledger.counted() == 600.0
