"""Models written in the layout of RADIO's makers: their own files go there and back, and students of ours there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from radio_files import (
    HEADS,
    TEACHERS,
    adaptors,
    args,
    file,
    read,
    statistics,
    trunk,
)
from torch import Tensor

from synoptic.models.adaptors import AdaptorConfig, Student, StudentConfig
from synoptic.models.heads import HeadConfig
from synoptic.models.text import TextConfig
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViTConfig
from synoptic.types import Preprocess
from synoptic.weights import formats
from synoptic.weights.folder import save_folder
from synoptic.weights.options import LoadOptions
from synoptic.weights.reading import read_parts, read_whole
from synoptic.weights.writing import convert


@pytest.fixture(autouse=True)
def _the_same_weights() -> None:
    torch.manual_seed(0)


def back(model: Path, folder: Path, **options: Any) -> tuple[dict[str, Tensor], Path, tuple[str, ...]]:
    """A model written in its makers' layout: its tensors, the file, and the notes."""
    done = convert(model, "official", folder / "back.pth", LoadOptions(**options))
    return read_parts(done.out)["state_dict"], done.out, done.notes


@pytest.mark.parametrize(
    ("summary", "patches", "finer", "inner", "scale"),
    [
        ("v1", "v1", 1, False, None),
        ("v2", "v2", 2, False, "grandma"),
        ("v2", "attn", 2, False, "gamma"),
        ("v2", "v1", 1, True, None),
    ],
)
def test_a_file_goes_there_and_back(
    summary: str, patches: str, finer: int, inner: bool, scale: str | None, tmp_path: Path
) -> None:
    """Through ours and straight; what goes is dead tokens, and gamma is called grandma again."""
    keys = ("clip", "siglip2-g", "sam")
    state = {**trunk(scale=scale, inner=inner), **statistics(), **adaptors(keys, summary, patches, finer)}
    teachers = [{**each, "fd_upsample_factor": finer} for each in TEACHERS]
    path = file(tmp_path / "radio.pth.tar", state, args(teachers, vitdet_window_size=2))
    again, out, notes = back(path, tmp_path, heads=HEADS)
    expected = {key.replace("gamma", "grandma") if "base_model" in key else key: state[key] for key in state}
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in expected.items())
    assert notes == (
        "the file does not say load.heads=2 load.align_corners=True, without which it is not read, or wrongly",
    )
    first, second = read(path), read(out)
    assert first.config == second.config
    convert(path, "synoptic", tmp_path / "ours", LoadOptions(heads=HEADS))
    convert(tmp_path / "ours", "official", tmp_path / "through.pth")
    through = read_parts(tmp_path / "through.pth")["state_dict"]
    assert all(torch.equal(through[key], tensor) for key, tensor in expected.items())


# What the makers' code reads as attributes of the arguments when it builds a network and its adaptors.
READ = (
    *("model", "pretrained", "in_chans", "input_size", "num_classes", "drop", "drop_path", "drop_block", "gp"),
    *("bn_momentum", "bn_eps", "torchscript", "initial_checkpoint", "model_kwargs", "cls_token_per_teacher"),
    *("cpe_max_size", "register_multiple", "teachers", "spectral_reparam", "mlp_version"),
)


@pytest.mark.parametrize("inner", [False, True])
def test_the_arguments_have_what_the_makers_code_reads(inner: bool, tmp_path: Path) -> None:
    state = {**trunk(inner=inner), **statistics(), **adaptors(("clip", "siglip2-g", "sam"))}
    path = file(tmp_path / "radio.pth.tar", state, args())
    said = read_whole(back(path, tmp_path, heads=HEADS)[1])[1]
    assert not set(READ) - said.keys()
    assert [each["name"] for each in said["teachers"]] == [each["name"] for each in TEACHERS]
    assert all(isinstance(each["type"], str) for each in said["teachers"])
    assert said["model"] == ("dino_v2_g_student" if inner else "vit_32x3_patch4_224")


def test_a_trunk_alone_goes_there_and_back(tmp_path: Path) -> None:
    state = {**trunk(tokens=8), **statistics()}
    path = file(tmp_path / "radio.pth.tar", state)
    again, out, _ = back(path, tmp_path, heads=HEADS)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())
    assert read(out).config == read(path).config


WORDS = Tokenizer.learn(["a red cone", "a blue cube"], vocabulary=300, context=8)


def student(**changes: Any) -> Student:
    """As it is trained here."""
    text = TextConfig(vocabulary=WORDS.vocabulary, context=8, end=WORDS.end, width=8, depth=1, heads=2, embedding=6)
    form = HeadConfig(**changes.pop("head", {"form": "v2", "inner": 1}))
    heads = {"patch_head": form, "summary_head": form}
    parts = {
        "words": AdaptorConfig(patches=10, summary=6, hidden=16, text=text, **heads),
        "masks": AdaptorConfig(patches=5, summary=None, hidden=12, **heads),
    }
    usual: dict[str, Any] = {"patch_size": 4, "width": 24, "depth": 2, "heads": 3, "image_size": 16, "position": "cpe"}
    usual |= {"patch_bias": False, "final_norm": False, "summary_tokens": 2}
    model = Student(StudentConfig(backbone=ViTConfig(**{**usual, **changes}), adaptors=parts), {"words": WORDS})
    return model.eval()


@pytest.mark.parametrize("tokens", [1, 2])
@torch.no_grad()
def test_a_student_of_ours_is_written_without_its_words(tokens: int, tmp_path: Path) -> None:
    mine = student(summary_tokens=tokens, registers=3, layer_scale=1e-5)
    save_folder(tmp_path / "mine", mine, Preprocess(16))
    _, out, notes = back(tmp_path / "mine", tmp_path)
    assert "it has no place for the words of words, which to=synoptic keeps" in notes
    again, images = formats.load(out, LoadOptions(heads=3))[0], torch.rand(2, 3, 8, 12)
    expected, answer = mine(images), again(images)
    assert torch.equal(answer.summary, expected.summary)
    for name, wanted in expected.adaptors.items():
        assert torch.equal(answer.adaptors[name].patches, wanted.patches)
        assert (answer.adaptors[name].summary is None) == (wanted.summary is None)
    assert torch.equal(answer.adaptors["words"].summary, expected.adaptors["words"].summary)
    assert again.adaptors["words"].text is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": {}}, r"adaptors\.words\.patch_head\.form=paper, there v1"),
        ({"final_norm": True, "stem": "conv"}, r"backbone\.stem=conv, there patch"),
        ({"position": "learned"}, r"backbone\.position=learned, there cpe"),
        ({"norm_eps": 1e-5}, r"backbone\.norm_eps=1e-05, there 1e-06"),
        ({"activation": "quick_gelu"}, r"backbone\.activation=quick_gelu, there gelu"),
    ],
)
def test_what_a_file_cannot_say_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_folder(tmp_path / "mine", student(**changes), Preprocess(16))
    with pytest.raises(ValueError, match=f"has no way to say what mine is: .*{message}") as error:
        convert(tmp_path / "mine", "official", tmp_path / "back.pth")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"to=huggingface: mine is a student .* with the adaptors words, masks"):
        convert(tmp_path / "mine", "huggingface", tmp_path / "back")


def test_statistics_of_other_bands_and_of_more_digits_survive(tmp_path: Path) -> None:
    mine = student(channels=4, mean=(0.1, 0.123456789012, 0.3, 0.4), std=(0.1, 0.2, 0.3, 1 / 3))
    save_folder(tmp_path / "mine", mine, Preprocess(16, bands=4))
    _, out, _ = back(tmp_path / "mine", tmp_path)
    config = formats.load(out, LoadOptions(heads=3))[0].config.backbone
    assert (config.channels, config.mean, config.std) == (4, mine.config.backbone.mean, mine.config.backbone.std)
