"""Attention kernels and the choice among them. q_BTHC, k_BTKC, v_BTKC -> y_BTHC, causal, scale 1/sqrt(C).

`auto` takes the fastest that this machine has and says why; a kernel asked for by name that is absent is an error.
"""

import importlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from golf.errors import UserError
from golf.models.slots import Attend

ATTENTION_BACKENDS = ("auto", "sdpa", "flash2", "flash3", "flash4")


def sdpa(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor) -> Tensor:
    """torch's scaled_dot_product_attention; K divides H (grouped queries)."""
    y_BHTC = F.scaled_dot_product_attention(
        q_BTHC.transpose(1, 2),
        k_BTKC.transpose(1, 2),
        v_BTKC.transpose(1, 2),
        is_causal=True,
        enable_gqa=q_BTHC.shape[2] != k_BTKC.shape[2],
    )
    return y_BHTC.transpose(1, 2)


def _flash(function: Attend) -> Attend:
    """Flash kernels take half precision only: cast at the call (an fp32 leak is silent or a crash by version)."""

    def attend(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor) -> Tensor:
        y = function(*(t if t.dtype == torch.float16 else t.to(torch.bfloat16) for t in (q_BTHC, k_BTKC, v_BTKC)))
        return (y[0] if isinstance(y, tuple) else y).to(q_BTHC.dtype)

    return attend


def _find(module: str, function: str) -> Attend | None:
    """The causal form of a flash function, or None where the package is absent or is another one of that name."""
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, OSError):
        return None
    return _flash(lambda q, k, v: found(q, k, v, causal=True))


@dataclass(frozen=True, slots=True)
class Backend:
    name: str
    reason: str
    attend: Attend


def choose_backend(asked: str, device: torch.device) -> Backend:
    """The kernel for `compute.attention=asked` on this device, with the reason that the run folder records.

    Raises UserError where a kernel asked for by name is not there.
    """
    if asked == "sdpa" or (asked == "auto" and device.type == "cpu"):
        return Backend("sdpa", "asked for" if asked == "sdpa" else "the only kernel for a CPU", sdpa)
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
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
