"""Models of transformers and files of makers to ours and back: equal outputs at several sizes, and equal bits."""

from __future__ import annotations

import gzip
import html
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from comparison import TOLERANCE, assert_equal
from families import (
    FAMILIES,
    FULL,
    NO_POOLER,
    SIZES,
    Family,
    our_tokens,
    randomised,
    statistics,
    tokens,
    without_registers,
)
from ftfy import fix_text
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, CLIPModel, SiglipModel, ViTModel

import synoptic
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViT
from synoptic.models.vit import ViTConfig as OurConfig
from synoptic.types import Preprocess
from synoptic.weights import formats, writing
from synoptic.weights.descriptions import Description
from synoptic.weights.folder import KINDS, Record, save_folder, shapes_alone
from synoptic.weights.options import LoadOptions
from synoptic.weights.reading import State, read_parts
from synoptic.weights.words import write_tokenizer
from synoptic.weights.writing import convert


def assert_alike(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, expected in zip(ours, theirs, strict=True):
        assert_equal(mine, expected)


@torch.no_grad()
def go_round(family: Family, folder: Path) -> None:
    theirs = randomised(family.build())
    theirs.save_pretrained(folder / "theirs")
    ours = synoptic.load(folder / "theirs", "cpu").model
    done = convert(folder / "theirs", "huggingface", folder / "back")
    assert done.notes == ()
    again, report = type(theirs).from_pretrained(folder / "back", output_loading_info=True, **family.options)
    assert not any(report.values())
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert torch.equal(after[key], tensor), key
    assert (
        load_file(folder / "back" / "model.safetensors").keys()
        == load_file(folder / "theirs" / "model.safetensors").keys()
    )
    for size in family.sizes:
        images = torch.rand(2, 3, *size)
        expected = family.theirs(theirs, images)
        assert_alike(family.ours(ours, images), expected)
        assert_alike(family.theirs(again.eval(), images), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_transformers_goes_there_and_back(name: str, tmp_path: Path) -> None:
    """At the size of its positions and at two others, not square."""
    go_round(FAMILIES[name], tmp_path)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_written_says_what_it_is(name: str, tmp_path: Path) -> None:
    """transformers finds the class by itself, and every value that decides the function is the original's."""
    theirs = FAMILIES[name].build()
    theirs.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", "huggingface", tmp_path / "back")
    assert type(AutoModel.from_pretrained(tmp_path / "back")) is type(theirs)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    unread = {"projection_dim", "bos_token_id"}  # which the configurations of towers say wrongly, and no model reads
    unread |= {"eos_token_id"} if isinstance(theirs, SiglipModel) else set()
    said = [(config, theirs.config.to_dict())]
    said += [(config[part], said[0][1][part]) for part in ("text_config", "vision_config") if part in config]
    for ours, expected in said:
        for key, value in ours.items():
            if not isinstance(value, dict) and key not in unread:
                assert expected[key] == value, key
    assert json.loads((tmp_path / "back" / "preprocessor_config.json").read_text())["do_normalize"] is True


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_a_full_size_model_goes_there_and_back(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOLERANCE, torch.float32, 1e-4)
    go_round(FULL[name], tmp_path)


# file of the fixtures: what it does not say
MAKERS: dict[str, dict[str, Any]] = {
    "dino/weights.vit_p16.pth": {"heads": 2},
    "dino/weights.vit_p8.pth": {"heads": 4},
    "dino/weights.full_checkpoint.pth": {"heads": 3, "part": "student"},
    "dinov2/weights.plain.pth": {"heads": 3},
    "dinov2/weights.reg4.pth": {"heads": 2},
    "dinov2/weights.swiglu.pth": {"heads": 2},
    "dinov2/weights.swiglu_reg4.pth": {"heads": 2},
    "dinov2/weights.teacher_checkpoint.pth": {"heads": 2},
    "clip/weights.vit.pt": {"activation": "quick_gelu"},
    "clip/weights.rn_torchscript.pt": {},
    "open_clip/weights.clip.pt": {"activation": "gelu", "heads": 2, "text_heads": 4},
    "open_clip/weights.clip_quickgelu.pt": {"activation": "quick_gelu", "heads": 4, "text_heads": 2},
    "open_clip/weights.siglip.bin": {"heads": 2, "text_heads": 2},
}
NUMBERS = {"input_resolution", "context_length", "vocab_size"}  # that OpenAI's state dicts hold beside weights


@pytest.mark.parametrize("name", MAKERS)
def test_a_makers_file_goes_there_and_back_bit_by_bit(name: str, fixtures_dir: Path, tmp_path: Path) -> None:
    """In float32, in which float16 is exact; with a part's prefixes and the other parts of a training gone."""
    options = LoadOptions(**MAKERS[name])
    done = convert(fixtures_dir / name, "official", tmp_path / "back.pth", options)
    (back,) = read_parts(tmp_path / "back.pth").values()
    theirs = formats.networks(read_parts(fixtures_dir / name), options.part, name)["backbone"]
    assert back.keys() - NUMBERS == theirs.keys() - NUMBERS
    assert done.tensors == len(back)
    for key in theirs.keys() - NUMBERS:
        assert back[key].shape == theirs[key].shape
        assert torch.equal(back[key], theirs[key].float() if theirs[key].is_floating_point() else theirs[key]), key
        if theirs[key].is_floating_point():
            assert torch.equal(back[key].to(theirs[key].dtype), theirs[key])
    given = {key: value for key, value in MAKERS[name].items() if key != "part"}
    again = formats.load(tmp_path / "back.pth", LoadOptions(**given))[0]
    for key, tensor in formats.load(fixtures_dir / name, options)[0].state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)


@pytest.mark.parametrize("name", MAKERS)
def test_ours_is_a_way_station(name: str, fixtures_dir: Path, tmp_path: Path) -> None:
    """Maker's to ours to maker's is maker's to maker's."""
    options = LoadOptions(**MAKERS[name])
    convert(fixtures_dir / name, "synoptic", tmp_path / "ours", options)
    convert(tmp_path / "ours", "official", tmp_path / "through.pt")
    convert(fixtures_dir / name, "official", tmp_path / "straight.pt", options)
    assert (tmp_path / "through.pt").read_bytes() == (tmp_path / "straight.pt").read_bytes()
    kept, read = synoptic.load(tmp_path / "ours", "cpu"), formats.load(fixtures_dir / name, options)[0]
    assert kept.model.config == read.config  # above all how positions are resampled


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("dino/weights.vit_p16.pth", ["positions are resampled otherwise: position_offset=0.1, there 0.0"]),
        ("dinov2/weights.plain.pth", ["positions are resampled otherwise: position_offset=0.1, there 0.0"]),
        ("dinov2/weights.swiglu.pth", ["positions are resampled otherwise: position_offset=0.1, there 0.0"]),
        ("dinov2/weights.reg4.pth", []),
        ("dinov2/weights.swiglu_reg4.pth", []),
    ],
)
@torch.no_grad()
def test_transformers_answers_as_the_makers_did(
    name: str, notes: list[str], fixtures_dir: Path, tmp_path: Path
) -> None:
    """At the size of the positions; at others only where both resample them alike, and a note tells where not."""
    done = convert(fixtures_dir / name, "huggingface", tmp_path / "back", LoadOptions(**MAKERS[name]))
    assert len(done.notes) == len(notes)
    assert all(expected in note for note, expected in zip(done.notes, notes, strict=True))
    ours = synoptic.load(fixtures_dir / name, "cpu", **MAKERS[name]).model
    side, patch = ours.config.image_size, ours.stride
    theirs = AutoModel.from_pretrained(tmp_path / "back").eval()
    for size in ((side, side), (5 * patch, 3 * patch)):
        images = torch.rand(1, 3, *size)
        expected = our_tokens(ours, images)[0]
        answer = without_registers(tokens(theirs, images), ours.config.registers)[0]
        difference = (answer - expected).abs().max() / expected.abs().max()
        assert difference < 1e-5 if size == (side, side) or not notes else difference > 1e-4


@torch.no_grad()
def test_transformers_answers_as_the_makers_of_clip_did(fixtures_dir: Path, tmp_path: Path) -> None:
    record = load_file(fixtures_dir / "clip" / "io.safetensors")
    convert(fixtures_dir / "clip/weights.vit.pt", "huggingface", tmp_path / "h", LoadOptions(activation="quick_gelu"))
    theirs = CLIPModel.from_pretrained(tmp_path / "h").eval()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics(theirs))
    answer = theirs(input_ids=record["in/token_ids"].long(), pixel_values=(record["image/vit"] - mean) / std)
    assert_equal(answer.logits_per_image, record["vit/logits_per_image"])


def test_transformers_reads_words_as_clips_code_did(fixtures_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    """But for what ftfy repairs and HTML's names, which no tokenizer of theirs reads."""
    with gzip.open(data_dir / "vocab" / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        ours = Tokenizer.clip(file.read().split("\n"))
    write_tokenizer(tmp_path, ours)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    told = json.loads((fixtures_dir / "clip" / "tokens.json").read_text())
    told = [line for line in told if "<|" not in line["text"]]  # in capitals these are words there
    plain = [line for line in told if fix_text(html.unescape(html.unescape(line["text"]))) == line["text"]]
    assert len(plain) > 250
    for line in plain:
        assert theirs(line["text"], add_special_tokens=False)["input_ids"] == line["ids"]
    texts = [line["text"] for line in plain]
    rows = theirs(texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    for row, expected in zip(rows, ours(texts), strict=True):
        length = int((expected == ours.end).nonzero()[0]) + 1
        assert torch.equal(row[:length], expected[:length])


def released(fixtures_dir: Path) -> Iterator[tuple[str, State, dict[str, Any]]]:
    """Every released backbone and CLIP: name, tensors on the meta device, and what its file does not say."""
    for family in ("dino", "dinov2", "clip", "open_clip"):
        manifest = json.loads((fixtures_dir / family / "manifest.json").read_text())
        for name, shapes in manifest.items():
            if name.endswith("_head"):
                continue
            state = {}
            for key, shape in shapes.items():
                part, _, rest = key.rpartition("/")
                dtype = torch.int64 if key.endswith("num_batches_tracked") else torch.float32
                if part in ("", "teacher"):
                    state[rest] = torch.empty(shape, device="meta", dtype=dtype)
            known = {"clip": "quick_gelu", "open_clip": None if "SigLIP" in name else "gelu"}
            yield name, formats.networks({"": state}, None, name)["backbone"], {"activation": known.get(family)}


def test_every_released_model_is_written_with_the_keys_and_shapes_that_it_was_read_with(fixtures_dir: Path) -> None:
    refused, notes = [], {}
    for name, state, options in released(fixtures_dir):
        found = formats.identify({"": state}, {}, LoadOptions(**options), name)
        with shapes_alone():
            network = KINDS[found.format.kind].build(found.config, {})
        record = Record(found.format.kind, name, {"from": found.format.name})
        preprocess = formats.prepared(found.config, Description())
        fit = writing._best_fit(network, preprocess, record, "official")
        back = {key: tensor.shape for key, tensor in fit.state.items() if key not in NUMBERS}
        assert back == {key: tensor.shape for key, tensor in state.items()}
        assert all("load.activation=gelu" in note for note in fit.notes)  # of open_clip's, which nothing else tells
        try:
            notes[name] = writing._best_fit(network, preprocess, record, "huggingface").notes
        except ValueError:
            refused.append(name)
    assert len(notes) + len(refused) == 31
    assert refused == ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"]  # transformers has no ResNet of CLIP
    resampled = {name for name, told in notes.items() if told}
    assert resampled == {
        name for name in notes if name.startswith(("dino", "train_")) and "reg4" not in name and "resnet" not in name
    }


CHOICES: dict[str, Any] = {  # the first of each is what DINO has; the others stand for all that could be lost
    "registers": [0, 2],
    "mask_token": [False, True],
    "layer_scale": [None, 1e-5],
    "feed_forward": ["mlp", "swiglu"],
    "qkv_bias": [True, False],
    "patch_bias": [True, False],
    "activation": ["gelu", "quick_gelu", "gelu_tanh"],
    "norm_eps": [1e-6, 1e-5],
    "position_offset": [0.0, 0.1],
    "antialias": [False, True],
    "interpolation": ["bicubic", "bilinear"],
    "pre_norm": [False, True],
    "final_norm": [True, False],
    "summary_tokens": [1, 2, 0],
    "stem": ["patch", "conv"],
    "hidden": [48, 40, 96],
    "position": ["learned", "cpe"],
}


@settings(max_examples=60)
@given(base=st.sampled_from([{}, {"mask_token": True, "layer_scale": 1e-5}]), data=st.data())
@torch.no_grad()
def test_what_is_not_refused_answers_the_same(base: dict[str, Any], data: st.DataObject) -> None:
    """Of any two departures from DINO or DINOv2: transformers reads it strictly, with the same answers; or a note says
    that they differ at other sizes, and there they do."""
    changed = data.draw(st.lists(st.sampled_from(sorted(CHOICES)), max_size=2, unique=True))
    values = {**base, **{key: data.draw(st.sampled_from(CHOICES[key])) for key in changed}}
    config = OurConfig(
        **{"patch_size": 8, "width": 24, "depth": 1, "heads": 3, "image_size": 32, "hidden": 48, **values}
    )
    torch.manual_seed(0)
    ours = ViT(config).eval()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.2)
    with TemporaryDirectory() as place:
        save_folder(f"{place}/mine", ours, Preprocess(32))
        try:
            done = convert(f"{place}/mine", "huggingface", f"{place}/h")
        except ValueError as error:
            assert "\n" not in str(error) and "has no way to say what mine is" in str(error)
            return
        kind = type(AutoModel.from_pretrained(f"{place}/h"))
        options = NO_POOLER if kind is ViTModel else {}
        theirs, report = kind.from_pretrained(f"{place}/h", output_loading_info=True, **options)
    assert not any(report.values())
    resampled = [note for note in done.notes if "positions are resampled otherwise" in note]
    for size in SIZES:
        images = torch.rand(1, 3, *size)
        (answer,) = without_registers(tokens(theirs.eval(), images), config.registers)
        (expected,) = our_tokens(ours, images)
        if resampled and size != SIZES[0]:
            assert (answer - expected).abs().max() > 1e-4 * expected.abs().max()
        else:
            assert_equal(answer, expected)


def test_what_departs_from_nothing_is_refused_in_nothing(tmp_path: Path) -> None:
    """Guards the test above: the plain models are written, and without a note."""
    for number, values in enumerate(({}, {"mask_token": True, "layer_scale": 1e-5}, {"activation": "quick_gelu"})):
        model = ViT(OurConfig(patch_size=8, width=24, depth=1, heads=3, image_size=32, hidden=48, **values))
        save_folder(tmp_path / f"{number}", model, Preprocess(32))
        assert convert(tmp_path / f"{number}", "huggingface", tmp_path / f"h{number}").notes == ()
