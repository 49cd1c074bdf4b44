"""Segmentation by words: what words name is found, backgrounds are told apart, and classes have to have names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from synoptic.data import scenes
from synoptic.data.sources import Source, open_source
from synoptic.evaluation.features import RawPixels
from synoptic.evaluation.mask_classes import background_of, mask_classes
from synoptic.evaluation.protocols import SCENE_TEMPLATES, TEMPLATES, Wording, prompts, zeroshot_segmentation
from synoptic.evaluation.zeroshot_segmentation import ZeroShotSegmentation
from synoptic.judging import evaluate
from synoptic.models.clip import Clip, ClipConfig
from synoptic.models.text import TextConfig
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViTConfig
from synoptic.predict import VisionModel
from synoptic.types import Features, Preprocess

SIDE, PATCH = 32, 4
COLOURS = {"wall": (128, 128, 128), "red box": (200, 40, 40), "green_box": (40, 200, 40), "blue box": (40, 40, 200)}
NAMES = list(COLOURS)


class Reading:
    """A model whose patches are colours, and that knows the colours of the words in a text."""

    preprocess = Preprocess(SIDE)
    text_space: str | None = None

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode_image(self, images: Tensor) -> Features:
        return self.encode_patches(images)

    def encode_patches(self, images: Tensor, adaptor: str | None = None) -> Features:
        pooled = F.avg_pool2d(images, PATCH) - 0.35
        patches = F.normalize(pooled.flatten(2).transpose(1, 2), dim=-1)
        return Features(patches, tuple(pooled.shape[2:]))

    def encode_text(self, texts: Sequence[str], adaptor: str | None = None) -> np.ndarray:
        self.asked += texts
        return np.stack([self._colour(text) for text in texts]).astype(np.float32)

    def _colour(self, text: str) -> np.ndarray:
        known = {**COLOURS, "green box": COLOURS["green_box"], "background": COLOURS["wall"]}
        colour = next((rgb for name, rgb in known.items() if name in text), (0, 0, 0))
        vector = np.array(colour) / 255 - 0.35
        return vector / np.linalg.norm(vector)

    def logit_scale(self, adaptor: str | None = None) -> float:
        return 1.0


def write(root: Path, count: int = 8, named: object = None, ignored: bool = False) -> Source:
    """Pictures of boxes of classes 1 to 3 on class 0, with masks, in `test/` of a data set that may name them."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        (root / part / "images").mkdir(parents=True)
        (root / part / "masks").mkdir()
        for number in range(count):
            mask = np.zeros((SIDE, SIDE), np.uint8)
            for klass, top in ((1, 0), (2, 12), (3, 24)):
                left = rng.integers(0, 5) * PATCH
                mask[top : top + 8, left : left + 12] = klass
            Image.fromarray(np.array(list(COLOURS.values()), np.uint8)[mask]).save(root / part / f"images/{number}.png")
            mask[:, 28:] = 255 if ignored else mask[:, 28:]
            Image.fromarray(mask).save(root / part / f"masks/{number}.png")
    if named is not None:
        (root / "classes.json").write_text(json.dumps(named))
    return open_source(str(root), "test")


def test_what_words_name_is_found(tmp_path: Path):
    scores = dict(zeroshot_segmentation(write(tmp_path / "set", named={"classes": NAMES})).run(Reading()))
    assert list(scores) == ["zeroshot_segmentation_miou"]
    assert scores["zeroshot_segmentation_miou"] > 0.85, "edges between patches are all that is lost"


def test_wrong_words_find_nothing_and_one_answer_for_all_is_chance(tmp_path: Path):
    source = write(tmp_path / "set", named=NAMES)
    turned = [[name] for name in (*NAMES[1:], NAMES[0])]
    (score,) = dict(ZeroShotSegmentation(source, turned).run(Reading())).values()
    assert score < 0.1
    blind = Reading()
    blind.encode_patches = lambda images, adaptor=None: Features(torch.ones(len(images), 64, 3), (8, 8))  # type: ignore[method-assign]
    (score,) = dict(ZeroShotSegmentation(source, [[name] for name in NAMES]).run(blind)).values()
    masks = np.concatenate([np.asarray(Image.open(path)).ravel() for path in source.masks])
    shares = np.bincount(masks) / len(masks)
    assert min(abs(score - share / 4) for share in shares) < 1e-6


def test_a_background_is_judged_with_the_others_and_left_out(tmp_path: Path):
    """The word "background" means nothing to this model: with it little is found, and among the others all is."""

    class Lost(Reading):
        def _colour(self, text: str) -> np.ndarray:
            return np.array([0.6, -0.8, 0.0]) if "background" in text else super()._colour(text)

    source = write(tmp_path / "set", named={"classes": ["background", *NAMES[1:]]})
    scores = dict(zeroshot_segmentation(source).run(Lost()))
    assert list(scores) == ["zeroshot_segmentation_miou", "zeroshot_segmentation_miou_foreground"]
    assert scores["zeroshot_segmentation_miou"] < 0.5
    assert scores["zeroshot_segmentation_miou_foreground"] > 0.95
    evaluator = ZeroShotSegmentation(source, [[name] for name in NAMES], background=0)
    every, foreground = evaluator.judge(Reading(), evaluator.classes(Reading()))
    assert every.counts.sum() == 8 * SIDE * SIDE
    assert foreground is not None and foreground.counts[0].sum() == foreground.counts[:, 0].sum() == 0
    assert foreground.counts.sum() == every.counts[1:].sum()


def test_pixels_of_no_class_do_not_count(tmp_path: Path):
    source = write(tmp_path / "set", named=NAMES, ignored=True)
    evaluator = zeroshot_segmentation(source)
    every, foreground = evaluator.judge(Reading(), evaluator.classes(Reading()))
    assert every.counts.sum() == 8 * SIDE * 28 and foreground is None


def test_classes_are_asked_for_as_in_classification(tmp_path: Path):
    source = write(tmp_path / "set", named={"classes": NAMES})
    model = Reading()
    dict(zeroshot_segmentation(source).run(model))
    assert model.asked == [
        text for each in prompts([name.replace("_", " ") for name in NAMES], TEMPLATES) for text in each
    ]
    told = zeroshot_segmentation(source, wording=Wording(templates=["the {}!"])).prompts
    assert told == [["the wall!"], ["the red box!"], ["the green box!"], ["the blue box!"]]
    file = tmp_path / "words.csv"
    file.write_text("green_box\nwall,the wall behind,bricks\nred box\nblue box\n")
    told = zeroshot_segmentation(source, wording=Wording(file, ["a {}"])).prompts
    assert told == [["the wall behind", "bricks"], ["a red box"], ["a green box"], ["a blue box"]]
    file.write_text("wall\nred box\n")
    with pytest.raises(ValueError, match="has no line for 'green_box', which is a class of"):
        zeroshot_segmentation(source, wording=Wording(file))


def test_a_class_file_names_what_the_data_do_not(tmp_path: Path):
    source = write(tmp_path / "set")
    assert mask_classes(source) == ()
    with pytest.raises(
        ValueError, match="nothing names the classes in its masks; give labels=FILE with a line a class"
    ):
        zeroshot_segmentation(source)
    file = tmp_path / "words.txt"
    file.write_text("background\nred box\ngreen box\nblue box\n")
    evaluator = zeroshot_segmentation(source, wording=Wording(file))
    assert evaluator.background == 0 and evaluator.prompts[1][-1] == "red box"


def test_scenes_name_their_shapes(tmp_path: Path):
    folder = scenes.write(tmp_path / "multi", scenes.SceneConfig(count=10, size=32, objects=(2, 3)), workers=1)
    source = open_source(str(folder), "test")
    names = mask_classes(source)
    assert names[0] == "background" and len(names) == 11 and background_of(names) == 0
    evaluator = zeroshot_segmentation(source)
    assert evaluator.prompts == prompts(names, SCENE_TEMPLATES)
    scores = evaluate(clip(), "zeroshot_segmentation", str(folder))
    assert set(scores) == {"zeroshot_segmentation_miou", "zeroshot_segmentation_miou_foreground"}
    assert all(0 <= score <= 1 for score in scores.values())


def clip() -> VisionModel:
    torch.manual_seed(0)
    words = Tokenizer.learn(["a red cone", "a blue cube"], vocabulary=300, context=16)
    text = TextConfig(vocabulary=300, context=16, end=words.end, width=8, depth=1, heads=2, embedding=6)
    image = ViTConfig(patch_size=4, width=12, depth=1, heads=3, image_size=16)
    return VisionModel(Clip(ClipConfig(image=image, text=text), words), Preprocess(16), "clip")


def test_road_photographs_have_names(data_dir: Path):
    source = open_source(str(data_dir / "camvid240"), "test")
    assert mask_classes(source)[:2] == ("sky", "building") and background_of(mask_classes(source)) is None
    evaluator = zeroshot_segmentation(source.select(range(3)))
    assert len(evaluator.prompts) == 11
    (score,) = dict(evaluator.run(clip())).values()
    assert 0 <= score < 0.3


@pytest.mark.parametrize("told", ["{", '{"names": []}', "[]", '["sky", 7]', '"sky"'])
def test_a_file_of_names_that_tells_none_is_refused(tmp_path: Path, told: str):
    source = write(tmp_path / "set")
    (tmp_path / "set" / "classes.json").write_text(told)
    with pytest.raises(ValueError, match=r"classes\.json(:| cannot be read)") as error:
        zeroshot_segmentation(source)
    assert "\n" not in str(error.value)


def test_users_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write(tmp_path / "set", named=NAMES[:3])
    with pytest.raises(ValueError, match="its masks hold class 3, and 3 classes have names"):
        zeroshot_segmentation(source)
    with pytest.raises(ValueError, match="has no masks"):
        zeroshot_segmentation(Source(tmp_path, source.paths))
    named = write(tmp_path / "named", named=NAMES)
    monkeypatch.setattr(Source, "read", lambda *_, **__: pytest.fail("a picture was read"))
    with pytest.raises(ValueError, match="knows no words"):
        evaluate("vit_nano8", "zeroshot_segmentation", str(tmp_path / "named"))
    with pytest.raises(ValueError, match="the model's patches lie in no space with words"):
        zeroshot_segmentation(named).run(RawPixels())  # type: ignore[arg-type]
