"""Files of RADIO's makers made up with random weights, and what a network of these says, written out tensor by tensor.

Written from what is known of the files (their keys, and timm's, vLLM's and TAO's readings of them), by none of the
functions under test but `read`.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from synoptic.weights import formats
from synoptic.weights.options import LoadOptions

WIDTH, DEPTH, HEADS, PATCH, TABLE = 32, 3, 2, 4, 8  # channels, blocks, heads, pixels, patches along the table's side
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TEACHERS: list[dict[str, Any]] = [
    {"name": "clip", "type": "open_clip", "use_summary": True},
    {"name": "siglip2-g", "type": "siglip2"},
    {"name": "sam", "type": "sam", "use_summary": False},
]


def random(*shape: int, std: float = 0.3) -> Tensor:
    return torch.randn(*shape) * std


def linear(name: str, out: int, width: int, bias: bool = True) -> dict[str, Tensor]:
    weight = {f"{name}.weight": random(out, width, std=width**-0.5)}
    return weight | ({f"{name}.bias": random(out)} if bias else {})


def norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": 1 + random(width), f"{name}.bias": random(width)}


def block(name: str, width: int, hidden: int, scale: str | None, gated: bool = False) -> dict[str, Tensor]:
    """A transformer block of timm, or of DINOv2."""
    state = {**norm(f"{name}.norm1", width), **norm(f"{name}.norm2", width)}
    state |= {**linear(f"{name}.attn.qkv", 3 * width, width), **linear(f"{name}.attn.proj", width, width)}
    if gated:
        state |= {**linear(f"{name}.mlp.w12", 2 * hidden, width), **linear(f"{name}.mlp.w3", width, hidden)}
    else:
        state |= {**linear(f"{name}.mlp.fc1", hidden, width), **linear(f"{name}.mlp.fc2", width, hidden)}
    if scale:
        state |= {f"{name}.ls{place}.{scale}": random(width, std=1.0) for place in (1, 2)}
    return state


def head(name: str, version: str, out: int, hidden: int = 24, inner: int = 2) -> dict[str, Tensor]:
    if version == "v1":
        return {
            **linear(f"{name}.fc1", hidden, WIDTH),
            **norm(f"{name}.norm", hidden),
            **linear(f"{name}.fc2", out, hidden),
        }
    if version == "attn":
        blocks = [block(f"{name}.blocks.{i}", WIDTH, 4 * WIDTH, "gamma") for i in range(2)]
        return {**blocks[0], **blocks[1], **head(f"{name}.mlp", "v2", out, hidden, inner)}
    state = linear(f"{name}.fc1", hidden, WIDTH)
    for place in range(inner):
        state |= {**norm(f"{name}.blocks.{place}.0", hidden), **linear(f"{name}.blocks.{place}.2", hidden, hidden)}
    return {**state, **norm(f"{name}.final.0", hidden), **linear(f"{name}.final.2", out, hidden)}


def trunk(
    tokens: int = 5, scale: str | None = None, begin: str = "base_model.", inner: bool = False
) -> dict[str, Tensor]:
    """A ViT with cropped positions; `inner` is that of radio_v2.5-g."""
    begin, hidden = (f"{begin}inner." if inner else begin), 56 if inner else 80
    patches = f"{begin}patch_generator"
    state = {
        f"{patches}.pos_embed": random(1, TABLE * TABLE, WIDTH),
        f"{patches}.cls_token.token": random(tokens, WIDTH, std=1.0),
        **linear(f"{patches}.embedder", WIDTH, 3 * PATCH * PATCH, bias=inner),
    }
    for place in range(DEPTH):
        state |= block(f"{begin}blocks.{place}", WIDTH, hidden, "grandma" if inner else scale, gated=inner)
    if inner:
        state |= {**norm(f"{begin}norm", WIDTH), f"{begin}mask_token": random(1, WIDTH)}
        state |= statistics("base_model.input_conditioner")
    return state


def statistics(begin: str = "input_conditioner") -> dict[str, Tensor]:
    values = {"norm_mean": MEAN, "norm_std": STD}
    return {f"{begin}.{name}": torch.tensor(value).view(3, 1, 1) for name, value in values.items()}


def adaptors(names: Sequence[str], summary: str = "v2", patches: str = "v2", finer: int = 1) -> dict[str, Tensor]:
    """Heads of teachers, each of other widths than the next."""
    state: dict[str, Tensor] = {}
    for place, name in enumerate(names):
        state |= head(f"_heads.{name}", summary, 6 + place, hidden=24 + 4 * place)
        state |= head(f"_feature_projections.{name}", patches, (5 + place) * finer**2, hidden=20 + 4 * place)
    return state


def args(teachers: Sequence[Mapping[str, Any]] = TEACHERS, **more: Any) -> Namespace:
    usual = {"model": "vit_base_patch16_224", "cpe_max_size": TABLE * PATCH, "register_multiple": 8, "in_chans": 3}
    return Namespace(**{**usual, "teachers": [dict(each) for each in teachers], **more})


def file(path: Path, state: Mapping[str, Tensor], arguments: Any = None, **more: Any) -> Path:
    said = {} if arguments is None else {"args": arguments}
    torch.save({"arch": "vit", "epoch": 3, "state_dict": dict(state), **said, **more}, path)
    return path


def layer_norm(state: Mapping[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def dense(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", x.new_zeros(()))


def attend(state: Mapping[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    """A block on (B, N, D) tokens."""
    batch, count, width = x.shape

    def scaled(place: int, branch: Tensor) -> Tensor:
        for key in ("grandma", "gamma"):
            if f"{name}.ls{place}.{key}" in state:
                return branch * state[f"{name}.ls{place}.{key}"]
        return branch

    inside = dense(state, f"{name}.attn.qkv", layer_norm(state, f"{name}.norm1", x, 1e-6))
    query, key, value = inside.view(batch, count, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    weights = (query @ key.mT / math.sqrt(width // heads)).softmax(-1)
    mixed = (weights @ value).transpose(1, 2).reshape(batch, count, width)
    x = x + scaled(1, dense(state, f"{name}.attn.proj", mixed))
    inside = layer_norm(state, f"{name}.norm2", x, 1e-6)
    if f"{name}.mlp.w12.weight" in state:
        gate, value = dense(state, f"{name}.mlp.w12", inside).chunk(2, -1)
        return x + scaled(2, dense(state, f"{name}.mlp.w3", F.silu(gate) * value))
    return x + scaled(2, dense(state, f"{name}.mlp.fc2", F.gelu(dense(state, f"{name}.mlp.fc1", inside))))


def embedded(state: Mapping[str, Tensor], begin: str, images: Tensor, align_corners: bool) -> Tensor:
    """Tokens (B, T + h*w, D) before the first block."""
    mean, std = (torch.tensor(values, dtype=images.dtype).view(3, 1, 1) for values in (MEAN, STD))
    pixels, (batch, _, height, width) = (images - mean) / std, images.shape
    h, w = height // PATCH, width // PATCH
    cut = pixels.view(batch, 3, h, PATCH, w, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(batch, h * w, -1)
    table = state[f"{begin}patch_generator.pos_embed"].view(1, TABLE, TABLE, WIDTH).permute(0, 3, 1, 2)
    if (h, w) != (TABLE, TABLE):
        table = F.interpolate(table, size=(max(h, w),) * 2, mode="bilinear", align_corners=align_corners)
    places = table[..., :h, :w].flatten(2).mT
    tokens = dense(state, f"{begin}patch_generator.embedder", cut) + places
    return torch.cat([state[f"{begin}patch_generator.cls_token.token"].expand(batch, -1, -1), tokens], 1)


def backbone(
    state: Mapping[str, Tensor], images: Tensor, align_corners: bool = True, begin: str = "base_model."
) -> Tensor:
    """All tokens (B, T + h*w, D) of the trunk."""
    x = embedded(state, begin, images, align_corners)
    for place in range(DEPTH):
        x = attend(state, f"{begin}blocks.{place}", x, HEADS)
    return layer_norm(state, f"{begin}norm", x, 1e-6) if f"{begin}norm.weight" in state else x


def answered(state: Mapping[str, Tensor], name: str, version: str, x: Tensor) -> Tensor:
    """A head on (..., D)."""
    if version == "attn":
        for place in range(2):
            x = attend(state, f"{name}.blocks.{place}", x, 16)
        return answered(state, f"{name}.mlp", "v2", x)
    x = dense(state, f"{name}.fc1", x)
    if version == "v1":
        return dense(state, f"{name}.fc2", F.relu(layer_norm(state, f"{name}.norm", x, 1e-5)))
    for place in range(2):
        x = x + dense(state, f"{name}.blocks.{place}.2", F.gelu(layer_norm(state, f"{name}.blocks.{place}.0", x, 1e-5)))
    return dense(state, f"{name}.final.2", F.gelu(layer_norm(state, f"{name}.final.0", x, 1e-5)))


def unfolded(patches: Tensor, grid: tuple[int, int], times: int) -> Tensor:
    """(B, h*w, u*u*C) as (B, u*h*u*w, C), written as its makers' rearrangement is: (u1 u2 c) to (h u1) (w u2)."""
    (h, w), batch = grid, len(patches)
    parted = patches.view(batch, h, w, times, times, -1).permute(0, 1, 3, 2, 4, 5)
    return parted.reshape(batch, h * times * w * times, -1)


def reparametrised(
    state: Mapping[str, Tensor], version: int, heads: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A file as training has it, and the plain weights that it computes with.

    Args:
        version: of the spectral reparametrisation.
        heads: whether heads have it as well.
    """
    trained: dict[str, Tensor] = {}
    plain = dict(state)
    for key, weight in state.items():
        layer = key.removesuffix(".weight")
        inside = key.startswith("base_model.") and "patch_generator" not in key
        if not key.endswith(".weight") or weight.ndim != 2 or not (inside or (heads and key.startswith("_"))):
            trained[key] = weight
            continue
        parts = 3 if layer.endswith("qkv") else 2 if layer.endswith("w12") else 1
        trained[f"{layer}.parametrizations.weight.original"] = weight
        pieces = []
        for place, piece in enumerate(weight.double().chunk(parts)):
            u, v = piece[:, 0], F.normalize(random(piece.shape[1]), dim=0).double()
            for _ in range(3):
                u = F.normalize(piece @ v, dim=0)
                v = F.normalize(piece.T @ u, dim=0)
            u, v = u.float(), v.float()
            scale = torch.rand(1, 1) + 0.5 if version == 2 else torch.rand(()) + 0.5
            begin = f"{layer}.parametrizations.weight.0." + (f"parts.{place}." if parts > 1 else "")
            trained |= {f"{begin}scale": scale, f"{begin}_u": u, f"{begin}_v": v}
            if version == 2:
                trained[f"{begin}_sn_version"] = torch.tensor(2)
            wanted = F.softplus(scale.double()) + 0.05 if version == 2 else scale.double()
            pieces.append(piece * wanted / (u.double() @ piece @ v.double()))
        plain[key] = torch.cat(pieces).float()
    return trained, plain


def read(path: Path, **options: Any) -> Any:
    """The model of a file, as the library reads it."""
    return formats.load(path, LoadOptions(heads=HEADS, **options))[0]
