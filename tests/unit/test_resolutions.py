"""Students at rising sizes: sheets, curves and maps show what was computed, and reports find the scores of a run."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from drawn_sheets import noted_strips
from PIL import Image

import synoptic
from synoptic.apps import resolutions
from synoptic.apps.figures import Line, PatchColours, Plot, curves, paint_named, save_plots
from synoptic.apps.report_parts import Run
from synoptic.apps.report_resolution import named_sections, read_curves, resolution_sections
from synoptic.apps.resolutions import Rising, agreement_plots, at_sizes, curves_of, ticks_of
from synoptic.apps.sheets import Strip
from synoptic.apps.views import figures
from synoptic.data import scenes
from synoptic.data.sources import open_source
from synoptic.evaluation.agreement import Agreement
from synoptic.models.adaptors import AdaptorConfig, Student, StudentConfig
from synoptic.models.text import TextConfig
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViT, ViTConfig
from synoptic.predict import VisionModel
from synoptic.types import Preprocess

SIZES = (8, 16, 32)


def vit(patch: int = 4, width: int = 12) -> ViTConfig:
    return ViTConfig(patch_size=patch, width=width, depth=1, heads=3, image_size=16)


def teacher(patch: int = 4, width: int = 12, seed: int = 1) -> VisionModel:
    torch.manual_seed(seed)
    return VisionModel(ViT(vit(patch, width)), Preprocess(16), "teacher")


def student(name: str = "student") -> VisionModel:
    torch.manual_seed(0)
    words = Tokenizer.learn(["a red cone", "a blue cube"], vocabulary=300, context=16)
    text = TextConfig(vocabulary=300, context=16, end=words.end, width=8, depth=1, heads=2, embedding=12)
    adaptors = {
        "clip": AdaptorConfig(patches=12, summary=12, hidden=8, text=text),
        "dino": AdaptorConfig(patches=6, summary=None, hidden=8),
    }
    network = Student(StudentConfig(backbone=vit(), adaptors=adaptors), {"clip": words})
    return VisionModel(network, Preprocess(16), name)


TEACHERS = {"clip": teacher(), "dino": teacher(patch=8, width=6)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resolutions")
    return scenes.write(folder / "multi", scenes.SceneConfig(count=20, size=32, objects=(2, 3)), workers=1)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Strip]]:
    return noted_strips(monkeypatch, resolutions)


def names(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()} - {"sheets", "contact_sheet.png", "figures.json"}


def test_a_student_is_shown_at_rising_sizes_beside_its_teachers(data: Path, tmp_path: Path, drawn):
    out = tmp_path / "out"
    figures(str(data / "test" / "images"), student(), out, teachers=TEACHERS, sizes=[32, 8, 16])
    assert names(out) == {"resolutions.png", "agreement.png", "artefacts.png"}
    for name in names(out):
        with Image.open(out / name) as image:
            image.load()
            assert image.width > 400
    strips = drawn["student"]
    assert len(strips) == resolutions.PICTURES * 5
    assert [panel.label for panel in strips[0].panels] == ["picture", "", "8 px", "16 px", "32 px"]
    artefacts = drawn["student: what is said of places"]
    assert [strip.name for strip in artefacts] == ["its own space", "as CLIP", "as DINO"]
    assert all(panel.label.startswith(f"{size} px: ") for panel, size in zip(artefacts[0].panels, SIZES, strict=True))
    record = json.loads((out / "figures.json").read_text())
    assert record["sizes"] == list(SIZES) and set(record["teachers"]) == set(TEACHERS)


def test_the_same_command_draws_what_is_missing(data: Path, tmp_path: Path):
    out, keys = tmp_path / "out", {"teachers": {"clip": TEACHERS["clip"]}, "sizes": [16]}
    figures(str(data / "test" / "images"), student(), out, **keys)
    (out / "agreement.png").unlink()
    (out / "artefacts.png").write_bytes(b"kept")
    figures(str(data / "test" / "images"), student(), out, **keys)
    assert (out / "agreement.png").is_file() and (out / "artefacts.png").read_bytes() == b"kept"
    with pytest.raises(ValueError, match=r"holds figures with sizes=\[16\], not \[32\]; overwrite=true"):
        figures(str(data / "test" / "images"), student(), out, **keys | {"sizes": [32]})
    figures(str(data / "test" / "images"), student(), out, overwrite=True)
    assert names(out) == set(), "what was drawn before is thrown away"


def test_a_model_without_teachers_has_no_curves(data: Path, tmp_path: Path):
    figures(str(data / "test" / "images"), teacher(), tmp_path / "out", sizes=SIZES)
    assert names(tmp_path / "out") == {"resolutions.png", "artefacts.png"}


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"teachers": {"sam": TEACHERS["clip"]}}, "teachers=sam: the student has no such adaptor"),
        ({"teachers": "clip"}, "is not of the form name:MODEL"),
        (
            {"teachers": {"clip": TEACHERS["dino"]}},
            "teachers=clip: answers with 6 channels, the student's adaptor clip",
        ),
        ({"sizes": [18]}, "sizes=18: patches of 4 pixels do not tile it"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(data: Path, tmp_path: Path, keys: dict, told: str):
    with pytest.raises(ValueError, match=told):
        figures(str(data / "test" / "images"), student(), tmp_path / "out", **keys)
    assert not (tmp_path / "out").exists()


def test_a_teacher_and_the_student_in_its_space_share_their_colours():
    pictures = [np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)]
    found = at_sizes(pictures, Rising(student(), TEACHERS, SIZES), 24)
    assert list(found) == ["CLIP teacher", "student as CLIP", "DINO teacher", "student as DINO", "its own space"]
    assert all(list(line) == list(SIZES) for line in found.values())
    seen = TEACHERS["clip"].features(pictures)
    colours = PatchColours.of(seen.patches.numpy())
    np.testing.assert_array_equal(
        found["CLIP teacher"][16][0], colours.paint(seen.patches.numpy(), seen.grid, (24, 24))[0]
    )
    answer = student().features(pictures).adaptors["clip"]
    expected = colours.paint(answer.patches.numpy(), answer.grid, (24, 24))[0].astype(int)
    assert np.abs(found["student as CLIP"][16][0] - expected).max() <= 1


def test_a_teacher_of_one_size_is_shown_at_that_size(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(VisionModel, "any_size", property(lambda self: self.name != "teacher"))
    pictures = [np.zeros((32, 32, 3), np.uint8)]
    found = at_sizes(pictures, Rising(student(), TEACHERS, (8, 32)), 8)
    assert list(found["CLIP teacher"]) == [8] and list(found["student as CLIP"]) == [8, 32]


# Curves


def test_curves_are_read_off_scores(data: Path):
    scores = dict(Agreement(open_source(str(data), "test"), TEACHERS, SIZES).run(student()))
    found = curves_of(
        {"model": "x", "part": "test", **scores, "artefacts_unbiased@8": 0.1, "artefacts_unbiased_clip@8": 0.2}
    )
    assert {kind: set(lines) for kind, lines in found.items()} == {
        "cosine": {"clip", "dino"},
        "error": {"clip", "dino"},
        "summary": {"clip"},
        "artefacts": {"", "clip"},
    }
    assert found["cosine"]["dino"] == [(size, scores[f"agreement_dino_cosine@{size}"]) for size in SIZES]


def test_several_models_lie_over_each_other_in_colours_of_their_own():
    one = {"cosine": {"clip": [(8, 0.5), (16, 0.9)], "dino": [(8, 0.4)]}, "error": {"clip": [(8, 1.2), (16, 0.1)]}}
    other = {"cosine": {"clip": [(8, 0.6), (32, 0.7)]}}
    plots = agreement_plots({"one": one, "other": other})
    assert [plot.title for plot in plots] == [resolutions.TITLES["cosine"], resolutions.TITLES["error"]]
    cosine, error = plots
    assert [line.label for line in cosine.lines] == ["one: CLIP", "one: DINO", "other: CLIP"]
    assert len({line.tone for line in cosine.lines}) == 3
    assert [line.dashed for line in cosine.lines] == [False, False, True]
    assert error.lines[0].tone == cosine.lines[0].tone
    assert [mark.value for mark in error.marks] == [1.0] and not cosine.marks
    assert ticks_of(plots) == [8, 16, 32]
    assert [line.label for line in agreement_plots({"one": one})[0].lines] == ["CLIP", "DINO"]


def test_sizes_stand_on_a_logarithmic_axis_and_do_not_overlap(tmp_path: Path):
    ticks = [32, 40, 64, 88, 96, 128, 192, 256]
    line = Line("a", ticks, [0.1 * place for place in range(8)], 0)
    root = ElementTree.fromstring(curves([line], "size", ticks=ticks))
    shown = [
        text for element in root.iter() if element.tag.endswith("text") and (text := element.text or "").isdecimal()
    ]
    assert [each for each in shown if int(each) in ticks] == ["32", "40", "64", "96", "128", "192", "256"]
    save_plots(tmp_path / "new" / "a.png", "title", [Plot("one", [line]), Plot("two", [line])], ticks)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.format == "PNG" and image.width > 900


def test_classes_are_painted_over_a_grey_picture():
    picture = np.full((2, 2, 3), 200, np.uint8)
    painted = paint_named(picture, np.array([[0, 1], [1, 255]]), np.array([[255, 0, 0], [0, 0, 255]])).astype(int)
    assert painted[0, 0, 0] > painted[0, 0, 2] + 80 and painted[0, 1, 2] > painted[0, 1, 0] + 80
    assert np.ptp(painted[1, 1]) == 0


# Reports


def run(folder: Path) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    return Run(folder.name, folder, {}, {}, [], {})


def test_scores_in_a_run_folder_become_curves(tmp_path: Path):
    it = run(tmp_path / "it")
    (it.folder / "config.json").write_text('{"agreement_clip_cosine@8": 0.1}')
    (it.folder / "broken.json").write_text("{")
    (it.folder / "list.json").write_text("[1]")
    assert read_curves(it) == {}
    (it.folder / "old.json").write_text('{"agreement_clip_cosine@8": 0.1, "agreement_dino_cosine@8": 0.3}')
    (it.folder / "scores").mkdir()
    (it.folder / "scores" / "new.json").write_text('{"agreement_clip_cosine@16": 0.7, "agreement_clip_cosine@8": 0.2}')
    assert read_curves(it) == {"cosine": {"clip": [(8, 0.2), (16, 0.7)], "dino": [(8, 0.3)]}}
    (section,) = resolution_sections([it], {}, {}, None)
    (block,) = section.blocks
    assert len(block.curves) == 1
    assert resolution_sections([run(tmp_path / "none")], {}, {}, None) == []


def test_a_students_patches_stand_in_the_report_at_rising_sizes(data: Path, tmp_path: Path):
    source = open_source(str(data), "test")
    (section,) = resolution_sections([], {"it": student(), "plain": teacher()}, {"it": TEACHERS}, source)
    (gallery,) = section.blocks
    assert gallery.columns == ["it", "8 px", "16 px", "32 px", "64 px"]
    assert len(gallery.rows) == 2 * 5 and all(len(row) == 5 for row in gallery.rows)
    assert gallery.rows[0][0].caption == "CLIP teacher"


def test_what_words_make_of_patches_stands_in_the_report(data: Path):
    (section,) = named_sections("it", student(), open_source(str(data), "test"))
    (gallery,) = section.blocks
    assert gallery.columns == ["picture", "truth", "by words", "beside the background"]
    assert [meaning for _, meaning in gallery.legend][:2] == ["background", "sphere"]
    assert "4 pictures" in section.text[0] and "mean IoU" in section.text[0]
    assert named_sections("it", teacher(), open_source(str(data), "test")) == []
    bare = open_source(str(data / "test" / "images"), "all")
    assert bare.masks is None and named_sections("it", student(), bare) == []


def test_a_run_with_scores_beside_it_tells_them_on_its_page(data: Path, tmp_path: Path):
    threads = torch.get_num_threads()
    brief = {"model": "vit_nano8", "size": 16, "steps": 2, "batch": 4, "threads": 1, "log_every": 1, "device": "cpu"}
    clip = synoptic.train("dino", data=str(data), out=str(tmp_path / "dino"), preset="short", **brief)
    made = synoptic.train("radio", data=str(data), out=str(tmp_path / "made"), teachers=f"dino:{clip}", **brief)
    found = synoptic.evaluate(
        made, "agreement,artefacts", str(data), made / "scores" / "sizes.json", teachers=f"dino:{clip}", sizes=(16, 32)
    )
    torch.set_num_threads(threads)
    assert {"agreement_dino_drop", "artefacts@32"} < set(found)
    page = (Path(tmp_path) / "page.html").resolve()
    from synoptic.apps.report import report

    text = report([made], page).read_text()
    assert "At other resolutions" in text and resolutions.TITLES["summary"].partition("'")[0] in text
