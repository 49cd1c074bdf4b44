"""What the README and the pages beside it tell people to type can be typed; the README's Python is run in
`test_demo.py`, on a student."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from synoptic.apps import arguments, cli
from synoptic.apps.training import Train, configure

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*ing*.md")))  # those that tell what to type


def commands() -> list[str]:
    """Every `synoptic ...` line of the pages' blocks, lines that go on after a backslash as one."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if re.match(r"(\S*/)?synoptic ", line)]


def check(command: str) -> None:
    """Reads a command as the command line does, without doing it."""
    _, name, *rest = shlex.split(command, comments=True)
    verb = cli.VERBS[name]
    words = arguments.split(rest, verb.flags)
    if "help" in words.flags:
        return
    if isinstance(verb, Train):
        from synoptic.methods import get_method

        method, config = configure(words)
        if getattr(config, "init", None) is None:  # weights that are downloaded are not there
            get_method(method).resolve(config, 1000)  # values that do not go together
    else:
        assert isinstance(verb, arguments.OptionsVerb)
        arguments.read(verb.options, words, name, verb.positional)


def test_there_are_commands_to_check() -> None:
    assert {command.split()[1] for command in commands()} >= {"train", "classify", "embed", "evaluate"}


@pytest.mark.parametrize("command", commands(), ids=lambda command: " ".join(command.split()[1:3]))
def test_a_command_of_the_readme_can_be_typed(command: str) -> None:
    check(command)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("synoptic train dyno data=a out=b", "unknown method"),
        ("synoptic train dino data=a out=b modle=vit_mini16", "unknown key modle"),
        ("synoptic train dino data=a out=b model=vit_mini61", "vit_mini61"),
        ("synoptic evaluate a on=nothing data=b", "on=nothing"),
        ("synoptic embed photos/ model=a  # the file is forgotten", "out= is missing"),
    ],
)
def test_a_wrong_command_would_be_found(command: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check(command)
