"""What a network normalises by is the mean and deviation of all pixels of its pictures, a band at a time."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from picture_sets import tiff

from synoptic.data.pictures import PictureError
from synoptic.data.sources import Source, open_source
from synoptic.data.statistics import SAMPLE, Moments, statistics


class Given(Source):
    """Pictures that are there without files; None is one that cannot be read."""

    def __init__(self, pictures):
        super().__init__(Path("given"), [Path(f"{number}.npy") for number in range(len(pictures))])
        self.given = dict(zip(self.paths, pictures, strict=True))
        self.asked: list[Path] = []

    def select(self, indices):
        chosen = Given([self.given[self.paths[index]] for index in indices])
        chosen.asked = self.asked
        self.asked += [self.paths[index] for index in indices]
        return chosen

    def read(self, index, longest=None, bands=None):
        assert longest is None and bands is not None
        picture = self.given[self.paths[index]]
        if picture is None:
            raise PictureError(self.name(index), "damaged")
        return picture


def pictures(count: int, channels: int, seed: int = 0) -> list[np.ndarray]:
    """Of different sizes, with bands far apart from each other."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(8, 20, (count, 2))
    return [
        (10.0 ** np.arange(channels) * rng.normal(1.0, 0.3, (*size, channels))).astype(np.float32) for size in sizes
    ]


@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 99))
def test_statistics_are_those_of_all_pixels_in_float64(count, channels, seed):
    given = pictures(count, channels, seed)
    mean, std = statistics(Given(given), channels)
    pixels = np.concatenate([picture.reshape(-1, channels) for picture in given]).astype(np.float64)
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-5)  # six digits are given
    np.testing.assert_allclose(std, pixels.std(0), rtol=1e-5)
    moments = Moments(channels)
    for picture in given:
        moments.add(picture)
    np.testing.assert_allclose(moments.mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.squares / moments.count, pixels.var(0), rtol=1e-9)


def test_a_band_far_from_zero_keeps_its_deviation():
    """Of sums of squares in float64, one digit would be left here; in float32, none."""
    rng = np.random.default_rng(0)
    moments, given = Moments(1), [1e8 + rng.normal(0, 1, (50, 50, 1)) for _ in range(20)]
    for picture in given:
        moments.add(picture)
    assert moments.squares[0] / moments.count == pytest.approx(np.var(np.stack(given) - 1e8), rel=1e-6)


def test_they_are_the_same_every_time_and_rounded():
    given = pictures(5, 3)
    first = statistics(Given(given), 3)
    assert statistics(Given(given), 3) == first
    assert all(value == float(f"{value:.6g}") for values in first for value in values)


def test_of_many_pictures_an_even_sample_is_read():
    source = Given([np.full((8, 8, 1), number, np.float32) for number in range(3 * SAMPLE)])
    mean, std = statistics(source, 1)
    assert source.asked == source.paths[::3]
    assert mean == pytest.approx((3 * (SAMPLE - 1) / 2,)) and std == pytest.approx((3 * SAMPLE / 12**0.5,), rel=1e-5)


def test_a_band_that_is_the_same_everywhere_divides_by_one():
    flat = np.ones((8, 8, 2), np.float32)
    flat[:, :, 1] = np.linspace(0, 1, 8)
    mean, std = statistics(Given([flat] * 3), 2)
    assert (mean[0], std[0]) == (1.0, 1.0) and 0 < std[1] < 1


def test_unreadable_pictures_are_left_out_and_noted():
    given = pictures(100, 2)
    source = Given([None if number in (3, 50) else picture for number, picture in enumerate(given)])
    expected = statistics(Given([picture for number, picture in enumerate(given) if number not in (3, 50)]), 2)
    assert statistics(source, 2) == expected
    assert 3 in source.errors and 50 in source.errors and len(source.errors) == 2


def test_too_many_unreadable_ones_are_an_error():
    with pytest.raises(ValueError, match="6 of 100 pictures cannot be read, over 5%"):
        statistics(Given([None] * 6 + pictures(94, 2)), 2)
    (picture,) = pictures(1, 2)
    with pytest.raises(ValueError, match=r"500 of the first 1000 pictures cannot be read, over 5%"):
        statistics(Given([None, picture] * (10 * SAMPLE + 500)), 2)  # every 21st is read: few of all, half of those
    with pytest.raises(ValueError, match="1 of 1 pictures cannot be read"):
        statistics(Given([None]), 2)


def test_bands_that_differ_between_files_are_told(tmp_path):
    for number in range(40):
        tiff(tmp_path / f"{number:02}.tif", np.full((9, 10, 4 if number else 3), number, np.uint16))
    source = open_source(str(tmp_path), "all")
    mean, _ = statistics(source, 4)
    assert mean == pytest.approx((20 / 65535,) * 4, rel=1e-5) and len(source.errors) == 1 and 0 in source.errors
    with pytest.raises(ValueError, match=r"39 of 40 pictures cannot be read.*has 4 bands, where channels=3 are read"):
        statistics(open_source(str(tmp_path), "all"), 3)
