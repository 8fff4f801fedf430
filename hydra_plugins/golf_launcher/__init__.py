"""Hydra's launcher: composes and types every cell, then hands them to golf.launcher. No task is pickled or run here."""

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class GolfLauncher(Launcher):
    """conf/hydra/launcher/golf.yaml; what can be set is in conf/launch."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.config = hydra_context.config_loader, config
        self.composed: dict[tuple[str, ...], DictConfig] = {}

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from golf.errors import UserError
        from golf.launcher import sweep
        from golf.launcher.cells import collect
        from hydra_plugins.golf_sweeper import plan_of

        cells = collect([list(overrides) for overrides in job_overrides], self._run_of)
        try:
            outcomes = sweep.launch(cells, plan_of(self.config))
        except (TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise RuntimeError("the launcher failed") from error  # not bad input, which the door tells in one line
        return [
            JobReturn(
                overrides=cell.overrides,
                status=JobStatus.FAILED if outcome.error else JobStatus.COMPLETED,
                _return_value=outcome.error or outcome.val_bpb,
            )
            for cell, outcome in zip(cells, outcomes, strict=True)
        ]

    def _run_of(self, overrides: list[str]) -> Any:
        """The typed run of a cell. Cells that differ in the seed alone are composed once: composing takes most."""
        from golf.compose import composing, run_of_whole

        seed = [override for override in overrides if override.startswith("seed=")]
        rest = tuple(override for override in overrides if not override.startswith("seed="))
        with composing(overrides):
            if rest not in self.composed:
                self.composed[rest] = self.loader.load_sweep_config(self.config, list(rest))
            config = self.composed[rest].copy()
            for override in OverridesParser.create().parse_overrides(seed):
                config.seed = override.value()
            return run_of_whole(config)
