"""States of a run on disk: written whole or not at all, the newest few and the best kept."""

from __future__ import annotations

import json
import logging
import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from synoptic.config import TrainConfig, flat, load_json, to_dict
from synoptic.files import write_atomically, write_text

log = logging.getLogger(__name__)

# Settings that may change between two parts of one run. Most leave the weights as they would have been, to the last bit
# (the length of a run is told by its steps). `device`, `threads`, `compile` and `recompute` change the order in which
# floats are summed, `devices` also what stochastic depth draws: the weights are others, and as good, which beats
# refusing to go on with a run on another machine. `data` may lie elsewhere by now: what it holds is among the facts.
FREE = (
    *("data", "images", "out", "device", "devices", "threads", "compile", "recompute", "epochs"),
    *("log_every", "checkpoint_every", "evaluate_every", "resume", "overwrite"),
    *("guard", "max_drop"),
)
FREE_GROUPS = ("checkpoint.", "loader.workers", "loader.cache_mb", "loader.unreadable")


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a state (tensors, numbers, texts, and lists and dictionaries of them) atomically."""
    try:
        write_atomically(path, lambda file: torch.save(dict(state), file))
    except RuntimeError as error:  # what PyTorch makes of an error of the file's
        raise OSError(f"{path}: could not be written, as happens when the disk is full ({error})") from error


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


class Checkpoints:
    """The checkpoints of one run: `step_00001200.pt` after 1200 steps, `best.json`, which names the best, and
    `identity.json`, which tells what decides the weights.

    Who writes holds the run folder (`files.sole_writer`).

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

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Notes what decides the weights; once there is a checkpoint, nothing of that may change.

        Args:
            identity: see `identity`.
        Raises:
            ValueError: naming what changed.
        """
        note = self.folder / "identity.json"
        if self.steps():
            check_identity(load_json(note), identity, self.folder.parent)
        else:
            write_text(note, json.dumps(dict(identity), indent=2) + "\n")

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
        """Writes {"step", "metric", "score", "scores"} of the best checkpoint to `best.json`."""
        if best:
            write_text(self.folder / "best.json", json.dumps(best) + "\n")

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
        noted = self._noted_best()
        return self.path(noted["step"] if noted else self.steps()[-1])

    def so_far(self) -> dict[str, Any] | None:
        """Of the checkpoint that scored best, or the newest where none was scored: "steps" and "seconds" until then,
        "evaluation", and "best" (see `best_of`). None where there is no checkpoint."""
        if not self.steps():
            return None
        state = load(self.best())
        return {
            "steps": state["step"],
            "seconds": state["seconds"],
            "evaluation": state["scores"],
            "best": self._noted_best(),
        }

    def _noted_best(self) -> dict[str, Any] | None:
        note = self.folder / "best.json"
        noted = load_json(note) if note.exists() else None
        return noted if noted and self.path(noted["step"]).exists() else None


def best_of(
    best: Mapping[str, Any] | None, step: int, scores: Mapping[str, float], metric: str | None
) -> Mapping[str, Any] | None:
    """The best so far, {"step", "metric", "score", "scores"}, after an evaluation; None while nothing was judged.

    Args:
        best: the best before; one by another metric is no rival.
        step: steps done at the evaluation.
        scores: what it gave, by name.
        metric: the score that decides, higher being better, and of equal ones the later, which has learned more; what
            is not a number never wins. None decides nothing.
    """
    if metric is None:
        return best
    if metric not in scores:
        log.warning("checkpoint.metric=%s is not among the scores (%s)", metric, ", ".join(scores))
        return best
    if best is not None and best["metric"] != metric:
        best = None
    wins = math.isfinite(scores[metric]) and (best is None or scores[metric] >= best["score"])
    return {"step": step, "metric": metric, "score": scores[metric], "scores": dict(scores)} if wins else best


def identity(config: TrainConfig, facts: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """What decides the weights, as flat dotted keys: the settings, and facts about the data and the task."""
    settings = flat(to_dict(config))
    decisive = {key: value for key, value in settings.items() if key not in FREE and not key.startswith(FREE_GROUPS)}
    return {**decisive, **facts}


def check_identity(saved: Mapping[str, Any], current: Mapping[str, Any], where: Path) -> None:
    """Refuses to go on with a run where other weights would have come of it.

    Raises:
        ValueError: naming the first key that changed, with both values.
    """
    for key in sorted(saved.keys() | current.keys()):
        before, now = saved.get(key), current.get(key)
        if before != now:
            raise ValueError(
                f"{where}: {key} changed since this run was begun, from {before} to {now}; "
                "set it back, choose another out=, or start anew with overwrite=true"
            )
