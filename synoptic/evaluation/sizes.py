"""At which sizes of the pictures a model is asked, where it is judged by a curve over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from synoptic.types import EncodesImages, EncodesSizes, Preprocess

# Of the model's own size: where a student of several resolutions changes its mind lies between 1 and 2 (RADIOv2.5
# tech report: 432 pixels against 720), so that steps are small there.
FACTORS = (1 / 2, 2 / 3, 1, 4 / 3, 3 / 2, 2, 3, 4)
HIGHEST = 1024  # pixels, by default; more is left to those who ask for it
FEWEST = 2  # patches across, by default: of one patch there is no map


def rising_sizes(
    model: EncodesImages, sizes: Sequence[int] | None = None, factors: Sequence[float] = FACTORS
) -> tuple[int, ...]:
    """Sides in pixels at which a model is asked, the smallest first.

    Args:
        model: tells its stride, and whether it takes other sizes than its own.
        sizes: that are asked for; None takes from half to four times the model's own size, rounded to its patches, up
            to 1,024 pixels.
        factors: of the model's own size, in place of those.
    Raises:
        ValueError: for no sizes, or one that the model's patches do not tile or that it does not take.
    """
    own = model.preprocess.size
    if not isinstance(model, EncodesSizes):
        raise ValueError("sizes=: the model tells nothing of its patches, and so cannot be asked at several sizes")
    if sizes is None:
        step, least = model.step, max(FEWEST * model.stride, model.step)
        scaled = {max(round(factor * own / step) * step, least) for factor in factors} if model.any_size else set()
        return tuple(sorted({size for size in scaled if size <= max(HIGHEST, own)} | {own}))
    _check(model, own, sizes)
    return tuple(sorted(set(sizes)))


def _check(model: EncodesSizes, own: int, sizes: Sequence[int]) -> None:
    if not sizes:
        raise ValueError("sizes=: there are none; give sides in pixels, such as sizes=128,256,512")
    for size in sizes:
        step = model.step
        if size < 1 or size % step:
            low, high = (max(count, 1) * step for count in (size // step, -(-size // step)))
            what = "patches" if step == model.stride else "windows of patches"
            told = f"{what} of {step} pixels do not tile it; the nearest sizes that work are {low} and {high}"
            raise ValueError(f"sizes={size}: {told}")
        if size != own and not model.any_size:
            raise ValueError(f"sizes={size}: the model reads pictures of {own} pixels alone; leave sizes out")


def squarely(preprocess: Preprocess, size: int | None = None) -> Preprocess:
    """The same view at another size; of one that pads the largest centred square, as in the training of a student.

    Patches of filling show nothing, and would say the same at the same place in every picture.
    """
    mode = "crop" if preprocess.mode == "pad" else preprocess.mode
    return replace(preprocess, size=preprocess.size if size is None else size, mode=mode, fill=())
