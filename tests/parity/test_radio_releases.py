"""The releases of RADIO: the manifests of their files, and what the catalogue tells of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from radio_files import (
    HEADS,
    adaptors,
    file,
    statistics,
    trunk,
)
from torch import Tensor

import synoptic
from synoptic.config import load_json
from synoptic.types import Preprocess
from synoptic.weights import formats
from synoptic.weights.catalogue import RELEASES
from synoptic.weights.convert import from_ours, load_state
from synoptic.weights.folder import KINDS, shapes_alone
from synoptic.weights.options import LoadOptions


def released(fixtures_dir: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every release, its tensors on the meta device."""
    for name, shapes in load_json(fixtures_dir / "radio" / "manifest.json").items():
        yield name, {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


DEAD = {"base_model.reg_token"}
RELEASED = {
    "radio_v2.5-b": (768, 12, 12, 16, 3, 5),
    "radio_v2.5-l": (1024, 24, 16, 16, 3, 5),
    "radio_v2.5-h": (1280, 32, 16, 16, 3, 5),
    "radio_v2.5-g": (1536, 40, 24, 14, 3, 5),
    "c-radio_v3-b": (768, 12, 12, 16, 3, 5),
    "c-radio_v3-l": (1024, 24, 16, 16, 3, 5),
    "c-radio_v4-so400m": (1152, 27, 16, 16, 2, 8),
    "c-radio_v4-h": (1280, 32, 16, 16, 2, 8),
}


def test_released_files_are_known_and_map_one_to_one(fixtures_dir: Path) -> None:
    found = {}
    for name, state in released(fixtures_dir):
        if name == "e-radio_v2":
            with pytest.raises(ValueError, match=r"^e-radio_v2: is an E-RADIO, .* not read here yet$"):
                formats.identify({"": state}, {}, LoadOptions(), name)
            continue
        known = formats.identify({"state_dict": state}, {}, LoadOptions(), name)
        with shapes_alone():
            model = KINDS[known.format.kind].build(known.config, {})
        load_state(model, known.state, name)
        again = known.format.finish(from_ours(model.state_dict(), known.format.table), known.config)
        expected = {key: tuple(tensor.shape) for key, tensor in state.items() if key not in DEAD}
        assert {key: tuple(tensor.shape) for key, tensor in again.items()} == expected
        config = known.config
        found[name] = (config.width, config.depth, config.heads, config.patch_size, config.summary_tokens)
        found[name] += (config.registers,)
        assert config.image_size == 128 * config.patch_size
        assert formats.prepared(config, formats.Description()).size == 512 // config.patch_size * config.patch_size
    assert found == RELEASED


def test_every_trunk_takes_the_heads_of_its_teachers(fixtures_dir: Path) -> None:
    """As files of releases have them: numbered, or by name; of all the kinds that there are."""
    teachers = [{"name": name} for name in ("clip", "siglip2-g", "dino_v2")] + [{"name": "sam", "use_summary": False}]
    for name, state in released(fixtures_dir):
        if name not in RELEASED:
            continue
        heads = {key: tensor.to("meta") for key, tensor in adaptors(("0", "1", "2", "3"), "v2", "v1").items()}
        first = {key: tensor for key, tensor in heads.items() if key.endswith("fc1.weight")}
        heads |= {key: torch.empty(len(tensor), RELEASED[name][0], device="meta") for key, tensor in first.items()}
        header = {"args": {"teachers": teachers}}
        known = formats.identify({"state_dict": {**state, **heads}}, header, LoadOptions(), name)
        with shapes_alone():
            model = KINDS["student"].build(known.config, {})
        load_state(model, known.state, name)
        assert list(known.config.adaptors) == ["clip", "siglip2_g", "dino_v2", "sam"]
        assert (known.config.tokens, known.config.summary) == (None, (0, 1, 2))


def test_the_list_of_releases_tells_of_their_trunks_and_of_how_they_resize_positions(fixtures_dir: Path) -> None:
    """Those of which there is no manifest have as many as others of their size; names tell the licence."""
    between_centres = {"c-radio_v3-l", "c-radio_v3-g", "c-radio_v4-so400m", "c-radio_v4-h"}
    listed = {name: release for name, release in RELEASES.items() if "radio" in name}
    assert listed.keys() == RELEASED.keys() | {"c-radio_v3-h", "c-radio_v3-g"}
    for name, state in released(fixtures_dir):
        if name in RELEASED:
            counted = [tensor for key, tensor in state.items() if key not in DEAD and "input_conditioner" not in key]
            assert listed[name].parameters == sum(tensor.numel() for tensor in counted), name
    assert listed["c-radio_v3-h"].parameters == listed["radio_v2.5-h"].parameters
    for name, release in listed.items():
        assert release.licence.commercial == name.startswith("c-radio")
        assert (release.options.align_corners is False) == (name in between_centres)
        assert release.options.size == release.resolution


def test_a_release_put_there_by_hand_is_read_as_its_makers_meant_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "synoptic" / "models"
    folder.mkdir(parents=True)
    for name, corners, size in (("radio_v2.5-b", True, 768), ("c-radio_v4-h", False, 512)):
        file(folder / RELEASES[name].files[0].name, {**trunk(tokens=8), **statistics()})
        vision = synoptic.load(name, "cpu", heads=HEADS)
        assert vision.model.config.align_corners == corners and vision.preprocess == Preprocess(size)
        assert vision.trained["licence"] == RELEASES[name].licence.name
        other = synoptic.load(name, "cpu", heads=HEADS, align_corners=not corners, size=64)
        assert other.model.config.align_corners != corners and other.preprocess == Preprocess(64)
