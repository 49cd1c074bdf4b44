"""What `detect` writes: a journal while it looks, from which a stopped command goes on, and in the end one file or
folder."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from synoptic.detection.detections import Detections, to_coco, to_csv, to_json
from synoptic.files import check_file, check_folder, lock, write_atomically, write_text

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
    else:
        check_folder(out)
    return told


def check_labels(out: Path, paths: Sequence[Path], overwrite: bool) -> None:
    """Sees to it that labels of YOLO's form have a folder of their own.

    Raises:
        ValueError: files are in it that no stopped command has begun, or labels of other pictures; or a picture's
            labels would be called as the list of names is.
    """
    own = set(beneath(paths, ".txt"))
    if any(out.iterdir()) and not _journal(out).is_file() and not overwrite:
        raise ValueError(f"out={out}: holds files, among which labels would be mixed; give a new folder")
    others = {path.relative_to(out) for path in out.rglob("*.txt")} - own - {Path(CLASSES)}
    if others:
        told = f"holds labels of other pictures ({min(others)}), whose numbers would be of other names"
        raise ValueError(f"out={out}: {told}; give a new folder, or remove them")
    if Path(CLASSES) in own:
        name = Path(CLASSES).stem
        raise ValueError(f"out={out}: labels of the picture {name} would be {CLASSES}, the list of names; rename it")


def _journal(out: Path) -> Path:
    return out.with_name(f".{out.name}.journal")


class Journal:
    """What was found so far, a line a picture; a process that is killed loses the picture that it looked at.

    Args:
        out: what will be written in the end.
        facts: all that decides what is found; another command's journal is not gone on with.
        overwrite: throws that away instead.
    Raises:
        ValueError: when entered, if another command's journal lies there, or another process writes it.
    """

    def __init__(self, out: Path, facts: Mapping[str, Any], overwrite: bool = False):
        self.path = _journal(out)
        self._out, self._overwrite = out, overwrite
        self._facts = json.loads(json.dumps(facts))
        self._places: dict[str, int] = {}  # of the line of each picture in the file

    def __enter__(self) -> Journal:
        self._file: IO[bytes] = self.path.open("a+b")
        try:
            lock(self._file, self._out)
            end = 0 if self._overwrite else self._read()
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(end)
        if not end:
            self._append(self._facts)
        return self

    def _read(self) -> int:
        """Where the last whole line ends."""
        end = 0
        self._file.seek(0)
        for line in self._file:
            if not line.endswith(b"\n"):  # cut by whoever killed it
                break
            entry = self._entry(line)
            if not end and entry != self._facts:
                told = f"{self.path.name} beside it holds what another command has begun"
                raise ValueError(f"out={self._out}: {told}; give another out=, or overwrite=true to throw that away")
            if end:
                self._places[str(entry.get("path"))] = end
            end += len(line)
        return end

    def _entry(self, line: bytes) -> dict[str, Any]:
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError):
            told = f"{self.path.name} beside it is damaged"
            raise ValueError(f"out={self._out}: {told}; overwrite=true throws it away and begins anew") from None

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

    def entry(self, path: Path) -> dict[str, Any] | None:
        """What is kept of a picture: what was found, or why it cannot be read; None of one that was not looked at."""
        if path not in self:
            return None
        self._file.seek(self._places[str(path)])
        return json.loads(self._file.readline())

    def remove(self) -> None:
        """Once all is written elsewhere."""
        self.path.unlink(missing_ok=True)

    def _append(self, entry: Mapping[str, Any]) -> int:
        """Where the line begins."""
        place = self._file.seek(0, os.SEEK_END)
        self._file.write((json.dumps(entry, ensure_ascii=False) + "\n").encode(errors="surrogateescape"))
        self._file.flush()
        return place


def write(
    out: Path,
    form: Form,
    paths: Sequence[Path],
    found: Sequence[Detections],
    names: Sequence[str],
    facts: Mapping[str, Any],
) -> None:
    """Writes what was found in all pictures of some paths that could be read."""
    if form == "yolo":
        return _write_labels(out, dict(zip(map(str, paths), beneath(paths, ".txt"), strict=True)), found, names)
    texts: Mapping[Form, Callable[[], str]] = {
        "json": lambda: to_json(found, names, facts),
        "coco": lambda: to_coco(found, names),
        "csv": lambda: to_csv(found),
    }
    content = texts[form]().encode(errors="surrogateescape")
    return write_atomically(out, lambda file: file.write(content))


def _write_labels(out: Path, places: Mapping[str, Path], found: Sequence[Detections], names: Sequence[str]) -> None:
    for place in set(places.values()) - {places[each.path] for each in found}:  # of pictures that can't be read now
        (out / place).unlink(missing_ok=True)
    for each in found:
        place = out / places[each.path]
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, each.to_yolo())
    write_text(out / CLASSES, "".join(f"{name}\n" for name in names))


def beneath(paths: Sequence[Path], ending: str) -> list[Path]:
    """Where something about each picture goes in a folder: as the pictures lie to each other, with another ending; two
    of one name that differ in their own endings keep these."""
    if not paths:
        return []
    root = os.path.commonpath([path.absolute().parent for path in paths])
    relative = [Path(os.path.relpath(path.absolute(), root)) for path in paths]
    stems = [path.with_suffix("") for path in relative]
    counts = Counter(path.with_suffix("") for path in dict.fromkeys(relative))
    return [
        path.with_name(f"{path.name}{ending}") if counts[stem] > 1 else stem.with_name(f"{stem.name}{ending}")
        for path, stem in zip(relative, stems, strict=True)
    ]
