"""What the summary looks at: the maps of every kind of model, and their overlap with foreground masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from synoptic.data.sources import Source, open_source
from synoptic.evaluation.attention import AttentionOverlap, jaccard, kept
from synoptic.evaluation.dense import IGNORE
from synoptic.evaluation.features import RawPixels
from synoptic.models.adaptors import AdaptorConfig, Student, StudentConfig
from synoptic.models.clip import Clip, ClipConfig
from synoptic.models.text import TextConfig
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViT, vit_config
from synoptic.predict import VisionModel
from synoptic.types import Features, Preprocess

SMALL = {"depth": 2, "width": 48, "heads": 3, "hidden": 96}
IMAGES = torch.rand(2, 3, 48, 32, generator=torch.Generator().manual_seed(0))


def vit(**changes: object) -> ViT:
    torch.manual_seed(0)
    return ViT(vit_config("vit_mini8", **SMALL, **changes))


def vision(model: torch.nn.Module) -> VisionModel:
    return VisionModel(model, Preprocess(32), "small")


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("layer", [0, -1])
def test_maps_are_the_attention_to_patches_made_whole(registers: int, layer: int):
    model = vit(registers=registers)
    with torch.no_grad():
        weights = model.attention(IMAGES, layer)[:, :, 0, 1 + registers :]
    expected = (weights / weights.sum(-1, keepdim=True)).view(2, 3, 6, 4)
    maps = vision(model).attention(IMAGES, layer)
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 3))


def test_what_a_register_takes_is_left_out():
    """A register that draws nearly all attention changes the sum that is shared out, not the shares."""
    model = vit(registers=1)
    maps = vision(model).attention(IMAGES, 0)
    torch.manual_seed(1)
    with torch.no_grad():
        model.register_token.mul_(0).add_(10 * torch.randn_like(model.register_token))
    torch.testing.assert_close(vision(model).attention(IMAGES, 0), maps, rtol=1e-4, atol=0)


def student(summary_tokens: int) -> VisionModel:
    torch.manual_seed(0)
    adaptors = {name: AdaptorConfig(patches=8, summary=8, hidden=8) for name in ("clip", "dino")}
    backbone = vit_config("vit_mini8", **SMALL, summary_tokens=summary_tokens)
    return vision(Student(StudentConfig(backbone=backbone, adaptors=adaptors)))


def test_of_a_students_tokens_each_teachers_is_asked_or_all_of_them():
    model = student(2)
    of = {name: model.attention(IMAGES, adaptor=name) for name in ("clip", "dino")}
    assert (of["clip"] - of["dino"]).abs().max() > 1e-5
    torch.testing.assert_close(model.attention(IMAGES), (of["clip"] + of["dino"]) / 2)
    shared = student(1)
    torch.testing.assert_close(shared.attention(IMAGES, adaptor="dino"), shared.attention(IMAGES))
    with pytest.raises(ValueError, match="no adaptor 'sam'; it has clip, dino"):
        model.attention(IMAGES, adaptor="sam")


def test_a_clip_shows_the_attention_of_its_picture_encoder():
    torch.manual_seed(0)
    tokenizer = Tokenizer.learn(["a cat"], vocabulary=260, context=8)
    text = TextConfig(
        vocabulary=tokenizer.vocabulary, context=8, end=tokenizer.end, width=8, depth=1, heads=1, embedding=8
    )
    clip = Clip(ClipConfig(image=vit_config("vit_mini8", **SMALL), text=text), tokenizer)
    model = vision(clip)
    assert model.depth == 2
    torch.testing.assert_close(model.attention(IMAGES), vision(clip.image).attention(IMAGES))


def test_a_model_that_cannot_attend_says_so_before_it_sees_a_picture(scene: Source):
    headless = vision(vit(summary_tokens=0))
    assert not headless.attends
    with pytest.raises(ValueError, match="small has no attention to show"):
        headless.attention(IMAGES)
    for model in (headless, RawPixels()):
        with pytest.raises(ValueError, match="no Vision Transformer with a summary token"):
            AttentionOverlap(scene).run(model)
    with pytest.raises(ValueError, match="divide bytes by 255"):
        vision(vit()).attention(IMAGES.mul(255).byte())


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), patches=st.integers(1, 12), mass=st.sampled_from([0.3, 0.6, 1.0]))
def test_the_fewest_patches_that_hold_the_mass_are_kept(seed: int, patches: int, mass: float):
    values = np.random.default_rng(seed).dirichlet(np.full(patches, 0.5))
    (found,) = kept(torch.from_numpy(values).view(1, 1, patches), mass).view(1, -1).numpy()
    assert values[found].sum() >= mass - 1e-9
    largest_first = sorted(values, reverse=True)
    assert sum(largest_first[: found.sum() - 1]) < mass + 1e-9
    assert not found.all() or patches == 1 or mass > 1 - min(values)
    assert values[found].min() >= max(values[~found], default=0)


def test_overlap_is_counted_pixel_by_pixel():
    mask = np.random.default_rng(0).choice([0, 1, 7, IGNORE], (13, 10))
    maps = np.random.default_rng(1).random((2, 3, 4)) < 0.5
    for head, found in zip(maps, jaccard(maps, mask), strict=True):
        both = either = 0
        for y in range(13):
            for x in range(10):
                if mask[y, x] != IGNORE:
                    said, truth = head[y * 3 // 13, x * 4 // 10], mask[y, x] > 0
                    both += said and truth
                    either += said or truth
        assert found == both / either


@pytest.fixture
def scene(tmp_path: Path) -> Source:
    """Six pictures of a bright square on a dark ground, the last one without."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(6):
        mask = np.zeros((32, 32), np.uint8)
        if number < 5:
            mask[8 : 8 + 8, 8 * (number % 3) : 8 * (number % 3) + 16] = 1 + number
        Image.fromarray(np.where(mask > 0, 250, 5).astype(np.uint8)).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
    return open_source(str(tmp_path), "all")


class Looks:
    """One head looks at what is bright, one at what is dark."""

    preprocess = Preprocess(32)
    attends = True

    def encode_image(self, images: Tensor) -> Features:
        raise AssertionError("not asked for")

    def attention(self, images: Tensor, layer: int = -1, adaptor: str | None = None) -> Tensor:
        bright = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 8)  # (B, 1, 4, 4)
        maps = torch.cat([bright.pow(8), (1 - bright).pow(8)], 1)
        return maps / maps.sum((2, 3), keepdim=True)


def test_the_head_that_looks_at_the_foreground_is_found(scene: Source):
    scores = dict(AttentionOverlap(scene).run(Looks()))
    assert list(scores) == ["attention_jaccard", "attention_jaccard_mean"]
    assert scores["attention_jaccard"] == 1.0  # both patches hold half of the mass, so both are kept
    assert scores["attention_jaccard_mean"] == pytest.approx(0.5)
    assert list(dict(AttentionOverlap(scene, "dino").run(Looks()))) == [
        "attention_jaccard_dino",
        "attention_jaccard_mean_dino",
    ]


def test_a_foreground_is_needed(scene: Source):
    for path in scene.masks:
        Image.fromarray(np.full((32, 32), IGNORE, np.uint8)).save(path)
    with pytest.raises(ValueError, match="masks: no mask has a foreground"):
        dict(AttentionOverlap(scene).run(Looks()))
    with pytest.raises(ValueError, match="has no masks"):
        AttentionOverlap(Source(Path("nowhere"), scene.paths))
