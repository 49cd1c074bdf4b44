"""The causal text transformer of CLIP (Radford et al. 2021, arXiv 2103.00020, sec. 2.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synoptic.models.bounds import LARGEST_VOCABULARY, check_sizes, check_transformer
from synoptic.models.layers import Activation, Block, Mlp


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A text tower.

    Attributes:
        vocabulary: number of token ids.
        context: most tokens a text may have.
        end: id of the token that ends a text; the text's feature is read there.
        width, depth, heads: of the transformer.
        embedding: channels of the space shared with pictures.
        activation: of the feed-forward layers.
    """

    vocabulary: int
    context: int
    end: int
    width: int = 512
    depth: int = 12
    heads: int = 8
    embedding: int = 512
    activation: Activation = "gelu"

    def __post_init__(self) -> None:
        check_transformer(self)
        check_sizes(self, "embedding", "depth")  # the initialisation divides by the depth
        check_sizes(self, "context", least=3)  # start, a word, end
        check_sizes(self, "vocabulary", least=3, most=LARGEST_VOCABULARY)
        if not 0 <= self.end < self.vocabulary:
            raise ValueError(f"end={self.end} is none of the ids of vocabulary={self.vocabulary}")


class TextTower(nn.Module):
    """Token ids to embeddings in the space shared with pictures."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.token_embedding = nn.Embedding(config.vocabulary, width)
        self.positions = nn.Parameter(torch.empty(config.context, width))
        blocks = [
            Block(width, config.heads, 4 * width, act=config.activation, causal=True, norm_eps=1e-5)
            for _ in range(config.depth)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.projection = nn.Linear(width, config.embedding, bias=False)
        self._init(blocks)

    def _init(self, blocks: list[Block]) -> None:
        """The initialisation published with CLIP: deviations shrink with width and depth."""
        width, depth = self.config.width, self.config.depth
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        for block in blocks:
            assert isinstance(block.mlp, Mlp)
            nn.init.normal_(block.attn.qkv.weight, std=width**-0.5)
            nn.init.normal_(block.attn.proj.weight, std=width**-0.5 * (2 * depth) ** -0.5)
            nn.init.normal_(block.mlp.fc1.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.fc2.weight, std=width**-0.5 * (2 * depth) ** -0.5)
            for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                nn.init.zeros_(linear.bias)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, L) int64 ids to (n, embedding), not normalised.

        What follows the first end token has no effect. A row without any is read at its last token.
        """
        count, length = tokens.shape
        features = (self.token_embedding(tokens) + self.positions[:length]).flatten(0, 1)
        for block in self.blocks:
            features = block(features, ((count, length),))
        features = features.unflatten(0, (count, length))
        ends = tokens == self.config.end
        ends[:, -1] = True
        ends = ends.int().argmax(dim=1)  # the first of several
        return self.projection(self.norm(features[torch.arange(len(tokens), device=tokens.device), ends]))
