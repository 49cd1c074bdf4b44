"""SAM's image encoder: windows, relative positions, any size, and no more memory than it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from synoptic.config import from_dict, to_dict
from synoptic.models import sam_attention
from synoptic.models.linear import quicken
from synoptic.models.sam import Sam, SamConfig
from synoptic.models.sam_attention import RelativeAttention, SamBlock, from_windows, relative_rows, to_windows
from synoptic.models.sam_decoder import SamDecoderConfig

TINY = SamConfig(
    patch_size=4, width=12, depth=3, heads=2, hidden=20, image_size=24, window=4, global_blocks=(1,), embedding=8
)
DECODER = SamDecoderConfig(heads=2, hidden=12, mask_channels=4, iou_hidden=6)


@torch.no_grad()
def randomly(model: nn.Module) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


@given(height=st.integers(1, 9), width=st.integers(1, 9), window=st.integers(1, 5), batch=st.integers(1, 3))
def test_windows_hold_everything_once_and_zeros_beside(height: int, width: int, window: int, batch: int) -> None:
    tokens = torch.rand(batch, height, width, 2) + 1
    windows = to_windows(tokens, window)
    lines, columns = -(-height // window), -(-width // window)
    assert windows.shape == (batch * lines * columns, window, window, 2)
    assert torch.equal(from_windows(windows, (height, width)), tokens)
    assert int((windows == 0).sum()) == 2 * batch * (lines * columns * window**2 - height * width)
    below = (lines > 1) * columns  # the window under the first, row by row
    assert torch.equal(windows[below, 0, 0], tokens[0, below and window, 0])


@given(trained=st.integers(1, 6), side=st.integers(1, 8))
def test_rows_of_a_table_stand_for_distances(trained: int, side: int) -> None:
    """The first row is for a key behind the query by all it can be, the last for one as far before it."""
    table = torch.rand(2 * trained - 1, 3, dtype=torch.float64)
    rows = relative_rows(table, side)
    if side != trained:
        table = F.interpolate(table.T[None], size=2 * side - 1, mode="linear")[0].T
    for query in range(side):
        for key in range(side):
            assert torch.equal(rows[query, key], table[query - key + side - 1])


def test_at_the_trained_size_a_table_is_taken_as_it_is() -> None:
    table = torch.rand(9, 3, dtype=torch.bfloat16)
    assert torch.equal(relative_rows(table, 5)[0], table[:5].flip(0))
    assert relative_rows(table, 7).dtype == torch.bfloat16


def slowly(attention: RelativeAttention, tokens: Tensor) -> Tensor:
    """The same attention, written out: every score apart."""
    count, height, width, channels = tokens.shape
    each = channels // attention.heads
    query, key, value = attention.qkv(tokens).unflatten(3, (3, attention.heads, each)).unbind(3)  # (N, h, w, heads, d)
    down, across = relative_rows(attention.down, height), relative_rows(attention.across, width)
    mixed = torch.zeros(count, height, width, attention.heads, each, dtype=tokens.dtype)
    for n in range(count):
        for head in range(attention.heads):
            for y in range(height):
                for x in range(width):
                    asked = query[n, y, x, head]
                    scores = (key[n, :, :, head] @ asked) / each**0.5
                    scores = scores + (down[y] @ asked)[:, None] + (across[x] @ asked)[None, :]
                    shares = scores.flatten().softmax(0).view(height, width, 1)
                    mixed[n, y, x, head] = (shares * value[n, :, :, head]).sum((0, 1))
    return attention.proj(mixed.flatten(3))


@settings(max_examples=15)
@given(height=st.integers(1, 5), width=st.integers(1, 5), side=st.integers(1, 5), count=st.integers(1, 3))
def test_attention_adds_what_the_unscaled_query_says_of_distances(
    height: int, width: int, side: int, count: int
) -> None:
    attention = randomly(RelativeAttention(6, 2, side)).double()
    tokens = torch.rand(count, height, width, 6, dtype=torch.float64)
    torch.testing.assert_close(attention(tokens), slowly(attention, tokens), rtol=0, atol=1e-12)


@pytest.mark.parametrize("most", [1, 40, 400, 2000])
def test_memory_is_bounded_and_the_answer_is_the_same(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little is held at once: single lines of queries of single heads at the least."""
    attention, tokens = randomly(RelativeAttention(6, 2, 4)).double(), torch.rand(3, 5, 4, 6, dtype=torch.float64)
    expected, held = attention(tokens), []
    kernel = F.scaled_dot_product_attention

    def watched(*parts: Tensor, attn_mask: Tensor) -> Tensor:
        held.append(attn_mask.numel())
        return kernel(*parts, attn_mask=attn_mask)

    monkeypatch.setattr(sam_attention, "MOST_TERMS", most)
    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    torch.testing.assert_close(attention(tokens), expected, rtol=0, atol=1e-12)
    assert max(held) <= max(most, 5 * 4 * 4) and sum(held) == 3 * 2 * 20**2


def test_a_released_sam_holds_the_terms_of_one_head_at_once() -> None:
    assert sam_attention.MOST_TERMS == 64**4


def test_a_windowed_block_looks_no_further_than_its_window_and_a_global_one_everywhere() -> None:
    tokens = torch.rand(1, 6, 6, 12)
    changed = tokens.clone()
    changed[0, 5, 5, 0] += 1
    for window, reach in ((3, torch.ones(3, 3, dtype=torch.bool)), (0, torch.ones(6, 6, dtype=torch.bool))):
        block = randomly(SamBlock(12, 2, 20, window=window, side=6))
        moved = (block(changed) != block(tokens)).any(-1)[0]
        assert torch.equal(moved, F.pad(reach, (6 - len(reach), 0, 6 - len(reach), 0)))


def test_what_fills_a_window_takes_part() -> None:
    """Zeros come after the norm, and are keys and values like others: those that the biases make."""
    block = randomly(SamBlock(12, 2, 20, window=4, side=6)).double()
    tokens = torch.rand(1, 6, 6, 12, dtype=torch.float64)
    normed = block.norm1(tokens)
    found = (block(tokens) - block.mlp(block.norm2(tokens + block._attention(normed))) - tokens)[:, 4:, 4:]
    last = F.pad(normed[:, 4:, 4:], (0, 0, 0, 2, 0, 2))  # the window at the corner
    torch.testing.assert_close(found, slowly(block.attn, last)[:, :2, :2], rtol=0, atol=1e-10)
    assert (found - slowly(block.attn, normed[:, 4:, 4:])).abs().max() > 1e-3


@pytest.mark.parametrize(("height", "width"), [(24, 24), (24, 40), (8, 16), (4, 4), (52, 12)])
def test_any_size_that_patches_tile(height: int, width: int) -> None:
    model = randomly(Sam(TINY))
    features = model(torch.rand(2, 3, height, width), layers=(0, -1))
    assert features.grid == (height // 4, width // 4) and features.summary is None
    assert features.patches.shape == (2, height * width // 16, 8)
    assert [layer.patches.shape for layer in features.layers] == [(2, height * width // 16, 12)] * 2
    assert features.patches.isfinite().all()


def test_pictures_of_a_batch_do_not_see_each_other() -> None:
    model, images = randomly(Sam(TINY)).double(), torch.rand(3, 3, 20, 28, dtype=torch.float64)
    whole = model(images).patches
    torch.testing.assert_close(torch.cat([model(image[None]).patches for image in images]), whole, rtol=0, atol=1e-12)


def test_layers_are_what_blocks_give_before_the_neck() -> None:
    model, images = randomly(Sam(TINY)), torch.rand(1, 3, 24, 24)
    kept: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda *parts: kept.append(parts[2])) for block in model.encoder.blocks]
    features = model(images, layers=(2, 0, -2))
    for hook in hooks:
        hook.remove()
    for layer, index in zip(features.layers, (2, 0, 1), strict=True):
        assert torch.equal(layer.patches, kept[index].flatten(1, 2)) and layer.grid == (6, 6)
    maps = model.encoder.neck(kept[2].permute(0, 3, 1, 2))
    assert torch.equal(maps.flatten(2).mT, features.patches)


def test_gradients_reach_every_weight_of_the_encoder() -> None:
    model = randomly(Sam(TINY)).train()
    model(torch.rand(1, 3, 32, 24)).patches.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_quick_layers_and_half_precision_say_about_the_same() -> None:
    model, images = randomly(Sam(TINY)), torch.rand(1, 3, 24, 24)
    with torch.no_grad():
        expected = model(images).patches
        quicken(model)
        torch.testing.assert_close(model(images).patches, expected, rtol=0, atol=1e-4)
        half = model.bfloat16()(images.bfloat16()).patches
    assert half.dtype == torch.bfloat16
    assert F.cosine_similarity(half.float(), expected, dim=-1).min() > 0.95


def test_what_cannot_be_encoded_is_told() -> None:
    model = Sam(TINY)
    with pytest.raises(ValueError, match="pictures of 24x25 are not tiled by patches of 4"):
        model(torch.rand(1, 3, 24, 25))
    with pytest.raises(ValueError, match=r"expected pictures of shape \(B, 3, H, W\), got \(1, 1, 24, 24\)"):
        model(torch.rand(1, 1, 24, 24))
    with pytest.raises(ValueError, match="there is no layer 3; this network has 3, 0 to 2"):
        model(torch.rand(1, 3, 24, 24), layers=(3,))
    with pytest.raises(ValueError, match="masks were given to a SAM, which hides nothing"):
        model(torch.rand(1, 3, 24, 24), masks=torch.zeros(1, 36, dtype=torch.bool))
    decoder = Sam(replace(TINY, decoder=DECODER)).decoder
    with pytest.raises(ValueError, match=r"expected the embedding of \(6, 6\) patches, got that of \(5, 6\)"):
        decoder(torch.rand(1, 8, 5, 6), boxes=torch.rand(1, 4))


def test_the_configuration_survives_json() -> None:
    for config in (TINY, replace(TINY, decoder=DECODER)):
        assert from_dict(SamConfig, to_dict(config), "config.json") == config


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"heads": 5}, "heads=5 does not divide width=12"),
        ({"image_size": 25}, "image_size=25 is no multiple of patch_size=4"),
        ({"global_blocks": (3,)}, r"global_blocks=\(3,\) should be blocks from 0 to 2"),
        ({"global_blocks": (-1,)}, r"global_blocks=\(-1,\) should be blocks"),
        ({"window": 0}, "window=0 should be from 1"),
        ({"depth": 10**9}, "depth=1000000000 should be from 0"),
        ({"embedding": 10**9}, "embedding=1000000000 should be from 1"),
        ({"mean": (0.5,)}, "channels=3 needs as many values in mean="),
        ({"std": (0.5, 0.5, 0.0)}, "should be above 0"),
        ({"norm_eps": 0.0}, "norm_eps=0.0 and std="),
        ({"decoder": {"heads": 3}}, "decoder.heads=3 and 8 should divide embedding=8"),
        ({"decoder": {"heads": 8, "downsample": 2}}, "and the heads its 4 channels after decoder.downsample=2"),
        ({"decoder": {"heads": 2, "mask_channels": 6}}, "mask_channels=6 should be a multiple of 4"),
        ({"decoder": {"heads": 2, "norm_eps": -1.0}}, "norm_eps=-1.0 should be above 0"),
        ({"decoder": {"heads": 2, "masks": 0}}, "masks=0 should be from 1"),
    ],
)
def test_impossible_configurations_are_told_in_one_line(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        from_dict(SamConfig, to_dict(TINY) | values, "config.json: model")
    assert "\n" not in str(error.value)
