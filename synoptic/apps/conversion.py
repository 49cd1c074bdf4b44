"""The verb `convert`: a model in another layout."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Literal

from synoptic.weights.options import LoadOptions


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """A model in the layout of its makers, of Hugging Face or of this library, read back before it counts.

    Attributes:
        model: a name from `synoptic models`, a run folder, or a weights file or folder.
        to: official is a state dict that the makers' code loads, huggingface a folder that transformers loads, and
            synoptic a weights folder of this library.
        out: the file (.pth, .pt or .bin) or the folder; nothing may lie there, since nothing is overwritten.
        load: what a weights file of other makers does not say itself.
    """

    model: str
    to: Literal["official", "huggingface", "synoptic"]
    out: str
    load: LoadOptions = field(default_factory=LoadOptions)


def convert(options: ConvertOptions) -> None:
    """A model written in the layout of others, and back."""
    from synoptic.weights.writing import convert

    done = convert(options.model, options.to, os.path.expanduser(options.out), options.load)
    print(done.out)
    print(f"{done.tensors} tensors as {done.layout}, read back bit for bit", file=sys.stderr)
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
