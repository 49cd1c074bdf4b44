"""Files of RADIO that make no model, leave something open, or would run code."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from radio_files import (
    TEACHERS,
    WIDTH,
    adaptors,
    args,
    file,
    head,
    read,
    statistics,
    trunk,
)
from radio_mistakes import Attack, Thing, bomb


@pytest.fixture(autouse=True)
def _the_same_weights() -> None:
    torch.manual_seed(0)


CALLED: dict[str, tuple[str, ...]] = {"by name": ("clip", "siglip2-g", "sam"), "by number": ("0", "1", "2")}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": 23}, r"load\.size=23: patches of 4 pixels do not tile it; the nearest that work: 20, 24"),
        ({"size": 64, "window": 3}, r"load\.size=64: windows of 3 patches do not tile it; .*: 60, 72"),
    ],
)
def test_a_size_that_does_not_fit_is_refused(options: dict[str, int], told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        read(file(tmp_path / "radio.pth.tar", {**trunk(tokens=8), **statistics()}), **options)


@pytest.mark.parametrize("place", ["in the arguments", "beside them", "among the tensors", "in their place"])
@pytest.mark.parametrize("call", ["os.system", "a class"])
def test_code_outside_of_the_arguments_is_refused(place: str, call: str, tmp_path: Path) -> None:
    evil: Any = Attack(os.system, f"touch {tmp_path / 'mark'}") if call == "os.system" else Thing()
    state: dict[str, Any] = {**trunk(), **statistics()}
    more: dict[str, Any] = {"epoch": [{"a": (evil,)}]} if place == "beside them" else {}
    if place == "among the tensors":
        state["evil"] = evil
    said = evil if place == "in their place" else args(evil=evil) if place == "in the arguments" else args()
    path = file(tmp_path / "radio.pth.tar", state, said, **more)
    if place == "in the arguments" and call == "a class":
        read(path)
        return
    with pytest.raises(ValueError, match=r"radio\.pth\.tar: reading it would run code \(") as error:
        read(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "mark").exists()


def changed(**values: Any) -> Callable[[dict[str, Any], argparse.Namespace], None]:
    return lambda state, said: state.update(values)


def told(**values: Any) -> Callable[[dict[str, Any], argparse.Namespace], None]:
    return lambda state, said: vars(said).update(values)


QKV = "base_model.blocks.0.attn.qkv"
SPOILED: dict[str, tuple[Callable[[dict[str, Any], argparse.Namespace], Any], str]] = {
    "another key": (changed(gate=torch.ones(1)), r"1 unknown \(gate\)"),
    "another layer of a head": (changed(**{"_heads.clip.inner.0.weight": torch.ones(1)}), "1 unexpected"),
    "a head of inner layers": (lambda s, a: s.pop("_heads.clip.final.2.weight"), r"it has no fc2\.weight"),
    "a summary without patches": (
        lambda s, a: [s.pop(key) for key in list(s) if key.startswith("_feature_projections.sam.")],
        "no head for the patches of sam",
    ),
    "norms in feed-forward layers": (
        changed(**{"base_model.blocks.0.mlp.norm.weight": torch.ones(80)}),
        "feed-forward layers have norms of their own",
    ),
    "oblong positions": (
        changed(**{"base_model.patch_generator.pos_embed": torch.ones(1, 60, WIDTH)}),
        "make no square",
    ),
    "patches of no square": (
        changed(**{"base_model.patch_generator.embedder.weight": torch.ones(WIDTH, 47)}),
        "are no squares of 3 bands",
    ),
    "no tokens": (lambda s, a: s.pop("base_model.patch_generator.cls_token.token"), r"it has no .*cls_token\.token"),
    "more teachers than tokens": (told(teachers=[{"name": f"t{i}"} for i in range(9)]), "says that 9 tokens .* has 5"),
    "teachers without a summary": (
        told(teachers=[{"name": "clip", "use_summary": False}]),
        "tell of no teacher with a summary",
    ),
    "a teacher before the first": (told(teachers=[{"name": "clip", "token_slot": -1}]), "before the first one"),
    "a teacher that is not told": (
        told(teachers=[{"name": "clip"}, {"name": "sam"}]),
        "which token is that of siglip2_g",
    ),
    "a name that unfolds without end": (told(teachers=[{"name": bomb(9)}]), "unfold to more than 100,000 values"),
    "statistics of nothing": (changed(**{"input_conditioner.norm_mean": torch.ones(0)}), "are no squares of 0 bands"),
    "patches of one number": (
        changed(**{"base_model.patch_generator.embedder.weight": torch.tensor(1.0)}),
        r"patches of \(\) numbers are no squares",
    ),
    "a version of two numbers": (
        lambda s, a: (
            s.update({f"{QKV}.parametrizations.weight.original": s.pop(f"{QKV}.weight")})
            or s.update(
                {
                    f"{QKV}.parametrizations.weight.0.{name}": torch.ones(count)
                    for name, count in (("scale", 1), ("_u", 3 * WIDTH), ("_v", WIDTH), ("_sn_version", 2))
                }
            )
        ),
        r"is of version \[1\.0, 1\.0\]; 1 and 2 are known here",
    ),
    "a weight twice": (
        changed(**{f"{QKV}.parametrizations.weight.original": torch.ones(3 * WIDTH, WIDTH)}),
        f"{QKV} has a weight twice",
    ),
    "factors twice": (
        changed(**{f"base_model.blocks.0.ls1.{name}": torch.ones(WIDTH) for name in ("gamma", "grandma")}),
        r"1 there twice, by two names \(backbone\.blocks\.0\.ls1\.gamma\)",
    ),
    "two of one name": (changed(**head("_heads.siglip2_g", "v2", 5)), "are both called siglip2_g"),
    "teachers that are none": (told(teachers=[None, 3, "clip"]), "which token is that of clip, siglip2_g, sam"),
    "a grid of no size": (
        told(teachers=[{**each, "fd_upsample_factor": 0, "name": f"t{i}"} for i, each in enumerate(TEACHERS)]),
        "which token is that of clip, siglip2_g, sam",
    ),
    "no teachers": (told(teachers=None), r"does not say which token is that of sam, clip, siglip2_g"),
    "a grid that does not come out": (
        told(teachers=[{**each, "fd_upsample_factor": 4} for each in TEACHERS]),
        "no grid 4 times finer",
    ),
    "half a reparametrisation": (
        lambda s, a: (
            s.update({f"{QKV}.parametrizations.weight.original": s.pop(f"{QKV}.weight")})
            or s.update({f"{QKV}.parametrizations.weight.0.parts.{i}.scale": torch.ones(1, 1) for i in range(3)})
        ),
        rf"{QKV}: its spectral reparametrisation has no _u",
    ),
    "parts that do not fit": (
        lambda s, a: (
            s.update({f"{QKV}.parametrizations.weight.original": s.pop(f"{QKV}.weight")})
            or s.update({f"{QKV}.parametrizations.weight.0.parts.5.scale": torch.ones(1, 1)})
        ),
        "1 spectral parts do not make a weight of",
    ),
    "a scale without a weight": (
        changed(**{"x.parametrizations.weight.0.scale": torch.ones(1, 1)}),
        "x has a spectral reparametrisation and no weight",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_file_that_makes_no_model_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    spoil, message = SPOILED[case]
    state, said = {**trunk(), **statistics(), **adaptors(CALLED["by name"])}, args()
    spoil(state, said)
    path = file(tmp_path / "radio.pth.tar", state, said)
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_what_a_file_does_not_say_is_asked_for(tmp_path: Path) -> None:
    path = file(tmp_path / "radio.pth.tar", {**trunk(tokens=5), **statistics()})
    with pytest.raises(ValueError, match=r"how many of its 5 tokens make the summary; say .*load\.summary_tokens=N"):
        read(path)
    assert read(path, summary_tokens=4).config.registers == 1
    path = file(tmp_path / "radio.pth.tar", {**trunk(), **statistics()}, args())
    with pytest.raises(ValueError, match=r"its own arguments tell .*; leave load\.summary_tokens=2 out"):
        read(path, summary_tokens=2)
    with pytest.raises(ValueError, match=r"load\.activation= decides nothing in files of RADIO, .* align_corners, "):
        read(path, activation="gelu")
