"""Do patches say where they are, whatever the picture shows? Artefacts of positions, as a number and as a map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from synoptic.data.sources import Source
from synoptic.evaluation.features import Space, check_finite, show_each
from synoptic.evaluation.sizes import rising_sizes, squarely
from synoptic.types import EncodesImages, Features

FEWEST = 2  # pictures: of one, the mean map is the picture


class PositionArtefacts:
    """How much of what patches say is said by their place alone, as a curve over the size of the pictures.

    Averaged over many pictures, what these show cancels out, and what a position adds to every one of them is left. The
    energy of that mean map's deviation from its own mean over all places, as a share of the variance of all patches,
    is 0 for a model without artefacts. What pictures themselves have in common at a place (sky above, objects in the
    middle) counts too, so that models are to be compared on the same pictures.

    Yields for each size S, the smallest first, "artefacts@S", that share, and "artefacts_unbiased@S", the same without
    what a mean over so few pictures has by chance: the mean inner product of the maps of two different pictures, each
    without its own mean, since what chance gives to two of them is independent. So a model without artefacts has 0 in
    expectation, and may have less than that. It is what the inner product of the mean maps of two halves of the
    pictures gives, averaged over all ways to halve them. In the space of an adaptor A the names are "artefacts_A@S" and
    "artefacts_unbiased_A@S".

    What is kept does not grow with the number of pictures.

    Args:
        source: two pictures at least, the more the better.
        adaptor: judges a student's answer in the space of this teacher; None takes the model's own patches.
        sizes: sides in pixels; see `rising_sizes`.
    Raises:
        ValueError: for a single picture.
    """

    def __init__(self, source: Source, adaptor: str | None = None, sizes: Sequence[int] | None = None):
        if len(source) < FEWEST:
            raise ValueError(f"{source.root}: holds a single picture, whose mean map is that picture; give many")
        self.source, self.space, self.sizes = source, Space(adaptor), sizes

    def run(self, model: EncodesImages) -> Iterator[tuple[str, float]]:
        sizes = rising_sizes(model, self.sizes)  # here, before any picture is read
        return self._scores(model, sizes)

    def _scores(self, model: EncodesImages, sizes: Sequence[int]) -> Iterator[tuple[str, float]]:
        for size, found in self.judge(model, sizes).items():
            yield f"artefacts{self.space.suffix}@{size}", found.share
            yield f"artefacts_unbiased{self.space.suffix}@{size}", found.unbiased

    def judge(self, model: EncodesImages, sizes: Sequence[int]) -> dict[int, MeanMap]:
        """The mean map at each size."""
        ways = {size: squarely(model.preprocess, size) for size in sizes}
        sums = {size: _Sums() for size in sizes}
        for batch in show_each(ways.values(), self.source):
            for size, way in ways.items():
                with torch.no_grad():
                    features = self.space.of(model.encode_image(batch.images[way]))
                check_finite(features.patches, batch.index, self.source)
                sums[size].add(features)
        if sums[sizes[0]].pictures < FEWEST:
            raise ValueError(f"{self.source.root}: a single one of its pictures can be read; give many")
        return {size: each.mean_map() for size, each in sums.items()}


@dataclass(frozen=True)
class MeanMap:
    """What the patches at each place say on average.

    Attributes:
        deviation: (h, w) float64, the length of the mean's deviation from its own mean over all places, in units of the
            patches' deviation from their mean (the root of their variance, summed over the channels).
        share: the mean square of that.
        unbiased: the same without what chance gives.
    """

    deviation: Tensor
    share: float
    unbiased: float


@dataclass
class _Sums:
    """Sums over pictures, float64, of one size."""

    pictures: int = 0
    grid: tuple[int, int] = (0, 0)
    # Far from zero a variance would drown in its mean: all is summed about the first picture's mean patch.
    origin: Tensor = field(default_factory=lambda: torch.zeros(()))  # (D,)
    maps: Tensor = field(default_factory=lambda: torch.zeros(()))  # (h*w, D)
    squares: float = 0.0  # of all patches
    deviations: float = 0.0  # the squares of each picture's patches about their mean

    def add(self, features: Features) -> None:
        if not self.pictures:
            self.grid, self.origin = features.grid, features.patches[0].cpu().double().mean(0)
        for patches in features.patches.cpu():
            moved = patches.double() - self.origin
            self.maps = self.maps + moved
            self.squares += float(moved.square().sum())
            self.deviations += float(_deviation(moved).square().sum())
            self.pictures += 1

    def mean_map(self) -> MeanMap:
        places, count = self.grid[0] * self.grid[1], self.pictures
        mean = self.maps / count
        variance = self.squares / (count * places) - float(mean.mean(0).square().sum())
        if not variance > 0:
            return MeanMap(torch.zeros(self.grid, dtype=torch.float64), 0.0, 0.0)  # it says nothing, and of no place
        energies = _deviation(mean).square().sum(1)  # (h*w,)
        # The square of a sum over pictures, less the products of pictures with themselves, leaves those of pairs.
        pairs = count**2 * float(energies.mean()) - self.deviations / places
        unbiased = pairs / (count * (count - 1)) / variance
        return MeanMap(
            (energies / variance).sqrt().unflatten(0, self.grid), float(energies.mean() / variance), unbiased
        )


def _deviation(means: Tensor) -> Tensor:
    """(h*w, D) values at places, without their mean over all places."""
    return means - means.mean(0)
