"""What `detect` writes: a journal while it looks, from which a stopped command goes on, and in the end one file or
folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from synoptic.detection.detections import Detections, to_coco, to_csv, to_json
from synoptic.files import check_file, write_atomically, write_text

Form = Literal["json", "coco", "csv", "yolo"]
_ENDINGS: Mapping[Form, str] = {"json": ".json", "coco": ".json", "csv": ".csv", "yolo": ""}
CLASSES = "classes.txt"  # beside YOLO's labels, a name a line


def form_of(out: Path, form: Form | None) -> Form:
    """The form in which `out` is written.

    Raises:
        ValueError: its ending is that of no form, or of another one than is asked for, or it cannot be written.
    """
    told: Form | None = form or next((each for each in ("json", "csv") if out.suffix.lower() == _ENDINGS[each]), None)
    if told is None:
        raise ValueError(f"out={out}: give a name that ends in .json or .csv, or form=yolo for a folder")
    if out.suffix.lower() != _ENDINGS[told]:
        raise ValueError(
            f"out={out}: form={told} is written into {f'a {_ENDINGS[told]} file' if _ENDINGS[told] else 'a folder'}"
        )
    if told != "yolo":
        check_file(out)
    elif out.is_file():
        raise ValueError(f"out={out}: is a file; give a folder")
    else:
        out.mkdir(parents=True, exist_ok=True)
    return told


class Journal:
    """What was found so far, a line a picture; a process that is killed loses the picture that it looked at.

    Args:
        out: what will be written in the end.
        facts: all that decides what is found; another command's journal is not gone on with.
        overwrite: throws that away instead.
    Raises:
        ValueError: another command's journal lies there.
    """

    def __init__(self, out: Path, facts: Mapping[str, Any], overwrite: bool = False):
        self.path = out.with_name(f".{out.name}.journal")
        self._facts = json.loads(json.dumps(facts))
        self._places: dict[str, int] = {}  # of the line of each picture in the file
        self._end = 0
        if self.path.is_file() and not overwrite:
            self._read(out)

    def _read(self, out: Path) -> None:
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):  # cut by whoever killed it
                    break
                entry = json.loads(line)
                if not self._end and entry != self._facts:
                    told = f"{self.path.name} beside it holds what another command has begun"
                    raise ValueError(f"out={out}: {told}; give another out=, or overwrite=true to throw that away")
                if self._end:
                    self._places[entry["path"]] = self._end
                self._end += len(line)

    def __enter__(self) -> Journal:
        self._file: IO[bytes] = self.path.open("r+b" if self._end else "w+b")
        self._file.truncate(self._end)
        if not self._end:
            self._append(self._facts)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __contains__(self, path: Path) -> bool:
        return str(path) in self._places

    def add(self, found: Detections) -> None:
        """Keeps what was found in a picture."""
        self._places[found.path] = self._append(found.to_dict())

    def skip(self, path: str, reason: str) -> None:
        """Keeps that a picture cannot be read."""
        self._places[path] = self._append({"path": path, "error": reason})

    def entries(self, paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
        """What is kept of pictures, in their order."""
        for path in paths:
            self._file.seek(self._places[str(path)])
            yield json.loads(self._file.readline())

    def remove(self) -> None:
        """Once all is written elsewhere."""
        self.path.unlink(missing_ok=True)

    def _append(self, entry: Mapping[str, Any]) -> int:
        """Where the line begins."""
        place = self._file.seek(0, os.SEEK_END)
        self._file.write((json.dumps(entry, ensure_ascii=False) + "\n").encode(errors="surrogateescape"))
        self._file.flush()
        return place


def write(out: Path, form: Form, found: Sequence[Detections], names: Sequence[str], facts: Mapping[str, Any]) -> None:
    """Writes what was found in all pictures."""
    if form == "yolo":
        for each, name in zip(found, beneath([Path(each.path) for each in found], ".txt"), strict=True):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_text(out / name, each.to_yolo())
        return write_text(out / CLASSES, "".join(f"{name}\n" for name in names))
    texts: Mapping[Form, Callable[[], str]] = {
        "json": lambda: to_json(found, names, facts),
        "coco": lambda: to_coco(found, names),
        "csv": lambda: to_csv(found),
    }
    content = texts[form]().encode(errors="surrogateescape")
    return write_atomically(out, lambda file: file.write(content))


def beneath(paths: Sequence[Path], ending: str) -> list[Path]:
    """Where something about each picture goes in a folder: as the pictures lie to each other, with another ending; two
    of one name that differ in their own endings keep these."""
    if not paths:
        return []
    root = os.path.commonpath([path.absolute().parent for path in paths])
    relative = [Path(os.path.relpath(path.absolute(), root)) for path in paths]
    stems = [path.with_suffix("") for path in relative]
    return [
        path.with_name(f"{path.name}{ending}") if stems.count(stem) > 1 else stem.with_name(f"{stem.name}{ending}")
        for path, stem in zip(relative, stems, strict=True)
    ]
