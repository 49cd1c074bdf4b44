"""What users say of a weights file that it does not say itself. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveInt


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What the weights files of other makers leave open; those of this library and its built-in models leave nothing.

    Attributes:
        heads: attention heads of a transformer; None takes what the folder says, and of a file one head for every 64
            channels, as its makers have it.
        part: which network of a file that holds a training's student and teacher; None takes the teacher.
    """

    heads: PositiveInt | None = None
    part: Literal["student", "teacher"] | None = None
