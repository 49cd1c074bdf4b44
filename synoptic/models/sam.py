"""SAM: an image encoder at high resolution, and the decoder that answers prompts with masks.

Source: Kirillov et al. 2023 (arXiv 2304.02643), sec. 3 and appendix A; the encoder is ViTDet's (arXiv 2203.16527).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from synoptic.models.bounds import check_sizes, check_transformer
from synoptic.models.layers import Normalize, init_linear
from synoptic.models.positions import LearnedPositions
from synoptic.models.sam_attention import SamBlock
from synoptic.models.sam_decoder import SamDecoder, SamDecoderConfig
from synoptic.models.vit import IMAGENET_MEAN, IMAGENET_STD, block_numbers, patch_grid
from synoptic.types import Features


@dataclass(frozen=True, kw_only=True)
class SamConfig:
    """Everything that decides a SAM's function, beside its weights; the defaults are those of the released ViT-B.

    Attributes:
        patch_size, width, depth, heads, hidden, channels, mean, std: see ViTConfig.
        image_size: side of the picture that the position tables cover, in pixels.
        window: side in patches of the windows in which most blocks attend.
        global_blocks: blocks that attend over the whole picture, counted from 0.
        embedding: channels of the answer, behind the neck.
        norm_eps: of the blocks' norms; those of the neck have 1e-6.
        decoder: what answers prompts; None for an encoder alone.
    """

    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int | None = None
    image_size: int = 1024
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    window: int = 14
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    embedding: int = 256
    norm_eps: float = 1e-6
    decoder: SamDecoderConfig | None = None

    def __post_init__(self) -> None:
        check_transformer(self)
        check_sizes(self, "patch_size", "hidden", "image_size", "channels", "window", "embedding")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} is no multiple of patch_size={self.patch_size}")
        if not all(0 <= block < self.depth for block in self.global_blocks):
            raise ValueError(f"global_blocks={self.global_blocks} should be blocks from 0 to {self.depth - 1}")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"channels={self.channels} needs as many values in mean={self.mean} and std={self.std}")
        if not (self.norm_eps > 0 and all(deviation > 0 for deviation in self.std)):
            raise ValueError(f"norm_eps={self.norm_eps} and std={self.std} should be above 0")
        if self.decoder is not None:
            self._check_decoder(self.decoder)

    def _check_decoder(self, decoder: SamDecoderConfig) -> None:
        inside = self.embedding // decoder.downsample
        if self.embedding % 8 or self.embedding % decoder.heads or inside % decoder.heads:
            raise ValueError(
                f"decoder.heads={decoder.heads} and 8 should divide embedding={self.embedding}, and the heads its "
                f"{inside} channels after decoder.downsample={decoder.downsample}"
            )


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SamEncoder(nn.Module):
    """SAM's image encoder: patches in windows, some blocks over the whole picture, and a convolutional neck."""

    def __init__(self, config: SamConfig):
        super().__init__()
        self.config = config
        side = config.image_size // config.patch_size
        self.normalize = Normalize(config.mean, config.std)
        self.patch_embed = nn.Conv2d(config.channels, config.width, config.patch_size, stride=config.patch_size)
        self.positions = LearnedPositions(config.width, (side, side), prefix=0)
        self.blocks = nn.ModuleList(
            SamBlock(
                config.width,
                config.heads,
                config.hidden or 4 * config.width,
                window=0 if index in config.global_blocks else config.window,
                side=side,
                norm_eps=config.norm_eps,
            )
            for index in range(config.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(config.width, config.embedding, 1, bias=False),
            ChannelNorm(config.embedding, eps=1e-6),
            nn.Conv2d(config.embedding, config.embedding, 3, padding=1, bias=False),
            ChannelNorm(config.embedding, eps=1e-6),
        )
        self.blocks.apply(init_linear)

    def forward(self, images: Tensor, layers: Sequence[int] = ()) -> Features:
        """Encodes (B, C, H, W) pictures; see `Sam.forward`."""
        grid = patch_grid(images, self.config.channels, self.config.patch_size)
        wanted = block_numbers(layers, len(self.blocks))
        tokens = self.patch_embed(self.normalize(images)).flatten(2).transpose(1, 2)
        tokens = self.positions(None, tokens, grid)[1].unflatten(1, grid)  # (B, h, w, D)
        kept: dict[int, Features] = {}
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in wanted:
                kept[index] = Features(tokens.flatten(1, 2), grid)
        patches = self.neck(tokens.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        return Features(patches, grid, layers=tuple(kept[index] for index in wanted))


class Sam(nn.Module):
    """A SAM that answers with Features, without a summary, and prompts with masks.

    Attributes:
        encoder: of pictures.
        decoder: of prompts; None where weights came without.
        width: channels of a patch, behind the neck.
        summary_width: 0, since there is no summary.
        stride: pixels from one patch to the next.
        channels: bands of the pictures.
    """

    def __init__(self, config: SamConfig):
        super().__init__()
        self.config = config
        self.width, self.stride, self.channels = config.embedding, config.patch_size, config.channels
        self.summary_width = 0
        self.encoder = SamEncoder(config)
        self.decoder: SamDecoder | None = None
        if config.decoder is not None:
            self.decoder = SamDecoder(config.decoder, config.embedding, config.image_size, config.patch_size)

    def forward(self, images: Tensor, masks: Tensor | None = None, layers: Sequence[int] = ()) -> Features:
        """Encodes pictures.

        Args:
            images: (B, C, H, W) float in [0, 1]; H and W are multiples of the patch size. At other sizes than the
                trained one the absolute positions are resampled bicubically, the relative ones of global blocks
                linearly; at the trained one nothing is.
            masks: None; there is no token for what is hidden.
            layers: blocks whose outputs are wanted too, (B, h*w, width of the blocks), before the neck and without any
                norm, counted from 0 or, if negative, from the end.
        Returns:
            Features; patches are the neck's output, and there is no summary.
        Raises:
            ValueError: for sizes that the patches do not tile, a wrong number of bands, masks, or layers that do not
                exist.
        """
        if masks is not None:
            raise ValueError("masks were given to a SAM, which hides nothing")
        return self.encoder(images, layers)


def upscaled(logits: Tensor, image_size: int, inside: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Masks as the decoder gives them, brought to the size of the original picture.

    Args:
        logits: (n, m, h, w).
        image_size: side in pixels of the padded picture.
        inside: height and width of the picture in it.
        size: height and width of the original picture.
    Returns:
        (n, m, height, width) float32 at least; above 0 is in the mask (SAM's code).
    """
    wide = F.interpolate(logits, (image_size, image_size), mode="bilinear", align_corners=False)
    return F.interpolate(wide[..., : inside[0], : inside[1]], size, mode="bilinear", align_corners=False)
