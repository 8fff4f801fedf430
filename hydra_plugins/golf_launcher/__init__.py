"""Hydra's launcher: composes and types every cell, then hands them to golf.launcher. No task is pickled or run here."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class GolfLauncher(Launcher):
    """conf/hydra/launcher/golf.yaml; what can be set is in conf/launch."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from golf.command_line import SEARCH_PATH
        from golf.compose import Composer, composer_of

        self.config = config
        self.given = list(config.hydra.overrides.hydra)  # `hydra.` overrides of the command line hold for every cell
        self.composer = Composer(composer_of(self.given).loader)
        self.folders = [word for word in self.given if word.lstrip("+").startswith(f"{SEARCH_PATH}=")]
        # overrides but the seed -> their run; None where it hangs on the seed
        self.rows: dict[tuple[str, ...], Any] = {}

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from hydra_plugins.golf_sweeper import plan_of

        return self.run(job_overrides, plan_of(self.config))

    def run(self, job_overrides: Sequence[Sequence[str]], plan: Any) -> Sequence[JobReturn]:
        """Launch the cells of a Plan."""
        from golf.launcher import sweep

        cells = self.cells(job_overrides)
        with not_bad_input():
            outcomes = sweep.launch(cells, plan)
        return [
            JobReturn(
                overrides=cell.overrides,
                status=JobStatus.FAILED if outcome.error else JobStatus.COMPLETED,
                _return_value=outcome.error or outcome.val_bpb,
            )
            for cell, outcome in zip(cells, outcomes, strict=True)
        ]

    def cells(self, job_overrides: Sequence[Sequence[str]]) -> list[Any]:
        """The cells of these overrides, composed, typed and checked; each names further folders of YAML files."""
        from golf.launcher.cells import collect

        return collect([[*self.folders, *overrides] for overrides in job_overrides], self._run_of)

    def _own(self, overrides: Sequence[str]) -> list[str]:
        """The overrides of a cell without those of the command line that every cell has."""
        return [word for word in overrides if word not in self.folders]

    def _run_of(self, overrides: list[str]) -> Any:
        """The typed run of a cell. Cells that differ in the seed alone are composed and typed once: it takes most."""
        from golf.compose import composing, run_of_whole
        from golf.config import LARGEST_SEED

        with composing(overrides):
            seeds = [override for override in overrides if override.startswith("seed=")]
            (seed,) = [override.value() for override in OverridesParser.create().parse_overrides(seeds)] or (None,)
            if type(seed) is not int or not 0 <= seed <= LARGEST_SEED:
                return run_of_whole(self.composer.compose([*self.given, *self._own(overrides)]))
            rest = tuple(override for override in overrides if override not in seeds)
            if rest not in self.rows:
                config = self.composer.compose([*self.given, *self._own(rest)])
                uses_seed = re.search(r"\$\{[^}]*\bseed\b", OmegaConf.to_yaml(config))
                self.rows[rest] = None if uses_seed else run_of_whole(config)
            run = self.rows[rest]
            if run is None:
                return run_of_whole(self.composer.compose([*self.given, *self._own(overrides)]))
            return dataclasses.replace(run, seed=seed)


@contextmanager
def not_bad_input() -> Iterator[None]:
    """Let no bug pass for bad input, which the door tells in one line."""
    from golf.errors import UserError

    try:
        yield
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise RuntimeError("the launcher failed") from error
