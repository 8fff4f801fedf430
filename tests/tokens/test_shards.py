import os
import re

import numpy as np
import pytest

from golf.errors import UserError
from golf.tokens.shards import TokenStream, check_ids, open_shard, write_shard, write_shards
from tests.tokens.helpers import toy_shards


def shard_bytes(magic=20240520, version=1, count=3, body=b"\1\0\2\0\3\0"):
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, count
    return header.tobytes() + body


def test_a_shard_has_the_published_layout_and_reads_back(tmp_path):
    path = tmp_path / "a.bin"
    write_shard(path, np.array([1, 2, 65535], dtype=np.uint16))
    assert path.read_bytes() == shard_bytes(body=b"\1\0\2\0\xff\xff")
    assert open_shard(path).tolist() == [1, 2, 65535]
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    with pytest.raises(ValueError, match="read-only"):
        open_shard(path)[0] = 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "too few for a shard's header"),
        (shard_bytes()[:1000], "too few for a shard's header"),
        (shard_bytes(magic=7), "magic number 7"),
        (shard_bytes(version=2), "shard version 2"),
        (shard_bytes(count=0, body=b""), "says 0 tokens"),
        (shard_bytes(count=-3), "says -3 tokens"),
        (shard_bytes(count=4), "truncated: 4 tokens need 1032 bytes, the file has 1030"),
        (shard_bytes(count=2), "has trailing bytes"),
        (shard_bytes() + b"\0", "has trailing bytes"),
    ],
)
def test_each_way_a_shard_is_wrong_says_so(tmp_path, content, message):
    path = tmp_path / "a.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        open_shard(path)
    assert str(path) in str(error.value)


def test_ids_outside_the_vocabulary_are_found(tmp_path):
    path = tmp_path / "a.bin"
    write_shard(path, np.array([1, 511, 512, 2], dtype=np.uint16))
    check_ids(path, 513)
    with pytest.raises(UserError, match="token 2 has id 512, outside a vocabulary of 512"):
        check_ids(path, 512)


def test_ids_over_uint16_are_refused_rather_than_wrapped(tmp_path):
    with pytest.raises(UserError, match="do not fit uint16"):
        write_shard(tmp_path / "a.bin", np.array([1, 65536]))
    assert not list(tmp_path.iterdir())


def test_a_stream_is_cut_into_shards_and_read_back_across_their_borders(tmp_path):
    tokens = np.arange(100, dtype=np.uint16)
    paths = write_shards(tmp_path, "train", np.array_split(tokens, [1, 2, 40, 95]), shard_tokens=30)
    assert [p.name for p in paths] == [f"train_{i:06d}.bin" for i in range(4)]
    assert [len(open_shard(p)) for p in paths] == [30, 30, 30, 10]
    stream = TokenStream(paths)
    assert len(stream) == 100
    for start, stop in [(0, 100), (29, 31), (30, 60), (5, 5), (100, 100), (59, 91)]:
        assert stream.read(start, stop).tolist() == tokens[start:stop].tolist()
    assert np.concatenate(list(stream.chunks(7))).tolist() == tokens.tolist()


def test_documents_begin_at_bos_across_shards(tmp_path):
    stream = TokenStream(toy_shards(tmp_path, [500, 300, 7]))
    tokens = stream.read(0, len(stream))
    bounds = stream.document_bounds(1)
    assert bounds[0] == 0 and bounds[-1] == 807
    assert bounds[:-1].tolist() == np.flatnonzero(tokens == 1).tolist()


def test_tokens_before_the_first_bos_are_a_document(tmp_path):
    write_shard(tmp_path / "a.bin", np.array([5, 6, 1, 7, 1, 8], dtype=np.uint16))
    assert TokenStream([tmp_path / "a.bin"]).document_bounds(1).tolist() == [0, 2, 4, 6]


def test_a_shard_cut_short_while_it_is_read_is_an_error_and_no_signal(tmp_path):
    """A map of it would kill the process with SIGBUS."""
    paths = toy_shards(tmp_path, [500, 300])
    stream = TokenStream(paths)
    os.truncate(paths[1], 1024 + 2 * 100)
    assert len(stream.read(0, 600)) == 600, "what is there is read"
    with pytest.raises(UserError, match=rf"^{re.escape(str(paths[1]))}: was cut short while it was in use"):
        stream.read(550, 601)


def test_ids_outside_the_vocabulary_are_refused_where_they_are_read(tmp_path):
    write_shard(tmp_path / "a.bin", np.array([5, 6, 1, 512, 1, 8], dtype=np.uint16))
    stream = TokenStream([tmp_path / "a.bin"], vocab_size=512)
    assert stream.read(0, 3).tolist() == [5, 6, 1]
    with pytest.raises(UserError, match=r"a\.bin: has id 512, outside a vocabulary of 512"):
        stream.read(2, 4)
