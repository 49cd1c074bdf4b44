"""What k-NN says of photographs without any learning: the scores that a trained network has to beat.

    python benchmarks/imagenette_floors.py [--data DIR] [--k 10]

DIR is `imagenette96` below the folder that SYNOPTIC_DATA names: 5,000 training and 1,000 test photographs of ten
classes, 96 pixels. All training pictures vote, all test pictures are asked about. Judged are raw pixels (8x8 and 16x16,
less their mean), hand-made features (histograms of colours and of gradients in cells), and untrained networks as the
trainings of docs/benchmarks.md begin with them, three seeds each.
"""

from __future__ import annotations

import argparse
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import torch
import torch.nn.functional as F
from torch import Tensor

from synoptic.data.colour import luma
from synoptic.data.sources import Source, open_source
from synoptic.evaluation.features import RawPixels
from synoptic.evaluation.recognition import KNN
from synoptic.models.vit import ViT, vit_config
from synoptic.predict import VisionModel
from synoptic.types import EncodesImages, Features, Preprocess

NETWORKS = (("vit_mini16", 64), ("vit_mini16", 96), ("vit_mini8", 64))
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class HandMade:
    """Histograms of colours and of gradients: what was used before networks learned their own features.

    Colours: shares of 4 x 4 x 4 bins of RGB in each of 2 x 2 cells. Gradients: 9 orientations, weighted by length, in
    each of 6 x 6 cells, as shares of 2 x 2 neighbouring cells (Dalal and Triggs 2005, "HOG"). Both are square roots, so
    that their dot product is the Bhattacharyya coefficient of the histograms, and weigh the same.

    Attributes:
        size: side in pixels of the picture that they are taken of.
    """

    size: int = 96

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(self.size)

    def encode_image(self, images: Tensor) -> Features:
        """Features of (B, 3, size, size) pictures; the summary holds both parts."""
        parts = [F.normalize(part, dim=1) for part in (self.colours(images), self.gradients(images))]
        summary = torch.cat(parts, dim=1)
        return Features(summary[:, None], (1, 1), summary)

    def colours(self, images: Tensor, bins: int = 4, cells: int = 2) -> Tensor:  # (B, cells^2 * bins^3)
        levels = (images * bins).long().clamp_max(bins - 1)
        index = (levels[:, 0] * bins + levels[:, 1]) * bins + levels[:, 2]
        planes = F.one_hot(index, bins**3).permute(0, 3, 1, 2).float()
        return F.adaptive_avg_pool2d(planes, cells).flatten(1).sqrt()

    def gradients(self, images: Tensor, bins: int = 9, cells: int = 6) -> Tensor:  # (B, (cells - 1)^2 * 4 * bins)
        grey = F.pad(luma(images), (1, 1, 1, 1), mode="replicate")
        across, down = grey[:, 0, 1:-1, 2:] - grey[:, 0, 1:-1, :-2], grey[:, 0, 2:, 1:-1] - grey[:, 0, :-2, 1:-1]
        angle = torch.atan2(down, across).remainder(torch.pi) / torch.pi * bins
        low = angle.floor()
        share, length = angle - low, torch.hypot(across, down)
        planes = F.one_hot(low.long() % bins, bins) * ((1 - share) * length)[..., None]
        planes = planes + F.one_hot((low.long() + 1) % bins, bins) * (share * length)[..., None]
        histograms = F.adaptive_avg_pool2d(planes.permute(0, 3, 1, 2), cells)
        blocks = F.unfold(histograms, kernel_size=2)  # (B, 4 * bins, (cells - 1)^2)
        return F.normalize(blocks, p=1.0, dim=1).sqrt().flatten(1)


def score(model: EncodesImages, train: Source, test: Source, k: int) -> float:
    return dict(KNN(train, test, k=k).run(model))["knn"]


def untrained(name: str, size: int, seed: int) -> VisionModel:
    torch.manual_seed(seed)
    return VisionModel(ViT(vit_config(name, image_size=size)), Preprocess(size), name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(Path(os.environ.get("SYNOPTIC_DATA", "")) / "imagenette96"))
    parser.add_argument("--k", type=int, default=10)
    arguments = parser.parse_args()
    if not Path(arguments.data).is_dir():
        print(f"left out, since {arguments.data} is not there; give --data, or set SYNOPTIC_DATA")
        return
    train, test = open_source(arguments.data, "all"), open_source(arguments.data, "test")
    results: dict[str, Any] = {
        "raw_pixels_8": score(RawPixels(8), train, test, arguments.k),
        "raw_pixels_16": score(RawPixels(16), train, test, arguments.k),
        "hand_made": score(HandMade(), train, test, arguments.k),
    }
    for name, size in NETWORKS:
        scores = [score(untrained(name, size, seed), train, test, arguments.k) for seed in SEEDS]
        results[f"untrained_{name}_{size}"] = {"mean": round(statistics.mean(scores), 4), "seeds": scores}
    for name, found in results.items():
        print(f"{name:28} {found['mean'] if isinstance(found, dict) else found:.3f}")
    common.finish(
        "imagenette_floors",
        {"k": arguments.k, "train": len(train), "test": len(test), "knn": results},
        "what k-NN reaches without learning",
        [],
    )


if __name__ == "__main__":
    main()
