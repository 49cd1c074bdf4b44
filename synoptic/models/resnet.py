"""The ResNets of CLIP: a stem of three convolutions, blurred strides, attention in place of the last mean.

Source: Radford et al. 2021 (arXiv 2103.00020), sec. 2.4; ResNet-D: He et al. 2019 (arXiv 1812.01187); blurred strides:
Zhang 2019 (arXiv 1904.11486).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from synoptic.models.bounds import check_sizes
from synoptic.models.layers import Normalize
from synoptic.models.pooling import MeanAttentionPool
from synoptic.types import Features

STRIDE = 32  # pixels from one cell of the last map to the next
EXPANSION = 4  # channels of a block's answer over those inside


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Everything that decides the function of a CLIP ResNet, beside its weights.

    Attributes:
        blocks: bottlenecks of each of the four stages.
        width: channels of the first stage, inside of its blocks.
        heads: of the attention that pools.
        embedding: channels of the summary, which lies in the space shared with words.
        image_size: side of the picture that the position table covers, in pixels.
        mean, std: pixel statistics a band, with which pictures in [0, 1] are normalised.
    """

    blocks: tuple[int, int, int, int]
    width: int = 64
    heads: int = 32
    embedding: int = 1024
    image_size: int = 224
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        check_sizes(self, "width", "heads", "embedding", "image_size")
        if any(count < 1 for count in self.blocks):
            raise ValueError(f"blocks={self.blocks} should be 1 or more in each stage")
        if self.image_size % STRIDE:
            raise ValueError(f"image_size={self.image_size} is no multiple of {STRIDE}")
        if self.width % 2 or self.channels_out % self.heads:
            raise ValueError(f"width={self.width} should be even, and heads={self.heads} divide {self.channels_out}")
        if not len(self.mean) == len(self.std) == 3 or not all(deviation > 0 for deviation in self.std):
            raise ValueError(f"mean={self.mean} and std={self.std} should be three values each, those of std above 0")

    @property
    def patch_size(self) -> int:
        """Pixels from one cell of the last map to the next."""
        return STRIDE

    @property
    def channels(self) -> int:
        """Bands of the pictures."""
        return len(self.mean)

    @property
    def channels_out(self) -> int:
        """Channels of the last map."""
        return self.width * 8 * EXPANSION


# blocks of the stages, width, channels of the summary, image_size (CLIP, table 20)
_SIZES: dict[str, tuple[tuple[int, int, int, int], int, int, int]] = {
    "rn50": ((3, 4, 6, 3), 64, 1024, 224),
    "rn101": ((3, 4, 23, 3), 64, 512, 224),
    "rn50x4": ((4, 6, 10, 6), 80, 640, 288),
    "rn50x16": ((6, 8, 18, 8), 96, 768, 384),
    "rn50x64": ((3, 15, 36, 10), 128, 1024, 448),
}
NAMES: tuple[str, ...] = tuple(_SIZES)


def resnet_config(name: str, **changes: Any) -> ResNetConfig:
    """The configuration of a built-in architecture, one of `NAMES`, with `changes` to its fields."""
    blocks, width, embedding, image_size = _SIZES[name]
    heads = width * 8 * EXPANSION // 64  # of 64 channels, as in CLIP's transformers
    config = ResNetConfig(blocks=blocks, width=width, heads=heads, embedding=embedding, image_size=image_size)
    return replace(config, **changes)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside the identity; a stride is a mean over squares behind the second, and before
    the convolution that takes the place of the identity."""

    def __init__(self, before: int, inside: int, stride: int = 1):
        super().__init__()
        after = inside * EXPANSION
        self.conv1, self.bn1 = nn.Conv2d(before, inside, 1, bias=False), nn.BatchNorm2d(inside)
        self.conv2, self.bn2 = nn.Conv2d(inside, inside, 3, padding=1, bias=False), nn.BatchNorm2d(inside)
        self.conv3, self.bn3 = nn.Conv2d(inside, after, 1, bias=False), nn.BatchNorm2d(after)
        nn.init.zeros_(self.bn3.weight)  # every block begins as the identity (CLIP's code)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(self.pool, nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))

    def forward(self, maps: Tensor) -> Tensor:
        found = F.relu(self.bn1(self.conv1(maps)))
        found = self.pool(F.relu(self.bn2(self.conv2(found))))
        return F.relu(self.bn3(self.conv3(found)) + self.shortcut(maps))


class Stem(nn.Sequential):
    """Three 3x3 convolutions, the first by two, and a mean over squares of two."""

    def __init__(self, width: int):
        widths = (3, width // 2, width // 2, width)
        parts: list[nn.Module] = []
        for place in range(3):
            stride = 2 if place == 0 else 1
            parts += [nn.Conv2d(widths[place], widths[place + 1], 3, stride=stride, padding=1, bias=False)]
            parts += [nn.BatchNorm2d(widths[place + 1]), nn.ReLU()]
        super().__init__(*parts, nn.AvgPool2d(2))


class ResNet(nn.Module):
    """A ResNet of CLIP that answers with Features: its last map as patches, and their pooled summary.

    Attributes:
        width: channels of a patch.
        summary_width: channels of the summary.
        stride: pixels from one patch to the next.
        channels: bands of the pictures.
    """

    def __init__(self, config: ResNetConfig):
        super().__init__()
        self.config = config
        self.width, self.stride, self.channels = config.channels_out, STRIDE, 3
        self.summary_width = config.embedding
        self.normalize = Normalize(config.mean, config.std)
        self.stem = Stem(config.width)
        before, stages = config.width, []
        for stage, count in enumerate(config.blocks):
            inside = config.width * 2**stage
            blocks = [Bottleneck(before, inside, 1 if stage == 0 else 2)]
            before = inside * EXPANSION
            blocks += [Bottleneck(before, inside) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.pool = MeanAttentionPool(self.width, config.heads, config.embedding, config.image_size // STRIDE)

    @property
    def blocks(self) -> list[nn.Module]:
        """All bottlenecks, the first first."""
        return [block for stage in self.stages for block in stage]  # type: ignore[attr-defined]

    def forward(self, images: Tensor, masks: Tensor | None = None, layers: Sequence[int] = ()) -> Features:
        """Encodes pictures.

        Args:
            images: (B, 3, H, W) float in [0, 1]; H and W are multiples of 32.
            masks: None; there is no token for what is hidden.
            layers: stages whose maps are wanted too, counted from 0 or, if negative, from the end; their grids differ.
        Raises:
            ValueError: for other sizes, masks, or stages that do not exist.
        """
        check_images(images, masks, layers, self.channels)
        seen = through_stages(self.stem(self.normalize(images)), self.stages, layers)
        return replace(seen, summary=self.pool(seen.patches, seen.grid))


def through_stages(maps: Tensor, stages: Iterable[nn.Module], layers: Sequence[int]) -> Features:
    """What comes out of the last stage, without a summary, and of those that are wanted too.

    Args:
        maps: (B, C, h, w) of the stem.
        stages: in order.
        layers: which are wanted, counted from 0 or, if negative, from the end.
    """
    kept = []
    for stage in stages:
        maps = stage(maps)
        kept.append(maps)
    return Features(*flat(maps), layers=tuple(Features(*flat(kept[index])) for index in layers))


def check_images(images: Tensor, masks: Tensor | None, layers: Sequence[int], channels: int) -> None:
    """Sees to it that a ResNet of four stages can answer.

    Raises:
        ValueError: for pictures of other bands or sizes, masks, or stages that do not exist.
    """
    if masks is not None:
        raise ValueError("masks were given to a ResNet, which hides nothing")
    if images.ndim != 4 or images.shape[1] != channels or any(not side or side % STRIDE for side in images.shape[2:]):
        wanted = f"(B, {channels}, H, W), H and W multiples of {STRIDE}"
        raise ValueError(f"expected pictures of shape {wanted}, got {tuple(images.shape)}")
    for index in layers:
        if not -4 <= index < 4:
            raise ValueError(f"there is no layer {index}; this network has 4, 0 to 3")


def flat(maps: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """(B, D, h, w) as (B, h*w, D) and (h, w)."""
    return maps.flatten(2).transpose(1, 2), (maps.shape[2], maps.shape[3])
