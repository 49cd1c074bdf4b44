"""What a model says of the pictures of a source, batch by batch: the first step of every evaluator."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from synoptic.data.pictures import PictureError
from synoptic.data.sources import Source
from synoptic.data.transforms import fit
from synoptic.types import EncodesImages, Features, Mode, Preprocess

BATCH = 64  # pictures of up to 224 pixels; fewer of larger ones
READERS = 4  # threads; decoding runs beside the network, and more would only compete with it
AHEAD = 2  # batches that are read while the model computes


@dataclass(frozen=True)
class Space:
    """Which of a model's answers is judged.

    Attributes:
        adaptor: a student's answer in the space of this teacher; None takes the model's own.
        pooling: "summary" takes the summary where the model has one, else the mean of the patches; "patches" always
            takes the mean.
    """

    adaptor: str | None = None
    pooling: Literal["summary", "patches"] = "summary"

    @property
    def suffix(self) -> str:
        """What tells this space's scores from those in the model's own: "", "_clip", "_patches", "_clip_patches"."""
        return "".join(f"_{part}" for part in (self.adaptor, "patches" * (self.pooling == "patches")) if part)

    def of(self, features: Features) -> Features:
        """The answer itself.

        Raises:
            ValueError: for an adaptor that the model does not have.
        """
        if self.adaptor is None:
            return features
        if self.adaptor not in features.adaptors:
            has = f"its adaptors are {', '.join(features.adaptors)}" if features.adaptors else "it has none"
            raise ValueError(f"the model has no adaptor {self.adaptor!r}: {has}")
        return features.adaptors[self.adaptor]

    def vectors(self, features: Features) -> Tensor:
        """(B, C) float32, one vector a picture, L2-normalised."""
        answer = self.of(features)
        pooled = answer.summary if self.pooling == "summary" else None
        return F.normalize((answer.patches.float().mean(1) if pooled is None else pooled.float()), dim=1)


@dataclass(frozen=True)
class Encoded:
    """A batch of pictures and what the model says of them.

    Attributes:
        index: where the B pictures stand in their source.
        sizes: height and width of each as it was, upright.
        features: of the batch, float32.
    """

    index: list[int]
    sizes: list[tuple[int, int]]
    features: Features


@dataclass(frozen=True)
class Embeddings:
    """One vector a picture.

    Attributes:
        index: (n,) int64, where the pictures stand in their source; without those that could not be read.
        vectors: for each space (n, C) float32, L2-normalised, on the device that the model answers on.
    """

    index: np.ndarray
    vectors: dict[Space, Tensor]


def encode(
    model: EncodesImages, source: Source, indices: Sequence[int] | None = None, mode: Mode | None = None
) -> Iterator[Encoded]:
    """Shows a model the pictures of a source, batch by batch.

    Pictures are read ahead while the model computes. Unreadable ones are recorded in `source.errors` and left out.

    Args:
        model: sees the pictures as its `preprocess` says.
        source: the pictures.
        indices: which of them, in this order; None takes all.
        mode: "crop" or "squash" in place of the model's own.
    Raises:
        ValueError: too many pictures cannot be read, or none can.
    """
    size, mode = model.preprocess.size, mode or model.preprocess.mode
    wanted = list(range(len(source)) if indices is None else indices)
    any_read = False
    for batch in _read_ahead(source, wanted, size, mode):
        source.errors.note([], batch.failed)  # read in order, so the first ones tell nothing of the others
        if batch.index:
            any_read = True
            with torch.no_grad():
                features = model.encode_image(torch.stack(batch.images)).float()
            yield Encoded(batch.index, batch.sizes, features)
    if not any_read:
        raise ValueError(f"{source.root}: none of its {len(wanted)} pictures can be read")


def embed(
    model: EncodesImages, source: Source, spaces: Sequence[Space] = (Space(),), indices: Sequence[int] | None = None
) -> Embeddings:
    """One L2-normalised vector a picture in each of `spaces`, all from one pass over the source.

    Raises:
        ValueError: for an adaptor that the model does not have, unreadable pictures (see `encode`), and vectors that
            are not finite.
    """
    index: list[int] = []
    parts: dict[Space, list[Tensor]] = {space: [] for space in spaces}
    for batch in encode(model, source, indices):
        for space, vectors in parts.items():
            vectors.append(space.vectors(batch.features))
            check_finite(vectors[-1], batch, source)
        index += batch.index
    return Embeddings(np.array(index, np.int64), {space: torch.cat(vectors) for space, vectors in parts.items()})


@dataclass(frozen=True)
class RawPixels:
    """The baseline that every model should beat: the picture itself, made small, minus its mean brightness.

    Its summary is all pixels, its patches are single pixels.

    Attributes:
        size: side of the small picture in pixels.
    """

    size: int = 16

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(self.size, "squash")

    def encode_image(self, images: Tensor) -> Features:
        """Features of (B, 3, size, size) pictures."""
        centred = images - images.mean((1, 2, 3), keepdim=True)
        return Features(images.flatten(2).transpose(1, 2), (self.size, self.size), centred.flatten(1))


def check_finite(vectors: Tensor, batch: Encoded, source: Source) -> None:
    """Refuses numbers that no score could be trusted with.

    Args:
        vectors: (B, ...) what the model says of the pictures of `batch`, which are of `source`.
    Raises:
        ValueError: naming the first picture about which the model says NaN or infinity.
    """
    finite = vectors.isfinite().flatten(1).all(1).tolist()
    if not all(finite):
        raise ValueError(f"the model's answer to {source.name(batch.index[finite.index(False)])} is not finite")


@dataclass
class _Batch:
    """Pictures as the model sees them, their original sizes, and those that could not be read."""

    index: list[int] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    failed: list[tuple[int, PictureError]] = field(default_factory=list)


def _read_ahead(source: Source, indices: Sequence[int], size: int, mode: Mode) -> Iterator[_Batch]:
    count = max(1, min(BATCH, BATCH * 224**2 // size**2))
    chunks = (indices[start : start + count] for start in range(0, len(indices), count))
    with ThreadPoolExecutor(READERS) as pool:

        def submit(more: int) -> list[list[tuple[int, Future[_Read]]]]:
            return [[(i, pool.submit(_read, source, i, size, mode)) for i in part] for part in islice(chunks, more)]

        pending = deque(submit(AHEAD))
        try:
            while pending:
                batch = _gathered(pending.popleft())
                pending.extend(submit(1))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)


_Read = tuple[Tensor, tuple[int, int]]


def _read(source: Source, index: int, size: int, mode: Mode) -> _Read:
    picture = torch.from_numpy(source.read(index)).permute(2, 0, 1)
    shape = (picture.shape[1], picture.shape[2])
    return fit(picture[None], torch.tensor([shape]), size, mode)[0], shape


def _gathered(reads: list[tuple[int, Future[_Read]]]) -> _Batch:
    batch = _Batch()
    for index, future in reads:
        try:
            image, shape = future.result()
        except PictureError as error:
            batch.failed.append((index, error))
        else:
            batch.index.append(index)
            batch.images.append(image)
            batch.sizes.append(shape)
    return batch
