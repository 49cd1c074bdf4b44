"""The contracts between the rooms of the house: what a model answers, what a batch holds, what a model can do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")

Mode = Literal["crop", "squash"]


def present(value: T | None) -> T:
    """A value that the program's own order guarantees to be there."""
    assert value is not None
    return value


@dataclass(frozen=True)
class Features:
    """What a backbone says of a batch of pictures.

    Attributes:
        patches: (B, h*w, D) one vector a patch, row-major.
        grid: (h, w) patches down and across.
        summary: (B, C) one vector a picture, or None where a model has none. A model with several summary tokens
            answers with their concatenation.
        layers: Features of intermediate layers, in the order in which they were asked for.
        adaptors: a student's answer in the space of each of its teachers, by name.
    """

    patches: Tensor
    grid: tuple[int, int]
    summary: Tensor | None = None
    layers: tuple[Features, ...] = ()
    adaptors: Mapping[str, Features] = field(default_factory=dict)

    def float(self) -> Features:
        """The same features in float32 (distances and statistics are never taken in half precision)."""
        return Features(
            patches=self.patches.float(),
            grid=self.grid,
            summary=None if self.summary is None else self.summary.float(),
            layers=tuple(layer.float() for layer in self.layers),
            adaptors={name: features.float() for name, features in self.adaptors.items()},
        )


@dataclass(frozen=True)
class Batch:
    """One batch, first as the loader reads it, then as a task's `prepare` augments it. Fields are None where unused.

    Attributes:
        images: (B, C, H, W). From the loader: uint8, pictures of different sizes padded with zeros on the right and
            below. After `prepare`: float32 in [0, 1], all of one size.
        sizes: (B, 2) int64, height and width of each picture inside the padding.
        crops: one tensor (B, C, h, w) float32 in [0, 1] a crop, large ones first.
        captions: every caption of every picture.
        tokens: (B, L) int64 token ids of one caption a picture.
        labels: (B,) int64 class of each picture, -1 where unknown.
        index: (B,) int64 where each picture stands in its source.
        position: (B,) int64 where each sample stands in the run (step * batch + place); with the seed it decides
            everything random about the sample.
    """

    images: Tensor | None = None
    sizes: Tensor | None = None
    crops: tuple[Tensor, ...] = ()
    captions: tuple[tuple[str, ...], ...] = ()
    tokens: Tensor | None = None
    labels: Tensor | None = None
    index: Tensor | None = None
    position: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with what networks read on `device`, copied without blocking where memory is pinned.

        Sizes and positions stay on the host, where random draws are made: reading them back would wait for the device.
        """
        names = ("images", "tokens", "labels")
        values = {name: getattr(self, name) for name in names}
        moved = {name: value.to(device, non_blocking=True) for name, value in values.items() if value is not None}
        return replace(self, **moved, crops=tuple(crop.to(device, non_blocking=True) for crop in self.crops))

    def split(self, parts: int) -> tuple[Batch, ...]:
        """The batch in `parts` pieces of (nearly) equal size, in order."""
        bounds = [round(part * len(self) / parts) for part in range(parts + 1)]
        return tuple(self._slice(slice(low, high)) for low, high in pairwise(bounds))

    def _slice(self, piece: slice) -> Batch:
        cut: dict[str, object] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                cut[item.name] = value[piece]
        cut["crops"] = tuple(crop[piece] for crop in self.crops)
        cut["captions"] = self.captions[piece]
        return replace(self, **cut)  # type: ignore[arg-type]

    def __len__(self) -> int:
        for tensor in (self.images, self.index, self.tokens, *self.crops):
            if tensor is not None:
                return len(tensor)
        return len(self.captions)


class Backbone(Protocol):
    """A picture encoder: ViT, Swin, any Hub model.

    Attributes:
        width: channels D of a patch feature.
        stride: pixels from one patch to the next.
        channels: bands of the pictures it reads.
    """

    width: int
    stride: int
    channels: int

    def __call__(self, images: Tensor, masks: Tensor | None = None, layers: Sequence[int] = ()) -> Features: ...


@dataclass(frozen=True)
class Preprocess:
    """How a picture of any size becomes what a model was trained to read.

    Attributes:
        size: side in pixels.
        mode: "crop" takes the largest centred square, "squash" the whole picture whatever its shape.
    """

    size: int
    mode: Mode = "crop"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size} should be a number of pixels")


class EncodesImages(Protocol):
    """Capability of a model that an evaluator may ask for: pictures to features."""

    @property
    def preprocess(self) -> Preprocess: ...

    def encode_image(self, images: Tensor) -> Features:
        """Features of (B, C, S, S) float pictures in [0, 1], S being the size that `preprocess` says."""
        ...


class EncodesText(EncodesImages, Protocol):
    """Capability of a model that also reads words."""

    @property
    def text_space(self) -> str | None:
        """The adaptor whose summary lives in one space with words; None for the model's own summary."""
        ...

    def encode_text(self, texts: Sequence[str], adaptor: str | None = None) -> np.ndarray:
        """(n, C) float32 in that space, or in the adaptor's given, L2-normalised."""
        ...


Capability = TypeVar("Capability", bound=EncodesImages, contravariant=True)


class Evaluator(Protocol[Capability]):
    """Judges a model that has the capability named; scores are fractions in [0, 1] unless their names say otherwise."""

    def run(self, model: Capability) -> Iterator[tuple[str, float]]: ...
