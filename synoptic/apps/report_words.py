"""What a report shows of a model that knows words: its answers, its worst mistakes, how sure it is, what it finds."""

from __future__ import annotations

import numpy as np

from synoptic.apps.figures import reliability
from synoptic.apps.report_page import Block, Cards, Cell, Curve, Curves, Gallery, Picture, Section, Table
from synoptic.apps.report_parts import percent, shown, squares, words_cards
from synoptic.data.sources import Source
from synoptic.evaluation.captions import WITHIN, CaptionRetrieval, Retrieved
from synoptic.evaluation.intervals import interval
from synoptic.evaluation.protocols import SCENE_TEMPLATES, TEMPLATES, class_names, prompts, zeroshot
from synoptic.evaluation.recognition import Recognised
from synoptic.evaluation.scenes import is_scenes
from synoptic.predict import VisionModel

JUDGED = 500  # pictures at most, as while training
ASKED, WORST = 6, 6  # pictures whose answers are shown: some of all, and the most surely wrong ones
CAPTIONS = 50  # to choose from where there are no classes
FOUND = 5  # pictures that a caption found


def words_sections(name: str, model: VisionModel, validation: Source) -> list[Section]:
    """What the model makes of validation pictures in words; nothing of one that knows none in a single space."""
    if not model.speaks():
        return []
    judged = validation.sample(JUDGED)
    captioned = sum(map(bool, judged.captions))
    sections = _classes(name, model, judged) if judged.labels is not None else []
    if captioned and not sections:
        sections = [_captions(name, model, judged)]
    return [*sections, _found(name, model, judged)] if captioned > 1 else sections


def _classes(name: str, model: VisionModel, validation: Source) -> list[Section]:
    """Which class a picture shows: how sure the model is, some answers, and the worst."""
    evaluator = zeroshot(validation, model.text_space)
    recognised = evaluator.judge(model)
    found = evaluator.calibration(model, recognised)
    labels = [prompts([each], ["{}"])[0][0] for each in class_names(validation)[: evaluator.seen]]
    right = percent(recognised.accuracy())
    text = (
        f"Right in {right} of {len(recognised.truth)} validation pictures, with {len(labels)} classes to choose from. "
        f"The expected calibration error is {percent(found.error)}: the bars of the diagram are how often answers of a "
        "certain confidence are right, the dots how sure they are on average, larger for more answers."
    )
    diagram = Curves([Curve("Is it right as often as it is sure?", reliability(found))])
    spread = np.linspace(0, len(recognised.truth) - 1, min(ASKED, len(recognised.truth))).round().astype(int)
    some = _cards(model, validation, recognised, spread.tolist(), labels)
    wrong = _surely_wrong(recognised)
    sections = [Section(f"Asked in words: {name}", [text], [diagram, some])]
    if wrong:
        told = f"The {len(wrong)} wrong answers that lie furthest above the truth."
        sections.append(
            Section(f"Most surely wrong: {name}", [told], [_cards(model, validation, recognised, wrong, labels)])
        )
    return sections


def _surely_wrong(recognised: Recognised) -> list[int]:
    """Places of wrong answers, the ones first that are furthest above the truth."""
    places = np.arange(len(recognised.truth))
    above = recognised.scores.max(1) - recognised.scores[places, recognised.truth]
    wrong = np.flatnonzero(recognised.predicted != recognised.truth)
    return wrong[np.argsort(-above[wrong], kind="stable")][:WORST].tolist()


def _cards(model: VisionModel, source: Source, recognised: Recognised, places: list[int], labels: list[str]) -> Cards:
    pictures = squares(source, [int(recognised.index[place]) for place in places], model.preprocess.bands)
    truths = [labels[recognised.truth[place]] for place in places]
    templates = SCENE_TEMPLATES if is_scenes(source) else TEMPLATES
    return Cards(words_cards(model, pictures, truths, labels, templates))


def _captions(name: str, model: VisionModel, validation: Source) -> Section:
    """Which caption a picture has, out of those of some pictures."""
    captioned = [index for index, captions in enumerate(validation.captions) if captions][:CAPTIONS]
    labels = list(dict.fromkeys(validation.captions[index][0] for index in captioned))
    truths = [validation.captions[index][0] for index in captioned[:ASKED]]
    pictures = squares(validation, captioned[:ASKED], model.preprocess.bands)
    cards = Cards(words_cards(model, pictures, truths, labels, ["{}"]))
    text = f"{len(labels)} captions of validation pictures to choose from."
    return Section(f"Asked in words: {name}", [text], [cards])


def _found(name: str, model: VisionModel, validation: Source) -> Section:
    """What captions find among the pictures, and how often pictures and captions find each other."""
    found = CaptionRetrieval(validation, model.text_space).judge(model)
    text = (
        f"{len(found.index)} validation pictures and their {len(found.texts)} captions look for each other; below, in "
        f"the first column, the pictures of some captions, and beside each the {FOUND} that its caption finds."
    )
    blocks: list[Block] = [_recalls(found), _gallery(model, validation, found)]
    return Section(f"Captions and pictures: {name}", [text], blocks)


def _recalls(found: Retrieved) -> Table:
    count = len(found.index)
    rows: list[list[Cell | str]] = []
    for way, title in enumerate(("a picture finds a caption of its own", "a caption finds its picture")):
        shares = [found.recall(k)[way] for k in WITHIN]
        ends = [" to ".join(f"{100 * end:.1f}" for end in interval(share, count)) for share in shares]
        rows.append([title, *(Cell(percent(share), note) for share, note in zip(shares, ends, strict=True))])
        rows.append(["by chance", *(Cell(percent(found.chance(k)[way])) for k in WITHIN)])
    note = "Small: the 95 % interval, of as many trials as there are pictures (Wilson)."
    return Table(["", *(f"among the {k} nearest" if k > 1 else "as the nearest" for k in WITHIN)], rows, note)


def _gallery(model: VisionModel, source: Source, found: Retrieved) -> Gallery:
    asked = np.linspace(0, len(found.texts) - 1, min(ASKED, len(found.texts))).round().astype(int).tolist()
    rows = []
    for caption in asked:
        own = int(found.owner[caption])
        seen = [own, *found.pictures[caption, :FOUND].tolist()]
        pictures = squares(source, [int(found.index[place]) for place in seen], model.preprocess.bands)
        row: list[Picture] = [shown(pictures[0], "the picture of the caption", f"“{found.texts[caption]}”")]
        for picture, place in zip(pictures[1:], seen[1:], strict=True):
            right = True if place == own else None
            row.append(shown(picture, "a picture that was found", "its own" if right else "", right))
        rows.append(row)
    nearest = min(FOUND, len(found.index))
    return Gallery(["picture of the caption", "nearest", *map(str, range(2, nearest + 1))], rows, [1])
