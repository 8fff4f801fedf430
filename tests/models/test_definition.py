"""The naive baseline and the whole 1.1233 stack, written again in plain tensor algebra."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from golf.config import Run
from golf.models.norms import Norm, norm
from tests.helpers.models import ids_for, stirred
from tests.helpers.parts import full_size


def test_naive_baseline_has_the_published_size() -> None:
    full = full_size("model=baseline")
    assert sum(p.numel() for p in full.model.build_on_meta().parameters()) == 17_059_912


def test_baseline_against_its_definition(toy: Callable[..., Run]) -> None:
    """The whole forward pass, written again from the published formulas with plain tensor algebra."""
    run = toy("model.layers=5")
    model, ids = stirred(run), ids_for(run, rows=1, length=9)
    p = {name: value.detach() for name, value in model.named_parameters()}
    x = x0 = norm(p["embed.table_VD"][ids[0]])
    T, heads, kv = 9, run.model.mixer.heads, run.model.mixer.kv_heads
    C = run.model.dim // heads
    mask = torch.full((T, T), float("-inf")).triu(1)
    outputs = []
    for i in range(run.model.layers):
        b = f"stack.blocks.{i}."
        if i >= run.model.layers // 2 and outputs:
            x = x + p["stack.skip_scale_JD"][i - run.model.layers // 2] * outputs.pop()
        x = p[b + "residual.mix_D"] * x + p[b + "residual.mix0_D"] * x0
        h = norm(x)
        q = norm((h @ p[b + "mixer.query.weight"].T).view(T, heads, C))
        k = norm((h @ p[b + "mixer.key.weight"].T).view(T, kv, C))
        v = (h @ p[b + "mixer.values.weight"].T).view(T, kv, C)
        angle = torch.arange(T)[:, None] * 10000.0 ** -(torch.arange(C // 2) * 2 / C)
        turn = torch.polar(torch.ones_like(angle), -angle)[:, None]
        pairs = [torch.complex(t[..., : C // 2], t[..., C // 2 :]) * turn for t in (q, k)]
        q, k = (torch.cat((z.real, z.imag), -1) for z in pairs)
        q = q * p[b + "mixer.gain_H"][:, None]
        y = torch.empty(T, heads, C)
        for head in range(heads):
            shared = head // (heads // kv)
            y[:, head] = ((q[:, head] @ k[:, shared].T) / math.sqrt(C) + mask).softmax(-1) @ v[:, shared]
        x = x + p[b + "residual.mixer_scale_D"] * (y.reshape(T, -1) @ p[b + "mixer.out.weight"].T)
        hidden = (norm(x) @ p[b + "mlp.up.weight"].T).clamp_min(0) ** 2
        x = x + p[b + "residual.mlp_scale_D"] * (hidden @ p[b + "mlp.down.weight"].T)
        if i < run.model.layers // 2:
            outputs.append(x)
    logits = 30 * torch.tanh(norm(x) @ p["embed.table_VD"].T / 30)
    with torch.no_grad():
        assert torch.allclose(model.log_probs(ids)[0], logits.log_softmax(-1), atol=1e-4)


def test_pr584_control_against_its_definition(toy: Callable[..., Run]) -> None:
    """Techniques catalogue, section 1.2, with every part on: bigram, smear, partial RoPE, VE, XSA, LN scale, skips."""
    run = toy(
        "experiment=pr584_baseline",
        "model.layers=6",
        "model.mixer.rope.reference_length=4",
        "batch.sequence_length=32",
        "batch.tokens_per_step=256",
    )
    model, ids = stirred(run), ids_for(run, rows=1, length=11)
    p = {name: value.detach() for name, value in model.named_parameters()}
    T, D, L, H, K = 11, run.model.dim, 6, run.model.mixer.heads, run.model.mixer.kv_heads
    C = D // H
    norm = Norm(run.model.norm_eps)  # torch's own in fp32, as upstream has it
    assert norm.eps == torch.finfo(torch.float32).eps
    a, b = ids[0], F.pad(ids[0, :-1], (1, 0))
    bucket = torch.tensor([2047 if t == 0 else ((36313 * int(a[t])) ^ (27191 * int(b[t]))) % 2047 for t in range(T)])
    big = "embed.features.bigram."
    e = p["embed.table_VD"][a] + p[big + "scale"] * p[big + "table_E"][bucket] @ p[big + "project.weight"].T
    x = norm(e)
    g = torch.sigmoid(p["embed.features.smear.gate_D"])
    shifted = F.pad(x[:-1], (0, 0, 1, 0)) * (a != 1)[:, None]
    x = x0 = (1 - g) * x + g * shifted
    r = 2 * round(0.25 * C / 2)
    base = 10000.0 * (T / 4) ** (r / (r - 2))
    angle = torch.arange(T)[:, None] * base ** -(torch.arange(r // 2) * 2 / r)
    outputs = []
    (name,) = [n for n in p if n.startswith("shared.") and n.endswith("table_VE")]
    shared = name.removesuffix("table_VE")
    ve = p[shared + "scale"] * p[shared + "table_VE"][a] @ p[shared + "project.weight"].T
    for i in range(L):
        at = f"stack.blocks.{i}."
        if i >= L // 2:
            x = x + p["stack.skip_scale_JD"][i - L // 2] * outputs.pop()
        x = p[at + "residual.mix_D"] * x + p[at + "residual.mix0_D"] * x0
        h = norm(x) / math.sqrt(i + 1)
        q = norm((h @ p[at + "mixer.query.weight"].T).view(T, H, C))
        k = norm((h @ p[at + "mixer.key.weight"].T).view(T, K, C))
        v = h @ p[at + "mixer.values.weight"].T
        if at + "mixer.value_parts.embedding.scale" in p:
            assert i in (round(9 * 5 / 10 + 0.01), 5)
            v = v + p[at + "mixer.value_parts.embedding.scale"] * ve
        v = v.view(T, K, C)

        def turn(z: Tensor) -> Tensor:
            u, w = z[..., : r // 2], z[..., r // 2 : r]
            cos, sin = angle.cos()[:, None], angle.sin()[:, None]
            return torch.cat((u * cos + w * sin, w * cos - u * sin, z[..., r:]), -1)

        q, k = turn(q) * p[at + "mixer.gain_H"][:, None], turn(k)
        y = torch.empty(T, H, C)
        for head in range(H):
            kv = head // (H // K)
            scores = (q[:, head] @ k[:, kv].T) / math.sqrt(C) + torch.full((T, T), -math.inf).triu(1)
            y[:, head] = scores.softmax(-1) @ v[:, kv]
            if i >= L - 2:  # last:4 of 11 in 6 layers
                unit = v[:, kv] / v[:, kv].norm(dim=-1, keepdim=True)
                y[:, head] -= (y[:, head] * unit).sum(-1, keepdim=True) * unit
        x = x + p[at + "residual.mixer_scale_D"] * (y.reshape(T, D) @ p[at + "mixer.out.weight"].T)
        h = norm(x) / math.sqrt(i + 1)
        x = x + p[at + "residual.mlp_scale_D"] * (
            (h @ p[at + "mlp.up.weight"].T).relu() ** 2 @ p[at + "mlp.down.weight"].T
        )
        if i < L // 2:
            outputs.append(x)
    expected = (30 * torch.tanh(norm(x) @ p["embed.table_VD"].T / 30)).log_softmax(-1)
    with torch.no_grad():
        torch.testing.assert_close(model.log_probs(ids)[0], expected, atol=1e-5, rtol=1e-5)
