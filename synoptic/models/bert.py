"""BERT, which reads the words of a detector phrase by phrase. Its layers are those of transformers.

Source: Devlin et al. 2019 (arXiv 1810.04805); phrases that do not see each other: Grounding DINO, sec. 3.4 (arXiv
2303.05499).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from synoptic.models.bounds import LARGEST_VOCABULARY, check_sizes, check_transformer
from synoptic.models.linear import Linear

_TOKENS = 4096  # that are read together at most
_APART = 8  # tokens by which phrases of any length may differ that are read together


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Everything that decides the function of a BERT, beside its weights. The defaults are those of bert-base-uncased.

    Attributes:
        vocabulary: tokens.
        width, depth, heads, hidden: of a transformer, see ViTConfig.
        positions: most tokens of a phrase.
        types: kinds of segments, of which the first is read.
        norm_eps: of all norms.
    """

    vocabulary: int = 30522
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    positions: int = 512
    types: int = 2
    norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        check_transformer(self)
        check_sizes(self, "hidden", "positions", "types")
        check_sizes(self, "vocabulary", most=LARGEST_VOCABULARY)
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps={self.norm_eps} should be above 0")


class Bert(nn.Module):
    """Phrases to tokens of a width, each phrase as if it stood alone."""

    def __init__(self, config: BertConfig, width: int):
        super().__init__()
        self.config = config
        from transformers.models.bert.configuration_bert import BertConfig as TheirConfig
        from transformers.models.bert.modeling_bert import BertModel

        theirs = TheirConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=config.hidden,
            max_position_embeddings=config.positions,
            type_vocab_size=config.types,
            layer_norm_eps=config.norm_eps,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        theirs._attn_implementation = "sdpa"
        self.bert: Any = BertModel(theirs, add_pooling_layer=False)
        _quicken(self.bert, theirs.initializer_range)
        # Its tables of places are no weights, and nothing would fill them where networks are built without values.
        places = torch.arange(config.positions, device="cpu")[None]
        self.bert.embeddings.register_buffer("position_ids", places, persistent=False)
        self.bert.embeddings.register_buffer("token_type_ids", torch.zeros_like(places), persistent=False)
        self.projection = Linear(config.width, width)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, phrases: Sequence[Sequence[int]]) -> list[Tensor]:
        """Of each phrase (n, width) tokens, n being its ids. Phrases of about one length are read together."""
        found: dict[int, Tensor] = {}
        for places in _groups(list(map(len, phrases))):
            tokens = self._read([phrases[place] for place in places])
            found |= {place: row[: len(phrases[place])] for place, row in zip(places, tokens, strict=True)}
        return [found[place] for place in range(len(phrases))]

    def _read(self, phrases: Sequence[Sequence[int]]) -> Tensor:
        """(n, L, width), of which rows are as long as the longest phrase."""
        longest = max(map(len, phrases))
        if longest > self.config.positions:
            most = self.config.positions
            raise ValueError(f"a phrase of {longest} tokens is longer than the {most} that its text model reads")
        ids = torch.zeros(len(phrases), longest, dtype=torch.long)
        mask = torch.zeros(len(phrases), longest, dtype=torch.long)
        for row, phrase in enumerate(phrases):
            ids[row, : len(phrase)] = torch.tensor(phrase)
            mask[row, : len(phrase)] = 1
        device = self.projection.weight.device
        said = self.bert(input_ids=ids.to(device), attention_mask=mask.to(device))
        return self.projection(said.last_hidden_state)


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Places of rows that are read together: none is filled up to more than about twice its length, for what that adds
    is work; but a few tokens more are less of it than the weights, which are read once a group."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        length = lengths[place]
        if groups:
            shortest = lengths[groups[-1][0]]
            if length <= 2 * shortest + _APART and length * (len(groups[-1]) + 1) <= _TOKENS:
                groups[-1].append(place)
                continue
        groups.append([place])
    return groups


def _quicken(bert: nn.Module, spread: float) -> None:
    """Puts our linear layers, which are quicker of few rows, in the place of PyTorch's; weights begin as BERT's do,
    normal with that spread."""
    for module in list(bert.modules()):
        for name, layer in module.named_children():
            if type(layer) is nn.Linear:
                quick = Linear(layer.in_features, layer.out_features)
                nn.init.normal_(quick.weight, std=spread)
                nn.init.zeros_(quick.bias)
                setattr(module, name, quick)
