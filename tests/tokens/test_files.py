"""Which files of a folder are text of the corpus, and how odd ones are told."""

import codecs
import os
import random
from pathlib import Path

import pytest
from sentencepiece import sentencepiece_model_pb2

from golf.errors import UserError
from golf.tokens.corpora import TextConfig, separating
from golf.tokens.files import is_draft, text_files
from golf.tokens.tokenizer import SPACE, ByteCounter, train_tokenizer
from golf.tokens.verify import verify_prepared
from tests.tokens.helpers import text_config


def read(config: TextConfig, lines: list[str]) -> list[str]:
    return list(config.documents(Path("none"), lines.append))


def test_linked_folders_are_searched_once_and_loops_end(tmp_path: Path) -> None:
    (tmp_path / "corpus" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.txt").write_text("far")
    (tmp_path / "corpus" / "near.txt").write_text("near")
    (tmp_path / "corpus" / "far").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus" / "sub" / "loop").symlink_to(tmp_path / "corpus")
    (tmp_path / "corpus" / "sub" / "linked.txt").symlink_to(tmp_path / "corpus" / "near.txt")
    (tmp_path / "corpus" / "sub" / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "corpus" / "sub" / "self").symlink_to(tmp_path / "corpus" / "sub" / "self")
    os.mkfifo(tmp_path / "corpus" / "pipe.txt")
    found = text_files(str(tmp_path / "corpus"))
    assert [path.name for path in found.files] == ["far.txt", "near.txt"]
    assert found.left_out == {
        "links to a folder that is searched already": 2,
        "linked twice": 1,
        "broken links and special files": 3,
    }


def test_hidden_files_drafts_and_other_kinds_are_left_out_and_said(tmp_path: Path) -> None:
    for name in (".ipynb_checkpoints/a-checkpoint.txt", ".git/x.txt", "a.txt", ".hidden.txt", "a.txt~", "b.bak.txt",
                 "c.txt.swp", "#d.txt#", "~$e.txt", "f~.jsonl", "notes.md"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("one" if name == "a.txt" else "draft")
    lines: list[str] = []
    assert read(text_config(tmp_path), lines) == ["one"]
    said = "6 drafts (~, .bak, .swp and the like), 1 hidden, 2 hidden folders, 1 of another kind"
    assert lines == [f"1 files of text; left out: {said}"]
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match=r"no \.txt or .* file there \(left out: 6 drafts .*\); name a file"):
        text_files(str(tmp_path))


def test_names_of_drafts() -> None:
    drafts = ["a.txt~", "a~.txt", "a.bak.txt", "a.txt.bak", "a.txt.orig", "#a.txt#", "~lock.txt", "a.jsonl.zst~"]
    assert all(is_draft(Path(name)) for name in drafts)
    assert not any(is_draft(Path(name)) for name in ["a.txt", "bak.txt", "a~b.txt", "notes.swpfile.txt", "a.jsonl.zst"])


def test_a_glob_and_a_file_that_is_named_are_taken_at_their_word(tmp_path: Path) -> None:
    (tmp_path / ".mine.txt").write_text("hidden, and named")
    (tmp_path / "a.txt").write_text("a")
    assert text_files(str(tmp_path / ".mine.txt")).files == [tmp_path / ".mine.txt"]
    assert text_files(str(tmp_path / "*.txt")).files == [tmp_path / "a.txt"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["unix", "windows", "old mac"])
@pytest.mark.parametrize("separator", ["\n\n", "\\n\\n", "\n---\n", "\\n---\\n"], ids=repr)
def test_a_separator_is_as_documented_and_matches_line_ends_of_every_system(separator: str, end: str) -> None:
    text = f"one{end}more{end}{end}two{end}---{end}three"
    parts = [part.strip() for part in separating(separator).split(text)]
    blank = "---" not in separator
    whole = [f"one{end}more", f"two{end}---{end}three"] if blank else [f"one{end}more{end}{end}two", "three"]
    assert parts == whole


def test_other_separators_are_taken_letter_for_letter() -> None:
    assert separating("\\t").split("a\tb") == ["a", "b"]
    assert separating("\\\\n").split("a\\nb\nc") == ["a", "b\nc"]
    assert separating(".*|").split("a.*|b") == ["a", "b"]


def test_both_spellings_of_a_separator_name_one_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    one, other, none = (text_config(tmp_path, separator=cut).folder(tmp_path) for cut in ("\n\n", "\\n\\n", None))
    assert one == other != none


ODD = {
    "UTF-16": ("a text".encode("utf-16"), "not UTF-8 \\(UTF-16\\); convert it first"),
    "latin-1": ("café".encode("latin-1"), "not UTF-8 .*; convert it first"),
    "binary": (bytes(range(256)), "not UTF-8"),
}


@pytest.mark.parametrize("case", ODD)
def test_a_file_that_is_no_text_is_named(case: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(ODD[case][0])
    with pytest.raises(UserError, match=rf"a\.txt: {ODD[case][1]}"):
        read(text_config(tmp_path), [])


@pytest.mark.parametrize("blob", [b"", b" \n\t\r\n", b"\0\0", codecs.BOM_UTF8], ids=["empty", "blank", "NUL", "mark"])
def test_files_without_text_are_no_documents(blob: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(blob)
    with pytest.raises(UserError, match="there is no text in it, but white space at most"):
        text_config(tmp_path).prepare(tmp_path, lambda line: None)


SCRIPTS = {
    "DNA": ("ACGT", 1500),
    "Han": ("的一是不了人我在有他这为之大来以个中上们，。", 200),
    "base64": ("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", 800),
    "emoji": ("😀😂🤣👍🏽", 100),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_text_without_spaces_can_be_prepared(script: str, tmp_path: Path) -> None:
    """And what it has as bytes is what its tokens decode to."""
    letters, length = SCRIPTS[script]
    for index in range(24):
        (tmp_path / f"{index}.txt").write_text("".join(random.Random(index).choices(letters, k=length)))
    prepared = text_config(tmp_path, vocab_size=330, val_one_in=4, tune_one_in=4).prepare(tmp_path, lambda line: None)
    verify_prepared(prepared)
    assert prepared.splits["val"].tokens > 0


def test_text_with_spaces_gets_the_tokenizer_that_it_always_had(tmp_path: Path) -> None:
    """Its bytes name the data: the settings for text without spaces are no part of it."""
    train_tokenizer(["hello world foo bar " * 4], 280, tmp_path / "words.model")
    train_tokenizer(["ACGTTGCAAC" * 40], 268, tmp_path / "letters.model")
    required = {}
    for name in ("words", "letters"):
        ByteCounter.from_tokenizer(tmp_path / f"{name}.model")
        model = sentencepiece_model_pb2.ModelProto.FromString((tmp_path / f"{name}.model").read_bytes())
        required[name] = model.trainer_spec.required_chars
    assert required == {"words": "", "letters": SPACE}
