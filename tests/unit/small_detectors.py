"""A detector that is made in no time, with words of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from synoptic.models.bert import BertConfig
from synoptic.models.grounding_dino import GroundingDino, GroundingDinoConfig
from synoptic.models.swin import SwinConfig
from synoptic.models.tokenizers import Tokenizer
from synoptic.predict import VisionModel
from synoptic.types import Preprocess

WORDS = ("a", "cat", "dog", "red", "car", "sofa", "on", "the", "re", "##mote", "control", "two", "##s", "lamp", "-")
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "?", *WORDS)
STOPS = (2, 3, 4, 5)
BERT = BertConfig(vocabulary=len(PIECES), width=16, depth=1, heads=2, hidden=24, positions=32)
SWIN = SwinConfig(width=8, depths=(1, 1), heads=(1, 2), window=3, stages=(0, 1), drop_path=0.0)
TINY: dict[str, Any] = {
    **{"backbone": SWIN, "text": BERT, "stops": STOPS, "width": 64, "heads": 2, "hidden": 16, "levels": 3},
    **{"encoder_depth": 1, "decoder_depth": 2, "queries": 12, "encoder_points": 2, "decoder_points": 2},
}


@torch.no_grad()
def small_network(seed: int = 0, words: bool = True, **changes: Any) -> GroundingDino:
    torch.manual_seed(seed)
    config = GroundingDinoConfig(**{**TINY, **changes})
    network = GroundingDino(config, Tokenizer.bert(PIECES, config.context) if words else None)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


def small_detector(seed: int = 0, words: bool = True, side: int = 48, **changes: Any) -> VisionModel:
    preprocess = Preprocess(side, "fit", interpolation="bilinear", longest=2 * side)
    return VisionModel(small_network(seed, words, **changes), preprocess, "small")
