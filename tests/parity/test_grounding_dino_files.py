"""Files of Grounding DINO in the layouts of its makers: read whole, written back bit by bit, refused where spoiled."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_equal
from grounding_twins import OWN_HEADS, their_model
from torch import Tensor

from synoptic.models.grounding_dino import GroundingDino, GroundingDinoConfig
from synoptic.weights import formats
from synoptic.weights.catalogue import RELEASES
from synoptic.weights.convert import from_ours, misfits
from synoptic.weights.folder import KINDS, shapes_alone
from synoptic.weights.grounding import header
from synoptic.weights.layouts import FORMATS
from synoptic.weights.options import LoadOptions
from synoptic.weights.writing import convert


def test_the_manifests_of_releases_leave_no_key_over(fixtures_dir: Path) -> None:
    manifest = json.loads((fixtures_dir / "grounding_dino" / "manifest.json").read_text())
    assert len(manifest) == 2
    for name, shapes in manifest.items():
        state = {key: torch.empty(shape or (1,), device="meta") for key, shape in shapes.items()}
        found = formats.identify({"model": state}, {}, LoadOptions(), name)
        with shapes_alone():
            built = KINDS["grounding_dino"].build(found.config, {})
        assert not any(misfits(built, found.state).values())
        assert found.config.backbone.window == (7 if "swint" in name else 12)
        assert sum(parameter.numel() for parameter in built.parameters()) == RELEASES[name].parameters


def test_heads_that_are_said_to_be_each_layer_s_own_stay_so_where_they_are_equal(tmp_path: Path) -> None:
    model = their_model("plain", **OWN_HEADS)
    model.bbox_embed[1].load_state_dict(model.bbox_embed[0].state_dict())
    model.save_pretrained(tmp_path)
    ours: Any = formats.load(tmp_path, LoadOptions())[0]
    assert not ours.config.shared_heads


def test_a_temperature_that_is_not_whole_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no temperature=20\.5"):
        header("grounding-dino", "GroundingDinoForObjectDetection")(GroundingDinoConfig(temperature=20.5))


def test_the_authors_file_is_written_back_bit_by_bit(fixtures_dir: Path, tmp_path: Path) -> None:
    path = fixtures_dir / "grounding_dino" / "weights.pth"
    options = LoadOptions(heads=4, text_heads=2)
    done = convert(path, "official", tmp_path / "back.pth", options)
    written = torch.load(done.out, weights_only=True)
    before = torch.load(path, weights_only=True)["model"]
    unsaid = {"label_enc.weight", "bert.embeddings.position_ids", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    before = {key.removeprefix("module."): tensor for key, tensor in before.items()}
    assert written.keys() == before.keys() - unsaid
    assert all(torch.equal(tensor, before[key]) for key, tensor in written.items())
    assert any("load.heads=4" in note for note in done.notes)


def mmdetection_state(model: GroundingDino) -> dict[str, Tensor]:
    """A scaled model with heads of its own a layer as mmdetection names it, by its own table, and what its files have
    beside."""
    form = next(form for form in FORMATS if form.name == "MM-Grounding-DINO")
    state = form.finish(from_ours(model.state_dict(), form.table), model.config)
    beside = {"dn_query_generator.label_embedding.weight": torch.zeros(256, model.config.width)}
    beside["language_model.language_backbone.body.model.embeddings.position_ids"] = torch.arange(512)[None]
    return state | beside


@pytest.fixture
def of_mmdetection(tmp_path: Path) -> tuple[GroundingDino, Path]:
    """A model and its file, whose keys are those of mmdetection."""
    folder = tmp_path / "theirs"
    their_model("scaled", **OWN_HEADS).save_pretrained(folder)
    model = formats.load(folder, LoadOptions())[0]
    assert isinstance(model, GroundingDino)
    path = tmp_path / "mm.pth"
    torch.save({"state_dict": mmdetection_state(model), "meta": {"epoch": 30}}, path)
    return model, path


def test_a_file_of_mmdetection_is_read(of_mmdetection: tuple[GroundingDino, Path]) -> None:
    """Its names are those that transformers' converter of these files reads (convert_mm_grounding_dino_to_hf.py)."""
    model, path = of_mmdetection
    keys = mmdetection_state(model)
    for key in (
        *("backbone.stages.2.blocks.1.attn.w_msa.qkv.weight", "backbone.norm1.weight", "neck.extra_convs.0.gn.bias"),
        *("encoder.text_layers.0.self_attn.attn.in_proj_weight", "encoder.layers.1.ffn.layers.0.0.weight"),
        *("decoder.layers.0.cross_attn_text.attn.out_proj.bias", "decoder.layers.1.norms.3.weight"),
        *("bbox_head.reg_branches.2.4.weight", "bbox_head.cls_branches.2.bias", "memory_trans_fc.weight"),
        *("language_model.language_backbone.body.model.embeddings.LayerNorm.weight", "query_embedding.weight"),
    ):
        assert key in keys
    assert keys["bbox_head.cls_branches.0.bias"].shape == (1,)  # nn.Parameter(torch.Tensor([bias])) of ContrastiveEmbed
    read = formats.load(path, LoadOptions(heads=4, text_heads=4))[0]
    assert isinstance(read, GroundingDino)
    assert (read.config.refine_eps, read.config.head_eps) == (1e-3, 1e-5)
    assert replace(read.config, refine_eps=1e-5) == replace(
        model.config, drop_path=read.config.drop_path, backbone=read.config.backbone
    )
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in read.state_dict().items())


def test_merging_is_that_of_mmdetection(of_mmdetection: tuple[GroundingDino, Path]) -> None:
    """It unfolds squares of two by two, channel after channel, where the authors put four patches side by side."""
    model, path = of_mmdetection
    state = torch.load(path, weights_only=True)["state_dict"]
    ours: Any = model.backbone.merges[0]  # type: ignore[union-attr]
    planes = torch.randn(1, 24, 6, 8)
    rows = F.unfold(planes, 2, stride=2).transpose(1, 2)
    norm = F.layer_norm(
        rows,
        rows.shape[-1:],
        state["backbone.stages.0.downsample.norm.weight"],
        state["backbone.stages.0.downsample.norm.bias"],
    )
    wanted = F.linear(norm, state["backbone.stages.0.downsample.reduction.weight"])
    found, grids = ours(planes[0].flatten(1).T, ((6, 8),))
    assert grids == ((3, 4),)
    assert_equal(found, wanted[0])


def test_a_file_of_mmdetection_is_written_back(of_mmdetection: tuple[GroundingDino, Path], tmp_path: Path) -> None:
    model, path = of_mmdetection
    done = convert(path, "official", tmp_path / "back.pth", LoadOptions(heads=4, text_heads=4))
    written = torch.load(done.out, weights_only=True)
    before = mmdetection_state(model)
    unsaid = {
        "dn_query_generator.label_embedding.weight",
        "language_model.language_backbone.body.model.embeddings.position_ids",
    }
    assert done.layout == "MM-Grounding-DINO"
    assert written.keys() == before.keys() - unsaid
    assert all(torch.equal(tensor, before[key]) for key, tensor in written.items())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("module.feat_map.bias"), "text.projection.bias"),
        (lambda state: state.update({"module.extra": torch.zeros(2)}), "extra"),
        (lambda state: state["module.bbox_embed.1.layers.0.weight"].add_(1), "differs from its copy"),
        (lambda state: state["module.transformer.level_embed"].fill_(torch.nan), "no numbers"),
    ],
)
def test_spoiled_files_are_refused(fixtures_dir: Path, tmp_path: Path, change: Any, told: str) -> None:
    content = torch.load(fixtures_dir / "grounding_dino" / "weights.pth", weights_only=True)
    content["model"] = {key: tensor.clone() for key, tensor in content["model"].items()}
    change(content["model"])
    torch.save(content, tmp_path / "spoiled.pth")
    with pytest.raises(ValueError, match=told):
        formats.load(tmp_path / "spoiled.pth", LoadOptions(heads=4, text_heads=2))


def test_heads_that_no_shape_tells_are_asked_for(fixtures_dir: Path) -> None:
    with pytest.raises(ValueError, match="text_heads=N"):
        formats.load(fixtures_dir / "grounding_dino" / "weights.pth", LoadOptions(heads=4))
