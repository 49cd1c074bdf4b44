"""Attention in windows, with which a ViT takes less time for large pictures: most of its blocks see them in parts.

Source: ViTDet, Li et al. 2022 (arXiv 2203.16527), sec. 3; as a mode of one network AM-RADIO, sec. 4 and app. C
(arXiv 2312.06709).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from synoptic.models.layers import Groups


def is_global(block: int, depth: int, count: int) -> bool:
    """Whether a block attends over the whole picture where others do in windows: the last of each period, and of all.

    Args:
        block: counted from 0.
        depth: how many blocks there are.
        count: how many of them are to be global; a period is the whole part of depth / count.
    """
    period = max(depth // count, 1)
    return block % period == period - 1 or block == depth - 1


class Windows:
    """Packed tokens whose patches lie window by window, so that each window is a group of its own.

    The order changes once; then entering windows and leaving them moves nothing but the learned tokens, which are set
    aside in blocks with windows and come back, as they were, in the global ones.

    Args:
        groups: shapes of the packed tokens.
        grids: of the patches of each group.
        learned: summary tokens and registers before the patches of every picture.
        side: of a window, in patches; it divides all grids.
        stride: pixels a patch, told in errors.
        device: of the tokens.
    Raises:
        ValueError: windows do not tile a grid.
    """

    def __init__(
        self,
        groups: Groups,
        grids: Sequence[tuple[int, int]],
        learned: int,
        side: int,
        stride: int,
        device: torch.device,
    ):
        for height, width in grids:
            if height % side or width % side:
                raise ValueError(_untiled(height, width, side, stride))
        self.groups = tuple(
            (batch * (height // side) * (width // side), side * side)
            for (batch, _), (height, width) in zip(groups, grids, strict=True)
        )
        orders, patches, start = [], [], 0
        for (batch, count), (height, width) in zip(groups, grids, strict=True):
            cells = torch.arange(height * width, device=device).view(height // side, side, width // side, side)
            order = torch.cat([torch.arange(learned, device=device), learned + cells.transpose(1, 2).flatten()])
            places = start + torch.arange(batch * count, device=device).view(batch, count)
            orders.append(places[:, order].flatten())
            patches.append(places[:, learned:].flatten())
            start += batch * count
        self._order, self._patches = torch.cat(orders), torch.cat(patches)
        self._alone = learned == 0

    def ordered(self, tokens: Tensor) -> Tensor:
        """(T, D) packed tokens, patches row by row, with the patches window by window."""
        return tokens[self._order]

    def restored(self, tokens: Tensor) -> Tensor:
        """(T, D) packed tokens with the patches window by window, row by row again."""
        return torch.empty_like(tokens).index_copy(0, self._order, tokens)

    def through(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """(T, D) tokens, patches window by window, after a block in which these attend in windows."""
        if self._alone:
            return block(tokens, self.groups)
        return tokens.index_copy(0, self._patches, block(tokens[self._patches], self.groups))


def _untiled(height: int, width: int, side: int, stride: int) -> str:
    step = side * stride
    sides = ((height * stride // step) or 1, (width * stride // step) or 1)
    low, high = ("x".join(str((each + more) * step) for each in sides) for more in (0, 1))
    return (
        f"windows of {side} x {side} patches do not tile the {height} x {width} of pictures of "
        f"{height * stride}x{width * stride}; they tile sides that are multiples of {step}, such as {low} and {high}"
    )
