"""Finding what words name: prompts in turns, words read once, thresholds, suppression, parts, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_detectors import small_detector, small_network

from synoptic.detection import detector
from synoptic.detection.detections import Detections
from synoptic.detection.detector import Asked, Boxes, Detector, best_of, class_scores, covered, suppressed
from synoptic.detection.finder import DetectOptions, Finder
from synoptic.detection.prompts import vocabulary
from synoptic.predict import VisionModel

NAMES = ["cat", "red car", "the sofa", "lamp"]
ALL: dict[str, Any] = {"threshold": 0.0, "limit": 1000}


@pytest.fixture(scope="module")
def model() -> VisionModel:
    return small_detector()


def picture(width: int = 90, height: int = 60, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def same(one: Detections, other: Detections, tolerance: float = 1e-4) -> None:
    """Equal to rounding, whatever the order of objects that are as sure."""
    assert one.names == other.names
    rows = [np.column_stack([each.labels, each.scores, each.boxes]) for each in (one, other)]
    assert rows[0].shape == rows[1].shape
    first, second = (each[np.lexsort(np.round(each[:, ::-1], 2).T)] for each in rows)
    np.testing.assert_allclose(first, second, atol=tolerance * 100, rtol=0)


def test_classes_have_numbers_and_boxes_lie_in_the_picture(model: VisionModel) -> None:
    found = model.detect(picture(), NAMES, **ALL)
    assert isinstance(found, Detections)
    assert found.names == tuple(NAMES)
    assert found.size == (60, 90)
    assert found.labels.dtype == np.int64
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert set(found.labels) == {0, 1, 2, 3}
    assert len(found) == 12 * 4
    assert (np.diff(found.scores) <= 0).all()
    left, top, right, bottom = found.boxes.T
    assert ((left >= 0) & (left <= right) & (right <= 90) & (top >= 0) & (top <= bottom) & (bottom <= 60)).all()


def test_the_score_of_a_class_is_the_mean_of_its_tokens(model: VisionModel) -> None:
    (chunk,) = vocabulary(["cat", "red car"], model.model.tokenizer, 64).chunks
    logits = torch.randn(5, sum(map(len, chunk.phrases)))
    shares = logits.sigmoid()
    wanted = torch.stack((shares[:, 1], shares[:, 3:5].mean(1)), 1)
    torch.testing.assert_close(class_scores(logits, chunk), wanted)


def test_a_batch_of_sizes_and_prompts_equals_one_by_one(model: VisionModel) -> None:
    pictures = [picture(), picture(40, 80, 1), picture(90, 60, 2)]
    texts = [["cat"], ["red car", "lamp", "dog"], ["the sofa", "cat"]]
    together = model.detect(pictures, texts, batch_size=3, **ALL)
    assert isinstance(together, list)
    for found, one, text in zip(together, pictures, texts, strict=True):
        alone = model.detect(one, text, **ALL)
        assert isinstance(alone, Detections)
        same(found, alone)


def test_prompts_in_turns_equal_each_by_itself() -> None:
    """A list of more names than a prompt holds is what its prompts say, each asked alone."""
    few = small_detector(context=8)
    names = ["cat", "dog", "red car", "lamp", "the sofa", "two"]
    chunks = vocabulary(names, few.model.tokenizer, 8).chunks
    assert len(chunks) == 3
    whole = few.detect(picture(), names, **ALL)
    assert isinstance(whole, Detections)
    for chunk in chunks:
        part = few.detect(picture(), [names[place] for place in chunk.classes], **ALL)
        assert isinstance(part, Detections)
        mine = np.isin(whole.labels, chunk.classes)
        labels = np.array([chunk.classes.index(label) for label in whole.labels[mine]])
        same(Detections(whole.boxes[mine], whole.scores[mine], labels, part.names, whole.size), part)


def test_a_picture_is_seen_once_however_many_prompts_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    few = small_detector(context=8)
    seen: list[int] = []
    see = few.model.see
    monkeypatch.setattr(few.model, "see", lambda *given: seen.append(1) or see(*given))
    few.detect(picture(), ["cat", "dog", "red car", "lamp", "the sofa", "two"])
    assert seen == [1]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> tuple[Detector, list[Sequence[Any]]]:
    """A detector, and the phrases that its network was asked to read."""
    asked: list[Sequence[Any]] = []
    network = small_network()
    forward = network.text.forward
    monkeypatch.setattr(network.text, "forward", lambda phrases: asked.append(list(phrases)) or forward(phrases))
    return Detector(network, "small"), asked


def test_every_phrase_is_read_once(read: tuple[Detector, list[Sequence[Any]]]) -> None:
    finder, asked = read
    with torch.no_grad():
        first = finder.words.read([finder.vocabulary(["cat", "dog"]).chunks[0].phrases])
        again = finder.words.read([finder.vocabulary(["dog", "lamp", "cat"]).chunks[0].phrases])
    assert [len(phrases) for phrases in asked] == [4, 1]  # start, cat, dog, end; then lamp alone
    cat, dog = first.tokens[1:3], first.tokens[3:5]
    assert torch.equal(again.tokens[1:3], dog)
    assert torch.equal(again.tokens[5:7], cat)


def test_words_that_autocast_reads_serve_without_it() -> None:
    finder = Detector(small_network(), "small")
    phrases = [finder.vocabulary(["cat"]).chunks[0].phrases]
    with torch.no_grad():
        wanted = Detector(finder.model, "other").words.read(phrases).tokens
        with torch.autocast("cpu", torch.bfloat16):
            found = finder.words.read(phrases).tokens
    assert torch.equal(found, wanted)


def test_words_of_other_weights_are_forgotten(read: tuple[Detector, list[Sequence[Any]]]) -> None:
    finder, asked = read
    phrases = [finder.vocabulary(["cat"]).chunks[0].phrases]
    with torch.no_grad():
        before = finder.words.read(phrases).tokens
        finder.model.text.projection.weight.mul_(2)
        after = finder.words.read(phrases).tokens
    assert len(asked) == 2
    assert not torch.allclose(before, after)


def test_many_phrases_are_kept_on_disk_whatever_prompts_they_stand_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, read: tuple[Detector, list[Sequence[Any]]]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(detector, "MANY", 5)
    finder, asked = read
    names = ["cat", "dog", "lamp"]
    wanted = finder.vocabulary(names, 1)  # a prompt each

    def scores(finder: Detector) -> torch.Tensor:
        with torch.no_grad():
            pyramids = finder.see([torch.full((3, 32, 48), 0.5)])
            return finder.classes(pyramids, [wanted], [Asked(torch.zeros(3), 9, None)])[0].scores

    first = scores(finder)
    assert [len(phrases) for phrases in asked] == [5]  # start, the names, end
    torch.testing.assert_close(scores(Detector(finder.model, "again")), first)
    assert len(asked) == 1
    with torch.no_grad():
        finder.model.text.projection.weight.mul_(2)
    assert not torch.allclose(scores(Detector(finder.model, "other")), first)
    assert len(asked) == 2


def test_thresholds_of_classes_and_the_limit(model: VisionModel) -> None:
    whole = model.detect(picture(), NAMES, **ALL)
    assert isinstance(whole, Detections)
    middle = float(np.median(whole.scores))
    found = model.detect(picture(), NAMES, threshold=middle, thresholds={"lamp": 0.0, "cat": 1.0}, limit=1000)
    assert isinstance(found, Detections)
    assert (found.labels == 3).sum() == 12
    assert (found.labels == 0).sum() == 0
    assert (found.scores[found.labels != 3] >= middle - 1e-6).all()
    few = model.detect(picture(), NAMES, threshold=0.0, limit=5)
    assert isinstance(few, Detections)
    np.testing.assert_allclose(few.scores, whole.scores[:5])


def test_suppression_is_of_one_class_and_keeps_the_surest() -> None:
    corners = torch.tensor([[0, 0, 10, 10], [1, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30.0]])
    boxes = Boxes(corners, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([1, 1, 0, 1]))
    assert suppressed(boxes, 0.5, 10).tolist() == [0, 2, 3]
    assert suppressed(boxes, 0.95, 10).tolist() == [0, 1, 2, 3]
    assert suppressed(boxes, 0.95, 2).tolist() == [0, 1]
    kept = best_of([boxes[2:], boxes[:2]], Asked(torch.zeros(2), 2, 0.5))
    assert kept.scores.tolist() == pytest.approx([0.9, 0.7])


def test_nothing_found_is_an_answer(model: VisionModel) -> None:
    found = model.detect(picture(), NAMES, threshold=1.0)
    assert isinstance(found, Detections)
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)


def test_phrases_are_whole_words_of_the_sentence(model: VisionModel) -> None:
    text = "Two cats on the remote control. A red car."
    found = model.detect(picture(), text, phrases=True, threshold=0.0, text_threshold=0.3, limit=50)
    assert isinstance(found, Detections)
    assert len(found.spans) == len(found)
    for name, spans in zip(found.found, found.spans, strict=True):
        assert name == " ".join(text[begin:end] for begin, end in spans)
        assert all(word in text.replace(".", "").split() for word in name.split())
        assert len({text[:begin].count(".") for begin, _ in spans}) == 1  # of one phrase


def test_parts_find_what_they_show_at_its_place(model: VisionModel) -> None:
    """A part of a picture by itself, and the same as a part."""
    large = picture(96, 64)
    options = DetectOptions(threshold=0.0, limit=1000, nms=1.0, tile=64, overlap=0.5)
    (whole,) = model.finder(options).find(large, [NAMES])
    corner = model.detect(large.crop((32, 0, 96, 64)), NAMES, threshold=0.0, limit=1000, nms=1.0)
    assert isinstance(corner, Detections)
    moved = corner.boxes + np.array([32, 0, 32, 0], np.float32)
    found = {(int(label), *np.round(box, 1)) for label, box in zip(whole.labels, whole.boxes, strict=True)}
    wanted = {(int(label), *np.round(box, 1)) for label, box in zip(corner.labels, moved, strict=True)}
    assert len(wanted - found) <= 0.1 * len(wanted)  # but for what rounds otherwise


def test_a_picture_that_is_not_cut_is_looked_at_as_without_parts(model: VisionModel) -> None:
    wanted = model.detect(picture(), NAMES, **ALL)
    found = model.detect([picture(), picture(200, 150)], NAMES, tile=100, **ALL)
    assert isinstance(found, list)
    same(found[0], wanted)  # type: ignore[arg-type]


def test_what_a_part_cuts_off_goes_where_the_whole_is_seen() -> None:
    whole = Boxes(torch.tensor([[0.0, 0, 100, 50]]), torch.tensor([0.4]), torch.tensor([1]))
    corners = torch.tensor([[60.0, 0, 110, 50], [60.0, 0, 110, 50], [90.0, 0, 130, 50]])
    cut = Boxes(corners, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 0, 1]))
    assert covered(cut, whole, 0.5).tolist() == [True, False, False]
    assert covered(cut, whole[:0], 0.5).tolist() == [False] * 3


def test_a_box_at_an_edge_inside_of_the_picture_is_cut_off() -> None:
    from synoptic.detection.finder import _cut_off, _Part

    corners = torch.tensor([[0.0, 0, 0.5, 0.5], [0.5, 0.5, 1, 0.9], [0.2, 0.2, 0.8, 0.8], [0.5, 0, 0.9, 0.2]])
    boxes = Boxes(corners, torch.ones(4), torch.zeros(4, dtype=torch.long))
    assert _cut_off(_Part((0, 0, 64, 64), boxes, []), (100, 64)).tolist() == [False, True, False, False]
    assert _cut_off(_Part((36, 0, 100, 64), boxes, []), (100, 64)).tolist() == [True, False, False, False]
    assert not _cut_off(_Part((0, 0, 100, 64), boxes, []), (100, 64)).any()


def test_parts_cover_the_picture_and_overlap() -> None:
    from synoptic.detection.finder import _parts

    image = torch.zeros(3, 100, 250)
    whole, *tiles = _parts(image, DetectOptions(tile=64, overlap=0.25))
    assert whole == (0, 0, 250, 100)
    covered = torch.zeros(100, 250)
    for left, top, right, bottom in tiles:
        assert (right - left, bottom - top) == (64, 64)
        covered[top:bottom, left:right] += 1
    assert covered.min() >= 1
    lefts = sorted({left for left, *_ in tiles})
    assert all(64 - (second - first) >= 16 for first, second in pairwise(lefts))
    assert _parts(image, DetectOptions(tile=300)) == [whole]


@pytest.mark.parametrize(("width", "height"), [(8, 40), (20_000, 9), (8, 8), (8, 3000)])
def test_extreme_shapes_are_looked_at(model: VisionModel, width: int, height: int) -> None:
    found = model.detect(picture(width, height), ["cat"], **ALL)
    assert isinstance(found, Detections)
    assert found.size == (height, width)
    assert 1 <= len(found) <= 12
    assert np.isfinite(found.boxes).all()


def test_a_picture_a_pixel_wide_is_told(model: VisionModel) -> None:
    with pytest.raises(ValueError, match="too small: 1 x 40 pixels"):
        model.detect(picture(1, 40), ["cat"])


def test_raw_answers_are_filled_up(model: VisionModel) -> None:
    answer = model.ground([torch.rand(3, 48, 72), torch.rand(3, 8, 8)], ["a cat.", "a red car. the sofa"])
    assert answer.boxes.shape == (2, 12, 4)
    assert answer.logits.shape == (2, 12, 9)
    assert list(map(len, answer.tokens)) == [5, 9]
    assert answer.logits[0, :, len(answer.tokens[0]) :].isinf().all()
    places = 4 + 1 + 1  # of a picture of 8 pixels in three levels
    assert answer.logits[1, places:].isinf().all()
    assert answer.logits[1, :places, : len(answer.tokens[1])].isfinite().all()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ([["cat"], ["dog"], ["lamp"]], "3 texts were given for 2 pictures"),
        (["a cat. a dog.", "a car."], "in a list of names is several"),
        (None, "expected names"),
        ([["cat"], 3], "expected names"),
        ([["cat"]], None),
        ("", "names nothing"),
    ],
)
def test_prompts_that_do_not_match_the_pictures(model: VisionModel, text: Any, told: str | None) -> None:
    if told is None:
        assert len(model.detect([picture(), picture()], text)) == 2
        return
    with pytest.raises(ValueError, match=told):
        model.detect([picture(), picture()], text)


def test_fewer_texts_than_pictures_are_refused(model: VisionModel) -> None:
    with pytest.raises(ValueError, match="2 texts were given for 3 pictures"):
        model.detect([picture()] * 3, [["cat"], ["dog"]])
    with pytest.raises(ValueError, match="1 texts were given for 2 pictures"):
        model.ground(torch.rand(2, 3, 32, 32), ["a cat"])
    for images in (torch.rand(3, 32, 32), []):
        with pytest.raises(ValueError, match=r"expected tensors of pictures, \(B, C, H, W\)"):
            model.ground(images, ["a cat"] * len(images))


@pytest.mark.parametrize("images", ["a.jpg", [picture()], np.zeros((1, 3, 32, 32)), torch.zeros(1, 3, 0, 32)])
def test_raw_answers_are_of_tensors(model: VisionModel, images: Any) -> None:
    with pytest.raises(ValueError, match="expected tensors of pictures"):
        model.ground(images, ["a cat"] * len(images))


@pytest.mark.parametrize("value", [255.0, float("nan")])
def test_raw_answers_are_of_pictures_in_range(model: VisionModel, value: float) -> None:
    with pytest.raises(ValueError, match=r"expected pictures as floats in \[0, 1\]"):
        model.ground(torch.full((1, 3, 32, 32), value), ["a cat"])


def test_no_batch_is_refused(model: VisionModel) -> None:
    with pytest.raises(ValueError, match="batch_size=0 should be 1 or more"):
        model.detect([picture()], NAMES, batch_size=0)


def test_each_picture_keeps_its_text_where_another_cannot_be_read(model: VisionModel, tmp_path: Path) -> None:
    for name in "ac":
        picture().save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_text("junk")
    broken: list[str] = []
    found = model.finder(DetectOptions(threshold=0.0)).find(
        tmp_path, [["cat"], ["dog"], ["lamp"]], 2, lambda path, reason: broken.append(Path(path).name)
    )
    assert [(Path(each.path).name, each.names) for each in found] == [("a.png", ("cat",)), ("c.png", ("lamp",))]
    assert broken == ["b.png"]


def test_thresholds_are_of_names_of_any_picture(model: VisionModel) -> None:
    found = model.detect([picture()] * 2, [["cat"], ["dog"]], threshold=0.0, thresholds={"cat": 1.0})
    assert isinstance(found, list)
    assert [len(each) for each in found] == [0, 12]


def test_names_that_share_no_prompt_are_scored_class_by_class(model: VisionModel) -> None:
    whole = model.detect(picture(), NAMES, names_per_prompt=1, **ALL)
    assert isinstance(whole, Detections)
    for label, name in enumerate(NAMES):
        alone = model.detect(picture(), [name], **ALL)
        assert isinstance(alone, Detections)
        mine = whole.labels == label
        same(Detections(whole.boxes[mine], whole.scores[mine], 0 * whole.labels[mine], (name,), whole.size), alone)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"threshold": 2.0}, "threshold=2.0 should be from 0 to 1"),
        ({"thresholds": {"kat": 0.5}}, "thresholds.kat: is none of the names"),
        ({"nms": -1.0}, "nms=-1.0"),
        ({"limit": 0}, "limit"),
        ({"tile": 3}, "tile=3"),
        ({"overlap": 1.0}, "overlap=1.0"),
        ({"thresholds": {"cat": 0.5}, "phrases": True}, "phrases have no classes"),
        ({"treshold": 0.5}, "unknown key treshold"),
    ],
)
def test_options_that_make_no_sense(model: VisionModel, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        model.detect(picture(), "a cat", **options)


def test_who_finds_nothing_says_so() -> None:
    from synoptic.models.vit import ViT, vit_config
    from synoptic.types import Preprocess

    with pytest.raises(ValueError, match="finds no objects"):
        VisionModel(ViT(vit_config("vit_nano8")), Preprocess(32), "vit").detect(picture(), "a cat")
    with pytest.raises(ValueError, match="came without a vocabulary"):
        small_detector(words=False).detect(picture(), "a cat")


def test_a_file_that_is_no_picture_is_told(model: VisionModel, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("junk")
    picture().save(tmp_path / "good.png")
    with pytest.raises(ValueError, match=r"bad\.jpg"):
        model.detect(tmp_path, "a cat")
    left_out: list[str] = []
    finder: Finder = model.finder(DetectOptions())
    found = list(finder.find(tmp_path, ["a cat"], on_error=lambda path, reason: left_out.append(path)))
    assert [Path(each.path).name for each in found] == ["good.png"]
    assert [Path(each).name for each in left_out] == ["bad.jpg"]


def test_a_saved_detector_answers_bit_by_bit(tmp_path: Path) -> None:
    import synoptic

    before = small_detector()
    before.save(tmp_path / "weights")
    after = synoptic.load(tmp_path / "weights")
    one, other = (each.detect(picture(), NAMES, **ALL) for each in (before, after))
    assert isinstance(one, Detections)
    assert isinstance(other, Detections)
    assert after.preprocess == before.preprocess
    same(one, other, 1e-6)


def test_any_backbone_of_ours_may_see(tmp_path: Path) -> None:
    """A ViT, such as a student's, through a simple feature pyramid."""
    import synoptic
    from synoptic.models.vit import ViTConfig

    vit = ViTConfig(patch_size=8, width=16, depth=1, heads=2, image_size=32)
    model = small_detector(backbone=vit, levels=4)
    found = model.detect(picture(50, 30), NAMES, **ALL)  # which patches of 8 do not tile
    assert isinstance(found, Detections)
    assert len(found) == 48
    model.save(tmp_path / "weights")
    again = synoptic.load(tmp_path / "weights").detect(picture(50, 30), NAMES, **ALL)
    assert isinstance(again, Detections)
    same(found, again, 1e-6)
