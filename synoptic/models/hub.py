"""Any vision model of `transformers` as a backbone that answers with Features.

What a model answers with is found out by asking it: before it has its weights, a picture without values goes through it
(on PyTorch's meta device), which costs no time, and the shapes of the answer tell where patches and summary stand. A
model is taken where these rules hold, and refused otherwise:

- its answer is a sequence of tokens, the learned ones before those of the patches, or a map of features;
- its patches are as many as pixels of its pictures in steps of a patch, or of that times a power of two;
- its summary is its pooled output, projected where it shares a space with words, else its first token, else None.

A pooler with a layer of its own and tanh was trained for one task and is often missing in files: it is left out, and
the first token is the summary.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from synoptic.models.hub_build import HubConfig, build, compute_buffers, one_line, parts, quiet
from synoptic.models.layers import Normalize
from synoptic.models.vit import tiled_sizes
from synoptic.types import Features

# Learned tokens, which stand before those of the patches.
_LEARNED = ("cls_token", "class_embedding", "distillation_token", "register_tokens", "cls_register_token")


@dataclass(frozen=True)
class Reading:
    """How patches are read from one tensor of an answer.

    Attributes:
        stride: pixels from one patch to the next.
        width: channels.
        before: tokens that stand before those of the patches; None for a map of features.
        channels_last: whether a map is (B, h, w, D), not (B, D, h, w).
    """

    stride: int
    width: int
    before: int | None = None
    channels_last: bool = False

    def of(self, answer: Tensor, images: Tensor) -> Features:
        """Patches, and where there are tokens before them the first one as summary."""
        height, width = images.shape[-2:]
        if self.before is None:
            maps = answer.permute(0, 3, 1, 2) if self.channels_last else answer
            return Features(maps.flatten(2).transpose(1, 2), (maps.shape[2], maps.shape[3]))
        grid = (height // self.stride, width // self.stride)
        if answer.shape[1] != self.before + grid[0] * grid[1]:
            grid = (-(-height // self.stride), -(-width // self.stride))
        found = answer.shape[1] - self.before
        assert found == grid[0] * grid[1], f"{found} patches make no {grid[0]} x {grid[1]}"
        return Features(answer[:, self.before :], grid, answer[:, 0] if self.before else None)


@dataclass(frozen=True)
class Layout:
    """What the answers of a model look like.

    Attributes:
        last: how the patches of its answer are read.
        layers: likewise, of each of its blocks or stages; none where they cannot be.
        summary_width: channels of its summary; 0 where it has none.
        any_size: whether it takes pictures of other sizes than its own.
    """

    last: Reading
    layers: tuple[Reading, ...]
    summary_width: int
    any_size: bool


class HubBackbone(nn.Module):
    """A vision model of `transformers` that answers with Features.

    Built from its configuration it has no weights yet: they lie on the meta device, until they are assigned.

    Attributes:
        model: the part that sees.
        projection: what takes its summary into the space of words, or nothing.
        width: channels D of a patch.
        stride: pixels from one patch to the next.
        channels: bands of the pictures.
        depth: how many blocks, or stages of a convolutional network, can be asked for as `layers`.
        size: side of its own pictures in pixels, a multiple of `stride`.
    Raises:
        ValueError: the model is none that sees, naming what was missing.
    """

    def __init__(self, config: HubConfig):
        super().__init__()
        self.config = config
        with quiet(), torch.device("cpu"):  # whoever builds this on the meta device does not want its tables there
            self.model, self.projection = parts(build(config), config.pooler)
            self.layout = _probe(self.model, self.projection, config)
            compute_buffers(self.model)
        self.normalize = Normalize(config.mean, config.std)
        self.width, self.stride, self.channels = self.layout.last.width, self.layout.last.stride, len(config.mean)
        self.summary_width, self.depth = self.layout.summary_width, len(self.layout.layers)
        self.size = max(config.image_size // self.stride, 1) * self.stride

    def forward(self, images: Tensor, masks: Tensor | None = None, layers: Sequence[int] = ()) -> Features:
        """Encodes pictures.

        Args:
            images: (B, C, H, W) float in [0, 1]; H and W are multiples of `stride`, and `size` where the model takes
                nothing else.
            masks: None, since what a model does with hidden patches is not known.
            layers: blocks whose features are wanted too, counted from 0 or, if negative, from the end.
        Returns:
            Features. Those of layers are as transformers gives them: mostly before the final norm, of a network in
            stages each with a grid of its own; their summary is their first token, where they have tokens that stand
            before the patches.
        Raises:
            ValueError: for sizes that it does not take, a wrong number of bands, layers that do not exist, or masks.
        """
        self._check(images, masks)
        wanted = self._layers(layers)
        answer = self._ask(self.normalize(images), bool(wanted))
        hidden = _hidden(answer)
        return replace(
            self.layout.last.of(_last(answer), images),
            summary=_summary(answer, self.layout.last.before, self.projection),
            layers=tuple(self.layout.layers[index].of(hidden[index], images) for index in wanted),
        )

    def _ask(self, pixels: Tensor, hidden: bool) -> Mapping[str, Any]:
        try:
            return ask(self.model, pixels, self.config.image_size, hidden)
        except RuntimeError as error:
            height, width = pixels.shape[-2:]
            if (height, width) == (self.size, self.size) or "memory" in str(error):
                raise
            told = f"a {self.config.architecture} does not take pictures of {height}x{width} ({one_line(error)})"
            raise ValueError(f"{told}; its own are of {self.size}x{self.size}") from None

    def _layers(self, layers: Sequence[int]) -> list[int]:
        for index in layers:
            if not -self.depth <= index < self.depth:
                told = f"this network has {self.depth}, 0 to {self.depth - 1}" if self.depth else "none can be asked"
                raise ValueError(f"there is no layer {index}; {told}")
        return [index % self.depth for index in layers]

    def _check(self, images: Tensor, masks: Tensor | None) -> None:
        if masks is not None:
            raise ValueError(f"masks were given to a {self.config.architecture} of transformers, which takes none")
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(f"expected pictures of shape (B, {self.channels}, H, W), got {tuple(images.shape)}")
        height, width = images.shape[-2:]
        if not self.layout.any_size and (height, width) != (self.size, self.size):
            raise ValueError(
                f"pictures of {height}x{width} are not of the one size that a {self.config.architecture} reads, "
                f"{self.size}x{self.size}"
            )
        if height % self.stride or width % self.stride or not height or not width:
            (low_h, high_h), (low_w, high_w) = tiled_sizes(height, self.stride), tiled_sizes(width, self.stride)
            raise ValueError(
                f"pictures of {height}x{width} are not tiled by patches of {self.stride}; "
                f"the nearest sizes that work are {low_h}x{low_w} and {high_h}x{high_w}"
            )


def ask(sees: Any, pixels: Tensor, size: int, hidden: bool) -> Mapping[str, Any]:
    """What a model of transformers answers to normalised pixels.

    Args:
        sees: the part that sees.
        pixels: (B, C, H, W).
        size: side of the pictures that it is made for; of others its positions are resampled.
        hidden: whether blocks are to answer, too.
    """
    known = inspect.signature(sees.forward).parameters
    height, width = pixels.shape[-2:]
    options: dict[str, Any] = {"output_hidden_states": True} if hidden else {}
    if "interpolate_pos_encoding" in known:
        options["interpolate_pos_encoding"] = (height, width) != (size, size)
    if "noise" in known:  # the order in which masked autoencoders shuffle patches: none
        count = height // _patch(sees.config) * (width // _patch(sees.config))
        options["noise"] = torch.arange(count, device=pixels.device).expand(len(pixels), -1)
    if "spatial_shapes" in known:
        pixels, shapes = _cut(pixels, sees.config.patch_size)
        options |= {"spatial_shapes": shapes, "pixel_attention_mask": None}
    with _as_it_was(sees):
        answer: Mapping[str, Any] = sees(pixel_values=pixels, **options)
    return answer


@contextmanager
def _as_it_was(sees: nn.Module) -> Iterator[None]:
    """Undoes what a Swin of transformers remembers of small pictures: its windows no longer shift, nor grow again."""
    layers: list[Any] = [layer for layer in sees.modules() if hasattr(layer, "set_shift_and_window_size")]
    before = [(layer.window_size, layer.shift_size) for layer in layers]
    try:
        yield
    finally:
        for layer, (window, shift) in zip(layers, before, strict=True):
            layer.window_size, layer.shift_size = window, shift


def _cut(pixels: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Patches (B, h*w, P*P*C) of the pictures, channels last, and (B, 2) their h and w: NaFlex (arXiv 2502.14786)."""
    rows = pixels.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (B, C, h, P, w, P)
    batch, _, height, _, width, _ = rows.shape
    shapes = torch.tensor([[height, width]] * batch, device="cpu")
    return rows.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2), shapes


def _last(answer: Mapping[str, Any]) -> Tensor:
    found = answer.get("features")  # RADIO's patches, without the tokens before them
    last: Tensor = answer["last_hidden_state"] if found is None else found
    return last


def _hidden(answer: Mapping[str, Any]) -> Sequence[Tensor]:
    """What blocks answer, as maps where the model gives these; the first is mostly their input, and left out."""
    found = answer.get("reshaped_hidden_states")
    hidden: Sequence[Tensor] = (answer.get("hidden_states") or ()) if found is None else found
    return hidden[1:]


def _summary(answer: Mapping[str, Any], before: int | None, projection: nn.Module) -> Tensor | None:
    pooled = next((answer[name] for name in ("summary", "pooler_output") if answer.get(name) is not None), None)
    if pooled is None:
        return answer["last_hidden_state"][:, 0] if before else None
    projected: Tensor = projection(pooled.flatten(1))
    return projected


@torch.no_grad()
def _probe(sees: Any, projection: nn.Module, config: HubConfig) -> Layout:
    """What the answers of a model on the meta device look like.

    Raises:
        ValueError: it does not answer pictures, or with something in which patches cannot be found.
    """
    side, name = config.image_size, config.architecture
    bands = getattr(sees.config, "num_channels", 3)
    if bands != len(config.mean):
        raise ValueError(f"{name} reads {bands} bands, and its pictures are normalised by mean={config.mean}")
    try:
        answer = _try(sees, config, side, side)
    except Exception as error:  # whatever its code stumbles over
        raise ValueError(f"{name} does not answer a picture alone ({one_line(error)})") from None
    if answer.get("last_hidden_state") is None:
        raise ValueError(f"{name} answers with {', '.join(answer)}, and no last_hidden_state")
    learned, patch = _learned(sees), _patch(sees.config)
    last = _reading(_last(answer), side, patch, learned)
    if last is None:
        told = f"answers {tuple(_last(answer).shape)} to a picture of {side} x {side}"
        raise ValueError(f"{name} {told}, in which its patches cannot be found")
    across = max(side // last.stride, 1)
    if not _takes(sees, config, last, across, across):
        raise ValueError(f"{name} reads pictures of {side} x {side}, which steps of {last.stride} pixels do not tile")
    readings = [_reading(hidden, side, patch, learned) for hidden in _hidden(answer)]
    summary = _summary(answer, last.before, projection)
    return Layout(
        last,
        tuple(reading for reading in readings if reading is not None) if None not in readings else (),
        0 if summary is None else summary.shape[1],
        _takes(sees, config, last, across + 1, across),
    )


def _try(sees: Any, config: HubConfig, height: int, width: int) -> Mapping[str, Any]:
    """The answer, without values, of a model without values."""
    return ask(sees, torch.empty(1, len(config.mean), height, width, device="meta"), config.image_size, True)


def _takes(sees: Any, config: HubConfig, last: Reading, rows: int, columns: int) -> bool:
    """Whether a picture of so many patches is answered with so many patches."""
    height, width = rows * last.stride, columns * last.stride
    try:
        answer = _last(_try(sees, config, height, width))
        return last.of(answer, torch.empty(1, 1, height, width, device="meta")).grid == (rows, columns)
    except (ValueError, RuntimeError, AssertionError):
        return False


def _learned(sees: nn.Module) -> int:
    """How many learned tokens stand before those of the patches."""
    found = {name.rpartition(".")[2]: each for name, each in sees.named_parameters()}
    shapes = [found[name].shape for name in _LEARNED if name in found]
    return sum(math.prod(shape[:-1]) for shape in shapes)


def _patch(config: Any) -> int:
    """The side of a patch where the configuration tells one, else 2, of which the strides of stages are multiples."""
    size = getattr(config, "patch_size", None)
    size = size[0] if isinstance(size, list | tuple) and len(set(size)) == 1 else size
    return size if isinstance(size, int) and size > 0 else 2


def _reading(answer: Tensor, side: int, patch: int, learned: int) -> Reading | None:
    """How patches of square pictures are read from a tensor; None where they cannot be found in it."""
    if answer.ndim == 3:
        for before in dict.fromkeys((learned, 0, 1)):  # 1: a pooled vector may stand where a token was
            across = math.isqrt(max(answer.shape[1] - before, 0))
            stride = _stride(side, across, patch)
            if stride and before + across**2 == answer.shape[1]:
                return Reading(stride, answer.shape[2], before)
    if answer.ndim == 4:
        _, first, second, third = answer.shape
        for high, wide, width, channels_last in ((second, third, first, False), (first, second, third, True)):
            stride = _stride(side, high, patch)
            if stride and high == wide:
                return Reading(stride, width, None, channels_last)
    return None


def _stride(side: int, count: int, patch: int) -> int | None:
    """Pixels from one of `count` patches to the next: a patch's side, or a power of two, or that many of the other."""
    sizes = [base << power for base in (patch, 2) for power in range(7)]
    fitting = [size for size in sizes if count and count in (side // size, -(-side // size))]
    return next((size for size in fitting if size * count == side), fitting[0] if fitting else None)
