"""Rules that a configuration breaks by itself, whatever a run of it would show."""

from golf.config import Recipe


def broken_rules(run: Recipe) -> list[str]:
    """One sentence for each. A run that breaks one may be worth doing (to repeat a claim), but is no submission."""
    found = []
    if run.loader.split in ("val", run.eval.split):
        found.append(f"trains on text that scores are taken on (loader.split={run.loader.split}): no score may")
    return found
