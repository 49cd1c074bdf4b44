"""The ResNet with bottlenecks as torchvision has it, which DINO was trained with too.

Source: He et al. 2016 (arXiv 1512.03385); the stride lies in the 3x3 convolution, not in the first one (Goyal et al.
2017, arXiv 1706.02677, sec. 5.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from synoptic.models.bounds import check_sizes
from synoptic.models.layers import Normalize
from synoptic.models.resnet import EXPANSION, STRIDE, check_images, through_stages
from synoptic.models.vit import IMAGENET_MEAN, IMAGENET_STD
from synoptic.types import Features


@dataclass(frozen=True, kw_only=True)
class PlainResNetConfig:
    """Everything that decides the function of a plain ResNet, beside its weights.

    Attributes:
        blocks: bottlenecks of each of the four stages; (3, 4, 6, 3) is ResNet-50.
        width: channels of the first stage, inside of its blocks.
        channels: bands of the pictures.
        image_size: side in pixels of the pictures that it was made for; it sees any other as well.
        mean, std: pixel statistics a band, with which pictures in [0, 1] are normalised.
    """

    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    channels: int = 3
    image_size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        check_sizes(self, "width", "channels", "image_size")
        check_sizes(self, "channels_out")
        if not all(1 <= count <= _MOST_BLOCKS for count in self.blocks):
            raise ValueError(f"blocks={self.blocks} should be from 1 to {_MOST_BLOCKS} in each stage")
        if self.image_size % STRIDE:
            raise ValueError(f"image_size={self.image_size} is no multiple of {STRIDE}")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"channels={self.channels} needs as many values in mean={self.mean} and std={self.std}")
        if not all(deviation > 0 for deviation in self.std):
            raise ValueError(f"std={self.std} should be above 0, since pictures are divided by it")

    @property
    def patch_size(self) -> int:
        """Pixels from one cell of the last map to the next."""
        return STRIDE

    @property
    def channels_out(self) -> int:
        """Channels of the last map."""
        return self.width * 8 * EXPANSION


_MOST_BLOCKS = 256


class PlainBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside the identity, or beside a 1x1 convolution where the shape changes."""

    def __init__(self, before: int, inside: int, stride: int = 1):
        super().__init__()
        after = inside * EXPANSION
        self.conv1, self.bn1 = nn.Conv2d(before, inside, 1, bias=False), nn.BatchNorm2d(inside)
        self.conv2 = nn.Conv2d(inside, inside, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv3, self.bn3 = nn.Conv2d(inside, after, 1, bias=False), nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            conv = nn.Conv2d(before, after, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(after))

    def forward(self, maps: Tensor) -> Tensor:
        found = F.relu(self.bn1(self.conv1(maps)))
        found = F.relu(self.bn2(self.conv2(found)))
        return F.relu(self.bn3(self.conv3(found)) + self.shortcut(maps))


class PlainResNet(nn.Module):
    """A ResNet that answers with Features: its last map as patches, and their mean as summary.

    Attributes:
        width: channels of a patch.
        summary_width: channels of the summary, the same.
        stride: pixels from one patch to the next.
        channels: bands of the pictures.
    """

    def __init__(self, config: PlainResNetConfig):
        super().__init__()
        self.config = config
        self.width = self.summary_width = config.channels_out
        self.stride, self.channels = STRIDE, config.channels
        self.normalize = Normalize(config.mean, config.std)
        first = nn.Conv2d(config.channels, config.width, 7, stride=2, padding=3, bias=False)
        self.stem = nn.Sequential(first, nn.BatchNorm2d(config.width), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))
        before, stages = config.width, []
        for stage, count in enumerate(config.blocks):
            inside = config.width * 2**stage
            blocks = [PlainBottleneck(before, inside, 1 if stage == 0 else 2)]
            before = inside * EXPANSION
            blocks += [PlainBottleneck(before, inside) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)

    def forward(self, images: Tensor, masks: Tensor | None = None, layers: Sequence[int] = ()) -> Features:
        """Encodes pictures.

        Args:
            images: (B, C, H, W) float in [0, 1]; H and W are multiples of 32.
            masks: None; there is no token for what is hidden.
            layers: stages whose maps are wanted too, counted from 0 or, if negative, from the end; their grids differ.
        Raises:
            ValueError: for other sizes, masks, or stages that do not exist.
        """
        check_images(images, masks, layers, self.channels)
        seen = through_stages(self.stem(self.normalize(images)), self.stages, layers)
        return replace(seen, summary=seen.patches.mean(dim=1))
