"""Checks that cross the nodes of a configuration, made before any process is started, data read or device touched."""

import numpy as np
import torch

from golf.artifact.file import check_readable
from golf.averaging import NoAverageConfig
from golf.config import Run
from golf.dist import Ranks, pick_device
from golf.errors import UserError
from golf.evals.cache import check_model
from golf.late import LateConfig
from golf.models.kernels import choose_backend
from golf.models.lm import LM
from golf.nodes import configs
from golf.qat import rounding_formats
from golf.schedules import Start, Tick
from golf.stages import never_begun
from golf.tokens.prepare import Prepared


def check_machine(run: Run) -> None:
    """Raise UserError where this machine can't run it; a plan needs no such machine."""
    device = pick_device(run.compute.device)
    if device.type == "cuda" and run.launch.nproc > torch.cuda.device_count():
        raise UserError(
            f"launch.nproc={run.launch.nproc}: only {torch.cuda.device_count()} CUDA devices are visible; "
            f"try launch.nproc={torch.cuda.device_count()}"
        )
    choose_backend(run.compute.attention, device, run.model.mixer.kernel_channels(run.model.dim))


def check(run: Run) -> None:
    """Raise UserError for the first thing that would stop this run later, on whatever machine."""
    batches = run.batches(run.launch.nproc)
    model = run.model.build_on_meta()
    run.optimizer.factors(model)
    check_storage(run, model)
    check_scorers(run, model)
    shortest = min(shape.length for shape in batches.shapes)
    for name, part in run.model.auxiliary.items():
        if part is not None and shortest < part.shortest():
            raise UserError(
                f"batch.sequence_length={run.batch.sequence_length}: model.auxiliary.{name} looks further ahead than "
                f"rows of {shortest} tokens; set at least {part.shortest()}"
            )
    if run.qat is not None:
        rounding_formats(model, run.quant)
    if run.late is not None:
        _check_late(run, run.late)
    _check_starts(run, model)
    run.log.check()


def _check_starts(run: Run, model: LM) -> None:
    """Raise UserError for a stage that would never begin, in the steps that there will be.

    By the wall clock their number is not known: there only what the schedule never comes down to is.
    """
    steps = run.budget.max_steps if run.budget.clock == "steps" else None
    end = _tick(run, None if steps is None else steps - 1)
    for path, part in configs(run):
        if isinstance(part, Start) and not part.reached(end):
            raise UserError(_never(path, part, end, steps))
    for path in () if steps is None else never_begun(run, model.stack.starts, end):
        raise UserError(
            f"{path}: never begins, as the last of {steps} steps begins at {end.progress:.4g} of the run; give the run "
            "more steps, or leave it out"
        )
    for path, part in configs(run):
        every, start = getattr(part, "every_steps", None), getattr(part, "start", None)
        if steps is None or every is None or not isinstance(start, Start):
            continue
        last = steps // every * every - 1  # of those steps after which something is done
        if last < 0 or not start.reached(_tick(run, last)):
            raise UserError(
                f"{path}.every_steps={every}: no such step comes in the part of {steps} steps that begins at "
                f"{path}.start; lower it, or begin earlier"
            )


def _tick(run: Run, step: int | None) -> Tick:
    """Return where a run stands before this step of the step clock; None: at the end of any clock."""
    if step is None or run.budget.max_steps is None:
        return run.schedule.at(Tick(10**9, 1.0, 0.0))
    steps = run.budget.max_steps
    before_late = steps - (0 if run.late is None else round(run.late.share * steps))
    progress = min(1.0, step / max(1, before_late))
    return run.schedule.at(Tick(step, progress, max(0, before_late - step)))


def _never(path: str, start: Start, end: Tick, steps: int | None) -> str:
    """Say why a stage never begins, and what to set."""
    if start.progress is not None:
        return (
            f"{path}.progress={start.progress}: the last of {steps} steps begins at {end.progress:.4g}, so this never "
            f"begins; at most {path}.progress={end.progress:.4g}"
        )
    return (
        f"{path}.rate_below={start.rate_below}: the schedule ends at {end.decay:.2g} of the full rate, so this "
        f"never begins; choose another schedule, or {path}.progress=0.5 with {path}.rate_below=null"
    )


def _check_late(run: Run, late: LateConfig) -> None:
    steps = run.budget.max_steps
    if run.qat is not None and not late.sees_rounding:
        raise UserError("late: this stage does not see the rounding of qat; leave one of them out")
    if isinstance(run.average, NoAverageConfig) and late.needs_average:
        raise UserError("late: this stage learns from averaged weights; choose some, such as average=ema")
    if run.budget.clock == "steps" and steps is not None and round(late.share * steps) == 0:
        raise UserError(f"late.share={late.share} of {steps} steps is none; try late.share={1 / steps:.2g}")


def check_storage(run: Run, model: LM) -> None:
    """Raise UserError where the quantiser or the codec can't store this model."""
    roles = model.stored_roles()
    run.chosen_codec.check()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    run.quant.predict_bytes({name: shapes[name] for name in roles}, roles, run.chosen_codec)
    check_readable(run.model, model, run.quant, run.chosen_codec)
    if run.quant.allocation.reads_gradients and run.batch.sequence_length < 2:
        raise UserError(
            f"batch.sequence_length={run.batch.sequence_length}: quant.allocation measures how rows predict their own "
            "next tokens, and these have none; set at least 2, or quant/allocation=even"
        )
    if run.quant.fit and not run.quant.dialled(shapes, roles):
        raise UserError(
            "quant.fit=true: the steps of this quantiser are tied to the largest weights, or there are none, so that "
            "nothing can be dialled; take steps in standard deviations, such as quant=int6_sdclip, or quant.fit=false"
        )


def check_scorers(run: Run, model: LM) -> None:
    """Raise UserError where a scorer does not suit this model, which is on the meta device."""
    ranks = Ranks(0, 1, torch.device("meta"))
    for name, evaluator in run.eval.evaluators.items():
        try:
            if evaluator.caches:
                check_model(model, evaluator.length)
            evaluator.chosen.open(model, ranks).begin(np.zeros(1, dtype=np.int64))
        except UserError as error:
            raise UserError(f"eval.evaluators.{name}.{error}") from None


def check_scored(run: Run, prepared: Prepared) -> None:
    """Raise UserError where the split that is scored holds nothing to score: no next token, or no byte of text."""
    split = prepared.splits[run.eval.split]
    if split.tokens < 2 or split.bytes == 0:
        raise UserError(
            f"eval.split={run.eval.split}: this split of data={prepared.corpus} has {split.tokens:,} tokens of "
            f"{split.bytes or 0:,} bytes, and nothing to score; give it other text (a document of it may have been one "
            f"of the training text, too), a larger share (data.{run.eval.split}_one_in), or another eval.split"
        )


def check_data(run: Run, prepared: Prepared) -> None:
    """Raise UserError where what was prepared does not suit the model."""
    if prepared.vocab_size != run.model.vocab_size:
        raise UserError(
            f"model.vocab_size={run.model.vocab_size}: the tokenizer of data={prepared.corpus} has "
            f"{prepared.vocab_size} tokens; leave model.vocab_size out, or set data.vocab_size={run.model.vocab_size}"
        )
    for path, part in configs(run.model, "model"):
        bos_id = getattr(part, "bos_id", None)
        if bos_id is not None and bos_id != prepared.bos_id:
            raise UserError(
                f"{path}.bos_id={bos_id}: documents of data={prepared.corpus} begin with {prepared.bos_id}; set that"
            )
    check_scored(run, prepared)
    shapes = run.batches(run.launch.nproc).shapes
    needed = max(run.loader.tokens_needed(shape.sequences, shape.length) for shape in shapes)
    split = run.loader.split
    there = prepared.splits[split].tokens
    if there < needed:
        raise UserError(
            f"batch.sequence_length={run.batch.sequence_length}: a batch needs {needed:,} tokens, the {split} split of "
            f"data={prepared.corpus} has {there:,}; lower batch.sequence_length or batch.tokens_per_step"
        )
