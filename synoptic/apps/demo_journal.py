"""The demo's own record, `demo.json`: what is made there, on what machine, and how long each part took so far."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from synoptic.apps.demo_recipe import Recipe
from synoptic.apps.demo_steps import Demo
from synoptic.config import load_json
from synoptic.files import is_ours, write_text
from synoptic.machine import cores, processor

NAME = "demo.json"
WRITE_EVERY = 2.0  # seconds: as much of the time spent is lost when the process is killed


def is_demo(out: Path) -> bool:
    """Whether a folder holds a demo, finished or not."""
    return (out / NAME).is_file()


def open_demo(out: Path) -> Demo:
    """The demo in a folder.

    Raises:
        ValueError: there is none.
    """
    record = load_json(out / NAME)
    try:
        return Demo(out, Recipe(**record["recipe"]), record["seed"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{out / NAME}: is not as the demo writes it ({error})") from None


class Journal:
    """Opens the record of a demo, or begins it.

    Args:
        demo: what is to be made.
        preset: the name of its recipe.
    Raises:
        ValueError: the folder holds another demo, or something else.
    """

    def __init__(self, demo: Demo, preset: str):
        self._path = demo.out / NAME
        made = {"preset": preset, "seed": demo.seed, "recipe": asdict(demo.recipe)}
        if self._path.is_file():
            self.record = load_json(self._path)
            _check_same(demo.out, self.record, made)
        else:
            _check_empty(demo.out)
            demo.out.mkdir(parents=True, exist_ok=True)
            self.record = {**made, "machine": _machine(), "seconds": {}}
            self._write()
        self._written = time.monotonic()
        self._running: tuple[str, float] | None = None  # a part, and when it would have begun without interruptions

    @property
    def seconds(self) -> dict[str, float]:
        """Of each part, over all sittings."""
        return self.record["seconds"]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts the time spent inside."""
        self._running = name, time.monotonic() - self.seconds.get(name, 0.0)
        try:
            yield
        finally:
            self._count()
            self._running = None

    def tick(self) -> None:
        """Notes the time spent now and then, for the case that the process is killed."""
        if time.monotonic() - self._written > WRITE_EVERY:
            self._count()

    def _count(self) -> None:
        assert self._running is not None
        name, begun = self._running
        self.seconds[name] = round(time.monotonic() - begun, 1)
        self._write()

    def _write(self) -> None:
        write_text(self._path, json.dumps(self.record, indent=2) + "\n")
        self._written = time.monotonic()


def _check_same(out: Path, record: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    mend = "choose another out=, or remove that folder to begin anew"
    for key in ("preset", "seed"):
        if record.get(key) != made[key]:
            there = f"holds a demo of {key}={record.get(key)}, and not of {key}={made[key]}"
            raise ValueError(f"out={out}: {there}; {mend}")
    if record.get("recipe") != made["recipe"]:
        raise ValueError(f"out={out}: holds a demo of another version of its recipe; {mend}")


def _check_empty(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={out}: is a file; give a folder for the demo")
    if out.is_dir() and not all(is_ours(path) for path in out.iterdir()):
        raise ValueError(f"out={out}: holds files that are no demo; give a new or an empty folder")


def _machine() -> dict[str, Any]:
    return {
        "processor": processor(),
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
