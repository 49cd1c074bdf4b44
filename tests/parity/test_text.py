"""Our text tower against that of transformers, and the whole CLIP against recorded outputs of its makers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from comparison import assert_equal, assert_equal_forward_and_backward, assert_survives_the_way_there_and_back, file_of
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from synoptic.models.clip import Clip, ClipConfig
from synoptic.models.text import TextConfig, TextTower
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViTConfig
from synoptic.weights.convert import HUGGINGFACE_CLIP_TEXT, Change, Rule, Table, from_ours, load_state, to_ours

END = 29


def pair(folder: Path, act: str, dtype: torch.dtype) -> tuple[TextTower, CLIPTextModelWithProjection]:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=END + 1,
        hidden_size=24,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=11,
        projection_dim=10,
        hidden_act=act,
        bos_token_id=END - 1,
        eos_token_id=END,
    )
    theirs = CLIPTextModelWithProjection(config)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = TextTower(
        TextConfig(vocabulary=END + 1, context=11, end=END, width=24, depth=2, heads=3, embedding=10, activation=act)
    )
    load_state(ours, to_ours(file_of(theirs, folder), HUGGINGFACE_CLIP_TEXT), "transformers")
    return ours.to(dtype).eval(), theirs.to(dtype).eval()


def tokens() -> Tensor:
    """Texts of different lengths, filled with end tokens."""
    rows = torch.randint(0, END - 1, (4, 11), generator=torch.Generator().manual_seed(1))
    for row, length in zip(rows, (2, 5, 10, 11), strict=True):
        row[length - 1 :] = END
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_equals_transformers_forward_and_backward(tmp_path: Path, act: str, dtype: torch.dtype) -> None:
    ours, theirs = pair(tmp_path, act, dtype)
    answer, expected = ours(tokens()), theirs(input_ids=tokens()).text_embeds
    assert_equal_forward_and_backward(ours, theirs, answer, expected, HUGGINGFACE_CLIP_TEXT, tmp_path)


def test_weights_survive_the_way_there_and_back(tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path, "gelu", torch.float32)
    assert_survives_the_way_there_and_back(ours, theirs, HUGGINGFACE_CLIP_TEXT, tmp_path)


# What OpenAI's released files call things. Projections are stored for a product from the right.
TRANSPOSED = Change(lambda parts: parts[0].mT.contiguous(), lambda tensor: (tensor.mT,))
BATCHED = Change(lambda parts: parts[0][None], lambda tensor: (tensor[0],))
FIRST = Change(lambda parts: parts[0][None, None], lambda tensor: (tensor[0, 0],))


def blocks(ours: str, theirs: str) -> tuple[Rule, ...]:
    names = {
        "norm1.{p}": "ln_1.{p}",
        "norm2.{p}": "ln_2.{p}",
        "attn.qkv.{p}": "attn.in_proj_{p}",
        "attn.proj.{p}": "attn.out_proj.{p}",
        "mlp.fc1.{p}": "mlp.c_fc.{p}",
        "mlp.fc2.{p}": "mlp.c_proj.{p}",
    }
    return tuple(Rule(f"{ours}.{{i}}.{our}", (f"{theirs}.{{i}}.{their}",)) for our, their in names.items())


OPENAI_CLIP = Table(
    rules=(
        Rule("image.summary_token", ("visual.class_embedding",), FIRST),
        Rule("image.positions.table", ("visual.positional_embedding",), BATCHED),
        Rule("image.patch_embed.weight", ("visual.conv1.weight",)),
        Rule("image.pre_norm.{p}", ("visual.ln_pre.{p}",)),
        *blocks("image.blocks", "visual.transformer.resblocks"),
        Rule("image.norm.{p}", ("visual.ln_post.{p}",)),
        Rule("projection.weight", ("visual.proj",), TRANSPOSED),
        Rule("text.token_embedding.weight", ("token_embedding.weight",)),
        Rule("text.positions", ("positional_embedding",)),
        *blocks("text.blocks", "transformer.resblocks"),
        Rule("text.norm.{p}", ("ln_final.{p}",)),
        Rule("text.projection.weight", ("text_projection",), TRANSPOSED),
        Rule("logit_scale", ("logit_scale",)),
    )
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clip_equals_its_makers(fixtures_dir: Path, dtype: torch.dtype) -> None:
    folder = fixtures_dir / "clip"
    sizes = json.loads((folder / "config.json").read_text())["vit"]
    record = load_file(folder / "io.safetensors")
    state = torch.load(folder / "weights.vit.pt", weights_only=True)
    ids = record["in/token_ids"].long()
    image = ViTConfig(
        patch_size=sizes["vision_patch_size"],
        width=sizes["vision_width"],
        depth=sizes["vision_layers"],
        heads=sizes["vision_width"] // 64,
        image_size=sizes["image_resolution"],
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        activation="quick_gelu",
        norm_eps=1e-5,
        pre_norm=True,
        patch_bias=False,
    )
    text = TextConfig(
        vocabulary=len(state["token_embedding.weight"]),
        context=ids.shape[1],
        end=int(ids.max()),
        width=sizes["transformer_width"],
        depth=sizes["transformer_layers"],
        heads=sizes["transformer_heads"],
        embedding=sizes["embed_dim"],
        activation="quick_gelu",
    )
    model = Clip(ClipConfig(image=image, text=text), Tokenizer.learn(["unused"], 300, 8))
    ours = {name: tensor.float() for name, tensor in to_ours(state, OPENAI_CLIP).items()}
    load_state(model, ours, "weights.vit.pt")
    twin = "_f64" if dtype == torch.float64 else ""
    model = model.to(dtype).eval()
    assert_equal(model(record["image/vit"].to(dtype)).summary, record[f"vit/image_features{twin}"])
    assert_equal(model.encode_text(ids), record[f"vit/text_features{twin}"])
    back = from_ours(ours, OPENAI_CLIP)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name].float()) for name in state)
