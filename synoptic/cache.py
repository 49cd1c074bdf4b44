"""Arrays that took long to compute, kept between runs in a folder that stays small."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from synoptic.files import cache_folder

log = logging.getLogger(__name__)

LARGEST = 1 << 30  # bytes of all that is kept of one kind
_ARRAY, _CHECK = "array", "sha256"


class Cache:
    """One kind of arrays, each under the digest of what decides it.

    Nothing here fails: a file that is damaged is none, and what cannot be written is computed again the next time.

    Args:
        kind: name of the folder, in `$XDG_CACHE_HOME/synoptic`, or `~/.cache/synoptic` where that is not set.
        largest: bytes of all files together; those that were not used for longest go first.
    """

    def __init__(self, kind: str, largest: int = LARGEST):
        self.folder = cache_folder(kind)
        self.largest = largest

    def load(self, digest: str) -> np.ndarray | None:
        """The array that was kept under a digest; None where there is none, or it is not whole."""
        path = self._path(digest)
        try:
            with safe_open(path, framework="numpy") as file:
                array, check = file.get_tensor(_ARRAY), (file.metadata() or {}).get(_CHECK)
            os.utime(path)  # used now
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            log.warning("%s is damaged and computed anew (%s)", path, error)
            return None
        if check != _checksum(array):
            log.warning("%s is damaged and computed anew (its checksum differs)", path)
            return None
        return array

    def save(self, digest: str, array: np.ndarray) -> None:
        """Keeps an array; a process killed in the middle leaves the old file or the new one."""
        content = save({_ARRAY: array}, metadata={_CHECK: _checksum(array)})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # A name of its own, since several processes may compute the same.
            with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".tmp", delete=False) as file:
                file.write(content)
            os.replace(file.name, self._path(digest))
            self._prune(digest)
        except OSError as error:
            log.warning("%s cannot be written (%s), so it is computed again next time", self.folder, error.strerror)

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"

    def _prune(self, newest: str) -> None:
        """Removes what was not used for longest until the rest is small enough; the newest stays."""
        files = [path for path in self.folder.iterdir() if path.is_file() and path != self._path(newest)]
        stats = {path: path.stat() for path in files}
        left = sum(stat.st_size for stat in stats.values()) + self._path(newest).stat().st_size
        for path in sorted(files, key=lambda path: stats[path].st_mtime):
            if left <= self.largest:
                return
            path.unlink(missing_ok=True)
            left -= stats[path].st_size


def _checksum(array: np.ndarray) -> str:
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()
