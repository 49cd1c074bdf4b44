"""Trainings without labels on what makes no sense: each is refused in one clear line, or does what it says."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import synoptic
from synoptic.apps import cli
from synoptic.config import load_json

HEAD = "prototypes=16 head_hidden=16 bottleneck=8 device=cpu precision=fp32 crops.local_count=1"
TINY = f"model=vit_nano8 {HEAD}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of 24 pixels, and one alone."""
    folder = tmp_path_factory.mktemp("bad")
    noise = np.random.default_rng(0)
    for number in range(12):
        path = folder / "pictures" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)
    (folder / "one").mkdir()
    Image.fromarray(noise.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(folder / "one" / "alone.png")
    return folder


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("optim.warmup=1.5", "optim.warmup=1.5"),
        ("teacher_temperature_warmup=30", "teacher_temperature_warmup=30"),
        ("head_warmup=1", "head_warmup=1"),
        ("size=20", "size=20: the patches of vit_nano8 do not tile it; the nearest that work: 16, 24"),
        ("size=16 crops.local_size=12", "crops.local_size=12: the patches of vit_nano8 do not tile it"),
        ("size=16 prototypes=4000000000", "prototypes=4000000000: with bottleneck=8 they take 640 GB, and there are"),
        (
            "size=16 centring=sinkhorn queue=40000000000",
            "queue=40000000000: with prototypes=16 its rows take 2560 GB, and there are",
        ),
        ("size=16 head_hidden=100000000", "head_hidden=100000000: the head's weights take 200000000 GB, and there are"),
        ("size=16 batch=4000000000", "batch=4000000000: with size=16 its pictures take 3072 GB, and there are"),
        ("size=16 batch=0", "batch=0"),
        ("size=16 queue=-1", "queue=-1"),
        ("size=16 centring=sinkhorn queue=20", "queue=20: holds whole steps of 2 x batch=4; the nearest is 24"),
        ("epochs=inf", "epochs=inf should be a finite number"),
    ],
)
@pytest.mark.parametrize("method", ["dino", "dinov2"])
def test_a_mistake_is_one_line(
    folder: Path, method: str, keys: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(folder, f"{method} {TINY} {keys}", told, capsys)


def refused(folder: Path, words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Types a training, which is refused in one line before anything is written."""
    method, _, keys = words.partition(" ")
    command = f"train {method} data={folder / 'pictures'} out={folder / 'refused'} steps=2 batch=4 {keys}"
    assert cli.main(command.split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and told in said
    assert not (folder / "refused" / "checkpoints").exists()


@pytest.mark.parametrize("method", ["dino", "dinov2"])
@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("init=nothing", "there is no model 'nothing'"),
        ("init=vit_nano8 head_warmup=0.6 optim.warmup=0.5", "head_warmup=0.6: with optim.warmup=0.5 after it"),
        ("init=vit_nano8 model=vit_mini16", "model decides nothing beside init=, which has an architecture of its own"),
    ],
)
def test_a_mistake_about_given_weights_is_one_line(
    folder: Path, method: str, keys: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(folder, f"{method} {HEAD} size=16 {keys}", told, capsys)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("dino epochs=3", "epochs decides nothing beside steps="),
        ("dino size=32 crops.global_size=16", "size decides nothing beside another crops.global_size"),
        ("clip epochs=3", "epochs decides nothing beside steps="),
        ("clip loss=siglip gathering=whole", "gathering decides nothing with the loss of SigLIP"),
        ("dino max_drop=0.5", "max_drop decides nothing without init="),
        ("dino load.heads=3", "load.heads decides nothing without init="),
        ("dino queue=8", "queue decides nothing where centring is not sinkhorn"),
        ("dinov2 centre_momentum=0.5", "centre_momentum decides nothing where centring is not mean"),
        ("dino sharpening=false teacher_temperature=0.1", "teacher_temperature decides nothing with sharpening=false"),
        ("dinov2 teacher=vit_nano8 koleo=1", "koleo decides nothing beside teacher="),
        ("dinov2 init=vit_nano8 registers=4", "registers decides nothing beside init="),
        ("dinov2 ibot=0 masks.ratio=0.1,0.2", "masks.ratio decides nothing with ibot=0"),
        ("dinov2 heads=tied patch_prototypes=64", "patch_prototypes decides nothing with heads=tied"),
        ("radio head_blocks=2", "head_blocks decides nothing but with head=v2"),
        ("radio shift=1 match=smaller", "match decides nothing beside shift="),
        ("dinov2 high_resolution.scale=2", "high_resolution.scale decides nothing without high_resolution.share"),
    ],
)
def test_a_key_that_would_decide_nothing_is_refused(
    folder: Path, words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(folder, words, told, capsys)


def test_a_key_of_a_preset_may_decide_nothing(folder: Path) -> None:
    """The recipe names an architecture, and `init` has another; it tells steps, and the user passes over the data."""
    out = folder / "given"
    keys = f"{HEAD} preset=photos init=vit_nano8 size=16 batch=4 epochs=1"
    assert cli.main(f"train dino data={folder / 'pictures'} out={out} {keys}".split()) == 0
    kept = load_json(out / "config.json")
    assert kept["model"] == kept["init"] == "vit_nano8"
    assert kept["steps"] == 3, "of 11 pictures; one is set apart"


@pytest.mark.parametrize("method", ["dino", "dinov2"])
@pytest.mark.parametrize(("data", "batch"), [("one", 1), ("one", 4), ("pictures", 1)])
def test_one_picture_and_a_batch_of_one_are_little_and_no_mistake(
    folder: Path, method: str, data: str, batch: int, caplog: pytest.LogCaptureFixture
) -> None:
    """KoLeo has no neighbour then, and Sinkhorn-Knopp two rows, which is told; nothing is infinite."""
    out = folder / f"{method}-{data}-{batch}"
    keys = f"train {method} data={folder / data} out={out} steps=2 size=16 batch={batch} {TINY}"
    assert cli.main(keys.split()) == 0
    assert np.isfinite(synoptic.load(out).embed(str(folder / "one"))).all()
    assert "one picture a batch has no neighbours to be spread from" in caplog.text


def test_a_batch_larger_than_the_data_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = f"train dino data={folder / 'one'} out={folder / 'many'} steps=1 size=16 batch=3 {TINY}"
    with caplog.at_level(logging.WARNING, "synoptic"):
        assert cli.main(keys.split()) == 0
    assert caplog.text.count("batch=3 is more than the 1 pictures: each is seen several times a step") == 1


def test_crops_larger_than_the_pictures_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = f"train dino data={folder / 'pictures'} out={folder / 'large'} steps=1 size=48 batch=2 {TINY}"
    with caplog.at_level(logging.WARNING, "synoptic"):
        assert cli.main(keys.split()) == 0
    assert "most pictures are about 24 pixels and are enlarged to 48: a smaller size= sees as much" in caplog.text


def test_a_run_that_stops_itself_leaves_the_best_model(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    classes = folder / "classes"
    for number, path in enumerate(sorted((folder / "pictures").iterdir())):
        (classes / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (classes / "ab"[number % 2] / path.name).write_bytes(path.read_bytes())
    keys = f"steps=30 batch=4 size=16 {TINY} student_temperature=9 sharpening=false guard=stop"
    command = f"train dino data={classes} out={folder / 'stopped'} {keys} log_every=1 evaluate_every=1"
    assert cli.main([*command.split(), "loader.validation=0.4"]) == 2
    said = capsys.readouterr().err
    assert "synoptic: stopped, since the learning collapsed, uniform output: " in said
    trained = synoptic.load(folder / "stopped").trained
    assert f"weights holds the best model so far, of step {trained['steps']}" in caplog.text
    assert 1 <= trained["steps"] < 10 and "knn" in trained["scores"]


def test_a_run_without_labels_that_stops_itself_leaves_its_last_model(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    keys = f"steps=30 batch=4 size=16 {TINY} student_temperature=9 sharpening=false guard=stop log_every=1"
    command = f"train dino data={folder / 'pictures'} out={folder / 'unlabelled'} {keys}"
    assert cli.main(command.split()) == 2
    assert "synoptic: stopped, since the learning collapsed, uniform output: " in capsys.readouterr().err
    trained = synoptic.load(folder / "unlabelled").trained
    assert f"weights holds the last model that was saved, of step {trained['steps']}" in caplog.text


def test_what_has_learned_nothing_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    where = f"data={folder / 'pictures'} steps=1 batch=4 device=cpu precision=fp32"
    assert cli.main(f"train dino {where} out={folder / 'i'} init=vit_nano8 size=16 {HEAD}".split()) == 0
    assert "init=vit_nano8 is an architecture with random weights" in caplog.text
    small = "model=vit_nano8 size=16 crops.local_count=1"
    assert cli.main(f"train dinov2 {where} out={folder / 't'} teacher=vit_nano8 {small}".split()) == 0
    assert "teacher=vit_nano8 is an architecture with random weights" in caplog.text


@pytest.mark.parametrize("method", ["dino", "dinov2"])
def test_the_recipe_for_photographs_takes_one_picture_at_a_time(folder: Path, method: str) -> None:
    """Its heads have batch norm, which a single hidden patch has no statistics for."""
    small = "model=vit_nano8 size=32 prototypes=16 head_hidden=16 bottleneck=8 device=cpu precision=fp32"
    out = folder / f"alone-{method}"
    assert (
        cli.main(
            [
                *f"train {method} data={folder / 'pictures'} preset=photos out={out} batch=1 steps=12".split(),
                *small.split(),
            ]
        )
        == 0
    )
    assert synoptic.load(out).trained["steps"] == 12


@pytest.mark.parametrize(("count", "told"), [(12, True), (40, False)])
def test_continuing_says_where_nothing_can_stop_it(
    folder: Path, count: int, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Without labels RankMe judges, by pictures that need not have been set apart."""
    pictures = folder / f"unlabelled-{count}"
    pictures.mkdir()
    noise = np.random.default_rng(1)
    for number in range(count):
        Image.fromarray(noise.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(pictures / f"{number}.png")
    out = folder / f"continued-{count}"
    keys = f"{TINY.replace('model=vit_nano8', '')} init=vit_nano8 size=16 batch=4 steps=2 max_drop=0.5"
    assert cli.main(f"train dino data={pictures} out={out} {keys}".split()) == 0
    assert ("max_drop=0.5: there are fewer than 30 pictures" in caplog.text) == told
    assert ("rankme" in (out / "metrics.jsonl").read_text()) != told
    trained = synoptic.load(out).trained
    assert trained["init"] == "vit_nano8" and "architecture" not in trained
