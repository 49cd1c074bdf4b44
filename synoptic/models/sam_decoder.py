"""What turns prompts into masks: SAM's prompt encoder and mask decoder, which are those of transformers.

They are small, have been the same since SAM was released, and nothing here trains them, so that the library's own would
be the same again. Their names are in our weights folders.

Source: Kirillov et al. 2023 (arXiv 2304.02643), sec. 3 and appendix A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from synoptic.models.bounds import MOST_BLOCKS, check_sizes


@dataclass(frozen=True, kw_only=True)
class SamDecoderConfig:
    """Everything that decides the function of prompt encoder and mask decoder, beside their weights.

    Attributes:
        depth: layers in which tokens and picture attend to each other.
        heads: of all attention in them.
        hidden: width of their feed-forward layers.
        downsample: by how much attention between tokens and picture is narrower than they are.
        mask_channels: of the layers that read a mask as a prompt; a multiple of 4.
        iou_hidden: width of the head that predicts how good masks are.
        masks: how many an ambiguous prompt is answered with, beside the one for prompts that are not.
        norm_eps: of the layers' norms: 1e-5 in the makers' code, 1e-6 in transformers unless its config.json says more.
    """

    depth: int = 2
    heads: int = 8
    hidden: int = 2048
    downsample: int = 2
    mask_channels: int = 16
    iou_hidden: int = 256
    masks: int = 3
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_sizes(self, "heads", "hidden", "downsample", "mask_channels", "iou_hidden", "masks")
        check_sizes(self, "depth", least=0, most=MOST_BLOCKS)
        if self.mask_channels % 4:
            raise ValueError(f"mask_channels={self.mask_channels} should be a multiple of 4")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps={self.norm_eps} should be above 0")


class SamDecoder(nn.Module):
    """Prompts and the embedding of a picture to masks.

    Args:
        config: its own.
        width: channels of the picture's embedding.
        image_size: side in pixels of the pictures that prompts are placed in.
        patch_size: side of a patch in pixels.
    """

    def __init__(self, config: SamDecoderConfig, width: int, image_size: int, patch_size: int):
        super().__init__()
        from transformers.models.sam.configuration_sam import SamConfig
        from transformers.models.sam.modeling_sam import SamMaskDecoder, SamPromptEncoder

        theirs = SamConfig(
            vision_config={"hidden_size": width, "num_pos_feats": width // 2},  # of which positions of prompts are made
            prompt_encoder_config={
                "hidden_size": width,
                "image_size": image_size,
                "patch_size": patch_size,
                "mask_input_channels": config.mask_channels,
            },
            mask_decoder_config={
                "hidden_size": width,
                "mlp_dim": config.hidden,
                "num_hidden_layers": config.depth,
                "num_attention_heads": config.heads,
                "attention_downsample_rate": config.downsample,
                "num_multimask_outputs": config.masks,
                "iou_head_hidden_dim": config.iou_hidden,
                "layer_norm_eps": config.norm_eps,
            },
        )
        theirs.mask_decoder_config._attn_implementation = "sdpa"
        self.grid = (image_size // patch_size, image_size // patch_size)
        self.prompts: Any = SamPromptEncoder(theirs)
        self.masks: Any = SamMaskDecoder(theirs.mask_decoder_config)

    def forward(
        self,
        embedding: Tensor,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        several: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Masks of n prompts in one picture.

        Args:
            embedding: (1, D, h, w) of the picture, from the encoder at the size that it was made for.
            points: (n, k, 2) x and y in pixels of the picture as the encoder saw it.
            labels: (n, k), 1 for a point in the object, 0 for one outside of it, -1 for none; with `points`.
            boxes: (n, 4) left, top, right, bottom in the same pixels.
            masks: (n or 1, 1, 4h, 4w) logits of masks that are to be made better.
            several: answers an ambiguous prompt with several masks, in place of one.
        Returns:
            (n, m, 4h, 4w) logits, above 0 in the mask, and (n, m) predicted intersections over union.
        Raises:
            ValueError: for an embedding of another grid.
        """
        if embedding.shape[2:] != self.grid:
            raise ValueError(f"expected the embedding of {self.grid} patches, got that of {tuple(embedding.shape[2:])}")
        given = next(prompt for prompt in (points, boxes) if prompt is not None)
        sparse, dense = self.prompts(
            None if points is None else points[:, None],
            None if labels is None else labels[:, None],
            None if boxes is None else boxes[:, None],
            masks,
        )
        logits, scores = self.masks(
            image_embeddings=embedding.expand(len(given), -1, -1, -1),
            image_positional_embeddings=self.positions().expand(len(given), -1, -1, -1),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=several,
        )[:2]
        return logits[:, 0], scores[:, 0]

    def positions(self) -> Tensor:
        """(1, D, h, w), where the patches lie, in the terms in which points are told."""
        table = self.prompts.shared_embedding.positional_embedding
        down, across = ((torch.arange(side, device=table.device, dtype=table.dtype) + 0.5) / side for side in self.grid)
        places = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1)  # (h, w, 2): x, y
        return self.prompts.shared_embedding(places).permute(2, 0, 1)[None]
