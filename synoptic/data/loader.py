"""Batches of pictures, each an exact function of (seed, step), read ahead in other processes where that helps."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from synoptic.config import LoaderConfig
from synoptic.data.pictures import JUDGED_AFTER, PictureError
from synoptic.data.sources import Source
from synoptic.machine import cores
from synoptic.types import Batch

MAX_WORKERS = 8
PREFETCH = 2  # batches that each process reads ahead


class Loader:
    """Batches of a source in a random order that a seed decides, without end.

    Every epoch has a permutation of its own; batches are always full and run from one epoch into the next. A picture
    that cannot be read is replaced by the next one that can and noted in `source.errors`.

    Args:
        source: the pictures.
        batch: pictures per batch.
        seed: decides the order.
        longest: pictures are reduced to this many pixels on their longer side; None reads them as they are.
        config: reading processes and cache.
        device: where the batches go. For a GPU, pictures are put in pinned memory, from where it copies without
            waiting, and read in other processes unless `config` says otherwise.
        part: (number, count), which of so many equal parts of each batch this loader reads.
        bands: how many bands are read, at their full depth; None reads 8-bit RGB.

    Raises:
        ValueError: no pictures, or an impossible setting.
    """

    def __init__(
        self,
        source: Source,
        batch: int,
        seed: int,
        longest: int | None,
        config: LoaderConfig,
        device: torch.device | str = "cpu",
        part: tuple[int, int] = (0, 1),
        bands: int | None = None,
    ):
        if not len(source):
            raise ValueError(f"{source.root} holds no picture")
        if batch < 1:
            raise ValueError(f"batch={batch}: a batch holds at least one picture")
        if config.workers is not None and config.workers < 0:
            raise ValueError(f"loader.workers={config.workers}: give 0 or more processes")
        self.source = source
        self.batch = batch
        number, count = part
        assert batch % count == 0, "the parts are equal"
        self._places = range(number * batch // count, (number + 1) * batch // count)
        self.seed = seed
        on_gpu = torch.device(device).type == "cuda"
        # On a CPU they would compete with the training.
        beside = min(MAX_WORKERS, max(cores() // count - 1, 0)) if on_gpu else 0
        self.workers = beside if config.workers is None else config.workers
        self._pin = on_gpu
        self._reader = _Reader(source, longest, config.cache_mb * 1_000_000, bands)
        self._permutation = lru_cache(maxsize=4)(self._draw_permutation)

    @property
    def per_epoch(self) -> float:
        """Batches in one pass over the source."""
        return len(self.source) / self.batch

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps start..stop-1.

        Raises:
            ValueError: more of the pictures cannot be read than is allowed, or none of them can.
        """
        steps = range(start, stop)
        for step, read in zip(steps, self._read(self._indices(step, self._places) for step in steps), strict=True):
            yield self._finish(step, read)

    def names(self, step: int) -> list[str]:
        """The files of that step's whole batch, with the replacements of those that are known to be unreadable."""
        return [self.source.name(self._replacement(index)) for index in self._indices(step, range(self.batch))]

    def _replacement(self, index: int) -> int:
        """The picture that is read for `index`, as far as unreadable ones are known."""
        count = len(self.source)
        candidates = (ahead % count for ahead in range(index, index + count))
        return next((candidate for candidate in candidates if candidate not in self.source.errors), index)

    def _indices(self, step: int, places: range) -> list[int]:
        positions = range(step * self.batch + places.start, step * self.batch + places.stop)
        count = len(self.source)
        return [int(self._permutation(position // count)[position % count]) for position in positions]

    def _draw_permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed & 0xFFFFFFFFFFFFFFFF, epoch)).permutation(len(self.source))

    def _read(self, orders: Iterable[list[int]]) -> Iterator[_Read]:
        if not self.workers:
            yield from map(self._reader.__getitem__, orders)
            return
        reading = DataLoader(
            self._reader,
            batch_size=None,
            sampler=orders,
            num_workers=self.workers,
            prefetch_factor=PREFETCH,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # its own, since a loader draws from the global one otherwise
        )
        with _interrupts_held():
            arriving = iter(reading)
        yield from arriving

    def _finish(self, step: int, read: _Read) -> Batch:
        self.source.errors.note(self._indices(step, self._places), read.failed.items())
        if read.images is None:  # as many are allowed, or few of a whole that this source is a small part of
            raise ValueError(f"{self.source.root}: none of the {len(self.source)} pictures to train on can be read")
        labels = self.source.labels
        return Batch(
            images=read.images.pin_memory() if self._pin else read.images,
            sizes=read.sizes,
            bounded=read.bounded,
            captions=tuple(self.source.captions[index] for index in read.indices),
            labels=None if labels is None else torch.from_numpy(labels[read.indices]),
            index=torch.tensor(read.indices),
            position=step * self.batch + torch.tensor(self._places),
        )


@dataclass(frozen=True)
class _Read:
    """What a reader made of an order.

    Attributes:
        indices: the pictures read, after replacements.
        images: (B, C, H, W) uint8, or float32 of full depth, padded with zeros; None where the reader gave up.
        sizes: (B, 2) int64.
        bounded: (B,) bool, which pictures of full depth lie in [0, 1]; None for bytes.
        failed: pictures that could not be read, those asked for and those tried in their place.
    """

    indices: list[int]
    images: Tensor | None
    sizes: Tensor
    bounded: Tensor | None
    failed: dict[int, PictureError]


class _Reader(Dataset):
    """Reads orders (lists of indices) and keeps what it decoded while there is room."""

    def __init__(self, source: Source, longest: int | None, room: int, bands: int | None):
        self.source = source
        self.longest = longest
        self.bands = bands
        self._room = room  # bytes
        self._kept: dict[int, Tensor] = {}
        self._failed: dict[int, PictureError] = {}

    def __getitem__(self, order: list[int]) -> _Read:
        failed: dict[int, PictureError] = {}
        indices: list[int] = []
        pictures: list[Tensor] = []
        for wanted in order:
            found = self._find(wanted, failed)
            if found is None:
                return _Read(indices, None, torch.empty(0, 2), None, failed)
            indices.append(found[0])
            pictures.append(found[1])
        return _Read(indices, *_pad(pictures), None if self.bands is None else _bounded(pictures), failed)

    def _find(self, wanted: int, failed: dict[int, PictureError]) -> tuple[int, Tensor] | None:
        """The picture wanted, or the next one that can be read; None once failures alone condemn the source."""
        count = len(self.source)
        errors = self.source.errors
        hopeless = min(count, max(JUDGED_AFTER, int(errors.limit * errors.total) + 1))
        for index in (ahead % count for ahead in range(wanted, wanted + hopeless)):
            picture = self._picture(index)
            if picture is not None:
                return index, picture
            failed[index] = self._failed[index]
        return None

    def _picture(self, index: int) -> Tensor | None:
        """(C, H, W) uint8, or float32 of full depth; None where the picture has failed."""
        if index in self._failed:
            return None
        if index in self._kept:
            return self._kept[index]
        try:
            array = self.source.read(index, self.longest, self.bands)
        except PictureError as error:
            self._failed[index] = error.with_traceback(None)  # which would keep the batch in memory
            return None
        picture = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
        if picture.nbytes <= self._room:
            self._room -= picture.nbytes
            self._kept[index] = picture
        return picture


def _pad(pictures: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Pictures (C, H, W) of different sizes in one tensor (B, C, H, W), zeros on the right and below; (B, 2) sizes."""
    sizes = torch.tensor([picture.shape[1:] for picture in pictures])
    height, width = sizes.amax(dim=0).tolist()
    images = torch.zeros(len(pictures), len(pictures[0]), height, width, dtype=pictures[0].dtype)
    for image, picture in zip(images, pictures, strict=True):
        image[:, : picture.shape[1], : picture.shape[2]] = picture
    return images, sizes


def _bounded(pictures: list[Tensor]) -> Tensor:
    """(B,) bool: which pictures of floats lie in [0, 1]."""
    return torch.tensor([bool(picture.min() >= 0.0 and picture.max() <= 1.0) for picture in pictures])


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Lets Ctrl-C wait while processes start, since half of them cannot be ended in order."""
    if threading.current_thread() is not threading.main_thread():  # the others are not interrupted
        yield
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            signal.raise_signal(signal.SIGINT)


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process ends its workers
    sys.excepthook = _without_broken_pipes
    torch.set_num_threads(1)


def _without_broken_pipes(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An interrupted main process stops listening at any moment, of which its workers have nothing to tell."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)
