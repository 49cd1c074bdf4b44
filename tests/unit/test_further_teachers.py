"""Students that get further teachers, and students that teach."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_distillations import IMAGES, save_teachers, steps, task_of

import synoptic
from synoptic.predict import VisionModel
from synoptic.types import Preprocess


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teachers(tmp_path_factory.mktemp("teachers"))


@pytest.fixture(scope="module")
def finished(teachers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of the CLIP alone."""
    folder = tmp_path_factory.mktemp("student")
    task = task_of(teachers, teachers=f"clip:{teachers}/clip", batch=8)
    steps(task, 5)
    VisionModel(task.finished(task.student), Preprocess(32), "student").save(folder / "student")
    return folder / "student"


def test_a_token_that_nobody_teaches_is_no_part_of_the_summary(teachers: Path, finished: Path) -> None:
    """As RADIO leaves out that of SAM: the second of three, and of a further teacher the one that was added."""
    spec = f"clip:{teachers}/clip,silent:{teachers}/dino,dino:{teachers}/dino"
    student = task_of(teachers, teachers=spec, teacher={"silent": {"summary_weight": 0}}).student
    assert student.config.summary == (0, 2) and student.summary_width == 2 * student.width
    silent = task_of(teachers, teacher={name: {"summary_weight": 0} for name in ("clip", "dino")}).student
    assert silent.config.summary is None  # there is nothing better
    for weight, summary in ((0, (0,)), (1, None)):
        values = {"teachers": f"+dino:{teachers}/dino", "init": str(finished), "batch": 8}
        more = task_of(teachers, **values, teacher={"dino": {"summary_weight": weight}}).student
        assert more.config.summary == summary and more.config.backbone.summary_tokens == 2


def test_a_student_teaches_in_the_space_of_an_adaptor(teachers: Path, finished: Path) -> None:
    task = task_of(teachers, teachers=f"clip:{finished}", teacher={"clip": {"features": "clip"}})
    asked = synoptic.load(finished, "cpu")(IMAGES).adaptors["clip"]
    found = task.teachers["clip"](IMAGES)
    assert torch.equal(found.patches, asked.patches) and torch.equal(found.summary, asked.summary)
    assert task.student.adaptors["clip"].text is not None  # and its words come along
    own = task_of(teachers, teachers=f"clip:{finished}")
    assert torch.equal(own.teachers["clip"](IMAGES).patches, synoptic.load(finished, "cpu")(IMAGES).patches)
    assert own.student.adaptors["clip"].text is None


@pytest.mark.parametrize("kind", ["none", "phi_s"])
def test_a_further_teacher_leaves_what_the_student_knows(teachers: Path, finished: Path, kind: str) -> None:
    values = {"teachers": f"+dino:{teachers}/dino", "init": str(finished), "standardise": kind, "batch": 8, "steps": 40}
    task = task_of(teachers, **values)
    assert list(task.teachers) == list(task.student.adaptors) == ["clip", "dino"]
    before = synoptic.load(finished, "cpu")
    task.eval()
    with torch.no_grad():
        found, expected = task.student(IMAGES).adaptors["clip"], before(IMAGES).adaptors["clip"]
    alike = torch.nn.functional.cosine_similarity(found.patches, expected.patches, dim=-1)
    assert float(alike.min()) > 0.99  # but for one token more, which the others look at
    told = steps(task.train(), 1)[0]
    assert told["clip.summary"] < 0.02 < told["dino.summary"]  # its own answers, by other positions and one more token
    texts = VisionModel(task.exported(), Preprocess(32), "student").encode_text(["a red cone"])
    assert texts == pytest.approx(before.encode_text(["a red cone"]), abs=1e-6)
    steps(task, 20)
    task.finished(task.student)
    VisionModel(task.student, Preprocess(32), "both").save(finished.parent / f"both_{kind}")
    assert synoptic.load(finished.parent / f"both_{kind}").adaptors == ("clip", "dino")


def test_what_is_said_of_a_former_teacher_beyond_its_weight_is_refused(teachers: Path, finished: Path) -> None:
    values = {"teachers": f"+dino:{teachers}/dino", "init": str(finished), "batch": 8}
    with pytest.raises(ValueError, match=r"teacher\.clip\.size decides nothing: the student itself stands for clip"):
        task_of(teachers, **values, teacher={"clip": {"size": 64}})
    with pytest.raises(ValueError, match=r"teacher\.clap: is no teacher \(did you mean clip\?\)"):
        task_of(teachers, **values, teacher={"clap": {"size": 64}})
    task = task_of(teachers, **values, size=64, teacher={"clip": {"summary_weight": 0.5}})
    assert task.shown[64].views["clip"].side == 64  # the student's own size


def test_a_former_student_is_asked_once_for_all_its_spaces(teachers: Path, finished: Path) -> None:
    task = task_of(teachers, teachers=f"+dino:{teachers}/dino", init=str(finished), batch=8)
    former = task.teachers["clip"].model
    images = torch.rand(2, 3, 32, 32)
    assert former(images, adaptors=("clip",)) is former(images, adaptors=("clip",))
    assert former(images.clone()) is not former(images)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"teachers": "+clip:{0}/dino", "init": "{1}"}, "has an adaptor of that name; take another one"),
        ({"teachers": "dino:{0}/dino", "init": "{1}"}, "beside init= only new teachers are named"),
        ({"teachers": "+dino:{0}/dino", "init": "{0}/dino"}, "a ViT is no student of teachers"),
    ],
)
def test_a_student_that_cannot_go_on_is_told(
    teachers: Path, finished: Path, values: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        task_of(teachers, **{key: value.format(teachers, finished) for key, value in values.items()})
