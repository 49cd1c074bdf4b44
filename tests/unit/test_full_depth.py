"""A run on pictures of four bands of 16 bits, from its files to the answers of its model."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from picture_sets import fill, tiff
from PIL import Image

import synoptic
from synoptic.config import from_dict, load_json, to_dict
from synoptic.data.sources import open_source
from synoptic.data.statistics import statistics
from synoptic.data.transforms import fit
from synoptic.methods import get_method
from synoptic.methods.base import resolve_common
from synoptic.methods.clip import ClipTrainConfig
from synoptic.methods.dino import DinoConfig
from synoptic.models.vit import ViT, vit_config
from synoptic.predict import VisionModel
from synoptic.types import Preprocess

KEYS = {
    **{"model": "vit_nano8", "size": 16, "steps": 3, "batch": 8, "prototypes": 16, "head_hidden": 16, "bottleneck": 8},
    **{"crops": {"local_count": 1, "local_size": 8}, "device": "cpu", "threads": 1, "precision": "fp32"},
}


def scenes(folder: Path, count: int = 40, seed: int = 0) -> Path:
    """Satellite pictures in two classes, which differ in the fourth band alone."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        values = rng.integers(200, 3000, (20 + number % 3, 24, 4)).astype(np.uint16)
        values[:, :, 3] += 5000 * (number % 2)
        compression = (None, "lzw", "zlib")[number % 3]
        tiff(folder / "ab"[number % 2] / f"{number:02}.tif", values, planar=number % 4 == 0, compression=compression)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """One of its files has other bands."""
    folder = scenes(tmp_path_factory.mktemp("data") / "set")
    tiff(folder / "a" / "06.tif", np.zeros((20, 24, 3), np.uint16))
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    return synoptic.train("dino", data=str(data), out=str(out), channels=4, **KEYS)


def test_the_model_is_normalised_by_the_statistics_of_its_pictures(data, run):
    model = synoptic.load(run)
    mean, std = statistics(open_source(str(data), "train"), 4)
    assert (model.model.config.mean, model.model.config.std) == (mean, std)
    assert 0.02 < mean[0] < 0.03 < mean[3]  # of 65,535: no share of 255 is so small
    assert (model.channels, model.preprocess) == (4, Preprocess(16, bands=4))
    assert load_json(run / "config.json")["depth"] == "full"
    kept = load_json(run / "weights" / "config.json")["preprocess"]
    assert (kept["size"], kept["mode"], kept["bands"]) == (16, "crop", 4)
    assert load_json(run / "checkpoints" / "identity.json")["data.mean"] == ", ".join(map(str, mean))


def test_other_bands_among_the_files_are_recorded(data, run):
    lines = [json.loads(line) for line in (run / "data_errors.jsonl").read_text().splitlines()]
    assert lines == [{"path": str(data / "a/06.tif"), "reason": "has 3 bands, where channels=4 are read"}]


def test_the_model_reads_files_and_arrays_as_training_did(data, run, tmp_path):
    model = synoptic.load(run)
    path = data / "b" / "01.tif"
    stored = tifffile.imread(path)
    images = torch.from_numpy(stored.astype(np.float32) / np.float32(65535)).permute(2, 0, 1)[None]
    expected = model(fit(images, torch.tensor([stored.shape[:2]]), 16)).summary
    expected = torch.nn.functional.normalize(expected, dim=1).numpy()
    np.save(tmp_path / "a.npy", stored.transpose(2, 0, 1))
    same = [path, tmp_path / "a.npy", stored, torch.from_numpy(stored).permute(2, 0, 1), images[0]]
    for picture in same:
        np.testing.assert_allclose(model.embed(picture), expected, atol=1e-6)
    (data / "a" / "06.tif").rename(tmp_path / "06.tif")
    try:
        assert model.embed(data).shape == (39, model.width)
    finally:
        (tmp_path / "06.tif").rename(data / "a" / "06.tif")


def test_a_picture_of_other_bands_is_refused_in_one_line(data, run):
    model = synoptic.load(run)
    rgb = np.zeros((16, 16, 3), np.uint8)
    for picture, name in ((data / "a/06.tif", "06.tif"), (rgb, "given as ndarray"), (Image.fromarray(rgb), "picture")):
        with pytest.raises(ValueError, match=rf"{name}: has 3 bands, where channels=4 are read$"):
            model.embed(picture)
    with pytest.raises(ValueError, match="not a picture of 8-bit RGB; channels=N or depth=full reads others"):
        VisionModel(ViT(vit_config("vit_nano8")), Preprocess(16), "rgb").embed(data / "b" / "01.tif")


def test_the_fourth_band_is_seen(data, run, caplog):
    """A network with random weights knows the classes, which 8-bit RGB would not show."""
    with caplog.at_level(logging.CRITICAL):
        assert synoptic.evaluate(synoptic.load(run), ["knn"], str(data))["knn"] == 1.0


def test_a_run_goes_on_with_the_same_statistics_or_not_at_all(data, tmp_path):
    folder = scenes(tmp_path / "set")
    keys = {**KEYS, "data": str(folder), "out": str(tmp_path / "run"), "channels": 4}
    whole = synoptic.load(synoptic.train("dino", **{**keys, "out": str(tmp_path / "whole")}))
    synoptic.train("dino", **keys)
    newest = max((tmp_path / "run" / "checkpoints").glob("step_*.pt"))
    newest.unlink()
    resumed = synoptic.load(synoptic.train("dino", **keys))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    scenes(folder, 40, seed=1)  # other pictures under the same names
    with pytest.raises(ValueError, match=r"data\.mean changed since this run was begun"):
        synoptic.train("dino", **keys)


def test_too_many_files_of_other_bands_are_an_error_that_says_so(data, tmp_path):
    with pytest.raises(ValueError, match="pictures have 4 bands, not channels=5: give channels=4"):
        synoptic.train("dino", data=str(data), out=str(tmp_path / "run"), channels=5, **KEYS)
    with pytest.raises(ValueError, match=r"cannot be read, over 5%.*channels=N or depth=full reads others"):
        synoptic.train("dino", data=str(data), out=str(tmp_path / "run"), **KEYS)


def test_dinov2_trains_on_floats_in_units_of_their_own(tmp_path):
    """Hounsfield units in arrays, bands first, with gaps."""
    rng = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    for number in range(20):
        values = rng.normal(-200, 500, (2, 24, 20)).astype(np.float32)
        values[:, 0, number] = np.nan
        np.save(tmp_path / "set" / f"{number:02}.npy", values)
    run = synoptic.train("dinov2", data=str(tmp_path / "set"), out=str(tmp_path / "run"), channels=2, **KEYS)
    model = synoptic.load(run)
    assert -220 < model.model.config.mean[0] < -180 and 450 < model.model.config.std[0] < 550
    assert np.isfinite(model.embed(tmp_path / "set")).all()


def test_grey_of_sixteen_bits_may_be_read_as_three_bands(tmp_path):
    """As one does to go on from weights that know photographs."""
    config = from_dict(DinoConfig, {**KEYS, "data": str(tmp_path / "set"), "out": "o", "depth": "full"}, "test")
    rng = np.random.default_rng(0)
    for number in range(20):
        tiff(tmp_path / "set" / f"{number:02}.tif", rng.integers(0, 4096, (20, 20)).astype(np.uint16))
    source = open_source(config.data, "train")
    recipe = get_method("dino")
    task = recipe.build(recipe.resolve(config, len(source)), source)
    assert task.exported().config.channels == 3 and len(set(task.exported().config.mean)) == 1
    assert task.facts().keys() == {"data.mean", "data.std"}


def test_what_reads_eight_bits_stays_as_it_was(tmp_path):
    config = get_method("dino").resolve(from_dict(DinoConfig, {**KEYS, "data": "d", "out": "o"}, "test"), 20)
    assert (config.channels, config.depth, config.bands) == (3, "8bit", None)
    source = open_source(str(fill(tmp_path, [f"{number}.png" for number in range(20)])), "all")
    task = get_method("dino").build(config, source)
    assert task.facts() == {} and task.exported().config.mean == vit_config("vit_nano8").mean


def test_eight_bits_of_other_bands_are_refused():
    with pytest.raises(ValueError, match="depth=8bit: reads RGB, not channels=4; leave depth out, or give depth=full"):
        resolve_common(DinoConfig(data="d", out="o", channels=4, depth="8bit"), 9, lr=1, epochs=1, size=16)


def test_clip_reads_other_bands_too(data):
    config = ClipTrainConfig(data=str(data), out="o", model="vit_nano8", size=16, batch=4, channels=4, vocabulary=258)
    recipe, source = get_method("clip"), open_source(str(data), "train")
    source.captions = [("a field",)] * len(source)
    task = recipe.build(recipe.resolve(config, len(source)), source)
    assert task.model.channels == 4 and task.facts()["data.mean"].count(",") == 3


def test_a_student_reads_what_its_teachers_read(data, run, tmp_path):
    keys = {"data": str(data), "model": "vit_nano8", "size": 16, "steps": 2, "batch": 4, "device": "cpu", "threads": 1}
    with pytest.raises(ValueError, match="channels=1: the teacher dino reads pictures of 4 bands"):
        radio = get_method("radio")
        radio.build(radio.config(data="d", out="o", channels=1, size=16, teachers=f"dino:{run}"), None)
    student = synoptic.train("radio", teachers=f"dino:{run}", out=str(tmp_path / "yes"), channels=4, **keys)
    model = synoptic.load(student)
    assert model.embed(data / "b" / "01.tif", adaptor="dino").shape == (1, 128)
    assert model.preprocess.bands == 4 and model.model.config.backbone.mean == synoptic.load(run).model.config.mean


def test_the_configuration_survives_json():
    assert to_dict(DinoConfig(data="d", out="o", channels=4, depth="full"))["channels"] == 4
    assert "bands" not in to_dict(DinoConfig(data="d", out="o", channels=4, depth="full"))
