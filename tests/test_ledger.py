"""What counts as training time."""

from golf.ledger import Ledger


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
