"""Distillation: several sizes at once, standardised targets, canvases, shifts, dropping, further teachers."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_distillations import IMAGES, save_teachers, steps, task_of
from small_tasks import batch_of
from torch.nn.functional import unfold

import synoptic
from synoptic.engine.acceleration import accelerate
from synoptic.engine.loop import train
from synoptic.engine.optim import Ema
from synoptic.methods import radio_task
from synoptic.predict import VisionModel
from synoptic.types import Features, Preprocess
from synoptic.weights.writing import convert


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teachers(tmp_path_factory.mktemp("teachers"))


def test_several_sizes_at_once_share_a_batch(teachers: Path) -> None:
    task = task_of(teachers, stages="32+64@0", batch=8)
    prepared = task.prepare(batch_of(8, 96), 0)
    assert task.passes == 2 and task.reads == 64
    assert [(len(crop), crop.shape[-1]) for crop in prepared.crops] == [(4, 32), (4, 48), (4, 64), (4, 32), (4, 48)]
    task.eval()
    found = list(task.losses(prepared, 0.0))
    assert len(found) == 2
    both = {name: sum(each[name] for each in found) for name in found[0]}
    parts = [value for name, value in both.items() if name != "loss" and "/" not in name]
    torch.testing.assert_close(both["loss"], sum(parts))


def test_a_teacher_that_takes_part_at_one_size_is_told_by_its_mean_there(teachers: Path) -> None:
    task = task_of(teachers, stages="32+64@0", batch=8, teacher={"dino": {"at": [64]}})
    task.eval()
    found = list(task.losses(task.prepare(batch_of(8, 96), 0), 0.0))
    assert "dino.patches" not in found[0] and "dino.patches" in found[1]
    alone = task_of(teachers, size=64, batch=4).eval()
    alone.student = task.student
    odd = batch_of(8, 96)
    rows = torch.arange(1, 8, 2)
    part = type(odd)(images=odd.images[rows], index=odd.index[rows], position=odd.position[rows])
    (expected,) = alone.losses(alone.prepare(part, 0), 0.0)
    torch.testing.assert_close(found[1]["dino.patches"], expected["dino.patches"])
    torch.testing.assert_close(found[1]["loss"], expected["loss"] / 2)  # half of the batch


def test_stages_follow_each_other(teachers: Path) -> None:
    task = task_of(teachers, stages="32@0,64@0.5", size=32, batch=4, steps=4)
    sizes = []
    for step in range(4):
        task.prepare(batch_of(4, 96, start=4 * step), 0)
        sizes.append(task._sizes(step))
    assert sizes == [(32,), (32,), (64,), (64,)] and len(task.phases) == 2


@pytest.mark.parametrize("kind", ["global", "channel", "phi_s"])
def test_standardised_targets_count_alike_whatever_their_units(teachers: Path, kind: str) -> None:
    task = task_of(teachers, standardise=kind, patch_loss="mse", settle=1.0, batch=8, steps=20)
    terms = steps(task, 1)[0]
    for name in ("clip.patches", "dino.patches"):
        assert 0.3 < terms[name] < 1.5  # the error of one who answers with about the mean; enlarged maps vary less
    raw = steps(task_of(teachers, patch_loss="mse", batch=8, steps=20), 1)[0]
    assert raw["dino.patches"] > 1000 * raw["clip.patches"]


def test_a_student_of_standardised_teachers_answers_in_their_own_units(teachers: Path) -> None:
    task = task_of(teachers, standardise="phi_s", patch_loss="mse", settle=0.5, batch=8, steps=40)
    told = steps(task, 40)
    assert told[-1]["dino.patches"] < 0.95 * told[1]["dino.patches"]
    task.eval()
    with torch.no_grad():
        found = task.exported()(IMAGES)
        target = task.teachers["dino"](torch.nn.functional.interpolate(IMAGES, size=48)).patches
    assert float(found.adaptors["dino"].patches.mean()) == pytest.approx(float(target.mean()), rel=0.2)
    assert float(found.adaptors["dino"].patches.std()) > 10.0
    student = task.finished(copy.deepcopy(task.student))
    assert all(adaptor.space is None for adaptor in student.adaptors.values())
    with torch.no_grad():
        again = student(IMAGES)
    for name, answer in found.adaptors.items():
        torch.testing.assert_close(again.adaptors[name].patches, answer.patches, rtol=1e-4, atol=1e-3)


def test_new_statistics_leave_what_a_head_has_learned(teachers: Path) -> None:
    task = task_of(teachers, standardise="phi_s", patch_loss="mse", settle=1.0, batch=8, steps=40)
    steps(task, 5)
    task.eval()
    with torch.no_grad():
        before = task.student(IMAGES).adaptors["dino"].patches
        space = task.student.adaptors["dino"].space
        space.observe(torch.randn(500, 192) * torch.rand(192) * 50)
        task._settle("dino", space)
        after = task.student(IMAGES).adaptors["dino"].patches
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-3)


def test_statistics_are_taken_in_the_first_part_of_each_stage(teachers: Path) -> None:
    task = task_of(teachers, standardise="global", settle=0.25, stages="32@0,64@0.5", size=32, batch=4, steps=16)
    seen = []
    for step in range(16):
        steps_before = task.looks.get("dino", 0)
        batch = task.prepare(batch_of(4, 96, start=4 * step), 0)
        list(task.losses(batch, step / 16))
        seen.append(task.looks["dino"] != steps_before)
    assert seen == [True, True, *[False] * 6, True, True, *[False] * 6]
    memory = task.memory()
    other = task_of(teachers, standardise="global", settle=0.25, stages="32@0,64@0.5", size=32, batch=4, steps=16)
    other.load_state_dict(task.state_dict())
    other.recall(memory)
    assert (other.stage, other.looks, other.settled) == (1, {"clip": 2, "dino": 2}, {"clip", "dino"})


def test_the_last_statistics_of_a_stage_count_too(teachers: Path) -> None:
    """Of seven steps that look, where the last power of two is four; an interruption between does not matter."""
    keys = {"standardise": "global", "settle": 0.35, "batch": 4, "steps": 20}
    task = task_of(teachers, **keys)
    for step in range(8):
        list(task.losses(task.prepare(batch_of(4, 96, start=4 * step), 0), step / 20))
    assert task.looks == {"clip": 7, "dino": 7} and task.due == {"clip", "dino"}
    other = task_of(teachers, **keys)
    other.load_state_dict(task.state_dict())
    other.recall(task.memory())
    for step in range(8, 12):
        list(other.losses(other.prepare(batch_of(4, 96, start=4 * step), 0), step / 20))
        assert not other.due
    space = other.student.adaptors["dino"].space
    again = copy.deepcopy(space)
    again.settle(other.group)
    assert all(torch.equal(found, space.state_dict()[name]) for name, found in again.state_dict().items())


def test_logged_steps_tell_whose_gradients_move_the_trunk(teachers: Path) -> None:
    task = task_of(teachers, stages="32+64@0", batch=8, patch_loss="mse", log_every=5)
    told = steps(task, 5)
    assert [any("/" in name for name in terms) for terms in told] == [True, False, False, False, True]
    shares = {name: value for name, value in told[0].items() if name.startswith("gradient/")}
    assert len(shares) == 4 and sum(shares.values()) == pytest.approx(1.0, rel=1e-4)
    assert (
        shares["gradient/dino.patches"] > 10 * shares["gradient/clip.patches"]
    )  # its units are a hundred times larger
    assert told[0]["spread/dino"] < 0.1 < told[0]["spread/clip"]


def test_a_canvas_gives_the_student_patches_and_no_summary(teachers: Path) -> None:
    task = task_of(teachers, teacher={"dino": {"size": 96, "resize": "mosaic"}}, batch=9)
    assert task.student.adaptors["dino"].summary_head is None
    view = task.shown[32].views["dino"]
    assert (view.side, view.tiles) == (32, 3)
    terms = steps(task, 1, pictures=9)[0]
    assert {name for name in terms if "/" not in name} == {"loss", "clip.summary", "clip.patches", "dino.patches"}


class Pixels(torch.nn.Module):
    """Answers with the pixels of each patch of 8, as student and as teacher."""

    stride = 8

    def forward(self, images: torch.Tensor, layers: Any = (), window: Any = None) -> Features:
        rows = unfold(images, 8, stride=8).transpose(1, 2)
        return Features(rows, (images.shape[2] // 8, images.shape[3] // 8), rows[:, 0])


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_crops_that_lie_apart_are_compared_where_they_overlap(teachers: Path, flip: float) -> None:
    """Of one who answers with the pixels themselves, patches at the same place are the same."""
    keys = {"teachers": f"dino:{teachers}/dino", "shift": 2, "batch": 8, "flip": flip, "crop_scale": (1.0, 1.0)}
    task = task_of(teachers, **keys, patch_loss="mse", teacher={"dino": {"resize": "grid"}})
    task.teachers["dino"].model = task.student.backbone = Pixels()
    task.student.standard = lambda features, names: dict.fromkeys(names, features)
    apart = 0
    for step in range(12):
        asked = task.shown[32].asked(step, 0)
        apart += asked[""] != asked["dino"]
        shown = task.prepare(batch_of(8, 48, start=8 * step), 0)
        views = dict(zip(dict.fromkeys(asked.values()), shown.crops, strict=True))
        with torch.no_grad():
            found = task._compared(task.shown[32], asked, views, shown.position, 0.5)
        assert float(found.terms["dino.patches"]) < 1e-4
    assert apart > 5


def test_pictures_go_without_teachers_but_never_without_the_worst(teachers: Path) -> None:
    task = task_of(teachers, drop_teachers=0.9, batch=8)
    losses = {"clip": {"clip.patches": torch.arange(8.0)}, "dino": {"dino.patches": torch.full((8,), 3.5)}}
    factors = task._factors(losses, torch.arange(8))
    assert (factors["clip"][4:] > 0).all() and (factors["dino"][:4] > 0).all()
    dropped = torch.cat([factors["clip"][:4], factors["dino"][4:]])
    assert (dropped == 0).sum() >= 5
    assert float((factors["clip"] + factors["dino"]).sum()) == pytest.approx(16.0)


@pytest.mark.parametrize(
    "values",
    [
        {"summary_loss": "angle", "balance": "adaloss"},
        {"summary_loss": "l1", "balance": "uncertainty"},
        {"spectral": True, "windows": [2, 0], "registers": 3},
        {"head": "v2", "head_blocks": 1, "match": "smaller"},
        {"teacher": {"dino": {"resize": "grid"}}, "patch_loss": "cosine"},
    ],
    ids=str,
)
def test_every_way_of_learning_learns(teachers: Path, values: dict[str, Any]) -> None:
    task = task_of(teachers, batch=8, steps=60, **values)
    told = steps(task, 40)
    for name in ("clip.summary", "clip.patches", "dino.summary"):
        assert told[-1][name] < 0.95 * told[0][name], name
    student = task.finished(copy.deepcopy(task.exported())).eval()
    task.eval()
    with torch.no_grad():
        expected, found = task.student(IMAGES), student(IMAGES)
    torch.testing.assert_close(found.summary, expected.summary, rtol=1e-4, atol=1e-4)
    assert not any("parametrizations" in name for name in student.state_dict())


def test_windows_matter_where_a_student_has_blocks_for_them(teachers: Path) -> None:
    task = task_of(teachers, windows=[2], batch=8).eval()
    assert task.student.backbone.config.global_blocks < task.student.backbone.config.depth
    seen: list[Any] = []
    forward = task.student.backbone.forward

    def whole(images: torch.Tensor, window: Any = None) -> Features:
        seen.append(window)
        return forward(images, window=0)

    (apart,) = task.losses(task.prepare(batch_of(8, 96), 0), 0.0)
    task.student.backbone.forward = whole
    (together,) = task.losses(task.prepare(batch_of(8, 96), 0), 0.0)
    assert seen == [2] and abs(float(apart["loss"].detach() - together["loss"].detach())) > 1e-6


def test_new_statistics_leave_what_the_average_has_learned(teachers: Path) -> None:
    task = task_of(teachers, standardise="phi_s", patch_loss="mse", settle=1.0, batch=8, steps=40)
    steps(task, 3)
    average = Ema(task.exported(), 0.99)
    task.averages = (average.model,)
    task.eval()
    with torch.no_grad():
        before = average.model(IMAGES).adaptors["dino"].patches
        task.student.adaptors["dino"].space.observe(torch.randn(500, 192) * torch.rand(192) * 50)
        task._settle("dino", task.student.adaptors["dino"].space)
        average.update(1000)
        after = average.model(IMAGES).adaptors["dino"].patches
    torch.testing.assert_close(after, before, rtol=1e-2, atol=1e-2)


def test_statistics_are_of_all_places_of_a_picture(teachers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of patches that tell their own column, however many there are."""
    monkeypatch.setattr(radio_task, "ROWS", 512)
    task = task_of(teachers, teachers=f"dino:{teachers}/dino", standardise="channel", settle=1.0, seed=2**62)
    columns = torch.arange(16.0).repeat(16)[None, :, None].expand(64, 256, 192)
    task._begin_step(0, 0.0)
    task._watch("dino", Features(columns, (16, 16)), 0.0)
    moments = task.student.adaptors["dino"].space.moments
    assert moments.rows == 512 and float(moments.mean[0]) == pytest.approx(7.5, abs=0.7)


def test_a_frozen_trunk_stands_still(teachers: Path) -> None:
    task = task_of(teachers, freeze=0.5, batch=8, steps=8, log_every=2)
    before = copy.deepcopy(task.student.backbone.state_dict())
    told = steps(task, 4)
    assert sum(told[-1][name] for name in told[-1] if name.startswith("gradient/")) == pytest.approx(1.0)
    (losses,) = task.losses(task.prepare(batch_of(8, 96), 0), 0.25)
    losses["loss"].backward()
    assert all(each.grad is None for each in task.student.backbone.parameters())  # nor is any computed
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.student.backbone.state_dict().items())
    free = task_of(teachers, batch=8, steps=8)
    steps(free, 1)
    assert not all(torch.equal(tensor, before[name]) for name, tensor in free.student.backbone.state_dict().items())


class Batches:
    """A loader of the same pictures for ever."""

    def batches(self, start: int, stop: int) -> Any:
        return (batch_of(4, 96, start=4 * step) for step in range(start, stop))

    def names(self, step: int) -> list[str]:
        return []


def test_the_best_is_one_of_the_last_stage(teachers: Path, tmp_path: Path) -> None:
    """Before it a teacher of that stage was not learned at all."""
    keys = {"stages": "32@0,64@0.5", "teacher": {"dino": {"at": [64]}}, "size": 64, "steps": 4, "evaluate_every": 1}
    task = task_of(teachers, **keys, precision="fp32", checkpoint={"metric": "knn"})
    scores = iter((0.9, 0.8, 0.3, 0.2))
    ended = train(task, Batches(), task.config, tmp_path, lambda model: {"knn": next(scores)})
    assert (ended["best"]["step"], ended["best"]["score"]) == (3, 0.3)


def test_teachers_are_compiled_and_not_recomputed(teachers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    task = task_of(teachers, compile=True, recompute=True)
    accelerate(task, task.config)
    asked = task.teachers["clip"].model
    blocks = [*task.student.backbone.blocks, *asked.image.blocks, *asked.text.blocks]
    assert {*map(id, compiled)} == {*map(id, [*blocks, *task.teachers["dino"].model.blocks])}
    assert all("forward" in vars(each) for each in task.student.backbone.blocks)
    assert not any("forward" in vars(each) for each in asked.image.blocks)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_teachers_and_student_compute_what_others_do(teachers: Path) -> None:
    found = []
    for compiled in (False, True):
        task = task_of(teachers, compile=compiled, batch=8, steps=8, device="cpu", precision="fp32")
        accelerate(task, task.config)
        found.append(steps(task, 2)[-1])
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=1e-4), name
    torch._dynamo.reset()


def test_shifts_of_a_head_with_a_finer_grid_are_in_its_cells(teachers: Path) -> None:
    """Of one who answers with the pixels of patches half as wide, the same places are the same."""
    task = task_of(teachers, teachers=f"dino:{teachers}/dino", shift=2, patch_loss="mse", crop_scale=(1.0, 1.0))
    adaptor = task.student.adaptors["dino"]
    adaptor.config = replace(adaptor.config, patch_head=replace(adaptor.config.patch_head, form="v2", upsample=2))
    pictures = torch.rand(1, 3, 48, 48)
    crops = {at: pictures[..., 8 * at[0] : 8 * at[0] + 32, 8 * at[1] : 8 * at[1] + 32] for at in ((2, 0), (0, 1))}
    fine = {at: Features(unfold(crop, 4, stride=4).transpose(1, 2), (8, 8)) for at, crop in crops.items()}
    losses = task._losses_of("dino", fine[2, 0], fine[0, 1], (2, 0), (0, 1))
    assert float(losses["dino.patches"]) == 0.0


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"stages": "96@0,32@0.5", "batch": 8}, r"the first step of a stage has 128 patches of dino, and whitening"),
        ({"stages": "96@0,32+64@0.5", "batch": 8, "accumulate": 4}, None),
        ({"stages": "96@0,64@0.5", "batch": 8, "accumulate": 8}, r"the first batch has 144 patches of dino"),
    ],
)
def test_whitening_has_patches_enough_in_every_stage(teachers: Path, values: Any, told: str | None) -> None:
    keys = {"teachers": f"dino:{teachers}/dino", "teacher": {"dino": {"resize": "grid"}}, "standardise": "zca"}
    if told is None:
        task_of(teachers, **keys, **values)
        return
    with pytest.raises(ValueError, match=told):
        task_of(teachers, **keys, **values)


@pytest.mark.parametrize("head", [{"head": "v1"}, {"head": "v2", "head_blocks": 1}], ids=str)
def test_a_student_with_released_heads_is_written_as_its_makers_would(
    teachers: Path, tmp_path: Path, head: dict[str, Any]
) -> None:
    task = task_of(teachers, model="vit_ti16", **head)
    VisionModel(task.finished(task.student), Preprocess(32), "student").save(tmp_path / "student")
    done = convert(tmp_path / "student", "official", tmp_path / "radio.pth.tar.pth")
    again = synoptic.load(done.out, "cpu", heads=3)
    found, expected = again(IMAGES), synoptic.load(tmp_path / "student", "cpu")(IMAGES)
    assert torch.equal(found.summary, expected.summary)
    assert torch.equal(found.adaptors["dino"].patches, expected.adaptors["dino"].patches)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"resize": "mosaic", "summary_weight": 2.0}, r"summary_weight=2 decides nothing beside .*resize=mosaic"),
        ({"resize": "grid", "size": 64}, r"teacher\.clip\.size=64 decides nothing beside teacher\.clip\.resize=grid"),
    ],
)
def test_what_a_way_of_asking_makes_idle_is_refused(teachers: Path, said: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        task_of(teachers, teacher={"clip": said})


def test_words_that_a_canvas_loses_are_told(teachers: Path, caplog: pytest.LogCaptureFixture) -> None:
    task_of(teachers, teacher={"clip": {"resize": "mosaic"}})
    assert "of several pictures its summary and its words are not learned" in caplog.text


def test_dropping_teachers_is_refused_where_there_is_one(teachers: Path) -> None:
    with pytest.raises(ValueError, match=r"drop_teachers=0\.5: decides nothing, for there is one teacher"):
        task_of(teachers, teachers=f"dino:{teachers}/dino", drop_teachers=0.5)
