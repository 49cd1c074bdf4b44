"""A picture encoder and a text encoder that meet in one space: CLIP (Radford et al. 2021, arXiv 2103.00020) and SigLIP
(Zhai et al. 2023, arXiv 2303.15343)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from synoptic.models import resnet
from synoptic.models.initialisation import begin_as_clip, begin_as_siglip
from synoptic.models.pooling import AttentionPool, MeanAttentionPool
from synoptic.models.resnet import ResNet, ResNetConfig
from synoptic.models.text import TextConfig, TextTower
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViT, ViTConfig, vit_config
from synoptic.types import Features, present

# Pixel statistics of CLIP's training pictures (the released models' preprocessing).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)  # SigLIP's statistics, mean and deviation alike

Towers = Literal["clip", "siglip"]


@dataclass(frozen=True)
class TextSize:
    """The size of a text tower, and of the space that it shares with pictures; see `TextConfig`."""

    width: int
    depth: int
    heads: int
    embedding: int
    hidden: int | None = None


# CLIP, tables 19 and 20; ViT-H/14 as open_clip trained it.
PUBLISHED = {
    "vit_b32": TextSize(512, 12, 8, 512),
    "vit_b16": TextSize(512, 12, 8, 512),
    "vit_l14": TextSize(768, 12, 12, 768),
    "vit_h14": TextSize(1024, 24, 16, 1024),
    "rn50": TextSize(512, 12, 8, 1024),
    "rn101": TextSize(512, 12, 8, 512),
    "rn50x4": TextSize(640, 12, 10, 640),
    "rn50x16": TextSize(768, 12, 12, 768),
    "rn50x64": TextSize(1024, 12, 16, 1024),
}

# What a text tower is beside its size.
TEXT_OF: dict[Towers, dict[str, Any]] = {
    "clip": {},
    "siglip": {
        "causal": False,
        "read_at": "last",
        "projection_bias": True,
        "activation": "gelu_tanh",
        "norm_eps": 1e-6,
    },
}


def text_size(model: str, encoder: ViTConfig | ResNetConfig, towers: Towers) -> TextSize:
    """The text tower that belongs to a picture encoder: the published one, where there is one by this name.

    Others get one in proportion: with CLIP's towers two thirds as wide as their ViT, as deep as that and at most 12
    blocks, of 64 channels a head; with SigLIP's as large as their ViT (arXiv 2303.15343, sec. 4).
    """
    if model in PUBLISHED and towers == "clip":
        return PUBLISHED[model]
    assert isinstance(encoder, ViTConfig), "all ResNets are published"
    if towers == "siglip":
        return TextSize(encoder.width, encoder.depth, encoder.heads, encoder.width, encoder.hidden)
    width = max(round(encoder.width * 2 / 3 / 64), 1) * 64
    pooled = encoder.width if encoder.pool == "attention" else width
    return TextSize(width, min(encoder.depth, 12), width // 64, pooled)


def most_heads(width: int) -> int:
    """As many heads of 64 channels or more as divide a width."""
    return next(heads for heads in range(max(width // 64, 1), 0, -1) if width % heads == 0)


def clip_config(encoder: ViTConfig | ResNetConfig, text: TextConfig, bias: bool) -> ClipConfig:
    """Both towers in one configuration."""
    if isinstance(encoder, ResNetConfig):
        return ClipConfig(resnet=encoder, text=text, bias=bias)
    return ClipConfig(image=encoder, text=text, bias=bias)


def picture_encoder(
    model: str, towers: Towers, image_size: int, embedding: int, **pixels: Any
) -> ViTConfig | ResNetConfig:
    """The configuration of an encoder of pictures, made for words.

    Args:
        model: one of the built-in Vision Transformers or ResNets.
        towers: of CLIP, or of SigLIP, whose ViT pools by attention.
        image_size: side in pixels.
        embedding: channels of the shared space, in which a ResNet answers.
        pixels: `channels`, `mean` and `std`, where they are not those of the published models.
    """
    if model in resnet.NAMES:
        return resnet.resnet_config(model, image_size=image_size, embedding=embedding)
    if towers == "siglip":
        statistics = pixels or {"mean": HALF, "std": HALF}
        return vit_config(
            model, image_size=image_size, summary_tokens=0, pool="attention", activation="gelu_tanh", **statistics
        )
    config = vit_config(model, image_size=image_size, **(pixels or {"mean": CLIP_MEAN, "std": CLIP_STD}))
    if config.stem == "conv":
        # CLIP changes the ViT by a norm before its blocks (sec. 2.4). A convolutional stem has norms of its own, and
        # with one more it learned less in a short run: zero-shot 0.78 against 0.88 (docs/log.md).
        return config
    return replace(config, pre_norm=True, patch_bias=False, norm_eps=1e-5)


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
    def encoder(self) -> ViTConfig | ResNetConfig:
        """Of pictures."""
        return self.resnet or present(self.image)

    @property
    def image_size(self) -> int:
        """Side in pixels of the pictures that the encoder was made for."""
        return self.encoder.image_size


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
        if isinstance(self.image, ViT) and self.image.pool is not None:
            begin_as_siglip(self.image, self.text)
        elif isinstance(self.image, ViT) and self.image.config.stem == "patch":
            begin_as_clip(self.image)
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

    def encode_patches(self, images: Tensor) -> Features:
        """Each patch of (B, C, H, W) pictures as if it were all that the picture shows, in the space shared with words.

        Of a ViT with a summary token, every patch looks at itself alone in the last block and goes on as the summary
        does. Where the summary is attention over the patches, it is that over one patch.

        Returns:
            Features, patches (B, h*w, C), not normalised.
        Source: MaskCLIP, Zhou et al. 2022 (arXiv 2112.01071), sec. 3.2.
        """
        if isinstance(self.image, ViT) and self.image.pool is None:
            features = self.image.alone(images)
            return Features(self.projection(features.patches), features.grid)
        features, pool = self.image(images), self.image.pool
        assert isinstance(pool, AttentionPool | MeanAttentionPool)
        return Features(pool.apart(features.patches, features.grid), features.grid)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(n, L) int64 ids to (n, C) embeddings in the shared space, not normalised."""
        return self.text(tokens)
