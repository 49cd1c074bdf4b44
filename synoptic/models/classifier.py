"""A linear classifier on a backbone that stays as it is: the protocol by which DINO and DINOv2 are judged.

Source: Caron et al. 2021 (arXiv 2104.14294), appendix F; Oquab et al. 2023 (arXiv 2304.07193), sec. 7.1 and B.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from synoptic.models.bounds import check_sizes
from synoptic.models.plain_resnet import PlainResNet, PlainResNetConfig
from synoptic.models.vit import ViT, ViTConfig
from synoptic.types import Features, present

Mean = Literal["none", "behind", "between"]


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Everything that decides the function of a classifier, beside its weights.

    Attributes:
        classes: how many it tells apart.
        vit: of a backbone that is a ViT with a summary.
        resnet: of one that is a plain ResNet.
        layers: of how many of a ViT's last blocks the summaries are read, the last block's last.
        mean: where the mean of the last patches stands: nowhere; "behind" the summaries (DINOv2); or "between", every
            channel of it behind the same channel of the summaries, which then are those of one block (DINO's ViT-B).
    """

    classes: int
    vit: ViTConfig | None = None
    resnet: PlainResNetConfig | None = None
    layers: int = 1
    mean: Mean = "none"

    def __post_init__(self) -> None:
        if (self.vit is None) == (self.resnet is None):
            raise ValueError("give one of vit and resnet")
        check_sizes(self, "classes", "layers", "features")
        if self.vit is None and (self.layers > 1 or self.mean != "none"):
            raise ValueError(f"layers={self.layers}, mean={self.mean!r}: a ResNet has one summary, which is that mean")
        if self.vit is not None and (self.vit.summary_tokens != 1 or self.layers > self.vit.depth):
            raise ValueError(f"it reads a summary token of {self.layers} blocks, which the ViT does not have")
        if self.mean == "between" and self.layers > 1:
            raise ValueError(f"layers={self.layers} should be 1 where the mean stands between the channels")

    @property
    def image_size(self) -> int:
        """Side in pixels of the pictures that the backbone was made for."""
        return (self.resnet or present(self.vit)).image_size

    @property
    def features(self) -> int:
        """Channels that the linear layer reads."""
        width = self.resnet.channels_out if self.resnet else present(self.vit).width
        return width * (self.layers + (self.mean != "none"))


class Classifier(nn.Module):
    """A backbone that answers with Features as it does alone, and tells classes apart.

    Attributes:
        backbone: the network.
        head: the linear layer.
    """

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        self.backbone = PlainResNet(config.resnet) if config.resnet else ViT(present(config.vit))
        self.head = nn.Linear(config.features, config.classes)
        self.width, self.stride, self.channels = self.backbone.width, self.backbone.stride, self.backbone.channels
        self.summary_width = self.backbone.summary_width

    def forward(self, images: Tensor, masks: Tensor | None = None, layers: Sequence[int] = ()) -> Features:
        """Features of (B, C, H, W) pictures in [0, 1], those of the backbone."""
        return self.backbone(images, masks=masks, layers=layers)

    def classify(self, images: Tensor) -> Tensor:
        """(B, C, H, W) pictures in [0, 1] to (B, classes) logits."""
        last = self.backbone(images, layers=range(-self.config.layers, -1))
        summaries = [present(answer.summary) for answer in (*last.layers, last)]
        mean = last.patches.mean(dim=1)
        if self.config.mean == "between":
            return self.head(torch.stack([summaries[0], mean], dim=-1).flatten(1))
        return self.head(torch.cat([*summaries, *([mean] if self.config.mean == "behind" else [])], dim=-1))
