"""Files of RADIO's makers, made up, against what their networks say, written out; and the manifests of the releases."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import assert_equal
from PIL import Image
from radio_files import (
    HEADS,
    PATCH,
    TEACHERS,
    WIDTH,
    adaptors,
    answered,
    args,
    backbone,
    file,
    random,
    read,
    reparametrised,
    statistics,
    trunk,
    unfolded,
)
from radio_mistakes import Attack, Thing, bomb, nested
from torch import Tensor

import synoptic
from synoptic.apps.views import figures
from synoptic.methods.teachers import open_teachers
from synoptic.models.adaptors import Student
from synoptic.models.vit import ViT
from synoptic.types import Preprocess
from synoptic.weights.options import LoadOptions, TeacherFile
from synoptic.weights.reading import read_parts
from synoptic.weights.writing import convert

SIZES = ((32, 32), (16, 16), (12, 24), (40, 8))  # the first is that of the table
NAMES = ("clip", "siglip2_g", "sam")


def double(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.double() for key, tensor in state.items()}


@pytest.fixture(autouse=True)
def _the_same_weights() -> None:
    torch.manual_seed(0)


@torch.no_grad()
def assert_says(
    model: Student,
    state: Mapping[str, Tensor],
    keys: tuple[str, ...] = ("clip", "siglip2-g", "sam"),
    summary: str = "v2",
    patches: str = "v2",
    finer: int = 1,
    begin: str = "base_model.",
    align_corners: bool = True,
    tokens: int = 5,
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64),
) -> None:
    """Compares a student of three teachers with its file, in both precisions, at all sizes."""
    for dtype in dtypes:
        model, plain = model.to(dtype), {key: tensor.to(dtype) for key, tensor in state.items()}
        for size in SIZES:
            images = torch.rand(2, 3, *size, dtype=dtype)
            grid = (size[0] // PATCH, size[1] // PATCH)
            said, answer = backbone(plain, images, align_corners, begin), model(images)
            assert_equal(answer.patches, said[:, tokens:])
            assert_equal(answer.summary, said[:, :2].flatten(1))  # SAM has none
            for slot, (name, key) in enumerate(zip(NAMES, keys, strict=True)):
                theirs = answer.adaptors[name]
                assert_equal(theirs.summary, answered(plain, f"_heads.{key}", summary, said[:, slot]))
                wanted = answered(plain, f"_feature_projections.{key}", patches, said[:, tokens:])
                assert_equal(theirs.patches, unfolded(wanted, grid, finer))
                assert theirs.grid == (grid[0] * finer, grid[1] * finer)


CALLED: dict[str, tuple[str, ...]] = {"by name": ("clip", "siglip2-g", "sam"), "by number": ("0", "1", "2")}


@pytest.mark.parametrize("called", CALLED)
@pytest.mark.parametrize(
    ("summary", "patches", "finer"), [("v1", "v1", 1), ("v2", "v2", 1), ("v1", "v2", 2), ("v2", "attn", 3)]
)
def test_a_file_says_what_its_network_does(called: str, summary: str, patches: str, finer: int, tmp_path: Path) -> None:
    keys = CALLED[called]
    state = {**trunk(), **statistics(), **adaptors(keys, summary, patches, finer)}
    teachers = [{**each, "fd_upsample_factor": finer} for each in TEACHERS]
    model = read(file(tmp_path / "radio.pth.tar", state, args(teachers)))
    assert isinstance(model, Student)
    assert (model.config.backbone.summary_tokens, model.config.backbone.registers) == (3, 2)
    assert (model.config.tokens, model.config.summary) == (None, (0, 1))
    assert_says(model, state, keys, summary, patches, finer)


@pytest.mark.parametrize("scale", ["grandma", "gamma", None])
def test_factors_on_branches_have_two_names(scale: str | None, tmp_path: Path) -> None:
    state = {**trunk(scale=scale), **statistics(), **adaptors(CALLED["by name"])}
    dead = {"base_model.reg_token": torch.randn(1, 4, WIDTH)}
    model = read(file(tmp_path / "c-radio.pth.tar", {**state, **dead}, args()))
    assert (model.config.backbone.layer_scale is None) == (scale is None)
    assert_says(model, state)


def test_a_vit_of_dinov2_lies_inside_of_another_module(tmp_path: Path) -> None:
    state = {**trunk(inner=True), **statistics(), **adaptors(CALLED["by name"])}
    model = read(file(tmp_path / "radio_v2.5-g.pth.tar", state, args()))
    config = model.config.backbone
    assert (config.feed_forward, config.patch_bias, config.final_norm, config.mask_token) == (
        "swiglu",
        True,
        True,
        True,
    )
    assert_says(model, state, begin="base_model.inner.")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("heads", [False, True])
def test_spectral_reparametrisation_is_folded(version: int, inner: bool, heads: bool, tmp_path: Path) -> None:
    state = {**trunk(inner=inner), **statistics(), **adaptors(CALLED["by name"])}
    trained, plain = reparametrised(state, version, heads)
    assert trained.keys() != plain.keys()
    model = read(file(tmp_path / "radio.pth.tar", trained, args(spectral_reparam=True)))
    begin = "base_model.inner." if inner else "base_model."
    assert_says(model, plain, begin=begin, dtypes=(torch.float32,))  # to which both round what they fold


def test_noise_on_weights_leaves_nothing_but_a_name(tmp_path: Path) -> None:
    """DAMP, of c-radio_v4, on every linear layer, that of the patches too."""
    state = {**trunk(), **statistics(), **adaptors(CALLED["by name"])}
    noisy = {
        key.replace(".weight", ".parametrizations.weight.original") if tensor.ndim == 2 else key: tensor
        for key, tensor in state.items()
    }
    assert_says(read(file(tmp_path / "c-radio_v4.pth.tar", noisy, args(damp=True))), state)


def test_averaged_weights_win_and_wrappers_go(tmp_path: Path) -> None:
    state = {**trunk(), **statistics(), **adaptors(CALLED["by name"])}
    average = {f"module.{key}": tensor for key, tensor in state.items()}
    other, _ = reparametrised({key: tensor + 1 for key, tensor in state.items()}, 2)
    path = file(tmp_path / "radio.pth.tar", other, args(spectral_reparam={"version": 2}), state_dict_ema=average)
    assert_says(read(path), state)


@pytest.mark.parametrize("heads", [False, True])
@torch.no_grad()
def test_patches_are_normalised_by_the_statistics_in_a_file(
    heads: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """radio_v2.5-h-norm has them; those of its blocks are left out, which is told."""
    state = {**trunk(), **statistics(), **(adaptors(CALLED["by name"]) if heads else {})}
    mean, tx = random(WIDTH), random(WIDTH, WIDTH)
    more = {"_feature_normalizer.mean": mean, "_feature_normalizer.tx": tx}
    blocks = {f"_intermediate_feature_normalizer.{name}": torch.ones(3) for name in ("alphas", "means", "rotation")}
    path = file(tmp_path / "radio_v2.5-h-norm.pth.tar", {**state, **more, **blocks}, args())
    model, images = read(path).double(), torch.rand(2, 3, 12, 16, dtype=torch.float64)
    assert "statistics of its blocks are left out" in caplog.text
    said = backbone(double(state), images)
    patches = (said[:, 5:] - mean.double()) @ tx.double().T
    answer = model(images, layers=(-1,))
    assert_equal(answer.patches, patches)
    assert_equal(answer.summary, said[:, :2].flatten(1))
    assert_equal(answer.layers[0].patches, said[:, 5:])
    if heads:
        assert_equal(answer.adaptors["sam"].patches, answered(double(state), "_feature_projections.sam", "v2", patches))
    written = convert(path, "official", tmp_path / "back.pth", LoadOptions(heads=HEADS)).out
    again = read_parts(written)["state_dict"]
    assert all(torch.equal(again[key], tensor) for key, tensor in more.items()) and not blocks.keys() & again.keys()


def test_files_in_half_precision_are_read(tmp_path: Path) -> None:
    state = {key: tensor.half() for key, tensor in {**trunk(), **adaptors(CALLED["by name"])}.items()}
    model = read(file(tmp_path / "radio_half.pth.tar", {**state, **statistics()}, args()))
    assert_says(model, {key: tensor.float() for key, tensor in state.items()})


@pytest.mark.parametrize("align_corners", [True, False])
def test_positions_are_resized_as_is_said(align_corners: bool, tmp_path: Path) -> None:
    state = {**trunk(), **statistics(), **adaptors(CALLED["by name"])}
    path = file(tmp_path / "radio.pth.tar", state, args())
    assert_says(read(path, align_corners=align_corners), state, align_corners=align_corners)
    assert read(path).config.backbone.align_corners  # as all before c-radio_v3-l were released


@pytest.mark.parametrize("called", ["by name", "by number"])
@torch.no_grad()
def test_the_first_and_the_tenth_teacher_are_two(called: str, tmp_path: Path) -> None:
    teachers = [{"name": f"t{place}"} for place in range(11)]
    keys = [each["name"] if called == "by name" else str(place) for place, each in enumerate(teachers)]
    state = {**trunk(tokens=12), **statistics(), **adaptors(keys)}
    model = read(file(tmp_path / "radio.pth.tar", state, args(teachers))).double()
    assert list(model.adaptors) == [f"t{place}" for place in range(11)]
    images, plain = torch.rand(1, 3, 16, 16).double(), double(state)
    said, answer = backbone(plain, images), model(images)
    for place in (1, 10):
        found = answer.adaptors[f"t{place}"]
        assert_equal(found.summary, answered(plain, f"_heads.{keys[place]}", "v2", said[:, place]))
        assert_equal(found.patches, answered(plain, f"_feature_projections.{keys[place]}", "v2", said[:, 12:]))


def test_teachers_may_share_tokens_stand_twice_and_have_slots(tmp_path: Path) -> None:
    state = {**trunk(), **statistics(), **adaptors(("clip", "sam"))}
    cases: list[tuple[list[dict[str, Any]], dict[str, Any], Any]] = [
        ([{"name": "clip"}, {"name": "clip"}, {"name": "sam", "use_summary": False}], {}, (2, None, (0,))),
        ([{"name": "clip", "token_slot": 2}, {"name": "sam", "token_slot": 0}], {}, (3, {"clip": 2, "sam": 0}, (2, 0))),
        ([{"name": "clip"}, {"name": "sam"}], {"cls_token_per_teacher": False}, (1, None, None)),
        ([{"name": "other"}, {"name": "clip"}, {"name": "sam"}], {}, (3, {"clip": 1, "sam": 2}, None)),
    ]
    for teachers, more, expected in cases:
        config = read(file(tmp_path / "radio.pth.tar", state, args(teachers, **more))).config
        assert (config.backbone.summary_tokens, config.tokens, config.summary) == expected
        assert config.backbone.summary_tokens + config.backbone.registers == 5


@torch.no_grad()
def test_a_trunk_alone_is_a_vit_whose_summary_is_that_of_the_release(tmp_path: Path) -> None:
    """Tokens that make no summary are as good as registers."""
    state = {**trunk(tokens=8), **statistics()}
    teachers = [{"name": "sam", "use_summary": False}, {"name": "clip"}, {"name": "dino"}]
    images = torch.rand(2, 3, 12, 20).double()
    said = backbone(double(state), images)
    for arguments, summary in ((args(teachers), said[:, 1:3]), (None, said[:, :3])):
        model = read(file(tmp_path / "radio.pth.tar", state, arguments)).double()
        assert isinstance(model, ViT)
        answer = model(images)
        assert_equal(answer.summary, summary.flatten(1))
        assert_equal(answer.patches, said[:, 8:])
    model = read(file(tmp_path / "radio.pth.tar", state), summary_tokens=2).double()
    assert_equal(model(images).summary, said[:, :2].flatten(1))


def test_pictures_are_prepared_for_a_size_that_patches_and_windows_tile(tmp_path: Path) -> None:
    path = file(tmp_path / "radio.pth.tar", {**trunk(tokens=8), **statistics()})
    for options, size in (({}, 32), ({"size": 20}, 20), ({"size": 700}, 700), ({"window": 3}, 24)):
        vision = synoptic.load(path, "cpu", heads=HEADS, **options)
        assert vision.preprocess == Preprocess(size)
        assert vision.model.config.window == options.get("window")


def test_classes_among_the_arguments_are_as_if_they_were_not_there(tmp_path: Path) -> None:
    state = {**trunk(), **statistics(), **adaptors(CALLED["by name"])}
    teachers = [
        {**each, "made_by": Thing(), "run": Attack(eval, f"open({str(tmp_path / 'mark')!r}, 'w')")} for each in TEACHERS
    ]
    said = args(
        teachers, dtype=torch.bfloat16, path=tmp_path, thing=Thing(), kind=Thing, more=argparse.Namespace(a=Thing())
    )
    path = file(tmp_path / "radio.pth.tar", state, said)
    assert_says(read(path), state)
    assert not (tmp_path / "mark").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "mark").exists()  # so that the attack is one


def test_a_teacher_whose_file_leaves_something_open_is_told_by_its_name(tmp_path: Path) -> None:
    path = file(tmp_path / "radio.pth.tar", {**trunk(tokens=5), **statistics()})
    told = {"radio": TeacherFile(load=LoadOptions(heads=HEADS, summary_tokens=4))}
    assert open_teachers({"radio": path}, told)["radio"].model.config.registers == 1
    with pytest.raises(ValueError, match=r"say how many, teacher\.radio\.load\.summary_tokens=N"):
        open_teachers({"radio": path}, {"radio": TeacherFile(load=LoadOptions(heads=HEADS))})
    with pytest.raises(ValueError, match=r"teacher\.sam: is no teacher"):
        open_teachers({"radio": path}, {"sam": TeacherFile()})


def test_patches_on_a_finer_grid_are_drawn(tmp_path: Path) -> None:
    state = {**trunk(), **statistics(), **adaptors(CALLED["by name"], finer=2)}
    teachers = [{**each, "fd_upsample_factor": 2} for each in TEACHERS]
    path = file(tmp_path / "radio.pth.tar", state, args(teachers))
    for number in range(2):
        Image.new("RGB", (16, 16), (9 * number, 200, 30)).save(tmp_path / f"{number}.png")
    vision = synoptic.load(path, "cpu", heads=HEADS, size=16)
    assert figures(str(tmp_path / "*.png"), vision, tmp_path / "drawn") == 0
    assert len(list((tmp_path / "drawn" / "sheets").iterdir())) == 2


def test_what_lies_too_deep_among_the_arguments_is_nothing(tmp_path: Path) -> None:
    state = {**trunk(), **statistics(), **adaptors(CALLED["by name"])}
    said = args(deep=nested(300), vitdet_window_size=[4], name=bomb(3))
    model = read(file(tmp_path / "radio.pth.tar", state, said))
    assert_says(model, state)
    assert model.config.backbone.window is None


def test_of_a_teacher_that_stands_several_times_the_first_decides(tmp_path: Path) -> None:
    """As for pictures of several sizes, of which one asks for a finer grid."""
    state = {**trunk(), **statistics(), **adaptors(CALLED["by name"], finer=2)}
    teachers = [{**each, "fd_upsample_factor": 2} for each in TEACHERS] + [dict(each) for each in TEACHERS]
    assert_says(read(file(tmp_path / "radio.pth.tar", state, args(teachers))), state, finer=2)


def test_releases_are_told_by_the_names_of_their_files_and_the_fourth_by_its_teachers(tmp_path: Path) -> None:
    state = {**trunk(tokens=8), **statistics()}
    for name, corners in (("c-radio-v3_l_half.pth.tar", False), ("c-radio_v3-b_half.pth.tar", True), ("x.pth", True)):
        model = synoptic.load(file(tmp_path / name, state), "cpu", heads=HEADS).model
        assert model.config.align_corners == corners, name
    teachers = [{"name": "siglip2-g"}, {"name": "dino_v3"}, {"name": "sam3", "use_summary": False}]
    assert not read(file(tmp_path / "x.pth", state, args(teachers))).config.align_corners


def test_a_number_beside_a_network_is_no_network(tmp_path: Path) -> None:
    state = {**trunk(), **statistics(), **adaptors(CALLED["by name"])}
    assert_says(read(file(tmp_path / "radio.pth.tar", state, args(), metric=torch.tensor(0.9))), state)


def test_a_file_is_a_model_like_any_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {**trunk(), **statistics(), **adaptors(CALLED["by name"])}
    vision = synoptic.load(file(tmp_path / "radio.pth.tar", state, args()), "cpu", heads=HEADS)
    assert vision.adaptors == NAMES and vision.trained == {"from": "RADIO with the heads of teachers"}
    picture = torch.randint(0, 256, (3, 50, 40), dtype=torch.uint8)
    assert vision.embed(picture).shape == (1, 2 * WIDTH)
    assert vision.attention(torch.rand(1, 3, 16, 16), adaptor="siglip2_g").shape == (1, HEADS, 4, 4)
    vision.save(tmp_path / "saved")
    again = synoptic.load(tmp_path / "saved", "cpu")
    assert (again.embed(picture) == vision.embed(picture)).all()
    ordered = OrderedDict(sorted(state.items(), reverse=True))  # keys may stand in any order
    other = read(file(tmp_path / "other.pth.tar", ordered, args()))
    assert json.dumps(list(other.adaptors)) == json.dumps(list(NAMES))
