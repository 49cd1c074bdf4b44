"""Writing in the layouts of others: all that is lost is told or refused, and nothing that lies there is touched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, AutoTokenizer

import synoptic
from synoptic.models.adaptors import AdaptorConfig, Student, StudentConfig
from synoptic.models.clip import CLIP_MEAN, CLIP_STD, TEXT_OF, Clip, ClipConfig
from synoptic.models.plain_resnet import PlainResNet, PlainResNetConfig
from synoptic.models.resnet import ResNet, ResNetConfig
from synoptic.models.text import TextConfig
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViT, ViTConfig
from synoptic.types import Preprocess
from synoptic.weights import writing
from synoptic.weights.folder import save_folder
from synoptic.weights.options import LoadOptions
from synoptic.weights.writing import convert

PLAIN: dict[str, Any] = {"patch_size": 4, "width": 128, "depth": 2, "heads": 2, "hidden": 256, "image_size": 16}
DINOV2 = {"mask_token": True, "layer_scale": 1e-5}
WORDS = Tokenizer.learn(["a red cone", "a blue cube"], vocabulary=300, context=8)
TEXT = TextConfig(
    vocabulary=WORDS.vocabulary, context=8, end=WORDS.end, width=64, depth=1, heads=1, hidden=128, embedding=24
)
LAST = replace(TEXT, vocabulary=300, end=299)  # OpenAI's code reads at the highest id
OPENAI: dict[str, Any] = {"pre_norm": True, "patch_bias": False, "norm_eps": 1e-5, "mean": CLIP_MEAN, "std": CLIP_STD}


def clip(words: Tokenizer | None = WORDS, text: TextConfig = TEXT, **image: Any) -> Clip:
    return Clip(ClipConfig(image=ViTConfig(**{**PLAIN, **OPENAI, **image}), text=text), words)


def siglip() -> Clip:
    words = Tokenizer.learn(["a red cone", "a blue cube"], vocabulary=300, context=8, siglip=True)
    sizes = {"vocabulary": words.vocabulary, "context": 8, "end": words.end, "width": 128, "depth": 1, "heads": 2}
    text = TextConfig(**sizes, hidden=128, embedding=128, **TEXT_OF["siglip"])
    pool: dict[str, Any] = {"summary_tokens": 0, "pool": "attention", "activation": "gelu_tanh"}
    half = (0.5, 0.5, 0.5)
    return Clip(ClipConfig(image=ViTConfig(**PLAIN, **pool, mean=half, std=half), text=text, bias=True), words)


NATIVE = Preprocess(16)


def saved(folder: Path, model: nn.Module, preprocess: Preprocess = NATIVE) -> Path:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    save_folder(folder / "mine", model, preprocess, {"name": "mine", "steps": 3})
    return folder / "mine"


# A model of ours: what it is written as for its makers, and for Hugging Face.
WRITTEN: dict[str, tuple[Any, str, str]] = {
    "DINO": (lambda: ViT(ViTConfig(**PLAIN, position_offset=0.1)), "DINO", "ViTModel of transformers"),
    "iBOT": (
        lambda: ViT(ViTConfig(**PLAIN, position_offset=0.1, mask_token=True)),
        *("iBOT", "ViTModel of transformers"),
    ),
    "DINOv2": (
        lambda: ViT(ViTConfig(**PLAIN, **DINOV2, position_offset=0.1)),
        *("DINOv2", "Dinov2Model of transformers"),
    ),
    "registers": (
        lambda: ViT(ViTConfig(**PLAIN, **DINOV2, registers=3, antialias=True)),
        *("DINOv2 with registers", "Dinov2WithRegistersModel of transformers"),
    ),
    "ResNet": (
        lambda: PlainResNet(PlainResNetConfig(blocks=(1, 2, 1, 1), width=8, image_size=64)),
        *("DINO with a ResNet", "ResNetModel of transformers"),
    ),
    "CLIP": (lambda: clip(None, LAST), "CLIP with a ViT", "CLIPModel of transformers"),
    "CLIP of QuickGELU, narrower inside": (  # for which OpenAI's code has no place, and open_clip's has
        lambda: clip(None, replace(LAST, activation="quick_gelu"), activation="quick_gelu"),
        *("CLIP with a ViT", "CLIPModel of transformers"),
    ),
    "CLIP of OpenAI": (
        lambda: clip(None, replace(LAST, activation="quick_gelu", hidden=256), activation="quick_gelu", hidden=512),
        *("CLIP with a ViT, of OpenAI", "CLIPModel of transformers"),
    ),
}


@pytest.mark.parametrize("to", ["official", "huggingface"])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_model_is_written_in_the_layout_that_says_it(name: str, to: Any, tmp_path: Path) -> None:
    build, *layouts = WRITTEN[name]
    folder = saved(tmp_path, build())
    done = convert(folder, to, tmp_path / "out.pth")
    assert done.layout == layouts[to == "huggingface"]
    gelus = {"CLIP": "gelu", "CLIP of QuickGELU, narrower inside": "quick_gelu"}
    options = {"activation": gelus[name]} if name in gelus and to == "official" else {}
    again, before = synoptic.load(tmp_path / "out.pth", "cpu", **options), synoptic.load(folder, "cpu")
    state = before.model.state_dict()
    if name == "iBOT" and to == "huggingface":
        assert "it has no place for the mask_token, which takes no part in answers" in done.notes
        state.pop("mask_token")
    assert again.model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.model.state_dict().items())
    images = torch.rand(1, 3, *(2 * [before.model.config.image_size]))
    torch.testing.assert_close(again(images).summary, before(images).summary)  # summed in another order, maybe
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out.pth"]


def test_openais_state_dict_holds_its_three_numbers(tmp_path: Path) -> None:
    convert(saved(tmp_path, WRITTEN["CLIP of OpenAI"][0]()), "official", tmp_path / "a.pt")
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    numbers = {name: state[name].item() for name in ("input_resolution", "context_length", "vocab_size")}
    assert numbers == {"input_resolution": 16, "context_length": 8, "vocab_size": 300}
    assert {tensor.dtype for key, tensor in state.items() if key not in numbers} == {torch.float32}


def test_a_file_says_nothing_of_what_it_leaves_open_and_the_note_does(tmp_path: Path) -> None:
    folder = saved(tmp_path, ViT(replace(ViTConfig(**PLAIN), heads=4, position_offset=0.1)), Preprocess(16, "squash"))
    done = convert(folder, "official", tmp_path / "a.pth")
    assert done.notes == (
        "it does not say how pictures are prepared: size=16, mode=squash",
        "the file does not say load.heads=4, without which it is not read, or wrongly",
    )
    (tmp_path / "words").mkdir()
    done = convert(saved(tmp_path / "words", clip(None, LAST)), "official", tmp_path / "b.pth")
    assert done.notes == (
        "the file does not say load.heads=2 load.text_heads=1 load.activation=gelu, without which it is not read, or "
        "wrongly",
    )


@pytest.mark.parametrize(
    "preprocess", [Preprocess(16), Preprocess(8), Preprocess(16, "squash"), Preprocess(12, "squash")]
)
def test_a_folder_says_how_pictures_are_prepared(preprocess: Preprocess, tmp_path: Path) -> None:
    done = convert(saved(tmp_path, ViT(ViTConfig(**PLAIN)), preprocess), "huggingface", tmp_path / "h")
    assert done.notes == ()
    assert synoptic.load(tmp_path / "h", "cpu").preprocess == preprocess


def test_a_folder_says_the_statistics_and_the_bands(tmp_path: Path) -> None:
    config = ViTConfig(**PLAIN, channels=4, mean=(0.1, 0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7, 0.8))
    done = convert(saved(tmp_path, ViT(config), Preprocess(16, bands=4)), "huggingface", tmp_path / "h")
    model = synoptic.load(tmp_path / "h", "cpu")
    assert (model.model.config, model.preprocess, done.notes) == (config, Preprocess(16, bands=4), ())


def test_no_layout_says_that_pictures_of_three_bands_are_read_at_full_depth(tmp_path: Path) -> None:
    done = convert(saved(tmp_path, ViT(ViTConfig(**PLAIN)), Preprocess(16, bands=3)), "huggingface", tmp_path / "h")
    assert done.notes == ("it does not say how pictures are prepared: size=16, bands=3",)


def test_back_from_transformers_a_note_tells_what_the_makers_code_does_otherwise(tmp_path: Path) -> None:
    convert(saved(tmp_path, WRITTEN["DINOv2"][0]()), "huggingface", tmp_path / "h")
    done = convert(tmp_path / "h", "official", tmp_path / "back.pth")
    note = "at sizes other than 16 its positions are resampled otherwise: position_offset=0.0, there 0.1"
    assert (done.layout, done.notes) == ("DINOv2", (note,))


@pytest.mark.parametrize("build", [clip, siglip], ids=["clip", "siglip"])
def test_words_go_along(build: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path, build())
    convert(folder, "huggingface", tmp_path / "h")
    again, before = synoptic.load(tmp_path / "h", "cpu"), synoptic.load(folder, "cpu")
    texts = ["a red cone", " A Blue cube ", "blue"]
    assert (again.encode_text(texts) == before.encode_text(texts)).all()
    for before, after in (("h", "twice"), ("twice", "thrice")):  # what cleans a text is not put before itself
        convert(tmp_path / before, "huggingface", tmp_path / after)
    assert (tmp_path / "thrice/tokenizer.json").read_bytes() == (tmp_path / "twice/tokenizer.json").read_bytes()


@pytest.mark.parametrize("build", [clip, siglip], ids=["clip", "siglip"])
def test_transformers_gives_words_the_same_ids(build: Any, tmp_path: Path) -> None:
    """Start and end among them, and all that fills a row."""
    model = build()
    convert(saved(tmp_path, model), "huggingface", tmp_path / "h")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "h")
    texts = ["a red cone", "A blue, blue cube!", "red " * 30]
    padding = "max_length" if model.tokenizer.full else "longest"
    rows = theirs(texts, padding=padding, truncation=True, return_tensors="pt")["input_ids"]
    assert torch.equal(rows, model.tokenizer(texts))


REFUSED: dict[str, tuple[Any, str, str]] = {
    "a convolutional stem": (
        lambda: ViT(ViTConfig(**PLAIN, stem="conv")),
        "huggingface",
        r"ViTModel of transformers has no way to say what mine is: stem=conv, there patch$",
    ),
    "cropped positions": (
        lambda: ViT(ViTConfig(**PLAIN, position="cpe")),
        "official",
        "RADIO has no way to say what mine is: patch_bias=True, there False$",
    ),
    "two summaries": (
        lambda: ViT(ViTConfig(**PLAIN, summary_tokens=2)),
        "huggingface",
        "summary_tokens=2, there 1$",
    ),
    "another epsilon": (
        lambda: ViT(ViTConfig(**PLAIN, norm_eps=1e-5, position_offset=0.1)),
        "official",
        "norm_eps=1e-05, there 1e-06$",
    ),
    "other statistics": (
        lambda: ViT(ViTConfig(**PLAIN, mean=(0.5, 0.5, 0.5), position_offset=0.1)),
        "official",
        r"mean=\[0\.5, 0\.5, 0\.5\], there",
    ),
    "an odd width of layers": (
        lambda: ViT(ViTConfig(**{**PLAIN, "hidden": 200}, **DINOV2)),
        "huggingface",
        "hidden=200 is no multiple of width=128",
    ),
    "registers without LayerScale": (
        lambda: ViT(ViTConfig(**PLAIN, registers=2, mask_token=True)),
        "huggingface",
        "Dinov2WithRegistersModel .* is: layer_scale=None, there 1.0$",
    ),
    "a student": (
        lambda: Student(
            StudentConfig(backbone=ViTConfig(**PLAIN), adaptors={"a": AdaptorConfig(patches=4, summary=4, hidden=8)})
        ),
        "huggingface",
        "mine is a student of several teachers with the adaptors a, of which there is no such layout; to=",
    ),
    "a CLIP that sees with a ResNet": (
        lambda: Clip(
            ClipConfig(
                resnet=ResNetConfig(blocks=(1, 1, 1, 1), width=8, heads=4, embedding=24, image_size=64), text=TEXT
            ),
            WORDS,
        ),
        "huggingface",
        "has no way to say what mine is: .*resnet=given, there None",
    ),
    "half of such a CLIP": (
        lambda: ResNet(ResNetConfig(blocks=(1, 1, 1, 1), width=8, heads=4, embedding=24, image_size=64)),
        "official",
        "mine is a ResNet of CLIP, of which there is no such layout; to=synoptic holds it$",
    ),
    "an end that is not the last id": (
        lambda: clip(None, replace(LAST, end=5, activation="quick_gelu"), activation="quick_gelu"),
        "official",
        "text.end=5, there 299$",
    ),
    "SigLIP's own activation": (siglip, "official", "text.activation=gelu_tanh, there gelu"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_layout_cannot_say_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    build, to, message = REFUSED[case]
    folder = saved(tmp_path, build())
    with pytest.raises(ValueError, match=message) as error:
        convert(folder, to, tmp_path / "out.pt")  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("to", ["official", "huggingface", "synoptic"])
def test_nothing_that_lies_there_is_overwritten(to: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path, ViT(ViTConfig(**PLAIN)))
    for place in (tmp_path / "file.pth", tmp_path / "full.pth" / "file"):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"precious")
    for out in (tmp_path / "file.pth", tmp_path / "full.pth", folder):
        with pytest.raises(ValueError, match="is there already, and nothing is overwritten"):
            convert(folder, to, out)
    assert (tmp_path / "file.pth").read_bytes() == (tmp_path / "full.pth/file").read_bytes() == b"precious"
    assert synoptic.load(folder).trained == {"steps": 3}


def test_an_empty_folder_may_be_filled_and_its_parents_are_made(tmp_path: Path) -> None:
    folder = saved(tmp_path, ViT(ViTConfig(**PLAIN)))
    (tmp_path / "empty").mkdir()
    convert(folder, "huggingface", tmp_path / "empty")
    convert(folder, "synoptic", tmp_path / "a" / "b" / "ours")
    convert(folder, "official", tmp_path / "a" / "c" / "theirs.pth")
    assert load_file(tmp_path / "empty/model.safetensors")
    assert synoptic.load(tmp_path / "a/b/ours").trained == {"steps": 3}


def test_a_makers_file_is_called_as_theirs_are(tmp_path: Path) -> None:
    folder = saved(tmp_path, ViT(ViTConfig(**PLAIN)))
    with pytest.raises(ValueError, match=r"give the name of a file that ends in \.pth or \.pt or \.bin"):
        convert(folder, "official", tmp_path / "model.safetensors")


@pytest.mark.parametrize("to", ["official", "huggingface", "synoptic"])
def test_what_is_read_back_otherwise_is_not_kept(to: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path, ViT(ViTConfig(**PLAIN, position_offset=0.1)))
    written = writing._bits
    calls = iter(range(10_000))

    def flip(tensor: torch.Tensor) -> torch.Tensor:
        bits = written(tensor).clone()
        bits[0] ^= next(calls) == 5
        return bits

    monkeypatch.setattr(writing, "_bits", flip)
    with pytest.raises(OSError, match="is read back with other bits than were written"):
        convert(folder, to, tmp_path / "out.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path, ViT(ViTConfig(**PLAIN)))

    def full(*args: Any, **options: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(writing, "save_file", full)
    monkeypatch.setattr(torch, "save", full)
    for to, out in (("huggingface", tmp_path / "h"), ("official", tmp_path / "a.pth")):
        with pytest.raises(OSError, match="No space"):
            convert(folder, to, out)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_every_layout_but_those_of_others_has_a_writer() -> None:
    """Each layout writes what it reads: a model in it goes back to itself (see also parity/test_round_trips.py). Of
    RADIO, files say what they are, and its makers' folders, which come with code, are read alone."""
    from synoptic.weights.layouts import FORMATS

    forms = [form for form in FORMATS if form.kind != "sam"]
    writers = [form.name for form in forms if (form.header is not None) != (form.maker == "huggingface")]
    assert len(writers) == 8 and all(name.startswith("RADIO") for name in writers)


def test_the_configuration_of_a_folder_is_json_of_plain_values(tmp_path: Path) -> None:
    convert(saved(tmp_path, clip()), "huggingface", tmp_path / "h")
    files = sorted(path.name for path in (tmp_path / "h").iterdir())
    assert files == [
        *("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
    ]
    assert json.loads((tmp_path / "h/config.json").read_text())["text_config"]["eos_token_id"] == WORDS.end


@pytest.mark.parametrize("build", [clip, siglip], ids=["clip", "siglip"])
def test_ids_that_a_folder_names_are_of_its_vocabulary(build: Any, tmp_path: Path) -> None:
    """Those that transformers takes by default are of CLIP's, and it warns of them where a vocabulary is smaller."""
    convert(saved(tmp_path, build()), "huggingface", tmp_path / "h")
    config = AutoModel.from_pretrained(tmp_path / "h").config.text_config
    ids = [getattr(config, f"{name}_token_id") for name in ("bos", "eos", "pad")]
    assert ids == [None, build().config.text.end, build().config.text.end]


def test_options_are_for_files_of_others(tmp_path: Path) -> None:
    folder = saved(tmp_path, ViT(ViTConfig(**PLAIN)))
    with pytest.raises(ValueError, match="says itself what heads= should be"):
        convert(folder, "official", tmp_path / "a.pth", LoadOptions(heads=2))
