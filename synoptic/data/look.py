"""A look at some pictures before a run begins: what would stop it in its middle, and what they lose unsaid."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from synoptic.data.bands import bits_of
from synoptic.data.pictures import PictureError, beyond_chance
from synoptic.data.sources import Source

log = logging.getLogger(__name__)

MOST = 500  # pictures: more tell little more
FEWEST = 9  # pictures, however long they take
SECONDS = 1.0  # that a look takes of a run that takes minutes


def look(source: Source, bands: int | None, allowed: float) -> dict[int, int]:
    """Reads some of the pictures, spread evenly over all by chance, for about a second.

    Args:
        source: the pictures.
        bands: as `Source.read`.
        allowed: share of the pictures that may be unreadable.

    Returns:
        The shorter side in pixels of each picture that was read, by its index.

    Raises:
        ValueError: more of the pictures than are allowed cannot be read, or have another number of bands.
    """
    sides: dict[int, int] = {}
    failed: dict[int, PictureError] = {}
    order = np.random.default_rng(0).permutation(len(source))[:MOST].tolist()
    end = time.monotonic() + SECONDS
    for place, index in enumerate(order):
        if place >= FEWEST and time.monotonic() > end:
            break
        try:
            sides[index] = min(source.read(index, bands=bands).shape[:2])
        except PictureError as error:
            failed[index] = error.with_traceback(None)  # which would keep the picture in memory
    _judge(source, failed, len(sides) + len(failed), bands, allowed)
    return sides


def tell_depth(source: Source, indices: Iterable[int]) -> None:
    """Warns where pictures that are read as 8-bit RGB have more bits.

    Args:
        source: the pictures.
        indices: those that are looked at, all of which can be read.
    """
    found = {index: bits_of(source.paths[index]) for index in indices}
    deep = sorted(index for index, (bits, _) in found.items() if bits > 8)
    if deep:
        bits, grey = found[deep[0]]
        keys = "channels=1 depth=full" if grey else "depth=full"
        told = "%d of %d pictures looked at have %d bits, such as %s, and are read as 8: %s keeps them"
        log.warning(told, len(deep), len(found), bits, source.name(deep[0]), keys)


def _judge(source: Source, failed: Mapping[int, PictureError], asked: int, bands: int | None, allowed: float) -> None:
    whole = asked == len(source)
    if not (len(failed) > allowed * asked if whole else beyond_chance(len(failed), asked, allowed)):
        return
    ordered = [failed[index] for index in sorted(failed)]
    others = [error for error in ordered if error.bands is not None]
    if len(others) > len(failed) / 2:
        raise ValueError(f"{source.root}: {_other_bands(others, asked, bands, allowed)}")
    count = f"{len(failed)} of {asked} pictures{'' if whole else ' that were looked at'}"
    ((reason, _),) = Counter(error.reason for error in ordered).most_common(1)
    example = next(error for error in ordered if error.reason == reason)
    mend = "repair or remove them, or allow them by a higher loader.unreadable"
    raise ValueError(f"{source.root}: {count} cannot be read, over {100 * allowed:.3g}%, such as {example}; {mend}")


def _other_bands(others: Sequence[PictureError], asked: int, channels: int | None, allowed: float) -> str:
    """What is wrong with pictures that have other numbers of bands."""
    counts = Counter(error.bands for error in others).most_common()
    usual, number = counts[0]
    if asked - number <= allowed * asked:
        return f"pictures have {usual} band{'s' * (usual != 1)}, not channels={channels}: give channels={usual}"
    examples = {error.bands: error.path for error in reversed(others)}
    named = ", ".join(f"{number} of {asked} have {count}, such as {examples[count]}" for count, number in counts)
    return f"pictures differ in their bands: {named}, not channels={channels}; make them alike"
