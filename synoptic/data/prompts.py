"""Classes in words: sentences about each, from templates that all classes share or from a file of their own.

Source: Radford et al. 2021 (arXiv 2103.00020), sec. 3.1.4. The two published sets of templates are those of the
notebook "Prompt Engineering for ImageNet" that OpenAI released under the MIT licence (github.com/openai/CLIP).
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from synoptic.data.listing import expand
from synoptic.data.words import sentence

Labels = Sequence[str] | Mapping[str, Sequence[str]] | str | Path
Templates = Sequence[str] | str | Path

LARGEST_FILE = 64 << 20  # bytes of a class file; a thousand classes of 80 prompts each have 4 MB

SIMPLE = (
    *("itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}."),
    *("a {} in a video game.", "art of the {}.", "a photo of the small {}."),
)
IMAGENET = (
    *("a bad photo of a {}.", "a photo of many {}.", "a sculpture of a {}.", "a photo of the hard to see {}."),
    *("a low resolution photo of the {}.", "a rendering of a {}.", "graffiti of a {}.", "a bad photo of the {}."),
    *("a cropped photo of the {}.", "a tattoo of a {}.", "the embroidered {}.", "a photo of a hard to see {}."),
    *("a bright photo of a {}.", "a photo of a clean {}.", "a photo of a dirty {}.", "a dark photo of the {}."),
    *("a drawing of a {}.", "a photo of my {}.", "the plastic {}.", "a photo of the cool {}."),
    *("a close-up photo of a {}.", "a black and white photo of the {}.", "a painting of the {}."),
    *("a painting of a {}.", "a pixelated photo of the {}.", "a sculpture of the {}.", "a bright photo of the {}."),
    *("a cropped photo of a {}.", "a plastic {}.", "a photo of the dirty {}.", "a jpeg corrupted photo of a {}."),
    *("a blurry photo of the {}.", "a photo of the {}.", "a good photo of the {}.", "a rendering of the {}."),
    *("a {} in a video game.", "a photo of one {}.", "a doodle of a {}.", "a close-up photo of the {}."),
    *("a photo of a {}.", "the origami {}.", "the {} in a video game.", "a sketch of a {}."),
    *("a doodle of the {}.", "a origami {}.", "a low resolution photo of a {}.", "the toy {}."),
    *("a rendition of the {}.", "a photo of the clean {}.", "a photo of a large {}.", "a rendition of a {}."),
    *("a photo of a nice {}.", "a photo of a weird {}.", "a blurry photo of a {}.", "a cartoon {}."),
    *("art of a {}.", "a sketch of the {}.", "a embroidered {}.", "a pixelated photo of a {}."),
    *("itap of the {}.", "a jpeg corrupted photo of the {}.", "a good photo of a {}.", "a plushie {}."),
    *("a photo of the nice {}.", "a photo of the small {}.", "a photo of the weird {}.", "the cartoon {}."),
    *("art of the {}.", "a drawing of the {}.", "a photo of the large {}.", "a black and white photo of a {}."),
    *("the plushie {}.", "a dark photo of a {}.", "itap of a {}.", "graffiti of the {}.", "a toy {}."),
    *("itap of my {}.", "a photo of a cool {}.", "a photo of a small {}.", "a tattoo of the {}."),
)
SETS: Mapping[str, Sequence[str]] = {"7": SIMPLE, "80": IMAGENET}


def class_prompts(
    labels: Labels, templates: Templates = ("a {}",), spoken: Callable[[str], str] = str
) -> dict[str, list[str]]:
    """What is said of each class.

    Args:
        labels: the classes in words; or class -> its prompts, where none means the templates; or a class file: a line a
            class, its name and then its prompts with commas between them, in quotes where they hold commas.
        templates: sentences in which `{}` stands for a label, and "a {}" for one after "a" or "an"; "7" or "80" takes
            that many as they are published, with an "a" before any label; or a file with one a line.
        spoken: what stands in the templates for a label; by default itself.
    Returns:
        Class -> at least one prompt, in the order given.
    Raises:
        ValueError: fewer than two classes, one twice or without a name, an empty prompt, a template without `{}`, or a
            file that is missing or damaged.
    """
    given = _given(labels)
    sentences = read_templates(templates)
    published = isinstance(templates, str) and templates in SETS  # scores were found with "a photo of a orange."

    def said(name: str) -> list[str]:
        words = spoken(name)
        return [each.replace("{}", words) if published else sentence(each, words) for each in sentences]

    return {name: list(own) or said(name) for name, own in given.items()}


def class_names(labels: Labels | None, count: int) -> tuple[str, ...]:
    """Names for the classes that a model was trained on, in its order; two classes may have the same.

    Args:
        labels: the names, or a file with a line a class, or class -> anything; None numbers them from 0.
        count: how many classes there are.
    Raises:
        ValueError: they are fewer or more, or the file is missing or damaged.
    """
    if labels is None:
        return tuple(map(str, range(count)))
    if isinstance(labels, str | Path):
        names = [name for name, _ in _read_classes(_class_file(labels))]
    else:
        names = [name.strip() for name in labels if isinstance(name, str)]
    if len(names) != count or not all(names):
        raise ValueError(f"labels: {len(names):,} names for {count:,} classes; name all of them in order, or none")
    return tuple(names)


def read_templates(templates: Templates) -> tuple[str, ...]:
    """The sentences themselves; see `class_prompts`.

    Raises:
        ValueError: there are none, or one lacks `{}`.
    """
    found = tuple(_named(templates) if isinstance(templates, str | Path) else templates)
    lacking = [each for each in found if "{}" not in each]
    form = f'give sentences with {{}} for the label, such as "a photo of a {{}}", or {_SETS}'
    if not found:
        raise ValueError(f"templates: there are none; {form}")
    if lacking:
        raise ValueError(f"templates: {lacking[0]!r} has no {{}}; {form}")
    return found


_SETS = " or ".join(SETS) + " for CLIP's own"


def _named(file: str | Path) -> Sequence[str]:
    """The sentences of a published set, or of a file."""
    if str(file) in SETS:
        return SETS[str(file)]
    if "{}" in str(file):
        raise ValueError(f"templates should be a list of sentences, such as [{str(file)!r}]")
    if not expand(file).is_file():
        form = 'give a list of sentences such as "a photo of a {}"'
        raise ValueError(f"templates={file}: is no file; {form}, or {_SETS}")
    return [line.strip() for line in _text(expand(file)).splitlines() if line.strip()]


def _given(labels: Labels) -> Mapping[str, Sequence[str]]:
    """The classes with what is said of each of them alone."""
    if isinstance(labels, str | Path):
        return _checked(_read_classes(_class_file(labels)), f"labels={labels}")
    pairs = list(labels.items() if isinstance(labels, Mapping) else ((label, ()) for label in labels))
    for name, own in pairs:
        if not isinstance(name, str):
            raise ValueError(f'labels: {name!r} is no text; give classes in words, such as ["cat", "dog"]')
        if isinstance(own, str) or not all(isinstance(text, str) for text in own):
            raise ValueError(f'labels: the prompts of {name!r} should be a list of texts, such as ["a {name}"]')
    return _checked([(name.strip(), tuple(own)) for name, own in pairs], "labels")


def _class_file(labels: str | Path) -> Path:
    path = expand(labels)
    if not path.is_file():
        form = 'give a list such as ["cat", "dog"], or a class file with a line a class'
        raise ValueError(f"labels={labels}: is no file; {form}")
    return path


def _checked(classes: Sequence[tuple[str, Sequence[str]]], where: str) -> dict[str, Sequence[str]]:
    """The classes as a mapping, if there is something to choose between."""
    if not classes:
        raise ValueError(f'{where}: there are none; give classes in words, such as "cat,dog"')
    for place, (name, own) in enumerate(classes, start=1):
        if not name or not all(text.strip() for text in own):
            raise ValueError(f"{where}: class {place} has an empty {'prompt' if name else 'name'}; leave it out")
    name, count = Counter(name for name, _ in classes).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{where}: {name!r} is there {count} times, and a picture could be either; leave one")
    if len(classes) == 1:
        raise ValueError(
            f"{where}: {name!r} alone leaves nothing to choose, so its score would be 1 for any picture; give others "
            "beside it"
        )
    return dict(classes)


def _read_classes(path: Path) -> list[tuple[str, Sequence[str]]]:
    """Name and prompts of each line of a class file."""
    lines = _text(path).rstrip().splitlines()
    reader = csv.reader(lines, strict=True, skipinitialspace=True)
    rows: list[tuple[str, Sequence[str]]] = []
    try:
        for row in reader:
            if not row or not row[0].strip():
                raise ValueError(f"{path}: line {reader.line_num} names no class; give a line a class, its name first")
            rows.append((row[0].strip(), [text.strip() for text in row[1:]]))
    except csv.Error as error:
        form = f"name,prompt,prompt ({error})"
        raise ValueError(f"{path}: line {reader.line_num} is not of the form {form}") from None
    return rows


def _text(path: Path) -> str:
    """A text file of bounded size, in UTF-8 with or without a mark of it."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"{path}: has more than {LARGEST_FILE >> 20} MB, and so is no list of words")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is no text in UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{path}: is no text in UTF-8")
    return text
