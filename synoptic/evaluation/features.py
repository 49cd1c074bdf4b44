"""What a model says of the pictures of a source, batch by batch: the first step of every evaluator."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from synoptic.data.pictures import PictureError
from synoptic.data.sources import Source
from synoptic.data.transforms import fit
from synoptic.types import EncodesBlocks, EncodesImages, Features, Mode, Preprocess

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
        block: the answer of an intermediate block, -1 being the last; None takes what the model makes of them all.
        unit: vectors are L2-normalised.
    """

    adaptor: str | None = None
    pooling: Literal["summary", "patches"] = "summary"
    block: int | None = None
    unit: bool = True

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
            return features if self.block is None else features.layers[self.block]
        if self.adaptor not in features.adaptors:
            has = f"its adaptors are {', '.join(features.adaptors)}" if features.adaptors else "it has none"
            raise ValueError(f"the model has no adaptor {self.adaptor!r}: {has}")
        return features.adaptors[self.adaptor]

    def vectors(self, features: Features) -> Tensor:
        """(B, C) float32, one vector a picture, L2-normalised if `unit`."""
        answer = self.of(features)
        pooled = answer.summary if self.pooling == "summary" else None
        vectors = answer.patches.float().mean(1) if pooled is None else pooled.float()
        return F.normalize(vectors, dim=1) if self.unit else vectors


@dataclass(frozen=True)
class Shown:
    """A batch of pictures as a model is to see them.

    Attributes:
        index: where the B pictures stand in their source.
        sizes: height and width of each as it was, upright.
        images: (B, C, S, S) float32 in [0, 1].
    """

    index: list[int]
    sizes: list[tuple[int, int]]
    images: Tensor


@dataclass(frozen=True)
class Views:
    """A batch of pictures in the several ways in which models, or one at several sizes, are to see them.

    Attributes:
        index: where the B pictures stand in their source.
        images: for each way (B, C, S, S) float32 in [0, 1].
    """

    index: list[int]
    images: dict[Preprocess, Tensor]


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
        vectors: for each space (n, C) float32, on the device that the model answers on.
    """

    index: np.ndarray
    vectors: dict[Space, Tensor]


def show(
    preprocess: Preprocess, source: Source, indices: Sequence[int] | None = None, mode: Mode | None = None
) -> Iterator[Shown]:
    """The pictures of a source, batch by batch, read ahead of their use.

    Unreadable ones are recorded in `source.errors` and left out.

    Args:
        preprocess: what they go through.
        source: the pictures.
        indices: which of them, in this order; None takes all.
        mode: "crop" or "squash" in place of that of `preprocess`, and then to the edges.
    Raises:
        ValueError: too many pictures cannot be read, or none can.
    """
    preprocess = replace(preprocess, mode=mode, share=1.0) if mode else preprocess
    for batch in _readable(source, indices, (preprocess,)):
        yield Shown(batch.index, batch.sizes, torch.stack([image for (image,) in batch.images]))


def show_each(ways: Iterable[Preprocess], source: Source, indices: Sequence[int] | None = None) -> Iterator[Views]:
    """The pictures of a source in several ways at once, batch by batch, each read from its file once.

    Args:
        ways: what the pictures go through, all of the same bands; those that are equal count once.
        source, indices: see `show`.
    Raises:
        ValueError: see `show`.
    """
    each = tuple(dict.fromkeys(ways))
    for batch in _readable(source, indices, each):
        columns = zip(*batch.images, strict=True)
        yield Views(batch.index, {way: torch.stack(images) for way, images in zip(each, columns, strict=True)})


def encode(
    model: EncodesImages,
    source: Source,
    indices: Sequence[int] | None = None,
    mode: Mode | None = None,
    blocks: int = 0,
) -> Iterator[Encoded]:
    """Shows a model the pictures of a source, batch by batch; see `show`.

    Args:
        model: sees the pictures as its `preprocess` says.
        source, indices, mode: see `show`.
        blocks: how many of its last blocks answer too, as layers of the features; at most as many as it has.
    """
    for batch in show(model.preprocess, source, indices, mode):
        with torch.no_grad():
            if blocks and isinstance(model, EncodesBlocks):
                features = model.encode_image(batch.images, range(-blocks, 0))
            else:
                features = model.encode_image(batch.images)
        yield Encoded(batch.index, batch.sizes, features.float())


def embed(
    model: EncodesImages, source: Source, spaces: Sequence[Space] = (Space(),), indices: Sequence[int] | None = None
) -> Embeddings:
    """One vector a picture in each of `spaces`, all from one pass over the source.

    Spaces of blocks that the model does not have are left out.

    Raises:
        ValueError: for an adaptor that the model does not have, unreadable pictures (see `show`), and vectors that
            are not finite.
    """
    deepest = max((-space.block for space in spaces if space.block is not None), default=0)
    blocks = min(deepest, model.depth if isinstance(model, EncodesBlocks) else 0)
    index: list[int] = []
    parts: dict[Space, list[Tensor]] = {space: [] for space in spaces if space.block is None or -space.block <= blocks}
    for batch in encode(model, source, indices, blocks=blocks):
        for space, vectors in parts.items():
            vectors.append(space.vectors(batch.features))
            check_finite(vectors[-1], batch.index, source)
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


def check_finite(vectors: Tensor, index: Sequence[int], source: Source) -> None:
    """Refuses numbers that no score could be trusted with.

    Args:
        vectors: (B, ...) what the model says of B pictures.
        index: where these stand in `source`.
    Raises:
        ValueError: naming the first picture about which the model says NaN or infinity.
    """
    finite = vectors.isfinite().flatten(1).all(1).tolist()
    if not all(finite):
        raise ValueError(f"the model's answer to {source.name(index[finite.index(False)])} is not finite")


@dataclass
class _Batch:
    """Pictures in every way, their original sizes, and those that could not be read."""

    index: list[int] = field(default_factory=list)
    images: list[list[Tensor]] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    failed: list[tuple[int, PictureError]] = field(default_factory=list)


def _readable(source: Source, indices: Sequence[int] | None, ways: Sequence[Preprocess]) -> Iterator[_Batch]:
    """Batches of those that can be read; the others are recorded."""
    wanted = list(range(len(source)) if indices is None else indices)
    any_read = False
    for batch in _read_ahead(source, wanted, ways):
        source.errors.note([], batch.failed)  # read in order, so the first ones tell nothing of the others
        if batch.index:
            any_read = True
            yield batch
    if not any_read:
        raise ValueError(f"{source.root}: none of its {len(wanted)} pictures can be read")


def _read_ahead(source: Source, indices: Sequence[int], ways: Sequence[Preprocess]) -> Iterator[_Batch]:
    count = max(1, min(BATCH, BATCH * 224**2 // max(way.size for way in ways) ** 2))
    chunks = (indices[start : start + count] for start in range(0, len(indices), count))
    with ThreadPoolExecutor(READERS) as pool:

        def submit(more: int) -> list[list[tuple[int, Future[_Read]]]]:
            return [[(i, pool.submit(_read, source, i, ways)) for i in part] for part in islice(chunks, more)]

        pending = deque(submit(AHEAD))
        try:
            while pending:
                batch = _gathered(pending.popleft())
                pending.extend(submit(1))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)


_Read = tuple[list[Tensor], tuple[int, int]]


def _read(source: Source, index: int, ways: Sequence[Preprocess]) -> _Read:
    picture = torch.from_numpy(source.read(index, bands=ways[0].bands)).permute(2, 0, 1)
    shape = (picture.shape[1], picture.shape[2])
    return [_fitted(picture, shape, way) for way in ways], shape


def _fitted(picture: Tensor, shape: tuple[int, int], way: Preprocess) -> Tensor:
    seen = way.size, way.mode, way.share, way.interpolation, way.fill
    return fit(picture[None], torch.tensor([shape]), *seen)[0]


def _gathered(reads: list[tuple[int, Future[_Read]]]) -> _Batch:
    batch = _Batch()
    for index, future in reads:
        try:
            images, shape = future.result()
        except PictureError as error:
            batch.failed.append((index, error))
        else:
            batch.index.append(index)
            batch.images.append(images)
            batch.sizes.append(shape)
    return batch
