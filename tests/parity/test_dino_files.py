"""Files of DINO and DINOv2 in their makers' layout, against all that the makers' own code was recorded to say of them.

In float64 the code of DINOv2 still resamples positions in float32: there ours do the same, and all else is in float64.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import all_tokens, assert_equal, resample_positions_in_float32
from safetensors.torch import load_file
from torch import Tensor

from synoptic.models.classifier import Classifier, ClassifierConfig
from synoptic.models.heads import DinoHead
from synoptic.models.plain_resnet import PlainResNetConfig
from synoptic.models.vit import ViT
from synoptic.weights import formats
from synoptic.weights.convert import DINO_HEAD, from_ours, load_state, to_ours
from synoptic.weights.folder import KINDS, shapes_alone
from synoptic.weights.options import LoadOptions
from synoptic.weights.reading import State, read_parts

DTYPES = (torch.float32, torch.float64)


def backbone(path: Path, **options: Any) -> ViT:
    model = formats.load(path, LoadOptions(**options))[0]
    assert isinstance(model, ViT)
    return model


def head(state: State) -> DinoHead:
    """The head of a training's file, with the sizes that its shapes tell."""
    (hidden, width), (prototypes, bottleneck) = (state[key].shape for key in ("mlp.0.weight", "last_layer.weight_v"))
    model = DinoHead(width, prototypes, hidden, bottleneck)
    load_state(model, to_ours(state, DINO_HEAD), "head")
    return model.eval()


def recorded(record: Mapping[str, Tensor], prefix: str, dtype: torch.dtype) -> Iterator[tuple[str, str, Tensor]]:
    """(what it is, size of the pictures, tensor) of all that was recorded in one precision under a prefix."""
    found = [(key.removeprefix(f"{prefix}/"), tensor) for key, tensor in record.items() if key.startswith(f"{prefix}/")]
    found = [(key, tensor) for key, tensor in found if tensor.dtype == dtype and key.count("/") == 1]
    assert found
    for key, tensor in found:
        name, size = key.split("/")
        yield name, size.removesuffix("_f64"), tensor


def said_by_dino(model: ViT, name: str, images: Tensor) -> Tensor:
    second_last, last = (after for _, after in all_tokens(model, images, layers=(-2,)))
    match name:
        case "cls":
            return model(images).summary
        case "tokens":
            return last
        case "tokens_second_last":
            return second_last
        case "last_attention":
            return model.attention(images, queries=last.shape[1])
        case "last_attention_cls_row":
            return model.attention(images)[:, :, 0]
    raise KeyError(name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "heads"), [("vit_p16", 2), ("vit_p8", 4)])
def test_dino_says_what_it_said(fixtures_dir: Path, name: str, heads: int, dtype: torch.dtype) -> None:
    record = load_file(fixtures_dir / "dino" / "io.safetensors")
    model = backbone(fixtures_dir / "dino" / f"weights.{name}.pth", heads=heads).to(dtype)
    for what, size, expected in recorded(record, name, dtype):
        assert_equal(said_by_dino(model, what, record[f"image/{size}"].to(dtype)), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("part", ["student", "teacher"])
def test_both_networks_of_dinos_training_say_what_they_said(fixtures_dir: Path, part: str, dtype: torch.dtype) -> None:
    path = fixtures_dir / "dino" / "weights.full_checkpoint.pth"
    record = load_file(fixtures_dir / "dino" / "io.safetensors")
    model = backbone(path, heads=3, part=part).to(dtype)
    projection = head(formats.networks(read_parts(path), part, part)["head"]).to(dtype)
    for what, size, expected in recorded(record, f"full/{part}", dtype):
        summary = model(record[f"image/{size}"].to(dtype)).summary
        assert_equal({"cls": summary, "head": projection(summary)}[what], expected)


def said_by_dinov2(model: ViT, name: str, images: Tensor, masks: Tensor) -> Tensor:
    features, (before, after) = model(images), all_tokens(model, images)[-1]
    if match := re.fullmatch(r"intermediate(\d+)_(.+)", name):
        layer = int(match[1])
        kept = model(images, layers=(layer,)).layers[0]
        unnormed = all_tokens(model, images, layers=(layer,))[0][0][:, 1 + model.config.registers :]
        as_map = unnormed.mT.unflatten(-1, features.grid)
        return {"cls": kept.summary, "patches": kept.patches, "unnormed_nchw": as_map}[match[2]]
    match name:
        case "x_norm_clstoken":
            return features.summary
        case "x_norm_regtokens":
            return after[:, 1 : 1 + model.config.registers]
        case "x_norm_patchtokens":
            return features.patches
        case "x_prenorm":
            return before
        case "masked_cls":
            return model(images, masks).summary
        case "masked_patches":
            return model(images, masks).patches
    raise KeyError(name)


@pytest.mark.parametrize(
    ("name", "prefix", "heads", "dtype"),
    [
        *(("plain", "plain", 3, dtype) for dtype in DTYPES),
        *((name, name, 2, dtype) for name in ("reg4", "swiglu", "swiglu_reg4") for dtype in DTYPES),
        ("teacher_checkpoint", "train/backbone", 2, torch.float32),
    ],
    ids=str,
)
def test_dinov2_says_what_it_said(
    fixtures_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str, prefix: str, heads: int, dtype: torch.dtype
) -> None:
    resample_positions_in_float32(monkeypatch)
    record = load_file(fixtures_dir / "dinov2" / "io.safetensors")
    model = backbone(fixtures_dir / "dinov2" / f"weights.{name}.pth", heads=heads).to(dtype)
    for what, size, expected in recorded(record, prefix, dtype):
        masks = record[f"in/mask/{size}"].bool()
        assert_equal(said_by_dinov2(model, what, record[f"image/{size}"].to(dtype), masks), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_heads_of_dinov2s_training_say_what_they_said(
    fixtures_dir: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    resample_positions_in_float32(monkeypatch)
    path = fixtures_dir / "dinov2" / "weights.teacher_checkpoint.pth"
    record = load_file(fixtures_dir / "dinov2" / "io.safetensors")
    model, inside = backbone(path, heads=2).to(dtype), formats.networks(read_parts(path), None, "teacher")
    for what, size, expected in recorded(record, "train", dtype):
        features = model(record[f"image/{size}"].to(dtype))
        tokens = {"dino_head": features.summary, "ibot_head": features.patches[:, :6]}[what]
        assert_equal(head(inside[what]).to(dtype)(tokens), expected)


def released(fixtures_dir: Path) -> Iterator[tuple[str, dict[str, State]]]:
    """Files that were released, by name, with their dictionaries of tensors; tensors are on the meta device."""
    for family in ("dino", "dinov2"):
        manifest = json.loads((fixtures_dir / family / "manifest.json").read_text())
        for name, shapes in manifest.items():
            parts: dict[str, State] = {}
            for key, shape in shapes.items():
                part, _, key = key.rpartition("/")
                dtype = torch.int64 if key.endswith("num_batches_tracked") else torch.float32
                parts.setdefault(part, {})[key] = torch.empty(shape, device="meta", dtype=dtype)
            yield name, parts


def test_released_files_are_known_and_map_one_to_one(fixtures_dir: Path) -> None:
    known: dict[str, tuple[Any, ...]] = {}
    for name, parts in released(fixtures_dir):
        if name.endswith("_head"):
            classes, channels = parts[""]["weight"].shape
            told = f"is a linear classifier of 1,000 classes that reads {channels:,} channels, and no network"
            assert classes == 1000
            with pytest.raises(ValueError, match=told):
                formats.identify(parts, {}, LoadOptions(), name)
            continue
        for part in [part for part in ("student", "teacher") if part in parts] or [None]:
            found = formats.identify(parts, {}, LoadOptions(part=part), name)
            inside = formats.networks(parts, part, name)
            with shapes_alone():
                model = KINDS[found.format.kind].build(found.config, {})
                heads = {key: head(state) for key, state in inside.items() if key != "backbone"}
            load_state(model, found.state, name)
            assert shapes(from_ours(model.state_dict(), found.format.table)) == shapes(inside["backbone"])
            for key, projection in heads.items():
                assert shapes(from_ours(projection.state_dict(), DINO_HEAD)) == shapes(inside[key])
        config = found.config
        if isinstance(config, PlainResNetConfig):
            known[name] = (found.format.name, config.channels_out, config.blocks)
        else:
            known[name] = (found.format.name, config.width, config.depth, config.heads, config.patch_size)
    assert len(known) == 17
    assert known["dino_resnet50_pretrain"] == ("DINO with a ResNet", 2048, (3, 4, 6, 3))
    assert known["dino_vits8_pretrain"] == ("DINO", 384, 12, 6, 8)
    assert known["dino_vitb8_full_checkpoint"] == ("DINO", 768, 12, 12, 8)
    assert known["dinov2_vitl14_pretrain"] == ("DINOv2", 1024, 24, 16, 14)
    assert known["dinov2_vitg14_reg4_pretrain"] == ("DINOv2 with registers", 1536, 40, 24, 14)
    assert known["train_vitl16_short_teacher_checkpoint"] == ("DINOv2", 1024, 24, 16, 16)


def test_every_released_head_fits_its_backbone_and_no_other_width(fixtures_dir: Path, tmp_path: Path) -> None:
    heads_of: dict[str, list[str]] = {}
    files = dict(released(fixtures_dir))
    for name in files:
        if name.endswith("_head"):
            heads_of.setdefault(re.sub(r"_linear4?_head", "_pretrain", name), []).append(name)
    assert len(heads_of) == 8 and all(len(names) == 2 for names in heads_of.values())
    for backbone_name, names in heads_of.items():
        config = formats.identify(files[backbone_name], {}, LoadOptions(), backbone_name).config
        for name in names:
            with shapes_alone():
                layers = 4 if "linear4" in name else 1
                model = Classifier(ClassifierConfig(classes=1000, vit=config, layers=layers, mean="behind"))
            assert shapes(model.head.state_dict()) == shapes(files[name][""])


def linear_head(folder: Path, channels: int, dino: bool = False) -> tuple[Path, Tensor, Tensor]:
    """A file in the layout of a released head, its weight and its bias; of DINO with the wrapper of its training."""
    weight, bias = torch.randn(10, channels), torch.randn(10)
    state = {"weight": weight, "bias": bias}
    if dino:
        state = {"epoch": 3, "state_dict": {f"module.linear.{key}": tensor for key, tensor in state.items()}}
    torch.save(state, folder / "head.pth")
    return folder / "head.pth", weight, bias


@pytest.mark.parametrize("layers", [1, 4])
def test_a_linear_head_of_dinov2_reads_what_its_makers_recorded(
    layers: int, fixtures_dir: Path, tmp_path: Path
) -> None:
    """The logits are the head's own arithmetic on the recorded tokens: summaries of the last blocks, then the mean."""
    record = load_file(fixtures_dir / "dinov2" / "io.safetensors")
    path, weight, bias = linear_head(tmp_path, 16 * (layers + 1))
    file = fixtures_dir / "dinov2" / "weights.teacher_checkpoint.pth"
    model = formats.load(file, LoadOptions(heads=2, linear_head=str(path)))[0]
    of = "train/backbone"
    for size in ("84x84", "42x98", "112x56"):
        images = record[f"image/{size}"]
        summaries = [record[f"{of}/intermediate{block}_cls/{size}"] for block in range(3) if layers == 4]
        last = record[f"{of}/x_norm_clstoken/{size}"], record[f"{of}/x_norm_patchtokens/{size}"].mean(1)
        with torch.no_grad():
            assert_equal(model.classify(images), torch.cat([*summaries, *last], dim=1) @ weight.T + bias)
            assert torch.equal(model(images).patches, model.backbone(images).patches)


def test_dinos_linear_weights_read_the_mean_between_the_channels_of_the_summary(
    fixtures_dir: Path, tmp_path: Path
) -> None:
    record = load_file(fixtures_dir / "dino" / "io.safetensors")
    path, weight, bias = linear_head(tmp_path, 2 * 32, dino=True)
    model = formats.load(fixtures_dir / "dino" / "weights.vit_p16.pth", LoadOptions(heads=2, linear_head=str(path)))[0]
    for what, size, tokens in recorded(record, "vit_p16", torch.float32):
        if what == "tokens":
            pairs = torch.stack([tokens[:, 0], tokens[:, 1:].mean(1)], dim=2).flatten(1)
            with torch.no_grad():
                assert_equal(model.classify(record[f"image/{size}"]), pairs @ weight.T + bias)


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}
