"""CLIP: a picture encoder and a text encoder that meet in one space (Radford et al. 2021, arXiv 2103.00020)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from synoptic.models.text import TextConfig, TextTower
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViT, ViTConfig
from synoptic.types import Features

# Pixel statistics of CLIP's training pictures (the released models' preprocessing).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """The two towers; `text.embedding` is the width of the shared space."""

    image: ViTConfig
    text: TextConfig


class Clip(nn.Module):
    """Pictures and texts to one space.

    Attributes:
        image: the picture encoder; its patches are the model's patches.
        text: the text encoder.
        projection: from the picture encoder's summary to the shared space.
        logit_scale: scalar, logarithm of the inverse temperature; starts at ln(1 / 0.07) (CLIP sec. 2.5).
        tokenizer: turns words into the text encoder's ids.
    """

    def __init__(self, config: ClipConfig, tokenizer: Tokenizer):
        super().__init__()
        self.config = config
        self.image = ViT(config.image)
        self.text = TextTower(config.text)
        self.projection = nn.Linear(self.image.summary_width, config.text.embedding, bias=False)
        nn.init.normal_(self.projection.weight, std=self.image.summary_width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
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
