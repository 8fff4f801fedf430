"""Byte coders of the artifact's payload. One that is asked for and absent is an error: none stands in."""

import importlib.util
import zlib
from dataclasses import dataclass

from golf.errors import UserError
from golf.fields import between


@dataclass(kw_only=True, slots=True)
class CodecConfig:
    """The slot."""

    def check(self) -> None:
        """Raise UserError where what the codec needs is not installed; called before anything is trained."""

    def encode(self, raw: bytes) -> bytes:
        raise NotImplementedError

    def decode(self, coded: bytes, size: int) -> bytes:
        """Exactly `size` bytes. Raises ValueError for anything else, without ever making more than size + 1 of them."""
        raise NotImplementedError

    @property
    def overhead(self) -> float:
        """Coded bytes over order-0 entropy on weight noise, for plans (measured on int6 codes)."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class ZlibConfig(CodecConfig):
    """DEFLATE, Python's own (upstream baseline: level 9)."""

    level: int

    def __post_init__(self) -> None:
        between(1, 9, level=self.level)

    def encode(self, raw: bytes) -> bytes:
        return zlib.compress(raw, self.level)

    def decode(self, coded: bytes, size: int) -> bytes:
        stream = zlib.decompressobj()
        try:
            raw = stream.decompress(coded, size + 1)
        except zlib.error as error:
            raise ValueError(f"zlib: {error}") from None
        if len(raw) != size or stream.unused_data or stream.unconsumed_tail:
            raise ValueError(f"zlib: the payload does not unpack to the {size} bytes that it declares")
        return raw

    @property
    def overhead(self) -> float:
        return 1.06


@dataclass(kw_only=True, slots=True)
class ZstdConfig(CodecConfig):
    """Zstandard (records from 2026-03-20: level 22). Needs the package zstandard."""

    level: int

    def __post_init__(self) -> None:
        between(1, 22, level=self.level)

    def check(self) -> None:
        if importlib.util.find_spec("zstandard") is None:
            raise UserError("codec=zstd: the package zstandard is not installed; pip install zstandard, or codec=zlib")

    def encode(self, raw: bytes) -> bytes:
        import zstandard

        return zstandard.ZstdCompressor(level=self.level).compress(raw)

    def decode(self, coded: bytes, size: int) -> bytes:
        import zstandard

        stream = zstandard.ZstdDecompressor().decompressobj()
        try:
            if zstandard.frame_content_size(coded) != size:
                raise ValueError(f"zstd: the frame does not declare the {size} bytes that the header does")
            raw = stream.decompress(coded)
        except zstandard.ZstdError as error:
            raise ValueError(f"zstd: {error}") from None
        if len(raw) != size or stream.unused_data:
            raise ValueError(f"zstd: the payload does not unpack to the {size} bytes that it declares")
        return raw

    @property
    def overhead(self) -> float:
        return 1.01
