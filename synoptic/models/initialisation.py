"""What the towers of CLIP and SigLIP begin with, as their makers' code has it; CLIP's text tower does so by itself."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from synoptic.models.layers import Block, Mlp
from synoptic.models.pooling import AttentionPool
from synoptic.models.text import TextTower
from synoptic.models.vit import ViT

CUT = 0.87962566103423978  # deviation of a normal distribution of deviation 1 that is cut off at 2


@torch.no_grad()
def begin_as_clip(vit: ViT) -> None:
    """The ViT of OpenAI's CLIP: tokens and positions as far apart as width**-0.5, blocks as PyTorch makes them.

    Source: `VisionTransformer` in github.com/openai/CLIP, clip/model.py.
    """
    for tokens in (vit.summary_token, vit.positions.table):
        if tokens is not None:
            nn.init.normal_(tokens, std=vit.width**-0.5)
    for block in _blocks(vit.blocks):
        for linear in (block.attn.proj, *_linears(block.mlp)):
            linear.reset_parameters()
        nn.init.xavier_uniform_(block.attn.qkv.weight)
        for bias in (block.attn.qkv.bias, block.attn.proj.bias):
            if bias is not None:
                nn.init.zeros_(bias)


@torch.no_grad()
def begin_as_siglip(vit: ViT, text: TextTower) -> None:
    """Both towers of SigLIP: matrices of blocks drawn evenly by Xavier's rule, the rest normal by its width.

    Source: github.com/google-research/big_vision, models/vit.py and models/proj/image_text/text_transformer.py.
    """
    for table, width in ((vit.positions.table, vit.width), (text.positions, text.config.width)):
        nn.init.normal_(table, std=width**-0.5)
    nn.init.normal_(text.token_embedding.weight, std=text.config.width**-0.5)
    for block in _blocks([*vit.blocks, *text.blocks]):
        _begin_attention(block.attn.qkv, block.attn.proj)
        _begin_mlp(block.mlp)
    if isinstance(vit.pool, AttentionPool):
        nn.init.xavier_uniform_(vit.pool.probe[0])  # of one row: PyTorch would take a third dimension for a kernel's
        _begin_attention(vit.pool.attn.qkv, vit.pool.attn.proj)
        _begin_mlp(vit.pool.mlp)
    _begin_normal(text.projection)
    if isinstance(vit.patch_embed, nn.Conv2d):
        _begin_normal(vit.patch_embed)


def _blocks(blocks: Iterable[nn.Module]) -> Iterable[Block]:
    return (block for block in blocks if isinstance(block, Block))


def _linears(mlp: nn.Module) -> list[nn.Linear]:
    return [module for module in mlp.modules() if isinstance(module, nn.Linear)]


def _begin_attention(qkv: nn.Linear, proj: nn.Linear) -> None:
    for matrix in (*qkv.weight.chunk(3), proj.weight):
        nn.init.xavier_uniform_(matrix)
    _zero(qkv.bias, proj.bias)


def _begin_mlp(mlp: Mlp | nn.Module) -> None:
    for linear in _linears(mlp):
        nn.init.xavier_uniform_(linear.weight)
        nn.init.normal_(linear.bias, std=1e-6)


def _begin_normal(layer: nn.Linear | nn.Conv2d) -> None:
    """Variance 1 over the values that an answer is the sum of (LeCun's rule), cut off at two deviations."""
    std = layer.weight[0].numel() ** -0.5 / CUT
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    _zero(layer.bias)


def _zero(*biases: Tensor | None) -> None:
    for bias in biases:
        if bias is not None:
            nn.init.zeros_(bias)
