"""The layers of Grounding DINO: how pictures and words are fused, how each looks at itself, and how queries look at
both.

Tokens are packed, picture after picture, without padding: those of pictures (S, D), of words (T, D), of queries (Q, D).
Everything but attention is applied to all at once.

Source: Grounding DINO (Liu et al. 2023, arXiv 2303.05499), sec. 3 and appendix; the order of the layers and where
residuals begin as in its authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synoptic.models.deform_attn import DeformableAttention, Levels
from synoptic.models.linear import Linear, activated
from synoptic.models.parts import in_parts
from synoptic.models.pyramid import Pyramid

Counts = Sequence[int]  # tokens of each picture
_RELU = nn.ReLU()
_FUSED = 1e-4  # what the fused part of a token begins with (its authors' code)


@dataclass(frozen=True)
class Words:
    """Prompts as a detector reads them.

    Attributes:
        tokens: (T, D) packed.
        phrases: lengths of the phrases of each prompt, whose tokens see each other and no others.
    """

    tokens: Tensor
    phrases: tuple[tuple[int, ...], ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens of each prompt."""
        return tuple(map(sum, self.phrases))

    def split(self) -> tuple[Tensor, ...]:
        """(n, D) tokens of each prompt."""
        return self.tokens.split(list(self.counts))


class Attention(nn.Module):
    """Multi-head attention of packed tokens to those of their own picture.

    Args:
        width: channels D of all tokens.
        heads: number of heads; divides `width`.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        for layer in (self.qkv, self.proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        counts: Counts,
        key_counts: Counts,
        masks: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """
        Args:
            queries: (Q, D).
            keys, values: (K, D).
            counts, key_counts: how many belong to each picture.
            masks: (q, k) bool of each picture, true where a query may look; None lets it look everywhere.
        Returns:
            (Q, D).
        """
        weights, biases = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        parts = [
            F.linear(tokens, weight, bias).unflatten(-1, (self.heads, -1)).transpose(0, 1)
            for tokens, weight, bias in zip((queries, keys, values), weights, biases, strict=True)
        ]
        wanted: Sequence[Tensor | None] = masks or [None] * len(counts)
        rows = (part.split(list(count), 1) for part, count in zip(parts, (counts, key_counts, key_counts), strict=True))
        mixed = [
            F.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=mask)[0]
            for query, key, value, mask in zip(*rows, wanted, strict=True)
        ]
        return self.proj(torch.cat(mixed, 1).transpose(0, 1).flatten(1))


class FeedForward(nn.Module):
    """Linear, ReLU, Linear."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.act = nn.ReLU()
        self.fc2 = Linear(hidden, width)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(activated(self.fc1, tokens, self.act))


class Fusion(nn.Module):
    """Pictures look at words and words at pictures, by one matrix of scores; both go on from their normalised tokens.

    The layers that carry a picture's tokens into the space where scores are taken, and what they found back, are
    applied to the words instead: (x Q) k^T = x (Q k^T), and (a v) O = a (v O). Of a picture there are ten thousands of
    tokens, of words a few, and the space is four times as wide as the tokens: the same numbers for a fraction of the
    arithmetic.

    Args:
        width: channels D of the tokens.
        heads: number of heads.
        inner: channels of the space in which scores are taken.
        drop_path: share of pictures that are not fused while training.
    """

    def __init__(self, width: int, heads: int, inner: int, drop_path: float, eps: float):
        super().__init__()
        self.heads, self.drop_path = heads, drop_path
        self.image_norm = nn.LayerNorm(width, eps=eps)
        self.text_norm = nn.LayerNorm(width, eps=eps)
        self.image_query = Linear(width, inner)
        self.text_key = Linear(width, inner)
        self.image_value = Linear(width, inner)
        self.text_value = Linear(width, inner)
        self.image_out = Linear(inner, width)
        self.text_out = Linear(inner, width)
        self.image_scale = nn.Parameter(torch.full((width,), _FUSED))
        self.text_scale = nn.Parameter(torch.full((width,), _FUSED))
        for layer in (
            self.image_query,
            self.text_key,
            self.image_value,
            self.text_value,
            self.image_out,
            self.text_out,
        ):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor, text: Tensor, counts: Counts, text_counts: Counts) -> tuple[Tensor, Tensor]:
        """(S, D) tokens of pictures and (T, D) of words to both, fused."""
        image, text = self.image_norm(image), self.text_norm(text)
        pairs = zip(image.split(list(counts)), text.split(list(text_counts)), strict=True)
        fused = [self._fused(*pair) for pair in pairs]
        images, texts = zip(*fused, strict=True)
        return (images[0], texts[0]) if len(fused) == 1 else (torch.cat(images), torch.cat(texts))

    def _fused(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) and (n, D) normalised tokens of one picture and its words."""
        (weights, bias), said = self._words(text)
        scores = torch.addmm(bias[:, None], weights, image.T).unflatten(0, (self.heads, -1))  # (heads, n, N)
        wide = torch.promote_types(scores.dtype, torch.float32)
        of_words = scores.softmax(1, dtype=wide).to(image.dtype).flatten(0, 1)
        of_picture = scores.softmax(2, dtype=wide).to(image.dtype).flatten(0, 1)
        gathered = (of_picture @ image).unflatten(0, (self.heads, -1))  # (heads, n, D)
        values = gathered @ self._parted(self.image_value.weight).mT + self._parted(self.image_value.bias)[:, None]
        heard = self.text_out(values.transpose(0, 1).flatten(1)) * self.text_scale
        keeps = self._keeps(image), self._keeps(image)
        return image + of_words.T @ (said * keeps[0]), text + heard * keeps[1]

    def _words(self, text: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """What scores of a picture's tokens are made with, (heads * n, D) and (heads * n,), and what words add to
        tokens that look at them, (heads * n, D)."""
        keys = self._parted(self.text_key(text).T).mT * (self.text_key.out_features // self.heads) ** -0.5
        weights, bias = (self._parted(each) for each in (self.image_query.weight, self.image_query.bias))
        values = self._parted(self.text_value(text).T).mT  # (heads, n, inner / heads)
        out = self._parted(self.image_out.weight.T) * self.image_scale
        beside = self.image_out.bias * self.image_scale / self.heads  # shares of words sum to one in every head
        reads = (keys @ weights).flatten(0, 1), (keys @ bias[..., None]).flatten()
        return reads, (values @ out + beside).flatten(0, 1)

    def _parted(self, rows: Tensor) -> Tensor:
        """(inner, ...) as (heads, inner / heads, ...)."""
        return rows.unflatten(0, (self.heads, -1))

    def _keeps(self, image: Tensor) -> Tensor | float:
        """Nothing, or what the rest is multiplied with, so that its expectation stays."""
        if not (self.training and self.drop_path):
            return 1.0
        return (torch.rand((), device=image.device) >= self.drop_path).to(image.dtype) / (1 - self.drop_path)


class TextLayer(nn.Module):
    """Words of a phrase look at each other, then a feed-forward layer; norms come behind."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float):
        super().__init__()
        self.attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.mlp = FeedForward(width, hidden)
        self.norm2 = nn.LayerNorm(width, eps=eps)

    def forward(self, text: Tensor, positions: Tensor, counts: Counts, masks: Sequence[Tensor]) -> Tensor:
        placed = text + positions
        text = self.norm1(text + self.attn(placed, placed, text, counts, counts, masks))
        return self.norm2(text + self.mlp(text))


class ImageLayer(nn.Module):
    """Tokens of a picture look at a few others in all levels, then a feed-forward layer; norms come behind."""

    def __init__(self, width: int, heads: int, hidden: int, levels: int, points: int, eps: float):
        super().__init__()
        self.attn = DeformableAttention(width, heads, levels, points)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.mlp = FeedForward(width, hidden)
        self.norm2 = nn.LayerNorm(width, eps=eps)

    def forward(self, image: Tensor, positions: Tensor, references: Tensor, at: Levels) -> Tensor:
        reader = self.attn.reader(image, at, at.counts)

        def layer(tokens: Tensor, places: Tensor, *per_query: Tensor) -> Tensor:
            tokens = self.norm1(tokens + reader.read(tokens + places, *per_query))
            return self.norm2(tokens + self.mlp(tokens))

        return in_parts(layer, image, positions, references, *reader.per_query, count=reader.at_once)


class DecoderLayer(nn.Module):
    """Queries look at each other, at words, at the picture, then a feed-forward layer; norms come behind."""

    def __init__(self, width: int, heads: int, hidden: int, levels: int, points: int, eps: float):
        super().__init__()
        self.attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.text_attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.image_attn = DeformableAttention(width, heads, levels, points)
        self.norm3 = nn.LayerNorm(width, eps=eps)
        self.mlp = FeedForward(width, hidden)
        self.norm4 = nn.LayerNorm(width, eps=eps)

    def forward(
        self,
        queries: Tensor,
        positions: Tensor,
        references: Tensor,
        counts: Counts,
        words: Words,
        pyramid: Pyramid,
    ) -> Tensor:
        """(Q, D) queries, what tells them apart, and the boxes (Q, 4) around which they look, to the next layer's."""
        text = words.tokens
        placed = queries + positions
        queries = self.norm1(queries + self.attn(placed, placed, queries, counts, counts))
        queries = self.norm2(queries + self.text_attn(queries + positions, text, text, counts, words.counts))
        seen = self.image_attn(queries + positions, references, counts, pyramid.tokens, pyramid.levels)
        queries = self.norm3(queries + seen)
        return self.norm4(queries + self.mlp(queries))


class BoxHead(nn.ModuleList):
    """Three linear layers with ReLU between them; the last begins with zeros, so that boxes stay where they are."""

    def __init__(self, width: int):
        last = Linear(width, 4)
        super().__init__((Linear(width, width), Linear(width, width), last))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, queries: Tensor) -> Tensor:  # (Q, D) -> (Q, 4)
        first, second, last = self
        return last(activated(second, activated(first, queries, _RELU), _RELU))
