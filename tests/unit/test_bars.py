"""Progress bars, of verbs and of files that are fetched: on a terminal, together, and nowhere else."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from synoptic.apps import bars
from synoptic.weights import downloads


def told(name: str, done: int, total: int | None) -> None:
    """What a download tells of itself."""
    watch = downloads._watch.get()
    assert watch is not None
    watch(name, done, total)


@pytest.mark.parametrize("terminal", [True, False])
def test_files_are_shown_on_a_terminal_alone(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    page = io.StringIO()
    console = Console(file=page, force_terminal=terminal, width=100)
    monkeypatch.setattr(bars, "bars_console", lambda: console)
    with bars.fetching_bars(), bars.bar("embedding") as advance:
        for done in (1, 2, 3):
            told("a.pth", done * 10**6, 3 * 10**6)
        told("of unknown length", 5, None)
        advance(1, 2)
    assert downloads._watch.get() is None
    assert ("fetching a.pth" in page.getvalue(), "embedding" in page.getvalue()) == (terminal, terminal)


def test_the_cursor_comes_back_when_a_file_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    page = io.StringIO()
    console = Console(file=page, force_terminal=True, width=100)
    monkeypatch.setattr(bars, "bars_console", lambda: console)
    with pytest.raises(ValueError, match="broken"), bars.fetching_bars():
        told("a.pth", 1, 3)
        raise ValueError("broken")
    assert page.getvalue().rindex("\x1b[?25h") > page.getvalue().rindex("\x1b[?25l")
    assert downloads._watch.get() is None
