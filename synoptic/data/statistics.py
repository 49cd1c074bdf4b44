"""Mean and standard deviation of each band of a data set, with which a network normalises what it is shown."""

from __future__ import annotations

import logging

import numpy as np

from synoptic.data.pictures import PictureError
from synoptic.data.sources import Source

logger = logging.getLogger(__name__)

SAMPLE = 1000  # pictures; with more, means move by less than a thirtieth of what tells pictures apart
DIGITS = 6  # significant; more would differ from machine to machine, by the order in which they sum


def statistics(source: Source, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels of each band, over at most 1,000 pictures evenly from a source.

    They are a function of the pictures alone, found in float64 in one pass and rounded to six digits. Every pixel
    counts alike. Pictures that cannot be read are noted in `source.errors` and left out.

    Args:
        source: the pictures.
        channels: their bands, which are read at full depth.

    Returns:
        Two tuples of `channels` numbers. The deviation of a band that is the same everywhere is given as 1, so that
        dividing by it does no harm.

    Raises:
        ValueError: more of the pictures cannot be read, or have another number of bands, than is allowed; or none can
            be read.
    """
    sample = source.sample(SAMPLE)
    moments = Moments(channels)
    failed = []
    for index in range(len(sample)):
        try:
            moments.add(sample.read(index, bands=channels))
        except PictureError as error:
            failed.append((index, error.with_traceback(None)))  # which would keep the picture in memory
    sample.errors.note(range(len(sample)), failed)  # together, since in order the first ones tell little of the others
    if not moments.count:
        raise ValueError(f"{source.root}: none of the {len(sample)} pictures that were tried can be read")
    deviation = np.sqrt(moments.squares / moments.count)
    mean, std = _rounded(moments.mean), _rounded(np.where(deviation > 0.0, deviation, 1.0))
    logger.info("bands of %d pictures: mean %s, standard deviation %s", len(sample) - len(failed), mean, std)
    return mean, std


class Moments:
    """Count, mean and sum of squared deviations of each band, picture by picture, in float64.

    Merging the moments of parts loses no digits where a band is far from zero and hardly varies, as sums of squares
    would.

    Source: Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    """

    def __init__(self, channels: int):
        self.count = 0
        self.mean = np.zeros(channels)
        self.squares = np.zeros(channels)

    def add(self, picture: np.ndarray) -> None:
        """Takes in the pixels of a picture (H, W, C)."""
        bands = picture.transpose(2, 0, 1)
        pixels = bands[0].size
        mean = np.array([band.mean(dtype=np.float64) for band in bands])  # band by band, which takes less memory
        variance = np.array([band.var(dtype=np.float64) for band in bands])
        total = self.count + pixels
        apart = mean - self.mean
        self.squares += variance * pixels + apart**2 * (self.count * pixels / total)
        self.mean += apart * (pixels / total)
        self.count = total


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.{DIGITS}g}") for value in values)
