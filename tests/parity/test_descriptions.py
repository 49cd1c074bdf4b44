"""What folders of transformers say in their JSON files, and what they mean where they say nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from comparison import assert_equal
from PIL import Image
from test_hub import FAMILIES, VIT, random_model, written

import synoptic
from synoptic.data.inputs import read_batches
from synoptic.models.hub import HubBackbone
from synoptic.types import Preprocess
from synoptic.weights.descriptions import describe, read_processor
from synoptic.weights.processors import preprocessing, statistics

TEXT = {"hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 48, "vocab_size": 97}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}}
WHOLE = {**HALF, "image_processor_type": "ViTImageProcessor", "resample": 3}

# class, configuration in which all that shapes do not tell is left to the class's own choice
SILENT: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTModel", {"hidden_size": 48, "num_hidden_layers": 1, "intermediate_size": 48}),
    "dinov2": ("Dinov2Model", {"hidden_size": 48, "num_hidden_layers": 1, "mlp_ratio": 2}),
    "registers": ("Dinov2WithRegistersModel", {"hidden_size": 48, "num_hidden_layers": 1, "mlp_ratio": 2}),
    "clip": (
        "CLIPModel",
        {
            "text_config": {**TEXT, "bos_token_id": 95, "eos_token_id": 96, "pad_token_id": 0},
            "vision_config": {"hidden_size": 48, "num_hidden_layers": 1, "intermediate_size": 48},
        },
    ),
    "siglip": (
        "SiglipModel",
        {
            "text_config": {**TEXT, "hidden_size": 48, "projection_size": 48},
            "vision_config": {"hidden_size": 48, "num_hidden_layers": 1, "intermediate_size": 48},
        },
    ),
}
UNSAID = ("num_attention_heads", "hidden_act", "layer_norm_eps")


PROCESSORS = {
    "no type, of a ViT": ("vit", {"size": {"height": 32, "width": 32}, "resample": 3}),
    "no type, of a CLIP": ("clip", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
    "no filter": ("vit", {"image_processor_type": "ViTImageProcessor", **HALF}),
    "no share": (
        "convnext",
        {"image_processor_type": "ConvNextImageProcessor", **HALF, "size": {"shortest_edge": 32}, "resample": 3},
    ),
    "no cut": (
        "deit",
        {"image_processor_type": "DeiTImageProcessor", **HALF, "size": {"height": 256, "width": 256}, "resample": 3},
    ),
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_a_silent_processor_makes_of_pictures_what_that_of_transformers_makes(case: str, tmp_path: Path) -> None:
    model_type, said = PROCESSORS[case]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    processor = read_processor(tmp_path, model_type)
    assert processor is not None
    seen, (mean, std) = preprocessing(processor, 32), statistics(processor)
    rows, columns = np.mgrid[0:90, 0:90] / 20
    picture = Image.fromarray(
        (127 + 120 * np.stack([np.sin(rows + b) * np.cos(columns) for b in range(3)], 2)).astype("u1")
    )
    expected = torch.as_tensor(np.asarray(theirs(picture)["pixel_values"]))
    (batch,) = read_batches(picture, seen)
    found = (batch.images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    assert found.shape == expected.shape
    assert float((found - expected).abs().mean()) < 0.03 * float(expected.max() - expected.min())


def test_older_names_of_a_clips_parts_win_as_in_transformers(tmp_path: Path) -> None:
    config = {"text_config": {**TEXT, "eos_token_id": 96, "bos_token_id": 95, "pad_token_id": 0}, "vision_config": VIT}
    random_model("CLIPModel", config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vision_config_dict": {**VIT, "layer_norm_eps": 0.5}}))
    assert synoptic.load(tmp_path, "cpu").model.config.image.norm_eps == 0.5


def leave_out(folder: Path, *keys: str) -> None:
    """Takes keys out of a configuration, wherever they stand in it."""

    def without(values: Any) -> Any:
        return {k: without(v) for k, v in values.items() if k not in keys} if isinstance(values, dict) else values

    path = folder / "config.json"
    path.write_text(json.dumps(without(json.loads(path.read_text()))))


@pytest.mark.parametrize("name", SILENT)
def test_what_a_configuration_leaves_open_is_what_its_class_takes(name: str, tmp_path: Path) -> None:
    kind, config = SILENT[name]
    sides = {"image_size": 32, "patch_size": 8}
    config = (
        {**config, "vision_config": config["vision_config"] | sides} if "vision_config" in config else config | sides
    )
    theirs = random_model(kind, config)
    folder = written(theirs, tmp_path)
    whole = synoptic.load(folder, "cpu").model.config
    leave_out(folder, *UNSAID)
    silent = synoptic.load(folder, "cpu")
    assert silent.model.config == whole
    assert "num_attention_heads" not in (folder / "config.json").read_text()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        sees = getattr(theirs, "vision_model", theirs)
        normal = getattr(silent.model, "image", silent.model).normalize(images)
        expected = sees(pixel_values=normal).last_hidden_state
    skip = expected.shape[1] - 16
    found = silent(images).patches
    assert_equal(found, expected[:, skip:] if name != "clip" else sees.post_layernorm(expected[:, skip:]).detach())


def test_a_processor_inside_another_is_read_as_transformers_does(tmp_path: Path) -> None:
    """All that transformers 5 writes of a CLIP is processor_config.json."""
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": WHOLE, "processor_class": "X"}))
    assert read_processor(tmp_path, "vit") == WHOLE
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(WHOLE | {"image_mean": [0.1] * 3}))
    assert read_processor(tmp_path, "vit") == WHOLE
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "X"}))
    assert read_processor(tmp_path, "vit") == WHOLE | {"image_mean": [0.1] * 3}
    (tmp_path / "preprocessor_config.json").unlink()
    assert read_processor(tmp_path, "vit") is None


@pytest.mark.parametrize(
    "kind", ["CLIPImageProcessor", "CLIPImageProcessorFast", "SiglipImageProcessorPil", "ViTFeatureExtractor"]
)
def test_what_a_processor_leaves_open_is_what_its_class_takes(kind: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind}))
    known = getattr(
        transformers, kind.replace("FeatureExtractor", "ImageProcessor").split("Processor")[0] + "ProcessorPil"
    )
    processor = read_processor(tmp_path, "vit")
    assert processor is not None
    mean, std = statistics(processor)
    assert (list(mean), list(std)) == (list(known.image_mean), list(known.image_std))
    assert processor["size"] == known.size


@pytest.mark.parametrize("layout", ["dinov2", "dinov3"])
def test_pictures_that_are_not_normalised_are_not_normalised(layout: str, tmp_path: Path) -> None:
    """By layouts of ours and by the adapter alike."""
    family = FAMILIES[layout]
    folder = written(random_model(family.kind, family.config), tmp_path, HALF | {"do_normalize": False})
    config = synoptic.load(folder, "cpu").model.config
    assert (config.mean, config.std) == ((0.0,) * 3, (1.0,) * 3)
    (folder / "preprocessor_config.json").write_text(json.dumps(HALF | {"rescale_factor": 1 / 127.5}))
    config = synoptic.load(folder, "cpu").model.config
    assert (config.mean, config.std) == ((0.25,) * 3, (0.25,) * 3)


def test_a_clip_saved_with_its_processor_is_prepared_as_it_says(tmp_path: Path) -> None:
    config = {"text_config": {**TEXT, "eos_token_id": 96, "bos_token_id": 95, "pad_token_id": 0}, "vision_config": VIT}
    random_model("CLIPModel", config).save_pretrained(tmp_path)
    inside = HALF | {"do_center_crop": False}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inside}))
    model = synoptic.load(tmp_path, "cpu")
    assert model.preprocess == Preprocess(32, "squash") and model.model.config.image.mean == (0.5,) * 3


def test_a_file_has_no_description() -> None:
    from synoptic.weights.descriptions import Description

    assert Description().header == {} and Description().processor is None


def test_a_folder_that_transformers_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit", "hidden_size": "wide"}')
    with pytest.raises(ValueError, match="transformers refuses its configuration") as error:
        describe(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["BeitModel", "BeitForMaskedImageModeling"])
def test_a_beit_without_its_pooler_answers_with_its_first_token(kind: str, tmp_path: Path) -> None:
    theirs = random_model(kind, FAMILIES["beit"].config)
    body = theirs if kind == "BeitModel" else theirs.beit
    body.pooler = None
    model = synoptic.load(written(theirs, tmp_path / "theirs"), "cpu")
    assert isinstance(model.model, HubBackbone)
    size = model.preprocess.size
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        expected = body(pixel_values=model.model.normalize(images)).last_hidden_state
    found = model(images)
    assert_equal(found.summary, expected[:, 0])
    assert_equal(found.patches, expected[:, 1:])
    model.save(tmp_path / "ours")
    assert_equal(synoptic.load(tmp_path / "ours", "cpu")(images).summary, expected[:, 0])
