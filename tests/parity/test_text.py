"""Our text tower against that of transformers' CLIP."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from synoptic.models.text import TextConfig, TextTower
from synoptic.weights.convert import HUGGINGFACE_CLIP_TEXT, from_ours, load_state, to_ours

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}  # of the reference's largest absolute value
END = 29


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE[theirs.dtype] * theirs.abs().max().item())


def file_of(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


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
    assert_equal(answer, expected)

    weights = torch.randn_like(expected)
    (answer * weights).sum().backward()
    (expected * weights).sum().backward()
    with torch.no_grad():  # gradients go through the same converter as weights
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    expected_gradients = to_ours(file_of(theirs, tmp_path), HUGGINGFACE_CLIP_TEXT)
    for name, parameter in ours.named_parameters():
        assert_equal(parameter.grad, expected_gradients[name])


def test_weights_survive_the_way_there_and_back(tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path, "gelu", torch.float32)
    back = from_ours(ours.state_dict(), HUGGINGFACE_CLIP_TEXT)
    file = file_of(theirs, tmp_path)
    assert back.keys() == file.keys()
    assert all(torch.equal(back[name], file[name]) for name in file)
