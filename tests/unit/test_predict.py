"""Using a model: pictures given in any way, embeddings, labels by words, and clear words where something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch import nn

import synoptic
from synoptic.data.inputs import at_once, read_batches
from synoptic.models.adaptors import AdaptorConfig, Student, StudentConfig
from synoptic.models.clip import Clip, ClipConfig
from synoptic.models.text import TextConfig
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViT, ViTConfig
from synoptic.predict import VisionModel
from synoptic.types import Preprocess

TOKENIZER = Tokenizer.learn(["a red cone", "a blue cube"], vocabulary=300, context=12)
TEXT = TextConfig(
    vocabulary=TOKENIZER.vocabulary, context=12, end=TOKENIZER.end, width=8, depth=1, heads=2, embedding=6
)


def vit_config(**changes: Any) -> ViTConfig:
    return ViTConfig(**{"patch_size": 4, "width": 12, "depth": 1, "heads": 3, "image_size": 16} | changes)


def vision(network: nn.Module, mode: Any = "crop") -> VisionModel:
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return VisionModel(network, Preprocess(16, mode), "tiny")


def vit(**changes: Any) -> VisionModel:
    torch.manual_seed(0)
    return vision(ViT(vit_config(**changes)))


def clip() -> VisionModel:
    torch.manual_seed(0)
    return vision(Clip(ClipConfig(image=vit_config(), text=TEXT), TOKENIZER))


def student(*speaking: str) -> VisionModel:
    torch.manual_seed(0)
    adaptors = {
        name: AdaptorConfig(patches=10, summary=6, hidden=16, text=TEXT if name in speaking else None)
        for name in ("clip", "siglip", "dino")
    }
    adaptors["sam"] = AdaptorConfig(patches=5, summary=None, hidden=16)
    config = StudentConfig(backbone=vit_config(summary_tokens=4), adaptors=adaptors)
    return vision(Student(config, dict.fromkeys(speaking, TOKENIZER)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures of different sizes, one of them in a folder below, beside a file that is no picture."""
    random = np.random.default_rng(0)
    (tmp_path / "below").mkdir()
    for number, (height, width) in enumerate([(16, 16), (40, 24), (9, 31), (64, 64), (20, 20)]):
        picture = Image.fromarray(random.integers(0, 255, (height, width, 3), np.uint8))
        picture.save(tmp_path / ("below" if number == 0 else ".") / f"{number}.png")
    (tmp_path / "notes.txt.md").write_text("no picture")
    return tmp_path


def test_every_way_to_give_a_picture_means_the_same(folder: Path) -> None:
    model, path = vit(), folder / "1.png"
    array = np.asarray(Image.open(path))
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    expected = model.embed(path)
    assert expected.shape == (1, 12)
    for form in (str(path), Image.open(path), array, tensor, [path], (array,), array[None], tensor[None], [[tensor]]):
        np.testing.assert_array_equal(model.embed(form), expected)
    for form in (array / 255.0, array.astype(np.float32) / 255, tensor.double() / 255, tensor.half() / 255):
        np.testing.assert_allclose(model.embed(form), expected, atol=0.02)  # in 8 bits some kernels round on the way


def test_folders_globs_and_lists_come_in_order(folder: Path) -> None:
    model = vit()
    (folder / "two.txt").write_text("3.png\nbelow/0.png\n")
    names = ["1.png", "2.png", "3.png", "4.png", "below/0.png"]
    one_by_one = np.concatenate([model.embed(folder / name) for name in names])
    np.testing.assert_allclose(model.embed(folder), one_by_one, atol=1e-6)
    np.testing.assert_allclose(model.embed(f"{folder}/*.png", batch_size=3), one_by_one[:4], atol=1e-6)
    np.testing.assert_allclose(model.embed(folder / "two.txt"), one_by_one[[2, 4]], atol=1e-6)
    mixed = [folder / "3.png", folder / "below", Image.open(folder / "2.png")]
    np.testing.assert_allclose(model.embed(mixed), one_by_one[[2, 4, 1]], atol=1e-6)


def test_embeddings_have_unit_length_in_every_space(folder: Path) -> None:
    model = student("clip")
    for adaptor, channels in ((None, 48), ("clip", 6), ("dino", 6)):
        vectors = model.embed(folder, adaptor=adaptor)
        assert vectors.shape == (5, channels)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert len(np.unique(model.embed(folder).round(4), axis=0)) == 5


def test_calling_takes_tensors_of_any_size_that_fits() -> None:
    model = student()
    images = torch.rand(2, 3, 8, 20)
    features = model(images, layers=(0,))
    assert features.grid == (2, 5)
    assert list(features.adaptors) == ["clip", "siglip", "dino", "sam"]
    assert list(model(images, adaptors=("dino",)).adaptors) == ["dino"]
    assert len(features.layers) == 1
    assert torch.equal(model.encode_image(images).patches, features.patches)
    assert not features.patches.requires_grad
    (features.patches * torch.ones(12, requires_grad=True)).sum().backward()  # may still be computed with
    assert (model.width, model.stride, model.channels, model.adaptors) == (12, 4, 3, ("clip", "siglip", "dino", "sam"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_pictures_of_any_float_type_are_read_in_the_models_own(dtype: torch.dtype) -> None:
    model, images = vit(), torch.rand(2, 3, 8, 8).to(dtype)
    assert torch.equal(model(images).patches, model(images.float()).patches)
    model.model.double()
    assert torch.equal(model(images).patches, model(images.double()).patches)
    assert model(images).patches.dtype == model.dtype == torch.float64


def test_the_model_is_in_evaluation_mode() -> None:
    model = VisionModel(ViT(vit_config(drop_path=0.9, position="cpe", depth=3)).train(), Preprocess(16), "m")
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(model(images).patches, model(images).patches)


def test_features_of_files_are_those_of_their_pixels(folder: Path) -> None:
    model = student()
    features = model.features(folder, batch_size=2)
    assert features.patches.shape == (5, 16, 12)
    assert features.adaptors["sam"].summary is None
    assert features.adaptors["sam"].patches.shape == (5, 16, 5)
    same_size = np.asarray(Image.open(folder / "below" / "0.png")).copy()
    direct = model(torch.from_numpy(same_size).permute(2, 0, 1)[None] / 255)
    torch.testing.assert_close(features.patches[4:], direct.patches)
    torch.testing.assert_close(features.adaptors["clip"].summary[4:], direct.adaptors["clip"].summary)


def test_crop_and_squash_see_different_things(folder: Path) -> None:
    picture = np.zeros((16, 48, 3), np.uint8)
    picture[:, :16] = 255  # white at the left, which the centred square does not reach
    torch.manual_seed(0)
    crop, squash = vit(), vision(ViT(vit_config()), "squash")
    squash.model.load_state_dict(crop.model.state_dict())
    black = np.zeros((16, 16, 3), np.uint8)
    np.testing.assert_allclose(crop.embed(picture), crop.embed(black), atol=1e-6)
    assert np.abs(squash.embed(picture) - squash.embed(black)).max() > 1e-3


def test_batches_tell_what_they_hold(folder: Path) -> None:
    batches = list(read_batches(folder, Preprocess(16), batch_size=2))
    assert [len(batch.inputs) for batch in batches] == [2, 2, 1]
    assert [size for batch in batches for size in batch.sizes] == [(40, 24), (9, 31), (64, 64), (20, 20), (16, 16)]
    assert batches[2].inputs == [folder / "below" / "0.png"]
    assert all(batch.images.shape[1:] == (3, 16, 16) for batch in batches)
    assert all(batch.images.dtype == torch.float32 for batch in batches)


def test_large_pictures_are_seen_fewer_at_once() -> None:
    assert [at_once(size) for size in (16, 224, 448, 1024, 30_000)] == [64, 64, 16, 3, 1]
    assert [at_once(size, 2) for size in (16, 224, 448)] == [2, 2, 1]


def test_unreadable_files_are_an_error_or_told_and_left_out(folder: Path) -> None:
    for name in ("1", "2"):
        (folder / f"{name}.png").write_bytes((folder / "3.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"1\.png: "):
        vit().embed(folder)
    told: list[tuple[str, str]] = []
    batches = list(read_batches(folder, Preprocess(16), 2, on_error=lambda path, reason: told.append((path, reason))))
    assert [path for path, _ in told] == [str(folder / "1.png"), str(folder / "2.png")]
    assert all(reason for _, reason in told)
    assert [Path(str(item)).name for batch in batches for item in batch.inputs] == ["3.png", "4.png", "0.png"]


def test_reading_stops_when_nobody_wants_more(folder: Path) -> None:
    reader = read_batches([folder] * 50, Preprocess(16), batch_size=1)
    next(reader)
    reader.close()


def test_other_bands_than_three() -> None:
    model = vit(channels=5, mean=(0.5,) * 5, std=(0.5,) * 5)
    assert model.embed(np.zeros((20, 16, 5), np.uint8)).shape == (1, 12)
    with pytest.raises(ValueError, match=r"^picture: has 3 bands, where channels=5 are read$"):
        model.embed(Image.new("RGB", (16, 16)))


def test_grey_arrays_are_pictures_too() -> None:
    grey = np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8)
    np.testing.assert_array_equal(vit().embed(grey), vit().embed(grey[..., None].repeat(3, axis=2)))


NETWORK = vit()


@settings(max_examples=40)
@given(hnp.arrays(st.sampled_from([np.uint8, np.float32]), st.tuples(*[st.integers(1, 70)] * 2, st.just(3))))
def test_any_array_of_pixels_has_an_embedding(array: np.ndarray) -> None:
    model = NETWORK
    if array.dtype == np.float32 and not ((array >= 0) & (array <= 1)).all():
        with pytest.raises(ValueError, match=r"should lie in \[0, 1\]"):
            model.embed(array)
    else:
        assert np.isfinite(model.embed(array)).all()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "cannot read a picture from a dict"),
        (None, "cannot read a picture from a NoneType"),
        (b"bytes", "cannot read a picture from a bytes"),
        ([], "no pictures were given"),
        ("nowhere.jpg", r"nowhere\.jpg does not exist"),
        (np.zeros(5), r"got the shape \("),
        (torch.zeros(16, 16), r"got the shape \(16, 16\)"),
        (torch.zeros(3, 0, 4), r"got the shape \(3, 0, 4\)"),
        (np.zeros((3, 16, 16), np.uint8), "has 16 bands, and the model reads 3"),
        (np.zeros((16, 16, 3), np.int64), r"uint8, or floats in \[0, 1\], not torch\.int64"),
        (np.zeros((16, 16, 3), bool), r"uint8, or floats in \[0, 1\], not torch\.bool"),
        (np.full((16, 16, 3), 255.0), r"lie in \[255, 255\]"),
        (np.full((16, 16, 3), np.nan), r"lie in \[nan, nan\]"),
        (np.array([["a"]]), r"uint8, or floats in \[0, 1\], not <U1"),
    ],
    ids=str,
)
def test_what_is_no_picture_is_refused(inputs: Any, message: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        vit().embed(inputs)


def test_calling_with_bytes_or_for_unknown_spaces_is_refused() -> None:
    with pytest.raises(ValueError, match="divide bytes by 255"):
        vit()(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="no adaptor 'clip': tiny answers in its own space alone"):
        vit().embed(np.zeros((16, 16, 3), np.uint8), adaptor="clip")
    with pytest.raises(ValueError, match="no adaptor 'clap'; this student has clip, siglip, dino, sam"):
        student().embed(np.zeros((16, 16, 3), np.uint8), adaptor="clap")
    with pytest.raises(ValueError, match="tiny has no summary in the space of sam"):
        student().embed(np.zeros((16, 16, 3), np.uint8), adaptor="sam")
    with pytest.raises(ValueError, match=r"tiny has no summary, only patches: take features\(\)$"):
        vit(summary_tokens=0).embed(np.zeros((16, 16, 3), np.uint8))


@pytest.mark.parametrize("build", [clip, lambda: student("clip")], ids=["clip", "student"])
def test_classification_is_the_softmax_of_scaled_cosines(build: Callable[[], VisionModel], folder: Path) -> None:
    model = build()
    labels = ["red cone", "blue cube", "orange torus"]
    tower = model.model if isinstance(model.model, Clip) else model.model.adaptors["clip"]
    space = None if isinstance(model.model, Clip) else "clip"
    words = model.encode_text(["a red cone", "a blue cube", "an orange torus"])
    logits = tower.logit_scale.exp().item() * model.embed(folder / "1.png", space) @ words.T
    expected = np.exp(logits[0]) / np.exp(logits[0]).sum()
    answers = model.classify(folder / "1.png", labels)
    assert [answer["label"] for answer in answers] == [labels[place] for place in np.argsort(-expected)]
    np.testing.assert_allclose([answer["score"] for answer in answers], np.sort(expected)[::-1], rtol=1e-4)
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-6)


def test_a_class_lies_in_the_middle_of_its_sentences(folder: Path) -> None:
    model = clip()
    templates = ("a {}", "the {} on a table", "{}")
    words = model.encode_text([template.replace("{}", "cone") for template in templates]).mean(0)
    other = model.encode_text([template.replace("{}", "cube") for template in templates]).mean(0)
    classes = np.stack([words / np.linalg.norm(words), other / np.linalg.norm(other)])
    scale = model.model.logit_scale.exp().item()
    cone, cube = np.exp(scale * model.embed(folder / "1.png")[0] @ classes.T)
    scores = {
        answer["label"]: answer["score"] for answer in model.classify(folder / "1.png", ["cone", "cube"], templates)
    }
    assert scores["cone"] == pytest.approx(cone / (cone + cube), rel=1e-4)


def test_one_picture_gets_one_answer_and_several_get_several(folder: Path) -> None:
    model = clip()
    single = model.classify(folder / "1.png", ["cone", "cube"])
    assert [sorted(answer) for answer in single] == [["label", "score"]] * 2
    for several, count in (([folder / "1.png"], 1), (folder, 5), (f"{folder}/*.png", 4), (np.zeros((2, 16, 16, 3)), 2)):
        assert [len(answers) for answers in model.classify(several, ["cone", "cube"])] == [2] * count
    assert model.classify([folder / "1.png"], ["cone", "cube"])[0] == single


def test_words_find_their_own_space(folder: Path) -> None:
    only, both = student("siglip"), student("clip", "siglip")
    np.testing.assert_array_equal(only.encode_text(["a cone"]), only.encode_text(["a cone"], adaptor="siglip"))
    assert only.classify(folder / "1.png", ["cone", "cube"])
    with pytest.raises(ValueError, match="knows words in several spaces; choose adaptor= from clip, siglip"):
        both.encode_text(["a cone"])
    assert both.encode_text(["a cone"], adaptor="clip").shape == (1, 6)
    with pytest.raises(ValueError, match="knows no words as 'dino'; choose adaptor= from clip, siglip"):
        both.classify(folder / "1.png", ["cone"], adaptor="dino")
    with pytest.raises(ValueError, match=r"tiny knows no words as 'siglip'; take no adaptor=$"):
        clip().encode_text(["a cone"], adaptor="siglip")
    for silent in (vit(), student()):
        with pytest.raises(ValueError, match="tiny knows no words: take a CLIP, or a student of a CLIP"):
            silent.classify(folder / "1.png", ["cone"])


def test_many_texts_are_encoded_as_one_by_one() -> None:
    model = clip()
    texts = [f"{'red ' * (number % 5)}cone" for number in range(20)]
    vectors = model.encode_text(texts, batch_size=7)
    assert vectors.shape == (20, 6)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, np.concatenate([model.encode_text([text]) for text in texts]), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "templates", "message"),
    [
        ("cone", ("a {}",), "labels=cone: is no file; give a list"),
        ([], ("a {}",), "labels: there are none"),
        (["cone"], ("a {}",), "labels: 'cone' alone leaves nothing to choose"),
        (["cone", "cube", "cone "], ("a {}",), "labels: 'cone' is there 2 times"),
        (["cone", " "], ("a {}",), "labels: class 2 has an empty name"),
        ({"cone": [], "cube": ["a cube", ""]}, ("a {}",), "labels: class 2 has an empty prompt"),
        (["cone", "cube"], "a {}", "templates should be a list of sentences"),
        (["cone", "cube"], "nowhere.txt", "templates=nowhere.txt: is no file; .* 7 or 80 for CLIP's own"),
        (["cone", "cube"], ("a photo",), r"'a photo' has no \{\}; give sentences"),
        (["cone", "cube"], (), "templates: there are none"),
    ],
)
def test_words_that_make_no_classes_are_refused(labels: Any, templates: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clip().classify(np.zeros((16, 16, 3), np.uint8), labels, templates)


@pytest.mark.parametrize("texts", ["a cone", []])
def test_texts_are_a_list(texts: Any) -> None:
    with pytest.raises(ValueError, match="expected a list of texts"):
        clip().encode_text(texts)


def test_labels_with_braces_are_taken_as_they_are() -> None:
    answers = clip().classify(np.zeros((16, 16, 3), np.uint8), ["{0} {cone}", "cube"])
    assert {answer["label"] for answer in answers} == {"{0} {cone}", "cube"}


def test_save_and_load_give_the_same_model(tmp_path: Path, folder: Path) -> None:
    model = student("clip")
    model.trained["steps"] = 7
    model.save(tmp_path / "run" / "weights")
    again = synoptic.load(tmp_path / "run", device="cpu")
    np.testing.assert_allclose(again.embed(folder, "dino"), model.embed(folder, "dino"), atol=1e-6)
    np.testing.assert_allclose(again.encode_text(["a cone"]), model.encode_text(["a cone"]), atol=1e-6)
    assert all(torch.equal(again.model.state_dict()[key], value) for key, value in model.model.state_dict().items())
    assert (again.name, again.preprocess, again.trained) == ("tiny", model.preprocess, {"steps": 7})
    assert again.to("cpu") is again
    assert again.device == torch.device("cpu")


def test_built_in_models_load_by_name() -> None:
    model = synoptic.load("vit_mini16", device="cpu")
    assert model.embed(np.zeros((100, 50, 3), np.uint8)).shape == (1, 192)
    assert (model.name, model.preprocess) == ("vit_mini16", Preprocess(96))
    with pytest.raises(ValueError, match=r"there is no model 'vit_mini61'.*vit_mini16"):
        synoptic.load("vit_mini61")


def test_photographs(data_dir: Path) -> None:
    vectors = vit().embed(f"{data_dir}/imagenette96/test/*/*0.*")
    assert len(vectors) > 50
    assert np.isfinite(vectors).all()
