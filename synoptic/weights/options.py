"""What users say of a weights file that it does not say itself. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

FILES = ("vocabulary", "linear_head")  # options that are paths


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What the weights files of other makers leave open; those of this library and its built-in models leave nothing,
    but for `size` and `window`.

    Attributes:
        heads: attention heads of a transformer, of pictures where there is one of text too; None takes what the folder
            says, and of a file one head for every 64 channels, or 16 for the widest ViTs, as its makers have it.
        text_heads: likewise, of the transformer of text.
        decoder_heads: likewise, of the mask decoder of a SAM; None takes 8 of one that is 256 wide, as released.
        window: side in patches of the windows in which the blocks of a SAM attend, where None takes what the sizes of
            its relative positions tell; or in which most blocks of a RADIO do, or of a ViT or student of this library,
            where None takes what it says, mostly that they attend over the whole picture.
        global_blocks: blocks of a SAM that attend over the whole picture, counted from 0; None takes those whose
            relative positions are for the whole picture.
        activation: of a CLIP whose file does not tell it; a wrong one is as good as other weights.
        vocabulary: file of CLIP's byte-pair encoding (`bpe_simple_vocab_16e6.txt.gz`), or of BERT's word pieces
            (`vocab.txt`, `tokenizer.json` or `hf:google-bert/bert-base-uncased`) for a Grounding DINO; None looks for
            it beside the weights, and a model without one sees and does not read.
        linear_head: file of a linear classifier that was released beside a backbone of DINO or DINOv2, which then tells
            the classes that this was trained on.
        align_corners: how a RADIO resizes its table of positions, which its file does not say: between the corners of
            the table, or between the centres of its cells; None takes the former but where the folder of its makers
            names a version of which the latter is known.
        summary_tokens: how many of the learned tokens of a RADIO make its summary, the first of them, where its file
            has no arguments that tell it; None takes what releases with as many tokens have.
        size: side in pixels of the pictures that a RADIO is given, which takes any; None takes what its folder says,
            and 512 of a file, or the nearest that its patches tile. Of a ViT, a student or a CLIP of this library in
            place of the one that it was trained with.
        part: which network of a file that holds a training's student and teacher; None takes the teacher.
    """

    heads: PositiveInt | None = None
    text_heads: PositiveInt | None = None
    decoder_heads: PositiveInt | None = None
    window: PositiveInt | None = None
    global_blocks: tuple[NonNegativeInt, ...] | None = None
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] | None = None
    vocabulary: str | None = None
    linear_head: str | None = None
    align_corners: bool | None = None
    summary_tokens: PositiveInt | None = None
    size: PositiveInt | None = None
    part: Literal["student", "teacher"] | None = None


@dataclass(frozen=True, kw_only=True)
class TeacherFile:
    """A teacher that a student is only compared with.

    Attributes:
        load: what a weights file of another maker does not say itself.
    """

    load: LoadOptions = field(default_factory=LoadOptions)
