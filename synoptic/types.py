"""The contracts between the rooms of the house: what a model answers, what a batch holds, what a model can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")

Mode = Literal["crop", "squash", "pad", "fit"]


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
        """The same features in float32, or better (distances and statistics are never taken in half precision)."""
        return self._changed(lambda tensor: tensor.to(torch.promote_types(tensor.dtype, torch.float32)))

    def cpu(self) -> Features:
        """The same features on the host."""
        return self._changed(lambda tensor: tensor.cpu())

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Features:
        return Features(
            patches=change(self.patches),
            grid=self.grid,
            summary=None if self.summary is None else change(self.summary),
            layers=tuple(layer._changed(change) for layer in self.layers),
            adaptors={name: features._changed(change) for name, features in self.adaptors.items()},
        )

    @classmethod
    def joined(cls, parts: Sequence[Features]) -> Features:
        """Features of batches of equally large pictures, without those of layers, as those of one batch."""
        first = parts[0]
        return cls(
            torch.cat([part.patches for part in parts]),
            first.grid,
            None if first.summary is None else torch.cat([part.summary for part in parts if part.summary is not None]),
            adaptors={name: cls.joined([part.adaptors[name] for part in parts]) for name in first.adaptors},
        )


@dataclass(frozen=True)
class Segments:
    """What a model cuts out of one picture.

    Attributes:
        masks: (n, H, W) bool, at the size of the picture.
        scores: (n,) float32, what the model expects of each: its intersection over union with what was meant. A
            prediction, about 0 to 1.
    """

    masks: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Batch:
    """One batch, first as the loader reads it, then as a task's `prepare` augments it. Fields are None where unused.

    Attributes:
        images: (B, C, H, W). From the loader: uint8, or float32 of full depth, pictures of different sizes padded with
            zeros on the right and below. After `prepare`: float32, all of one size. What bytes become lies in [0, 1].
        sizes: (B, 2) int64, height and width of each picture inside the padding.
        bounded: (B,) bool, which pictures of full depth lie in [0, 1]; None where all pictures do.
        crops: one tensor (B, C, h, w) float32 a crop, large ones first.
        masks: (2B, h*w) bool, hidden patches of the two large crops, those of all first crops before those of all
            second ones.
        masked: (M,) int64, where `masks` is true, counted through all its rows.
        captions: every caption of every picture.
        tokens: (B, L) int64 token ids of one caption a picture.
        labels: (B,) int64 class of each picture, -1 where unknown.
        index: (B,) int64 where each picture stands in its source.
        position: (B,) int64 where each sample stands in the run (step * batch + place); with the seed it decides
            everything random about the sample.
    """

    images: Tensor | None = None
    sizes: Tensor | None = None
    bounded: Tensor | None = None
    crops: tuple[Tensor, ...] = ()
    masks: Tensor | None = None
    masked: Tensor | None = None
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


class Group(Protocol):
    """The processes that train together, as far as a loss or a statistic needs the whole batch.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, element by element, without gradient."""
        ...

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, (B, ...) of equal shape, one after the other; gradients find their way back."""
        ...


class Alone:
    """The group of a single process."""

    rank = 0
    size = 1

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor


ALONE = Alone()


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
        mode: "crop" takes the largest centred square, "squash" the whole picture whatever its shape; "pad" brings the
            longer side to the size and fills up on the right and below; "fit" brings the shorter side to it and keeps
            the shape of the picture (detectors).
        bands: how many bands are read at their full depth (see `data.bands`); None reads 8-bit RGB.
        share: how much of that square, or of height and width of the whole picture, is taken about its centre, such as
            224 / 256; above 0, at most 1.
        interpolation: the filter with which pictures are resized.
        fill: what "pad" fills each band with, in what the model reads; nothing is 0. A model whose makers filled with
            zeros after normalisation has its mean here.
        longest: of "fit", most pixels of the longer side; a longer picture is made as much smaller.
    """

    size: int
    mode: Mode = "crop"
    bands: int | None = None
    share: float = 1.0
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    fill: tuple[float, ...] = ()
    longest: int | None = None

    def __post_init__(self) -> None:
        if (self.longest is not None) != (self.mode == "fit") or (self.longest or self.size) < self.size:
            raise ValueError(f"longest={self.longest} should be size={self.size} or more with mode=fit, and none else")
        if self.size < 1:
            raise ValueError(f"size={self.size} should be a number of pixels")
        if self.bands is not None and self.bands < 1:
            raise ValueError(f"bands={self.bands} should be a number of bands, or null for 8-bit RGB")
        if len(self.fill) not in (0, self.bands or 3):
            raise ValueError(f"fill={self.fill} should be {self.bands or 3} values, one a band, or none")
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} should be above 0 and at most 1")


class EncodesImages(Protocol):
    """Capability of a model that an evaluator may ask for: pictures to features."""

    @property
    def preprocess(self) -> Preprocess: ...

    def encode_image(self, images: Tensor) -> Features:
        """Features of (B, C, S, S) float pictures, S being the size and C the bands that `preprocess` says."""
        ...


@runtime_checkable
class EncodesBlocks(EncodesImages, Protocol):
    """Capability of a model whose intermediate blocks answer too.

    Attributes:
        depth: how many blocks it has; 0 where none can be asked.
    """

    @property
    def depth(self) -> int: ...

    def encode_image(self, images: Tensor, layers: Sequence[int] = ()) -> Features:
        """As that of `EncodesImages`, with these blocks, counted from 0 or from the end, as layers of the features."""
        ...


@runtime_checkable
class EncodesSizes(EncodesImages, Protocol):
    """Capability of a model that may be asked at other sizes than that of its `preprocess`."""

    @property
    def stride(self) -> int:
        """Pixels from one patch to the next."""
        ...

    @property
    def step(self) -> int:
        """Pixels of which height and width are multiples."""
        ...

    @property
    def any_size(self) -> bool:
        """Whether it takes pictures of other sizes than its own."""
        ...

    @property
    def adaptors(self) -> tuple[str, ...]:
        """Names of the teachers in whose spaces it answers too."""
        ...


@runtime_checkable
class Attends(EncodesImages, Protocol):
    """Capability of a model whose summary looks at patches."""

    @property
    def attends(self) -> bool:
        """Whether this one can be asked what its summary looks at."""
        ...

    def attention(self, images: Tensor, layer: int = -1, adaptor: str | None = None) -> Tensor:
        """(B, heads, h, w), the share of each patch in what the summary sees of the patches; maps sum to 1."""
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

    def logit_scale(self, adaptor: str | None = None) -> float:
        """What cosines are multiplied by there before a softmax."""
        ...


@runtime_checkable
class LocatesWords(EncodesImages, Protocol):
    """Capability of a model whose patches can be compared with words."""

    def encode_patches(self, images: Tensor, adaptor: str | None = None) -> Features:
        """Patches in the space of words, each as if it were all that a picture shows, L2-normalised float32; without
        an adaptor in the only space that has words."""
        ...


@runtime_checkable
class Speaks(Protocol):
    """Capability of a model that can be asked whether it knows words."""

    def speaks(self, adaptor: str | None = None) -> bool:
        """Whether it knows words in the adaptor's space; without one, whether it does so in a single space."""
        ...


class FoundObjects(Protocol):
    """What a detector finds in one picture."""

    @property
    def boxes(self) -> np.ndarray:
        """(n, 4) left, top, right, bottom in pixels of the original."""
        ...

    @property
    def scores(self) -> np.ndarray:
        """(n,), the highest first."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """(n,) places among the names that were asked for."""
        ...


@runtime_checkable
class Detects(Protocol):
    """Capability of a model that finds what words name."""

    def objects(
        self, paths: Sequence[Path], names: Sequence[str], limit: int, names_per_prompt: int | None = None
    ) -> Iterator[FoundObjects | None]:
        """The surest objects of each picture, of any score; None where a file cannot be read."""
        ...


Capability = TypeVar("Capability", bound=EncodesImages | Detects, contravariant=True)


class Evaluator(Protocol[Capability]):
    """Judges a model that has the capability named; scores are fractions in [0, 1] unless their names say otherwise."""

    def run(self, model: Capability) -> Iterator[tuple[str, float]]:
        """The scores by name. What the model lacks is best told by the call itself, before the first score is asked."""
        ...
