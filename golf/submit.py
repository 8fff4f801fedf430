"""The submission's door: a finished, audited row of runs becomes a record folder.

    python golf/submit.py run=outputs/SWEEP row=ROW track=record name="My idea" reference=outputs/SWEEP:control
    python golf/submit.py run=outputs/single/RUN,outputs/single/OTHER track=non_record name="..."
    python golf/submit.py check=FOLDER                            is a record folder whole and true to itself?
    python golf/submit.py reproduce=FOLDER data=SHARDS            run its code again, in a new environment, offline
    python golf/submit.py archive=outputs/single/RUN              one checksummed file of a run, never overwritten
    python golf/submit.py verify=FILE.tar.xz                      is an archive what its name says?
    python golf/submit.py from_env="SEED=1337 NUM_LAYERS=11 torchrun --nproc_per_node=8 train_gpt.py"

With run=: track=record|non_record, name, author, github_id (else git's user.name), blurb, reference (a published name,
or runs of one's own), ship=packed|plain, into (outputs/submissions); force=true (or --force) writes the folder in spite
of the reasons against it, and them into its README. With reproduce=: seed, packages=install|here, nproc, threads (both
as recorded, unless they are given). It runs the folder's train_gpt.py as you: read a stranger's before.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # it held golf/ itself

from golf.arguments import key_values, one_of, print_help, switched_on
from golf.code_record import git
from golf.door import in_one_line
from golf.errors import UserError
from golf.files import path_of, paths_of
from golf.submission.archive import archive
from golf.submission.archive import verify as verified
from golf.submission.check import faults
from golf.submission.compare import compare
from golf.submission.entry import TRACKS, gather
from golf.submission.folder import Proposal, Said, write_folder
from golf.submission.gate import against, other_than_the_records, refusing
from golf.submission.recipes import from_environment
from golf.submission.reproduce import reproduce
from golf.submission.reproduce import told as told_of

OF_RUN = ("row", "track", "name", "author", "github_id", "blurb", "reference", "ship", "into", "force")
GO_WITH = {
    "run": OF_RUN,
    "check": (),
    "reproduce": ("data", "seed", "packages", "nproc", "threads"),
    "archive": ("into",),
    "verify": (),
    "from_env": ("base",),
}
KEYS = tuple(dict.fromkeys([*GO_WITH, *(key for keys in GO_WITH.values() for key in keys)]))


@in_one_line
def main(arguments: list[str]) -> int:
    """Exit code 0, 1 where it is refused or does not hold, 2 and one line for bad input."""
    if print_help(arguments, __doc__ or ""):
        return 0 if arguments else 2
    given = key_values(["force=true" if word == "--force" else word for word in arguments], KEYS)
    named = [key for key in GO_WITH if key in given]
    if not named:
        raise UserError(f"one of {', '.join(f'{key}=' for key in GO_WITH)} says what is to be done")
    for key, value in given.items():
        if key != named[0] and key not in GO_WITH[named[0]]:
            raise UserError(f"{key}={value}: does not go with {named[0]}=...; leave one of them out")
    return DOORS[named[0]](given)


def submit(given: dict[str, str]) -> int:
    """Gather, pack, weigh, and write the folder, or say why not."""
    track, said = TRACKS[one_of("track", given.get("track", "(none)"), list(TRACKS))], Said(**_said(given))
    forced = switched_on(given, "force")
    entry = gather(paths_of(given["run"]), given.get("row"), given.get("ship", "packed"))
    comparison = compare(entry, given.get("reference"))
    found = against(entry, track, comparison)
    reasons = refusing(found, track)
    packed, largest = entry.packed, entry.max_total_bytes
    print(f"{entry.row.name}: seeds {', '.join(map(str, sorted(entry.results)))}")
    print(
        f"code: {packed.raw_bytes:,} bytes of source, {packed.minified_bytes:,} minified, "
        f"{len(packed.file):,} packed ({packed.coder}); counted: {len(entry.script):,} ({entry.ship})"
    )
    print(f"largest seed: {largest:,} bytes of {min(track.cap_bytes, entry.run.cap_bytes):,}")
    if comparison is not None:
        print(comparison.told())
    for reason in reasons:
        print(f"against it: {reason.told()}")
    if comparison is not None and comparison.own:
        for text in other_than_the_records(entry, track):
            print(f"note: {text}")
    if reasons and not forced:
        print(f"refused, for {len(reasons)} reason{'s' * (len(reasons) > 1)}; force=true writes it all the same")
        return 1
    into = path_of(given.get("into", "outputs/submissions"))
    folder = write_folder(Proposal(entry=entry, track=track, said=said, against=found, comparison=comparison), into)
    print(folder)
    return 0


def _said(given: dict[str, str]) -> dict[str, str]:
    """What a person says of it."""
    if "name" not in given:
        raise UserError('name=(none): say what it is, such as name="SwiGLU on the naive baseline"')
    author = given.get("author") or git("config", "user.name")
    if not author:
        raise UserError("author=(none): name yourself, or set git's user.name")
    return {
        "name": given["name"],
        "author": author,
        "github_id": given.get("github_id", author),
        "blurb": given.get("blurb", given["name"]),
    }


def check(given: dict[str, str]) -> int:
    found = faults(path_of(given["check"]))
    for fault in found:
        print(f"{given['check']}: {fault}")
    print(f"refused, for {len(found)} of these" if found else f"{given['check']}: whole, and true to itself")
    return 1 if found else 0


def repeat(given: dict[str, str]) -> int:
    numbers = {key: _whole(key, given[key]) for key in ("seed", "nproc", "threads") if key in given}
    if "data" not in given:
        raise UserError("data=(none): name a folder of token shards, such as data/prepared/NAME")
    print(f"running {given['reproduce']}/train_gpt.py, which is the folder's own code", file=sys.stderr)
    found = reproduce(
        path_of(given["reproduce"]),
        path_of(given["data"]),
        numbers.get("seed"),
        given.get("packages", "install"),
        numbers.get("nproc"),
        numbers.get("threads"),
    )
    print(told_of(found))
    return 0 if found.near else 1


def _whole(key: str, value: str) -> int:
    if not value.isdigit():
        raise UserError(f"{key}={value}: a whole number")
    return int(value)


def keep(given: dict[str, str]) -> int:
    print(archive(path_of(given["archive"]), path_of(given.get("into", "outputs/archives"))))
    return 0


def verify(given: dict[str, str]) -> int:
    print(f"{given['verify']}: {verified(path_of(given['verify']))} files, all as they were")
    return 0


def translate(given: dict[str, str]) -> int:
    found = from_environment(given["from_env"], given.get("base"))
    print(" ".join(found.overrides))
    for name in found.unknown:
        print(f"golf: no override is known for {name}", file=sys.stderr)
    return 1 if found.unknown else 0


DOORS = {"run": submit, "check": check, "reproduce": repeat, "archive": keep, "verify": verify, "from_env": translate}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
