import dataclasses
import errno
import fcntl
import json
import multiprocessing
import queue
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from golf.errors import UserError
from golf.tokens.prepare import MANIFEST, Prepared, describe_split
from golf.tokens.shards import open_shard, write_shard
from golf.tokens.tokenizer import ByteCounter
from golf.tokens.verify import verify_prepared
from tests.helpers.tiers import slow
from tests.tokens.helpers import text_config, toy_data


def quiet(message):
    pass


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return toy_data(folder), folder


@pytest.fixture
def prepared(original, tmp_path):
    """A prepared folder of one's own to break."""
    config, data_dir = original
    folder = config.prepare(data_dir, quiet).folder
    return Prepared.load(shutil.copytree(folder, tmp_path / folder.name))


def test_preparing_again_and_finding_give_the_same(original, tmp_path):
    config, data_dir = original
    assert config.find(tmp_path) is None
    assert not list(tmp_path.iterdir())
    first = config.prepare(data_dir, quiet)
    stamp = (first.folder / MANIFEST).stat().st_mtime_ns
    assert config.prepare(data_dir, quiet) == first == config.find(data_dir)
    assert (first.folder / MANIFEST).stat().st_mtime_ns == stamp
    assert sorted(path.name for path in first.folder.iterdir()) == [
        MANIFEST, "tokenizer.model", "train_000000.bin", "tune_000000.bin", "val_000000.bin"
    ]  # fmt: skip


def test_data_that_is_there_needs_no_lock_and_no_right_to_write(original, monkeypatch):
    """A read-only disk, or the files of another user."""
    config, data_dir = original
    made = config.prepare(data_dir, quiet)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("mkdir", "write_text", "write_bytes", "touch", "unlink", "rename"):
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr("golf.tokens.prepare._lock", refuse)
    assert config.prepare(data_dir, quiet) == made


def test_a_folder_that_cannot_be_written_is_named(original, tmp_path):
    config, _ = original
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^data_dir=.*file/data: cannot be written"):
        config.prepare(tmp_path / "file" / "data", quiet)


def test_the_same_text_elsewhere_gives_the_same_digest(original, tmp_path):
    config, data_dir = original
    other = toy_data(tmp_path).prepare(tmp_path, quiet)
    assert other.digest == config.prepare(data_dir, quiet).digest
    assert dataclasses.replace(other, tokenizer_sha256="0").digest != other.digest


def test_a_manifest_round_trips_through_json_and_moves_with_its_folder(prepared, tmp_path):
    node = json.loads(json.dumps(prepared.to_dict()))
    assert Prepared.from_dict(node, prepared.folder) == prepared
    assert str(tmp_path) not in json.dumps(node)
    moved = Prepared.load(prepared.folder.rename(tmp_path / "moved"))
    moved.verify()
    assert moved.digest == prepared.digest and set(moved.splits) == {"train", "val", "tune"}


def test_a_sound_folder_passes_the_deep_check(prepared):
    lines: list[str] = []
    verify_prepared(prepared, lines.append)
    assert [line.split(":")[0] for line in lines] == ["train", "val", "tune"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p.folder / MANIFEST).write_text("{"), "damaged"),
        (lambda p: (p.folder / MANIFEST).write_text("[]"), "damaged"),
        (lambda p: (p.folder / MANIFEST).write_text("{}"), "damaged"),
        (lambda p: edit(p, lambda node: node.update(digest="0")), "the digest contradicts"),
        (lambda p: edit(p, lambda node: node["splits"]["val"].update(sha256="0")), "split val contradict"),
        (lambda p: edit(p, lambda node: node["splits"].pop("tune")), "damaged"),
        (lambda p: edit(p, lambda node: node.update(vocabulary=3)), "damaged"),
        (lambda p: edit(p, lambda node: node["splits"]["val"].update(tokens=5)), "the manifest says 5"),
        (lambda p: p.splits["val"].shards[0].unlink(), "cannot be read"),
        (lambda p: p.splits["val"].shards[0].write_bytes(b"short"), "too few"),
        (lambda p: p.tokenizer.unlink(), "tokenizer is missing"),
    ],
)
def test_damage_is_found_at_once_and_names_the_folder_to_delete(prepared, damage, message):
    damage(prepared)
    with pytest.raises(UserError, match=message) as error:
        Prepared.load(prepared.folder).check()
    assert f"delete the folder {prepared.folder} and prepare it again" in str(error.value)


def edit(prepared, change):
    node = prepared.to_dict()
    change(node)
    (prepared.folder / MANIFEST).write_text(json.dumps(node))


def test_a_folder_without_manifest_is_no_prepared_data(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: has no manifest"):
        Prepared.load(tmp_path)


def test_changed_bytes_pass_the_cheap_check_and_fail_the_hash(prepared):
    path = prepared.splits["val"].shards[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    prepared.check()
    with pytest.raises(UserError, match=r"val_000000\.bin: its bytes changed"):
        prepared.verify()


def reforge(prepared, name, tokens, **changes):
    """Replace a split by other tokens, with hashes and counts that agree: only the meaning is wrong."""
    path = prepared.splits[name].shards[0]
    write_shard(path, np.asarray(tokens, dtype=np.uint16))
    counter = ByteCounter.from_tokenizer(prepared.tokenizer)
    split = dataclasses.replace(describe_split([path], counter, 1), **changes)
    return dataclasses.replace(prepared, splits={**prepared.splits, name: split})


def val_tokens(prepared):
    return open_shard(prepared.splits["val"].shards[0]).tolist()


def test_the_deep_check_finds_a_document_in_two_splits(prepared):
    leaky = reforge(prepared, "tune", val_tokens(prepared))
    with pytest.raises(UserError, match="a document is in val and in tune"):
        verify_prepared(leaky, quiet)


def test_the_deep_check_finds_ids_outside_the_vocabulary(prepared):
    broken = dataclasses.replace(prepared, vocab_size=300)
    with pytest.raises(UserError, match="outside a vocabulary of 300"):
        verify_prepared(broken, quiet)


def test_the_deep_check_finds_bytes_that_are_not_the_texts(prepared):
    miscounted = reforge(prepared, "val", val_tokens(prepared), bytes=prepared.splits["val"].bytes + 1)
    with pytest.raises(UserError, match="bytes by the rule"):
        verify_prepared(miscounted, quiet)
    # half a character: one byte by the rule, three (U+FFFD) in the decoded text
    broken = reforge(prepared, "val", [1, 4 + 0xE2, 300])
    with pytest.raises(UserError, match="in its decoded text"):
        verify_prepared(broken, quiet)


# ---------------------------------------------------------------- several at a time


def _prepare(folder: str, messages) -> None:
    """Send each log line, then the digest."""
    digest = "failed"
    try:
        (text,) = Path(folder).glob("toy-*.jsonl")
        digest = text_config(text).prepare(Path(folder), messages.put).digest
    finally:
        messages.put(digest)


@pytest.fixture(params=["threads", slow("processes")])
def start(request):
    """Start `_prepare` beside this test; gives its queue of messages. A lock keeps out threads as it does processes."""
    context, begun = multiprocessing.get_context("spawn"), []

    def one(folder):
        if request.param == "threads":
            messages, kind = queue.Queue(), threading.Thread
        else:
            messages, kind = context.Queue(), context.Process
        begun.append(kind(target=_prepare, args=(str(folder), messages)))
        begun[-1].start()
        return messages

    yield one
    for worker in begun:
        worker.join()


def until_digest(messages):
    lines = [messages.get(timeout=600)]
    while " " in lines[-1]:
        lines.append(messages.get(timeout=600))
    return lines


def test_two_at_a_time_prepare_once(tmp_path, start):
    toy_data(tmp_path)
    first, second = [until_digest(messages) for messages in [start(tmp_path), start(tmp_path)]]
    assert first[-1] == second[-1]
    assert sum(line.startswith("preparing") for line in first + second) == 1
    verify_prepared(toy_data(tmp_path).find(tmp_path), quiet)


def test_the_second_waits_for_the_lock_and_uses_what_the_first_made(tmp_path, start):
    config = toy_data(tmp_path)
    folder = config.folder(tmp_path)
    folder.parent.mkdir()
    with folder.with_name(folder.name + ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        messages = start(tmp_path)
        assert "another process is preparing" in messages.get(timeout=600)
        assert config.find(tmp_path) is None
        (tmp_path / "first").mkdir()
        made = toy_data(tmp_path / "first").prepare(tmp_path / "first", quiet)
        shutil.copytree(made.folder, folder)
    assert until_digest(messages) == [made.digest]  # no line that says it is preparing


def test_what_a_killed_preparation_left_is_cleared(tmp_path):
    config = toy_data(tmp_path)
    folder = config.folder(tmp_path)
    left = folder.with_name(".making-" + folder.name)
    left.mkdir(parents=True)
    (left / "train_000007.bin").write_bytes(b"half")
    assert config.find(tmp_path) is None
    prepared = config.prepare(tmp_path, quiet)
    assert not left.exists() and len(list(prepared.folder.glob("train_*"))) == 1


def test_only_preparations_that_nobody_is_at_are_cleared(tmp_path):
    folder = toy_data(tmp_path).folder(tmp_path)
    held, left = (folder.with_name(f".making-{name}") for name in ("held", "left"))
    for path in (held, left):
        path.mkdir(parents=True)
        path.with_name(path.name.removeprefix(".making-") + ".lock").touch()
    with open(folder.with_name("held.lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        toy_data(tmp_path).prepare(tmp_path, quiet)
    assert held.exists() and not left.exists()


def test_a_preparation_that_fails_leaves_nothing_behind(tmp_path):
    config = toy_data(tmp_path, documents=30, vocab_size=60000)
    for _ in range(2):
        with pytest.raises(UserError, match=r"data\.vocab_size=60000"):
            config.prepare(tmp_path, quiet)
    assert [path.suffix for path in (tmp_path / "prepared").iterdir()] == [".lock"]
