"""Multi-scale deformable attention: a query looks at a few points of every level of a pyramid, which it chooses itself.

There are three ways to read the points, which agree to rounding, and none needs anything built:

- `grid_sample`: the definition, level by level, with PyTorch's own interpolation; with gradients nearly as quick as the
  others.
- `gather`: the four cells around each point are rows of a table, and `embedding_bag` adds them up by their weights;
  without gradients on a CPU 3.5 times as fast in a decoder and ten times in an encoder (benchmarks/deform_attn.py).
- `compiled`: the same through PyTorch's compiler, which needs one for C++ on a CPU and Triton on a GPU; a third faster
  again in an encoder, but the first picture waits for the compiler, so it is taken where it is asked for.

Tokens are packed: those of all pictures in one tensor, picture after picture, level after level, row by row, with no
padding among them, so that pictures of different sizes make a batch without work for what is not there.

Source: Deformable DETR, sec. 4.1 (Zhu et al. 2021, arXiv 2010.04159).
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synoptic.models.linear import Linear
from synoptic.models.parts import COUNT, in_parts

log = logging.getLogger(__name__)

Shape = tuple[int, int]  # cells down and across
Path = Literal["auto", "grid_sample", "gather", "compiled"]


@dataclass(frozen=True)
class Levels:
    """How the tokens of some pictures lie in a packed tensor.

    Attributes:
        shapes: of the levels of each picture.
    """

    shapes: tuple[tuple[Shape, ...], ...]

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Tokens of each picture."""
        return tuple(sum(height * width for height, width in picture) for picture in self.shapes)

    @cached_property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """Where each level of each picture begins."""
        found, start = [], 0
        for picture in self.shapes:
            row = []
            for height, width in picture:
                row.append(start)
                start += height * width
            found.append(tuple(row))
        return tuple(found)

    def sizes(self, device: torch.device) -> Tensor:
        """(B, L, 2) float32, width and height of each level, in the order of x and y."""
        sizes = [[shape[::-1] for shape in picture] for picture in self.shapes]
        return torch.tensor(sizes, dtype=torch.float32, device=device)


def of_queries(values: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows (B, ...) of pictures for each of their queries, (Q, ...); those of a single picture stay one row."""
    if len(counts) == 1:
        return values
    return values.repeat_interleave(torch.tensor(counts, device=values.device), 0, output_size=sum(counts))


class DeformableAttention(nn.Module):
    """Queries look at tokens of a pyramid.

    Args:
        width: channels D of queries and tokens.
        heads: number of heads; divides `width`.
        levels: of the pyramid.
        points: that each head looks at in each level.
    Attributes:
        path: how points are read; "auto" takes "grid_sample" with gradients and "gather" without, "compiled" falls back
            to "gather" where nothing compiles.
    """

    def __init__(self, width: int, heads: int, levels: int, points: int):
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.path: Path = "auto"
        self.sampling_offsets = Linear(width, heads * levels * points * 2)
        self.attention_weights = Linear(width, heads * levels * points)
        self.value_proj = Linear(width, width)
        self.output_proj = Linear(width, width)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Heads begin by looking in directions evenly around, one cell further with each point (appendix A.4)."""
        angles = torch.arange(self.heads) * (2.0 * math.pi / self.heads)
        ways = torch.stack((angles.cos(), angles.sin()), -1)
        ways = ways / ways.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)
        offsets = ways[:, None, None] * steps[:, None]  # (heads, 1, points, 2)
        self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).flatten())
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, queries: Tensor, references: Tensor, counts: Sequence[int], tokens: Tensor, at: Levels) -> Tensor:
        """What queries see.

        Args:
            queries: (Q, D) with what tells them apart added.
            references: (Q, 2) x and y in [0, 1], around which points lie some cells away; or (Q, 4) boxes cx, cy, w, h
                in [0, 1], around whose centres they lie in half sides.
            counts: queries of each picture, which see its tokens alone.
            tokens: (S, D), packed.
            at: how they lie.
        Returns:
            (Q, D).
        """
        reader = self.reader(tokens, at, counts)
        return in_parts(reader.read, queries, references, *reader.per_query, count=reader.at_once)

    def reader(self, tokens: Tensor, at: Levels, counts: Sequence[int]) -> Reader:
        """Everything before the first query: what is left is to read (queries, references, *per_query) -> (Q, D)."""
        values = self.value_proj(tokens).unflatten(-1, (self.heads, -1))
        points = _reader(values, at, counts, self._path(values.device), self.points)
        return replace(points, read=partial(self._ask, points))

    def _ask(self, reader: Reader, queries: Tensor, references: Tensor, *per_query: Tensor) -> Tensor:
        locations = self._locations(self.sampling_offsets(queries), references, per_query[0])
        weights = self.attention_weights(queries).unflatten(-1, (self.heads, -1))
        weights = weights.softmax(-1, dtype=torch.promote_types(weights.dtype, torch.float32))
        return self.output_proj(reader.read(locations, weights, *per_query))

    def _locations(self, offsets: Tensor, references: Tensor, sizes: Tensor) -> Tensor:
        """(Q, heads, levels * points * 2), x and y in cells from the centre of a level's first: float32 at least, since
        a half has no eighth of a cell left where a level is a hundred wide."""
        offsets = offsets.unflatten(-1, (self.heads, -1))
        offsets = offsets.to(torch.promote_types(offsets.dtype, references.dtype))
        sizes = sizes.to(references.dtype)
        every = self.levels * self.points
        if references.shape[-1] == 4:
            offsets = offsets * (references[:, None, 2:].tile(every) * sizes * (0.5 / self.points))
        return offsets + (references[:, None, :2].tile(every) * sizes - 0.5)

    def _path(self, device: torch.device) -> Path:
        if self.path == "auto":
            return "grid_sample" if torch.is_grad_enabled() else "gather"
        if self.path == "compiled" and not can_compile(device.type):
            return "gather"
        return self.path


@dataclass(frozen=True, eq=False)
class Reader:
    """How the values of some pictures are read. All points of a head lie side by side, level after level, so that
    arithmetic runs over long rows.

    Attributes:
        read: (queries, references, *per_query) -> (Q, D); or of points alone (locations, weights, *per_query) ->
            (Q, heads * d), of (Q, heads, levels * points * 2) and (Q, heads, levels * points).
        per_query: what belongs to each query; at first (Q, 1, levels * points * 2), width and height of the level that
            a point is in.
        at_once: how many queries may be read at once at most, see `parts.in_parts`.
    """

    read: Callable[..., Tensor]
    per_query: tuple[Tensor, ...]
    at_once: int


def sample(
    values: Tensor, locations: Tensor, weights: Tensor, counts: Sequence[int], at: Levels, path: Path = "grid_sample"
) -> Tensor:
    """Weighted sums of values at points between cells; outside of a level all is zero.

    Args:
        values: (S, heads, d), packed.
        locations: (Q, heads, levels, points, 2) x and y in cells, 0 being the centre of the first.
        weights: (Q, heads, levels, points).
        counts: queries of each picture.
        at: how values lie.
        path: how they are read.
    Returns:
        (Q, heads * d) in the type of the values.
    """
    reader = _reader(values, at, counts, path, weights.shape[-1])
    given = (locations.flatten(2), weights.flatten(2), *reader.per_query)
    parts = zip(*(each.split(min(reader.at_once, len(each))) for each in given), strict=True)
    rows = [reader.read(*part) for part in parts]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _reader(values: Tensor, at: Levels, counts: Sequence[int], path: Path, points: int) -> Reader:
    """How values (S, heads, d) are read by that many queries of each picture, at so many points of each level."""
    count = max(sum(counts), 1)
    sizes = at.sizes(values.device)  # (B, levels, 2)

    def of_each(values: Tensor) -> Tensor:
        return of_queries(values, counts).expand(count, -1, -1)

    def of_points(values: Tensor) -> Tensor:
        """(B, 1, levels * points * c) of (B, levels, c)."""
        return values.repeat_interleave(points, 1).flatten(1)[:, None]

    sides = of_each(of_points(sizes))
    if path == "grid_sample":
        return Reader(partial(_through_grids, values, at, counts), (sides,), count)
    heads = values.shape[1]
    head = torch.arange(heads, device=values.device, dtype=torch.int32)[:, None]
    table, starts = _bordered(values, at)
    below = (sizes[..., :1].to(torch.int32) + 2) * heads  # from a cell to that beneath it
    begins = torch.tensor(starts, device=values.device, dtype=torch.int32)[..., None] * heads
    firsts = of_each(of_points(begins + below + heads) + head)
    look = _compiled() if path == "compiled" else _look
    is_fast = values.device.type != "cpu" or torch.is_grad_enabled()  # or has no cache to stay in
    per_query = (sides, firsts, of_each(of_points(below)))
    return Reader(partial(look, table), per_query, count if is_fast else COUNT)


def _through_grids(
    values: Tensor, at: Levels, counts: Sequence[int], locations: Tensor, weights: Tensor, sides: Tensor
) -> Tensor:
    """By the definition, level by level, which knows its sides."""
    dtype = values.dtype
    values = values.to(locations.dtype)  # half precision has too few places for where points lie
    locations = locations.unflatten(2, (len(at.shapes[0]), -1, 2))
    weights = weights.unflatten(2, (len(at.shapes[0]), -1))
    answers = []
    pictures = zip(locations.split(list(counts)), weights.split(list(counts)), at.shapes, at.starts, strict=True)
    for its_locations, its_weights, shapes, starts in pictures:
        seen: Tensor | int = 0
        for level, ((height, width), start) in enumerate(zip(shapes, starts, strict=True)):
            plane = values[start : start + height * width].permute(1, 2, 0).unflatten(-1, (height, width))
            cells = its_locations.new_tensor((width, height))
            grid = ((2 * its_locations[:, :, level] + 1) / cells - 1).transpose(
                0, 1
            )  # (heads, Q, points, 2) in [-1, 1]
            found = F.grid_sample(plane, grid, align_corners=False)  # (heads, d, Q, points)
            seen = seen + (found * its_weights[:, :, level].transpose(0, 1)[:, None]).sum(-1)
        assert isinstance(seen, Tensor)
        answers.append(seen.permute(2, 0, 1).flatten(1))
    return torch.cat(answers).to(dtype)


def _bordered(values: Tensor, at: Levels) -> tuple[Tensor, list[list[int]]]:
    """(S', heads, d) values with a cell of zeros around every level, and where the levels of each picture begin.

    A point that lies outside is moved onto the border, and so needs neither a mask nor an index that is looked after.
    """
    cells = sum((height + 2) * (width + 2) for shapes in at.shapes for height, width in shapes)
    beyond = at.shapes[-1][-1][1] + 4  # cells with no weight that a point on the last border looks at, too
    table = values.new_zeros(cells + beyond, *values.shape[1:])
    starts, start = [], 0
    for shapes, firsts in zip(at.shapes, at.starts, strict=True):
        begins = []
        for (height, width), first in zip(shapes, firsts, strict=True):
            begins.append(start)
            room = table[start : start + (height + 2) * (width + 2)].unflatten(0, (height + 2, width + 2))
            room[1:-1, 1:-1] = values[first : first + height * width].unflatten(0, (height, width))
            start += (height + 2) * (width + 2)
        starts.append(begins)
    return table, starts


@cache
def can_compile(device: str) -> bool:
    """Whether PyTorch's compiler finds what it needs for a kind of device; tells once where it does not."""
    if device == "cpu":
        needed = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
        found = shutil.which(needed) is not None
    else:
        needed, found = "Triton", importlib.util.find_spec("triton") is not None
    if not found:
        log.warning("%s is not found, so %s", needed, _INSTEAD)
    return found


class _Compiled:
    """`_look` through PyTorch's compiler, or as it is where that fails, which is told once."""

    def __init__(self) -> None:
        self._way = torch.compile(_look, dynamic=True)

    def __call__(self, *given: Tensor) -> Tensor:
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._way(*given)
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()
            log.warning("compilation failed (%s), so %s", reason[0] if reason else type(error).__name__, _INSTEAD)
            self._way = _look
            return _look(*given)


_INSTEAD = "points of deformable attention are read by embedding_bag, not by compiled code"
_compiled = cache(_Compiled)


def _look(table: Tensor, locations: Tensor, weights: Tensor, sides: Tensor, firsts: Tensor, below: Tensor) -> Tensor:
    """(Q, heads * d), the sum of the four cells around every point, by their shares.

    Args:
        table: (S', heads, d) with borders, of which rows S' * heads are read.
        locations: (Q, heads, levels * points * 2).
        weights: (Q, heads, levels * points).
        sides: (Q, 1, levels * points * 2), width and height of levels without borders.
        firsts: (Q, heads, levels * points) int32, the rows of the first cells of levels without borders.
        below: (Q, 1, levels * points) int32, rows from a cell to that beneath it.
    """
    heads = table.shape[1]
    inside = torch.minimum(locations.clamp(min=-1), sides.to(locations.dtype))
    corner = inside.floor()
    share_x, share_y = (inside - corner).unflatten(-1, (-1, 2)).unbind(-1)
    x, y = corner.to(torch.int32).unflatten(-1, (-1, 2)).unbind(-1)
    first = firsts + (y * below + x * heads)
    rows = torch.stack((first, first + heads, first + below, first + (below + heads)), dim=2)
    low = weights * share_y
    high = weights - low
    low_right, high_right = low * share_x, high * share_x
    shares = torch.stack((high - high_right, high_right, low - low_right, low_right), dim=2)
    seen = F.embedding_bag(
        rows.flatten(2).flatten(0, 1),
        table.flatten(0, 1),
        per_sample_weights=shares.flatten(2).flatten(0, 1).to(table.dtype),
        mode="sum",
    )
    return seen.unflatten(0, (-1, heads)).flatten(1)
