"""Is a record folder whole and true to itself? What a maintainer would send back, found beforehand."""

import importlib.util
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from golf.files import MOST_TEXT, read_bytes, read_text
from golf.submission.folder import READABLE, REQUIREMENTS, SCRIPT, TOKENIZER, modules_of
from golf.submission.logs import last_line
from golf.submission.record import FILE, SeedResult, Submission, read_submission

ALLOWED = {SCRIPT, READABLE, REQUIREMENTS, TOKENIZER, FILE, "README.md"}


def faults(folder: Path) -> list[str]:
    """One line for each thing that is wrong; raises UserError where submission.json itself can't be read."""
    record = read_submission(folder)
    return [*_files(folder, record), *_code(folder, record), *_sizes(record), *_seeds(folder, record), *_means(record)]


def _files(folder: Path, record: Submission) -> Iterator[str]:
    logs = {found.log for found in record.seed_results.values() if found.log}
    for name in sorted({SCRIPT, REQUIREMENTS, "README.md"} | logs):
        if not (folder / name).is_file():
            yield f"{name}: missing"
    for path in sorted(folder.iterdir()):
        if path.name not in ALLOWED | logs:
            yield f"{path.name}: does not belong to a submission"


def _code(folder: Path, record: Submission) -> Iterator[str]:
    path = folder / SCRIPT
    if not path.is_file():
        return
    code = read_bytes(path, MOST_TEXT)
    if len(code) != record.bytes_code:
        yield f"{SCRIPT}: has {len(code):,} bytes, {FILE} counts {record.bytes_code:,}"
    elif sha256(code).hexdigest() != record.code_sha256:
        yield f"{SCRIPT}: is not the file that {FILE} names (sha256)"
    try:
        names = modules_of(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        yield f"{SCRIPT}: is no Python: {error or type(error).__name__}"
        return
    for name in sorted(names):
        if not _is_installed(name):
            yield f"{SCRIPT}: imports {name}, which is not installed here"


def _is_installed(name: str) -> bool:
    """Whether a module of this name is there. Nothing is imported."""
    try:
        return name in sys.builtin_module_names or importlib.util.find_spec(name) is not None
    except ValueError:  # one that is being run, such as __main__
        return True


def _sizes(record: Submission) -> Iterator[str]:
    for seed, found in record.seed_results.items():
        if found.artifact_bytes is None:
            continue
        total = found.artifact_bytes + record.bytes_code
        if total > record.cap_bytes:
            yield f"seed {seed}: {total:,} bytes, over the cap of {record.cap_bytes:,}"
        if total != found.bytes_total:
            yield f"seed {seed}: artifact and code are {total:,} bytes, {FILE} says {found.bytes_total or 0:,}"
    largest = max((found.bytes_total or 0 for found in record.seed_results.values()), default=0)
    if record.bytes_total != largest:
        yield f"bytes_total={record.bytes_total:,}: the largest seed has {largest:,}"


def _seeds(folder: Path, record: Submission) -> Iterator[str]:
    hashes = {found.config_hash for found in record.seed_results.values()} | {record.config_hash}
    if len(hashes) > 1:
        yield f"seeds ran {len(hashes)} different configurations (config_hash)"
    for seed in record.seeds:
        if str(seed) not in record.seed_results:
            yield f"seed {seed}: listed in seeds, and has no result"
        else:
            yield from _log(folder, str(seed), record.seed_results[str(seed)], record.evaluator)


def _log(folder: Path, seed: str, found: SeedResult, evaluator: str) -> Iterator[str]:
    """A seed's log is there and says what submission.json says."""
    if found.log is None:
        yield f"seed {seed}: has no log"
        return
    path = folder / found.log
    if not path.is_file():
        return  # told among the files
    said = last_line(read_text(path))
    if said is None:
        yield f"{found.log}: has no RESULT line; it is not a whole log"
        return
    wanted = {"seed": int(seed), "artifact_bytes": found.artifact_bytes, "steps": found.steps}
    for key, value in wanted.items():
        if said.get(key) != value:
            yield f"{found.log}: {key}={said.get(key)}, {FILE} says {value}"
    scores = said.get("val_bpb")
    if (score := scores.get(evaluator) if isinstance(scores, dict) else None) != found.val_bpb:
        yield f"{found.log}: {evaluator} gave {score} BPB, {FILE} says {found.val_bpb}"


def _means(record: Submission) -> Iterator[str]:
    counted = [record.seed_results[str(seed)] for seed in record.seeds if str(seed) in record.seed_results]
    scores = [found.val_bpb for found in counted if found.val_bpb is not None]
    if scores and abs(sum(scores) / len(scores) - record.val_bpb) > 1e-9:
        yield f"val_bpb={record.val_bpb}: the seeds' mean is {sum(scores) / len(scores)}"
