"""Codecs of an artifact's sections: the slot, and general coders of bytes. None stands in for one that is absent."""

import importlib
import importlib.util
import lzma
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from golf.artifact.sections import Section, join, split
from golf.errors import UserError
from golf.fields import between, one_of


@dataclass(kw_only=True, slots=True)
class CodecConfig:
    """The slot. What is not lossless is no codec."""

    def check(self) -> None:
        """Raise UserError where what the codec needs is not installed; called before anything is trained."""

    def encode(self, values: Sequence[Tensor], sections: Sequence[Section]) -> bytes:
        """The same bytes for the same tensors, on every machine."""
        raise NotImplementedError

    def decode(self, coded: bytes, sections: Sequence[Section]) -> list[Tensor]:
        """Tensors of exactly these sections. Raises ValueError for anything else, and never makes more than them."""
        raise NotImplementedError

    @property
    def overhead(self) -> float:
        """Coded bytes over order-0 entropy on weight noise, for plans (measured on int6 codes)."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Coder:
    """A general coder. squeeze(raw, level) -> coded; expand(coded, size) -> at most about size + 1 bytes."""

    module: str
    top_level: int
    overhead: float
    squeeze: Callable[[bytes, int], bytes]
    expand: Callable[[bytes, int], bytes]


def _expand_zlib(coded: bytes, size: int) -> bytes:
    stream = zlib.decompressobj()
    raw = stream.decompress(coded, size + 1)
    return raw if stream.eof and not stream.unused_data else b""


def _squeeze_zstd(raw: bytes, level: int) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=level).compress(raw)


def _expand_zstd(coded: bytes, size: int) -> bytes:
    import zstandard

    if zstandard.frame_content_size(coded) != size:
        return b""
    stream = zstandard.ZstdDecompressor().decompressobj()
    raw = stream.decompress(coded)
    return raw if stream.eof and not stream.unused_data else b""


def _squeeze_lzma(raw: bytes, level: int) -> bytes:
    return lzma.compress(raw, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": level}])


def _expand_lzma(coded: bytes, size: int) -> bytes:
    # The widest window reads what any level wrote.
    stream = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9}])
    raw = stream.decompress(coded, size + 1)
    return raw if stream.eof and not stream.unused_data else b""


def _squeeze_brotli(raw: bytes, level: int) -> bytes:
    import brotli

    return brotli.compress(raw, quality=level, lgwin=24)


def _expand_brotli(coded: bytes, size: int) -> bytes:
    import brotli

    stream = brotli.Decompressor()
    raw = stream.process(coded, output_buffer_limit=size + 1)
    while not stream.is_finished() and not stream.can_accept_more_data() and len(raw) <= size:
        raw += stream.process(b"", output_buffer_limit=size + 1 - len(raw))
    return raw if stream.is_finished() else b""


CODERS = {
    "zlib": Coder("zlib", 9, 1.06, zlib.compress, _expand_zlib),
    "zstd": Coder("zstandard", 22, 1.01, _squeeze_zstd, _expand_zstd),
    "lzma": Coder("lzma", 9, 1.08, _squeeze_lzma, _expand_lzma),
    "brotli": Coder("brotli", 11, 1.01, _squeeze_brotli, _expand_brotli),
}


@dataclass(kw_only=True, slots=True)
class BytesConfig(CodecConfig):
    """A general coder over the bytes of all sections.

    shuffle: bytes of one significance stand together (the records' byte shuffle, by section): it helps numbers of
    several bytes, such as the steps of the rows.
    """

    coder: str
    level: int
    shuffle: bool

    def __post_init__(self) -> None:
        one_of("coder", self.coder, tuple(CODERS))
        between(1, CODERS[self.coder].top_level, level=self.level)

    def check(self) -> None:
        module = CODERS[self.coder].module
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"codec={self.coder}: the package {module} is not installed; pip install {module}, or codec=zlib"
            )

    def encode(self, values: Sequence[Tensor], sections: Sequence[Section]) -> bytes:
        return CODERS[self.coder].squeeze(join(values, self.shuffle), self.level)

    def decode(self, coded: bytes, sections: Sequence[Section]) -> list[Tensor]:
        size = sum(section.size_bytes for section in sections)
        coder = CODERS[self.coder]
        try:
            raw = coder.expand(coded, size)
        except (zlib.error, lzma.LZMAError, _error_of(coder.module)) as error:
            raise ValueError(f"{self.coder}: {error}") from None
        if len(raw) != size:
            raise ValueError(f"{self.coder}: the payload does not unpack to the {size} bytes that it declares")
        return split(raw, sections, self.shuffle)

    @property
    def overhead(self) -> float:
        return CODERS[self.coder].overhead


def _error_of(module: str) -> type[Exception]:
    """What a coder's package raises."""
    found = importlib.import_module(module)
    return getattr(found, "ZstdError", None) or getattr(found, "error", None) or ValueError
