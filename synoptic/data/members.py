"""A file inside a tar archive that is never unpacked: where its bytes lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LARGEST = 1 << 30  # bytes of a member that is read: more than any picture within the limits needs


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive, read without unpacking it.

    Attributes:
        archive: the .tar file.
        path: the member's name in it, with slashes.
        offset: bytes before its own in the archive.
        size: how many bytes it has.
    """

    archive: Path
    path: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}/{self.path}"

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]

    def read_bytes(self) -> bytes:
        """Its content.

        Raises:
            OSError: the archive is not there, or has become shorter.
        """
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise OSError("its archive is cut short")
        return content
