"""The pictures that a verb is given, as a model reads them: broken files are named and left out, none is silent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from synoptic.data.listing import list_images
from synoptic.predict import ReadBatch, VisionModel, read_batches

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
        self._progress = progress

    def batches(self, vision: VisionModel) -> Iterator[ReadBatch]:
        """All pictures that can be read, in order.

        Raises:
            ValueError: at the end, if none could be read.
        """
        read = 0
        for batch in read_batches(list(self.paths), vision.preprocess, channels=vision.channels, on_error=self._skip):
            yield batch
            read += len(batch.inputs)
            if self._progress:
                self._progress(read + self.left_out, len(self.paths))
        if not read:
            raise ValueError(f"{self.images}: none of its {len(self.paths)} pictures can be read")

    def _skip(self, path: str, reason: str) -> None:
        self.left_out += 1
        log.warning("left out %s: %s", path, reason)
