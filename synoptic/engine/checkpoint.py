"""States of a run on disk: written whole or not at all, the newest few and the best kept."""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from synoptic.config import TrainConfig, to_dict

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

# Settings that may change between two parts of one run, since they leave the weights as they would have been (the
# length of a run is told by its steps).
FREE = ("out", "device", "threads", "epochs", "log_every", "checkpoint_every", "evaluate_every", "resume", "overwrite")
FREE_GROUPS = ("checkpoint.", "loader.workers", "loader.cache_mb")


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replaces `path` by what `write` puts into the file it is handed; whatever happens, `path` is old or new, whole.

    The file and its folder are synchronised to disk before this returns, so that a power cut loses neither.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a state (tensors, numbers, texts, and lists and dictionaries of them) atomically."""
    write_atomically(path, lambda file: torch.save(dict(state), file))


def load(path: Path) -> dict[str, Any]:
    """Reads a state onto the CPU.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # PyTorch does not look at the checksums that it writes
            if broken := archive.testzip():
                raise zipfile.BadZipFile(f"checksum of {broken} does not fit")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: damaged checkpoint ({reason})") from error


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Holds a folder for this process until it leaves or dies.

    Raises:
        ValueError: if another process holds it.
    """
    if sys.platform == "win32":
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which reading processes would inherit
        except (BlockingIOError, PermissionError):
            raise ValueError(
                f"{folder}: another process is writing there; wait for its end or choose another out="
            ) from None
        yield


class Checkpoints:
    """The checkpoints of one run: `step_00001200.pt` after 1200 steps, and `best.json`, which names the best.

    Args:
        folder: where they lie; made if missing.
        keep: how many of the newest stay, at least 1; the best stays beside them.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = keep
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}.pt"

    def steps(self) -> list[int]:
        """After how many steps there is a checkpoint, in ascending order."""
        return sorted(int(path.stem.removeprefix("step_")) for path in self.folder.glob("step_*.pt"))

    def save(self, state: Mapping[str, Any]) -> Path:
        """Writes the state after `state["step"]` steps, then tidies up."""
        path = self.path(state["step"])
        save(path, state)
        self.tidy(state["best"])
        return path

    def tidy(self, best: Mapping[str, Any] | None) -> None:
        """Notes the best checkpoint, and removes those that are no longer kept.

        Done after each checkpoint, and anew when a run goes on, which may have been killed in between.
        """
        self._note_best(best)
        kept = {*self.steps()[-self.keep :], (best or {}).get("step")}
        for step in self.steps():
            if step not in kept:
                self.path(step).unlink()

    def _note_best(self, best: Mapping[str, Any] | None) -> None:
        """Writes {"step", "metric", "score"} of the best checkpoint to `best.json`."""
        note, text = self.folder / "best.json", json.dumps(best) + "\n"
        if best and not (note.exists() and note.read_text() == text):
            write_atomically(note, lambda file: file.write(text.encode()))

    def latest(self) -> dict[str, Any] | None:
        """The newest state that can be read, or None where there is none.

        Damaged files newer than that are renamed, with a warning; what a killed process left half-written is removed.

        Raises:
            ValueError: if there are checkpoints and none can be read.
        """
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        damaged: list[Path] = []
        for step in reversed(self.steps()):
            try:
                state = load(self.path(step))
            except ValueError as error:
                log.warning("%s", error)
                damaged.append(self.path(step))
                continue
            for path in damaged:
                path.rename(path.with_suffix(".damaged"))
            return state
        if damaged:
            raise ValueError(f"{self.folder}: no checkpoint there can be read; overwrite=true starts the run anew")
        return None

    def best(self) -> Path:
        """The checkpoint that scored best, or the newest where none was scored."""
        note = self.folder / "best.json"
        if note.exists():
            path = self.path(json.loads(note.read_text())["step"])
            if path.exists():
                return path
        return self.path(self.steps()[-1])


def best_of(
    best: Mapping[str, Any] | None, step: int, scores: Mapping[str, float], metric: str | None
) -> Mapping[str, Any] | None:
    """The best so far, {"step", "metric", "score"}, after an evaluation; None while nothing was judged.

    Args:
        best: the best before.
        step: steps done at the evaluation.
        scores: what it gave, by name.
        metric: the score that decides, higher being better; what is not a number never wins. None decides nothing.
    """
    if metric is None:
        return best
    if metric not in scores:
        log.warning("checkpoint.metric=%s is not among the scores (%s)", metric, ", ".join(scores))
        return best
    wins = math.isfinite(scores[metric]) and (best is None or scores[metric] > best["score"])
    return {"step": step, "metric": metric, "score": scores[metric]} if wins else best


def identity(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide the weights, as flat dotted keys."""
    return {
        key: value
        for key, value in _flat(to_dict(config)).items()
        if key not in FREE and not key.startswith(FREE_GROUPS)
    }


def check_identity(saved: Mapping[str, Any], current: Mapping[str, Any], where: Path) -> None:
    """Refuses to go on with a run under settings that would have given other weights.

    Raises:
        ValueError: naming the first such key, with both values.
    """
    for key in sorted(saved.keys() | current.keys()):
        before, now = saved.get(key), current.get(key)
        if before != now:
            raise ValueError(
                f"{where}: begun with {key}={before}, and now {key}={now}; "
                f"set it back, choose another out=, or start anew with overwrite=true"
            )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
