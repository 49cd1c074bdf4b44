"""The verb `train`: the keys of a method, over those of a preset, over those of a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from synoptic.apps.arguments import Words, key_table, show, summary, two_columns, typed
from synoptic.config import TrainConfig, from_layers

USAGE = "synoptic train {} data=DIR out=RUN{} [key=value ...]"
ABOVE_KEYS = (
    ("config=FILE.json", "keys from a run's config.json"),
    ("preset=NAME", "keys of a recipe, over those of the file; keys that are typed hold over both"),
    (
        "--dry-run",
        "take three steps of each phase, tell parameters, memory, time, first losses; stop",
    ),
)
NEEDED = {"radio": {"teachers": "NAME:MODEL,..."}}  # keys of a method beside data and out, and how they are typed
UNSET = "the method's rule"


class Train:
    """Trains a model by one of the methods."""

    name = "train"
    flags = ("dry-run",)

    @property
    def line(self) -> str:
        return f"{summary(type(self))}: {', '.join(_names())}"

    def run(self, words: Words) -> None:
        """Trains, or with `--dry-run` says what would be trained."""
        method, config = configure(words)
        from synoptic import run

        if "dry-run" in words.flags:
            plan = run.plan(method, config)
            print(json.dumps(plan, indent=2))
        else:
            out = run.train(method, config)
            print(f"done: model={out}")

    def help(self, words: Words) -> list[Any]:
        """The keys of the method that is named, else those that all methods share."""
        if not words.plain:
            methods = two_columns((name, _method(name).summary) for name in _names())
            shared = key_table(TrainConfig, UNSET)
            return [USAGE.format("METHOD", ""), methods, two_columns(ABOVE_KEYS), "Keys of all methods:", shared]
        method = _method(words.plain[0])
        needed = NEEDED.get(method.name, {})
        usage = USAGE.format(method.name, "".join(f" {key}={typed}" for key, typed in needed.items()))
        page = [usage, f"{method.name}: {method.summary}.", two_columns(ABOVE_KEYS)]
        if method.presets:
            recipes = ((name, _typed_out(values)) for name, values in method.presets.items())
            page += ["Presets:", two_columns(recipes)]
        page.append(f"By the method's rule, where no key says otherwise: {_rule(method)}")
        return [*page, key_table(method.config, UNSET, needed)]


def configure(words: Words) -> tuple[str, TrainConfig]:
    """The method and the configuration that a command line means.

    Raises:
        ValueError: the method, a preset or a key is unknown, a key is missing, or a value is of the wrong type.
    """
    if len(words.plain) != 1:
        given = f"got {' '.join(words.plain)}" if words.plain else "got none"
        raise ValueError(f"train: give one method, one of {', '.join(_names())} ({given})")
    method = _method(words.plain[0])
    texts = dict(words.values)
    file, preset = texts.pop("config", None), texts.pop("preset", None)
    where = f"train {method.name}"
    values = typed(method.config, texts, where)
    config = from_layers(method.config, values, where, file=file, preset=preset, presets=method.presets)
    return method.name, config


def _rule(method: Any) -> str:
    """What a method takes for the keys that decide most, found by asking it."""
    config = method.config(data="", out="")
    epoch = 1000  # steps
    resolved = method.resolve(config, epoch * config.batch)
    derived = {"size": resolved.size, "epochs": resolved.steps / epoch, "optim.lr": resolved.optim.lr}
    return f"{_typed_out(derived)} (with batch={config.batch})"


def _names() -> tuple[str, ...]:
    from synoptic.methods import METHOD_NAMES

    return METHOD_NAMES


def _method(name: str) -> Any:
    from synoptic.methods import get_method

    return get_method(name)


def _typed_out(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={show(value)}" for name, value in values.items())
