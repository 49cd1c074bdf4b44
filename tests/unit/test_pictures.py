"""Any picture file becomes upright 8-bit RGB or a PictureError with a short reason."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from synoptic.data.pictures import MAX_PIXELS, PictureError, UnreadableLog, read_picture, to_rgb


@pytest.fixture(autouse=True)
def no_warnings():
    """Nothing that Pillow warns of may reach the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def gradient(width: int = 48, height: int = 32) -> Image.Image:
    """Red grows to the right, green downwards, blue is constant: every orientation looks different."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 90)], -1).astype(np.uint8))


def saved(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# --- what is read


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm", "lossless.webp", "a.jp2"])
def test_lossless_formats_are_exact(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    path = saved(gradient(), tmp_path / name, **options)
    read = read_picture(path)
    assert read.dtype == np.uint8 and read.flags.writeable
    np.testing.assert_array_equal(read, np.asarray(gradient()))


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.avif"])
def test_lossy_formats_are_close(tmp_path, name):
    read = read_picture(saved(gradient(), tmp_path / name, quality=95)).astype(float)
    assert np.abs(read - np.asarray(gradient())).mean() < 4


def test_content_decides_not_the_name(tmp_path):
    path = saved(gradient(), tmp_path / "really_png.jpg", format="PNG")
    np.testing.assert_array_equal(read_picture(path), np.asarray(gradient()))


def test_open_files_and_pillow_pictures_read_alike(tmp_path):
    path = saved(gradient(), tmp_path / "a.png")
    for picture in (str(path), io.BytesIO(path.read_bytes()), Image.open(path), gradient()):
        np.testing.assert_array_equal(read_picture(picture), np.asarray(gradient()))


def test_a_pillow_picture_stays_as_it_was(tmp_path):
    with Image.open(saved(gradient(640, 480), tmp_path / "a.jpg")) as image:
        assert read_picture(image, longest=64).shape == (48, 64, 3)
        assert image.size == (640, 480)


def test_cmyk_jpeg(tmp_path):
    cmyk = Image.merge("CMYK", [Image.new("L", (32, 24), value) for value in (0, 255, 255, 0)])
    read = read_picture(saved(cmyk, tmp_path / "red.jpg", quality=95))
    assert (np.abs(read.astype(int) - [255, 0, 0]) < 12).all()


@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
def test_sixteen_bit_grey_spans_the_full_range(tmp_path, name):
    values = np.linspace(0, 65535, 32 * 8).astype(np.uint16).reshape(8, 32)
    read = read_picture(saved(Image.fromarray(values), tmp_path / name))
    assert (read == read[..., :1]).all()
    assert np.abs(read[..., 0] - values / 257.0).max() <= 0.5


def test_sixteen_bit_pgm_spans_the_full_range(tmp_path):
    values = np.linspace(0, 65535, 16 * 16).astype(">u2").reshape(16, 16)
    (tmp_path / "a.pgm").write_bytes(b"P5 16 16 65535\n" + values.tobytes())
    assert np.abs(read_picture(tmp_path / "a.pgm")[..., 0] - values.astype(float) / 257.0).max() <= 0.5


@pytest.mark.parametrize(
    ("low", "high", "first", "last"),
    [(0.0, 1.0, 0, 255), (0.0, 200.0, 0, 200), (0.0, 51400.0, 0, 200), (-7.0, 3.0, 0, 255), (5e6, 9e6, 0, 255)],
)
def test_floats_are_read_in_the_range_that_holds_them(tmp_path, low, high, first, last):
    values = np.linspace(low, high, 64, dtype=np.float32).reshape(8, 8)
    read = read_picture(saved(Image.fromarray(values), tmp_path / "a.tif"))
    assert (read[0, 0, 0], read[-1, -1, 0]) == (first, last)
    assert (np.diff(read[..., 0].ravel().astype(int)) >= 0).all()


def test_floats_that_are_not_numbers_do_no_harm(tmp_path):
    values = np.full((8, 8), 0.5, np.float32)
    values[0] = np.nan
    values[1] = np.inf
    read = read_picture(saved(Image.fromarray(values), tmp_path / "a.tif"))
    assert (read[:2] == 0).all() and (read[2:] == 128).all()


def test_integers_of_32_bits(tmp_path):
    values = np.array([0, 100, 200, 250] * 16, dtype=np.int32).reshape(8, 8)
    np.testing.assert_array_equal(read_picture(saved(Image.fromarray(values), tmp_path / "a.tif"))[..., 0], values)


@pytest.mark.parametrize("value", [0, 7, 3_000_000])
def test_a_constant_picture_of_32_bits(tmp_path, value):
    read = read_picture(saved(Image.fromarray(np.full((8, 8), value, np.int32)), tmp_path / "a.tif"))
    assert (read == (value if value < 256 else 0)).all()


def test_bilevel(tmp_path):
    bits = np.eye(16, dtype=bool)
    read = read_picture(saved(Image.fromarray(bits), tmp_path / "a.png"))
    np.testing.assert_array_equal(read[..., 1], bits * 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_lies_over_white(tmp_path, mode):
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 8, 16))
    image.paste((0, 0, 0, 127), (8, 0, 16, 8))
    read = read_picture(image.convert(mode))
    assert (read[:, :8] == 255).all()
    assert (read[8:, 8:] == 0).all()
    assert (np.abs(read[:8, 8:].astype(int) - 128) <= 1).all()


@pytest.mark.parametrize("form", ["png", "gif"])
def test_a_palette_with_transparency(tmp_path, form):
    image = Image.fromarray(np.repeat(np.arange(4, dtype=np.uint8), 16).reshape(8, 8), "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    read = read_picture(saved(image, tmp_path / f"a.{form}", transparency=0))
    assert [tuple(read[row, 0]) for row in (0, 2, 4, 6)] == [(255,) * 3, (255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_a_palette_with_transparency_by_entry(tmp_path):
    image = Image.fromarray(np.repeat(np.arange(2, dtype=np.uint8), 32).reshape(8, 8), "P")
    image.putpalette([0, 0, 0, 255, 0, 0])
    read = read_picture(saved(image, tmp_path / "a.png", transparency=bytes([0, 255])))
    assert (read[0] == 255).all() and (read[7] == [255, 0, 0]).all()


def test_a_transparent_colour_of_rgb(tmp_path):
    image = Image.new("RGB", (8, 16), (1, 2, 3))
    image.paste((9, 9, 9), (0, 0, 8, 8))
    read = read_picture(saved(image, tmp_path / "a.png", transparency=(1, 2, 3)))
    assert (read[:8] == 9).all() and (read[8:] == 255).all()


@pytest.mark.parametrize("form", ["gif", "webp", "png", "tif"])
def test_the_first_frame_of_what_moves(tmp_path, form):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if form == "webp" else {}
    path = saved(frames[0], tmp_path / f"a.{form}", save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as image:
        assert image.n_frames == 3
    assert (read_picture(path) == [255, 0, 0]).all()


_STORED = {  # how a camera stores an upright picture that it tags with this orientation (EXIF 2.3, tag 274)
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("form", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_out_upright(tmp_path, orientation, form):
    upright = np.asarray(gradient())
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 98, "subsampling": 0}, "webp": {"lossless": True}}.get(form, {})
    stored = Image.fromarray(np.ascontiguousarray(_STORED[orientation](upright)))
    path = saved(stored, tmp_path / f"a.{form}", exif=exif, **options)
    for longest, expected in ((None, upright), (24, np.asarray(gradient().resize((24, 16), Image.Resampling.BICUBIC)))):
        read = read_picture(path, longest)
        assert read.shape == expected.shape
        assert np.abs(read.astype(int) - expected).max() <= (0 if form != "jpg" and longest is None else 6)
    with Image.open(path) as image:
        assert to_rgb(image).size == (48, 32)


def test_broken_metadata_is_no_reason_to_lose_a_picture(tmp_path):
    path = saved(gradient(), tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff rubbish")
    assert read_picture(path).shape == (32, 48, 3)


# --- sizes


@given(st.integers(8, 400), st.integers(8, 400), st.integers(1, 500), st.sampled_from(["PNG", "JPEG"]))
@settings(max_examples=60)
def test_the_longer_side_is_reduced_never_enlarged(width, height, longest, form):
    file = io.BytesIO()
    gradient(width, height).save(file, form)
    read_height, read_width, _ = read_picture(file, longest).shape
    assert max(read_width, read_height) == min(longest, max(width, height))
    scale = min(1.0, longest / max(width, height))
    assert abs(read_width - width * scale) <= 1 and abs(read_height - height * scale) <= 1


def test_fast_jpeg_reduction_looks_like_a_full_resize(tmp_path):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (37, 51, 3), dtype=np.uint8)).resize((1021, 739))
    path = saved(image, tmp_path / "a.jpg", quality=95)
    full = Image.fromarray(read_picture(path))
    for longest in (64, 100, 333):
        fast = read_picture(path, longest).astype(float)
        slow = np.asarray(full.resize(fast.shape[1::-1], Image.Resampling.BICUBIC)).astype(float)
        assert np.abs(fast - slow).mean() < 1


@pytest.mark.parametrize("form", ["jpg", "png"])
@pytest.mark.parametrize("size", [(9000, 8), (8, 9000)])
def test_an_extreme_aspect_keeps_a_pixel(tmp_path, size, form):
    path = saved(Image.new("RGB", size, "red"), tmp_path / f"a.{form}")
    shape = read_picture(path, longest=64).shape
    assert sorted(shape) == [1, 3, 64]


@pytest.mark.parametrize("size", [(1, 1), (7, 500), (500, 7)])
def test_tiny_pictures_are_refused(tmp_path, size):
    with pytest.raises(PictureError, match=f"too small: {size[0]} x {size[1]} pixels, at least 8"):
        read_picture(saved(Image.new("RGB", size), tmp_path / "a.png"))


@pytest.mark.parametrize("size", [(MAX_PIXELS // 8192 + 1, 8192), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_unopened(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(png_header(*size))
    with pytest.raises(PictureError, match=r"too large: \d+ million pixels, at most 134 million"):
        read_picture(tmp_path / "bomb.png", longest=64)


def test_large_but_honest_pictures_are_read(tmp_path):
    path = saved(Image.new("L", (12_000, 9_000)), tmp_path / "a.jpg")  # 108 million pixels, above Pillow's warning
    assert read_picture(path, longest=64).shape == (48, 64, 3)


# --- what is not read


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.jpg", b"", "empty file"),
        ("text.jpg", b"Not a picture at all.\n" * 20, "not a picture"),
        ("page.png", b"<html><body>404 Not Found</body></html>", "not a picture"),
        ("program.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        ("zeros.jpg", bytes(5000), "not a picture"),
        ("promise.png", png_header(64, 64), "truncated"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PictureError, match=reason) as caught:
        read_picture(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name}: {caught.value.reason}"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["jpg", "png", "webp", "gif", "bmp", "tif", "ppm"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path, form, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path = saved(noise, tmp_path / f"a.{form}")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    for longest in (None, 16):
        with pytest.raises(PictureError):
            read_picture(path, longest)


def test_missing_files_folders_and_pipes(tmp_path):
    with pytest.raises(PictureError, match="no such file"):
        read_picture(tmp_path / "none.jpg")
    with pytest.raises(PictureError, match="not a file"):
        read_picture(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(PictureError, match="not a file"):
        read_picture(tmp_path / "pipe.jpg")


@given(st.data())
@settings(max_examples=150)
def test_damage_of_any_kind_ends_in_a_picture_or_a_picture_error(data):
    form = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]))
    file = io.BytesIO()
    gradient(24, 16).save(file, form)
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = read_picture(io.BytesIO(bytes(content)), longest=64)
    except PictureError as error:
        assert error.reason and "\n" not in error.reason
    else:
        assert read.dtype == np.uint8 and read.ndim == 3 and read.shape[2] == 3 and max(read.shape[:2]) <= 64


def test_nothing_reaches_the_terminal(tmp_path):
    for form in ("jpg", "tif", "png", "webp"):
        path = saved(gradient(), tmp_path / f"a.{form}", **({"compression": "tiff_lzw"} if form == "tif" else {}))
        path.write_bytes(path.read_bytes()[:-40])
    program = (
        "import sys; from synoptic.data.pictures import *\n"
        "for path in sys.argv[1:]:\n"
        "    try: read_picture(path)\n"
        "    except PictureError: pass\n"
    )
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    done = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_picture_error_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(PictureError("a.jpg", "truncated")))
    assert (error.path, error.reason, str(error)) == ("a.jpg", "truncated", "a.jpg: truncated")


def test_a_kept_error_keeps_nothing_else(tmp_path):
    log = UnreadableLog("set", 100)
    try:
        read_picture(tmp_path / "none.jpg")
    except PictureError as error:
        log.note([0], [(0, error)])
        kept = error
    assert (kept.__traceback__, kept.__context__) == (None, None)


# --- the record


def failures(*indices: int) -> list[tuple[int, PictureError]]:
    return [(index, PictureError(f"{index}.jpg", "truncated")) for index in indices]


def test_each_file_is_recorded_once(tmp_path):
    log = UnreadableLog("set", 1000)
    log.note([0, 1], failures(1))
    log.write_to(tmp_path / "errors.jsonl")
    log.note([1, 2], failures(1, 2))
    resumed = UnreadableLog("set", 1000)
    resumed.write_to(tmp_path / "errors.jsonl")
    resumed.note([2, 3], failures(2, 3))
    lines = [json.loads(line) for line in (tmp_path / "errors.jsonl").read_text().splitlines()]
    assert lines == [{"path": f"{index}.jpg", "reason": "truncated"} for index in (1, 2, 3)]
    assert 2 in resumed and 1 not in resumed and len(resumed) == 2


def test_a_record_torn_by_a_crash_is_continued(tmp_path):
    (tmp_path / "errors.jsonl").write_text('{"path": "1.jpg", "reason": "x"}\n{"path": "2.j')
    log = UnreadableLog("set", 1000)
    log.write_to(tmp_path / "errors.jsonl")
    log.note([], failures(1, 2))
    assert json.loads((tmp_path / "errors.jsonl").read_text().splitlines()[-1])["path"] == "2.jpg"


def test_file_names_of_any_bytes_are_recorded(tmp_path):
    log = UnreadableLog("set", 1000)
    log.write_to(tmp_path / "errors.jsonl")
    log.note([], [(0, PictureError("\udcff.jpg", "truncated"))])
    assert json.loads((tmp_path / "errors.jsonl").read_text())["path"] == "\udcff.jpg"
    assert str(PictureError("\udcff.jpg", "truncated")).encode() == rb"\udcff.jpg: truncated"


@given(st.integers(1, 2000), st.data())
@settings(max_examples=100)
def test_over_five_percent_of_all_is_an_error(total, data):
    broken = data.draw(st.integers(0, min(total, total // 10 + 2)))
    log = UnreadableLog("set", total)
    if broken > 0.05 * total:
        with pytest.raises(
            ValueError, match=rf"set: {broken} of {total} pictures cannot be read, over 5%, such as 0.jpg"
        ):
            log.note([], failures(*range(broken)))
    else:
        log.note([], failures(*range(broken)))
        log.note([], failures(*range(broken)))


@pytest.mark.parametrize(("allowed", "total"), [(0.0, 1), (0.2, 21), (1.0, None)])
def test_more_than_the_share_that_is_allowed_is_an_error_that_names_its_key(allowed, total):
    log = UnreadableLog("set", 100, allowed)
    log.note(range(100), failures(*range((total or 101) - 1)))
    if total is not None:
        share = f"{total} of 100 pictures cannot be read, over {allowed:.0%}"
        with pytest.raises(ValueError, match=rf"{share}, .*or go on with a higher loader.unreadable$"):
            log.note([], failures(total - 1))


def test_three_files_are_named_for_one_reason_where_all_are_listed(tmp_path, caplog):
    log = UnreadableLog("set", 1000)
    with caplog.at_level("INFO"):
        log.note([], failures(*range(5)))  # nowhere listed yet
        assert len(caplog.messages) == 5
        caplog.clear()
        log.write_to(tmp_path / "errors.jsonl")
        log.note([], [(index, PictureError(f"{index}.jpg", "empty file")) for index in range(10, 17)])
    named = [f"skipped {index}.jpg: empty file" for index in (10, 11, 12)]
    assert caplog.messages == [*named, f"skipped more files: empty file; all are listed in {log.path}"]
    assert len((tmp_path / "errors.jsonl").read_text().splitlines()) == 12


def test_a_share_that_chance_cannot_explain_is_an_error_early():
    log = UnreadableLog("set", 100_000)
    log.note(range(199), failures(*range(60)))  # too few to tell
    with pytest.raises(ValueError, match="60 of the first 200 pictures cannot be read"):
        log.note([199], [])


@pytest.mark.parametrize("seed", range(20))
def test_four_percent_in_random_order_are_no_error(seed):
    log = UnreadableLog("set", 20_000)
    order = np.random.default_rng(seed).permutation(20_000)
    for asked in order.reshape(-1, 40):
        log.note(asked, failures(*asked[asked < 800].tolist()))
    assert len(log) == 800


def test_failures_that_nobody_asked_for_say_nothing_about_the_rest():
    log = UnreadableLog("set", 100_000)
    log.note(range(300), failures(*range(290, 700)))  # a gap searched for a replacement
    assert len(log) == 410
