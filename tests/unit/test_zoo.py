"""Models by name: what is released, where it lies, what may be done with it, and models on the Hub."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import load, save

import synoptic
from synoptic.apps import cli
from synoptic.methods.teachers import load_teachers
from synoptic.models.vit import ViT, ViTConfig
from synoptic.types import Preprocess
from synoptic.weights import downloads, zoo
from synoptic.weights.catalogue import RELEASES, Remote, allows_commerce
from synoptic.weights.convert import DINO_VIT, HUGGINGFACE_DINOV2, from_ours
from synoptic.weights.folder import save_folder

TINY = ViTConfig(patch_size=4, width=24, depth=2, heads=3, hidden=48, image_size=16)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, no network, and the warnings of before forgotten."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    zoo._warn_of_licence.cache_clear()

    def no_network(*_: object, **__: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    return tmp_path


def network(**changes: Any) -> ViT:
    torch.manual_seed(0)
    return ViT(ViTConfig(**{**vars(TINY), **changes})).eval()


def put_dino(name: str = "dino_vits16") -> Path:
    """A tiny DINO where the released file belongs."""
    path = downloads.place_of(RELEASES[name].files[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(from_ours(network().state_dict(), DINO_VIT), path)
    return path


def files_of_dinov2() -> dict[str, bytes]:
    """A tiny Dinov2Model of transformers, as it lies on the Hub."""
    state = from_ours(network(mask_token=True, layer_scale=1.0).state_dict(), HUGGINGFACE_DINOV2)
    said = {"model_type": "dinov2", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    said |= {"hidden_act": "gelu", "layer_norm_eps": 1e-6}
    return {
        "config.json": json.dumps(said).encode(),
        "model.safetensors": save({key: tensor.contiguous() for key, tensor in state.items()}, {"format": "pt"}),
        "README.md": b"---\nlanguage: en\nlicense: cc-by-nc-4.0\n---\n# A model\nlicense: mit\n",
    }


class Hub:
    """Stands for the Hub: its files by name, and what was asked for. What is fetched lies in the cache afterwards."""

    def __init__(self, files: Mapping[str, bytes], reachable: bool = True):
        self.files, self.reachable, self.asked = dict(files), reachable, []

    def put(self, repository: str, *names: str) -> None:
        for name in names:
            place = self.folder(repository) / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(self.files[name])
        refs = self.folder(repository).parents[1] / "refs"
        refs.mkdir(parents=True, exist_ok=True)
        (refs / "main").write_text(COMMIT)

    def folder(self, repository: str) -> Path:
        return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots" / COMMIT

    def download(self, repository: str, name: str, revision: str) -> str:
        here = self.folder(repository) / name
        if here.is_file():
            return str(here)
        self.asked.append((name, revision))
        if not self.reachable:
            raise LocalEntryNotFoundError("outgoing traffic has been disabled.\nSet something.")
        if name not in self.files:
            raise EntryNotFoundError(f"404: no {name}")
        self.put(repository, name)
        return str(here)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(files_of_dinov2())
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", made.download)
    return made


def test_releases_are_whole_and_their_addresses_secured() -> None:
    files: dict[str, set[Remote]] = {}
    for name, release in RELEASES.items():
        assert name == release.name and name not in zoo.NAMES
        assert bool(release.files) != bool(release.repository)
        assert release.parameters > 1e6 and release.resolution >= 224 and release.family
        assert release.licence.commercial == allows_commerce(release.licence.name)
        assert re.fullmatch(r"([\w.-]+/[\w.-]+)?", release.repository)
        for remote in release.files:
            assert remote.url.startswith("https://") and re.fullmatch(r"[\w.-]+\.(pth|pth\.tar|pt|gz|txt)", remote.name)
            assert remote.sha256 is None or re.fullmatch("[0-9a-f]{64}", remote.sha256)
            files.setdefault(remote.name, set()).add(remote)
    assert all(len(remotes) == 1 for remotes in files.values()), "two files of one name in one folder"


def test_openais_addresses_hold_their_checksums() -> None:
    archives = [release.files[0] for release in RELEASES.values() if "openaipublic" in release.source]
    assert len(archives) == 9
    assert all(remote.url.split("/")[-2] == remote.sha256 for remote in archives)


MANIFESTS = {
    "dino": lambda name: f"{name}_pretrain",
    "dinov2": lambda name: f"{name.replace('_reg', '_reg4')}_pretrain",
    "sam": lambda name: name.replace("vit", "vit_"),
    "clip": {
        **{f"clip_rn50{size}": f"RN50{size}" for size in ("", "x4", "x16", "x64")},
        "clip_rn101": "RN101",
        **{"clip_vitb32": "ViT-B/32", "clip_vitb16": "ViT-B/16", "clip_vitl14": "ViT-L/14"},
        "clip_vitl14_336": "ViT-L/14@336px",
    }.__getitem__,
}
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "gaussian_matrix")


@pytest.mark.parametrize("family", MANIFESTS)
def test_parameters_are_those_of_the_released_files(fixtures_dir: Path, family: str) -> None:
    manifest = json.loads((fixtures_dir / family / "manifest.json").read_text())
    for name in (name for name in RELEASES if re.match(f"{family}_", name) and name != "dino_resnet50"):
        shapes = manifest[MANIFESTS[family](name)]
        counted = sum(torch.Size(shape).numel() for key, shape in shapes.items() if not key.endswith(BUFFERS))
        assert RELEASES[name].parameters == counted, name


def test_the_list_tells_what_can_be_had() -> None:
    records = synoptic.list_models()
    assert [record.name for record in records] == [*zoo.NAMES, *RELEASES]
    by_name = {record.name: record for record in records}
    assert vars(by_name["dino_vits16"]) == {
        "name": "dino_vits16",
        "task": "features",
        "parameters": 21_665_664,
        "resolution": 224,
        "licence": "Apache-2.0",
        "commercial": True,
        "local": False,
    }
    assert by_name["vit_b16"].local and by_name["vit_b16"].commercial


FILTERS: list[tuple[dict[str, Any], set[str]]] = [
    ({"pattern": "sam_"}, {"sam_vitb", "sam_vitl", "sam_vith"}),
    ({"pattern": "SAM_VIT[bl]"}, {"sam_vitb", "sam_vitl"}),
    ({"task": "segments"}, {"sam_vitb", "sam_vitl", "sam_vith"}),
    ({"task": "boxes"}, {"groundingdino_swint_ogc", "groundingdino_swinb_cogcoor"}),
    ({"pattern": "vitl14", "licence": "mit"}, {"clip_vitl14", "clip_vitl14_336"}),
    ({"pattern": "dino_*", "local": True}, {"dino_vitb8"}),
    ({"pattern": "dino_vitb*", "local": False}, {"dino_vitb16"}),
]


@pytest.mark.parametrize(("asked", "names"), FILTERS)
def test_the_list_is_filtered(asked: dict[str, Any], names: set[str]) -> None:
    put_dino("dino_vitb8")
    assert {record.name for record in synoptic.list_models(**asked)} == names


def test_commercial_use_is_a_filter() -> None:
    free, bound = (synoptic.list_models(commercial=allowed) for allowed in (True, False))
    assert {record.name for record in (*free, *bound)} == {*zoo.NAMES, *RELEASES} and free and bound
    assert {record.licence for record in bound} == {"CC-BY-NC-4.0", "NVIDIA-Source-Code-NC"}


def test_a_filter_that_leaves_nothing_says_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"no model matches 'dino_vitb15'.*dino_vitb16"):
        synoptic.list_models("dino_vitb15")
    with pytest.raises(ValueError, match=r"no model that matches the rest has task=segments, only boxes, features"):
        synoptic.list_models("dino_", task="segments")
    with pytest.raises(ValueError, match=r"has local=true, only false"):
        synoptic.list_models("sam", local=True)


def test_the_verb_lists_and_filters_as_typed(capsys: pytest.CaptureFixture[str]) -> None:
    put_dino()
    assert cli.main(["models", "dino_vit*", "licence=apache-2.0", "commercial=true", "local=true"]) == 0
    header, row = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert header == ["name", "task", "parameters", "resolution", "licence", "commercial", "local"]
    assert row == ["dino_vits16", "features", "21665664", "224", "Apache-2.0", "yes", "yes"]
    assert cli.main(["models", "task=segment"]) == 2
    assert "task=segment should be 'features', 'words', 'segments' or 'boxes'" in capsys.readouterr().err


def test_without_a_network_the_error_says_what_to_put_where_and_that_works(places: Path) -> None:
    path = places / "cache" / "synoptic" / "models" / "dino_deitsmall16_pretrain.pth"
    with pytest.raises(ValueError) as error:
        synoptic.load("dino_vits16", heads=3)
    assert str(error.value) == (
        "https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth cannot be fetched "
        f"([Errno -3] Temporary failure in name resolution); fetch it elsewhere and put it at {path}, or give its path "
        "as MODEL"
    )
    assert put_dino() == path
    model = synoptic.load("dino_vits16", "cpu", heads=3)
    assert torch.equal(
        model(torch.ones(1, 3, 16, 16)).summary, network(position_offset=0.1)(torch.ones(1, 3, 16, 16)).summary
    )
    assert model.name == "dino_vits16"
    assert model.trained["licence"] == "Apache-2.0" and model.trained["origin"] == RELEASES["dino_vits16"].source
    elsewhere = path.rename(places / "mine.pth")
    assert synoptic.load(elsewhere, "cpu", heads=3).name == "mine"


def test_a_release_may_be_used_wherever_a_model_is_asked_for(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["embed", str(places / "a.png"), "model=dino_vits16", f"out={places / 'a.parquet'}", "load.heads=3"]
    Image.new("RGB", (16, 16), "red").save(places / "a.png")
    assert cli.main(command) == 2
    assert "fetch it elsewhere and put it at" in capsys.readouterr().err
    put_dino()
    assert cli.main(command) == 0


def test_a_name_that_is_nearly_a_release_is_told() -> None:
    with pytest.raises(ValueError, match=r"there is no model 'dinov2_vits14_regs' \(did you mean dinov2_vits14_reg"):
        synoptic.load("dinov2_vits14_regs")


def test_a_vocabulary_that_cannot_be_had_leaves_the_pictures(caplog: pytest.LogCaptureFixture) -> None:
    weights, vocabulary = RELEASES["clip_vitb32"].files
    place = downloads.place_of(weights)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"not the released archive")
    with pytest.raises(ValueError, match=r"ViT-B-32\.pt: damaged, or not the released file"):
        zoo.resolve("clip_vitb32")
    plain = Remote("https://example.org/plain.pt")
    downloads.place_of(plain).write_bytes(b"")
    release = type(RELEASES["clip_vitb32"])(**{**vars(RELEASES["clip_vitb32"]), "files": (plain, vocabulary)})
    assert zoo._fetch(release) == downloads.place_of(plain)
    assert re.search(
        r"clip_vitb32 knows no words .*bpe_simple_vocab_16e6\.txt\.gz cannot .* as load\.vocabulary", caplog.text
    )


def test_a_licence_that_forbids_commercial_use_is_told_once(
    places: Path, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    told = "my/dino: its licence, cc-by-nc-4.0, forbids commercial use"
    hub.files["preprocessor_config.json"] = b'{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    model = synoptic.load("hf:my/dino", "cpu")
    synoptic.load("hf:my/dino", "cpu")
    assert caplog.messages == [told]
    model.save(places / "saved")
    zoo._warn_of_licence.cache_clear()
    synoptic.load(places / "saved", "cpu")
    assert caplog.messages == [told, told]
    put_dino()
    synoptic.load("dino_vits16", "cpu", heads=3)
    assert len(caplog.messages) == 2


def test_what_a_released_file_does_not_say_is_known(
    fixtures_dir: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], places: Path
) -> None:
    """MetaCLIP's keys do not tell its activation, and its weights may not be used commercially."""
    path = downloads.place_of(RELEASES["metaclip_vitb32_400m"].files[0])
    path.parent.mkdir(parents=True)
    shutil.copy(fixtures_dir / "open_clip" / "weights.clip_quickgelu.pt", path)
    model = synoptic.load("metaclip_vitb32_400m", "cpu", heads=4, text_heads=2)
    assert model.model.config.image.activation == model.model.config.text.activation == "quick_gelu"
    assert "metaclip_vitb32_400m: its licence, CC-BY-NC-4.0, forbids commercial use" in caplog.messages
    assert [message for message in caplog.messages if "knows no words without its vocabulary: https://raw." in message]
    model.save(places / "saved")
    assert "license: cc-by-nc-4.0\n" in (places / "saved" / "README.md").read_text()
    assert cli.main(["models", "metaclip", "local=true"]) == 0
    assert "\tCC-BY-NC-4.0\tno\tyes\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("Apache-2.0", True),
        ("", True),
        ("nc", False),
        ("CC-BY-NC-4.0", False),
        ("cc-by-nc-sa-4.0", False),
        ("ncsa", True),
    ],
)
def test_licences_that_forbid_commercial_use_are_known_by_their_names(licence: str, allowed: bool) -> None:
    assert allows_commerce(licence) == allowed


def test_a_model_of_the_hub_is_fetched_from_one_commit(hub: Hub) -> None:
    model = synoptic.load("hf:my/dino@v2", "cpu")
    assert [name for name, _ in hub.asked] == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
        "README.md",
    ]
    assert [revision for _, revision in hub.asked] == ["v2", *[COMMIT] * 4]
    assert (model.name, model.trained["origin"]) == ("my/dino", f"hf:my/dino@{COMMIT}")
    expected = network(mask_token=True, layer_scale=1.0)(torch.ones(1, 3, 16, 16)).summary
    torch.testing.assert_close(model(torch.ones(1, 3, 16, 16)).summary, expected)


def test_a_model_in_the_hubs_cache_needs_no_network(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    hub.files["preprocessor_config.json"] = b'{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    hub.put("my/dino", "config.json", "model.safetensors", "preprocessor_config.json")
    hub.reachable = False
    assert synoptic.load("hf:my/dino", "cpu").model.config.mean == (0.5,) * 3
    assert [name for name, _ in hub.asked] == ["README.md"] and caplog.messages == []


def test_the_hubs_own_library_reads_its_cache_without_a_network(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing stands for the Hub here: its library itself is told to ask nobody."""
    assert constants.HF_HUB_OFFLINE
    cache = Hub(files_of_dinov2())
    cache.put("my/dino", "config.json", "model.safetensors")
    absent = cache.folder("my/dino").parents[1] / ".no_exist" / COMMIT
    absent.mkdir(parents=True)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (absent / name).touch()
    for spec in ("hf:my/dino", f"hf:my/dino@{COMMIT}"):
        assert synoptic.load(spec, "cpu").trained["origin"] == f"hf:my/dino@{COMMIT}"
    assert all("has no preprocessor_config.json" in message for message in caplog.messages)
    with pytest.raises(ValueError, match=r"hf:my/dino: config\.json cannot be fetched \("):
        synoptic.load("hf:my/dino@v2")
    with pytest.raises(ValueError, match=r"hf:my/other: config\.json cannot be fetched \("):
        synoptic.load("hf:my/other")


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_without_a_network_a_model_of_the_hub_may_lie_in_any_folder(hub: Hub, places: Path, lost: str) -> None:
    hub.put("my/dino", *{"config.json", "model.safetensors"} - {lost})
    hub.reachable = False
    with pytest.raises(ValueError) as error:
        synoptic.load("hf:my/dino")
    assert str(error.value) == (
        f"hf:my/dino: {lost} cannot be fetched (outgoing traffic has been disabled. Set something.); fetch the model's "
        "config.json, weights and tokenizer elsewhere into one folder, and give that folder as MODEL"
    )
    for name in ("config.json", "model.safetensors"):
        (places / name).write_bytes(hub.files[name])
    assert synoptic.load(places, "cpu").width == 24


def test_a_release_of_the_hub_may_be_put_into_a_folder_of_its_name(hub: Hub, places: Path) -> None:
    folder = places / "cache" / "synoptic" / "models" / "siglip-base-patch16-224"
    hub.reachable = False
    with pytest.raises(ValueError, match=f"or put that folder at {re.escape(str(folder))}$"):
        zoo.resolve("siglip-base-patch16-224")
    assert not zoo.list_models("siglip-base-patch16-224")[0].local
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(hub.files[name])
    assert zoo.resolve("siglip-base-patch16-224") == folder
    assert zoo.list_models("siglip-base-patch16-224")[0].local


def test_it_has_to_be_known_how_pictures_are_normalised(hub: Hub) -> None:
    hub.put("my/dino", "config.json", "model.safetensors")
    hub.reachable = False
    with pytest.raises(ValueError, match=r"hf:my/dino: preprocessor_config\.json cannot be fetched"):
        synoptic.load("hf:my/dino", "cpu")


def test_a_tokenizer_that_cannot_be_had_leaves_the_pictures(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    header = json.loads(hub.files["config.json"]) | {"text_config": {}}
    hub.files |= {"config.json": json.dumps(header).encode(), "preprocessor_config.json": b"{}"}
    hub.put("my/clip", "config.json", "model.safetensors", "preprocessor_config.json")
    hub.reachable = False
    zoo.resolve("hf:my/clip")
    (message,) = caplog.messages
    assert message.startswith("hf:my/clip knows no words without its tokenizer: hf:my/clip: tokenizer.json cannot be")
    hub.reachable = True
    zoo.resolve("hf:my/clip")
    assert [name for name, _ in hub.asked[-2:]] == ["tokenizer.json", "merges.txt"]


def test_a_release_in_the_hubs_cache_is_on_this_machine(hub: Hub) -> None:
    hub.put("google/siglip-base-patch16-224", "config.json")
    assert not zoo.list_models("siglip-base-patch16-224")[0].local
    hub.put("google/siglip-base-patch16-224", "model.safetensors")
    assert zoo.list_models("siglip-base-patch16-224")[0].local


def test_the_safest_weights_are_taken_and_shards_with_their_index(hub: Hub) -> None:
    state = load(hub.files.pop("model.safetensors"))
    halves = [dict(list(state.items())[part::2]) for part in (0, 1)]
    for part, half in enumerate(halves):
        hub.files[f"model-{part}.safetensors"] = save(half)
    places = {key: f"model-{part}.safetensors" for part, half in enumerate(halves) for key in half}
    hub.files["model.safetensors.index.json"] = json.dumps({"weight_map": places}).encode()
    hub.files["pytorch_model.bin"] = b"never looked at"
    assert synoptic.load("hf:my/dino", "cpu").width == 24
    assert "pytorch_model.bin" not in [name for name, _ in hub.asked]
    hub.files["model.safetensors.index.json"] = json.dumps({"weight_map": {"a": "../../a.safetensors"}}).encode()
    with pytest.raises(ValueError, match="should name, for each tensor, a file beside it"):
        synoptic.load("hf:other/dino", "cpu")


def test_pytorchs_files_are_taken_where_there_are_no_others(hub: Hub, tmp_path: Path) -> None:
    torch.save(load(hub.files.pop("model.safetensors")), tmp_path / "bin")
    hub.files["pytorch_model.bin"] = (tmp_path / "bin").read_bytes()
    assert synoptic.load("hf:my/dino", "cpu").width == 24


def test_a_weights_folder_of_ours_may_lie_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    save_folder(tmp_path / "w", network(), Preprocess(16), {"name": "mine"})
    hub.files = {path.name: path.read_bytes() for path in (tmp_path / "w").iterdir()}
    assert synoptic.load("hf:my/own", "cpu").name == "mine"
    assert {name for name, _ in hub.asked} == set(hub.files)
    (hub.folder("my/own") / "config.json").write_bytes(hub.files["config.json"] + b" ")
    with pytest.raises(ValueError, match=r"config\.json: damaged, or changed since it was saved"):
        synoptic.load("hf:my/own", "cpu")


@pytest.mark.parametrize(
    ("spec", "lost", "message"),
    [
        ("hf:my/dino", "config.json", "hf:my/dino: has no config.json, so it is no model that is known here"),
        (
            "hf:my/dino",
            "model.safetensors",
            "hf:my/dino: has none of model.safetensors, model.safetensors.index.json, ",
        ),
        ("hf:", "", "hf:: is not of the form hf:owner/name or hf:owner/name@revision"),
        ("hf:a/b/c", "", "hf:a/b/c: is not of the form hf:owner/name"),
        ("hf:../../etc", "", r"hf:\.\./\.\./etc: is not of the form hf:owner/name"),
        ("hf:../etc", "", r"hf:\.\./etc: config.json cannot be fetched \(Repo id must use alphanumeric chars"),
        ("hf:a/b@../../c", "", r"hf:a/b@\.\./\.\./c: is not of the form hf:owner/name"),
    ],
)
def test_what_is_no_model_on_the_hub_is_refused(
    monkeypatch: pytest.MonkeyPatch, hub: Hub, spec: str, lost: str, message: str
) -> None:
    if lost:
        del hub.files[lost]
    else:
        monkeypatch.undo()  # the Hub's own rules of names
    with pytest.raises(ValueError, match=message) as error:
        synoptic.load(spec)
    assert "\n" not in str(error.value)


def test_a_teacher_may_come_from_the_hub(hub: Hub) -> None:
    assert load_teachers("dino:hf:my/dino", {})["dino"].size == 16
