"""Files of CLIP and SigLIP answer as their makers' code did, and folders of Hugging Face as transformers does."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_equal
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

import synoptic
from synoptic.losses import contrastive
from synoptic.models.clip import TEXT_OF, Clip, clip_config, picture_encoder, text_size
from synoptic.models.text import TextConfig
from synoptic.models.tokenizers import Tokenizer
from synoptic.weights import formats, layouts
from synoptic.weights.convert import from_ours, to_ours
from synoptic.weights.folder import shapes_alone
from synoptic.weights.options import LoadOptions
from synoptic.weights.reading import read_parts

# name of the recorded tensors: file, pictures, ids, what the file does not say
FILES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "vit": ("clip/weights.vit.pt", "image/vit", "in/token_ids", {"activation": "quick_gelu"}),
    "rn": ("clip/weights.rn_torchscript.pt", "image/rn", "in/token_ids", {}),
    "clip": (
        *("open_clip/weights.clip.pt", "image/all", "in/token_ids"),
        {"activation": "gelu", "heads": 2, "text_heads": 4},
    ),
    "clip_quickgelu": (
        *("open_clip/weights.clip_quickgelu.pt", "image/all", "in/token_ids"),
        {"activation": "quick_gelu", "heads": 4, "text_heads": 2},
    ),
    "siglip": (
        *("open_clip/weights.siglip.bin", "image/all", "in/token_ids_siglip"),
        {"heads": 2, "text_heads": 2},
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FILES)
def test_files_answer_as_recorded(name: str, dtype: torch.dtype, fixtures_dir: Path) -> None:
    file, pictures, ids, options = FILES[name]
    record = load_file((fixtures_dir / file).parent / "io.safetensors")
    model = formats.load(fixtures_dir / file, LoadOptions(**options))[0].to(dtype)
    twin = "_f64" if dtype == torch.float64 else ""
    with torch.no_grad():
        images, texts = model(record[pictures].to(dtype)).summary, model.encode_text(record[ids].long())
        assert_equal(images, record[f"{name}/image_features{twin}"])
        assert_equal(texts, record[f"{name}/text_features{twin}"])
        if dtype == torch.float32:
            logits = model.logit_scale.exp() * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
            assert_equal(logits + (model.logit_bias or 0.0), record[f"{name}/logits_per_image"])


@pytest.mark.parametrize("name", FILES)
def test_keys_go_there_and_back(name: str, fixtures_dir: Path) -> None:
    file, _, _, options = FILES[name]
    parts = read_parts(fixtures_dir / file)
    found = formats.identify(parts, {}, LoadOptions(**options), file)
    state = formats.networks(parts, None, file)["backbone"]
    back = from_ours(to_ours(state, found.format.table), found.format.table)
    left = {"input_resolution", "context_length", "vocab_size"}
    assert back.keys() == state.keys() - left
    for key, tensor in back.items():
        assert tensor.shape == state[key].shape and torch.equal(tensor, state[key])


def test_every_layout_has_a_test(fixtures_dir: Path) -> None:
    told = {
        formats.identify(read_parts(fixtures_dir / file), {}, LoadOptions(**options), file).format.name
        for file, _, _, options in FILES.values()
    }
    hidden = {"CLIP with a ResNet"}  # that of OpenAI's archive, as a state dict
    folders = {form.name for form in layouts.FORMATS if form.model_type in ("clip", "siglip")}
    there = {form.name for form in layouts.FORMATS if form.kind == "clip"}
    assert told | folders | hidden | {"CLIP with a ViT, of OpenAI"} == there


def test_a_model_without_words_sees_and_is_kept(fixtures_dir: Path, tmp_path: Path) -> None:
    model = synoptic.load(fixtures_dir / "clip/weights.vit.pt", "cpu", activation="quick_gelu")
    model.save(tmp_path / "kept")
    again = synoptic.load(tmp_path / "kept", "cpu")
    images = torch.rand(1, 3, 40, 40)
    assert torch.equal(again.model(images).summary, model.model(images).summary)
    with pytest.raises(ValueError, match=r"came without a vocabulary: load it with load\.vocabulary=FILE"):
        again.encode_text(["a cat"])


def test_what_a_file_does_not_tell_must_be_said(fixtures_dir: Path) -> None:
    """QuickGELU and GELU have the same keys; a warning would be overlooked."""
    with pytest.raises(ValueError, match=r"do not tell the activation; say load\.activation=quick_gelu"):
        synoptic.load(fixtures_dir / "clip/weights.vit.pt")
    with pytest.raises(ValueError, match="its activation is quick_gelu, not gelu"):
        synoptic.load(fixtures_dir / "clip/weights.rn_torchscript.pt", activation="gelu")


def test_ids_are_those_of_clips_code(fixtures_dir: Path, data_dir: Path) -> None:
    with gzip.open(data_dir / "vocab" / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        tokenizer = Tokenizer.clip(file.read().split("\n"))
    told = json.loads((fixtures_dir / "clip" / "tokens.json").read_text())
    assert len(told) == 300 and (tokenizer.vocabulary, tokenizer.start, tokenizer.end) == (49408, 49406, 49407)
    assert tokenizer.encode([line["text"] for line in told]) == [line["ids"] for line in told]
    record = load_file(fixtures_dir / "clip" / "io.safetensors")
    strings = json.loads((fixtures_dir / "clip" / "strings.json").read_text())
    for row, ids in zip(tokenizer(strings), record["in/token_ids_full_vocabulary"].tolist(), strict=True):
        length = ids.index(tokenizer.end) + 1
        assert row[:length].tolist() == ids[:length]


# a released file: our name for its architecture, side of its pictures, our towers
RELEASED = {
    "clip": {
        **{name: (name.lower(), size, "clip") for name, size in (("RN50", 224), ("RN101", 224), ("RN50x4", 288))},
        **{name: (name.lower(), size, "clip") for name, size in (("RN50x16", 384), ("RN50x64", 448))},
        "ViT-B/32": ("vit_b32", 224, "clip"),
        "ViT-B/16": ("vit_b16", 224, "clip"),
        "ViT-L/14": ("vit_l14", 224, "clip"),
        "ViT-L/14@336px": ("vit_l14", 336, "clip"),
    },
    "open_clip": {
        "ViT-B-32": ("vit_b32", 224, "clip"),
        "ViT-B-16": ("vit_b16", 224, "clip"),
        "ViT-L-14": ("vit_l14", 224, "clip"),
        "ViT-H-14": ("vit_h14", 224, "clip"),
        "ViT-B-16-SigLIP": ("vit_b16", 224, "siglip"),
    },
}


@pytest.mark.parametrize("family", RELEASED)
def test_released_files_are_known_and_are_our_architectures(family: str, fixtures_dir: Path) -> None:
    """Every key of every full-size file is mapped, and what a training of that name begins with has the same shapes."""
    manifest = json.loads((fixtures_dir / family / "manifest.json").read_text())
    assert manifest.keys() == RELEASED[family].keys()
    for name, (ours, size, towers) in RELEASED[family].items():
        state = {key: torch.empty(shape, device="meta") for key, shape in manifest[name].items()}
        options = LoadOptions(activation=None if towers == "siglip" else "gelu")
        found = formats.identify({"": state}, {}, options, name)
        text = found.config.text
        encoder = picture_encoder(ours, towers, size, text.embedding)
        usual = text_size(ours, encoder, towers)
        assert (text.width, text.depth, text.heads, text.embedding) == (
            *(usual.width, usual.depth, usual.heads, usual.embedding),
        )
        vocabulary = {"vocabulary": text.vocabulary, "context": text.context, "end": text.end}
        sizes = {"width": usual.width, "depth": usual.depth, "heads": usual.heads, "embedding": usual.embedding}
        config = clip_config(encoder, TextConfig(**vocabulary, **sizes, **TEXT_OF[towers]), towers == "siglip")
        with shapes_alone():
            state_of_ours, state_of_file = Clip(config, None).state_dict(), Clip(found.config, None).state_dict()
        assert shapes(state_of_file) == shapes(state_of_ours) == shapes(found.state)
        assert found.config.encoder.heads == encoder.heads and found.config.bias is (towers == "siglip")
        if towers == "clip" and found.config.image is not None:
            assert replace(found.config.image, hidden=encoder.hidden) == encoder
        back = from_ours(state_of_ours, found.format.table)
        assert shapes(back) == {key: shape for key, shape in shapes(state).items() if key in back}
        assert state.keys() - back.keys() <= {"input_resolution", "context_length", "vocab_size"}


def shapes(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


CLIP = {
    "text_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"vocab_size": 99, "max_position_embeddings": 20, "eos_token_id": 98, "bos_token_id": 97, "pad_token_id": 98},
    "vision_config": {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 3}
    | {"image_size": 32, "patch_size": 8},
    "projection_dim": 24,
}
SIGLIP = {
    "text_config": {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"vocab_size": 99, "max_position_embeddings": 16, "bos_token_id": 97, "eos_token_id": 1},
    "vision_config": CLIP["vision_config"],
}


def huggingface(kind: str, act: str) -> CLIPModel | SiglipModel:
    """A model of random weights, large enough that every part shows."""
    torch.manual_seed(0)
    values = {**(CLIP if kind == "clip" else SIGLIP)}
    for tower in ("text_config", "vision_config"):
        values[tower] = values[tower] | {"hidden_act": act}
    model = CLIPModel(CLIPConfig(**values)) if kind == "clip" else SiglipModel(SiglipConfig(**values))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.double().eval()


@pytest.mark.parametrize(
    ("kind", "act"), [("clip", "quick_gelu"), ("clip", "gelu"), ("siglip", "gelu_pytorch_tanh"), ("siglip", "gelu")]
)
def test_folders_answer_and_learn_as_transformers(kind: str, act: str, tmp_path: Path) -> None:
    """Embeddings, loss and gradients of every weight, in float64."""
    theirs = huggingface(kind, act)
    theirs.float().save_pretrained(tmp_path / "folder")
    theirs.double()
    ours = synoptic.load(tmp_path / "folder", "cpu").model.double()
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    ids = torch.randint(2, 97, (3, 16))
    ids[:, -1] = theirs.config.text_config.eos_token_id
    answer = theirs(input_ids=ids, pixel_values=ours.image.normalize(images), return_loss=True)
    mine, words = ours(images).summary, ours.encode_text(ids)
    assert_equal(F.normalize(mine, dim=1), answer.image_embeds)
    assert_equal(F.normalize(words, dim=1), answer.text_embeds)
    if kind == "clip":
        loss = contrastive.clip(mine, words, ours.logit_scale)
    else:
        loss = contrastive.siglip(mine, words, ours.logit_scale, ours.logit_bias)
    assert_equal(loss, answer.loss)
    loss.backward()
    answer.loss.backward()
    table = next(form.table for form in layouts.FORMATS if form.model_type == kind)
    gradients = from_ours({name: present.grad for name, present in ours.named_parameters()}, table)
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None}
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():  # of the keys' biases there is none in theory, since a softmax takes it out
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-9 * largest)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"vision_config": "none", "text_config": ["none"]}, "transformers refuses its configuration"),
        ({"vision_config": {"hidden_act": ["gelu"]}}, "transformers refuses its configuration"),
        ({"text_config": {"layer_norm_eps": "small"}}, "norm_eps=small should be"),
        ({"text_config": {"eos_token_id": [1, 2]}}, r"text\.end=1,2 should be"),
    ],
)
def test_a_folder_that_talks_nonsense_is_refused_in_one_line(
    said: dict[str, Any], message: str, tmp_path: Path
) -> None:
    huggingface("clip", "quick_gelu").float().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    header = json.loads(path.read_text())
    for part, values in said.items():
        if isinstance(values, dict):
            said = {**said, part: {**header[part], **values}}
    path.write_text(json.dumps(header | said))
    with pytest.raises(ValueError, match=message) as error:
        synoptic.load(tmp_path)
    assert "\n" not in str(error.value)
