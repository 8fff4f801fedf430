"""The artifact: one file that holds a quantised model and all that is needed to rebuild it. Nothing is unpickled.

Layout: magic, sha256 of all that follows, length of the header, the header (JSON, deflated), the payload (every part
of every tensor in table order, little-endian, through the codec). The header's `_target_`s may name nothing but
golf's own config classes, taken from a list that is made here, so that a file can't import a module.
"""

import hashlib
import importlib
import json
import math
import os
import pkgutil
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golf.artifact.codecs import CodecConfig
from golf.errors import UserError
from golf.models.lm import LM, LMConfig
from golf.nodes import plain, rebuild
from golf.quant.formats import FormatConfig, Parts
from golf.quant.quantizer import QuantConfig, Stored
from golf.roles import roles_of

MAGIC = b"GOLFART1"
PREFIX = struct.Struct("<8s32sI")
MAX_HEADER_BYTES = 16_000_000
DTYPES = {"i8": torch.int8, "f16": torch.float16, "f32": torch.float32, "bf16": torch.bfloat16}
CONFIG_PACKAGES = ("golf.models", "golf.quant", "golf.artifact")


def config_classes() -> dict[str, type]:
    """Import path -> class of every config dataclass in golf's own model, quantiser and artifact files."""
    classes: dict[str, type] = {}
    for package in CONFIG_PACKAGES:
        for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
            module = importlib.import_module(f"{package}.{info.name}")
            for name, value in vars(module).items():
                own = isinstance(value, type) and value.__module__ == module.__name__
                if own and name.endswith("Config") and "__dataclass_fields__" in vars(value):
                    classes[f"{module.__name__}.{name}"] = value
    return classes


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a file holds: the model with dequantised weights, and the header as it stands."""

    model: LM
    header: dict[str, Any]
    size_bytes: int


def write_artifact(
    path: Path, *, model: LMConfig, stored: dict[str, Stored], quant: QuantConfig, codec: CodecConfig, tokenizer: str
) -> int:
    """Write the file (to a temporary name, then renamed); returns its size in bytes. tokenizer: its sha256."""
    used = sorted({tensor.format for tensor in stored.values()})
    tensors = [
        [name, tensor.format, [[part, _dtype_name(value), list(value.shape)] for part, value in tensor.parts.items()]]
        for name, tensor in stored.items()
    ]
    payload = b"".join(_to_bytes(value) for tensor in stored.values() for value in tensor.parts.values())
    header = {
        "model": plain(model),
        "formats": {name: plain(quant.formats[name]) for name in used},
        "codec": plain(codec),
        "tensors": tensors,
        "payload_bytes": len(payload),
        "tokenizer_sha256": tokenizer,
    }
    packed = zlib.compress(json.dumps(header, sort_keys=True, separators=(",", ":")).encode(), 9)
    rest = packed + codec.encode(payload)
    digest = hashlib.sha256(struct.pack("<I", len(packed)) + rest).digest()
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(PREFIX.pack(MAGIC, digest, len(packed)) + rest)
    os.replace(temporary, path)
    return path.stat().st_size


def read_artifact(path: Path) -> Artifact:
    """Rebuild the model from the file alone. Raises UserError naming the file and what is wrong with it."""
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise UserError(f"artifact={path}: cannot be read ({error.strerror}); name an artifact.golf of a run") from None
    try:
        return _parse(blob)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"artifact={path}: not a sound artifact: {reason}; make it again from its run") from None


def _parse(blob: bytes) -> Artifact:
    if len(blob) < PREFIX.size or not blob.startswith(MAGIC):
        raise ValueError(f"it does not begin with {MAGIC.decode()}")
    _, digest, header_bytes = PREFIX.unpack_from(blob)
    if hashlib.sha256(blob[PREFIX.size - 4 :]).digest() != digest:
        raise ValueError("its checksum does not match (truncated or changed)")
    stream = zlib.decompressobj()
    header = json.loads(stream.decompress(blob[PREFIX.size : PREFIX.size + header_bytes], MAX_HEADER_BYTES))
    classes = config_classes()
    model_config = rebuild(header["model"], classes)
    formats = {name: rebuild(node, classes) for name, node in header["formats"].items()}
    codec = rebuild(header["codec"], classes)
    if not isinstance(model_config, LMConfig) or not isinstance(codec, CodecConfig):
        raise ValueError("its header names no model or no codec")
    if not all(isinstance(entry, FormatConfig) for entry in formats.values()):
        raise ValueError("its header names a format that is none")
    codec.check()
    payload = codec.decode(blob[PREFIX.size + header_bytes :], _payload_size(header))
    return Artifact(_load(model_config, formats, header["tensors"], payload), header, len(blob))


def _payload_size(header: dict[str, Any]) -> int:
    declared = sum(
        math.prod(shape) * DTYPES[dtype].itemsize for _, _, parts in header["tensors"] for _, dtype, shape in parts
    )
    if declared != header["payload_bytes"]:
        raise ValueError("its tensor table does not add up to its payload")
    return declared


def _load(config: LMConfig, formats: dict[str, FormatConfig], tensors: list, payload: bytes) -> LM:
    model = config.build_on_meta()
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if sorted(name for name, _, _ in tensors) != sorted(roles_of(model)):
        raise ValueError("its tensors are not those of its model")
    weights, offset = {}, 0
    for name, format_name, table in tensors:
        parts: Parts = {}
        for part, dtype, shape in table:
            size = math.prod(shape) * DTYPES[dtype].itemsize
            parts[part] = _from_bytes(payload[offset : offset + size], dtype, shape)
            offset += size
        weight = formats[format_name].decode(parts)
        if tuple(weight.shape) != expected[name]:
            raise ValueError(f"its {name} has shape {tuple(weight.shape)}, the model's has {expected[name]}")
        weights[name] = weight
    model.load_state_dict(weights, assign=True, strict=True)
    return model.requires_grad_(False)


def _dtype_name(value: Tensor) -> str:
    return next(name for name, dtype in DTYPES.items() if dtype == value.dtype)


def _to_bytes(value: Tensor) -> bytes:
    return value.detach().contiguous().cpu().view(torch.uint8 if value.ndim else value.dtype).numpy().tobytes()


def _from_bytes(raw: bytes, dtype: str, shape: list[int]) -> Tensor:
    flat = torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).copy())
    return flat.view(DTYPES[dtype]).view(shape)
