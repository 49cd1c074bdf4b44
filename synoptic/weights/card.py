"""The model card of a weights folder: what it is, in words, and at its head the lines that Hugging Face's Hub reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from synoptic.models.adaptors import Student
from synoptic.models.grounding_dino import GroundingDino
from synoptic.models.sam import Sam
from synoptic.types import Preprocess

LIBRARY = "synoptic"

# What the Hub calls licences that it knows; the others are "other" there, with their name beside.
_HUB_LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0")

_MODES = {
    "crop": "the largest centred square",
    "squash": "the whole picture",
    "pad": "the whole picture, its longer side, filled up on the right and below",
}
CALLED = {
    "vit": "vision transformer",
    "resnet": "ResNet of CLIP",
    "plain_resnet": "ResNet",
    "classifier": "linear classifier on a backbone",
    "clip": "CLIP",
    "student": "student of several teachers",
    "sam": "SAM",
    "grounding_dino": "Grounding DINO",
    "hub": "vision model of transformers",
}
_ORIGIN = ("origin", "from", "part", "architecture", "init")
_DATA = ("data", "images")
_METRICS = "scores"
_LICENCE = "licence"

_SQUARES = """pictures of
{size} x {size} pixels ({mode}) in patches of {patch}, and any other size that these patches tile."""
_SHAPES = """pictures of
any shape, their shorter side brought to {size} pixels, the longer one to {longest} at most."""
_HEAD = """A {kind} of {parameters:.1f} M parameters for synoptic (`pip install synoptic-vision`). It reads {pictures}

```python
import synoptic

model = synoptic.load("path/to/this/folder")
{example}
```"""


def model_card(model: Any, preprocess: Preprocess, kind: str, name: str, trained: Mapping[str, Any]) -> str:
    """The model card, in Markdown.

    Args:
        model: of a kind that can be saved.
        preprocess: what its pictures go through.
        kind: its key in `folder.KINDS`.
        name: what people call it.
        trained: facts about its training; of these `origin`, `from`, `architecture` and `init` tell what it was made
            of, `licence` what may be done with it, `data` what it learned from, `scores` how good it is, and all others
            how it was made.
    """
    sections = dict(_sections(model, preprocess, kind, trained))
    text = "\n\n".join(f"## {title}\n\n{body}" if title else body for title, body in sections.items())
    return f"{_front_matter(model, kind, trained)}\n# {name}\n\n{text}\n"


def _front_matter(model: Any, kind: str, trained: Mapping[str, Any]) -> str:
    licence = str(trained.get(_LICENCE) or "unknown").lower()
    known = licence == "unknown" or licence in _HUB_LICENCES
    task = "image-feature-extraction"
    if _segments(model):
        task = "mask-generation"
    elif _knows_words(model):
        task = "zero-shot-image-classification"
    lines = [
        f"license: {licence if known else 'other'}",
        *([] if known else [f"license_name: {_plain(licence)}"]),
        f"library_name: {LIBRARY}",
        f"pipeline_tag: {task}",
        "tags:",
        *(f"- {tag}" for tag in (task, LIBRARY, kind)),
    ]
    return "\n".join(["---", *lines, "---", ""])


def _sections(model: Any, preprocess: Preprocess, kind: str, trained: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield (
        "",
        _HEAD.format(
            kind=CALLED[kind],
            parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
            pictures=_pictures(model, preprocess),
            example=_example(model),
        ),
    )
    if isinstance(model, Student):
        lines = [f"- `{name}`: {_channels(adaptor)}" for name, adaptor in model.adaptors.items()]
        yield "Adaptors", "It answers in the space of each of its teachers:\n\n" + "\n".join(lines)
    facts = {key: value for key, value in trained.items() if value not in ({}, None)}
    told = (*_ORIGIN, *_DATA, _METRICS, _LICENCE)
    yield "Origin", _list(facts, _ORIGIN) or "Not told."
    yield "Licence", _fact(facts.get(_LICENCE) or "None is told: whoever made these weights decides.")
    yield "Data", _list(facts, _DATA) or "Not told."
    yield "Metrics", _table(facts.get(_METRICS)) or "None are told."
    yield "How it was made", _list(facts, [key for key in facts if key not in told]) or "Not told."


def _pictures(model: Any, preprocess: Preprocess) -> str:
    if preprocess.mode == "fit":
        return _SHAPES.format(size=preprocess.size, longest=preprocess.longest)
    return _SQUARES.format(size=preprocess.size, mode=_MODES[preprocess.mode], patch=model.stride)


def _example(model: Any) -> str:
    """What the model is most used for, as a line of Python."""
    if isinstance(model, GroundingDino):
        return 'model.detect("a.jpg", "a cat. a dog.")  # boxes (n, 4) in pixels, scores (n,), labels (n,)'
    if model.summary_width:
        return f'model.embed(["a.jpg"])  # (1, {model.summary_width}) float32, L2-normalised'
    if _segments(model):
        return 'model.segment("a.jpg", points=[(10, 20)])  # masks (n, H, W) bool, scores (n,)'
    return f'model.features("a.jpg").patches  # (1, h*w, {model.width})'


def _segments(model: Any) -> bool:
    return isinstance(model, Sam) and model.decoder is not None


def _list(facts: Mapping[str, Any], keys: Any) -> str:
    return "\n".join(f"- {key}: {_fact(facts[key])}" for key in keys if key in facts)


def _table(scores: Any) -> str:
    """Scores on the pictures by which the training chose its best weights."""
    if not isinstance(scores, Mapping):
        return ""
    lines = [f"| {name} | {_fact(value)} |" for name, value in scores.items()]
    return "\n".join(["| score | value |", "| --- | --- |", *lines])


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_fact(part)}" for key, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else _one_line(str(value))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _plain(text: str) -> str:
    """A text that is one word in YAML, whatever it was."""
    return "".join(character if character.isalnum() or character in ".-" else "-" for character in text)


def _knows_words(model: Any) -> bool:
    adaptors = model.adaptors.values() if isinstance(model, Student) else ()
    return hasattr(model, "encode_text") or any(adaptor.text is not None for adaptor in adaptors)


def _channels(adaptor: Any) -> str:
    summary = f"summary of {adaptor.config.summary} channels, " if adaptor.config.summary else ""
    return f"{summary}patches of {adaptor.config.patches}{', words' if adaptor.text is not None else ''}"
