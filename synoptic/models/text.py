"""The text transformers of CLIP (Radford et al. 2021, arXiv 2103.00020, sec. 2.4) and SigLIP (Zhai et al. 2023, arXiv
2303.15343).

CLIP's sees no word that comes later, and ends at a token of its own: what stands behind that is never computed. Texts
go through the blocks packed without any padding, those of a length side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor, nn

from synoptic.models.bounds import LARGEST_VOCABULARY, check_sizes, check_transformer
from synoptic.models.layers import Activation, Block, Groups, Mlp
from synoptic.models.linear import Linear


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A text tower.

    Attributes:
        vocabulary: number of token ids.
        context: most tokens a text may have.
        end: id of the token that ends a text.
        width, depth, heads: of the transformer.
        hidden: width of the feed-forward layers; None takes four times `width`.
        embedding: channels of the space shared with pictures.
        activation: of the feed-forward layers.
        causal: whether a token sees those before it alone (CLIP), or all (SigLIP).
        read_at: where a text's feature is read: at the "end" token (CLIP), or in the "last" of exactly `context`
            tokens, the padding among them (SigLIP).
        projection_bias: of the layer into the shared space.
        norm_eps: of the norms.
    """

    vocabulary: int
    context: int
    end: int
    width: int = 512
    depth: int = 12
    heads: int = 8
    embedding: int = 512
    hidden: int | None = None
    activation: Activation = "gelu"
    causal: bool = True
    read_at: Literal["end", "last"] = "end"
    projection_bias: bool = False
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_transformer(self)
        check_sizes(self, "embedding", "depth", "hidden")  # the initialisation divides by the depth
        check_sizes(self, "context", least=3)  # start, a word, end
        check_sizes(self, "vocabulary", least=3, most=LARGEST_VOCABULARY)
        if not 0 <= self.end < self.vocabulary:
            raise ValueError(f"end={self.end} is none of the ids of vocabulary={self.vocabulary}")
        if not self.causal and self.read_at == "end":
            raise ValueError("causal=False with read_at='end': a text would see its padding; give read_at='last'")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps={self.norm_eps} should be above 0")


class TextTower(nn.Module):
    """Token ids to embeddings in the space shared with pictures."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.token_embedding = nn.Embedding(config.vocabulary, width)
        self.positions = nn.Parameter(torch.empty(config.context, width))
        blocks = [
            Block(
                width,
                config.heads,
                config.hidden or 4 * width,
                act=config.activation,
                causal=config.causal,
                norm_eps=config.norm_eps,
            )
            for _ in range(config.depth)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.projection = Linear(width, config.embedding, bias=config.projection_bias)
        self._init(blocks)

    def _init(self, blocks: list[Block]) -> None:
        """The initialisation published with CLIP: deviations shrink with width and depth; biases of the feed-forward
        layers are PyTorch's own."""
        width, depth = self.config.width, self.config.depth
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        for block in blocks:
            assert isinstance(block.mlp, Mlp)
            nn.init.normal_(block.attn.qkv.weight, std=width**-0.5)
            nn.init.normal_(block.attn.proj.weight, std=width**-0.5 * (2 * depth) ** -0.5)
            nn.init.normal_(block.mlp.fc1.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.fc2.weight, std=width**-0.5 * (2 * depth) ** -0.5)
            for linear in (block.attn.qkv, block.attn.proj):
                nn.init.zeros_(linear.bias)
        nn.init.normal_(self.projection.weight, std=width**-0.5)
        if self.projection.bias is not None:
            nn.init.zeros_(self.projection.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, L) int64 ids to (n, embedding), not normalised.

        With `read_at="end"` what follows the first end token has no effect, and a row without any is read at its last
        token. Ids that lie on the host are packed there, and nothing waits for the device.

        Raises:
            ValueError: with `read_at="last"`, where L is not the context; else where it is more.
        """
        whole = self.config.read_at == "last"
        if tokens.shape[1] > self.config.context or (whole and tokens.shape[1] < self.config.context):
            wanted = f"{'' if whole else 'at most '}{self.config.context}"
            raise ValueError(f"texts of {tokens.shape[1]} tokens; this tower reads {wanted}")
        packed = PackedTexts(tokens, None if whole else self.config.end)
        device = self.positions.device
        features = self.token_embedding(packed.ids.to(device, non_blocking=True))
        features = features + self.positions[packed.places.to(device, non_blocking=True)]
        ends = packed.ends.to(device, non_blocking=True)
        *blocks, last = self.blocks
        for block in blocks:
            features = block(features, packed.groups)
        return self.projection(self.norm(last(features, packed.groups, rows=ends)))


class PackedTexts:
    """Texts one behind the other without their padding, the shortest first.

    Args:
        tokens: (n, L) int64 ids.
        end: id that ends a text; None takes whole rows.

    Attributes:
        ids: (T,) of all texts.
        places: (T,) of each token in its text.
        ends: (n,) where in `ids` each text, in the order given, has its last token.
        groups: (texts, tokens a text) for each length there is.
    """

    def __init__(self, tokens: Tensor, end: int | None):
        tokens = tokens.cpu()
        count, length = tokens.shape
        lengths = torch.full((count,), length)
        if end is not None and length:
            found = tokens == end
            found[:, -1] = True
            lengths = found.int().argmax(dim=1) + 1  # the first of several
        lengths, order = lengths.sort(stable=True)
        self.groups: Groups = tuple((len(list(alike)), each) for each, alike in groupby(lengths.tolist()))
        steps = torch.arange(length).expand(count, length)
        kept = steps < lengths[:, None]
        self.ids, self.places = tokens[order][kept], steps[kept]
        self.ends = torch.empty(count, dtype=torch.long)
        self.ends[order] = lengths.cumsum(0) - 1
