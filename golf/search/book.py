"""The book of a search: an Optuna study in a journal file beside its trials, so that a killed search goes on."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from golf.errors import UserError
from golf.files import MOST_TEXT, opened, read_bytes
from golf.nodes import plain
from golf.records import Count, Diverging, Record, fits
from golf.rundir import illegal, write_bytes
from golf.search.space import Search

JOURNAL = "search.journal"
STUDY = "search"
STATES = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "refused",  # its configuration was; a run that failed stays open, and is tried again
}
UNSOUND = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RuntimeError)


class Defined(Record):
    """What a journal says of its search."""

    seed: Count
    space: dict[str, Any]
    configuration: str
    registered: list[Count]


class Entry(Record):
    """A trial as a journal has it."""

    values: dict[str, int | float | str | bool | None]
    bpb: Diverging | None
    step: Count | None
    reason: str
    folder: str | None


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial as the book has it. state: done, pruned, refused, or open (asked, and nothing came of it yet).

    values: key -> what is tried; bpb: bits per byte, the score of its artifact where it is done, else the last on the
    way; step: the last known; counts: False where it is done and over the cap or illegal, so that it is never the best.
    """

    number: int
    state: str
    values: dict[str, Any]
    bpb: float | None = None
    step: int | None = None
    reason: str = ""
    folder: str | None = None
    counts: bool = True

    @property
    def name(self) -> str:
        return f"trial-{self.number:03d}"


class HeldFolder(JournalFileOpenLock):
    """No lock of its own: the launcher holds the sweep's folder, with a lock that dies with it."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


class Book:
    """Draws trials, keeps what came of them, and judges those under way.

    Whoever writes holds the folder. Each draw has a seed of its own, of the search's seed and the trial's number:
    with one generator a search that goes on would draw what it drew at first.
    """

    def __init__(self, file: Path, search: Search):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.search = search
        try:
            self._open(file)
        except UNSOUND as error:
            raise UserError(
                f"{file}: is damaged ({type(error).__name__}); move it away, and the search begins anew in another "
                "sweep_label"
            ) from None

    def _open(self, file: Path) -> None:
        """Read the journal, all that is used of it: optuna takes what it holds at its word. Raises one of UNSOUND."""
        if file.exists():
            with opened(file):  # a pipe would be waited for
                pass
        self.storage = JournalStorage(JournalFileBackend(str(file), HeldFolder(str(file))))
        begun = any(study.study_name == STUDY for study in self.storage.get_all_studies())
        opening = optuna.load_study if begun else optuna.create_study
        self.study = opening(study_name=STUDY, storage=self.storage, pruner=_pruner(self.search))
        said = self.study.user_attrs.get("search")
        if not (said is None or fits(said, Defined)) or not all(fits(asdict(trial), Entry) for trial in self.trials()):
            raise ValueError("holds another thing than a search")

    def define(self, base: str, seeds: tuple[int, ...]) -> None:
        """Write down what all trials have in common, or hold it against what stands there.

        base: config_hash of the configuration that trials change; seeds: of the confirmation, registered by this.
        Raises UserError where the folder's trials were drawn otherwise.
        """
        space = {key: plain(item) for key, item in self.search.space.items()}
        said = {"seed": self.search.seed, "space": space, "configuration": base}
        found = self.study.user_attrs.get("search")
        if found is None:
            self.study.set_user_attr("search", {**said, "registered": list(seeds)})
            return
        for key, value in said.items():
            if found[key] != json.loads(json.dumps(value)):
                what = "the configuration that its trials change" if key == "configuration" else f"its {key}"
                raise UserError(
                    f"hydra.sweeper.search: this folder holds another search, {what} differs; "
                    "give this one another sweep_label"
                )

    @property
    def registered(self) -> tuple[int, ...]:
        """The seeds of the confirmation, as they were before any trial."""
        return tuple(self.study.user_attrs["search"]["registered"])

    # ---------------------------------------------------------------- drawing

    @property
    def asked(self) -> int:
        return len(self._frozen())

    def ask(self) -> Trial:
        """A new trial."""
        self._seed(self.asked)
        return self._drawn(self.study.ask())

    def open(self) -> list[Trial]:
        """Trials that were asked and left: the same again, with the same values."""
        found = []
        for number in [frozen.number for frozen in self._frozen() if frozen.state == TrialState.RUNNING]:
            self._seed(number)  # a kill may have come before its last value was drawn
            found.append(self._drawn(self._trial(number)))
        return found

    def settle(self, trial: Trial) -> bool:
        """Give a trial what came of an earlier one with its values; False where there is none."""
        twins = [frozen for frozen in self._frozen() if frozen.state in STATES and frozen.params == trial.values]
        if not twins:
            return False
        twin, live = twins[0], self._trial(trial.number)
        for step, bpb in twin.intermediate_values.items():
            live.report(bpb, step)
        for key, value in {**twin.user_attrs, "reason": f"the same as trial {twin.number}"}.items():
            live.set_user_attr(key, value)
        for key, value in twin.constraints.items():
            live.set_constraint(key, value)
        value = twin.value if twin.state == TrialState.COMPLETE else None
        self.study.tell(trial.number, value, state=twin.state)
        return True

    # ---------------------------------------------------------------- what comes of them

    def started(self, number: int, folder: str) -> None:
        self._trial(number).set_user_attr("folder", folder)

    def report(self, number: int, scores: list[tuple[int, float]]) -> None:
        """(step, bits per byte) of scores on the way; those known already are passed over."""
        trial = self._trial(number)
        known = self._frozen()[number].intermediate_values
        for step, bpb in scores:
            if step not in known:
                trial.report(bpb, step)

    def diverged(self, number: int) -> str:
        """Says so where a trial's last score is no number; else empty."""
        frozen = self._frozen()[number]
        if frozen.last_step is None or np.isfinite(frozen.intermediate_values[frozen.last_step]):
            return ""
        return f"its score at step {frozen.last_step} is no number"

    def behind(self, number: int) -> str:
        """Why a trial is to be stopped by its scores so far; empty where it is not."""
        if why := self.diverged(number):
            return why
        frozen = self._frozen()[number]
        if frozen.last_step is None:
            return ""
        last = frozen.intermediate_values[frozen.last_step]
        if self.search.keep is not None and self._trial(number).should_prune():
            return f"{last:.4f} BPB at step {frozen.last_step} is not among the best {self.search.keep:.0%} there"
        return ""

    def done(self, number: int, result: dict[str, Any]) -> None:
        """The run's result. One over the cap or illegal guides the search away, and is never the best."""
        trial = self._trial(number)
        trial.set_user_attr("step", result["steps"])
        trial.set_constraint("bytes over the cap", result["total_bytes"] - result["cap_bytes"])
        trial.set_constraint("illegal", float(illegal(result)))
        self.study.tell(number, result["val_bpb"])

    def pruned(self, number: int, reason: str) -> None:
        self._trial(number).set_user_attr("reason", reason)
        self.study.tell(number, state=TrialState.PRUNED)

    def refused(self, number: int, reason: str) -> None:
        """Its configuration cannot be run."""
        self._trial(number).set_user_attr("reason", reason)
        self.study.tell(number, state=TrialState.FAIL)

    # ---------------------------------------------------------------- reading

    def trials(self) -> list[Trial]:
        return [_told(frozen) for frozen in self._frozen()]

    def best(self) -> Trial | None:
        """The lowest score that counts."""
        done = [trial for trial in self.trials() if trial.state == "done" and trial.counts]
        return min(done, key=lambda trial: trial.bpb, default=None)  # type: ignore[arg-type, return-value]

    # ---------------------------------------------------------------- Optuna's

    def _frozen(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _trial(self, number: int) -> optuna.Trial:
        study = self.storage.get_study_id_from_name(STUDY)
        return optuna.Trial(self.study, self.storage.get_trial_id_from_study_id_trial_number(study, number))

    def _seed(self, number: int) -> None:
        (seed,) = np.random.SeedSequence([self.search.seed, number]).generate_state(1)
        self.study.sampler = optuna.samplers.TPESampler(n_startup_trials=self.search.startup, seed=int(seed))

    def _drawn(self, trial: optuna.Trial) -> Trial:
        values = {key: dimension.suggest(trial, key) for key, dimension in self.search.space.items()}
        return Trial(trial.number, "open", values)


def mend(file: Path) -> None:
    """Cut off the last line of a journal where a kill left half of it: the next would be written behind it."""
    if file.exists() and (data := read_bytes(file, MOST_TEXT)) and not data.endswith(b"\n"):
        write_bytes(file, data[: data.rfind(b"\n") + 1])


def _pruner(search: Search) -> optuna.pruners.BasePruner:
    keep = 1.0 if search.keep is None else search.keep
    return optuna.pruners.PercentilePruner(100 * keep, n_startup_trials=search.startup)


def _told(frozen: FrozenTrial) -> Trial:
    said, ways = frozen.user_attrs, frozen.intermediate_values
    last = frozen.last_step
    return Trial(
        number=frozen.number,
        state=STATES.get(frozen.state, "open"),
        values=dict(frozen.params),
        bpb=frozen.value if frozen.value is not None else ways[last] if last is not None else None,
        step=said.get("step", last),
        reason=said.get("reason", ""),
        folder=said.get("folder"),
        counts=all(value <= 0 for value in frozen.constraints.values()),
    )
