"""The verb `train`: the keys of a method, over those of a preset, over those of a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console

from synoptic.apps.arguments import Words, key_table, show, summary, two_columns, typed
from synoptic.config import TrainConfig

USAGE = "synoptic train {} data=DIR out=RUN{} [key=value ...]"
ABOVE_KEYS = (
    ("config=FILE.json", "keys from a run's config.json"),
    ("preset=NAME", "keys of a recipe, over those of the file; keys that are typed hold over both"),
    (
        "--dry-run",
        "take three steps of each phase, tell parameters, memory, time, first losses (as JSON to a pipe); stop",
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
            if sys.stdout.isatty():
                Console().print(two_columns(told(plan)))
            else:
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


def told(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a dry run found (see `run.plan`), for people: a word, and what there is to say."""
    config, parameters = plan["config"], plan["parameters"]
    yield "pictures", f"{plan['pictures']:,}, seen {config['steps'] / plan['steps_per_epoch']:.1f} times"
    yield "parameters", f"{parameters['exported']:,} of the model, {parameters['trained']:,} trained"
    first, *later = plan["phases"]
    after = (f", from {100 * phase['from']:.0f} % on {phase['seconds_per_step']:.3g} s" for phase in later)
    yield "a step", f"{first['seconds_per_step']:.3g} s{''.join(after)}"
    yield "the run", f"{config['steps']:,} steps, {_spell(plan['hours'])} without evaluations"
    if plan["memory_gb"] is not None:
        yield "memory", f"{plan['memory_gb']:.2f} GB on {config['device']}, in {config['precision']}"
    for name, loss in plan["losses"].items():
        if "expected" in loss:
            yield name, f"{loss['start']:.3f} at the start; guessing would give {loss['expected']:.3f}"


def _spell(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 2 else f"{60 * hours:.1f} minutes"


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
    return method.name, method.configure(values, where, file=file, preset=preset)


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
