import json

import numpy as np
import pytest
import torch

from golf.errors import UserError
from golf.tokens.loader import PackedConfig, SequentialConfig, ShuffledConfig
from golf.tokens.shards import TokenStream
from tests.tokens.helpers import toy_shards

KINDS = [SequentialConfig, ShuffledConfig, PackedConfig]
SIZES = [700, 1, 300, 1003]
TOKENS = sum(SIZES)


@pytest.fixture
def shards(tmp_path):
    return toy_shards(tmp_path, SIZES)


@pytest.fixture
def open_loader(shards):
    """Loaders over the toy shards, closed after the test."""
    opened = []

    def make(kind, *, seed=3, rank=0, world=1, prefetch=True):
        loader = kind(prefetch=prefetch).open(TokenStream(shards), bos_id=1, seed=seed, rank=rank, world=world)
        opened.append(loader)
        return loader

    yield make
    for loader in opened:
        loader.close()


def equal(a, b):
    return all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


def all_tokens(shards):
    return TokenStream(shards).read(0, TOKENS).astype(np.int64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefetch", [True, False])
def test_shapes_types_and_shift(open_loader, kind, prefetch):
    loader = open_loader(kind, prefetch=prefetch)
    for _ in range(5):
        x_BT, y_BT = loader.batch(3, 16)
        assert x_BT.shape == y_BT.shape == (3, 16)
        assert x_BT.dtype == y_BT.dtype == torch.int64
        assert torch.equal(x_BT[:, 1:], y_BT[:, :-1])
        x_BT.zero_()
        assert y_BT.any()  # no shared memory


@pytest.mark.parametrize("kind", KINDS)
def test_prefetch_changes_nothing(open_loader, kind):
    plain, ahead = open_loader(kind, prefetch=False), open_loader(kind, prefetch=True)
    for shape in [(3, 16)] * 20 + [(5, 8)] * 3 + [(3, 16)] * 60:
        assert plain.state() == ahead.state()
        assert equal(plain.batch(*shape), ahead.batch(*shape))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batches", [0, 1, 7, 41, 90])
def test_resume_continues_bitwise(open_loader, kind, batches):
    first = open_loader(kind)
    for _ in range(batches):
        first.batch(4, 16)
    state = json.loads(json.dumps(first.state()))
    second = open_loader(kind)
    second.batch(2, 8)  # wherever it stands, and whatever it has fetched ahead
    second.seek(state)
    assert second.state() == state
    for _ in range(45):
        assert equal(first.batch(4, 16), second.batch(4, 16))
        assert first.state() == second.state()


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_shape_equals_a_fresh_loader_at_that_position(open_loader, kind):
    loader = open_loader(kind)
    for shape in [(4, 16), (4, 16), (4, 16), (2, 50), (2, 50), (7, 3), (1, 400), (4, 16)]:
        fresh = open_loader(kind, prefetch=False)
        fresh.seek(loader.state())
        assert equal(loader.batch(*shape), fresh.batch(*shape))
        assert loader.state() == fresh.state()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_together_hold_the_rows_of_one_process(open_loader, kind, world):
    single = open_loader(kind)
    ranks = [open_loader(kind, rank=rank, world=world) for rank in range(world)]
    for shape in [(8, 16)] * 25 + [(3, 40)]:
        x_BT, y_BT = single.batch(*shape)
        parts = [loader.batch(*shape) for loader in ranks]
        assert torch.equal(torch.cat([x for x, _ in parts]), x_BT)
        assert torch.equal(torch.cat([y for _, y in parts]), y_BT)
        assert [len(x) for x, _ in parts] == [
            (rank + 1) * shape[0] // world - rank * shape[0] // world for rank in range(world)
        ]
        assert {tuple(loader.state().items()) for loader in ranks} == {tuple(single.state().items())}


# ---------------------------------------------------------------- sequential


def test_sequential_reads_the_stream_in_order_and_wraps(open_loader, shards):
    loader, endless = open_loader(SequentialConfig), np.tile(all_tokens(shards), 4)
    position = 0
    for _ in range(60):
        x_BT, y_BT = loader.batch(5, 20)
        assert x_BT.flatten().tolist() == endless[position : position + 100].tolist()
        assert y_BT.flatten().tolist() == endless[position + 1 : position + 101].tolist()
        position += 100
        assert loader.state() == {"position": position}


def test_sequential_wraps_within_a_batch_larger_than_the_split(open_loader, shards):
    x_BT, _ = open_loader(SequentialConfig).batch(3, TOKENS - 1)
    assert x_BT.flatten().tolist() == np.tile(all_tokens(shards), 3)[: 3 * (TOKENS - 1)].tolist()


# ---------------------------------------------------------------- shuffled


def epoch_starts(loader, tokens, length, epochs):
    """The stream position of each window, read from the (unique enough) tokens, epoch by epoch."""
    where = {tuple(tokens[i : i + length]): i for i in range(len(tokens) - length)}
    starts = [[] for _ in range(epochs)]
    while (loader.state()["epoch"]) < epochs - 1 or loader.state()["tokens"] + length <= TOKENS - length:
        x_BT, y_BT = loader.batch(1, length)
        start = where[tuple(x_BT[0].tolist())]
        assert y_BT[0].tolist() == tokens[start + 1 : start + length + 1].tolist()
        starts[loader.state()["epoch"]].append(start)
    return starts


def test_shuffled_windows_do_not_overlap_and_change_each_epoch(open_loader, shards):
    tokens = all_tokens(shards)
    first, second, _ = epoch_starts(open_loader(ShuffledConfig), tokens, 16, 3)
    for starts in (first, second):
        phase = min(starts)
        assert phase < 16
        assert sorted(starts) == list(range(phase, TOKENS - 16, 16))
        assert starts != sorted(starts)
    assert first != second and min(first) != min(second)
    assert open_loader(ShuffledConfig, seed=4).batch(1, 16)[0].tolist() != [tokens[first[0] : first[0] + 16].tolist()]


def test_shuffled_order_ignores_torchs_and_numpys_global_seeds(open_loader):
    batches = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        batches.append(open_loader(ShuffledConfig).batch(4, 16))
    assert equal(*batches)


def test_shuffled_batches_straddle_epochs_without_loss(open_loader):
    """Whatever the batch size, the windows are the same sequence."""
    one, seven = open_loader(ShuffledConfig), open_loader(ShuffledConfig)
    ones = torch.cat([one.batch(1, 16)[0] for _ in range(70 * 7)])
    sevens = torch.cat([seven.batch(7, 16)[0] for _ in range(70)])
    assert one.state()["epoch"] >= 3 and torch.equal(ones, sevens)


def test_a_longer_row_keeps_the_place_in_the_epoch(open_loader):
    loader = open_loader(ShuffledConfig)
    for _ in range(10):
        loader.batch(4, 16)
    assert loader.state() == {"epoch": 0, "tokens": 640}
    loader.batch(1, 100)
    assert loader.state() == {
        "epoch": 0,
        "tokens": 800,
    }  # 640 rounded up to whole windows of 100, and one more


# ---------------------------------------------------------------- packed


def split_documents(tokens):
    starts = np.flatnonzero(tokens == 1)
    assert starts[0] == 0
    return [tuple(part.tolist()) for part in np.split(tokens, starts[1:])]


def test_packed_holds_each_whole_document_once_an_epoch_in_a_new_order(open_loader, shards):
    documents = split_documents(all_tokens(shards))
    loader = open_loader(PackedConfig)
    stream = np.concatenate([loader.batch(1, TOKENS // 4)[0][0].numpy() for _ in range(12)])
    epochs = [split_documents(stream[i * TOKENS : (i + 1) * TOKENS]) for i in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(documents)
    assert epochs[0] != documents and epochs[0] != epochs[1]
    other = open_loader(PackedConfig, seed=4).batch(1, TOKENS - 1)[0][0].numpy()
    assert other.tolist() != stream[: TOKENS - 1].tolist()


def test_packed_targets_are_every_token_once(open_loader):
    loader = open_loader(PackedConfig)
    rows = [loader.batch(3, 10) for _ in range(100)]
    x, y = (torch.cat([pair[i].flatten() for pair in rows]) for i in (0, 1))
    assert torch.equal(x[1:], y[:-1])


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("prefetch", [True, False])
@pytest.mark.parametrize(
    ("kind", "fits", "too_large"),
    [
        (SequentialConfig, (9, TOKENS - 1), (1, TOKENS)),
        (ShuffledConfig, (124, 16), (125, 16)),
        (PackedConfig, (1, TOKENS - 1), (1, TOKENS)),
    ],
)
def test_too_little_data_names_sizes_and_the_fix(open_loader, kind, fits, too_large, prefetch):
    loader = open_loader(kind, prefetch=prefetch)
    loader.batch(*fits)
    before = loader.state()
    with pytest.raises(UserError, match=f"but the split has {TOKENS}; lower batch.tokens_per_step"):
        loader.batch(*too_large)
    assert loader.state() == before
    assert loader.batch(2, 8)[0].shape == (2, 8)  # and it goes on


def test_shuffled_fits_the_largest_batch_at_every_phase(open_loader):
    for seed in range(40):
        open_loader(ShuffledConfig, seed=seed, prefetch=False).batch((TOKENS - 100) // 100, 100)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_the_thread_surface_in_batch_and_do_not_stick(open_loader, kind, monkeypatch):
    loader, twin = open_loader(kind), open_loader(kind)
    expected = [twin.batch(2, 8) for _ in range(3)]
    assert equal(loader.batch(2, 8), expected[0])
    assert equal(loader.batch(2, 8), expected[1])
    loader._ahead[1].result()
    state = loader.state()
    with monkeypatch.context() as patch:
        patch.setattr(loader, "_rows", lambda *a: (_ for _ in ()).throw(OSError("disk gone")))
        loader.seek(state)
        with pytest.raises(OSError, match="disk gone"):
            loader.batch(2, 8)
    assert loader.state() == state
    assert equal(loader.batch(2, 8), expected[2])


@pytest.mark.parametrize("state", [{}, {"position": -1}, {"position": "3"}, {"place": 3}, {"position": 1, "epoch": 0}])
def test_states_of_another_kind_are_refused(open_loader, state):
    with pytest.raises(UserError, match="not of SequentialLoader, whose states have position"):
        open_loader(SequentialConfig).seek(state)


def test_a_closed_loader_hands_out_nothing_and_may_be_closed_twice(open_loader):
    loader = open_loader(SequentialConfig)
    loader.batch(2, 8)
    loader.close()
    loader.close()
    with pytest.raises(RuntimeError):
        loader.batch(3, 8)
