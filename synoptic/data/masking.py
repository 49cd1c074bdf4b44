"""Which patches of a picture are hidden from the student, for a whole batch at once.

Source: block masking of BEiT (Bao et al. 2022, arXiv 2106.08254, algorithm 1), as iBOT (arXiv 2111.07832) and DINOv2
(arXiv 2304.07193) use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from synoptic.config import Share
from synoptic.data.draws import Draws

_TRIES = 10  # rectangles that are tried for each one that is laid
_ROUNDS = 64  # rectangles at most; a mask that is not full by then falls short by a patch or two
_ASPECT = (0.3, 1 / 0.3)  # height over width, drawn evenly on a logarithmic scale
_LEAST = 4  # patches of a rectangle, while so many are missing


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Which pictures are masked, and how much of them.

    Attributes:
        share: of the large crops that are masked at all.
        ratio: smallest and largest part of the patches of a masked one that is hidden.
        shape: "block" hides rectangles, "random" single patches.
    """

    share: Share = 0.5
    ratio: tuple[float, float] = (0.1, 0.5)
    shape: Literal["block", "random"] = "block"

    def __post_init__(self) -> None:
        if not 0.0 <= self.ratio[0] <= self.ratio[1] < 1.0:
            raise ValueError(f"ratio={self.ratio} is no span: give two numbers with 0 <= low <= high < 1")


def draw_masks(config: MaskConfig, grid: tuple[int, int], position: Tensor, batch: int, seed: int) -> Tensor:
    """Masks of the two large crops of every picture.

    How much is hidden is drawn stratified over the whole batch: its masked crops share the span of ratios evenly, one
    each to an equal part of it, in random order. A share of the crops that is no whole number is made up for by later
    batches, and of a masked crop one patch at least is hidden, unless its ratio is 0. A sample's masks depend on the
    seed and on its position in the run alone, however the batch is cut into parts and over processes.

    Args:
        config: which and how much.
        grid: (h, w) patches of a large crop.
        position: (B,) int64 places in the run of the pictures of this part of a batch.
        batch: pictures of a whole batch.
        seed: of the run.
    Returns:
        (2B, h*w) bool, the first crops of all pictures before the second ones.
    """
    position = torch.cat((position * 2, position * 2 + 1)).cpu()
    draws = Draws(seed, position)
    cells = grid[0] * grid[1]
    ratios = _ratios(config, position.numpy(), 2 * batch, seed, draws)
    wanted = torch.from_numpy(np.where(ratios > 0, np.maximum(ratios * cells, 1), 0)).long()
    if config.shape == "random":
        order = draws.uniform("mask.order", count=cells).argsort(dim=1).argsort(dim=1)
        return order < wanted[:, None]
    return _blocks(grid, wanted.numpy(), position, seed)


def _ratios(config: MaskConfig, position: np.ndarray, crops: int, seed: int, draws: Draws) -> np.ndarray:
    """(2B,) the part of each crop's patches to hide, 0 for those that are not masked."""
    strata, masked = np.empty(len(position), np.int64), np.empty(len(position), np.int64)
    for step in np.unique(position // crops).tolist():
        order = np.random.default_rng((seed & 0xFFFFFFFFFFFFFFFF, step, 1)).permutation(crops)
        here = position // crops == step
        strata[here] = order[position[here] % crops]
        masked[here] = int((step + 1) * crops * config.share) - int(step * crops * config.share)
    low, high = config.ratio
    within = draws.uniform("mask.ratio").double().numpy()
    ratios = low + (high - low) * (strata + within) / np.maximum(masked, 1)
    return np.where(strata < masked, ratios, 0.0)


def _blocks(grid: tuple[int, int], wanted: np.ndarray, position: Tensor, seed: int) -> Tensor:
    """(n, h*w) bool: rectangles, one a round in all masks at once, until they hold as many patches as are wanted."""
    height, width = grid
    masks = np.zeros((len(wanted), height, width), bool)
    rows, columns = np.arange(height)[:, None], np.arange(width)
    for turn in range(_ROUNDS):
        missing = wanted - masks.sum((1, 2))
        active = np.flatnonzero(missing >= 1)
        if not len(active):
            break
        draws = Draws(seed, position[active])
        boxes = _rectangles(grid, missing[active], turn, draws)  # (a, tries, 4): top, left, height, width
        top, left, high, wide = (side[..., None, None] for side in np.moveaxis(boxes, -1, 0))
        inside = (rows >= top) & (rows < top + high) & (columns >= left) & (columns < left + wide)
        gained = (inside & ~masks[active, None]).sum((2, 3))  # (a, tries)
        fits = (gained >= 1) & (gained <= missing[active, None])
        first = fits.argmax(1)
        some = fits.any(1)
        masks[active[some]] |= inside[np.arange(len(active)), first][some]
    return torch.from_numpy(masks.reshape(len(wanted), -1))


def _rectangles(grid: tuple[int, int], missing: np.ndarray, turn: int, draws: Draws) -> np.ndarray:
    """(n, tries, 4) int64 top, left, height, width: the tries of one round, by area, shape and place."""
    height, width = grid

    def uniform(name: str) -> np.ndarray:
        return draws.uniform(f"mask.{turn}.{name}", count=_TRIES).double().numpy()

    largest = np.maximum(missing, 1)[:, None]
    least = np.minimum(largest, _LEAST)
    area = least + (largest - least) * uniform("area")
    aspect = np.exp(np.log(_ASPECT[0]) + (np.log(_ASPECT[1]) - np.log(_ASPECT[0])) * uniform("aspect"))
    high = np.clip(np.rint(np.sqrt(area * aspect)), 1, height)
    wide = np.clip(np.rint(np.sqrt(area / aspect)), 1, width)
    top, left = np.floor(uniform("top") * (height - high + 1)), np.floor(uniform("left") * (width - wide + 1))
    return np.stack((top, left, high, wide), axis=-1).astype(np.int64)
