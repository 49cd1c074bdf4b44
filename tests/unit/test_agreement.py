"""Agreement of a student with its teachers: what is known beforehand is found, mode switching is a number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from synoptic.data.sources import Source, open_source
from synoptic.evaluation.agreement import Agreement, drop
from synoptic.evaluation.sizes import rising_sizes
from synoptic.judging import evaluate
from synoptic.models.adaptors import AdaptorConfig, Student, StudentConfig
from synoptic.models.sam import Sam, SamConfig
from synoptic.models.vit import ViT, ViTConfig
from synoptic.predict import VisionModel
from synoptic.types import Features, Preprocess

PATCH, OWN = 4, Preprocess(32)
See = Callable[[Tensor], Tensor]  # (B, 3, h, w) mean colours of patches -> (B, D, h, w)


class Teacher:
    """A model whose patches are a function of the colours under them, and its summary their mean."""

    def __init__(self, see: See, preprocess: Preprocess = OWN, summary: bool = True):
        self.see, self.preprocess, self.summary = see, preprocess, summary
        self.shown: list[Tensor] = []

    def encode_image(self, images: Tensor) -> Features:
        self.shown.append(images)
        seen = self.see(F.avg_pool2d(images, PATCH))
        patches = seen.flatten(2).transpose(1, 2)
        return Features(patches, tuple(seen.shape[2:]), patches.mean(1) if self.summary else None)


class Imitator:
    """A student that answers in each space by a function of its own."""

    stride, step, any_size = PATCH, PATCH, True

    def __init__(self, **spaces: See):
        self.spaces = {name: Teacher(see) for name, see in spaces.items()}
        self.preprocess = Preprocess(32)
        self.adaptors = tuple(spaces)
        self.shown: list[Tensor] = []

    def encode_image(self, images: Tensor) -> Features:
        self.shown.append(images)
        own = Teacher(colour).encode_image(images)
        answers = {name: space.encode_image(images) for name, space in self.spaces.items()}
        return Features(own.patches, own.grid, own.summary, adaptors=answers)


def colour(pooled: Tensor) -> Tensor:
    return torch.cat([pooled, 10 * pooled - 3], 1)


def noise(pooled: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(int(pooled.sum() * 1e3) & 0xFFFF)
    return torch.randn(len(pooled), 6, *pooled.shape[2:], generator=generator)


def write(root: Path, count: int, size: tuple[int, int] = (32, 32), cell: int = 4) -> Source:
    """Pictures of random plain squares, which are patches of one colour at every size that doubles theirs."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    for number in range(count):
        cells = rng.integers(0, 256, (size[1] // cell, size[0] // cell, 3), dtype=np.uint8)
        Image.fromarray(cells.repeat(cell, 0).repeat(cell, 1)).save(root / f"{number:02}.png")
    return open_source(str(root), "all")


@pytest.fixture
def pictures(tmp_path: Path) -> Source:
    return write(tmp_path / "pictures", 12)


def test_a_student_that_is_its_teacher_agrees_with_it(pictures: Source):
    scores = dict(Agreement(pictures, {"a": Teacher(colour)}, [32]).run(Imitator(a=colour)))
    assert list(scores) == [f"agreement_a_{kind}@32" for kind in ("cosine", "error", "summary")]
    assert scores["agreement_a_cosine@32"] == pytest.approx(1, abs=1e-6)
    assert scores["agreement_a_error@32"] == pytest.approx(0, abs=1e-9)
    assert scores["agreement_a_summary@32"] == pytest.approx(1, abs=1e-6)


def test_answering_the_mean_has_an_error_of_one_whatever_the_scales_of_the_channels(pictures: Source):
    scales = torch.tensor([1.0, 1e3, 1e-3])[:, None, None]
    offset = torch.tensor([0.0, 2e4, 1.0])[:, None, None]
    teacher = Teacher(lambda pooled: pooled * scales + offset)
    patches = torch.cat([teacher.encode_image(images).patches for images in shown(pictures)])
    mean = patches.flatten(0, 1).double().mean(0).float()

    def answer(shift: float) -> See:
        spread = patches.flatten(0, 1).double().std(0, unbiased=False).float()
        level = (mean + shift * spread)[:, None, None]
        return lambda pooled: level.expand(3, *pooled.shape[2:]).expand(len(pooled), -1, -1, -1)

    for shift, error in ((0.0, 1.0), (2.0, 5.0)):  # a constant offset adds its square, in deviations
        scores = dict(Agreement(pictures, {"a": teacher}, [32]).run(Imitator(a=answer(shift))))
        assert scores["agreement_a_error@32"] == pytest.approx(error, rel=1e-4)


def shown(source: Source) -> list[Tensor]:
    return [torch.from_numpy(source.read(i)).permute(2, 0, 1)[None] / 255 for i in range(len(source))]


def test_noise_agrees_by_chance_alone(pictures: Source):
    scores = dict(Agreement(pictures, {"a": Teacher(lambda pooled: noise(pooled + 1))}, [32]).run(Imitator(a=noise)))
    assert abs(scores["agreement_a_cosine@32"]) < 0.05
    assert scores["agreement_a_error@32"] == pytest.approx(2, rel=0.1), "its own variance, and the teacher's"


def test_where_a_student_changes_its_mode_is_where_it_drops(pictures: Source):
    """Two teachers, one of which is lost above 48 pixels: its curve falls there, and nowhere else."""

    def switching(pooled: Tensor) -> Tensor:
        return colour(pooled) if pooled.shape[-1] <= 48 // PATCH else noise(pooled)

    student = Imitator(a=colour, b=switching)
    scores = dict(Agreement(pictures, {"a": Teacher(colour), "b": Teacher(colour)}, [64, 32, 128, 48]).run(student))
    cosines = {name: [scores[f"agreement_{name}_cosine@{size}"] for size in (32, 48, 64, 128)] for name in "ab"}
    assert np.diff(cosines["b"])[1] == -scores["agreement_b_drop"]
    assert scores["agreement_b_drop"] > 0.8
    assert scores["agreement_a_drop"] < 0.1
    assert cosines["b"][:2] == cosines["a"][:2]
    assert list(scores).index("agreement_a_drop") < list(scores).index("agreement_b_cosine@32"), "teacher by teacher"


@pytest.mark.parametrize(("curve", "fall"), [([0.5, 0.4, 0.9, 0.6], 0.3), ([0.1, 0.2], 0.0), ([1.0, -1.0], 2.0)])
def test_the_drop_is_the_largest_fall_between_neighbours(curve: list[float], fall: float):
    assert drop(curve) == pytest.approx(fall)


def test_patches_are_compared_on_the_larger_grid(tmp_path: Path):
    """A teacher of half as many patches: bilinear in between, by hand."""
    source = write(tmp_path / "pictures", 3)
    coarse = Preprocess(16, interpolation="bilinear")
    teacher = Teacher(colour, coarse)
    student = Imitator(a=colour)
    score = dict(Agreement(source, {"a": teacher}, [32]).run(student))["agreement_a_cosine@32"]
    cosines = []
    for small, large in zip(teacher.shown, student.shown, strict=True):
        theirs = F.interpolate(colour(F.avg_pool2d(small, PATCH)), scale_factor=2, mode="bilinear")
        cosines.append(F.cosine_similarity(theirs, colour(F.avg_pool2d(large, PATCH)), dim=1))
    assert score == pytest.approx(float(torch.cat(cosines).mean()), abs=1e-6)


def test_student_and_teacher_are_shown_one_region_as_the_teacher_sees_it(tmp_path: Path):
    source = write(tmp_path / "pictures", 4, size=(64, 32))
    ways = {
        "squash": Preprocess(16, "squash"),
        "crop": Preprocess(24, share=0.75),
        "pad": Preprocess(32, "pad", fill=(0.5, 0.5, 0.5)),
    }
    student = Imitator(**dict.fromkeys(ways, colour))
    teachers = {name: Teacher(colour, way) for name, way in ways.items()}
    dict(Agreement(source, teachers, [32]).run(student))
    whole = F.interpolate(torch.cat(shown(source)), (32, 32), mode="bilinear", antialias=True)
    assert len(student.shown) == 3, "a pass for each region"
    squashed, cropped, padded = student.shown
    assert float((squashed - whole).abs().mean()) < 0.1
    assert squashed.shape[-1] == cropped.shape[-1] == padded.shape[-1] == 32
    centre = torch.cat(shown(source))[..., 16:48]
    torch.testing.assert_close(padded, centre)  # one that pads is shown the largest centred square
    assert [teacher.shown[0].shape[-1] for teacher in teachers.values()] == [16, 24, 32]
    torch.testing.assert_close(teachers["pad"].shown[0], centre)


def test_teachers_that_see_alike_share_the_students_answer(pictures: Source):
    student = Imitator(a=colour, b=colour)
    dict(Agreement(pictures, {"a": Teacher(colour), "b": Teacher(colour, Preprocess(16))}, [16, 32]).run(student))
    assert sorted(images.shape[-1] for images in student.shown) == [16, 32]


def test_summaries_are_compared_where_both_have_one(pictures: Source):
    teachers = {"a": Teacher(colour), "b": Teacher(colour, summary=False)}
    scores = dict(Agreement(pictures, teachers, [32]).run(Imitator(a=colour, b=colour)))
    assert "agreement_a_summary@32" in scores and "agreement_b_summary@32" not in scores


def test_scores_do_not_depend_on_batches(pictures: Source, monkeypatch: pytest.MonkeyPatch):
    evaluator = Agreement(pictures, {"a": Teacher(colour, Preprocess(16))}, [16, 32])
    before = dict(evaluator.run(Imitator(a=colour)))
    monkeypatch.setattr("synoptic.evaluation.features.BATCH", 5)
    assert dict(evaluator.run(Imitator(a=colour))) == pytest.approx(before, rel=1e-6)


# Real models


def vit(patch: int = 4, size: int = 16, width: int = 12, tokens: int = 1) -> ViTConfig:
    return ViTConfig(patch_size=patch, width=width, depth=1, heads=3, image_size=size, summary_tokens=tokens)


def model(seed: int = 0, **shape: int) -> VisionModel:
    torch.manual_seed(seed)
    return VisionModel(ViT(vit(**shape)), Preprocess(shape.get("size", 16)), "teacher")


def student(**patches: int) -> VisionModel:
    torch.manual_seed(0)
    adaptors = {name: AdaptorConfig(patches=width, summary=None, hidden=8) for name, width in patches.items()}
    return VisionModel(Student(StudentConfig(backbone=vit(), adaptors=adaptors)), Preprocess(16), "student")


@pytest.fixture
def folder(pictures: Source) -> str:
    return str(pictures.root)


def test_a_student_is_judged_at_rising_sizes(folder: str):
    teachers = {"clip": model(width=12), "dino": model(patch=8, size=32, width=6)}
    scores = evaluate(student(clip=12, dino=6), "agreement", folder, teachers=teachers)
    sizes = [8, 12, 16, 20, 24, 32, 48, 64]
    names = [f"agreement_{name}_{kind}@{size}" for name in teachers for size in sizes for kind in ("cosine", "error")]
    assert set(scores) == {*names, "agreement_clip_drop", "agreement_dino_drop"}
    asked = evaluate(student(clip=12, dino=6), "agreement", folder, teachers=teachers, sizes=[32, 16])
    assert {name: scores[name] for name in asked if "@" in name} == pytest.approx(
        {name: score for name, score in asked.items() if "@" in name}, abs=1e-5
    )


def test_a_sam_may_have_taught_before_its_neck(folder: str):
    torch.manual_seed(0)
    config = SamConfig(
        patch_size=4, width=12, depth=2, heads=3, image_size=16, window=2, embedding=5, global_blocks=(1,)
    )
    teacher = VisionModel(Sam(config), Preprocess(16, "pad"), "sam")
    for width in (5, 12):
        scores = evaluate(student(sam=width), "agreement", folder, teachers={"sam": teacher}, sizes=[16])
        assert set(scores) == {"agreement_sam_cosine@16", "agreement_sam_error@16"}
    with pytest.raises(ValueError, match="teachers=sam: answers with 5 channels, the student's adaptor sam with 7"):
        evaluate(student(sam=7), "agreement", folder, teachers={"sam": teacher}, sizes=[16])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"teachers": None},
            "on=agreement: compares with teachers, and there are none; give them as teachers=clip:MODEL",
        ),
        ({"teachers": "dino:vit_mini16"}, "teachers=dino: the student has no such adaptor; its adaptors are clip"),
        ({"teachers": "vit_mini16"}, "'vit_mini16' is not of the form name:MODEL"),
        ({"teachers": {"clip": "nowhere"}}, "there is no model 'nowhere'"),
        ({"model": model()}, "teachers=: the model has no adaptors to compare with teachers; take a student"),
        (
            {"sizes": [16, 18]},
            "sizes=18: patches of 4 pixels do not tile it; the nearest sizes that work are 16 and 20",
        ),
        ({"sizes": []}, "sizes=: there are none; give sides in pixels"),
        ({"on": "knn"}, "teachers= decides nothing without on=agreement; leave it out"),
        ({"adaptor": "clip"}, "adaptor= decides nothing for on=agreement, which looks at those of teachers="),
        ({"on": "knn", "teachers": None, "sizes": [16]}, "sizes= decides nothing without on=agreement or on=artefacts"),
    ],
)
def test_mistakes_are_told_in_a_line_before_a_picture_is_read(
    folder: str, monkeypatch: pytest.MonkeyPatch, changes: dict, told: str
):
    monkeypatch.setattr(Source, "read", lambda *_, **__: pytest.fail("a picture was read"))
    given = {"model": student(clip=12), "on": "agreement", "data": folder, "teachers": {"clip": model()}, **changes}
    with pytest.raises(ValueError) as error:
        evaluate(**given)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_teacher_of_other_bands_or_without_an_opinion_is_refused(pictures: Source):
    with pytest.raises(ValueError, match=r"teachers=a: reads other bands \(4\) than the student \(8-bit RGB\)"):
        Agreement(pictures, {"a": Teacher(colour, Preprocess(32, bands=4))}).run(Imitator(a=colour))
    with pytest.raises(ValueError, match="teachers=a: answers the same to every patch"):
        dict(Agreement(pictures, {"a": Teacher(torch.ones_like)}, [32]).run(Imitator(a=lambda pooled: pooled)))
    with pytest.raises(ValueError, match=r"answer to .* is not finite"):
        dict(
            Agreement(pictures, {"a": Teacher(lambda pooled: pooled / 0)}, [32]).run(Imitator(a=lambda pooled: pooled))
        )


# Sizes


@pytest.mark.parametrize(
    ("own", "stride", "sizes"),
    [
        (224, 14, (112, 154, 224, 294, 336, 448, 672, 896)),
        (432, 16, (224, 288, 432, 576, 640, 864)),
        (32, 8, (16, 24, 32, 40, 48, 64, 96, 128)),
        (16, 16, (32, 48, 64)),
        (1536, 16, (768, 1024, 1536)),
    ],
)
def test_sizes_lie_around_the_models_own(own: int, stride: int, sizes: tuple[int, ...]):
    model = Imitator()
    model.stride = model.step = stride
    model.preprocess = Preprocess(own)
    assert set(rising_sizes(model)) == {*sizes, own}
    assert rising_sizes(model, [4 * stride, stride, stride]) == (stride, 4 * stride)


def test_a_model_of_one_size_is_asked_at_that_size():
    model = Imitator()
    model.any_size = False
    assert rising_sizes(model) == rising_sizes(model, [32]) == (32,)
    with pytest.raises(ValueError, match="sizes=64: the model reads pictures of 32 pixels alone"):
        rising_sizes(model, [64])
