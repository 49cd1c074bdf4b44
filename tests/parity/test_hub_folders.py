"""Folders of transformers as a MODEL: heads, files in pieces, preprocessing, refusals; and as a student's teacher."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from comparison import assert_equal
from PIL import Image
from safetensors.torch import load_file, save_file
from test_hub import BLOCKS, FAMILIES, STAGES, TEXT, VIT, adapted, pixels, random_model, written
from torch import Tensor

import synoptic
from synoptic.apps import cli
from synoptic.data.inputs import read_batches
from synoptic.models.clip import Clip
from synoptic.models.hub import HubBackbone
from synoptic.models.vit import ViT
from synoptic.types import Preprocess
from synoptic.weights.checksums import write_sums
from synoptic.weights.processors import preprocessing, statistics

DINOV3 = FAMILIES["dinov3"]


def dinov3(folder: Path) -> Path:
    return written(random_model(DINOV3.kind, DINOV3.config), folder)


# model, the part without its head, its class in our answer
HEADS: dict[str, tuple[str, dict[str, Any], Callable[[Any], Any]]] = {
    "vit": ("ViTForImageClassification", VIT, lambda whole: whole.vit),
    "deit": ("DeiTForImageClassificationWithTeacher", VIT, lambda whole: whole.deit),
    "dinov2": ("Dinov2ForImageClassification", {**VIT, "mlp_ratio": 2}, lambda whole: whole.dinov2),
    "clip": (
        "CLIPForImageClassification",
        {"text_config": TEXT, "vision_config": VIT},
        lambda whole: whole.vision_model,
    ),
    "siglip": (
        "SiglipForImageClassification",
        {"text_config": TEXT, "vision_config": VIT},
        lambda whole: whole.vision_model,
    ),
    "swin": ("SwinForImageClassification", {**FAMILIES["swin"].config, "window_size": 4}, lambda whole: whole.swin),
    "resnet": ("ResNetForImageClassification", {**STAGES, "embedding_size": 8}, lambda whole: whole.resnet),
    "convnext": ("ConvNextForImageClassification", {**STAGES, "image_size": 64}, lambda whole: whole.convnext),
    "mae": (
        "ViTMAEForPreTraining",
        {**VIT, "decoder_hidden_size": 24, "decoder_num_attention_heads": 2},
        lambda w: w.vit,
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_a_task_are_read_and_put_aside(name: str, tmp_path: Path) -> None:
    kind, config, body = HEADS[name]
    whole = random_model(kind, {**config, "num_labels": 7})
    folder = written(whole, tmp_path / "theirs")
    model = synoptic.load(folder, "cpu")
    assert isinstance(model.model, HubBackbone)
    assert model.trained == {"from": f"{kind} of transformers"}
    size = model.preprocess.size
    images, part = torch.rand(2, 3, size, size), body(whole)
    options: dict[str, Any] = {}
    if name == "mae":
        part.config.mask_ratio, options["noise"] = 0.0, torch.arange(16).expand(2, -1)
    with torch.no_grad():
        expected = part(pixel_values=pixels(images), **options)["last_hidden_state"]
    flat = expected.flatten(2).transpose(1, 2) if expected.ndim == 4 else expected
    patches = model(images).patches
    assert_equal(patches, flat[:, flat.shape[1] - patches.shape[1] :])
    model.save(tmp_path / "ours")
    again = synoptic.load(tmp_path / "ours", "cpu")
    assert torch.equal(again(images).patches, patches)
    held = load_file(tmp_path / "ours" / "model.safetensors")
    assert not [key for key in held if "classifier" in key or "decoder" in key or "text" in key]


TWO_WAYS = ("vit", "dinov2", "registers", "clip", "siglip")


@pytest.mark.parametrize("name", TWO_WAYS)
def test_our_own_models_and_the_adapter_answer_alike(name: str, tmp_path: Path) -> None:
    """Two implementations, held against each other at sizes that either was not made for."""
    family = FAMILIES[name]
    folder = written(random_model(family.kind, family.config), tmp_path)
    own, adapter = synoptic.load(folder, "cpu").model, adapted(folder)
    assert isinstance(own, ViT | Clip)
    for size in family.sizes:
        images = torch.rand(2, 3, *size)
        with torch.no_grad():
            mine, theirs = own(images), adapter(images)
            patches = theirs.patches
            if name == "clip":  # whose patches transformers leaves before the last norm
                patches = adapter.model.post_layernorm(patches)
        assert mine.grid == theirs.grid
        assert_equal(mine.patches, patches)
        assert_equal(mine.summary, theirs.summary)


def test_models_that_layouts_of_ours_read_are_read_by_them(tmp_path: Path) -> None:
    for name in (*TWO_WAYS, "clip vision", "siglip2 naflex", "dinov3"):
        family = FAMILIES[name]
        folder = written(random_model(family.kind, family.config), tmp_path / name)
        own = name in TWO_WAYS
        assert isinstance(synoptic.load(folder, "cpu").model, HubBackbone) is not own, name


@pytest.mark.parametrize("form", ["shards", "bin", "half"])
def test_weights_come_in_any_form(form: str, tmp_path: Path) -> None:
    theirs = random_model(DINOV3.kind, DINOV3.config)
    folder = written(theirs, tmp_path)
    expected = adapted(folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if form == "shards":
        theirs.save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    elif form == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file({key: tensor.half() for key, tensor in state.items()}, folder / "model.safetensors")
    model = synoptic.load(folder, "cpu").model
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    for key, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor.half().float() if form == "half" else tensor)


def edit(**values: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return spoil


def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return spoil


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Path("code")}, folder / "pytorch_model.bin")


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "code of its own": (edit(model_type="mine", auto_map={"AutoModel": "m.Mine"}), "code that comes with it .auto_map"),
    "an unknown kind": (
        edit(model_type="dinov9_vit"),
        r"dinov9_vit is known neither here nor to transformers .*did you",
    ),
    "an unknown class": (edit(architectures=["MyModel"]), "transformers .* has no model 'MyModel'"),
    "no model": (edit(architectures=["AutoConfig"]), "has no model 'AutoConfig'"),
    "no model of its own": (edit(architectures=["PreTrainedModel"]), "has no model 'PreTrainedModel'"),
    "a class of another kind": (
        edit(architectures=["BertModel"]),
        "a BertModel is of another kind than model_type=dinov3_vit",
    ),
    "a list for a class": (
        edit(model_type="vit", architectures=[["ViTModel"]]),
        "do not fit a ViTModel",
    ),
    "a list for a kind": (edit(model_type=["dinov3_vit"]), "is known neither here nor"),
    "no kind, and code": (edit(model_type=None, auto_map={"AutoModel": "m.Mine"}), "code that comes with it"),
    "quantized": (edit(quantization_config={"quant_method": "bitsandbytes"}), "its weights are quantized"),
    "a word for a number": (edit(hidden_size="wide"), "transformers refuses its configuration"),
    "heads that do not divide": (edit(num_attention_heads=5), "transformers|does not answer"),
    "of another width": (edit(hidden_size=48), r"misshapen .*for .48,"),
    "of another depth": (edit(num_hidden_layers=3), r"\d+ missing .*, \.\.\."),
    "no width": (edit(hidden_size=0), "transformers cannot make a DINOv3ViTModel of it"),
    "endless depth": (edit(num_hidden_layers=10**9), "num_hidden_layers=1000000000 should be at most 1024"),
    "endless width": (edit(hidden_size=10**12), "hidden_size=1000000000000 should be at most"),
    "a giant": (edit(hidden_size=48_000, intermediate_size=48_000), "numbers, and its configuration makes a .* of 2.,"),
    "a missing tensor": (tensors(lambda s: s.pop("norm.weight")), r"DINOv3ViTModel: 1 missing .norm\.weight"),
    "another tensor": (tensors(lambda s: s.update(extra=torch.ones(2))), r"1 unexpected .extra"),
    "another shape": (
        tensors(lambda s: s.update({"norm.weight": torch.ones(23)})),
        r"1 misshapen .norm\.weight .23,. for .24,.",
    ),
    "nothing": (tensors(lambda s: (s.clear(), s.update(x=torch.ones(1)))), "missing"),
    "numbers without fractions": (
        tensors(lambda s: s.update({"norm.weight": torch.ones(24, dtype=torch.int64)})),
        r"1 mistyped .norm\.weight torch\.int64",
    ),
    "half a file": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        "damaged weights file",
    ),
    "a pickle of more than tensors": (pickled, "would run code .pathlib"),
    "another preprocessing": (
        lambda f: (f / "preprocessor_config.json").write_text('{"image_mean": "gray"}'),
        "its image processor says image_mean=gray",
    ),
    "one mean": (
        lambda f: (f / "preprocessor_config.json").write_text('{"image_mean": [0.5]}'),
        "should be numbers, one a band",
    ),
    "no deviation": (lambda f: (f / "preprocessor_config.json").write_text('{"image_std": [0, 1, 1]}'), "above 0"),
    "oblong pictures": (
        lambda f: (f / "preprocessor_config.json").write_text('{"size": {"height": 32, "width": 48}}'),
        "only squares are read",
    ),
    "a share of nothing": (
        lambda f: (f / "preprocessor_config.json").write_text('{"size": 32, "crop_pct": 0}'),
        "crop_pct=0, which should be a number above 0",
    ),
    "endless pictures": (
        lambda f: (f / "preprocessor_config.json").write_text('{"size": 1000000}'),
        "1000000, which is no side of a square in pixels",
    ),
    "no size": (
        lambda f: (f / "preprocessor_config.json").write_text('{"size": "large"}'),
        "'large', which is no side",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_what_is_wrong_with_a_folder_is_told_in_one_line(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, message = SPOILED[case]
    folder = dinov3(tmp_path)
    spoil(folder)
    capfd.readouterr()
    with pytest.raises(ValueError, match=message) as error:
        synoptic.load(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    assert capfd.readouterr().err == ""  # neither the reports of transformers nor its progress


OTHERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "text": ("BertModel", {**BLOCKS, "vocab_size": 50}, "BertModel reads input_ids, .*no part of it pictures"),
    "text that is made": (
        "GPT2Model",
        {"n_embd": 24, "n_layer": 1, "n_head": 2, "vocab_size": 50},
        "GPT2Model reads input_ids, .*no part of it pictures",
    ),
    "sound": ("ASTModel", {**BLOCKS, "max_length": 64, "num_mel_bins": 32}, "reads input_values"),
    "detection": (
        "YolosForObjectDetection",
        {**VIT, "image_size": [32, 32], "num_detection_tokens": 5},
        "in which its patches cannot be found",
    ),
    "steps that do not tile": ("LevitModel", {}, "pictures of 224 x 224, which steps of 64 pixels do not tile"),
    "oblong": ("ViTModel", {**VIT, "image_size": [32, 48]}, "32x48, and only square ones"),
    "text and pictures": (
        "ViltModel",
        {**VIT, "vocab_size": 50, "max_position_embeddings": 16},
        "ViltModel does not answer a picture alone",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_model_of_another_sort_is_refused_with_what_it_lacks(case: str, tmp_path: Path) -> None:
    kind, config, message = OTHERS[case]
    folder = written(random_model(kind, config), tmp_path)
    edit(architectures=["ViTForImageClassification"] if case == "oblong" else [kind])(folder)
    with pytest.raises(ValueError, match=message) as error:
        synoptic.load(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_a_configuration_names_no_code_that_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel of attention would be fetched from the Hub and run as soon as the model is made."""
    reached: list[str] = []
    monkeypatch.setattr(
        "transformers.modeling_utils.lazy_import_flash_attention", lambda name, **_: reached.append(name)
    )
    monkeypatch.setattr("transformers.modeling_utils.is_kernel", lambda name: bool(name) and "/" in str(name))
    folder = dinov3(tmp_path / "theirs")
    edit(attn_implementation="evil/kernel", _attn_implementation="evil/kernel", auto_map={"AutoModel": "m.Evil"})(
        folder
    )
    model = synoptic.load(folder, "cpu")
    model.save(tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    config["model"]["transformers"]["attn_implementation"] = "evil/kernel"
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config))
    write_sums(tmp_path / "ours")
    synoptic.load(tmp_path / "ours", "cpu")
    assert not reached and "evil" not in json.dumps(synoptic.weights.folder.to_dict(model.model.config))


def test_pictures_of_other_sizes_or_bands_are_refused(tmp_path: Path) -> None:
    model = adapted(dinov3(tmp_path / "dinov3"))
    with pytest.raises(ValueError, match=r"33x40 are not tiled by patches of 8; .* 32x40 and 40x40"):
        model(torch.rand(1, 3, 33, 40))
    with pytest.raises(ValueError, match=r"expected pictures of shape .B, 3, H, W., got .1, 4, 32, 32"):
        model(torch.rand(1, 4, 32, 32))
    with pytest.raises(ValueError, match="masks were given to a DINOv3ViTModel"):
        model(torch.rand(1, 3, 32, 32), torch.zeros(1, 16, dtype=torch.bool))
    sam = FAMILIES["sam vision"]
    fixed = adapted(written(random_model(sam.kind, sam.config), tmp_path / "sam"))
    with pytest.raises(ValueError, match="40x32 are not of the one size that a SamVisionModel reads, 32x32"):
        fixed(torch.rand(1, 3, 40, 32))
    assert fixed.summary_width == 0 and fixed.width == 12
    swin = random_model("SwinModel", {**FAMILIES["swin"].config, "window_size": 7})
    windows = adapted(written(swin, tmp_path / "swin"))
    with pytest.raises(ValueError, match=r"SwinModel does not take pictures of 32x32 .*; its own are of 64x64"):
        windows(torch.rand(1, 3, 32, 32))


def test_options_for_other_makers_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="says itself what heads= should be"):
        synoptic.load(dinov3(tmp_path), heads=3)


# a preprocessor_config.json of a released model, the size in its configuration, and what it means
RELEASED: dict[str, tuple[dict[str, Any], int | None, Preprocess]] = {
    "vit": (
        {"size": {"height": 224, "width": 224}, "resample": 2},
        224,
        Preprocess(224, "squash", interpolation="bilinear"),
    ),
    "vit, older": (
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 2},
        *(224, Preprocess(224, "squash", interpolation="bilinear")),
    ),
    "dinov2": (
        {
            "size": {"shortest_edge": 256},
            "do_center_crop": True,
            "crop_size": {"height": 224, "width": 224},
            "resample": 3,
        },
        *(518, Preprocess(224, "crop", share=224 / 256)),
    ),
    "clip": (
        {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
        *(224, Preprocess(224)),
    ),
    "clip, older": ({"size": 224, "do_center_crop": True, "crop_size": 224, "resample": 3}, 224, Preprocess(224)),
    "deit, older": (
        {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "do_center_crop": True, "crop_size": 224},
        *(224, Preprocess(224, "squash", share=224 / 256)),
    ),
    "convnext": ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, 224, Preprocess(224, "crop", share=0.875)),
    "convnext, large": ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, 384, Preprocess(384, "squash")),
    "resnet, older": ({"size": 224, "crop_pct": 0.875, "do_center_crop": False}, None, Preprocess(224, share=0.875)),
    "sam": ({"size": {"longest_edge": 1024}, "do_pad": True}, 1024, Preprocess(1024, "squash")),
    "nothing is said": ({}, 384, Preprocess(384)),
    "nothing at all": ({}, None, Preprocess(224)),
    "no resizing": ({"do_resize": False, "do_center_crop": True, "crop_size": 96}, 224, Preprocess(96)),
}


@pytest.mark.parametrize("case", RELEASED)
def test_released_preprocessing_means(case: str) -> None:
    processor, image_size, expected = RELEASED[case]
    assert preprocessing(processor, image_size) == expected


def test_statistics_are_of_pictures_in_zero_to_one() -> None:
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    for processor, mean, std in (
        (half, 0.5, 0.5),
        (half | {"do_normalize": False}, 0.0, 1.0),
        (half | {"rescale_factor": 1 / 127.5}, 0.25, 0.25),
        (half | {"rescale_factor": 1 / 127.5, "rescale_offset": True}, 0.75, 0.25),
        (half | {"do_rescale": False}, 0.5 / 255, 0.5 / 255),
    ):
        told = statistics(processor)
        assert np.allclose(told[0], mean) and np.allclose(told[1], std)


PROCESSORS: dict[str, tuple[str, dict[str, Any], float]] = {
    "vit": ("ViTImageProcessorPil", {"size": {"height": 32, "width": 32}}, 0.01),
    "clip": ("CLIPImageProcessorPil", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}, 0.01),
    "dinov2": ("BitImageProcessorPil", {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}, 0.03),
    "convnext": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 32}, "crop_pct": 0.8}, 0.03),
    "siglip": ("SiglipImageProcessorPil", {"size": {"height": 32, "width": 32}}, 0.01),
    "deit": (
        "DeiTImageProcessorPil",
        {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}},
        0.03,
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pictures_become_what_their_processor_makes_of_them(name: str, tmp_path: Path) -> None:
    """The mean difference of pixels, of a smooth picture, in shares of their range; rounding cuts by half a pixel."""
    kind, values, bound = PROCESSORS[name]
    processor = getattr(transformers, kind)(**values)
    processor.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "preprocessor_config.json").read_text())
    ours, (mean, std) = preprocessing(said, 32), statistics(said)
    rows, columns = np.mgrid[0:90, 0:120] / 20
    shades = [np.sin(rows + 0.7 * band) * np.cos(columns - band) for band in range(3)]
    picture = Image.fromarray((127 + 120 * np.stack(shades, axis=2)).astype(np.uint8))
    expected = torch.as_tensor(np.asarray(processor(picture)["pixel_values"]))
    (batch,) = read_batches(picture, ours)
    normal = (batch.images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    assert normal.shape == expected.shape
    span = float(expected.max() - expected.min())
    assert (normal - expected).abs().mean() < bound * span


def test_a_folder_without_preprocessing_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = dinov3(tmp_path)
    (folder / "preprocessor_config.json").unlink()
    model = synoptic.load(folder, "cpu")
    assert (
        "has no preprocessor_config.json; its pictures are normalised about the mean 0.485, 0.456, 0.406" in caplog.text
    )
    assert model.preprocess == Preprocess(32) and model.model.config.mean == (0.485, 0.456, 0.406)


def test_a_size_that_patches_do_not_tile_becomes_one(tmp_path: Path) -> None:
    """SigLIP's largest model has patches of 14 in pictures of 384: what lies beyond the 27th is not read."""
    config = {**VIT, "image_size": 38, "patch_size": 8}
    theirs = random_model("SiglipVisionModel", config)
    folder = written(theirs, tmp_path, {"size": {"height": 38, "width": 38}})
    model = synoptic.load(folder, "cpu")
    assert model.preprocess == Preprocess(32, "squash")
    images = torch.rand(1, 3, 38, 38)
    with torch.no_grad():
        normal = model.model.normalize(images)
        assert_equal(model(images[..., :32, :32]).patches, theirs(pixel_values=normal).last_hidden_state)


def test_a_model_of_transformers_is_used_as_any_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One word for it in every verb: embed, evaluate, figures, train."""
    resnet = FAMILIES["resnet"]
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"shortest_edge": 64}}
    folder = written(random_model(resnet.kind, resnet.config), tmp_path / "resnet", processor)
    other = written(random_model(DINOV3.kind, DINOV3.config), tmp_path / "dinov3")
    assert cli.main(["scenes", f"out={tmp_path}/scenes", "count=25", "objects=1", "size=64"]) == 0
    data = f"{tmp_path}/scenes"
    picture = next(Path(data).glob("test/**/*.png"))
    train = [
        "train",
        "radio",
        f"data={data}",
        f"teachers=r:{folder},d:{other}",
        "model=vit_nano16",
        "size=32",
        "steps=2",
    ]
    for words in (
        ["embed", str(picture), f"model={folder}", f"out={tmp_path}/e.parquet"],
        ["evaluate", str(other), "on=knn,linear", f"data={data}"],
        ["figures", str(picture), f"model={other}", f"out={tmp_path}/figures"],
        [*train, "batch=8", "device=cpu", f"out={tmp_path}/student"],
    ):
        assert cli.main(words) == 0, capsys.readouterr().err
    student = synoptic.load(tmp_path / "student", "cpu")
    answers = student(torch.rand(1, 3, 32, 32)).adaptors
    assert answers["r"].summary.shape == (1, 20) and answers["d"].patches.shape == (1, 4, 24)


def test_embeddings_are_the_same_from_either_folder(tmp_path: Path) -> None:
    model = synoptic.load(dinov3(tmp_path / "theirs"), "cpu")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8))
    expected = model.embed(picture)
    assert expected.shape == (1, 24) and model.depth == 2 and not model.attends and not model.speaks()
    model.save(tmp_path / "ours")
    assert np.array_equal(synoptic.load(tmp_path / "ours", "cpu").embed(picture), expected)
    card = (tmp_path / "ours" / "README.md").read_text()
    assert "vision model of transformers" in card and "DINOv3ViTModel of transformers" in card
    assert replace(model.preprocess, size=32) == model.preprocess


def test_a_spoiled_folder_of_ours_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    synoptic.load(dinov3(tmp_path / "theirs"), "cpu").save(tmp_path / "ours")
    path = tmp_path / "ours" / "config.json"
    kept = json.loads(path.read_text())
    for values, message in (
        ({"hidden_size": 48_000, "intermediate_size": 48_000}, r"\d+ misshapen"),
        ({"num_hidden_layers": 3}, r"\d+ missing"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 should be at most"),
        ({"model_type": "bert"}, "a DINOv3ViTModel is of another kind than model_type=bert"),
    ):
        spoiled = copy.deepcopy(kept)
        spoiled["model"]["transformers"] |= values
        path.write_text(json.dumps(spoiled))
        write_sums(tmp_path / "ours")
        with pytest.raises(ValueError, match=message) as error:
            synoptic.load(tmp_path / "ours")
        assert "\n" not in str(error.value) and str(tmp_path / "ours") in str(error.value)
