"""The student: one backbone, and for each teacher an adaptor that answers in its space. And CLIP, its teacher."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synoptic.models.adaptors import AdaptorConfig, Student, StudentConfig
from synoptic.models.clip import Clip, ClipConfig
from synoptic.models.text import TextConfig
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViTConfig

TOKENIZER = Tokenizer.learn(["a red cone", "a blue cube"], vocabulary=300, context=8)
TEXT = TextConfig(vocabulary=TOKENIZER.vocabulary, context=8, end=TOKENIZER.end, width=8, depth=1, heads=2, embedding=6)


def backbone(tokens: int) -> ViTConfig:
    return ViTConfig(patch_size=4, width=12, depth=1, heads=3, image_size=16, summary_tokens=tokens)


def student() -> Student:
    torch.manual_seed(0)
    adaptors = {
        "clip": AdaptorConfig(patches=10, summary=6, hidden=16, text=TEXT),
        "dino": AdaptorConfig(patches=7, summary=7, hidden=16),
        "sam": AdaptorConfig(patches=5, summary=None, hidden=16),
    }
    return Student(StudentConfig(backbone=backbone(3), adaptors=adaptors), {"clip": TOKENIZER}).eval()


def pictures() -> Tensor:
    return torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(1))


def test_a_student_answers_in_every_space_with_one_backbone() -> None:
    features = student()(pictures(), layers=(0,))
    assert features.summary.shape == (2, 3 * 12)
    assert features.patches.shape == (2, 6, 12)
    assert len(features.layers) == 1
    shapes = {name: (answer.summary, answer.patches.shape) for name, answer in features.adaptors.items()}
    assert list(shapes) == ["clip", "dino", "sam"]
    assert [shape for _, shape in shapes.values()] == [(2, 6, 10), (2, 6, 7), (2, 6, 5)]
    assert shapes["clip"][0].shape == (2, 6)
    assert shapes["dino"][0].shape == (2, 7)
    assert shapes["sam"][0] is None
    assert all(answer.grid == (2, 3) for answer in features.adaptors.values())


def test_each_adaptor_reads_its_own_summary_token() -> None:
    model = student()
    features = model(pictures())
    token = features.summary[:, 12:24]  # the second, as dino is the second adaptor
    torch.testing.assert_close(features.adaptors["dino"].summary, model.adaptors["dino"].summary_head(token))


def test_one_summary_token_serves_all_teachers_where_it_is_shared() -> None:
    torch.manual_seed(0)
    adaptors = {name: AdaptorConfig(patches=width, summary=width, hidden=16) for name, width in (("a", 6), ("b", 7))}
    model = Student(StudentConfig(backbone=backbone(1), adaptors=adaptors)).eval()
    own, features = model.backbone(pictures()), model(pictures())
    assert own.summary.shape == (2, 12)
    assert torch.equal(features.summary, own.summary)
    for name, answer in features.adaptors.items():
        part = model.adaptors[name]
        for head, tokens, said in (
            (part.summary_head, own.summary, answer.summary),
            (part.patch_head, own.patches, answer.patches),
        ):
            hidden = F.layer_norm(F.linear(tokens, head.fc1.weight, head.fc1.bias), (16,))
            torch.testing.assert_close(said, F.linear(F.gelu(hidden), head.fc2.weight, head.fc2.bias))


def test_only_the_adaptors_asked_for_are_computed() -> None:
    model = student()
    assert list(model(pictures(), adaptors=("sam",)).adaptors) == ["sam"]
    assert not model(pictures(), adaptors=()).adaptors
    torch.testing.assert_close(
        model(pictures(), adaptors=("dino",)).adaptors["dino"].summary, model(pictures()).adaptors["dino"].summary
    )
    with pytest.raises(ValueError, match="no adaptor 'dinov2'; this student has clip, dino, sam"):
        model(pictures(), adaptors=("dinov2",))


def test_a_summary_token_a_teacher() -> None:
    adaptors = {"dino": AdaptorConfig(patches=7, summary=7, hidden=16)}
    with pytest.raises(ValueError, match="1 adaptors need one summary token or as many, not 2"):
        StudentConfig(backbone=backbone(2), adaptors=adaptors)


@pytest.mark.parametrize("name", ["keys", "training", "forward", "a.b", "../a", "", "a b"])
def test_names_that_cannot_be_keys_and_files_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"adaptors: none can be called .*; take another name"):
        StudentConfig(backbone=backbone(1), adaptors={name: AdaptorConfig(patches=7, summary=7, hidden=16)})


def test_a_student_has_a_teacher() -> None:
    with pytest.raises(ValueError, match="a student needs one at least"):
        StudentConfig(backbone=backbone(1), adaptors={})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patches": 0}, "patches=0 should be from 1 to"),
        ({"summary": 0}, "summary=0 should be from 1 to"),
        ({"hidden": -1}, "hidden=-1 should be from 1 to"),
        ({"text": TEXT}, r"text\.embedding=6 should equal summary=7"),
        ({"text": TEXT, "summary": None}, r"text\.embedding=6 should equal summary=None"),
    ],
)
def test_adaptors_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptorConfig(**{"patches": 7, "summary": 7, "hidden": 16} | changes)


def test_the_teachers_words_are_kept_and_frozen() -> None:
    adaptor = student().adaptors["clip"]
    assert adaptor.encode_text(adaptor.tokenizer(["a red cone", "cube"])).shape == (2, 6)
    assert not any(parameter.requires_grad for parameter in adaptor.text.parameters())
    assert adaptor.patch_head.fc1.weight.requires_grad


def test_clip_puts_pictures_and_words_into_one_space() -> None:
    torch.manual_seed(0)
    model = Clip(ClipConfig(image=backbone(1), text=TEXT), TOKENIZER).eval()
    features = model(pictures())
    assert features.summary.shape == (2, 6)
    assert features.patches.shape == (2, 6, 12)
    assert model.encode_text(TOKENIZER(["a red cone"])).shape == (1, 6)
    torch.testing.assert_close(features.summary, model.projection(model.image(pictures()).summary))
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    assert math.isclose(model.projection.weight.std().item(), 12**-0.5, rel_tol=0.3)
