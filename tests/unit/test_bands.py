"""A picture of any number of bands becomes float32 that holds every bit of the file, or a PictureError."""

import io
import itertools
import logging
import pickle
import subprocess
import sys
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_sets import tiff
from PIL import Image

from synoptic.data.bands import as_rgb, bands_last, read_bands
from synoptic.data.pictures import MAX_PIXELS, PictureError, read_picture

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (20, 28, 4), dtype=np.uint16)
DEEP[0, 0], DEEP[0, 1] = 0, 65535


@pytest.fixture(autouse=True)
def silence(caplog):
    """What readers have to say of broken files does not reach the user."""
    with caplog.at_level(logging.DEBUG):
        yield
    assert not [record for record in caplog.records if record.name == "tifffile"]


def npy(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


def png(path: Path, values: np.ndarray) -> Path:
    path.write_bytes(imagecodecs.png_encode(values))
    return path


def in_range(values: np.ndarray) -> np.ndarray:
    """Integers of 8 and 16 bits as float32 shares of their highest value."""
    return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)


def assert_kept(read: np.ndarray, values: np.ndarray) -> None:
    """Not a bit of 16 is lost: the integers come back out of the floats."""
    assert read.dtype == np.float32 and read.flags.writeable and read.flags.c_contiguous
    np.testing.assert_array_equal(read, in_range(values))
    np.testing.assert_array_equal(np.rint(read * np.iinfo(values.dtype).max), values)


# --- every bit of every kind of file


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_tiff_of_four_bands(tmp_path, kind, planar, compression):
    values = DEEP.astype(kind)
    predictor = compression not in (None, "packbits")
    path = tiff(tmp_path / "a.tif", values, planar, compression=compression, predictor=predictor)
    assert_kept(read_bands(path, 4), values)


@pytest.mark.parametrize("options", [{"tile": (16, 16), "compression": "lzw"}, {"bigtiff": True}, {"byteorder": ">"}])
def test_tiff_in_tiles_large_and_of_the_other_byte_order(tmp_path, options):
    assert_kept(read_bands(tiff(tmp_path / "a.tif", DEEP, **options), 4), DEEP)


def test_pages_of_a_tiff_are_bands(tmp_path):
    stack = np.moveaxis(np.concatenate([DEEP, DEEP[:, :, :1]], axis=2), 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", stack, imagej=True)
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(read_bands(path, 5)[:, :, :4], in_range(DEEP))
        np.testing.assert_array_equal(read_bands(path, 1), in_range(DEEP[:, :, :1]))  # the first of what moves
        with pytest.raises(PictureError, match="has 5 bands, where channels=4 are read"):
            read_bands(path, 4)


def test_smaller_copies_and_masks_within_a_tiff_are_no_bands(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for plane in (DEEP[:, :, 0], DEEP[:, :, 1], DEEP[::2, ::2, 0], DEEP[:, :, 0] > 9):
            file.write(plane, photometric="minisblack", metadata=None)
    np.testing.assert_array_equal(read_bands(tmp_path / "a.tif", 2), in_range(DEEP[:, :, :2]))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("first", [False, True])
def test_arrays_in_both_orders(tmp_path, first, order):
    values = np.moveaxis(DEEP, 2, 0) if first else DEEP
    assert_kept(read_bands(npy(tmp_path / "a.npy", values.astype(f"{order}u2")), 4), DEEP)
    assert_kept(read_bands(npy(tmp_path / "f.npy", np.asfortranarray(values)), 4), DEEP)
    assert_kept(read_bands(npy(tmp_path / "g.npy", DEEP[:, :, 0]), 1), DEEP[:, :, :1])


def test_how_the_bands_of_an_array_are_found():
    for shape, channels, expected in [
        ((20, 28, 4), 4, (20, 28, 4)),
        ((4, 20, 28), 4, (20, 28, 4)),
        ((12, 20, 12), 12, (12, 20, 12)),  # both ends have as many: the last
        ((20, 28), 1, (20, 28, 1)),
        ((1, 20, 28), 3, (20, 28, 1)),
        ((5, 20, 28), 4, (20, 28, 5)),  # told in the error
        ((20, 28, 5), 4, (20, 28, 5)),
    ]:
        assert bands_last(np.zeros(shape), channels).shape == expected


@pytest.mark.parametrize("shape", [(20, 28), (20, 28, 3), (20, 28, 4)])
def test_png_of_sixteen_bits(tmp_path, shape):
    values = DEEP.reshape(-1)[: np.prod(shape)].reshape(shape)
    assert_kept(read_bands(png(tmp_path / "a.png", values), 1 if len(shape) == 2 else shape[2]), np.atleast_3d(values))


def test_other_files_of_sixteen_bits_in_grey(tmp_path):
    grey = DEEP[:, :, 0]
    (tmp_path / "a.pgm").write_bytes(b"P5 28 20 65535\n" + grey.astype(">u2").tobytes())
    Image.fromarray(grey).save(tmp_path / "a.jp2", irreversible=False)
    for name in ("a.pgm", "a.jp2"):
        assert_kept(read_bands(tmp_path / name, 1), grey[:, :, None])
    assert_kept(read_bands(Image.fromarray(grey), 1), grey[:, :, None])


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_eight_bits_of_any_file(tmp_path, mode):
    bands = len(mode)
    values = DEEP[:, :, :bands].astype(np.uint8)
    image = Image.fromarray(values.squeeze(), mode)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a.tif")
    for picture in (tmp_path / "a.png", tmp_path / "a.tif", image):
        assert_kept(read_bands(picture, bands), values)


def test_a_palette_and_compressed_colour_are_what_they_show(tmp_path):
    image = Image.fromarray(np.kron([[0, 255], [255, 0]], np.ones((8, 8))).astype(np.uint8)).convert("P")
    image.save(tmp_path / "palette.tif")
    image.convert("RGB").save(tmp_path / "jpeg.tif", compression="jpeg", quality=100)
    expected = np.asarray(image.convert("RGB")) / np.float32(255)
    np.testing.assert_array_equal(read_bands(tmp_path / "palette.tif", 3), expected)
    np.testing.assert_allclose(read_bands(tmp_path / "jpeg.tif", 3), expected, atol=3 / 255)


def test_grey_is_repeated_for_three_bands_alone(tmp_path):
    path = tiff(tmp_path / "a.tif", DEEP[:, :, 0])
    assert_kept(read_bands(path, 3), DEEP[:, :, [0, 0, 0]])
    with pytest.raises(PictureError, match="has 1 band, where channels=4 are read"):
        read_bands(path, 4)


# --- numbers in units of their own


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, np.int16, np.int32, np.uint32])
@pytest.mark.parametrize("form", ["tif", "npy"])
def test_other_numbers_stay_as_they_are(tmp_path, kind, form):
    """Hounsfield units, degrees, metres: dividing or clipping them would lose what they say."""
    values = RNG.integers(0 if kind is np.uint32 else -1000, 2000, (9, 10, 2)).astype(kind)
    path = tiff(tmp_path / "a.tif", values) if form == "tif" else npy(tmp_path / "a.npy", values)
    np.testing.assert_array_equal(read_bands(path, 2), values.astype(np.float32))


def test_compressed_floats(tmp_path):
    values = RNG.normal(300, 10, (16, 12, 3)).astype(np.float32)
    path = tiff(tmp_path / "a.tif", values, compression="lzw", predictor=3)
    np.testing.assert_array_equal(read_bands(path, 3), values)


def test_truth_values_are_zero_and_one(tmp_path):
    bits = np.eye(16, dtype=bool)
    Image.fromarray(bits).save(tmp_path / "a.tif", compression="group4")
    for path in (tmp_path / "a.tif", npy(tmp_path / "a.npy", bits), tiff(tmp_path / "b.tif", bits)):
        np.testing.assert_array_equal(read_bands(path, 1)[:, :, 0], bits.astype(np.float32))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_where_white_is_zero_more_light_is_still_more(tmp_path, kind):
    values = DEEP[:, :, 0].astype(kind)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    np.testing.assert_array_equal(read_bands(tmp_path / "a.tif", 1)[:, :, 0], in_range(np.iinfo(kind).max - values))


def test_missing_values_become_the_mean_of_the_others(tmp_path):
    values = RNG.normal(300, 10, (9, 10, 2)).astype(np.float32)
    gaps = np.zeros(values.shape, bool)
    gaps[0, :, 0], gaps[3, 3, 1], gaps[4, 4, 1], gaps[5, 5, 1] = True, True, True, True
    expected = values.copy()
    expected[gaps[:, :, 0], 0] = values[~gaps[:, :, 0], 0].mean(dtype=np.float64)
    expected[gaps[:, :, 1], 1] = values[~gaps[:, :, 1], 1].mean(dtype=np.float64)
    values[0, :, 0], values[3, 3, 1], values[4, 4, 1], values[5, 5, 1] = np.nan, np.inf, -np.inf, np.nan
    np.testing.assert_array_equal(read_bands(npy(tmp_path / "a.npy", values), 2), expected)
    np.testing.assert_array_equal(read_bands(tiff(tmp_path / "a.tif", values), 2), expected)
    wide = values.astype(np.float64)
    wide[5, 5, 1] = 1e300  # no float32
    np.testing.assert_array_equal(read_bands(npy(tmp_path / "b.npy", wide), 2), expected)


@pytest.mark.parametrize(("kind", "gap"), [(np.float32, -9999), (np.int16, -9999), (np.uint16, 0)])
def test_a_tiff_may_say_what_stands_for_missing_values(tmp_path, kind, gap):
    values = RNG.integers(1, 1000, (9, 10, 1)).astype(kind)
    values[2, 3:7] = gap
    read = read_bands(tiff(tmp_path / "a.tif", values, extratags=[(42113, "s", 0, str(gap), True)]), 1)
    there = values != gap
    scale = 65535 if kind is np.uint16 else 1
    np.testing.assert_allclose(read[~there], values[there].mean() / scale, rtol=1e-6)
    np.testing.assert_allclose(read[there], values[there] / scale, rtol=1e-7)


def test_a_band_without_any_value_is_refused(tmp_path):
    values = np.ones((9, 10, 2), np.float32)
    values[:, :, 1] = np.nan
    with pytest.raises(PictureError, match="band 1 holds no value at all"):
        read_bands(npy(tmp_path / "a.npy", values), 2)


# --- size and place


_STORED = {  # how a camera stores an upright picture that it tags with this orientation (TIFF 6.0, tag 274)
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_out_upright(tmp_path, orientation):
    stored = np.ascontiguousarray(_STORED[orientation](DEEP))
    path = tiff(tmp_path / "a.tif", stored, extratags=[(274, "H", 1, orientation, True)])
    assert_kept(read_bands(path, 4), DEEP)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(stored.astype(np.uint8)).save(tmp_path / "a.png", exif=exif)
    assert_kept(read_bands(tmp_path / "a.png", 4), DEEP.astype(np.uint8))


@pytest.mark.parametrize(("shape", "expected"), [((64, 48), (32, 24)), ((20, 32), (20, 32)), ((9000, 8), (32, 1))])
def test_the_longer_side_is_reduced_never_enlarged(tmp_path, shape, expected):
    read = read_bands(npy(tmp_path / "a.npy", np.zeros((*shape, 2), np.uint16)), 2, longest=32)
    assert read.shape == (*expected, 2) and read.flags.writeable


def test_reduction_keeps_more_than_eight_bits_and_makes_up_no_values(tmp_path):
    ramp = np.linspace(20_000, 20_255, 64).astype(np.uint16)  # all within one of 256 levels
    read = read_bands(npy(tmp_path / "a.npy", np.broadcast_to(ramp[:, None], (64, 64))), 1, longest=32)[:, :, 0]
    rows = read.mean(axis=1) * 65535
    assert (np.diff(rows) > 4).all()
    np.testing.assert_allclose(rows[4:-4], ramp.reshape(-1, 2).mean(1)[4:-4], atol=0.5)
    steps = np.where(np.arange(64) % 16 < 8, -1000.0, 3000.0).astype(np.float32)
    read = read_bands(npy(tmp_path / "b.npy", np.broadcast_to(steps, (64, 64))), 1, longest=32)
    assert read.min() == -1000 and read.max() == 3000


def test_the_largest_and_smallest_that_are_read(tmp_path):
    for name, write in (("a.tif", tiff), ("a.npy", npy)):
        with pytest.raises(PictureError, match="too small: 8 x 7 pixels"):
            read_bands(write(tmp_path / name, np.zeros((7, 8, 2), np.uint16)), 2)


def test_bombs_are_refused_unopened(tmp_path):
    with (tmp_path / "wide.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<u2", "fortran_order": False, "shape": (MAX_PIXELS // 8192 + 1, 8192, 1)}
        )
        file.truncate(file.tell() + 2 * (MAX_PIXELS // 8192 + 1) * 8192)  # a file with a hole takes no room
    with (tmp_path / "deep.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<u1", "fortran_order": False, "shape": (8192, 8192, 7)})
        file.truncate(file.tell() + 8192 * 8192 * 7)
    with pytest.raises(PictureError, match="too large: 134 million pixels, at most 134 million"):
        read_bands(tmp_path / "wide.npy", 1)
    with pytest.raises(PictureError, match="too large: 8192 x 8192 pixels of 7 bands"):
        read_bands(tmp_path / "deep.npy", 7)


def patched(path: Path, tag: int, value: int) -> Path:
    """A small TIFF that tells another number."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[tag].overwrite(value)
    return path


def test_tiffs_that_promise_too_much(tmp_path):
    path = tiff(tmp_path / "a.tif", DEEP, compression="zlib")
    with pytest.raises(PictureError, match="too large"):
        read_bands(patched(patched(path, 256, 60_000), 257, 60_000), 4)
    path = tiff(tmp_path / "b.tif", DEEP, compression="zlib", tile=(16, 16))
    with pytest.raises(PictureError, match="too large: tiles of"):
        read_bands(patched(patched(path, 322, 60_000), 323, 60_000), 4)
    path = tiff(tmp_path / "c.tif", DEEP, compression="zlib")
    burst = zlib.compress(bytes(1 << 26))  # 64 MB of what should be 4,480 bytes
    patched(patched(path, 273, path.stat().st_size), 279, len(burst))  # where the pixels are, and how many bytes
    path.write_bytes(path.read_bytes() + burst)
    with pytest.raises(PictureError, match="damaged"):
        read_bands(path, 4)


# --- what is not read


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", ["a.tif", "lzw.tif", "zlib.tif", "a.npy", "a.png"])
def test_truncated_files_are_refused(tmp_path, name, share):
    path = tmp_path / name
    if name.endswith("tif"):
        tiff(path, DEEP, compression=None if name == "a.tif" else name[:-4])
    else:
        (npy if name == "a.npy" else png)(path, DEEP)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(PictureError) as caught:
        read_bands(path, 4)
    assert "\n" not in str(caught.value)


class Tripwire:
    def __reduce__(self):
        return (Path("/").joinpath, ("ran",))


def test_nothing_is_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[Tripwire()] * 9] * 9, dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(np.zeros((9, 9))))
    for name, reason in (("a.npy", "damaged.*Python objects"), ("b.npy", "not a picture")):
        with pytest.raises(PictureError, match=reason):
            read_bands(tmp_path / name, 1)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((9, 9, 4), np.complex64), "complex64 .* is not a picture"),
        (np.zeros((9, 9, 4), "datetime64[s]"), "is not a picture"),
        (np.zeros((9, 9, 4, 2)), r"shape \(9, 9, 4, 2\) is not a picture"),
        (np.zeros(81), "is not a picture"),
        (np.zeros((0, 9, 4)), "too small"),
        (np.zeros((9, 9), [("a", "f4")]), "is not a picture"),
    ],
)
def test_arrays_that_are_no_pictures(tmp_path, values, reason):
    with pytest.raises(PictureError, match=reason):
        read_bands(npy(tmp_path / "a.npy", values), 4)


def test_what_would_be_lost_or_is_not_known_is_refused(tmp_path):
    colour = DEEP[:, :, :3]
    (tmp_path / "a.ppm").write_bytes(b"P6 28 20 65535\n" + colour.astype(">u2").tobytes())
    (tmp_path / "a.jp2").write_bytes(imagecodecs.jpeg2k_encode(colour, level=0))
    for name in ("a.ppm", "a.jp2"):
        with pytest.raises(PictureError, match="may have more than 8 bits: write it as TIFF or PNG"):
            read_bands(tmp_path / name, 3)
    tifffile.imwrite(tmp_path / "a.tif", colour, photometric="rgb", compression="jpeg2000")
    with pytest.raises(PictureError, match="3 x 16 bits with compression 34712, photometric interpretation 2 cannot"):
        read_bands(tmp_path / "a.tif", 3)
    tiff(tmp_path / "b.tif", DEEP.astype(np.uint8), compression="jpeg")
    with pytest.raises(PictureError, match="4 x 8 bits with compression 7, photometric interpretation 1 cannot"):
        read_bands(tmp_path / "b.tif", 4)


def test_missing_files_folders_and_other_files(tmp_path):
    (tmp_path / "page.tif").write_bytes(b"<html>" * 20)
    (tmp_path / "empty.tif").write_bytes(b"")
    for name, reason in (
        ("no.tif", "no such file"),
        (".", "not a file"),
        ("page.tif", "not a"),
        ("empty.tif", "empty"),
    ):
        with pytest.raises(PictureError, match=reason):
            read_bands(tmp_path / name, 4)


def test_reading_photographs_tells_how_to_read_other_files(tmp_path):
    for path in (tiff(tmp_path / "a.tif", DEEP), npy(tmp_path / "a.npy", DEEP)):
        with pytest.raises(PictureError, match="not a picture of 8-bit RGB; channels=N or depth=full reads others"):
            read_picture(path)


def sound_files() -> list[bytes]:
    files = [imagecodecs.png_encode(DEEP)]
    for planar, compression in itertools.product((False, True), (None, "lzw", "zlib")):
        file = io.BytesIO()
        stored, order = (np.moveaxis(DEEP, 2, 0), "separate") if planar else (DEEP, "contig")
        tifffile.imwrite(file, stored, photometric="minisblack", planarconfig=order, compression=compression)
        files.append(file.getvalue())
    file = io.BytesIO()
    np.save(file, DEEP)
    return [*files, file.getvalue()]


SOUND = sound_files()


@given(st.data())
@settings(max_examples=150)
def test_damage_of_any_kind_ends_in_a_picture_or_a_picture_error(tmp_path_factory, data):
    content = bytearray(data.draw(st.sampled_from(SOUND)))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, min(len(content), 400) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(content)
    try:
        read = read_bands(path, 4, longest=16)
    except PictureError as error:
        assert error.reason and "\n" not in error.reason
    else:
        assert read.dtype == np.float32 and read.shape[2] == 4 and np.isfinite(read).all()


def test_nothing_reaches_the_terminal(tmp_path):
    for share in (0.01, 0.3, 0.9):
        path = tiff(tmp_path / f"{share}.tif", DEEP, compression="lzw")
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    tiff(tmp_path / "odd.tif", DEEP[:, :, 0], extratags=[(42113, "s", 0, "-9999", True)])  # tifffile has doubts of it
    program = (
        "import sys; from synoptic.data.bands import *\n"
        "for path in sys.argv[1:]:\n"
        "    try: read_bands(path, 4)\n"
        "    except PictureError: pass\n"
    )
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    done = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


# --- for people


def test_bands_can_be_looked_at():
    bands = np.linspace(250, 350, 100 * 5, dtype=np.float32).reshape(10, 10, 5)
    for channels in (1, 2, 3, 5):
        view = as_rgb(bands[:, :, :channels])
        assert view.shape == (10, 10, 3) and view.dtype == np.uint8 and view.min() == 0 and view.max() == 255
    assert (as_rgb(bands[:, :, :1]) == as_rgb(bands[:, :, :2])).all()
    assert (as_rgb(np.full((9, 9, 3), 7.0)) == 0).all()
