"""The verb `segment`, as it is typed: lines, a drawing, and the masks themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import synoptic
from synoptic.apps import cli
from synoptic.apps.cutouts import draw, outline
from synoptic.models.sam import Sam, SamConfig
from synoptic.models.sam_decoder import SamDecoderConfig
from synoptic.types import Preprocess, Segments
from synoptic.weights.folder import save_folder

LINE = re.compile(r"mask (\d+): score (-?\d\.\d{3}), ([\d,]+) pixels, (\d+\.\d)% of the picture")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture, a SAM, and a SAM without a decoder."""
    folder = tmp_path_factory.mktemp("workshop")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    config: dict[str, Any] = {"patch_size": 4, "width": 12, "depth": 1, "heads": 2, "hidden": 20, "image_size": 24}
    config |= {"window": 4, "global_blocks": (), "embedding": 16}
    decoder = SamDecoderConfig(heads=2, hidden=12, mask_channels=4, iou_hidden=6)
    for name, part in (("sam", decoder), ("encoder", None)):
        torch.manual_seed(3)
        model = Sam(SamConfig(**config, decoder=part))
        with torch.no_grad():
            for parameter in model.parameters():
                nn.init.normal_(parameter, std=0.5)
        save_folder(folder / name, model, Preprocess(24, "pad", interpolation="bilinear", fill=model.config.mean))
    return folder


@pytest.fixture
def type_in(workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Types words in the workshop; returns what was printed after checking the exit code."""
    monkeypatch.chdir(workshop)

    def typed(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        assert cli.main(["segment", *words]) == code
        out, err = capsys.readouterr()
        assert err.count("\n") == (1 if code else 0)
        return err if code else out

    return typed


def test_a_line_a_mask_and_what_is_written(type_in: Any, workshop: Path) -> None:
    boxes = "boxes=1,2,30,20; 5,5,60,39.5"
    told = LINE.findall(type_in("a.png", "model=sam", boxes, "out=new/drawn.png", "masks=new/masks.npz"))
    found = synoptic.load(workshop / "sam", "cpu").segment(workshop / "a.png", boxes=[(1, 2, 30, 20), (5, 5, 60, 39.5)])
    assert [int(number) for number, *_ in told] == [1, 2]
    assert [float(score) for _, score, _, _ in told] == pytest.approx(found.scores.tolist(), abs=6e-4)
    areas = [int(pixels.replace(",", "")) for _, _, pixels, _ in told]
    assert areas == found.masks.sum((1, 2)).tolist()
    assert [float(share) for *_, share in told] == pytest.approx([area / 25.6 for area in areas], abs=0.06)
    with np.load(workshop / "new" / "masks.npz") as file:
        assert np.array_equal(file["masks"], found.masks) and np.array_equal(file["scores"], found.scores)
    drawn = np.asarray(Image.open(workshop / "new" / "drawn.png"))
    assert drawn.shape == (40, 64, 3) and (drawn[2, 1:30] == 255).all(), "the first box in white"


def test_points_are_on_and_off_one_object(type_in: Any, workshop: Path) -> None:
    model = synoptic.load(workshop / "sam", "cpu")
    told = LINE.findall(type_in("a.png", "model=sam", "points=10,12;30.5,8", "labels=1,0", "masks=mask.png"))
    found = model.segment(workshop / "a.png", points=[(10, 12), (30.5, 8)], labels=[1, 0])
    assert len(told) == 1 and float(told[0][1]) == pytest.approx(float(found.scores[0]), abs=6e-4)
    mask = Image.open(workshop / "mask.png")
    assert mask.size == (64, 40) and np.array_equal(np.asarray(mask), found.masks[0])


def test_every_alternative_has_a_file_of_its_own(type_in: Any, workshop: Path) -> None:
    told = LINE.findall(type_in("a.png", "model=sam", "points=10,12", "alternatives=true", "masks=all.png"))
    scores = [float(score) for _, score, _, _ in told]
    assert len(told) == 3 and scores == sorted(scores, reverse=True)
    areas = [int(np.asarray(Image.open(workshop / f"all-{number}.png")).sum()) for number in (1, 2, 3)]
    assert areas == [int(pixels.replace(",", "")) for _, _, pixels, _ in told]
    assert not (workshop / "all.png").exists()


def test_nothing_is_written_that_was_not_asked_for(type_in: Any, workshop: Path) -> None:
    before = sorted(workshop.rglob("*"))
    assert len(LINE.findall(type_in("a.png", "model=sam", "points=10,12"))) == 1
    assert sorted(workshop.rglob("*")) == before


MISTAKES = {
    "no prompt": ([], "nothing says what to segment: give points="),
    "a point outside": (["points=64,3"], "the point 64,3 lies outside of the picture, 64 pixels wide and 40 high"),
    "a box outside": (["boxes=1,1,65,3"], "the box 1,1,65,3 should be left, top, right, bottom"),
    "few labels": (["points=1,2;3,4", "labels=1"], "labels of 1 points do not fit points, of which there are 2"),
    "other labels": (["points=1,2", "labels=3"], "labels are 1 for a point on the object"),
    "labels of words": (["points=1,2", "labels=in"], "segment: labels=in should be"),
    "one number": (["points=5"], 'segment: points=5 should be 2 numbers each, as in points="120,80;120,80"'),
    "words": (["points=a,b"], "segment: points=a,b should be 2 numbers each"),
    "two numbers of four": (["boxes=1,2;3,4"], "segment: boxes=1,2;3,4 should be 4 numbers each"),
    "a point and more boxes": (["points=1,2", "boxes=0,0,5,5;1,1,6,6"], "2 boxes are 2 objects, and points are given"),
    "another drawing": (["points=1,2", "out=a.jpg"], "out=a.jpg: give a name that ends in .png"),
    "other masks": (["points=1,2", "masks=a.txt"], "masks=a.txt: give a name that ends in .npz or .png"),
    "an unknown key": (["point=1,2"], "unknown key point (did you mean points"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_told_in_one_line(type_in: Any, case: str) -> None:
    words, told = MISTAKES[case]
    assert told in type_in("a.png", "model=sam", *words, code=2)


def test_other_models_and_pictures_are_refused(type_in: Any) -> None:
    assert "vit_mini16 cannot segment: take a SAM" in type_in("a.png", "model=vit_mini16", "points=1,2", code=2)
    told = type_in("a.png", "model=encoder", "points=1,2", code=2)
    assert "encoder is the image encoder of a SAM alone, and cannot segment" in told
    assert "b.png: no such picture" in type_in("b.png", "model=sam", "points=1,2", code=2)
    assert "sam: no such picture; give the file of one" in type_in("sam", "model=sam", "points=1,2", code=2)
    assert "there is no model 'samm'" in type_in("a.png", "model=samm", "points=1,2", code=2)
    assert "load.window=4: is for a ViT or a student, and this is neither" in type_in(
        "a.png", "model=sam", "points=1,2", "load.window=4", "load.global_blocks=none", code=2
    )


def test_a_drawing_shows_masks_and_what_was_asked() -> None:
    picture = np.full((60, 80, 3), 100, np.uint8)
    masks = np.zeros((2, 60, 80), bool)
    masks[0, 10:30, 10:30], masks[1, 20:50, 40:70] = True, True
    found = Segments(masks, np.ones(2, np.float32))
    drawn = np.asarray(draw(picture, found, points=[(20, 20), (75, 5)], boxes=[(38, 18, 72, 52)], labels=[1, 0]))
    assert (drawn[0, 0] == 100).all(), "what is in no mask stays"
    assert (drawn[20, 20] == 255).all() and (drawn[5, 75] == 0).all()
    tints = [tuple(drawn[12, 25]), tuple(drawn[30, 60])]
    edges = [tuple(drawn[10, 25]), tuple(drawn[20, 60])]
    assert len({*tints, *edges, (100, 100, 100)}) == 5
    assert (drawn[18, 45] == 255).all(), "the box"


def test_an_outline_lies_in_its_mask() -> None:
    mask = np.zeros((12, 12), bool)
    mask[2:10, 3:12] = True
    edge = outline(mask, 2)
    assert not (edge & ~mask).any()
    assert np.array_equal(mask & ~edge, np.pad(np.ones((4, 5), bool), ((4, 4), (5, 2))))
