"""The Vision Transformer: any patch size, any size of picture that the patches tile, any number of bands.

Source: Dosovitskiy et al. 2021 (arXiv 2010.11929); registers: Darcet et al. 2024 (arXiv 2309.16588); convolutional
stem: Xiao et al. 2021 (arXiv 2106.14881).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from synoptic.models.bounds import check_sizes, check_transformer
from synoptic.models.layers import Activation, Block, FeedForward, Groups, Normalize, init_linear
from synoptic.models.pooling import AttentionPool
from synoptic.models.positions import CroppedPositions, Interpolation, LearnedPositions
from synoptic.models.windows import Windows, is_global
from synoptic.types import Features

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Everything that decides a ViT's function, beside its weights.

    Attributes:
        patch_size: side of a patch in pixels.
        width: channels D of the tokens.
        depth: transformer blocks.
        heads: attention heads; divides `width`.
        hidden: width of the feed-forward layers; None takes four times `width`.
        image_size: side of the picture that the position table covers, in pixels.
        channels: bands of the pictures.
        mean, std: pixel statistics a band, of pictures in [0, 1], with which the input is normalised.
        stem: "patch" cuts patches with one strided convolution; "conv" halves the picture with 3x3 convolutions,
            which small models learn much faster with.
        summary_tokens: learned tokens that gather the summary; several are concatenated; with 0 there is none.
        registers: further learned tokens that are thrown away (they take over what models else keep in patches).
        position: "learned" or "cpe".
        interpolation, antialias, position_offset: see LearnedPositions.
        align_corners, position_dropout: see CroppedPositions.
        feed_forward, activation, qkv_bias, layer_scale, norm_eps: see layers.Block.
        drop_path: stochastic depth of the last block, rising linearly from zero at the first.
        drop_path_uniform: the same depth in all blocks instead (DINOv2).
        pre_norm: LayerNorm before the first block (CLIP).
        final_norm: LayerNorm after the last block (RADIO has none).
        mask_token: a learned token in place of masked patches.
        patch_bias: bias of the patch embedding (CLIP and RADIO have none).
        pool: what the summary is: the summary "tokens", or an "attention" over the patches (SigLIP), without any token.
        window: side in patches of the windows in which most blocks attend outside of training; None attends over the
            whole picture everywhere.
        patch_normaliser: whether what is answered of patches, though not of layers, goes through a `PatchNormaliser`.
        global_blocks: how many blocks attend over the whole picture where windows are asked for; see windows.is_global.
    """

    patch_size: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    hidden: int | None = None
    image_size: int = 224
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    stem: Literal["patch", "conv"] = "patch"
    summary_tokens: int = 1
    registers: int = 0
    position: Literal["learned", "cpe"] = "learned"
    interpolation: Interpolation = "bicubic"
    antialias: bool = False
    position_offset: float = 0.0
    align_corners: bool = True
    position_dropout: float = 0.1
    feed_forward: FeedForward = "mlp"
    activation: Activation = "gelu"
    qkv_bias: bool = True
    layer_scale: float | None = None
    norm_eps: float = 1e-6
    drop_path: float = 0.0
    drop_path_uniform: bool = False
    pre_norm: bool = False
    final_norm: bool = True
    mask_token: bool = False
    patch_bias: bool = True
    pool: Literal["tokens", "attention"] = "tokens"
    window: int | None = None
    global_blocks: int = 4
    patch_normaliser: bool = False

    def __post_init__(self) -> None:
        check_transformer(self)
        check_sizes(self, "patch_size", "hidden", "image_size", "channels", "window", "global_blocks")
        check_sizes(self, "summary_tokens", "registers", least=0)
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} is no multiple of patch_size={self.patch_size}")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"channels={self.channels} needs as many values in mean={self.mean} and std={self.std}")
        if not all(deviation > 0 for deviation in self.std):
            raise ValueError(f"std={self.std} should be above 0, since pictures are divided by it")
        if not (self.norm_eps > 0 and 0 <= self.drop_path < 1 and 0 <= self.position_dropout <= 1):
            raise ValueError(
                f"norm_eps={self.norm_eps} should be above 0, drop_path={self.drop_path} from 0 to below 1, "
                f"position_dropout={self.position_dropout} from 0 to 1"
            )
        if not 0 <= self.position_offset < 1:
            raise ValueError(f"position_offset={self.position_offset} should be from 0 to below 1 cell of the grid")
        if self.pool == "attention" and self.summary_tokens:
            raise ValueError(f"pool='attention' makes the summary, so summary_tokens={self.summary_tokens} should be 0")
        if self.stem == "conv" and self.patch_size not in (4, 8, 16, 32):
            raise ValueError(f"stem='conv' halves the picture, so patch_size={self.patch_size} must be 4, 8, 16 or 32")


# width, depth, heads, hidden
_SIZES: dict[str, tuple[int, int, int, int]] = {
    "nano": (128, 4, 2, 512),
    "mini": (192, 4, 3, 768),
    "ti": (192, 12, 3, 768),
    "s": (384, 12, 6, 1536),
    "b": (768, 12, 12, 3072),
    "l": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "h": (1280, 32, 16, 5120),
    "g": (1536, 40, 24, 6144),
}
_PATCHES: dict[str, tuple[int, ...]] = {"nano": (8, 16), "mini": (8, 16)}  # other sizes come with all patches
NAMES: tuple[str, ...] = tuple(f"vit_{size}{patch}" for size in _SIZES for patch in _PATCHES.get(size, (8, 14, 16, 32)))


def vit_config(name: str, **changes: Any) -> ViTConfig:
    """The configuration of a built-in architecture, such as `vit_s14`, with `changes` to its fields.

    `vit_nano*` and `vit_mini*` have the convolutional stem, and positions for 96-pixel pictures; `vit_g*` have SwiGLU
    layers (DINOv2).

    Raises:
        ValueError: for a name that is not in `NAMES`.
    """
    match = re.fullmatch(r"vit_([a-z]+|so400m)(\d+)", name)
    if match is None or name not in NAMES:
        near = difflib.get_close_matches(name, NAMES)
        hint = f"did you mean {' or '.join(near)}?" if near else "`synoptic models` lists them"
        raise ValueError(f"unknown architecture {name!r}; {hint}")
    size, patch = match[1], int(match[2])
    width, depth, heads, hidden = _SIZES[size]
    config = ViTConfig(patch_size=patch, width=width, depth=depth, heads=heads, hidden=hidden)
    if size in ("nano", "mini"):
        config = replace(config, stem="conv", image_size=96)
    if size == "g":
        config = replace(config, feed_forward="swiglu")
    return replace(config, **changes)


def tiled_sizes(size: int, patch: int) -> tuple[int, int]:
    """The nearest multiples of `patch`, at least one patch, that are not above and not below `size`."""
    return max(size // patch, 1) * patch, max(-(-size // patch), 1) * patch


def patch_grid(images: Tensor, channels: int, patch: int) -> tuple[int, int]:
    """The patches down and across that tile (B, C, H, W) pictures.

    Raises:
        ValueError: there are other than so many channels, or patches do not tile the pictures.
    """
    if images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(f"expected pictures of shape (B, {channels}, H, W), got {tuple(images.shape)}")
    height, width = images.shape[-2:]
    if height % patch or width % patch or not height or not width:
        (low_h, high_h), (low_w, high_w) = tiled_sizes(height, patch), tiled_sizes(width, patch)
        raise ValueError(
            f"pictures of {height}x{width} are not tiled by patches of {patch}; "
            f"the nearest sizes that work are {low_h}x{low_w} and {high_h}x{high_w}"
        )
    return height // patch, width // patch


def block_numbers(layers: Sequence[int], depth: int) -> list[int]:
    """Blocks that are counted from 0 or, if negative, from the end, all counted from 0.

    Raises:
        ValueError: for one that does not exist.
    """
    for index in layers:
        if not -depth <= index < depth:
            raise ValueError(f"there is no layer {index}; this network has {depth}, 0 to {depth - 1}")
    return [index % depth for index in layers]


class ConvStem(nn.Sequential):
    """Strided 3x3 convolutions with GroupNorm and ReLU, then a 1x1 one; no BatchNorm, since batches may be small."""

    def __init__(self, channels: int, width: int, patch_size: int):
        steps = patch_size.bit_length() - 1
        widths = [max(width >> (steps - 1 - step), 16) for step in range(steps)]
        parts: list[nn.Module] = []
        for before, after in pairwise([channels, *widths]):
            parts += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.GroupNorm(1, after), nn.ReLU()]
        super().__init__(*parts, nn.Conv2d(widths[-1], width, 1))

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, W) -> (B, D, h, w)
        return super().forward(images.contiguous(memory_format=torch.channels_last))  # up to a quarter faster on CPUs


class PatchNormaliser(nn.Module):
    """(x - mean) tx^T of (B, N, D) patches x, by statistics of what the network answers: PHI-S of its own output.

    Source: RADIO's release radio_v2.5-h-norm; PHI-S (arXiv 2410.01680).
    """

    def __init__(self, width: int):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(width))
        self.tx = nn.Parameter(torch.eye(width))

    def forward(self, patches: Tensor) -> Tensor:
        return (patches - self.mean) @ self.tx.T


class ViT(nn.Module):
    """A Vision Transformer that answers with Features.

    Attributes:
        width: channels D of a patch.
        stride: pixels from one patch to the next, equal to the patch size.
        channels: bands of the pictures.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.width, self.stride, self.channels = config.width, config.patch_size, config.channels
        self.summary_width = config.width * (1 if config.pool == "attention" else config.summary_tokens)
        self.normalize = Normalize(config.mean, config.std)
        self.patch_embed = self._stem(config)
        self.summary_token = self._tokens(config.summary_tokens, config.width)
        self.register_token = self._tokens(config.registers, config.width)
        self.mask_token = nn.Parameter(torch.zeros(1, config.width)) if config.mask_token else None
        side = config.image_size // config.patch_size
        self.positions = self._positions(config, (side, side))
        self.pre_norm = nn.LayerNorm(config.width, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(self._block(config, index) for index in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps) if config.final_norm else nn.Identity()
        self.pool = self._pool(config)
        self.patch_normaliser = PatchNormaliser(config.width) if config.patch_normaliser else None
        self.blocks.apply(init_linear)

    @staticmethod
    def _tokens(count: int, width: int) -> nn.Parameter | None:  # (1, count, D)
        return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, count, width), std=0.02)) if count else None

    @staticmethod
    def _stem(config: ViTConfig) -> nn.Module:
        if config.stem == "conv":
            return ConvStem(config.channels, config.width, config.patch_size)
        size = config.patch_size
        return nn.Conv2d(config.channels, config.width, size, stride=size, bias=config.patch_bias)

    @staticmethod
    def _positions(config: ViTConfig, grid: tuple[int, int]) -> LearnedPositions | CroppedPositions:
        if config.position == "cpe":
            return CroppedPositions(config.width, grid, config.align_corners, config.position_dropout)
        return LearnedPositions(
            config.width, grid, config.summary_tokens, config.interpolation, config.antialias, config.position_offset
        )

    @staticmethod
    def _pool(config: ViTConfig) -> AttentionPool | None:
        if config.pool == "tokens":
            return None
        hidden = config.hidden or 4 * config.width
        return AttentionPool(config.width, config.heads, hidden, config.activation, config.norm_eps)

    @staticmethod
    def _block(config: ViTConfig, index: int) -> Block:
        return Block(
            config.width,
            config.heads,
            config.hidden or 4 * config.width,
            act=config.activation,
            feed_forward=config.feed_forward,
            qkv_bias=config.qkv_bias,
            layer_scale=config.layer_scale,
            drop_path=config.drop_path * (1.0 if config.drop_path_uniform else index / max(config.depth - 1, 1)),
            norm_eps=config.norm_eps,
        )

    @overload
    def forward(
        self, images: Tensor, masks: Tensor | None = None, layers: Sequence[int] = (), window: int | None = None
    ) -> Features: ...

    @overload
    def forward(
        self,
        images: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None = None,
        layers: Sequence[int] = (),
        window: int | None = None,
    ) -> tuple[Features, ...]: ...

    def forward(self, images: Any, masks: Any = None, layers: Sequence[int] = (), window: int | None = None) -> Any:
        """Encodes pictures.

        Args:
            images: (B, C, H, W) float in [0, 1]; H and W are multiples of the patch size. Or several such tensors of
                any sizes, which go through the network packed into one sequence.
            masks: (B, h*w) bool, patches replaced by the mask token; of several tensors of pictures one each, or None
                for those that have none.
            layers: blocks whose features are wanted too, counted from 0 or, if negative, from the end.
            window: side in patches of the windows in which all but `global_blocks` of the blocks attend, without the
                learned tokens; 0 for none. None takes the configuration's, and none while training.
        Returns:
            Features, of several tensors one each; intermediate ones pass the final norm as well.
        Raises:
            ValueError: for sizes that the patches or the windows do not tile, a wrong number of bands, layers that do
                not exist, or masks without a mask token.
        """
        if isinstance(images, Tensor):
            return self._encode([images], [masks], layers, window)[0]
        return self._encode(images, masks or [None] * len(images), layers, window)

    def _encode(
        self,
        images: Sequence[Tensor],
        masks: Sequence[Tensor | None],
        layers: Sequence[int],
        window: int | None,
    ) -> tuple[Features, ...]:
        tokens, groups, grids = self._pack(images, masks)
        wanted = block_numbers(layers, len(self.blocks))
        windows = self._windows(groups, grids, window, tokens.device)
        tokens = tokens if windows is None else windows.ordered(tokens)
        kept: dict[int, list[Features]] = {}
        for index in range(len(self.blocks)):
            tokens = self._through(index, tokens, groups, windows)
            if index in wanted:
                kept[index] = self._features(tokens, groups, grids, windows)
        answers = self._features(tokens, groups, grids, windows)
        if self.patch_normaliser is not None:
            answers = [replace(answer, patches=self.patch_normaliser(answer.patches)) for answer in answers]
        return tuple(
            replace(answer, layers=tuple(kept[index][place] for index in wanted))
            for place, answer in enumerate(answers)
        )

    def _windows(
        self, groups: Groups, grids: Sequence[tuple[int, int]], window: int | None, device: torch.device
    ) -> Windows | None:
        """How patches lie in windows of a side, in which `forward` says what None is; None for no windows."""
        side = (None if self.training else self.config.window) if window is None else window
        if not side:
            return None
        return Windows(groups, grids, self.config.summary_tokens + self.config.registers, side, self.stride, device)

    def _through(self, index: int, tokens: Tensor, groups: Groups, windows: Windows | None) -> Tensor:
        """(T, D) tokens after a block; with windows their patches lie window by window, before and after."""
        block = self.blocks[index]
        if windows is None or is_global(index, len(self.blocks), self.config.global_blocks):
            return block(tokens, groups)
        return windows.through(block, tokens)

    def alone(self, images: Tensor) -> Features:
        """Features of which every patch looks at itself alone in the last block, so that it says what is there.

        Where one key is asked, attention is the value: what is left of it is its value and output layers.

        Args:
            images: as `forward`.
        Raises:
            ValueError: as `forward`.
        Source: MaskCLIP, Zhou et al. 2022 (arXiv 2112.01071), sec. 3.2, for the last block of a ViT.
        """
        tokens, groups, grids = self._pack([images], [None])
        windows = self._windows(groups, grids, None, tokens.device)
        tokens = tokens if windows is None else windows.ordered(tokens)
        for index in range(len(self.blocks) - 1):
            tokens = self._through(index, tokens, groups, windows)
        tokens = self.blocks[-1](tokens, ((len(tokens), 1),))  # every token a picture of its own
        return self._features(tokens, groups, grids, windows)[0]

    def attention(self, images: Tensor, layer: int = -1, queries: int | None = None) -> Tensor:
        """What tokens look at in one block, computed beside the fused kernel, which never writes it down.

        Windows play no part in it: all blocks attend over the whole picture.

        Args:
            images: (B, C, H, W) float in [0, 1].
            layer: block, counted from 0 or, if negative, from the end.
            queries: how many tokens are asked about, in order: summary, registers, patches; None takes the summary.
        Returns:
            (B, heads, queries, T + R + h*w), float32 at least; rows sum to 1.
        Raises:
            ValueError: as `forward`.
        """
        (index,) = block_numbers([layer], len(self.blocks))
        tokens, groups, _ = self._pack([images], [None])
        for block in self.blocks[:index]:
            tokens = block(tokens, groups)
        asked: Any = self.blocks[index]
        count = self.config.summary_tokens if queries is None else queries
        return asked.attn.weights(asked.norm1(tokens), groups, count)[0]

    def _pack(
        self, images: Sequence[Tensor], masks: Sequence[Tensor | None]
    ) -> tuple[Tensor, Groups, list[tuple[int, int]]]:
        """All tokens (T, D) before the first block, their shapes, and the grids of the patches."""
        parts = [self._embed(group, mask) for group, mask in zip(images, masks, strict=True)]
        groups = tuple((len(part), part.shape[1]) for part in parts)
        tokens = self.pre_norm(torch.cat([part.flatten(0, 1) for part in parts]))
        return tokens, groups, [self._grid(group) for group in images]

    def _embed(self, images: Tensor, masks: Tensor | None) -> Tensor:  # (B, C, H, W) -> (B, T + R + h*w, D)
        grid = self._grid(images)
        tokens = self.patch_embed(self.normalize(images)).flatten(2).transpose(1, 2)  # (B, h*w, D)
        if masks is not None:
            if self.mask_token is None:
                raise ValueError("masks were given to a ViT whose configuration has mask_token=False")
            tokens = torch.where(masks[..., None], self.mask_token, tokens)
        # Under autocast patches come in half precision; what is added to them carries the residual stream to float32.
        summary, tokens = self.positions(self.summary_token, tokens, grid)
        learned = [part.expand(len(tokens), -1, -1) for part in (summary, self.register_token) if part is not None]
        return torch.cat([*learned, tokens], dim=1)

    def _features(
        self, tokens: Tensor, groups: Groups, grids: Sequence[tuple[int, int]], windows: Windows | None
    ) -> list[Features]:
        tokens = tokens if windows is None else windows.restored(tokens)
        parts = self.norm(tokens).split([batch * count for batch, count in groups])
        count = self.config.summary_tokens
        answers = []
        for part, shape, grid in zip(parts, groups, grids, strict=True):
            part = part.unflatten(0, shape)
            summary = part[:, :count].flatten(1) if count else None  # (B, T*D)
            patches = part[:, count + self.config.registers :]
            answers.append(Features(patches, grid, self.pool(patches) if self.pool is not None else summary))
        return answers

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return patch_grid(images, self.channels, self.stride)
