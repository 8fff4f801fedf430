"""The artifact: one file that holds a quantised model and all that is needed to rebuild it. Nothing is unpickled.

Layout: magic, sha256 of all that follows, length of the header, the header (JSON, deflated), the payload: every part of
every tensor in table order, through the codec; its checksum before the codec is in the header. The header's
`_target_`s may name nothing but config classes in CONFIG_PACKAGES and in the user's packages (golf/classes.py), and
only the modules that it names are imported.
"""

import hashlib
import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from golf.alive import written_beside
from golf.artifact.codecs import CodecConfig
from golf.artifact.sections import Section, checksum
from golf.errors import UserError
from golf.files import read_bytes
from golf.models.generated import Generated
from golf.models.lm import LM, LMConfig
from golf.nodes import plain, rebuild
from golf.quant.formats import FormatConfig, decode_one
from golf.quant.quantizer import QuantConfig, Stored
from golf.roles import roles_of

MAGIC = b"GOLFART4"
PREFIX = struct.Struct("<8s32sI")
MAX_HEADER_BYTES = 4_000_000
MAX_LAYERS = 4096
FEW_LAYERS = 64  # are soon built, where a stack has no blocks that would take a tensor
# Far above what any cap admits; they bound a reader's memory, with some 20 bytes a number.
MAX_PAYLOAD_BYTES, MAX_PARAMETERS, MAX_FILE_BYTES = 2**28, 2**28, 2**29
# What a model makes and does not store: fixed numbers that a seed gives, matrices that are made of something smaller.
MAX_MADE = 2**28
MAX_NUMBER = 2**31
DTYPES = {
    "i8": torch.int8,
    "u8": torch.uint8,
    "i16": torch.int16,
    "f16": torch.float16,
    "f32": torch.float32,
    "bf16": torch.bfloat16,
}
UNSOUND = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError, zlib.error)
CONFIG_PACKAGES = ("golf.models", "golf.quant", "golf.artifact")  # and those that the user registered


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a file holds: the model with dequantised weights, the header as it stands, each tensor as it is stored."""

    model: LM
    header: dict[str, Any]
    size_bytes: int
    formats: dict[str, FormatConfig]
    codec: CodecConfig
    stored: dict[str, Stored]


def write_artifact(
    path: Path,
    *,
    model: LMConfig,
    stored: dict[str, Stored],
    weights: str,
    quant: QuantConfig,
    codec: CodecConfig,
    tokenizer: str,
) -> int:
    """Write the file (to a temporary name, then renamed); returns its size in bytes.

    weights: which of a run's weights these are (the name of an average); tokenizer: its sha256.
    """
    values = [value for tensor in stored.values() for value in tensor.parts.values()]
    table: Table = {
        name: {part: (value.dtype, tuple(value.shape)) for part, value in tensor.parts.items()}
        for name, tensor in stored.items()
    }
    chosen = {name: tensor.format for name, tensor in stored.items()}
    header = _header(model, quant, codec, chosen, table) | {
        "weights": weights,
        "payload_crc32": checksum(values),
        "tokenizer_sha256": tokenizer,
    }
    packed = zlib.compress(json.dumps(header, sort_keys=True, separators=(",", ":")).encode(), 9)
    with written_beside(path) as temporary:
        temporary.write_bytes(seal(packed, codec.encode(values, sections_of(table))))
    return path.stat().st_size


def _header(
    model: LMConfig, quant: QuantConfig, codec: CodecConfig, chosen: dict[str, str], table: "Table"
) -> dict[str, Any]:
    """Return what a header says of the model and of how it is stored. chosen: tensor -> name of its format."""
    return {
        "model": plain(model),
        "formats": {name: plain(quant.formats[name]) for name in sorted(set(chosen.values()))},
        "codec": plain(codec),
        "tensors": [
            [name, chosen[name], [[part, _dtype_name(dtype), list(shape)] for part, (dtype, shape) in parts.items()]]
            for name, parts in table.items()
        ],
        "payload_bytes": sum(section.size_bytes for section in sections_of(table)),
    }


def seal(header: bytes, payload: bytes) -> bytes:
    """The file of a deflated header and a coded payload."""
    rest = header + payload
    digest = hashlib.sha256(struct.pack("<I", len(header)) + rest).digest()
    return PREFIX.pack(MAGIC, digest, len(header)) + rest


def check_readable(config: LMConfig, model: LM, quant: QuantConfig, codec: CodecConfig) -> None:
    """Raise UserError where read_artifact() would refuse the artifact of such a model: before it is trained.

    All that the reader looks at but the values is known from shapes: it is handed a header without them. model: what
    config builds, on the meta device.
    """
    chosen = quant.assign(model.stored_roles())
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters() if name in chosen}
    table = {name: quant.formats[chosen[name]].layout(shape) for name, shape in shapes.items()}
    header = _header(config.exported(), quant, codec, chosen, table) | {"tokenizer_sha256": ""}
    text = json.dumps(header)
    try:
        if len(text) > MAX_HEADER_BYTES - 1000:  # room for the checksums
            raise ValueError(f"its header has over {MAX_HEADER_BYTES:,} bytes")
        _accepted(json.loads(text))
    except UNSOUND as error:
        raise UserError(f"model: no artifact of it could be read back: {_reason(error)}") from None


def read_artifact(path: Path) -> Artifact:
    """Rebuild the model from the file alone. Raises UserError naming the file and what is wrong with it."""
    try:
        blob = read_bytes(path, MAX_FILE_BYTES)
    except OSError as error:
        raise UserError(f"artifact={path}: cannot be read ({error.strerror}); name an artifact.golf of a run") from None
    try:
        return _parse(blob)
    except UNSOUND as error:
        raise UserError(
            f"artifact={path}: not a sound artifact: {_reason(error)}; make it again from its run"
        ) from None


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _parse(blob: bytes) -> Artifact:
    if len(blob) < PREFIX.size or not blob.startswith(MAGIC):
        raise ValueError(f"it does not begin with {MAGIC.decode()}")
    _, digest, header_bytes = PREFIX.unpack_from(blob)
    if hashlib.sha256(blob[PREFIX.size - 4 :]).digest() != digest:
        raise ValueError("its checksum does not match (truncated or changed)")
    raw = zlib.decompressobj().decompress(blob[PREFIX.size : PREFIX.size + header_bytes], MAX_HEADER_BYTES)
    header = json.loads(raw, parse_constant=_no_constant)
    shell, formats, codec, table = _accepted(header)
    values = codec.decode(blob[PREFIX.size + header_bytes :], sections_of(table))
    if checksum(values) != header["payload_crc32"]:
        raise ValueError("its codec gives back something else than was stored")
    parts, chosen = iter(values), {name: format_name for name, format_name, _ in header["tensors"]}
    stored = {name: Stored(chosen[name], {part: next(parts) for part in layout}) for name, layout in table.items()}
    shapes = {name: tuple(parameter.shape) for name, parameter in shell.named_parameters()}
    weights = {name: decode_one(formats[kept.format], kept.parts, shapes[name]) for name, kept in stored.items()}
    shell.load_state_dict(weights, assign=True, strict=True)
    return Artifact(shell.requires_grad_(False), header, len(blob), formats, codec, stored)


def _accepted(header: dict[str, Any]) -> tuple[LM, dict[str, FormatConfig], CodecConfig, "Table"]:
    """Return the model without values, formats, codec and the table of a header, once all of it is plausible.

    Nothing has been made by then whose size or cost the header could choose freely. Raises one of UNSOUND.
    """
    _plausible(header)
    model = rebuild(header["model"], LMConfig, CONFIG_PACKAGES)
    formats = {name: rebuild(node, FormatConfig, CONFIG_PACKAGES) for name, node in header["formats"].items()}
    codec = rebuild(header["codec"], CodecConfig, CONFIG_PACKAGES)
    codec.check()
    if not isinstance(header["tokenizer_sha256"], str):
        raise ValueError("its header names no tokenizer")
    tensors = {name: (format_name, parts) for name, format_name, parts in header["tensors"]}
    shell = _shell(model, tensors)
    table = _checked_table(shell, formats, tensors)
    size = sum(section.size_bytes for section in sections_of(table))
    if size > MAX_PAYLOAD_BYTES:
        raise ValueError(f"its tensors have {size:,} bytes before the codec, over {MAX_PAYLOAD_BYTES:,}")
    if size != header["payload_bytes"] or len(tensors) != len(header["tensors"]):
        raise ValueError("its tensor table does not add up to its payload")
    return shell, formats, codec, table


def _plausible(header: dict[str, Any]) -> None:
    """Raise ValueError for a number that no model has: what is made of it may take memory or time without end."""
    level: list[Any] = [header["model"], header["formats"], header["codec"]]
    while level:
        item = level.pop()
        level += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        if isinstance(item, int | float) and not abs(item) < MAX_NUMBER:
            raise ValueError(f"it holds the number {str(item)[:20]}, and {MAX_NUMBER:,} or more is none of a model's")


def _no_constant(name: str) -> None:
    raise ValueError(f"its header holds {name}")


def _shell(config: LMConfig, tensors: dict[str, Any]) -> LM:
    """The model without values, once its size is plausible; its tensors must be the file's."""
    if config != config.exported():
        raise ValueError("its model holds parts that only training uses")
    if config.layers > min(max(len(tensors), FEW_LAYERS), MAX_LAYERS):
        raise ValueError(f"{config.layers} layers can't be made of {len(tensors)} tensors, nor over {MAX_LAYERS}")
    model = config.build_on_meta(MAX_MADE)
    # what a module says that it borrows is made whenever it runs; buffers are made as the model is
    made = sum(buffer.numel() for buffer in model.buffers())
    made += sum(module.borrowed for module in model.modules() if isinstance(module, Generated))
    for what, number, most in (
        ("parameters", sum(parameter.numel() for parameter in model.parameters()), MAX_PARAMETERS),
        ("numbers that are not stored but made", made, MAX_MADE),
        ("visits of blocks", model.stack.effective_depth(), MAX_LAYERS),
        ("positions of one token", model.embed.places(1).count, MAX_LAYERS),
    ):
        if number > most:
            raise ValueError(f"its model has {number:,} {what}, over {most:,}")
    if set(tensors) != set(roles_of(model)):
        raise ValueError("its tensors are not those of its model")
    return model


Table = dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]]  # tensor -> part -> (type, shape)


def _checked_table(model: LM, formats: dict[str, FormatConfig], tensors: dict[str, Any]) -> Table:
    """What each format writes for the model's shapes, in the file's order; the file must say the same."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    table: Table = {}
    for name, (format_name, parts) in tensors.items():
        table[name] = formats[format_name].layout(shapes[name])
        declared = {part: (DTYPES[dtype], tuple(shape)) for part, dtype, shape in parts}
        if list(declared.items()) != list(table[name].items()):
            raise ValueError(f"its {name} is not stored as {format_name} stores a {shapes[name]}")
    return table


def sections_of(table: Table) -> list[Section]:
    """Return the parts of a table's tensors, in the order of the file."""
    return [Section(f"{name}/{part}", *spec) for name, parts in table.items() for part, spec in parts.items()]


def _dtype_name(wanted: torch.dtype) -> str:
    return next(name for name, dtype in DTYPES.items() if dtype == wanted)
