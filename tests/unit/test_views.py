"""The verb `figures`: its panels show what they say, its files lie where they are told to, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from drawn_sheets import noted_strips
from PIL import Image

from synoptic.apps import sheets, views
from synoptic.apps.figures import PatchColours, Scale, paint_attention
from synoptic.apps.sheets import Panel, Strip, sheet
from synoptic.apps.views import figures, sheet_names
from synoptic.evaluation.dense import segment
from synoptic.models.adaptors import AdaptorConfig, Student, StudentConfig
from synoptic.models.clip import Clip, ClipConfig
from synoptic.models.text import TextConfig
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViT, vit_config
from synoptic.predict import VisionModel
from synoptic.types import Preprocess

SMALL = {"depth": 2, "width": 24, "heads": 2, "hidden": 48, "image_size": 96}

_HEAT = matplotlib.colormaps["inferno"](np.arange(256), bytes=True)[:, :3].astype(int)
STEP = np.abs(np.diff(_HEAT, axis=0)).max()  # between neighbouring colours of heat


def vision(name: str = "small", **changes: object) -> VisionModel:
    torch.manual_seed(0)
    return VisionModel(ViT(vit_config("vit_mini8", **SMALL, **changes)), Preprocess(96), name)


def fill(folder: Path, names: Sequence[str]) -> Path:
    """A folder of pictures, no two alike."""
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((100, 96)).save(folder / name)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return fill(tmp_path / "pictures", ["a.png", "b.png", "deep/c.png"])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Strip]]:
    return noted_strips(monkeypatch, views)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def labels(strips: Sequence[Strip]) -> list[list[str]]:
    return [[panel.label for panel in strip.panels] for strip in strips]


def test_every_picture_has_a_sheet_and_all_have_one_together(pictures: Path, tmp_path: Path, drawn):
    out = tmp_path / "new" / "figures"
    assert figures(str(pictures), vision(), out) == 0
    assert files(out) == ["contact_sheet.png", "figures.json", "sheets/a.png", "sheets/b.png", "sheets/deep/c.png"]
    for name in ("a", "b", "deep/c"):
        assert labels(drawn[name]) == [["picture", "patches", "attention"], ["head 1", "head 2"]]
        with Image.open(out / "sheets" / f"{name}.png") as image:
            image.load()
            assert image.width > 3 * views.SIDE
    assert labels(drawn["small"]) == [["picture", "patches", "attention"]] * 3
    assert [strip.name for strip in drawn["small"]] == ["a", "b", "deep/c"]


def test_panels_show_the_picture_its_patches_and_the_attention(pictures: Path, tmp_path: Path, drawn):
    model, size = vision(registers=2), (224, 224)
    figures(str(pictures), model, tmp_path / "out", layer=0)
    paths = [pictures / name for name in ("a.png", "b.png", "deep/c.png")]
    features = model.features(paths)
    colours = PatchColours.of(features.patches.numpy())
    for place, name in enumerate(["a", "b", "deep/c"]):
        (picture, patches, attention), heads = (strip.panels for strip in drawn[name])
        with Image.open(paths[place]) as image:
            np.testing.assert_array_equal(picture.picture, np.asarray(image)[:, 2:98])  # the centred square
        expected = colours.paint(features.patches[[place]].numpy(), features.grid, size)[0]
        assert np.abs(patches.picture.astype(int) - expected).max() <= 1
        maps = model.attention(torch.from_numpy(picture.picture / 255).float().permute(2, 0, 1)[None], layer=0)[0]
        expected = paint_attention(maps.numpy(), size)  # of one picture, so rounded apart from one among three
        for panel, head in zip(heads, expected, strict=True):
            assert np.abs(panel.picture.astype(int) - head).max() <= STEP
        mean = paint_attention(maps.mean(0, keepdim=True).numpy(), size)[0]
        assert np.abs(attention.picture.astype(int) - mean).max() <= STEP


def test_heat_is_dark_where_nothing_is_looked_at_and_light_where_most_is():
    maps = np.zeros((2, 4, 4))
    maps[0, 1, 2] = 1.0
    maps[1] = 1 / 16
    heat = paint_attention(maps, (4, 4)).astype(int).sum(-1)
    assert np.unravel_index(heat[0].argmax(), (4, 4)) == (1, 2)
    assert heat[0, 3, 0] < 20
    assert (heat[1] == heat[0].max()).all(), "evenly spread attention is evenly light, not stretched to a pattern"


def test_a_student_shows_every_space(pictures: Path, tmp_path: Path, drawn):
    torch.manual_seed(0)
    adaptors = {name: AdaptorConfig(patches=8, summary=8, hidden=8) for name in ("clip", "other")}
    backbone = vit_config("vit_mini8", **SMALL, summary_tokens=2)
    student = VisionModel(Student(StudentConfig(backbone=backbone, adaptors=adaptors)), Preprocess(96), "student")
    figures(str(pictures), student, tmp_path / "out")
    assert labels(drawn["a"])[0] == ["picture", "patches", "as CLIP", "as other", "attention"]
    own, clip, other = (panel.picture for panel in drawn["a"][0].panels[1:4])
    assert (own != clip).any()
    assert (clip != other).any()


def speaking() -> VisionModel:
    """An untrained CLIP of four patches across."""
    torch.manual_seed(0)
    words = Tokenizer.learn(["a red cone", "a blue cube"], vocabulary=300, context=16)
    text = TextConfig(vocabulary=300, context=16, end=words.end, width=16, depth=1, heads=1, embedding=24)
    image = vit_config("vit_mini8", **SMALL)
    return VisionModel(Clip(ClipConfig(image=image, text=text), words), Preprocess(96), "clip")


def test_words_have_a_panel_each_on_one_scale(pictures: Path, tmp_path: Path, drawn):
    model, texts = speaking(), ["a red cone", "a blue cube"]
    figures(str(pictures), model, tmp_path / "out", texts=texts)
    worded = ["“a red cone”", "“a blue cube”", "likeliest"]
    assert labels(drawn["a"])[1] == worded
    assert labels(drawn["clip"])[0] == ["picture", "patches", "attention", *worded]
    seen = [strip.panels for strip in drawn["clip"]]
    images = torch.stack([torch.from_numpy(panels[0].picture).permute(2, 0, 1) / 255 for panels in seen])
    maps = model.similarity(images, texts).numpy()
    assert maps.shape == (3, 2, 12, 12)
    scale = Scale(*np.quantile(maps, (0.01, 0.99)))
    for panels, pair in zip(seen, maps, strict=True):
        for panel, painted in zip(panels[-3:-1], scale.paint(pair, (views.SIDE, views.SIDE)), strict=True):
            assert np.abs(panel.picture.astype(int) - painted).max() <= 2
        likeliest = segment(torch.from_numpy(pair), (views.SIDE, views.SIDE))
        colours = np.array([panel.swatch for panel in panels[-3:-1]], float)
        hue = panels[-1].picture.astype(float) - panels[-1].picture.mean(-1, keepdims=True)
        nearest = (hue[..., None, :] * (colours - colours.mean(1, keepdims=True))).sum(-1).argmax(-1)
        assert (nearest == likeliest).mean() > 0.99, "each pixel has the colour of the word that it is likest to"
    facts = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert (facts["text"], facts["adaptor"]) == (texts, None)
    figures(str(pictures), model, tmp_path / "out", texts=texts)
    with pytest.raises(ValueError, match=r"holds figures with text=.*overwrite=true"):
        figures(str(pictures), model, tmp_path / "out", texts=texts[:1])
    figures(str(pictures), model, tmp_path / "out", texts=texts[:1], overwrite=True)
    assert labels(drawn["a"])[1] == worded[:1], "of a single word nothing is likelier"


def test_words_that_cannot_be_shown_are_refused_before_anything_is_drawn(pictures: Path, tmp_path: Path):
    for texts, told in (((" ",), "one is empty"), (("a", "b", "a"), "'a' is there twice; leave one")):
        with pytest.raises(ValueError, match=told):
            figures(str(pictures), speaking(), tmp_path / "out", texts=texts)
    with pytest.raises(ValueError, match="small knows no words: take a CLIP"):
        figures(str(pictures), vision(), tmp_path / "out", texts=["a dog"])
    assert not (tmp_path / "out").exists()


def test_one_scale_has_one_colour_for_one_cosine():
    maps = np.array([[[0.1, 0.3]], [[0.3, 0.2]]])
    scale = Scale(0.1, 0.3)
    left, right = scale.paint(maps, (1, 2))
    np.testing.assert_array_equal(left[0, 1], right[0, 0])
    bar = scale.bar(101, 8)
    assert bar.shape == (8, 101, 3)
    np.testing.assert_array_equal((left[0, 0], left[0, 1], right[0, 1]), (bar[0, 0], bar[0, 100], bar[0, 50]))
    level = np.full((1, 3, 3), 0.25)
    assert not np.ptp(Scale.of(level).paint(level, (6, 6)), axis=(1, 2)).any(), "nothing varies"


def test_a_model_without_a_summary_shows_its_patches_alone(pictures: Path, tmp_path: Path, drawn):
    figures(str(pictures), vision(summary_tokens=0), tmp_path / "out")
    assert labels(drawn["a"]) == [["picture", "patches"]]


def test_many_heads_take_several_lines(pictures: Path, tmp_path: Path, drawn):
    torch.manual_seed(0)
    config = vit_config("vit_mini8", depth=1, width=32, heads=8, hidden=32, image_size=96)
    figures(str(pictures), VisionModel(ViT(config), Preprocess(96), "many"), tmp_path / "out")
    assert [len(strip.panels) for strip in drawn["a"]] == [3, 6, 2]


@pytest.mark.parametrize(("asked", "seen"), [(None, 96), (48, 48), (144, 144)])
def test_pictures_are_seen_at_the_size_that_is_asked_for(pictures: Path, tmp_path: Path, drawn, asked, seen):
    figures(str(pictures), vision(), tmp_path / "out", size=asked)
    assert drawn["a"][0].panels[0].picture.shape == (seen, seen, 3)


def test_networks_that_see_few_patches_see_pictures_enlarged(pictures: Path, tmp_path: Path, drawn):
    model = vision()
    figures(str(pictures), VisionModel(model.model, Preprocess(40), "near"), tmp_path / "out")
    assert drawn["a"][0].panels[0].picture.shape == (120, 120, 3)  # 15 patches across in place of 5


def test_of_many_pictures_some_find_the_colours_and_all_have_sheets(
    tmp_path: Path, drawn, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(views, "SHOWN", 3)
    names = [f"{number}.png" for number in range(7)]
    folder = fill(tmp_path / "many", names)
    told: list[tuple[int, int]] = []
    figures(str(folder), vision(), tmp_path / "out", progress=lambda *state: told.append(state))
    assert [strip.name for strip in drawn["small"]] == ["0", "2", "4"]
    assert told[-1] == (7, 7)
    assert files(tmp_path / "out" / "sheets") == names
    features = vision().features([folder / name for name in names])
    colours = PatchColours.of(features.patches[[0, 2, 4]].numpy())
    expected = colours.paint(features.patches[[6]].numpy(), features.grid, (224, 224))[0]
    assert np.abs(drawn["6"][0].panels[1].picture.astype(int) - expected).max() <= 1


def test_the_same_command_draws_what_is_missing(pictures: Path, tmp_path: Path):
    out = tmp_path / "out"
    figures(str(pictures), vision(), out)
    whole = {name: (out / name).read_bytes() for name in files(out)}
    (out / "sheets" / "b.png").unlink()
    (out / "sheets" / "a.png").write_bytes(b"kept")
    figures(str(pictures), vision(), out)
    again = {name: (out / name).read_bytes() for name in files(out)}
    assert again == whole | {"sheets/a.png": b"kept"}
    before = {name: (out / name).stat().st_mtime_ns for name in files(out)}
    figures(str(pictures), vision(), out)
    assert {name: (out / name).stat().st_mtime_ns for name in files(out)} == before


def test_other_figures_are_thrown_away_only_when_that_is_asked(pictures: Path, tmp_path: Path):
    out = tmp_path / "out"
    figures(str(pictures), vision(), out)
    (out / "notes.txt").write_text("mine")
    (pictures / "b.png").unlink()
    for changed, told in (
        ({}, r"pictures=\w+, not"),
        ({"layer": 0}, r"pictures=\w+, not|layer=-1, not 0"),
    ):
        with pytest.raises(ValueError, match=rf"out={out}: holds figures with ({told}).*overwrite=true throws them"):
            figures(str(pictures), vision(), out, **changed)
    assert (out / "sheets" / "b.png").is_file()
    figures(str(pictures), vision(), out, overwrite=True)
    assert files(out) == ["contact_sheet.png", "figures.json", "notes.txt", "sheets/a.png", "sheets/deep/c.png"]


def test_a_mistake_throws_nothing_away(pictures: Path, tmp_path: Path):
    out = tmp_path / "out"
    figures(str(pictures), vision(), out)
    before = {name: (out / name).read_bytes() for name in files(out)}
    for changed, told in (({"layer": 2}, "no layer 2"), ({"size": 100}, "not tiled by patches of 8")):
        with pytest.raises(ValueError, match=told):
            figures(str(pictures), vision(), out, overwrite=True, **changed)
    assert {name: (out / name).read_bytes() for name in files(out)} == before
    with pytest.raises(ValueError, match="holds files that are no figures"):
        figures(str(pictures), vision(), pictures, overwrite=True)
    with pytest.raises(ValueError, match="is a file"):
        figures(str(pictures), vision(), pictures / "a.png")
    with pytest.raises(ValueError, match="no layer 2"):
        figures(str(pictures), vision(), tmp_path / "never", layer=2)
    assert not (tmp_path / "never").exists()


def test_broken_pictures_are_named_and_passed_over(pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (pictures / "b.png").write_bytes(b"broken")
    assert figures(str(pictures), vision(), tmp_path / "out") == 1
    assert [record.message for record in caplog.records] == [f"left out {pictures / 'b.png'}: not a picture"]
    assert files(tmp_path / "out" / "sheets") == ["a.png", "deep/c.png"]
    shutil.rmtree(pictures / "deep")
    (pictures / "a.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="none of its 2 pictures can be read"):
        figures(str(pictures), vision(), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_sheets_are_called_after_their_pictures():
    paths = [Path("/x/y/a.jpg"), Path("/x/y/a.png"), Path("/x/y/B.JPG"), Path("/x/z/b.png"), Path("/x/z/c.tar.jpg")]
    assert sheet_names(paths) == ["y/a.jpg.png", "y/a.png.png", "y/B.png", "z/b.png", "z/c.tar.png"]
    assert sheet_names([Path("one.jpg")]) == ["one.png"]


def test_what_was_drawn_is_written_down(pictures: Path, tmp_path: Path):
    figures(str(pictures), vision("name"), tmp_path / "out", layer=0, size=48)
    record = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert record | {"weights": "", "pictures": ""} == {
        "images": str(pictures),
        "pictures": "",
        "model": "name",
        "weights": "",
        "layer": 0,
        "size": 48,
    }


def panel(label: str, value: int) -> Panel:
    return Panel(label, np.full((8, 8, 3), value, np.uint8))


def test_panels_lie_on_a_grid_under_their_labels():
    strips = [Strip([panel("a", 10), panel("b", 90)], "one"), Strip([panel("a", 30), panel("b", 120)], "two")] * 2
    image = np.asarray(sheet("title", "note", strips, side=40, gap=4, across=2))
    values = [10, 90, 30, 120]
    corners = {value: np.argwhere((image == value).all(-1)) for value in values}
    for value, found in corners.items():
        assert len(found) == 2 * 40 * 40, f"both panels of {value} are whole"
    lefts = [int(corners[value][:, 1].min()) for value in values]
    assert np.diff(lefts).tolist() == [44, 52, 44]
    assert lefts[0] == image.shape[1] - 1 - corners[120][:, 1].max() == sheets.MARGIN
    assert len({int(corners[value][:, 0].min()) for value in values}) == 1
    labelled = (image[: corners[10][:, 0].min()] < 200).any(-1).any(1)
    assert labelled.sum() > 20, "title, note and labels"


def test_long_names_keep_their_ends_within_the_sheet():
    image = sheet("a/long/" * 40 + "name", "note", [Strip([panel("picture", 0)])], side=200, gap=4)
    assert image.width == 200 + 2 * sheets.MARGIN
    right = np.asarray(image)[:, 200 + sheets.MARGIN :]
    assert (right == 255).all()


def test_pictures_of_many_bands_are_shown_by_their_first_three(tmp_path: Path, drawn):
    folder = tmp_path / "bands"
    folder.mkdir()
    ramp = np.linspace(0, 5000, 96 * 96, dtype=np.float32).reshape(96, 96)
    np.save(folder / "a.npy", np.stack([ramp, ramp[::-1], ramp, ramp, ramp], -1))
    model = vision(channels=5, mean=(0.0,) * 5, std=(1.0,) * 5)
    figures(str(folder), model, tmp_path / "out")
    picture = drawn["a"][0].panels[0].picture.astype(int)
    assert picture.shape == (96, 96, 3)
    assert picture[0, 0].tolist() == [0, 255, 0]
    assert picture[-1, -1].tolist() == [255, 0, 255]
