"""RADIO in folders of Hugging Face: RadioModel of transformers against ours, and what NVIDIA's own packaging holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import TOLERANCE, assert_equal, file_of, resample_positions_in_float32
from hypothesis import given, settings
from hypothesis import strategies as st
from radio_files import (
    HEADS,
    MEAN,
    PATCH,
    STD,
    TABLE,
    TEACHERS,
    WIDTH,
    adaptors,
    answered,
    backbone,
    reparametrised,
    statistics,
    trunk,
    unfolded,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, RadioConfig, RadioModel

import synoptic
from synoptic.models.vit import ViT, ViTConfig
from synoptic.types import Preprocess
from synoptic.weights import formats
from synoptic.weights.folder import save_folder
from synoptic.weights.options import LoadOptions
from synoptic.weights.writing import convert

TINY: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 4}
SIZES = ((32, 32), (16, 16), (12, 24), (40, 8))  # the first is that of the table


def model(**changes: Any) -> RadioModel:
    """A RadioModel of random configuration and weights."""
    theirs = RadioModel(RadioConfig(**{**TINY, "max_img_size": 32, "image_size": 16, **changes})).eval()
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    return theirs


def folder(path: Path, theirs: RadioModel) -> Path:
    theirs.save_pretrained(path)
    return path


def ours(path: Path, **options: Any) -> ViT:
    found, _, record = formats.load(path, LoadOptions(**options))
    assert isinstance(found, ViT) and record.trained == {"from": "RadioModel of transformers"}
    return found


@torch.no_grad()
def assert_alike(mine: ViT, theirs: RadioModel, sizes: tuple[tuple[int, int], ...] = SIZES) -> None:
    dtype = next(theirs.parameters()).dtype
    for size in sizes:
        images = torch.rand(2, theirs.config.num_channels, *size, dtype=dtype)
        answer, expected = mine(images), theirs(images)
        assert_equal(answer.summary, expected.summary)
        assert_equal(answer.patches, expected.features)


FAMILIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "gated": {"use_swiglu_ffn": True},
    "without bias": {"qkv_bias": False, "mlp_ratio": 2.5},
    "four bands": {"num_channels": 4, "norm_mean": [0.1, 0.2, 0.3, 0.4], "norm_std": [0.1, 0.2, 0.3, 0.4]},
    "another activation": {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-3},
    "other tokens": {"num_cls_tokens": 4, "num_registers": 1, "summary_idxs": [0, 2]},
    "tokens the other way round": {"summary_idxs": [2, 0]},
    "one token": {"num_cls_tokens": 1, "num_registers": 0, "summary_idxs": [0]},
    "imagenet": {"norm_mean": [0.485, 0.456, 0.406], "norm_std": [0.229, 0.224, 0.225]},
    "with films": {"video_temporal_patch_size": 2},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_radio_model_of_transformers_is_read_as_ours(name: str, tmp_path: Path) -> None:
    """At the size of its table and at three others, not square; it trains, and shows its attention."""
    theirs = model(**FAMILIES[name])
    mine = ours(folder(tmp_path / "theirs", theirs))
    assert_alike(mine, theirs)
    assert mine.config.position == "cpe" and not mine.config.align_corners


def test_in_double_precision_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers normalises pictures and resizes positions in float32 there as well: here both do, or neither."""
    resample_positions_in_float32(monkeypatch)
    theirs = model(num_cls_tokens=4, summary_idxs=[0, 2, 3])
    mine = ours(folder(tmp_path / "theirs", theirs)).double()
    mine.normalize = nn.Identity()  # type: ignore[assignment]
    theirs.double().make_preprocessor_external()
    assert_alike(mine, theirs)


@settings(max_examples=25)
@given(
    width=st.integers(1, 4),
    heads=st.sampled_from([1, 2, 4]),
    depth=st.integers(1, 3),
    patch=st.integers(1, 7),
    cells=st.integers(1, 9),
    ratio=st.sampled_from([0.5, 1.0, 2.0, 3.7362637362637363, 4.0]),
    gated=st.booleans(),
    tokens=st.integers(1, 5),
    registers=st.integers(0, 9),
    data=st.data(),
)
def test_any_configuration_is_read_and_written(
    width: int,
    heads: int,
    depth: int,
    patch: int,
    cells: int,
    ratio: float,
    gated: bool,
    tokens: int,
    registers: int,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    kept = data.draw(st.lists(st.integers(0, tokens - 1), min_size=1, max_size=tokens, unique=True))
    size = (data.draw(st.integers(1, 12)) * patch, data.draw(st.integers(1, 12)) * patch)
    theirs = model(
        hidden_size=16 * width,
        num_attention_heads=heads,
        num_hidden_layers=depth,
        patch_size=patch,
        max_img_size=patch * cells,
        mlp_ratio=ratio,
        use_swiglu_ffn=gated,
        num_cls_tokens=tokens,
        num_registers=registers,
        summary_idxs=kept,
    )
    place = tmp_path_factory.mktemp("radio")
    mine = ours(folder(place / "theirs", theirs))
    assert_alike(mine, theirs, (size,))
    convert(place / "theirs", "huggingface", place / "back")
    again = AutoModel.from_pretrained(place / "back").eval()
    assert_alike(mine, again, (size,))
    assert ours(place / "back").config == mine.config


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_model_of_transformers_goes_there_and_back(name: str, tmp_path: Path) -> None:
    """Every tensor bit by bit, but that tokens of which it makes no summary are registers behind the others."""
    theirs = model(**FAMILIES[name])
    folder(tmp_path / "theirs", theirs)
    done = convert(tmp_path / "theirs", "huggingface", tmp_path / "back")
    assert done.notes == ()
    again, report = RadioModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report.values())
    before, after = (load_file(tmp_path / each / "model.safetensors") for each in ("theirs", "back"))
    gone = {key for key in before if "video" in key}
    assert before.keys() - gone == after.keys()
    for key in after:
        if not key.endswith(("summary_idxs", "cls_token.token")):
            assert torch.equal(after[key], before[key]), key
    for size in SIZES:
        images = torch.rand(1, theirs.config.num_channels, *size)
        assert_equal(again.eval()(images).summary, theirs(images).summary)
        assert_equal(again(images).features, theirs(images).features)
    processor = json.loads((tmp_path / "back" / "preprocessor_config.json").read_text())
    assert processor["do_normalize"] is False and processor["do_rescale"] is True
    assert formats.load(tmp_path / "back", LoadOptions())[0].config == ours(tmp_path / "theirs").config


def test_what_pictures_are_normalised_by_before_counts_too(tmp_path: Path) -> None:
    """A folder whose processor normalises means that both do."""
    path = folder(tmp_path / "theirs", model())
    plain = ours(path).config
    assert (plain.mean, plain.std) == (MEAN, STD)
    said = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 16, "width": 16}}
    (path / "preprocessor_config.json").write_text(json.dumps(said))
    both = ours(path).config
    for place in range(3):
        assert both.mean[place] == pytest.approx(0.5 + 0.25 * MEAN[place])
        assert both.std[place] == pytest.approx(0.25 * STD[place])
    (path / "preprocessor_config.json").write_text(json.dumps({**said, "do_normalize": False}))
    assert ours(path).config == plain


def test_a_folder_says_the_size_of_its_pictures(tmp_path: Path) -> None:
    path = folder(tmp_path / "theirs", model(image_size=24))
    assert synoptic.load(path, "cpu").preprocess == Preprocess(24)
    assert synoptic.load(path, "cpu", size=64).preprocess == Preprocess(64)
    windowed = synoptic.load(path, "cpu", window=2)
    assert windowed.preprocess == Preprocess(24) and windowed.model.config.window == 2
    with pytest.raises(ValueError, match=r"load.align_corners= decides nothing in files of RadioModel of transformers"):
        synoptic.load(path, "cpu", align_corners=True)


def test_tokens_that_are_not_there_are_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "theirs", model())
    state = load_file(path / "model.safetensors")
    for kept in ([0, 0], [11], []):
        state["radio_model.summary_idxs"] = torch.tensor(kept, dtype=torch.int64)
        save_file(state, path / "model.safetensors", {"format": "pt"})
        header = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**header, "summary_idxs": kept or [99]}))
        with pytest.raises(ValueError, match=r"its summary_idxs .* are not different ones of its tokens") as error:
            ours(path)
        assert "\n" not in str(error.value)


@torch.no_grad()
def test_a_model_of_ours_is_written_for_transformers_and_a_note_tells_of_other_sizes(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"patch_size": 4, "width": 24, "depth": 2, "heads": 3, "image_size": 32, "hidden": 40}
    shape |= {"position": "cpe", "patch_bias": False, "final_norm": False, "summary_tokens": 2, "registers": 3}
    for corners, notes in ((True, 1), (False, 0)):
        mine = ViT(ViTConfig(**shape, align_corners=corners, layer_scale=1e-5 if corners else None)).eval()
        save_folder(tmp_path / f"mine{notes}", mine, Preprocess(32))
        done = convert(tmp_path / f"mine{notes}", "huggingface", tmp_path / f"h{notes}")
        assert len(done.notes) == notes
        assert all("at sizes other than 32 its positions are resampled otherwise" in note for note in done.notes)
        assert_alike(mine, AutoModel.from_pretrained(tmp_path / f"h{notes}").eval(), SIZES if not notes else SIZES[:1])


def test_gradients_are_those_of_transformers(tmp_path: Path) -> None:
    theirs = model()
    mine = ours(folder(tmp_path / "theirs", theirs))
    images = torch.rand(2, 3, 12, 24)
    answer, expected = mine(images), theirs(images)
    weights = torch.randn_like(expected.features)
    ((answer.patches * weights).sum() + answer.summary.square().sum()).backward()
    ((expected.features * weights).sum() + expected.summary.square().sum()).backward()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    file_of(theirs, tmp_path / "gradients")
    wanted = ours(tmp_path / "gradients").state_dict()
    for name, parameter in mine.named_parameters():
        assert parameter.grad is not None
        assert_equal(parameter.grad, wanted[name])


@pytest.mark.slow
def test_a_full_size_model_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOLERANCE, torch.float32, 1e-4)
    theirs = RadioModel(RadioConfig(hidden_size=768, num_hidden_layers=12, num_attention_heads=12)).eval()
    assert_alike(ours(folder(tmp_path / "theirs", theirs)), theirs, ((224, 224), (96, 320)))


def packaged(
    path: Path, state: dict[str, Tensor], described: bool = True, summary: tuple[int, ...] = (0, 1), **header: Any
) -> Path:
    """A folder as NVIDIA packages its models, code of its own beside, which nothing may run."""
    path.mkdir(exist_ok=True)
    names = {"base_model.": "radio_model.model.", "input_conditioner.": "radio_model.input_conditioner."}
    held: dict[str, Tensor] = {"radio_model.summary_idxs": torch.tensor(summary)}
    for key, tensor in state.items():
        begin = next((begin for begin in names if key.startswith(begin)), None)
        name = names[begin] + key.removeprefix(begin) if begin else key
        for theirs, place in (("_heads", "head_mlp"), ("_feature_projections", "feat_mlp")):
            if key.startswith(f"{theirs}."):
                _, teacher, rest = key.split(".", 2)
                name = f"radio_model.adaptors.{teacher}.{place}.{rest}"
        held[name] = tensor.contiguous().clone()
    save_file(held, path / "model.safetensors", {"format": "pt"})
    teachers = [each["name"] for each in TEACHERS]
    configs = {
        name: {"head_idx": place, "summary": {"input_dim": WIDTH}, "feature": {"upsample_factor": 1}}
        for place, name in enumerate(teachers)
    }
    said = {
        "architectures": ["RADIOModel"],
        "auto_map": {"AutoConfig": "hf_model.RADIOConfig", "AutoModel": "hf_model.RADIOModel"},
        "args": {"model": "vit_base_patch16_224", "teachers": TEACHERS, "cpe_max_size": TABLE * PATCH},
        "version": "radio_v2.5-b",
        "patch_size": PATCH,
        "preferred_resolution": [24, 24],
        "vitdet_window_size": None,
        "adaptor_names": teachers,
        **({"adaptor_configs": configs} if described else {}),
    }
    (path / "config.json").write_text(json.dumps({**said, **header}))
    (path / "hf_model.py").write_text(f"open({str(path / 'mark')!r}, 'w')")
    return path


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("inner", [True, False])
@torch.no_grad()
def test_nvidias_packaging_is_read_and_its_code_is_not(described: bool, inner: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {**trunk(inner=inner), **statistics(), **adaptors(("clip", "siglip2-g", "sam"))}
    path = packaged(tmp_path / "radio", state, described)
    vision = synoptic.load(path, "cpu", heads=HEADS)
    assert vision.trained["from"].startswith("RADIOModel of NVIDIA") and vision.preprocess == Preprocess(24)
    begin = "base_model.inner." if inner else "base_model."
    for size in SIZES:
        images = torch.rand(2, 3, *size)
        said, answer = backbone(state, images, begin=begin), vision(images)
        assert_equal(answer.summary, said[:, :2].flatten(1))
        assert_equal(answer.patches, said[:, 5:])
        for slot, (name, key) in enumerate((("clip", "clip"), ("siglip2_g", "siglip2-g"), ("sam", "sam"))):
            assert_equal(answer.adaptors[name].summary, answered(state, f"_heads.{key}", "v2", said[:, slot]))
            assert_equal(
                answer.adaptors[name].patches, answered(state, f"_feature_projections.{key}", "v2", said[:, 5:])
            )
    assert not (path / "mark").exists()


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({}, {"align_corners": True, "window": None, "global_blocks": 4}),
        ({"version": "c-radio_v3-h"}, {"align_corners": True}),
        ({"version": "c-radio_v3-l"}, {"align_corners": False}),
        ({"version": "c-radio_v4-h"}, {"align_corners": False}),
        ({"vitdet_window_size": 2, "args": {"teachers": TEACHERS, "vitdet_num_windowed": 5}}, {"window": 2}),
        ({"version": "radio_v2.1", "vitdet_window_size": 2}, {"window": 2, "global_blocks": 5}),
        ({"version": "c-radio_v2-vlm-h"}, {"global_blocks": 8}),
        ({"image_mean": 5, "image_std": 0.2}, {"window": None, "global_blocks": 4}),
        ({"model_type": "radio"}, {"align_corners": True}),
        ({"architectures": None, "auto_map": {"AutoModel": "nvidia/RADIO--hf_model.RADIOModel"}}, {"window": None}),
    ],
)
def test_a_folder_of_nvidia_says_what_its_keys_do_not(
    header: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    state = {**trunk(), **statistics()}
    config = formats.load(packaged(tmp_path / "radio", state, **header), LoadOptions(heads=HEADS))[0].config
    assert isinstance(config, ViTConfig)
    assert {name: getattr(config, name) for name in expected} == expected
    assert (config.summary_tokens, config.registers) == (2, 3)


@torch.no_grad()
def test_the_heads_of_the_fourth_release_are_read_from_its_packaging(tmp_path: Path) -> None:
    """Reparametrised, with a finer grid, and the tokens that it tells itself."""
    torch.manual_seed(0)
    trained, plain = reparametrised({**trunk(), **statistics(), **adaptors(("sam",), "v2", "attn", 2)}, 2)
    configs = {"adaptor_configs": {"sam": {"head_idx": 4, "feature": {"upsample_factor": 2}}}}
    path = packaged(tmp_path / "radio", trained, summary=(1, 3), **configs)
    mine, images = formats.load(path, LoadOptions(heads=HEADS))[0], torch.rand(1, 3, 12, 16)
    said, answer = backbone(plain, images), mine(images)
    assert_equal(answer.summary, said[:, [1, 3]].flatten(1))
    found = answer.adaptors["sam"]
    assert_equal(found.summary, answered(plain, "_heads.sam", "v2", said[:, 4]))
    wanted = answered(plain, "_feature_projections.sam", "attn", said[:, 5:])
    assert_equal(found.patches, unfolded(wanted, (3, 4), 2))
    assert found.grid == (6, 8)


def test_a_hybrid_in_a_folder_is_refused(tmp_path: Path) -> None:
    state = {"base_model.patch_embed.conv_down.0.conv.weight": torch.ones(1)}
    path = packaged(tmp_path / "radio", state, args={"model": "eradio"})
    with pytest.raises(ValueError, match=r"is an E-RADIO, .* not read here yet$"):
        formats.load(path, LoadOptions())
