"""What a detector sees through: a Swin, whose stages are maps of several scales, or any other picture encoder, out of
whose one map a simple pyramid makes three.

Source: ViTDet (Li et al. 2022, arXiv 2203.16527), sec. 3, for the simple feature pyramid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from synoptic.models.plain_resnet import PlainResNet, PlainResNetConfig
from synoptic.models.resnet import ResNet, ResNetConfig
from synoptic.models.sam import Sam, SamConfig
from synoptic.models.swin import Swin, SwinConfig
from synoptic.models.vit import ViT, ViTConfig

BackboneConfig = SwinConfig | ViTConfig | SamConfig | ResNetConfig | PlainResNetConfig

_MODELS: Mapping[type, Callable[[Any], nn.Module]] = {
    SwinConfig: Swin,
    ViTConfig: ViT,
    SamConfig: Sam,
    ResNetConfig: ResNet,
    PlainResNetConfig: PlainResNet,
}


def build_backbone(config: BackboneConfig) -> Any:
    """An encoder of one of these configurations."""
    return _MODELS[type(config)](config)


def config_of(backbone: Any) -> BackboneConfig:
    """The configuration by which a detector builds such an encoder; of a SAM without what answers prompts.

    Raises:
        ValueError: it is none that a detector sees through.
    """
    config: Any = getattr(backbone, "config", None)
    if type(config) not in _MODELS:
        told = "take a ViT, a Swin, a ResNet or a SAM, of a student its .backbone, of a CLIP its .image"
        raise ValueError(f"a detector cannot see through a {type(backbone).__name__}: {told}")
    return replace(config, decoder=None) if isinstance(config, SamConfig) else config


class SimplePyramid(nn.Module):
    """Maps of twice, once and half the resolution out of the one map that an encoder ends with.

    Args:
        width: channels of that map.
        out: channels of all three.
    """

    def __init__(self, width: int, out: int):
        super().__init__()
        self.finer = nn.ConvTranspose2d(width, width // 2, 2, 2)
        widths = (width // 2, width, width)
        self.narrow = nn.ModuleList(nn.Conv2d(each, out, 1, bias=False) for each in widths)
        self.narrow_norms = nn.ModuleList(nn.LayerNorm(out, eps=1e-6) for _ in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(out, out, 3, padding=1, bias=False) for _ in widths)
        self.smooth_norms = nn.ModuleList(nn.LayerNorm(out, eps=1e-6) for _ in widths)

    def forward(self, plane: Tensor) -> list[Tensor]:  # (B, C, h, w) -> three, the finest first
        scales = (self.finer(plane), plane, F.max_pool2d(plane, 2, ceil_mode=True))
        narrow = [
            _normed(norm, conv(scale)) for conv, norm, scale in zip(self.narrow, self.narrow_norms, scales, strict=True)
        ]
        return [
            _normed(norm, conv(each)) for conv, norm, each in zip(self.smooth, self.smooth_norms, narrow, strict=True)
        ]


def _normed(norm: nn.Module, plane: Tensor) -> Tensor:
    """A norm over the channels of (B, C, h, w)."""
    return norm(plane.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def swin_maps(backbone: Swin, groups: Sequence[Tensor]) -> list[list[Tensor]]:
    """Of each group of (B, C, H, W) pictures the stages of a Swin, (B, C, h, w), the finest first."""
    stages, counts = backbone.pyramid(groups), [len(group) for group in groups]
    found: list[list[Tensor]] = [[] for _ in groups]
    for tokens, grids in stages:
        starts = [sum(counts[:place]) for place in range(len(counts))]
        shapes = [(count, *grids[start]) for count, start in zip(counts, starts, strict=True)]
        parts = tokens.split([count * height * width for count, height, width in shapes])
        for place, (part, shape) in enumerate(zip(parts, shapes, strict=True)):
            found[place].append(part.unflatten(0, shape).permute(0, 3, 1, 2))
    return found


def plain_maps(backbone: Any, pyramid: SimplePyramid, groups: Sequence[Tensor]) -> list[list[Tensor]]:
    """Of each group of (B, C, H, W) pictures three scales of an encoder's last map, (B, C, h, w), the finest first.

    Sides that its patches do not tile are filled up with the mean of the pixels.
    """
    dtype = next(backbone.parameters()).dtype
    answers = [backbone(_filled(group, backbone).to(dtype)) for group in groups]
    return [pyramid(answer.patches.mT.unflatten(-1, answer.grid)) for answer in answers]


def _filled(images: Tensor, backbone: Any) -> Tensor:
    down, across = (-side % backbone.stride for side in images.shape[2:])
    if not (down or across):
        return images
    mean = images.new_tensor(backbone.config.mean)[:, None, None]
    return F.pad(images - mean, (0, across, 0, down)) + mean
