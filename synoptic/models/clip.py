"""A picture encoder and a text encoder that meet in one space: CLIP (Radford et al. 2021, arXiv 2103.00020) and SigLIP
(Zhai et al. 2023, arXiv 2303.15343)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from synoptic.models.resnet import ResNet, ResNetConfig
from synoptic.models.text import TextConfig, TextTower
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViT, ViTConfig
from synoptic.types import Features, present

# Pixel statistics of CLIP's training pictures (the released models' preprocessing).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """The two towers; `text.embedding` is the width of the shared space.

    Attributes:
        text: of the text encoder.
        image: of a picture encoder that is a ViT. The answer of one with a summary token is projected into the shared
            space; one that pools by attention answers there by itself.
        resnet: of one that is a ResNet, which answers there too.
        bias: whether a learned number is added to all similarities (SigLIP).
    """

    text: TextConfig
    image: ViTConfig | None = None
    resnet: ResNetConfig | None = None
    bias: bool = False

    def __post_init__(self) -> None:
        if (self.image is None) == (self.resnet is None):
            raise ValueError("give one of image (a ViT) and resnet")
        own = self.resnet.embedding if self.resnet else present(self.image).width
        if not self.projects and own != self.text.embedding:
            raise ValueError(f"pictures answer in {own} channels, and text.embedding={self.text.embedding} differs")

    @property
    def projects(self) -> bool:
        """Whether a layer takes the picture encoder's summary into the shared space."""
        return self.image is not None and self.image.pool == "tokens"

    @property
    def image_size(self) -> int:
        """Side in pixels of the pictures that the encoder was made for."""
        return self.resnet.image_size if self.resnet else present(self.image).image_size


class Clip(nn.Module):
    """Pictures and texts to one space.

    Attributes:
        image: the picture encoder; its patches are the model's patches.
        text: the text encoder.
        projection: from the picture encoder's summary to the shared space; nothing where that lies there.
        logit_scale: scalar, logarithm of the inverse temperature; starts at ln(1 / 0.07) (CLIP sec. 2.5), with a bias
            at ln 10 (SigLIP sec. 3.2).
        logit_bias: scalar that is added to scaled similarities; starts at -10 (SigLIP sec. 3.2). None without one.
        tokenizer: turns words into the text encoder's ids; None where weights came without.
    """

    def __init__(self, config: ClipConfig, tokenizer: Tokenizer | None):
        super().__init__()
        self.config = config
        self.image = ResNet(config.resnet) if config.resnet else ViT(present(config.image))
        self.text = TextTower(config.text)
        self.projection: nn.Module = nn.Identity()
        if config.projects:
            self.projection = nn.Linear(self.image.summary_width, config.text.embedding, bias=False)
            nn.init.normal_(self.projection.weight, std=self.image.summary_width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10) if config.bias else math.log(1 / 0.07)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if config.bias else None
        self.tokenizer = tokenizer
        self.width, self.stride, self.channels = self.image.width, self.image.stride, self.image.channels
        self.summary_width = config.text.embedding

    def forward(self, images: Tensor, masks: Tensor | None = None, layers: Sequence[int] = ()) -> Features:
        """Features of (B, C, H, W) pictures in [0, 1]; the summary lies in the shared space, not normalised."""
        features = self.image(images, masks, layers)
        return replace(features, summary=self.projection(features.summary))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(n, L) int64 ids to (n, C) embeddings in the shared space, not normalised."""
        return self.text(tokens)
