"""Reports: the numbers are right, the pictures mean what they say, and the page needs nothing beside itself."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest

import synoptic
from synoptic.apps import report_page
from synoptic.apps.figures import Line, Mark, PatchColours, class_colours, curves, data_uri, paint_classes, save_grid
from synoptic.apps.report import report
from synoptic.apps.report_page import (
    Bar,
    Card,
    Cards,
    Cell,
    Chart,
    Charts,
    Code,
    Details,
    Facts,
    Gallery,
    Notice,
    Page,
    Picture,
    Section,
    Table,
)
from synoptic.apps.report_parts import duration, percent
from synoptic.data import scenes
from synoptic.evaluation.intervals import interval
from synoptic.weights.checksums import write_sums

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Reads a page; knows whether its tags are closed, and what it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read_page(html: str) -> Reader:
    """A page that is well formed and needs nothing beside itself."""
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open
    assert not {"script", "link", "iframe", "object"} & set(reader.tags)
    assert all(place.startswith(("data:image/", "#")) for place in reader.fetched)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    return reader


# Numbers


@given(st.integers(1, 5000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_the_interval_is_wilsons(trials: tuple[int, int]) -> None:
    right, count = trials
    low, high = interval(right / count, count)
    assert low >= 0 and high <= 1
    assert low - 1e-12 <= right / count <= high + 1e-12
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_numbers_are_told_in_words() -> None:
    assert (percent(0.12345), percent(1.0, 0)) == ("12.3 %", "100 %")
    assert [duration(seconds) for seconds in (0.4, 59.6, 61, 3600, 7325)] == [
        "0 s",
        "1 min 0 s",
        "1 min 1 s",
        "1 h 0 min",
        "2 h 2 min",
    ]


# Patches as colours


def two_kinds(rng: np.random.Generator, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """(2, 16, D) patches of which the left half is of one kind and the right half of another, and which are left."""
    left = np.tile(np.arange(4) < 2, 4)
    centres = rng.normal(size=(2, width)) * 5
    patches = centres[np.where(left, 0, 1)] + 0.1 * rng.normal(size=(2, 16, width))
    return patches, left


def test_patches_of_one_kind_have_one_colour_and_those_of_another_have_another() -> None:
    patches, left = two_kinds(np.random.default_rng(0))
    painted = PatchColours.of(patches).paint(patches, (4, 4), (4, 4)).reshape(2, 16, 3)[..., 0].astype(float)
    assert np.abs(painted[:, left].mean() - painted[:, ~left].mean()) > 150
    assert painted[:, left].std() < 20 and painted[:, ~left].std() < 20


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 9))
def test_colours_depend_on_the_features_alone(seed: int, width: int, patches: int) -> None:
    """Whatever the number of channels and patches, also fewer than three; turned features give the same colours, up to
    a colour being its opposite."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(2, patches, width)) * rng.uniform(0.5, 2, size=width)
    painted = PatchColours.of(features).paint(features, (1, patches), (8, 8))
    assert painted.shape == (2, 8, 8, 3) and painted.dtype == np.uint8
    assert np.array_equal(painted, PatchColours.of(features).paint(features, (1, patches), (8, 8)))
    turn = np.linalg.qr(rng.normal(size=(width, width)))[0]
    turned = PatchColours.of(features @ turn).paint(features @ turn, (1, patches), (8, 8)).astype(int)
    for channel in range(min(3, width, 2 * patches - 1)):
        same = np.abs(turned[..., channel] - painted[..., channel]).max()
        opposite = np.abs(255 - turned[..., channel] - painted[..., channel]).max()
        assert min(same, opposite) <= 1


def test_what_does_not_vary_has_half_the_colour() -> None:
    same = np.ones((2, 4, 5))
    assert (PatchColours.of(same).paint(same, (2, 2), (3, 3)) == 128).all()


def test_colours_of_one_space_serve_another_answer_in_it() -> None:
    patches, _ = two_kinds(np.random.default_rng(1))
    colours = PatchColours.of(patches)
    whole = colours.paint(patches, (4, 4), (32, 32))
    assert np.array_equal(colours.paint(patches[1:], (4, 4), (32, 32)), whole[1:])


@pytest.mark.parametrize("count", [1, 2, 11, 40])
def test_classes_have_colours_of_their_own(count: int) -> None:
    colours = class_colours(count)
    assert colours.shape == (count, 3) and colours.min() >= 0 and colours.max() <= 255
    assert len({tuple(colour) for colour in colours}) == count
    painted = paint_classes(np.array([[0, count - 1, 255]]), count)
    assert painted.dtype == np.uint8 and tuple(painted[0, 2]) == (128, 128, 128)
    assert np.abs(painted[0, 1] - colours[count - 1]).max() < 1


# Pictures and plots


@pytest.mark.parametrize("size", [(8, 8), (300, 100), (64, 500)])
def test_a_picture_becomes_text_and_back(size: tuple[int, int]) -> None:
    kind, _, text = data_uri(np.full((*size, 3), 77, np.uint8), longest=128).partition(";base64,")
    assert kind == "data:image/jpeg"
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        assert max(image.size) <= 128
        assert image.size[0] / image.size[1] == pytest.approx(size[1] / size[0], rel=0.05)
        assert np.abs(np.asarray(image).astype(int) - 77).max() <= 2


def plot() -> str:
    steps = list(range(0, 100, 10))
    lines = [Line("a <b> & c", steps, [1 / (step + 1) for step in steps], 0), Line("other", steps, steps, 1, True)]
    return curves(lines, "step", percent=True)


def test_a_plot_takes_the_colours_of_its_page() -> None:
    svg = plot()
    root = ElementTree.fromstring(svg)
    assert "viewBox" in root.attrib and "width" not in root.attrib
    assert {"a <b> & c", "other", "step"} <= {element.text for element in root.iter() if element.text}
    assert "var(--tone-0)" in svg and "var(--tone-1)" in svg and "currentColor" in svg
    assert not re.findall(r"#[0-9a-f]{6}", svg)
    assert svg == plot()


def test_plots_on_one_page_do_not_share_names() -> None:
    """Clip paths and markers are named after what they are; elements must not be."""
    assert not re.findall(r'id="[a-zA-Z._]+_\d+"', plot())


def labels(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


@pytest.mark.parametrize("count", [1, 2, 300])
@pytest.mark.parametrize(("axis", "value"), [("loss", 18.1405), ("rank", 18.1405), ("rank", 0.0), ("share", 0.002)])
def test_an_axis_says_what_is_drawn(count: int, value: float, axis: str) -> None:
    """Values that hardly differ are level, not noise beside an offset; no two labels are the same; steps are whole."""
    line = Line("", list(range(1, count + 1)), [value * (1 + 1e-4 * (place % 3)) for place in range(count)], 0)
    found = labels(curves([line], "step", percent=axis == "share", from_zero=axis == "rank"))
    steps, values = found[: found.index("step")], found[found.index("step") + 1 :]
    assert all(re.fullmatch(r"\d+", step) for step in steps) and len(set(steps)) == len(steps) >= 1
    assert all(re.fullmatch(r"\d+(\.\d+)?%?", each) for each in values)
    assert len(set(values)) == len(values) >= 2
    assert axis == "loss" or float(values[0].rstrip("%")) == 0


def test_a_mark_is_a_labelled_line_that_the_plot_reaches() -> None:
    found = labels(curves([Line("", [1, 2], [0.5, 0.6], 0)], "step", marks=[Mark(4.16, "guessing")]))
    assert "guessing" in found and "4" in found


def test_a_grid_is_a_picture(tmp_path: Path) -> None:
    pictures = [np.zeros((8, 8, 3), np.uint8)] * 3
    save_grid(tmp_path / "new" / "grid.png", {"picture": pictures, "patches": pictures})
    with Image.open(tmp_path / "new" / "grid.png") as image:
        assert image.format == "PNG" and image.width > 200


# The page


HOSTILE = "<script>alert(1)</script> & \"quoted\" 'single' {{ 1 + 1 }}"


def everything(text: str) -> Page:
    """A page with a block of every kind, all of whose texts are `text`."""
    picture = Picture(data_uri(np.zeros((4, 4, 3), np.uint8)), text, text, right=False)
    bar = Bar(text, 0.5, 1, text, (0.4, 0.6), strong=True)
    blocks = [
        Charts([Chart(text, text, [bar, Bar(text, None, 2, text)], (0.1, text))]),
        Table([text, text], [[text, Cell(text, text, strong=True)]], text),
        Gallery([text], [[picture]], [0], [("red", text)], text),
        Cards([Card(picture, text, [bar])], text),
        Facts([(text, text)]),
        Details(text, [Code(text), Details(text, [])]),
    ]
    return Page(text, text, [text], [Section(text, [text], blocks)], foot=text, notices=[Notice(text, text, text)])


@pytest.mark.parametrize("part", [Page, Notice, Section, Chart, Card, Picture, Bar])
def test_what_a_page_is_made_of_is_shown(part: type) -> None:
    template = Path(report_page.__file__).with_name("page") / "report.html.j2"
    shown = template.read_text(encoding="utf-8")
    assert all(f"{part.__name__.lower()}.{each.name}" in shown for each in fields(part))


def test_texts_stay_texts() -> None:
    reader = read_page(report_page.render(everything(HOSTILE)))
    shown = [text for text in reader.texts if "alert" in text]
    assert len(shown) > 20
    assert all(HOSTILE in text for text in shown)


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sub" / "report.html"
    report_page.write(everything("first"), path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        report_page.write(everything("second"), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


# Runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return scenes.write(folder / "scenes", scenes.SceneConfig(60, 32, objects=(1, 1)), workers=1)


@pytest.fixture(scope="module")
def runs(data: Path) -> Iterator[dict[str, Path]]:
    """A CLIP and a student of it, trained for a moment, on pictures with class folders and captions."""
    threads = torch.get_num_threads()
    brief = {"model": "vit_mini16", "size": 32, "steps": 3, "batch": 8, "threads": 1, "log_every": 1}
    text = {"text_width": 64, "text_depth": 1, "text_heads": 1, "embedding": 32}
    clip = synoptic.train("clip", data=str(data), out=str(data.parent / "clip"), **brief, **text)
    student = synoptic.train("radio", data=str(data), out=str(data.parent / "it"), teachers=f"clip:{clip}", **brief)
    yield {"clip": clip, "student": student}
    torch.set_num_threads(threads)


def test_a_run_has_its_whole_story_on_one_page(runs: dict[str, Path]) -> None:
    path = report([runs["student"]])
    assert path == runs["student"] / "report.html"
    reader = read_page(path.read_text())
    text = " ".join(reader.texts)
    for told in ("While training", "Patches as colours", "Nearest neighbours", "Asked in words", "vit_mini16", "torch"):
        assert told in text
    assert "CLIP teacher" in text and "student as CLIP" in text  # its teacher is still there
    kept = json.loads((runs["student"] / "weights" / "config.json").read_text())["trained"]
    assert percent(kept["scores"]["knn"]) in text
    assert "svg" in reader.tags and reader.tags.count("img") > 20


def test_several_runs_stand_side_by_side(runs: dict[str, Path], tmp_path: Path) -> None:
    path = report(list(runs.values()), tmp_path / "both.html")
    assert path == tmp_path / "both.html"
    text = " ".join(read_page(path.read_text()).texts)
    assert "2 runs side by side" in text and "Asked in words: clip" in text and "Asked in words: it" in text


def test_runs_of_one_name_are_told_apart(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["clip"], tmp_path / "clip")
    text = " ".join(read_page(report([runs["clip"], tmp_path / "clip"], tmp_path / "x.html").read_text()).texts)
    assert str(tmp_path / "clip") in text and str(runs["clip"]) in text


def test_learning_without_labels_shows_its_health(runs: dict[str, Path], tmp_path: Path) -> None:
    """Entropy, prototypes and rank are no shares of right answers; guessing has an entropy of its own."""
    run = shutil.copytree(runs["clip"], tmp_path / "run")
    health = {"target_entropy": 3.2, "prototypes_used": 0.4, "agreement": 0.1}
    with (run / "metrics.jsonl").open("a") as file:
        for step in (1, 2):
            file.write(json.dumps({"step": step, "loss": 1.0, **health}) + "\n")
            file.write(json.dumps({"step": step, "evaluation": {"knn": 0.5, "rankme": 41.0}}) + "\n")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"prototypes": 64}))
    text = " ".join(read_page(report([run]).read_text()).texts)
    assert "guessing: ln 64 = 4.16" in text
    for title in ("Entropy of the targets, nats", "Prototypes in use", "Effective dimensions, validation pictures"):
        assert title in text
    assert "4100" not in text, "a rank is no percentage"


def test_what_went_wrong_stands_in_a_box_above_all_else(runs: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs["clip"], tmp_path / "run")
    stopped = {"step": 3, "stopped": "knn fell; try a lower optim.lr"}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2, "diagnosis": "uniform output: all are alike; try something"}) + "\n")
        file.write(json.dumps(stopped) + "\n")
    reader = read_page(report([run]).read_text())
    assert reader.tags.count("aside") == 2 and reader.tags.index("aside") < reader.tags.index("main")
    text = " ".join(reader.texts)
    assert "run: uniform output, at step 2 of 3" in text and "all are alike" in text and " something" in text
    assert "run: stopped at step 3" in text and "knn fell" in text and " a lower optim.lr" in text
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "loss": 1.0}) + "\n")
    assert read_page(report([run]).read_text()).tags.count("aside") == 1, "it went on since"


def test_methods_have_the_names_of_their_papers(runs: dict[str, Path], tmp_path: Path) -> None:
    assert "AM-RADIO, vit_mini16" in report([runs["student"]], tmp_path / "a.html").read_text()
    run = shutil.copytree(runs["clip"], tmp_path / "run")
    config = json.loads((run / "weights" / "config.json").read_text())
    config["trained"]["method"] = "dinov2"
    (run / "weights" / "config.json").write_text(json.dumps(config))
    write_sums(run / "weights")
    assert "DINOv2, vit_mini16" in report([run]).read_text()


def test_the_scores_are_those_of_the_model_that_was_kept(runs: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs["clip"], tmp_path / "run")
    path = run / "weights" / "config.json"
    config = json.loads(path.read_text())
    config["trained"] |= {"steps": 77, "scores": {"knn": 0.9876}}
    path.write_text(json.dumps(config))
    write_sums(path.parent)
    texts = read_page(report([run]).read_text()).texts
    assert "77" in texts and percent(0.9876) in " ".join(texts)


def test_a_run_that_began_with_given_weights_does_not_name_another_architecture(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    run = shutil.copytree(runs["clip"], tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"init": "runs/given"}))
    assert "begun with runs/given" in " ".join(read_page(report([run]).read_text()).texts)


def test_an_unfinished_run_shows_what_there_is(runs: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs["clip"], tmp_path / "run")
    shutil.rmtree(run / "weights")
    text = " ".join(read_page(report([run]).read_text()).texts)
    assert "not finished" in text and "While training" in text and "Patches" not in text


def test_a_run_outlives_its_pictures_and_its_teacher(runs: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs["student"], tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"teachers": f"clip:{tmp_path}/gone"}))
    text = " ".join(read_page(report([run]).read_text()).texts)
    assert "student as CLIP" in text and "CLIP teacher" not in text
    (run / "config.json").write_text(json.dumps(config | {"data": f"{tmp_path}/gone"}))
    text = " ".join(read_page(report([run]).read_text()).texts)
    assert "None can be shown" in text and "gone does not exist" in text


def test_pictures_without_classes_are_asked_for_their_captions(runs: dict[str, Path], tmp_path: Path) -> None:
    multi = scenes.write(tmp_path / "multi", scenes.SceneConfig(40, 32, objects=(1, 3)), workers=1)
    run = shutil.copytree(runs["clip"], tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"data": str(multi)}))
    text = " ".join(read_page(report([run]).read_text()).texts)
    assert "captions of validation pictures to choose from" in text


def test_a_report_is_the_same_each_time(runs: dict[str, Path], tmp_path: Path) -> None:
    pages = [report([runs["student"]], tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_what_is_no_run_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no run folder"):
        report([tmp_path])
    with pytest.raises(ValueError, match="name a run folder"):
        report([])
    (tmp_path / "demo.json").write_text("{}")
    with pytest.raises(ValueError, match="is not as the demo writes it"):
        report([tmp_path])
    with pytest.raises(ValueError, match="name it alone"):
        report([runs["clip"], tmp_path])


def test_a_loss_that_is_not_finite_breaks_no_page(runs: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs["clip"], tmp_path / "run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[-2 if "evaluation" in lines[-1] else -1]["loss"] = None
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert math.isfinite(len(read_page(report([run]).read_text()).texts))
