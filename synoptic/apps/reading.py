"""The pictures that a verb is given, as a model reads them: broken files are named and left out, none is silent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from synoptic.data.inputs import ReadBatch, at_once, read_batches
from synoptic.data.listing import list_images
from synoptic.predict import VisionModel
from synoptic.types import Preprocess

log = logging.getLogger(__name__)


class Reading:
    """What an IMAGES argument holds.

    Args:
        images: a file, folder (any depth), glob or `.txt` list.
        progress: told how many of how many pictures are done.
    Raises:
        ValueError: nothing is there.
    """

    def __init__(self, images: str, progress: Callable[[int, int], None] | None = None):
        self.images = images
        self.paths = list_images(images)
        self.left_out = 0
        self._read = 0
        self._progress = progress

    def skip(self, count: int) -> None:
        """Passes over pictures of which all is known: they count as read."""
        self._read += count

    def batches(
        self,
        vision: VisionModel,
        paths: Sequence[Path] | None = None,
        preprocess: Preprocess | None = None,
        batch_size: int | None = None,
    ) -> Iterator[ReadBatch]:
        """Pictures that can be read, in order.

        Args:
            vision: what they are read for.
            paths: which of them, none of them too; None takes all.
            preprocess: in place of the model's own.
            batch_size: pictures a batch; None takes 64, or fewer where they are large.
        Raises:
            ValueError: at the end, if none could be read until then.
        """
        wanted = list(self.paths if paths is None else paths)
        if not wanted:
            return
        preprocess = preprocess or vision.preprocess
        for batch in read_batches(wanted, preprocess, batch_size or at_once(preprocess.size), on_error=self._skip):
            yield batch
            self._read += len(batch.inputs)
            if self._progress:
                self._progress(self._read + self.left_out, len(self.paths))
        if not self._read:
            raise ValueError(f"{self.images}: none of its {len(wanted)} pictures can be read")

    def _skip(self, path: str, reason: str) -> None:
        self.left_out += 1
        log.warning("left out %s: %s", path, reason)
