"""What users say of a weights file that it does not say itself. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveInt


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What the weights files of other makers leave open; those of this library and its built-in models leave nothing.

    Attributes:
        heads: attention heads of a transformer, of pictures where there is one of text too; None takes what the folder
            says, and of a file one head for every 64 channels, or 16 for the widest ViTs, as its makers have it.
        text_heads: likewise, of the transformer of text.
        activation: of a CLIP whose file does not tell it; a wrong one is as good as other weights.
        vocabulary: file of CLIP's byte-pair encoding (`bpe_simple_vocab_16e6.txt.gz`); None looks for it beside the
            weights, and a model without one sees and does not read.
        part: which network of a file that holds a training's student and teacher; None takes the teacher.
    """

    heads: PositiveInt | None = None
    text_heads: PositiveInt | None = None
    activation: Literal["gelu", "quick_gelu"] | None = None
    vocabulary: str | None = None
    part: Literal["student", "teacher"] | None = None
