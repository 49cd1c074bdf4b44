"""The verb `segment`: what points and boxes mean in a picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from synoptic.apps.arguments import OptionsVerb
from synoptic.apps.typed import typed_file
from synoptic.weights.options import LoadOptions


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """Cuts out what points and boxes mean in one picture, for a SAM; tells a line a mask: its score, and its area.

    Attributes:
        image: the file.
        model: a name from `synoptic models`, a run folder, or a weights file or folder.
        points: x and y in pixels of the picture, from its upper left corner, as in "120,80;130,95"; all of them are on
            or off one object, and stand in the box where one is given. Needs quotes, since `;` ends a command.
        boxes: left, top, right and bottom in pixels, as in "10,20,110,220;90,20,300,220", one an object.
        labels: 1 for each point that is on the object, 0 for each that is not, as in 1,0; None takes all to be on it.
        alternatives: all three masks of each object, the best first, in place of the best.
        out: .png file, the picture with masks and prompts drawn on it.
        masks: the masks themselves: an .npz file holds all of them as `masks` (n, H, W) and their `scores`; a .png file
            one, white on black, and of several masks each is written beside it with its number behind the name.
        load: what a weights file of other makers does not say itself.
    """

    image: str
    model: str
    points: str | None = None
    boxes: str | None = None
    labels: tuple[int, ...] | None = None
    alternatives: bool = False
    out: str | None = None
    masks: str | None = None
    load: LoadOptions = field(default_factory=LoadOptions)


def segment(options: SegmentOptions) -> None:
    """Masks of what points and boxes mean in a picture."""
    points, boxes = _rows("points", options.points, "120,80"), _rows("boxes", options.boxes, "10,20,110,220")
    from synoptic.apps.cutouts import segment

    found = segment(
        options.image,
        options.model,
        points,
        boxes,
        options.labels,
        options.alternatives,
        typed_file(options.out),
        typed_file(options.masks),
        **asdict(options.load),
    )
    for number, (score, pixels, share) in enumerate(found, start=1):
        print(f"mask {number}: score {score:.3f}, {pixels:,} pixels, {share:.1%} of the picture")


SEGMENT = OptionsVerb(segment, SegmentOptions, "image")


def _rows(key: str, typed: str | None, example: str) -> list[list[float]] | None:
    """Numbers as they are typed, as in "1,2;3,4".

    Raises:
        ValueError: they are no numbers, or not as many as in the example.
    """
    if typed is None:
        return None
    wanted = example.count(",") + 1
    try:
        rows = [[float(part) for part in row.split(",")] for row in typed.split(";") if row.strip()]
    except ValueError:
        rows = []
    if not rows or any(len(row) != wanted for row in rows):
        raise ValueError(f'segment: {key}={typed} should be {wanted} numbers each, as in {key}="{example};{example}"')
    return rows
