"""What a run trains and is scored on: `DataConfig.prepare` gives a `Prepared` folder of shards, made once.

    <data_dir>/prepared/<corpus>-<vocab>-<hash12>/    manifest.json, tokenizer.model, train_000000.bin, ...

The hash covers the corpus's content and every setting that shapes the tokens, so a folder never goes stale.
It is made under a temporary name and renamed when done; a lock makes a second process wait, not do it again.
"""

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from os.path import relpath
from pathlib import Path
from typing import Any, ClassVar

from golf.errors import UserError
from golf.files import MOST_TEXT, parse_json, read_bytes
from golf.hashes import sha256_of
from golf.records import Manifest, fits
from golf.rundir import require_writable
from golf.tokens.shards import TokenStream, file_sha256, open_shard
from golf.tokens.tokenizer import ByteCounter, check_symbols

FORMAT = 1  # raise it when the same settings come to give other tokens or another manifest
SPLITS = ("train", "val", "tune")
MAX_VOCAB = 1 << 16  # ids are uint16
MANIFEST = "manifest.json"
UNFINISHED = ".making-"  # begins the name of a folder that is being prepared

Log = Callable[[str], None]


@dataclass(kw_only=True, slots=True)
class Split:
    """One part of the text. documents and bytes (UTF-8, by ByteCounter) are None where nobody counted."""

    shards: list[Path]
    tokens: int
    documents: int | None
    bytes: int | None
    shard_sha256: list[str]

    @property
    def sha256(self) -> str:
        """One name for all the shards, in order."""
        return hashlib.sha256("".join(self.shard_sha256).encode()).hexdigest()


@dataclass(kw_only=True, slots=True)
class Prepared:
    """A prepared folder. `train` is for training, `val` for the score, `tune` (held out too) for choosing."""

    corpus: str
    folder: Path
    tokenizer: Path
    vocab_size: int
    bos_id: int
    splits: dict[str, Split]
    tokenizer_sha256: str
    text_sha256: str | None  # of all documents, in order, joined by blank lines; None where only tokens are known
    settings: dict[str, Any]

    @property
    def digest(self) -> str:
        """sha256 over the tokenizer's and each split's: equal digests, equal tokens and equal byte counts."""
        parts = [self.tokenizer_sha256, *(f"{name}:{self.splits[name].sha256}" for name in SPLITS)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; paths are relative to the folder, so that a data folder can be moved whole."""
        node = asdict(self)
        del node["folder"]
        node["tokenizer"] = relpath(self.tokenizer, self.folder)
        for name, split in self.splits.items():
            node["splits"][name]["shards"] = [relpath(path, self.folder) for path in split.shards]
            node["splits"][name]["sha256"] = split.sha256
        return {**node, "digest": self.digest}

    @classmethod
    def from_dict(cls, node: dict[str, Any], folder: Path) -> "Prepared":
        """What to_dict gave, for a folder that may have moved. KeyError or TypeError for anything else."""
        node = dict(node)
        digest = node.pop("digest")
        splits = {}
        for name in SPLITS:
            fields = dict(node["splits"][name])
            recorded = fields.pop("sha256")
            splits[name] = Split(**{**fields, "shards": [folder / path for path in fields["shards"]]})
            if splits[name].sha256 != recorded:
                raise ValueError(f"the hashes of split {name} contradict each other")
        prepared = cls(**{**node, "folder": folder, "tokenizer": folder / node["tokenizer"], "splits": splits})
        if prepared.digest != digest:
            raise ValueError("the digest contradicts the hashes")
        return prepared

    @classmethod
    def load(cls, folder: Path) -> "Prepared":
        """Read a folder's manifest; UserError where it is missing or damaged."""
        try:
            said = parse_json(read_bytes(folder / MANIFEST, MOST_TEXT))
            if not fits(said, Manifest):
                raise ValueError("is of another shape")
            return cls.from_dict(said, folder)
        except FileNotFoundError:
            raise UserError(
                f"{folder}: has no {MANIFEST}, so it is no prepared data; name one from golf/data.py list"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{folder / MANIFEST}: damaged ({type(error).__name__}: {error}); delete the folder {folder} "
                "and prepare it again"
            ) from None

    def files(self) -> dict[str, list[Path]]:
        """The shards of each split."""
        return {name: split.shards for name, split in self.splits.items()}

    def check(self) -> None:
        """Files are there; headers, sizes and counts agree. Cheap. UserError names the folder to delete."""
        try:
            if not self.tokenizer.is_file():
                raise UserError(f"{self.tokenizer}: the tokenizer is missing")
            for name, split in self.splits.items():
                tokens = sum(len(open_shard(path)) for path in split.shards)
                if tokens != split.tokens:
                    raise UserError(f"{self.folder}: {name} holds {tokens} tokens, the manifest says {split.tokens}")
        except UserError as error:
            raise UserError(f"{error}; delete the folder {self.folder} and prepare it again") from None

    @classmethod
    def of_run(cls, node: Any) -> "Prepared":
        """Load the data that a run began with, and hold every file of it against its hash.

        node: `prepared` of the run's config.json. Raises UserError where other data is there now.
        """
        prepared = cls.load(Path(node["folder"]))
        if prepared.digest != node["digest"]:
            raise UserError(
                f"{prepared.folder}: is not the data that the run began with (its digest differs); start the run anew "
                "with golf/train.py, or put that data back"
            )
        prepared.verify()
        return prepared

    def verify(self) -> None:
        """check(), and every file's sha256: of large ones that nobody has touched, the one that is known.

        Raises UserError for a file that changed, and for a tokenizer whose bytes cannot be counted.
        """
        self.check()
        pairs = [(self.tokenizer, self.tokenizer_sha256)]
        for split in self.splits.values():
            pairs += zip(split.shards, split.shard_sha256, strict=True)
        for path, expected in pairs:
            if sha256_of(path) != expected:
                raise UserError(
                    f"{path}: its bytes changed since it was prepared (sha256 differs); delete the folder "
                    f"{self.folder} and prepare it again"
                )
        check_symbols(self.tokenizer)


def describe_split(shards: list[Path], counter: ByteCounter, bos_id: int) -> Split:
    """Count the documents and bytes of shards just written, and hash them."""
    stream = TokenStream(shards)
    return Split(
        shards=shards,
        tokens=len(stream),
        documents=sum(int((chunk == bos_id).sum()) for chunk in stream.chunks()),
        bytes=counter.total(stream.chunks()),
        shard_sha256=[file_sha256(path) for path in shards],
    )


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Which text, and how many tokens its vocabulary has. Subclasses say where it comes from.

    stock_tokenizer: whether its tokenizer is published with its tokens, so that a submission need not carry it.
    """

    stock_tokenizer: ClassVar[bool] = False
    vocab_size: int

    def __post_init__(self) -> None:
        if not 0 < self.vocab_size <= MAX_VOCAB:
            raise ValueError(f"vocab_size={self.vocab_size} must lie in 1 .. {MAX_VOCAB}: shards hold uint16; try 1024")

    def corpus(self) -> str:
        """Short name of the corpus, part of the folder's name."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """JSON-able: the content (hashes, no paths) and each setting that shapes tokens. Never downloads."""
        raise NotImplementedError

    def build(self, folder: Path, data_dir: Path, log: Log) -> Prepared:
        """Write shards and tokenizer into `folder` (empty) and describe them. Called under the lock."""
        raise NotImplementedError

    def prepare(self, data_dir: Path, log: Log = print) -> Prepared:
        """The prepared data, made now if it is not there. UserError for whatever is wrong with the source.

        Data that is there already is whole, and needs neither a lock nor the right to write.
        """
        found = self.find(data_dir)
        if found is not None:
            return found
        require_writable(data_dir, "data_dir")
        folder = self.folder(data_dir)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(folder.name + ".lock"), log):
            if not folder.exists():
                log(f"preparing {folder}")
                _sweep_unfinished(folder.parent)
                temporary = folder.with_name(UNFINISHED + folder.name)
                shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed: we hold the lock
                temporary.mkdir()
                try:
                    prepared = self.build(temporary, data_dir, log)
                    check_symbols(prepared.tokenizer)
                    self.check_bytes(prepared)
                    (temporary / MANIFEST).write_text(json.dumps(prepared.to_dict(), indent=1) + "\n")
                    temporary.rename(folder)
                except BaseException:
                    shutil.rmtree(temporary, ignore_errors=True)
                    raise
        return self._load(folder)

    def find(self, data_dir: Path) -> Prepared | None:
        """The prepared data if it is there already; downloads and trains nothing."""
        folder = self.folder(data_dir)
        return self._load(folder) if folder.exists() else None

    def _load(self, folder: Path) -> Prepared:
        prepared = Prepared.load(folder)
        prepared.verify()
        self.check_bytes(prepared)
        return prepared

    def check_bytes(self, prepared: Prepared) -> None:
        """Raise UserError where the scored text has not as many bytes as were published of it."""

    def folder(self, data_dir: Path) -> Path:
        """Where these settings are, or would be, prepared."""
        identity = {"format": FORMAT, "vocab_size": self.vocab_size, **self.identity()}
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
        return data_dir / "prepared" / f"{self.corpus()}-{self.vocab_size}-{name}"


def _sweep_unfinished(folder: Path) -> None:
    """Remove what killed processes left half prepared: it has a lock that nobody holds."""
    for left in folder.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError), open(left.with_name(left.name.removeprefix(UNFINISHED) + ".lock")) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _lock(path: Path, log: Log) -> Iterator[None]:
    """Hold an exclusive lock on a file; the system releases it when the process ends, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"another process is preparing {path.stem}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
