"""Attention kernels and the choice among them. q_BTHC, k_BTKC, v_BTKC -> y_BTHC, causal, scale 1/sqrt(C).

`auto` takes the fastest that this machine has and says why; a kernel asked for by name that is absent is an error.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from golf.errors import UserError
from golf.models.slots import Attend
from golf.models.tiled import tiled

ATTENTION_BACKENDS = ("auto", "sdpa", "tiled", "flex", "flash2", "flash3", "flash4")
FLASH_CHANNELS = 8  # flash kernels take heads of a multiple of so many channels


def window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """seen_TT: whether a query (row) sees a key: its own position and `window` before it."""
    position_T = torch.arange(length, device=device)
    before_TT = position_T[:, None] - position_T
    return (before_TT >= 0) & (before_TT <= window)


def sdpa(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, window: int | None = None) -> Tensor:
    """torch's scaled_dot_product_attention; K divides H (grouped queries). A window costs a mask of T x T."""
    length = q_BTHC.shape[1]
    if window is not None and window < length - 1:
        return masked(q_BTHC, k_BTKC, v_BTKC, window_mask(length, window, q_BTHC.device))
    y_BHTC = F.scaled_dot_product_attention(
        q_BTHC.transpose(1, 2),
        k_BTKC.transpose(1, 2),
        v_BTKC.transpose(1, 2),
        is_causal=True,
        enable_gqa=q_BTHC.shape[2] != k_BTKC.shape[2],
    )
    return y_BHTC.transpose(1, 2)


def masked(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, seen_TT: Tensor) -> Tensor:
    """Attention to the keys that a mask shows. On CUDA no kernel but the one that holds all scores takes a mask and
    grouped queries both, so there each query head gets keys and values of its own."""
    groups = q_BTHC.shape[2] // k_BTKC.shape[2]
    if q_BTHC.device.type == "cuda":
        k_BTKC, v_BTKC = (x.repeat_interleave(groups, dim=2) for x in (k_BTKC, v_BTKC))
    q, k, v = (x.transpose(1, 2) for x in (q_BTHC, k_BTKC, v_BTKC))
    y_BHTC = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_TT, enable_gqa=q.shape[1] != k.shape[1])
    return y_BHTC.transpose(1, 2)


@cache
def _block_mask(length: int, window: int | None, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) if window is None else (query >= key) & (query - key <= window)

    return create_block_mask(seen, None, None, length, length, device=str(device))


@cache
def _flex_function(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if compiled else flex_attention


def flex(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, window: int | None = None) -> Tensor:
    """torch's flex_attention: blocks outside a window are skipped. On a CPU it has no backward pass."""
    device = q_BTHC.device
    y_BHTC = _flex_function(device.type == "cuda")(
        q_BTHC.transpose(1, 2),
        k_BTKC.transpose(1, 2),
        v_BTKC.transpose(1, 2),
        block_mask=_block_mask(q_BTHC.shape[1], window, device),
        enable_gqa=q_BTHC.shape[2] != k_BTKC.shape[2],
    )
    return y_BHTC.transpose(1, 2)


def _flash(function: Callable[..., Any]) -> Attend:
    """Flash kernels take half precision only: cast at the call (an fp32 leak is silent or a crash by version)."""

    def attend(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, window: int | None = None) -> Tensor:
        half = (t if t.dtype == torch.float16 else t.to(torch.bfloat16) for t in (q_BTHC, k_BTKC, v_BTKC))
        y = function(*half, causal=True, **({} if window is None else {"window_size": (window, 0)}))
        return (y[0] if isinstance(y, tuple) else y).to(q_BTHC.dtype)

    return attend


def _find(module: str, function: str) -> Attend | None:
    """A flash function as we call it, or None where the package is absent or is another one of that name."""
    try:
        return _flash(getattr(importlib.import_module(module), function))
    except (ImportError, AttributeError, OSError):
        return None


@dataclass(frozen=True, slots=True)
class Backend:
    name: str
    reason: str
    attend: Attend


def choose_backend(asked: str, device: torch.device, channels: int | None = None) -> Backend:
    """The kernel for `compute.attention=asked` on this device, with the reason that the run folder records.

    channels: those of a head, where the model's heads decide what fits. Raises UserError where a kernel asked for by
    name is not there or can't take such heads.
    """
    if asked == "flex" and device.type == "cpu":
        raise UserError("compute.attention=flex: torch can't train with it on a CPU; take compute.attention=sdpa")
    if asked in ("sdpa", "tiled", "flex"):
        return Backend(asked, "asked for", {"sdpa": sdpa, "tiled": tiled, "flex": flex}[asked])
    if asked == "auto" and device.type == "cpu":
        return Backend("tiled", "the fastest kernel for a CPU", tiled)
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    if channels is not None and channels % FLASH_CHANNELS:
        if asked == "auto":
            return Backend("sdpa", f"flash kernels don't take heads of {channels} channels", sdpa)
        raise UserError(
            f"compute.attention={asked}: takes heads of a multiple of {FLASH_CHANNELS} channels, not {channels}; "
            "take compute.attention=sdpa"
        )
    found = {
        "flash3": _find("flash_attn_interface", "flash_attn_func") if capability[0] == 9 else None,
        "flash4": _find("flash_attn.cute", "flash_attn_func") if capability[0] in (9, 10) else None,
        "flash2": _find("flash_attn", "flash_attn_func") if capability[0] >= 8 else None,
    }
    if asked != "auto":
        attend = found[asked]
        if attend is None:
            raise UserError(
                f"compute.attention={asked}: not usable on {device.type} {capability}; install it (README, "
                "FlashAttention) or take compute.attention=sdpa"
            )
        return Backend(asked, "asked for", attend)
    for name, attend in found.items():
        if attend is not None:
            return Backend(name, f"the fastest found for compute capability {capability}", attend)
    return Backend("sdpa", f"no flash-attention package found for compute capability {capability}", sdpa)
