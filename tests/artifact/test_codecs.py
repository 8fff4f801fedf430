"""Every codec in conf/ gives back what it was given; the entropy coder is measured against the entropy."""

import hashlib
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from golf.artifact import groups, rans
from golf.artifact.codecs import CODERS, BytesConfig, CodecConfig
from golf.artifact.entropy import EntropyConfig, lanes_for
from golf.artifact.groups import groups_of, symbols_of
from golf.artifact.sections import Section
from golf.conf_files import load_part
from golf.errors import UserError
from tests.helpers import quant
from tests.helpers.tiers import slow, wide

CODECS: dict[str, CodecConfig] = {name: load_part(f"codec/{name}") for name in quant.CODECS}
TYPES = [torch.int8, torch.float16, torch.float32, torch.bfloat16]
FAST_CODECS = {  # the least level writes streams that are read in the same way
    name: replace(codec, level=1) if isinstance(codec, BytesConfig) else codec for name, codec in CODECS.items()
}
every_fast_codec = pytest.mark.parametrize("codec", FAST_CODECS.values(), ids=list(FAST_CODECS))
every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))


def sections_of(values: list[Tensor]) -> list[Section]:
    names = (f"blocks.{index // 2}.w{index % 2}/part" for index in range(len(values)))
    return [Section(name, value.dtype, tuple(value.shape)) for name, value in zip(names, values, strict=True)]


@st.composite
def tensors(draw: Any) -> list[Tensor]:
    """Some tensors of every type: empty, constant, two values, extremes, any bytes."""
    values = []
    for _ in range(draw(st.integers(0, 5))):
        dtype = draw(st.sampled_from(TYPES))
        shape = draw(st.lists(st.integers(0, 9), max_size=3))
        size = int(np.prod(shape, dtype=int)) * dtype.itemsize
        alphabet = draw(st.sampled_from([[0], [1, 255], [127, 128, 0], list(range(256))]))
        raw = draw(st.lists(st.sampled_from(alphabet), min_size=size, max_size=size))
        values.append(torch.tensor(raw, dtype=torch.uint8).view(dtype).view(shape))
    return values


def bits(value: Tensor) -> list[int]:
    return value.flatten().view(torch.uint8).tolist()


@every_fast_codec
@given(values=tensors())
def test_codecs_are_lossless_and_repeat_themselves(codec: CodecConfig, values: list[Tensor]) -> None:
    sections = sections_of(values)
    coded = codec.encode(values, sections)
    assert coded == codec.encode(values, sections)
    found = codec.decode(coded, sections)
    assert [(v.dtype, v.shape, bits(v)) for v in found] == [(v.dtype, v.shape, bits(v)) for v in values]


small_matrices = patch.multiple(groups, FEWEST_ROWS=16, FEWEST_COLUMNS=8)  # numbers go by rows and columns from there


def assert_damage_is_refused_or_read_as_declared(codec: CodecConfig, data: Any, rows: int, columns: int) -> None:
    values = [torch.arange(-60, 60, dtype=torch.int8).view(12, 10), torch.linspace(0, 1, 9).half()]
    values.append(torch.linspace(-1, 1, rows * columns).half().view(rows, columns))
    sections = sections_of(values)
    coded = bytearray(codec.encode(values, sections))
    for _ in range(data.draw(st.integers(1, 4))):
        coded[data.draw(st.integers(0, len(coded) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(coded)))
    for damaged in (bytes(coded), bytes(coded[:cut]), bytes(coded) + b"\0"):
        try:
            found = codec.decode(damaged, sections)
        except ValueError:
            continue
        assert [(v.dtype, tuple(v.shape)) for v in found] == [section[1:] for section in sections]


@every_fast_codec
@given(data=st.data())
def test_damaged_streams_are_refused_or_read_as_declared(codec: CodecConfig, data: Any) -> None:
    with small_matrices:
        assert_damage_is_refused_or_read_as_declared(codec, data, 32, 8)


@pytest.mark.slow
@every_codec
@given(data=st.data())
def test_damaged_streams_of_large_matrices_are_refused_or_read_as_declared(codec: CodecConfig, data: Any) -> None:
    assert_damage_is_refused_or_read_as_declared(codec, data, 256, 64)


@every_codec
def test_other_sections_than_those_written_are_refused(codec: CodecConfig) -> None:
    values = [torch.arange(100, dtype=torch.int8).view(10, 10)]
    coded = codec.encode(values, sections_of(values))
    for shape in ((10, 9), (11, 10)):
        with pytest.raises(ValueError):
            codec.decode(coded, [Section("w/codes", torch.int8, shape)])


@pytest.mark.parametrize("rows, columns", [(512, 32), slow(5000, 1000)])
@every_codec
def test_a_bomb_does_not_unpack(codec: CodecConfig, rows: int, columns: int) -> None:
    values = [torch.zeros(rows, columns, dtype=torch.int8)]
    with pytest.raises(ValueError):
        codec.decode(codec.encode(values, sections_of(values)), [Section("w/codes", torch.int8, (10,))])


@pytest.mark.parametrize("size", [65_536, slow(10_000_000)])
@pytest.mark.parametrize("name", list(CODERS))
def test_a_coder_stops_where_it_was_told(name: str, size: int) -> None:
    """Megabytes of zeros are not unpacked for somebody who asked for ten bytes."""
    bomb = CODERS[name].squeeze(bytes(size), CODERS[name].top_level)
    assert len(CODERS[name].expand(bomb, 10)) <= 11


def test_a_missing_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"codec=zstd: .*codec=zlib"):
        BytesConfig(coder="zstd", level=3, shuffle=False).check()


def test_shuffled_bytes_pack_better() -> None:
    scales = [torch.linspace(0.1, 0.2, 4096).half()]
    plain, shuffled = (
        len(BytesConfig(coder="zlib", level=9, shuffle=shuffle).encode(scales, sections_of(scales)))
        for shuffle in (False, True)
    )
    assert shuffled < 0.9 * plain


# ---------------------------------------------------------------- the entropy coder


def gaussian_codes(layers: int, k: float, limit: int, spread_I: Tensor | float = 1.0, size: int = 256) -> list[Tensor]:
    """Rows on the grid of SDClip: a step of k standard deviations over limit."""
    generator = torch.Generator().manual_seed(0)
    w_LOI = torch.randn(layers, size, size, generator=generator) * spread_I
    step_LO1 = k * w_LOI.std(dim=2, keepdim=True) / limit
    return list((w_LOI / step_LO1).round().clamp(-limit, limit).to(torch.int8))


def entropy(values: list[Tensor]) -> float:
    """Bits per symbol, order 0."""
    count = torch.bincount(torch.stack(values).flatten().long() + 128).double()
    share = count[count > 0] / count.sum()
    return -(share * share.log2()).sum().item()


def bits_a_symbol(values: list[Tensor]) -> float:
    coded = EntropyConfig().encode(values, sections_of(values))
    return 8 * len(coded) / sum(value.numel() for value in values)


def test_noise_costs_its_entropy_and_the_states_of_the_lanes() -> None:
    values = gaussian_codes(4, 12.85, 31, size=128)
    states = 8 * rans.STATE_BYTES * lanes_for(groups_of(sections_of(values))) / 65_536
    found, least = bits_a_symbol(values), entropy(values)
    assert least <= found + 1e-3 and found - states < 1.002 * least


def test_lanes_are_as_many_as_symbols_pay_for() -> None:
    """A lane for 2**14 symbols, within bounds: its state costs five bytes."""
    rows = (1, 2**18, 2**19, 100 * 2**14, 2**27)
    assert [lanes_for([groups.Group([0], True, count, 1, 1)]) for count in rows] == [16, 16, 32, 100, 2048]
    assert lanes_for([groups.Group([0], False, 2**14, 10, 4), groups.Group([1], True, 2**14, 2, 1)]) == 42


@pytest.mark.parametrize("k,limit", [slow(12.85, 31), wide(20, 127), wide(11.5, 31), wide(14, 31), wide(14, 63)])
def test_noise_costs_its_entropy(k: float, limit: int) -> None:
    values = gaussian_codes(8, k, limit)
    assert entropy(values) <= bits_a_symbol(values) + 1e-3 and bits_a_symbol(values) < 1.002 * entropy(values)


@pytest.mark.parametrize("layers, rows, columns", [(4, 64, 256), slow(4, 256, 256)])
def test_rows_of_unlike_sizes_cost_less_than_the_entropy(layers: int, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(1)
    by_row = [
        (torch.randn(rows, columns, generator=generator) * 6 * torch.rand(rows, 1, generator=generator))
        .round()
        .to(torch.int8)
        for _ in range(layers)
    ]
    assert bits_a_symbol(by_row) < 0.93 * entropy(by_row)


@pytest.mark.parametrize("layers, size", [(8, 64), slow(4, 256)])
def test_columns_of_unlike_sizes_cost_less_than_the_entropy(layers: int, size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    by_column = gaussian_codes(layers, 12.85, 31, torch.exp(0.5 * torch.randn(size, generator=generator)), size)
    assert bits_a_symbol(by_column) < 0.97 * entropy(by_column)


def test_like_tensors_of_all_layers_are_one_group() -> None:
    names = ("blocks.0.q.w/codes", "blocks.0.q.w/scale", "blocks.11.q.w/codes", "blocks.11.q.w/scale", "head.w/scale")
    types = (torch.int8, torch.float16, torch.int8, torch.float16, torch.float16)
    sections = [Section(n, t, (4, 6) if t == torch.int8 else (4,)) for n, t in zip(names, types, strict=True)]
    assert [group.members for group in groups_of(sections)] == [[1, 3, 4], [0, 2]], "steps before codes"


def test_rows_of_like_steps_are_told_from_their_mean() -> None:
    """Embeddings of tokens that are never seen: one vector and a little noise, among rows that have nothing in common;
    their steps show which they are."""
    generator = torch.Generator().manual_seed(0)
    rare = torch.arange(320) % 2 == 0
    common = torch.randn(64, generator=generator) * 8
    noisy = common + torch.randn(320, 64, generator=generator)
    codes = torch.where(rare[:, None], noisy, torch.randn(320, 64, generator=generator) * 8).round().clamp(-31, 31)
    sections = [Section("w/codes", torch.int8, (320, 64)), Section("w/scale", torch.float16, (320,))]
    told, untold = (
        len(EntropyConfig().encode([codes.to(torch.int8), steps.half()], sections))
        for steps in (torch.where(rare, 0.01, 0.2), torch.full((320,), 0.2))
    )
    assert told < 0.85 * untold


def test_numbers_are_told_from_those_before_them() -> None:
    """Stretches of numbers whose sizes differ, and long runs of one number."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(256, 64, generator=generator) * 2.0 ** torch.randint(-8, 4, (256, 1), generator=generator)
    flat = rows.flatten().half()
    mixed = flat[torch.randperm(flat.numel(), generator=generator)]
    in_rows, in_any_order = (len(EntropyConfig().encode([w], sections_of([w]))) for w in (flat, mixed))
    assert in_rows < 0.96 * in_any_order
    assert len(EntropyConfig().encode([torch.ones(4096).half()], [Section("w/value", torch.float16, (4096,))])) < 400


def assert_matrices_are_told_from_rows_and_columns(dtype: torch.dtype, rows: int, columns: int = 64) -> None:
    """Rows of like size, and rows that are copies of one and a little noise, each against the same in any order."""
    generator = torch.Generator().manual_seed(0)
    sizes = 2.0 ** torch.randint(-8, 4, (rows, 1), generator=generator)
    noise, common = torch.randn(rows, columns, generator=generator), torch.randn(columns, generator=generator)
    copies = torch.where(sizes < 0.1, common + 0.02 * noise, noise * 4)
    for w in (noise * sizes, copies):
        mixed = w.flatten()[torch.randperm(w.numel(), generator=generator)].view(w.shape)
        in_order, in_any_order = (
            len(EntropyConfig().encode([v.to(dtype)], [Section("w/value", dtype, (rows, columns))])) for v in (w, mixed)
        )
        assert in_order < in_any_order - w.numel() / 16, "half a bit a number"


def test_small_matrices_of_numbers_are_told_from_rows_and_columns() -> None:
    with small_matrices:
        assert_matrices_are_told_from_rows_and_columns(torch.float16, 128)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_matrices_of_numbers_are_told_from_rows_and_columns(dtype: torch.dtype) -> None:
    assert_matrices_are_told_from_rows_and_columns(dtype, 512)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_last_byte_of_a_number_tells_its_size(dtype: torch.dtype) -> None:
    """Sign, the lower five bits of the exponent, the upper two of the mantissa: numbers such as weights have."""
    exponents, quarters = torch.meshgrid(torch.arange(-12, 8), torch.arange(4), indexing="ij")
    values = (torch.tensor([1.0, -1.0])[:, None, None] * 2.0**exponents * (1 + quarters / 4)).flatten().to(dtype)
    section = Section("w/value", dtype, (len(values),))
    last = symbols_of(groups_of([section])[0], [section], {0: values})[:, -1]
    bias = 15 if dtype == torch.float16 else 127
    expected = torch.stack([sign * 128 + ((exponents + bias) % 32) * 4 + quarters for sign in (0, 1)])
    assert last.tolist() == expected.flatten().tolist()


def matrix_of_any_bytes(rows: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Section]:
    """Infinities, nans and numbers that are none included; every third row is the same."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (rows, columns * dtype.itemsize), dtype=torch.uint8, generator=generator)
    raw[::3] = raw[0]
    return raw, Section("w/value", dtype, (rows, columns))


def assert_comes_back_by_rows_and_columns(raw: Tensor, section: Section) -> None:
    (group,) = groups_of([section])
    assert (group.rows, group.columns, group.width) == (*section.shape, section.dtype.itemsize)
    (found,) = EntropyConfig().decode(EntropyConfig().encode([raw.view(section.dtype)], [section]), [section])
    assert bits(found) == raw.flatten().tolist()


ANY_TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.int16, torch.uint8]


@pytest.mark.parametrize("dtype", ANY_TYPES, ids=str)
def test_small_matrices_of_any_bytes_come_back(dtype: torch.dtype) -> None:
    (group,) = groups_of([Section("w/value", dtype, (300, 70))])
    assert (group.rows, group.columns, group.width) == (300, 70, dtype.itemsize)
    with small_matrices:
        assert_comes_back_by_rows_and_columns(*matrix_of_any_bytes(50, 14, dtype))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ANY_TYPES, ids=str)
def test_matrices_of_any_bytes_come_back(dtype: torch.dtype) -> None:
    assert_comes_back_by_rows_and_columns(*matrix_of_any_bytes(300, 70, dtype))


def test_the_stream_is_the_same_everywhere() -> None:
    """Integers and decimals only: bytes noted once hold on every machine and version."""
    codes = ((torch.arange(4000) * 7919 % 1009 - 500) // 60).to(torch.int8).view(40, 100)
    matrix = ((torch.arange(300 * 64) * 7919 % 1009 - 500) / 64).half().view(300, 64)
    values = [codes, (torch.arange(40) / 64 + 1).half(), matrix]
    coded = EntropyConfig().encode(values, sections_of(values))
    assert hashlib.sha256(coded).hexdigest()[:16] == "78bb7a9c67cabd72"


def test_lanes_of_any_length_come_back() -> None:
    rng = np.random.default_rng(0)
    share = np.array([1, 5, 2**rans.PRECISION - 6])
    before = share.cumsum() - share
    symbols = [rng.integers(0, 3, size) for size in (7, 1, 3, 7, 0, 5)]
    coded = rans.encode([(share[s], before[s]) for s in symbols], lanes=7)
    decoder = rans.Decoder(coded, lanes=7)
    for expected in symbols:
        slots = decoder.slots(len(expected))
        found = np.searchsorted(before, slots, side="right") - 1
        decoder.advance(slots, share[found], before[found])
        assert found.tolist() == expected.tolist()
    decoder.finish()
    with pytest.raises(ValueError, match="too early"):
        short = rans.Decoder(coded[:-2], lanes=7)
        for expected in symbols:
            short.advance(short.slots(len(expected)), share[expected], before[expected])
