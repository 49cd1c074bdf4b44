"""What verbs share: what was typed as paths and models, and rows as they are printed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from synoptic.weights.options import LoadOptions

if TYPE_CHECKING:
    from synoptic.predict import VisionModel


def typed_model(model: str, options: LoadOptions) -> str | VisionModel:
    """A MODEL, loaded if something was said of its file."""
    if options == LoadOptions():
        return model
    from synoptic.predict import load

    return load(model, **asdict(options))


def typed_path(typed: str) -> Path:
    """The shell opens `~` in words, but not behind a `=`."""
    return Path(os.path.expanduser(typed))


def typed_file(typed: str | None) -> Path | None:
    """The same, where something was typed."""
    return typed_path(typed) if typed else None


def tell_left_out(count: int) -> None:
    """How many pictures could not be read, for people."""
    if count:
        print(f"left out {count} unreadable picture{'s' if count > 1 else ''}", file=sys.stderr)


def print_rows(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table for people on a terminal, lines of tab-separated values for a pipe."""
    if not sys.stdout.isatty():
        sys.stdout.writelines("\t".join(map(plain, row)) + "\n" for row in (header, *rows))
        return
    table = Table(box=None)
    for place, name in enumerate(header):
        numbers = all(isinstance(row[place], int | float) or row[place] == "" for row in rows)
        numbers &= not any(isinstance(row[place], bool) for row in rows)
        table.add_column(name, justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(f"{value:,}" if type(value) is int else plain(value) for value in row))
    Console().print(table)


def plain(value: Any) -> str:
    """A value in a line of text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
