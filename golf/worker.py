"""The torchrun door: one rank of one run. `python golf/worker.py RUN_DIR`, alone or under torchrun. No Hydra here."""

import contextlib
import errno
import gc
import signal
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # it held golf/ itself
    gc.disable()  # imports make objects that stay: a quarter of a start would go into looking for garbage among them

    from golf.launcher.processes import die_with_torchrun

    die_with_torchrun(sys.argv)  # before the seconds that torch takes to import

    from golf.door import read_utf8

    read_utf8()

from torch.distributed.elastic.multiprocessing.errors import record

from golf import dist, result
from golf.checkpoint import load_meta
from golf.code_record import brief
from golf.config import Run, check_owner
from golf.errors import BusyError, ExportError, RunError, UserError
from golf.export import export
from golf.heartbeat import Heartbeat
from golf.keeping import Kept, LoopState, out_of_memory
from golf.launcher.processes import signals_to_obey
from golf.ledger import Ledger
from golf.loop import Stopped, train
from golf.records import Standstill, Whole, fits, read_record
from golf.rundir import RunDir, environment, write_json
from golf.sinks import ConsoleSink, JsonlSink, LogFileSink, Sink, Sinks
from golf.terminal import lasting_streams
from golf.tokens.prepare import Prepared
from golf.typed import typed

STOPPED, FAILED, BAD_INPUT = 130, 1, 2
PREEMPTIONS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)


def main(path: str) -> int:
    """Train, export and write result.json; returns the exit code."""
    with lasting_streams():
        return rank_of(path)


def rank_of(path: str) -> int:
    """Do one rank's part of a run, whether or not somebody reads what it prints; return the exit code."""
    folder = RunDir(Path(path))
    try:
        config = read_record(folder.config, Whole)
        if config is None:
            raise UserError(f"{folder.config}: no readable config.json; start the run with golf/train.py")
        run: Run = typed(config["run"], "", Run)
        check_owner(run, config, path)
        prepared = Prepared.of_run(config["prepared"])
        ranks = dist.start(run.compute.device)
    except UserError as error:
        print(f"golf: {error}", file=sys.stderr, flush=True)
        return BAD_INPUT
    try:
        with folder.lock() if ranks.first else contextlib.nullcontext():
            if folder.finished() is not None:
                print(f"golf: {folder.path} is finished already; nothing is written", file=sys.stderr, flush=True)
                return 0
            return attempt(run, prepared, folder, ranks, config)
    except BusyError as error:  # the folder is another process's: leave its status alone
        print(f"golf: {error}", file=sys.stderr, flush=True)
        return FAILED
    except OSError as error:  # of the lock; attempt() explains its own
        print(f"golf: {'; '.join(trouble_of(error) or [f'{folder.path}: {error}'])}", file=sys.stderr, flush=True)
        return FAILED


def attempt(run: Run, prepared: Prepared, folder: RunDir, ranks: dist.Ranks, config: dict[str, Any]) -> int:
    """work(), with whatever stops it told in one line and in status.json."""
    state = LoopState()

    def stop(signum: int, frame: Any) -> None:
        ignore_preemptions()
        raise Stopped(signum, state.step)

    for number in signals_to_obey(PREEMPTIONS):  # the loop has its own way while it runs
        signal.signal(number, stop)
    try:
        if ranks.first:
            folder.set_status("running", step=0)
        ranks.barrier()
        with Heartbeat(folder) if ranks.first else contextlib.nullcontext():
            work(run, prepared, folder, ranks, state, config)
        return 0
    except (Exception, KeyboardInterrupt, Stopped) as error:
        if isinstance(error, Stopped):  # the loop's own handlers would be gone while Python ends
            ignore_preemptions()
        code, message, expected = explain(error, state)
        # The rank that fails first says why; what it does to the others (a lost connection) is no news.
        if ranks.first or not isinstance(error, Stopped):
            print(f"golf: {message}", file=sys.stderr, flush=True)
            state_name = "stopped" if code == STOPPED else "failed"
            record_end(folder, state_name, step=state.step, rank=ranks.rank, code=code, message=message)
        if not expected:
            raise
        return code


def record_end(folder: RunDir, state: str, **facts: Any) -> None:
    """Write how an attempt ended, unless another rank has. What fails here is said, and hides nothing."""
    try:
        if folder.get_status().get("state") in ("starting", "running"):
            folder.set_status(state, **facts)
    except OSError as error:
        print(f"golf: {folder.status}: cannot be written ({error.strerror or error})", file=sys.stderr, flush=True)


def ignore_preemptions() -> None:
    """Let no further signal cut short what is written and printed on the way out, or become the exit code."""
    for number in PREEMPTIONS:
        signal.signal(number, signal.SIG_IGN)


def work(
    run: Run, prepared: Prepared, folder: RunDir, ranks: dist.Ranks, state: LoopState, config: dict[str, Any]
) -> None:
    """Train, export, write the result; sinks are opened and closed here."""
    ledger = Ledger()
    began_as = environment() if ranks.first else {}  # now: the code may be edited while the run goes on
    state.codes = [brief(began_as)] if ranks.first else []
    sinks = open_sinks(run, folder, config) if ranks.first else Sink()
    keeping = Kept(folder, run.checkpoint, run.resume, config["fingerprint"])
    finished = None
    try:
        with ledger.watching(prepared.files()):
            trained = train(run, prepared, keeping, ranks, sinks, state, ledger)
            measured = export(run, prepared, keeping, ranks, sinks, state, ledger, trained)
        if ranks.first:
            made = {"environment": began_as, "codes": state.codes}
            names = {"fingerprint": config["fingerprint"], "config_hash": config["config_hash"]}
            finished = result.assemble(run, prepared, **names, measured=made | measured)
            write_json(folder.result, finished)
            folder.set_status("done", step=state.step, val_bpb=finished["val_bpb"])
    except BaseException:
        with contextlib.suppress(Exception):  # what stopped the run is what is said
            sinks.close(None, None)
        raise
    sinks.close(finished, folder.artifact if finished else None)
    if finished:
        result.show(finished)
        print(f"\n{folder.path}")
    dist.finish(ranks)


def open_sinks(run: Run, folder: RunDir, config: dict[str, Any]) -> Sinks:
    """Terminal, log file, metrics.jsonl, tracker."""
    console, log = ConsoleSink(run.budget.max_steps), LogFileSink(folder.log)
    notes = Sinks([console, log])
    resumes = run.resume == "auto" and folder.checkpoint.exists()
    meta = load_meta(folder.checkpoint) if resumes else None
    from_step = meta["step"] if meta is not None and fits(meta, Standstill) else 0
    facts = {
        "name": folder.path.name,
        "label": run.label,
        "sweep": run.sweep_label,
        "tags": [run.track, run.sweep_label, run.label, run.eval.main, run.quant.roles.get("matrix")],
        "config": config["run"],
    }
    tracker = run.log.build(folder.path, facts, notes.note)
    return Sinks([console, log, JsonlSink(folder.metrics, from_step), tracker], run.log.every_steps)


def explain(error: BaseException, state: LoopState) -> tuple[int, str, bool]:
    """(exit code, one line for people, whether the line says it all): what happened, at which step, what was saved."""
    saved = f"saved: step {state.saved_step}" if state.saved_step is not None else "nothing was saved yet"
    again = f"{saved}; the same command goes on from there" if state.saved_step is not None else saved
    if isinstance(error, Stopped | KeyboardInterrupt):
        return STOPPED, f"{str(error) or 'stopped by SIGINT'}; {again}", True
    if isinstance(error, ExportError):  # the same command would fail there again; its message says what would not
        cause = error.__cause__
        return FAILED, str(error), cause is None or isinstance(cause, UserError | RunError) or out_of_memory(cause)
    if out_of_memory(error):
        return FAILED, f"out of memory at step {state.step}; lower batch.max_microbatch_sequences; {again}", True
    if isinstance(error, OSError) and (trouble := trouble_of(error)):
        what, fix = trouble
        return FAILED, f"{what} at step {state.step}; {fix}; {again}", True
    if isinstance(error, UserError):
        return BAD_INPUT, str(error), True
    if isinstance(error, RunError):
        return FAILED, f"{error}; {again}", True
    return FAILED, f"{type(error).__name__} at step {state.step}: {error}; {again}", isinstance(error, OSError)


TROUBLES = {
    errno.ENOSPC: ("disk full", "free some space"),
    errno.EDQUOT: ("disk full (your quota)", "free some space"),
    errno.EMFILE: ("too many open files", "raise their number with ulimit -n"),
    errno.ENFILE: ("too many open files on this machine", "close some programs"),
    errno.EROFS: ("the disk is read-only", "choose another outputs="),
    errno.EACCES: ("no permission to write", "choose another outputs="),
}


def trouble_of(error: OSError) -> tuple[str, str] | None:
    """Return what the machine lacks, and a way out; None where it is something else."""
    number = errno.ENOSPC if "No space left" in str(error) else error.errno  # safetensors keeps the words alone
    if number not in TROUBLES:
        return None
    what, fix = TROUBLES[number]
    return what + (f" ({error.filename})" if error.filename and number in (errno.EROFS, errno.EACCES) else ""), fix


@record
def guarded(path: str) -> int:
    """torchelastic's record writes an unexpected exception as JSON for the launcher."""
    return main(path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: worker.py RUN_DIR (golf/train.py makes the folder and starts this)")
    gc.enable()
    gc.freeze()  # what was imported stays, and is not looked at again
    sys.exit(guarded(sys.argv[1]))
