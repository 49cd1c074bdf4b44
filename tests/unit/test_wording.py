"""How zero-shot evaluation asks for classes: by the names of folders, published templates, or a class file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synoptic.apps import cli
from synoptic.data.prompts import IMAGENET
from synoptic.data.sources import Source, open_source
from synoptic.evaluation.protocols import Asked, Wording, build_evaluators, zeroshot
from synoptic.judging import evaluate


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Two pictures in each of two class folders."""
    for folder in ("n01", "fire_truck"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for number in range(2):
            picture = np.full((16, 16, 3), 40 * number, np.uint8)
            Image.fromarray(picture).save(tmp_path / "data" / folder / f"{number}.png")
    return open_source(str(tmp_path / "data"), "all")


def file_of(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "classes.csv"
    path.write_text(text)
    return path


def test_published_templates_are_taken_as_they_are(source: Source) -> None:
    prompts = zeroshot(source, wording=Wording(templates="80")).prompts
    assert [len(each) for each in prompts] == [80, 80]
    assert prompts[0][0] == IMAGENET[0].replace("{}", "fire truck")


def test_a_class_file_is_matched_by_the_names_of_the_folders(source: Source, tmp_path: Path) -> None:
    """Whatever the order of its lines; a class without prompts takes the templates, with spaces in its name."""
    file = file_of(tmp_path, "n01,a tench,a fish\nfire_truck\nother,nothing\n")
    prompts = zeroshot(source, wording=Wording(file, ["a {}"])).prompts
    assert source.classes == ("fire_truck", "n01") and prompts == [["a fire truck"], ["a tench", "a fish"]]
    published = zeroshot(source, wording=Wording(file, "7")).prompts
    assert published[0][0] == "itap of a fire truck."


def test_a_class_that_the_file_lacks_is_named(source: Source, tmp_path: Path) -> None:
    file = file_of(tmp_path, "n01,a tench\nn02,a shark\n")
    with pytest.raises(ValueError, match=r"classes\.csv: has no line for 'fire_truck', which is a class of"):
        zeroshot(source, wording=Wording(file))


def test_the_wording_reaches_the_evaluation(source: Source, tmp_path: Path) -> None:
    (evaluator,) = build_evaluators("zeroshot", str(source.root), "all", Asked(wording=Wording(templates=["the {}!"])))
    assert evaluator.prompts == [["the fire truck!"], ["the n01!"]]


@pytest.mark.parametrize("words", [("templates=7",), ("labels=classes.csv",)])
def test_wording_that_nothing_asks_for_is_refused(
    source: Source, words: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", "vit_nano8", "on=knn", f"data={source.root}", *words]) == 2
    key = words[0].partition("=")[0]
    assert (
        capsys.readouterr().err
        == f"synoptic: {key}= decides nothing without on=zeroshot or on=zeroshot_segmentation; leave it out\n"
    )


def test_a_model_without_words_is_told_so(source: Source) -> None:
    with pytest.raises(ValueError, match="knows no words"):
        evaluate("vit_nano8", "zeroshot", str(source.root), templates="7")
