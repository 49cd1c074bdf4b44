"""The Vision Transformer and its layers: shapes, sizes, options, and the errors that name what would work."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from synoptic.models.layers import Attention, Block, LayerScale, QuickGELU, SwiGLU, attend
from synoptic.models.vit import NAMES, ConvStem, ViT, ViTConfig, vit_config

TINY: dict[str, Any] = {"patch_size": 4, "width": 12, "depth": 2, "heads": 3, "image_size": 16}


def tiny(**changes: Any) -> ViT:
    torch.manual_seed(0)
    model = ViT(ViTConfig(**TINY | changes))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def pictures(batch: int = 2, height: int = 16, width: int = 16, channels: int = 3) -> Tensor:
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "millions"),  # as published for the networks without their classifiers
    [
        ("vit_ti16", 5.52),
        ("vit_s16", 21.67),
        ("vit_s14", 21.62),
        ("vit_b16", 85.80),
        ("vit_b32", 87.46),
        ("vit_l16", 303.30),
        ("vit_h14", 630.76),
        ("vit_so400m14", 412.44),
    ],
)
def test_names_have_the_published_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = ViT(vit_config(name))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions


def test_the_giant_with_dinov2s_options_has_its_exact_size() -> None:
    with torch.device("meta"):
        model = ViT(vit_config("vit_g14", image_size=518, layer_scale=1e-5, mask_token=True))
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_136_480_768


@pytest.mark.parametrize("name", ["vit_mini8", "vit_mini16"])
def test_the_mini_family_is_for_small_machines(name: str) -> None:
    model = ViT(vit_config(name)).eval()
    assert 1e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 3e6
    assert model.stride == int(name.removeprefix("vit_mini"))
    assert model(pictures(1, 96, 64)).patches.shape == (1, 96 * 64 // model.stride**2, 192)


def test_every_name_resolves_and_others_do_not() -> None:
    assert all(name.endswith(str(vit_config(name).patch_size)) for name in NAMES)
    with pytest.raises(ValueError, match=r"unknown architecture 'vit_b15'; did you mean vit_b16"):
        vit_config("vit_b15")


@given(
    patch=st.integers(1, 9),
    native=st.integers(1, 4),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    channels=st.integers(1, 6),
    tokens=st.integers(0, 3),
    registers=st.integers(0, 3),
    position=st.sampled_from(["learned", "cpe"]),
    training=st.booleans(),
)
def test_any_patch_size_picture_size_bands_and_tokens(
    patch: int,
    native: int,
    grid: tuple[int, int],
    channels: int,
    tokens: int,
    registers: int,
    position: Any,
    training: bool,
) -> None:
    config = ViTConfig(
        patch_size=patch,
        width=8,
        depth=1,
        heads=2,
        image_size=native * patch,
        channels=channels,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
        summary_tokens=tokens,
        registers=registers,
        position=position,
    )
    model = ViT(config).train(training)
    features = model(pictures(2, grid[0] * patch, grid[1] * patch, channels))
    assert features.grid == grid
    assert features.patches.shape == (2, grid[0] * grid[1], 8)
    assert (None if features.summary is None else features.summary.shape) == ((2, 8 * tokens) if tokens else None)
    assert model.summary_width == 8 * tokens
    assert model.channels == channels


@given(st.integers(2, 20), st.integers(1, 70), st.integers(1, 70))
def test_a_size_that_does_not_fit_is_answered_with_sizes_that_do(patch: int, height: int, width: int) -> None:
    model = ViT(ViTConfig(patch_size=patch, width=4, depth=1, heads=1, image_size=patch)).eval()
    if height % patch == 0 and width % patch == 0:
        assert model(pictures(1, height, width)).grid == (height // patch, width // patch)
        return
    with pytest.raises(ValueError, match=f"pictures of {height}x{width} are not tiled by patches of {patch}") as error:
        model(pictures(1, height, width))
    proposed = [(int(h), int(w)) for h, w in re.findall(r"(\d+)x(\d+)", str(error.value))[1:]]
    assert len(proposed) == 2
    for h, w in proposed:
        assert abs(h - height) < patch
        assert abs(w - width) < patch
        model(pictures(1, h, w))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "heads=5 does not divide width=12"),
        ({"image_size": 18}, "image_size=18 is no multiple of patch_size=4"),
        ({"channels": 4}, "channels=4 needs as many values in mean"),
        ({"heads": 0}, "heads=0 should be from 1 to 32768"),
        ({"width": 0}, "width=0 should be from 1 to"),
        ({"patch_size": 0}, "patch_size=0 should be from 1 to"),
        ({"image_size": 0}, "image_size=0 should be from 1 to"),
        ({"hidden": 0}, "hidden=0 should be from 1 to"),
        ({"channels": 0, "mean": (), "std": ()}, "channels=0 should be from 1 to"),
        ({"registers": -1}, "registers=-1 should be from 0 to"),
        ({"summary_tokens": -1}, "summary_tokens=-1 should be from 0 to"),
        ({"depth": -1}, "depth=-1 should be from 0 to 1024"),
        ({"depth": 10**9}, "depth=1000000000 should be from 0 to 1024"),
        ({"std": (0.5, 0.0, 0.5)}, "std=(0.5, 0.0, 0.5) should be above 0"),
        ({"norm_eps": 0.0}, "norm_eps=0.0 should be above 0"),
        ({"drop_path": 1.0}, "drop_path=1.0 from 0 to below 1"),
        ({"position_dropout": 1.5}, "position_dropout=1.5 from 0 to 1"),
        ({"position_offset": 1.0}, "position_offset=1.0 should be from 0"),
        ({"stem": "conv", "patch_size": 14, "image_size": 28}, "patch_size=14 must be 4, 8, 16 or 32"),
    ],
)
def test_configurations_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ViTConfig(**TINY | changes)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 4, 16, 16), (1, 3, 0, 16)])
def test_pictures_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected pictures of shape \(B, 3, H, W\)|not tiled"):
        tiny()(torch.zeros(shape))


def test_patches_are_row_major_windows_of_the_normalised_picture() -> None:
    model = tiny(depth=0, final_norm=False, summary_tokens=0)
    nn.init.zeros_(model.positions.table)
    images = pictures(1, 8, 12)
    normal = (images[0] - torch.tensor(model.config.mean)[:, None, None]) / torch.tensor(model.config.std)[
        :, None, None
    ]
    patches = model(images).patches[0]
    for row in range(2):
        for column in range(3):
            window = normal[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            expected = (model.patch_embed.weight * window).sum((1, 2, 3)) + model.patch_embed.bias
            torch.testing.assert_close(patches[row * 3 + column], expected)


def test_the_convolutional_stem_sees_where_things_are() -> None:
    stem = ConvStem(3, 16, 8)
    assert stem(pictures(2, 24, 40)).shape == (2, 16, 3, 5)
    image = pictures(1, 48, 48).requires_grad_()
    convolutions = nn.Sequential(*(layer for layer in stem if isinstance(layer, nn.Conv2d)))
    convolutions(image)[0, :, 1, 4].sum().backward()  # without the norms, which look at the whole picture
    rows, columns = image.grad[0].abs().sum(0).nonzero().unbind(1)
    assert (rows.min(), rows.max()) == (8 - 7, 15)
    assert (columns.min(), columns.max()) == (32 - 7, 39)


def test_normalisation_is_inside() -> None:
    model, plain = tiny(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)), tiny(mean=(0, 0, 0), std=(1, 1, 1))
    plain.load_state_dict(model.state_dict())
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    torch.testing.assert_close(model(pictures()).summary, plain((pictures() - mean) / std).summary)


def test_a_picture_does_not_see_the_others_of_its_batch() -> None:
    model = tiny(stem="conv")
    images = pictures(4)
    alone = torch.cat([model(image[None]).patches for image in images])
    torch.testing.assert_close(model(images).patches, alone)


def test_several_summary_tokens_are_concatenated_and_registers_thrown_away() -> None:
    model = tiny(summary_tokens=2, registers=3)
    features = model(pictures())
    with torch.no_grad():  # swapping the tokens with their positions swaps the answers
        model.summary_token.copy_(model.summary_token.flip(1))
        model.positions.table[:, :2] = model.positions.table[:, :2].flip(1)
    swapped = model(pictures())
    torch.testing.assert_close(swapped.summary.unflatten(1, (2, 12)).flip(1).flatten(1), features.summary)
    torch.testing.assert_close(swapped.patches, features.patches)
    with torch.no_grad():
        model.register_token.mul_(2)
    assert not torch.allclose(model(pictures()).patches, features.patches)  # though others attend to them


def test_layers_come_in_the_order_asked_for() -> None:
    model = tiny(depth=3)
    features = model(pictures(), layers=(-1, 0, 1))
    assert len(features.layers) == 3
    assert torch.equal(features.layers[0].patches, features.patches)
    assert torch.equal(features.layers[0].summary, features.summary)
    first = tiny(depth=1)
    first.load_state_dict({key: model.state_dict()[key] for key in first.state_dict()})
    torch.testing.assert_close(features.layers[1].patches, first(pictures()).patches)
    for layer in (3, -4):
        with pytest.raises(ValueError, match=f"no layer {layer}; this network has 3, 0 to 2"):
            model(pictures(), layers=(layer,))


def test_masked_patches_are_not_seen() -> None:
    model = tiny(mask_token=True)
    images, other = pictures(1), pictures(1)
    other[..., :4, :4] = 0.9  # the first patch
    masks = torch.zeros(1, 16, dtype=torch.bool)
    masks[0, 0] = True
    assert not torch.allclose(model(images).patches, model(other).patches)
    assert torch.equal(model(images, masks).patches, model(other, masks).patches)
    assert not torch.allclose(model(images, masks).patches, model(images).patches)
    with pytest.raises(ValueError, match="mask_token=False"):
        tiny()(images, masks)


def test_unused_tokens_are_no_parameters() -> None:
    names = {name for name, _ in tiny(summary_tokens=0).named_parameters()}
    assert not names & {"summary_token", "register_token", "mask_token"}


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "quick_gelu", "pre_norm": True, "patch_bias": False},
        {"feed_forward": "swiglu", "layer_scale": 0.1, "qkv_bias": False},
        {"position": "cpe", "registers": 2, "final_norm": False},
        {"stem": "conv", "drop_path": 0.2, "hidden": 20},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_parameter_learns(options: dict[str, Any]) -> None:
    model = tiny(**options).train()
    torch.manual_seed(3)
    features = model(pictures(8))
    (features.patches.square().sum() + features.summary.square().sum()).backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0] == []


def test_evaluation_is_deterministic_and_training_is_not() -> None:
    model = tiny(drop_path=0.5, position="cpe")
    assert torch.equal(model(pictures()).summary, model(pictures()).summary)
    model.train()
    assert not torch.equal(model(pictures()).summary, model(pictures()).summary)


def test_bfloat16_autocast_stays_close() -> None:
    model = tiny(stem="conv", summary_tokens=2)
    exact = model(pictures())
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(pictures())
    assert (rough.patches.float() - exact.patches).abs().max() < 0.05 * exact.patches.abs().max()
    assert (rough.summary.float() - exact.summary).abs().max() < 0.05 * exact.summary.abs().max()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_attention_is_what_its_definition_says(causal: bool, gradient: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 7, 8, dtype=torch.float64).to(dtype).unbind()  # each (B, heads, N, d)
    scores = query.double() @ key.double().mT / 8**0.5
    if causal:
        scores = scores.masked_fill(torch.ones(7, 7, dtype=torch.bool).triu(1), -torch.inf)
    expected = scores.softmax(-1) @ value.double()
    answer = attend(query.requires_grad_(gradient), key, value, causal)
    assert answer.dtype == dtype
    torch.testing.assert_close(answer.double(), expected, rtol=0, atol=1e-2 if dtype == torch.bfloat16 else 1e-12)


def test_heads_look_at_their_own_channels() -> None:
    torch.manual_seed(0)
    layer = Attention(6, 3).double()
    tokens = torch.randn(1, 5, 6, dtype=torch.float64)
    query, key, value = layer.qkv(tokens)[0].chunk(3, dim=1)
    heads = [
        (query[:, part] @ key[:, part].T / 2**0.5).softmax(1) @ value[:, part]
        for part in (slice(0, 2), slice(2, 4), slice(4, 6))
    ]
    torch.testing.assert_close(layer(tokens[0], ((1, 5),)), layer.proj(torch.cat(heads, dim=1)))


def test_quick_gelu_swiglu_and_layer_scale() -> None:
    x = torch.linspace(-4, 4, 9)
    torch.testing.assert_close(QuickGELU()(x), x / (1 + torch.exp(-1.702 * x)))
    with torch.no_grad():
        torch.testing.assert_close(QuickGELU()(x), x / (1 + torch.exp(-1.702 * x)))
    assert torch.equal(x, torch.linspace(-4, 4, 9))
    layer = SwiGLU(12, 48)
    assert layer.w12.out_features == 2 * 32  # two thirds of 48
    gate, value = layer.w12(x[None, :1].expand(1, 12)).chunk(2, dim=-1)
    torch.testing.assert_close(layer(x[None, :1].expand(1, 12)), layer.w3(gate * gate.sigmoid() * value))
    assert torch.equal(LayerScale(3, 0.5)(torch.ones(2, 3)), torch.full((2, 3), 0.5))


def test_layer_scale_near_zero_begins_with_the_identity() -> None:
    tokens = torch.randn(10, 12)
    torch.testing.assert_close(Block(12, 3, 48, layer_scale=1e-6)(tokens, ((2, 5),)), tokens, rtol=0, atol=1e-4)


GROUPS = ((10, 3), (4, 2))  # ten pictures of three tokens, four of two


def test_stochastic_depth_computes_a_branch_for_some_pictures_and_keeps_the_mean() -> None:
    """Of ten pictures three are left out, of four one; over many draws the residual is the whole one."""
    torch.manual_seed(0)
    block = Block(12, 3, 24, drop_path=0.3).double()
    tokens = torch.randn(38, 12, dtype=torch.float64)
    whole = block.eval()._residual(tokens, GROUPS, block._feed_forward) - tokens
    block.train()
    draws = torch.stack([block._residual(tokens, GROUPS, block._feed_forward) - tokens for _ in range(2000)])
    for part, (batch, count), kept in zip(draws.split([30, 8], dim=1), GROUPS, (7, 3), strict=True):
        chosen = part.unflatten(1, (batch, count)).abs().sum((2, 3)) > 0
        assert (chosen.sum(1) == kept).all()
        scaled = whole[:30] if batch == 10 else whole[30:]
        rows = chosen.repeat_interleave(count, dim=1)
        torch.testing.assert_close(part[0][rows[0]], scaled[rows[0]] * batch / kept)
    mean = draws.mean(0)
    assert (mean - whole).abs().max() < 0.1 * whole.abs().max()  # four standard deviations of 2,000 draws are 0.06


def test_a_picture_that_is_left_out_costs_nothing() -> None:
    """The branch sees the chosen pictures alone; attention among them is that of the whole pictures."""
    torch.manual_seed(0)
    block = Block(12, 3, 24, drop_path=0.5).train()
    seen: list[tuple[int, int]] = []

    def branch(tokens: torch.Tensor, groups: tuple[tuple[int, int], ...]) -> torch.Tensor:
        seen.append((len(tokens), sum(batch * count for batch, count in groups)))
        return block._attention(tokens, groups)

    tokens = torch.randn(38, 12)
    added = block._residual(tokens, GROUPS, branch) - tokens
    assert seen == [(19, 19)]
    whole = block.attn(block.norm1(tokens), GROUPS)
    rows = added.abs().sum(1) > 0
    torch.testing.assert_close(added[rows], 2 * whole[rows], rtol=0, atol=1e-6)


def test_one_picture_always_stays() -> None:
    block = Block(12, 3, 24, drop_path=0.9).train()
    tokens = torch.randn(3, 12)
    assert not torch.equal(block(tokens, ((1, 3),)), tokens)


def test_drop_path_rises_from_the_first_block_to_the_last_or_is_uniform() -> None:
    rates = [block.drop_path for block in tiny(depth=5, drop_path=0.4).blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert [block.drop_path for block in tiny(depth=3, drop_path=0.4, drop_path_uniform=True).blocks] == [0.4] * 3


SIZES = ((3, 24, 16), (2, 8, 8), (4, 16, 24))  # pictures, height, width


@pytest.mark.parametrize(
    "changes", [{}, {"registers": 2, "summary_tokens": 0}, {"position": "cpe"}, {"pre_norm": True}]
)
def test_packed_pictures_are_encoded_as_apart(changes: dict[str, object]) -> None:
    """Outputs, intermediate layers and gradients: in float64 equal to one forward pass for each size."""
    torch.manual_seed(0)
    vit = tiny(mask_token=True, layer_scale=0.5, **changes).double().eval()
    groups = [torch.rand(count, 3, height, width, dtype=torch.float64) for count, height, width in SIZES]
    mask = torch.rand(3, 24 * 16 // vit.stride**2) < 0.4
    packed = vit(groups, [mask, None, None], layers=(0, -1))
    apart = [vit(group, mask if place == 0 else None, (0, -1)) for place, group in enumerate(groups)]
    gradients = []
    for answers in (packed, apart):
        vit.zero_grad()
        sum(part.patches.square().sum() + part.layers[0].patches.sum() for part in answers).backward()
        gradients.append({name: parameter.grad for name, parameter in vit.named_parameters()})
    for one, other in zip(packed, apart, strict=True):
        assert one.grid == other.grid and len(one.layers) == 2
        torch.testing.assert_close(one.patches, other.patches, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(one.layers[0].patches, other.layers[0].patches, rtol=1e-9, atol=1e-12)
        if one.summary is not None:
            torch.testing.assert_close(one.summary, other.summary, rtol=1e-9, atol=1e-12)
    for name, gradient in gradients[0].items():
        if gradient is not None:
            torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-9, atol=1e-12)


def test_attention_is_what_the_fused_kernel_uses() -> None:
    """The weights of every token, applied to the values, give what the block's attention gives."""
    torch.manual_seed(0)
    vit = tiny(registers=1).double().eval()
    images = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    tokens, groups, _ = vit._pack([images], [None])
    count = groups[0][1]
    for block in vit.blocks[:-1]:
        tokens = block(tokens, groups)
    attention = vit.blocks[-1].attn
    weights = vit.attention(images, queries=count)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]).double())
    normed = vit.blocks[-1].norm1(tokens)
    values = normed @ attention.qkv.weight.chunk(3)[2].T + attention.qkv.bias.chunk(3)[2]
    values = values.view(2, count, attention.heads, -1).transpose(1, 2)
    mixed = (weights @ values).transpose(1, 2).reshape(2 * count, -1)
    torch.testing.assert_close(attention.proj(mixed), attention(normed, groups))
    torch.testing.assert_close(vit.attention(images), weights[:, :, :1])
    with pytest.raises(ValueError, match="no layer 7"):
        vit.attention(images, layer=7)


def test_activation_is_the_one_named() -> None:
    images = pictures()
    gelu, quick = tiny(activation="gelu"), tiny(activation="quick_gelu")
    quick.load_state_dict(gelu.state_dict())
    assert not torch.allclose(gelu(images).summary, quick(images).summary, atol=1e-6)
    hidden = torch.randn(3, 12)
    block = gelu.blocks[0].mlp
    torch.testing.assert_close(block(hidden), block.fc2(F.gelu(block.fc1(hidden))))
