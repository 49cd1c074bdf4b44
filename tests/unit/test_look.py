"""What is seen of the pictures before a run begins."""

import logging
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from picture_sets import fill, tiff
from PIL import Image

from synoptic import run
from synoptic.config import from_dict
from synoptic.data import look as looking
from synoptic.data.look import look, tell_depth
from synoptic.data.sources import Source, open_source
from synoptic.methods import dinov2


def pictures(folder: Path, count: int, broken: int = 0) -> Source:
    """So many pictures of 10 x 8 pixels, of which the first cannot be read."""
    fill(folder, [f"{number:03}.png" for number in range(count)])
    for number in range(broken):
        (folder / f"{number:03}.png").write_bytes(b"broken")
    return open_source(str(folder), "all")


def of_bands(folder: Path, *bands: int) -> Source:
    for number, count in enumerate(bands):
        tiff(folder / f"{number}.tif", np.full((9, 12, count), number, np.uint16))
    return open_source(str(folder), "all")


# --- pictures that cannot be read


def test_too_many_broken_pictures_are_an_error_that_names_its_key(tmp_path):
    source = pictures(tmp_path, 60, broken=6)
    told = r"6 of 60 pictures cannot be read, over 5%, such as .*000\.png: not a picture; .*higher loader.unreadable$"
    with pytest.raises(ValueError, match=told):
        look(source, None, 0.05)
    assert look(source, None, 0.1) == dict.fromkeys(range(6, 60), 8)
    assert len(source.errors) == 0  # they are counted where they are trained on


def test_of_many_pictures_a_sample_tells(tmp_path, monkeypatch):
    source = pictures(tmp_path, 120, broken=30)
    monkeypatch.setattr(looking, "MOST", 40)
    with pytest.raises(ValueError, match=r"\d+ of 40 pictures that were looked at cannot be read"):
        look(source, None, 0.05)
    assert 20 < len(look(source, None, 0.25)) < 40  # what chance explains is no error
    assert look(source, None, 1.0)


def test_slow_pictures_are_few(tmp_path, monkeypatch):
    monkeypatch.setattr(looking, "SECONDS", 0.0)
    assert len(look(pictures(tmp_path, 60), None, 0.05)) == looking.FEWEST


# --- bands


@pytest.mark.parametrize(
    ("bands", "channels", "told"),
    [
        ((3, 3, 3), 4, "pictures have 3 bands, not channels=4: give channels=3"),
        ((1, 1, 1), 4, "pictures have 1 band, not channels=4: give channels=1"),
        ((3, 1, 3, 1, 3), 1, "differ in their bands: 3 of 5 have 3, such as .*0.tif, not channels=1; make them alike"),
        ((2, 5, 2), 3, r"2 of 3 have 2, such as .*0.tif, 1 of 3 have 5, such as .*1.tif, not channels=3; make them"),
    ],
)
def test_other_bands_are_told_in_one_line(tmp_path, bands, channels, told):
    with pytest.raises(ValueError, match=told):
        look(of_bands(tmp_path, *bands), channels, 0.05)


def test_grey_pictures_stored_as_colour_have_three_bands(tmp_path):
    with pytest.raises(ValueError, match="pictures have 3 bands, not channels=1: give channels=3"):
        look(pictures(tmp_path, 4), 1, 0.05)


# --- bits


def deep(folder: Path, kind: str) -> Source:
    values = np.arange(300, dtype=np.uint16).reshape(10, 10, 3)
    folder.mkdir()
    if kind == "grey png":
        Image.fromarray(values[:, :, 0]).save(folder / "1.png")
    elif kind == "png":
        (folder / "1.png").write_bytes(imagecodecs.png_encode(values))
    elif kind == "tiff":
        (folder / "1.tif").write_bytes(imagecodecs.tiff_encode(values))
    else:
        Image.fromarray(values[:, :, 0]).save(folder / "1.tif")
    fill(folder, ["0.png"])
    return open_source(str(folder), "all")


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("grey png", "channels=1 depth=full"),
        ("png", "depth=full"),
        ("grey tiff", "channels=1 depth=full"),
        ("tiff", "depth=full"),
    ],
)
def test_bits_that_are_lost_are_told(tmp_path, caplog, kind, keys):
    source = deep(tmp_path / "set", kind)
    tell_depth(source, look(source, None, 0.05))
    (message,) = caplog.messages
    assert message.startswith("1 of 2 pictures looked at have 16 bits, such as ")
    assert message.endswith(f", and are read as 8: {keys} keeps them")


@pytest.mark.parametrize("name", ["1.jpg", "1.png", "1.gif", "1.tif", "1.bmp", "1.webp", "1.ppm"])
def test_of_eight_bits_nothing_is_lost(tmp_path, caplog, name):
    source = open_source(str(fill(tmp_path, [name])), "all")
    tell_depth(source, look(source, None, 0.05))
    assert not caplog.messages


# --- sizes


@pytest.mark.parametrize(
    ("values", "size", "key"),
    [
        ({"size": 48}, 48, "size"),
        ({"size": 16, "crops.global_size": 48}, 48, "crops.global_size"),
        ({"crops.global_size": 48}, 48, "crops.global_size"),
        ({"size": 16, "crops.local_size": 48}, 48, "crops.local_size"),
        ({"size": 16, "high_resolution.share": 0.1, "high_resolution.scale": 3}, 48, "high_resolution.scale"),
    ],
)
def test_what_enlarges_pictures_is_named(caplog, values, size, key):
    given = from_dict(dinov2.METHOD.config, {"data": "d", "out": "o", "model": "vit_nano8", **values}, "here")
    with caplog.at_level(logging.WARNING):
        run._tell_enlarged([20, 24, 24], given, dinov2.METHOD.resolve(given, 100), size)
    told = f"most pictures are about 24 pixels and are enlarged to 48: a smaller {key}= sees as much"
    assert caplog.messages == [told]
