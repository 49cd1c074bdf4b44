"""Configurations: read from nested values or dotted keys, checked, and told what is wrong in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synoptic.config import (
    MISSING,
    CheckpointConfig,
    LoaderConfig,
    OptimConfig,
    TrainConfig,
    find_key,
    from_dict,
    keys,
    load_json,
    merged,
    nearest,
    nested,
    save_json,
    to_dict,
)

NEEDED = {"data": "pictures", "out": "runs/a"}


@dataclass(frozen=True, kw_only=True)
class Method(TrainConfig):
    """A method with defaults of its own for a configuration that all methods share."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=0.5, betas=(0.8, 0.95)))
    size: int | tuple[int, int] | None = None  # type: ignore[assignment]
    shares: Mapping[str, float] = field(default_factory=dict)
    second: LoaderConfig | None = None


fractions = st.floats(0, 1, exclude_max=True)
positive = st.floats(1e-12, 1e12)
trainings = st.builds(
    TrainConfig,
    data=st.text(),
    out=st.text(),
    steps=st.none() | st.integers(1, 10**9),
    epochs=st.none() | positive,
    seed=st.integers(0, 2**63 - 1),
    precision=st.sampled_from(["auto", "fp32", "bf16"]),
    overwrite=st.booleans(),
    optim=st.builds(
        OptimConfig,
        lr=st.none() | positive,
        warmup=st.floats(0, 1),
        betas=st.tuples(fractions, fractions),
        ema=st.none() | fractions,
    ),
    loader=st.builds(LoaderConfig, workers=st.none() | st.integers(0, 64), validation=fractions.filter(bool)),
    checkpoint=st.builds(CheckpointConfig, keep=st.integers(1, 100), metric=st.none() | st.text()),
)


@given(trainings)
def test_a_configuration_survives_json(config: TrainConfig) -> None:
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config))), "here") == config


def test_a_configuration_survives_a_file(tmp_path: Path) -> None:
    config = TrainConfig(data="bilder/größe", out="runs/a", optim=OptimConfig(betas=(0.9, 0.95)))
    save_json(config, tmp_path / "config.json")
    assert from_dict(TrainConfig, load_json(tmp_path / "config.json"), "here") == config


def test_a_configuration_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    save_json(TrainConfig(**NEEDED), path)
    before = path.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    save_json(TrainConfig(**NEEDED), path)  # nothing changed, nothing is written
    with pytest.raises(KeyboardInterrupt):
        save_json(TrainConfig(**NEEDED, batch=3), path)
    assert path.read_bytes() == before


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        TrainConfig(data="a", out="b").seed = 3  # type: ignore[misc]


def test_dotted_and_nested_keys_say_the_same() -> None:
    dotted = from_dict(TrainConfig, {**NEEDED, "optim.lr": 0.1, "optim.warmup": 0.2}, "here")
    assert dotted == from_dict(TrainConfig, {**NEEDED, "optim": {"lr": 0.1, "warmup": 0.2}}, "here")
    assert dotted == from_dict(TrainConfig, {**NEEDED, "optim": {"lr": 0.1}, "optim.warmup": 0.2}, "here")


def test_texts_become_the_types_of_their_keys() -> None:
    texts = {
        **NEEDED,
        "batch": "32",
        "epochs": "1.5",
        "optim.lr": "1e-3",
        "overwrite": "true",
        "optim.betas": ["0", ".5"],
    }
    config = from_dict(TrainConfig, texts, "here")
    assert (config.batch, config.epochs, config.optim.lr, config.overwrite) == (32, 1.5, 1e-3, True)
    assert config.optim.betas == (0.0, 0.5)


def test_giving_one_key_keeps_the_other_defaults_of_the_method() -> None:
    config = from_dict(Method, {**NEEDED, "optim.warmup": 0.3}, "here")
    assert config.optim == OptimConfig(lr=0.5, betas=(0.8, 0.95), warmup=0.3)
    assert from_dict(Method, NEEDED, "here") == Method(data="pictures", out="runs/a")


def test_a_nested_configuration_may_be_none_or_given_in_part() -> None:
    assert from_dict(Method, {**NEEDED, "second": None}, "here").second is None
    assert from_dict(Method, {**NEEDED, "second.cache_mb": 5}, "here").second == LoaderConfig(cache_mb=5)
    given_whole = replace(LoaderConfig(), workers=2)
    assert from_dict(Method, {**NEEDED, "second": given_whole}, "here").second == given_whole


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"out": "b"}, "here: data= is missing"),
        ({**NEEDED, "bach": 3}, "here: unknown key bach (did you mean batch?)"),
        ({"dat": "a", "out": "b"}, "here: unknown key dat (did you mean data?)"),
        ({**NEEDED, "lr": 3}, "here: unknown key lr (did you mean optim.lr?)"),
        ({**NEEDED, "optim.lrr": 3}, "here: unknown key optim.lrr (did you mean optim.lr"),
        ({**NEEDED, "optim.lr.x": 3}, 'here: optim.lr={"x": 3} should be a valid number'),
        ({**NEEDED, "batch": "6.5"}, "here: batch=6.5 should be a valid integer"),
        ({**NEEDED, "batch": 0}, "here: batch=0 should be greater than 0"),
        ({**NEEDED, "steps": -1}, "here: steps=-1 should be greater than 0"),
        ({**NEEDED, "seed": -1}, "here: seed=-1 should be greater than or equal to 0"),
        ({**NEEDED, "optim.lr": "nan"}, "here: optim.lr=nan should be"),
        ({**NEEDED, "optim.warmup": 1.5}, "here: optim.warmup=1.5 should be less than or equal to 1"),
        ({**NEEDED, "loader.validation": 1}, "here: loader.validation=1 should be less than 1"),
        ({**NEEDED, "loader.validation": 0}, "here: loader.validation=0 should be greater than 0"),
        ({**NEEDED, "precision": "fp16"}, "here: precision=fp16 should be 'auto', 'fp32' or 'bf16'"),
        ({**NEEDED, "overwrite": "maybe"}, "here: overwrite=maybe should be a valid boolean"),
        ({**NEEDED, "optim.betas": ["0.9"]}, "here: optim.betas=0.9 has too few values"),
        (
            {**NEEDED, "optim.betas": [0.1, 0.2, 0.3]},
            "here: optim.betas=0.1,0.2,0.3: Tuple should have at most 2 items",
        ),
        ({**NEEDED, "optim": 3}, "here: optim=3 should be"),
    ],
)
def test_a_mistake_is_told_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        from_dict(TrainConfig, values, "here")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_mistakes_inside_unions_and_mappings_name_the_key() -> None:
    with pytest.raises(ValueError, match=r"here: size=x should be a valid integer.* or .*tuple"):
        from_dict(Method, {**NEEDED, "size": "x"}, "here")
    with pytest.raises(ValueError, match=r"here: shares\.clip=x should be a valid number"):
        from_dict(Method, {**NEEDED, "shares.clip": "x"}, "here")


@dataclass(frozen=True, kw_only=True)
class Named:
    """Entries of the user's own naming, each a configuration."""

    entries: Mapping[str, OptimConfig] = field(default_factory=dict)


def test_entries_of_the_users_naming_are_configurations_of_their_own() -> None:
    known = keys(Named)
    assert "entries.NAME.lr" in known and "entries" not in known
    assert find_key("entries.clip.lr", known) is known["entries.NAME.lr"]
    assert find_key("entries.clip.rate", known) is None and find_key("entries.lr", known) is None
    config = from_dict(Named, {"entries.clip.lr": "0.5", "entries": {"dino.clip": 1}}, "here")
    assert (config.entries["clip"].lr, config.entries["dino"].clip) == (0.5, 1.0)
    assert config.entries["clip"].weight_decay == OptimConfig().weight_decay
    with pytest.raises(ValueError, match=r"here: entries\.clip\.lr=fast should be a valid number"):
        from_dict(Named, {"entries.clip.lr": "fast"}, "here")
    with pytest.raises(ValueError, match=r"unknown key entries\.clip\.rate"):
        from_dict(Named, {"entries.clip.rate": 1}, "here")


def test_keys_are_listed_with_the_defaults_of_the_method() -> None:
    known = keys(Method)
    assert known["data"].default is MISSING
    assert known["batch"].default == 64
    assert known["optim.lr"].default == 0.5
    assert known["optim.lr"].owner is OptimConfig
    assert known["second.cache_mb"].default == LoaderConfig().cache_mb
    assert "optim" not in known


def test_nested_joins_keys_of_one_parent() -> None:
    assert nested({"a.b": 1, "a": {"c": 2, "d.e": 3}, "f": 4}) == {"a": {"b": 1, "c": 2, "d": {"e": 3}}, "f": 4}
    assert nested({"a.b": 1, "a.b.c": 2}) == {"a": {"b": {"c": 2}}}


json_values = st.recursive(
    st.integers() | st.none(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8
)
json_objects = st.dictionaries(st.sampled_from("abc"), json_values, max_size=3)


@given(json_objects, json_objects)
def test_merging_lets_the_second_win_and_changes_neither(first: dict[str, Any], second: dict[str, Any]) -> None:
    before = json.dumps([first, second])
    both = merged(first, second)
    assert json.dumps([first, second]) == before
    assert set(both) == set(first) | set(second)
    assert merged(both, second) == both
    assert merged(first, {}) == first


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("vit_s61", ["vit_s16", "clip"], " (did you mean vit_s16?)"),
        ("lr", ["optim.lr", "model"], " (did you mean optim.lr?)"),
        ("xyz", ["knn", "linear"], " (valid are knn, linear)"),
        ("xyz", [f"model{number}" for number in range(50)], ""),
        ("xyz", [], ""),
    ],
)
def test_unknown_names_get_their_neighbours(name: str, known: list[str], hint: str) -> None:
    assert nearest(name, known) == hint


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("{", "is not JSON"), ("[1]", "should hold a JSON object"), ("\xff", "is not JSON")],
)
def test_an_unusable_file_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as caught:
        load_json(path)
    assert str(caught.value).startswith(str(path))
