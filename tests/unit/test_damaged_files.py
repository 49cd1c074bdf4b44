"""A thousand damaged weights: each is told in one line that names the file, or the damage changed nothing at all."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import synoptic
from synoptic.models.vit import ViT, ViTConfig
from synoptic.types import Preprocess
from synoptic.weights.convert import DINO_VIT, from_ours
from synoptic.weights.folder import save_folder

Damage = Callable[[Path, random.Random], None]

EACH = 100  # damaged files of a kind
TINY = ViTConfig(patch_size=4, width=24, depth=2, heads=3, hidden=48, image_size=16, position_offset=0.1)


class Files:
    """Whole weights of several kinds, as (folder, what `load` is given in it, the file that is damaged)."""

    def __init__(self, folder: Path):
        from transformers import DeiTConfig, DeiTModel, Dinov2Config, Dinov2Model

        torch.manual_seed(0)
        vit = ViT(TINY).eval()
        save_folder(folder / "ours", vit, Preprocess(16))
        state = {key: tensor.detach().clone() for key, tensor in from_ours(vit.state_dict(), DINO_VIT).items()}
        for name in ("pth", "checkpoint", "safetensors"):
            (folder / name).mkdir()
        torch.save(state, folder / "pth" / "dino.pth")
        torch.save({"teacher": {f"backbone.{k}": v for k, v in state.items()}}, folder / "checkpoint" / "full.pth")
        save_file(state, folder / "safetensors" / "dino.safetensors")
        config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=28, patch_size=14)
        dinov2 = Dinov2Model(config)
        dinov2.save_pretrained(folder / "huggingface")
        dinov2.save_pretrained(folder / "sharded", max_shard_size="50KB")
        sides = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
        DeiTModel(DeiTConfig(**sides, image_size=16, patch_size=4)).save_pretrained(folder / "adapter")
        self.folder = folder
        shards = sorted((folder / "sharded").glob("*.safetensors"))
        assert len(shards) > 1
        self.places = {
            "ours": (".", "model.safetensors"),
            "pth": ("dino.pth", "dino.pth"),
            "checkpoint": ("full.pth", "full.pth"),
            "safetensors": ("dino.safetensors", "dino.safetensors"),
            "huggingface": (".", "model.safetensors"),
            "sharded": (".", shards[1].name),
            "adapter": (".", "model.safetensors"),
        }
        self.weights = {kind: weights(folder / kind / given) for kind, (given, _) in self.places.items()}


def load(path: Path) -> synoptic.VisionModel:
    return synoptic.load(path, "cpu", **({"heads": 3} if path.suffix in (".pth", ".safetensors") else {}))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load(path).model.state_dict()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("whole"))


# --- the damages: each changes the file in place


def cut(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data))])


def flip_in_the_header(path: Path, draw: random.Random) -> None:
    """Of safetensors the length and the JSON, of an archive its pickle or its directory."""
    data = bytearray(path.read_bytes())
    if path.suffix == ".safetensors":
        place = draw.randrange(8 + int.from_bytes(data[:8], "little"))
    else:
        directory = data.rindex(b"PK\x01\x02")
        place = draw.choice([draw.randrange(2000), draw.randrange(directory, len(data))])
    data[place] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def flip_anywhere(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Written again, whole, with other tensors."""
    if path.suffix == ".safetensors":
        state = load_file(path)
        change(state)
        save_file({key: tensor.contiguous().clone() for key, tensor in state.items()}, path, {"format": "pt"})
        return
    content = torch.load(path, weights_only=True)
    change(content.get("teacher", content))
    torch.save(content, path)


def drop_keys(path: Path, draw: random.Random) -> None:
    def drop(state: dict[str, Any]) -> None:
        for key in draw.sample(sorted(state), draw.randint(1, min(3, len(state)))):
            del state[key]

    changed(path, drop)


def add_a_key(path: Path, draw: random.Random) -> None:
    def add(state: dict[str, Any]) -> None:
        like = draw.choice([key for key in sorted(state) if "norm" in key])
        state[draw.choice([f"{like}.more", like.replace("norm", "norms")])] = torch.zeros(2)

    changed(path, add)


def swap_shapes(path: Path, draw: random.Random) -> None:
    def swap(state: dict[str, Any]) -> None:
        shapes = {tuple(tensor.shape) for tensor in state.values()}
        first, second = draw.sample(sorted(shapes), 2)
        one = draw.choice([key for key in sorted(state) if tuple(state[key].shape) == first])
        other = draw.choice([key for key in sorted(state) if tuple(state[key].shape) == second])
        state[one], state[other] = state[other], state[one]

    changed(path, swap)


def not_finite(path: Path, draw: random.Random) -> None:
    def spoil(state: dict[str, Any]) -> None:
        tensor = state[draw.choice(sorted(state))].clone()
        tensor.view(-1)[draw.randrange(tensor.numel())] = draw.choice([float("nan"), float("inf"), float("-inf")])
        state.update({key: tensor for key, value in state.items() if value.shape == tensor.shape})

    changed(path, spoil)


def another_family(path: Path, draw: random.Random) -> None:
    width = draw.choice([8, 24])
    state = {
        "embeddings.word_embeddings.weight": torch.zeros(30, width),
        **{
            f"encoder.layer.{i}.attention.self.query.weight": torch.zeros(width, width)
            for i in range(draw.randint(1, 3))
        },
    }
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)


class Attack:
    """Leaves a mark when something unpickles it that trusts it."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


def code_inside(path: Path, draw: random.Random) -> None:
    attack, state = Attack(path.parent / "mark"), {"cls_token": torch.zeros(1, 1, 24)}
    content: Any = draw.choice([attack, {**state, "x": attack}, {"teacher": state, "args": [attack]}])
    if draw.random() < 0.3:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)


DAMAGES: tuple[Damage, ...] = (
    cut,
    flip_in_the_header,
    flip_anywhere,
    drop_keys,
    add_a_key,
    swap_shapes,
    not_finite,
    another_family,
    code_inside,
)
CHECKED = ("ours", "pth", "checkpoint")  # with checksums, so that another bit anywhere is told


def judged(files: Files, kind: str, damage: Damage, draw: random.Random, at: Path) -> str:
    """`told` for a clear error, `harmless` where nothing changed; anything else fails the test."""
    given, victim = files.places[kind]
    shutil.copytree(files.folder / kind, at)
    damage(at / victim, draw)
    try:
        found = weights(at / given if given != "." else at)
    except ValueError as error:
        text = str(error)
        assert "\n" not in text and str(at) in text, (kind, text)
        assert len(text) < 1000, (kind, text)
        return "told"
    finally:
        assert not (at / "mark").exists(), f"{kind}: code ran"
    whole = files.weights[kind]
    assert found.keys() == whole.keys(), kind
    same = all(torch.equal(found[key], whole[key]) for key in whole)
    assert same or (damage is flip_anywhere and kind not in CHECKED), (kind, damage.__name__)
    return "harmless"


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_weights_are_told_and_never_half_loaded(files: Files, damage: Damage, tmp_path: Path) -> None:
    told = 0
    for number in range(EACH):
        draw = random.Random(number)
        kind = draw.choice(sorted(files.places))
        told += judged(files, kind, damage, draw, tmp_path / f"{number}-{kind}") == "told"
    harmless = {flip_in_the_header: 0.5, flip_anywhere: 0.5}.get(damage, 0.0)  # names of files, dates, padding, ...
    assert told >= EACH * (1 - harmless)


def test_what_is_beside_the_weights_is_told_too(files: Files, tmp_path: Path) -> None:
    """config.json of ours and of Hugging Face, and the index of several files: cut, flipped, or of another model."""
    told = 0
    for number in range(EACH):
        draw = random.Random(number)
        kind, name = draw.choice(
            [("ours", "config.json"), ("huggingface", "config.json"), ("sharded", "model.safetensors.index.json")]
        )
        at = shutil.copytree(files.folder / kind, tmp_path / str(number))
        draw.choice([cut, flip_anywhere, emptied, nested])(at / name, draw)
        try:
            load(at)
        except ValueError as error:
            assert "\n" not in str(error) and str(at) in str(error), error
            told += 1
    assert told >= EACH // 2


def emptied(path: Path, draw: random.Random) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: draw.choice([None, {}, [], -1, "x"]) for key in content}))


def nested(path: Path, draw: random.Random) -> None:
    path.write_text("[" * 100_000 if draw.random() < 0.5 else '{"a":' * 50_000)
