"""The full state of a run in one file, written beside and renamed, so that a kill leaves the old one or the new one."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from golf.alive import written_beside
from golf.errors import RunError
from golf.files import opened, parse_json


def save_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write tensors (any device) and JSON-able meta atomically and durably, with a checksum of both."""
    path.parent.mkdir(parents=True, exist_ok=True)
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        text = json.dumps(meta)
        with written_beside(path) as temporary:
            save_file(owned, temporary, metadata={"meta": text, "sha256": _checksum(owned, text)})
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
    except SafetensorError as error:  # the library wraps "No space left on device" in its own class
        raise OSError(str(error)) from None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with opened(path):  # a pipe would be waited for
            pass
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); delete it to start the run again") from None


def _meta(file: Any) -> dict[str, Any]:
    return parse_json((file.metadata() or {})["meta"])


def load_meta(path: Path) -> dict[str, Any]:
    """The JSON-able part of what save_tensors wrote. Raises RunError naming the file where it is damaged."""
    with _opened(path) as file:
        return _meta(file)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what save_tensors wrote. Raises RunError naming the file where it is damaged."""
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        said = file.metadata() or {}
        if said.get("sha256") not in (None, _checksum(tensors, said["meta"])):  # None: written before there was one
            raise ValueError("its checksum does not match: some of it was changed")
        return tensors, _meta(file)


def _checksum(tensors: dict[str, Tensor], meta: str) -> str:
    """Return a sha256 of names, types, shapes and bytes, in an order of its own."""
    digest = hashlib.sha256(meta.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def pack(parts: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """{"model": {...}, "optimizer": {...}} -> one flat dict of tensors."""
    return {f"{part}:{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def unpack(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """The named part of what pack() joined."""
    head = f"{part}:"
    return {name.removeprefix(head): tensor for name, tensor in tensors.items() if name.startswith(head)}
