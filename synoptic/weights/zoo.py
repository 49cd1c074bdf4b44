"""Models by name: what a MODEL argument stands for, wherever it is given."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from torch import nn

from synoptic.config import load_json, nearest
from synoptic.models import resnet, vit
from synoptic.models.resnet import ResNet, resnet_config
from synoptic.models.vit import ViT, vit_config
from synoptic.types import Preprocess
from synoptic.weights import downloads, formats, hub_files
from synoptic.weights.catalogue import APACHE, RELEASES, Release, allows_commerce
from synoptic.weights.folder import CONFIG, Record, load_folder, shapes_alone
from synoptic.weights.options import LoadOptions

log = logging.getLogger(__name__)

NAMES = (*vit.NAMES, *resnet.NAMES)
FORMS = (
    "a name that `synoptic models` lists, a run folder, a weights folder of this library or of Hugging Face, "
    "a weights file of DINO, DINOv2, CLIP, SigLIP, SAM or RADIO, or hf:owner/name"
)


@dataclass(frozen=True)
class ModelRecord:
    """A line of the list of models.

    Attributes:
        name: what users type.
        task: what it answers with.
        parameters: how many it has.
        resolution: side in pixels of the pictures that it is made for.
        licence: of its weights; random ones carry the library's.
        commercial: whether that allows commercial use.
        local: whether it is on this machine; other ones are fetched when they are first used.
    """

    name: str
    task: str
    parameters: int
    resolution: int
    licence: str
    commercial: bool
    local: bool


def list_models(
    pattern: str = "",
    *,
    task: str | None = None,
    licence: str | None = None,
    commercial: bool | None = None,
    local: bool | None = None,
) -> list[ModelRecord]:
    """The models that can be had by name: built-in architectures, small ones first, then releases, family by family.

    Args:
        pattern: part of a name, or a glob such as `vit_*16`; capitals do not matter.
        task: "features", "words", "segments" or "boxes".
        licence: as in "Apache-2.0" or "mit".
        commercial: whether the licence allows commercial use.
        local: whether they are on this machine.
    Raises:
        ValueError: nothing matches.
    """
    wanted = (pattern if glob.has_magic(pattern) else f"*{pattern}*").lower()
    names = [name for name in (*NAMES, *RELEASES) if fnmatchcase(name.lower(), wanted)]
    if not names:
        raise ValueError(f"no model matches {pattern!r}{nearest(pattern, (*NAMES, *RELEASES))}")
    found = [_record(name) for name in names]
    asked = {"task": task, "licence": licence, "commercial": commercial, "local": local}
    for key, value in asked.items():
        if value is None:
            continue
        known = sorted({_shown(getattr(record, key)) for record in found})
        found = [record for record in found if _shown(getattr(record, key)).lower() == _shown(value).lower()]
        if not found:
            raise ValueError(f"no model that matches the rest has {key}={_shown(value)}, only {', '.join(known)}")
    return found


def is_name(model: str | Path) -> bool:
    """Whether a MODEL argument is the name of an architecture, a release or a model of the Hub, and so no path."""
    return model in NAMES or model in RELEASES or hub_files.is_spec(model)


def resolve(model: str | Path) -> str | Path:
    """What a MODEL argument means: the name of a built-in architecture, a weights folder, or a weights file.

    Releases and models of the Hub are fetched where they are not on this machine. A name wins over a file that is
    called the same, which `./name` means.

    Raises:
        ValueError: it means nothing, naming the nearest names and what would; or it cannot be fetched.
    """
    if model in NAMES:
        return str(model)
    if model in RELEASES:
        return _fetch(RELEASES[str(model)])
    if hub_files.is_spec(model):
        return hub_files.fetch_folder(str(model))
    path = Path(model).expanduser()
    if path.name in formats.FILES and formats.has_weights(path.parent) and formats.is_ours(path.parent):
        path = path.parent
    found = [folder for folder in (path, path / "weights") if formats.has_weights(folder)]
    if found:
        return found[0]
    if path.is_file():
        return path
    if path.is_dir():
        raise ValueError(f"{path}: {_what_lacks(path)}; a model is {FORMS}")
    raise ValueError(f"there is no model {str(model)!r}{nearest(str(model), (*NAMES, *RELEASES))}; a model is {FORMS}")


def load(model: str | Path, options: LoadOptions | None = None) -> tuple[nn.Module, Preprocess, Record]:
    """The model that a MODEL argument means, on the CPU, in evaluation mode; a built-in one with random weights.

    Args:
        model: see `resolve`.
        options: what a file of other makers does not say itself; of a folder of ours, `size` and `window`.
    Raises:
        ValueError: it means nothing, its files are not whole, or options are given for what says all of itself.
    """
    place, options = resolve(model), options or LoadOptions()
    given = {name: value for name, value in vars(options).items() if value is not None}
    if isinstance(place, Path) and not formats.is_ours(place):
        known = _told_of(model, place)
        network, preprocess, record = formats.load(place, replace(known, **given))
        record = _with_origin(record, model, place)
        _tell_licence(record)
        return network, preprocess, record
    asked = {name: given.pop(name) for name in ("size", "window") if name in given and isinstance(place, Path)}
    if given:
        raise ValueError(f"{model}: says itself what {', '.join(given)}= should be; leave that out")
    if isinstance(place, Path):
        network, preprocess, record = load_folder(place, **asked)
        _tell_licence(record)
        return network, preprocess, record
    return build(place).eval(), Preprocess(_image_size(place)), Record("vit" if place in vit.NAMES else "resnet", place)


def _told_of(model: str | Path, place: Path) -> LoadOptions:
    """What is known of a release that its file does not say, by its name or that of its file."""
    if model in RELEASES:
        return RELEASES[str(model)].options
    files = {release.files[0].name: release.options for release in RELEASES.values() if release.files}
    return files.get(place.name, LoadOptions())


def validation_share(model: str | Path, data: str) -> float | None:
    """The share of the pictures of `data` that the run behind a MODEL argument set apart for validation.

    Returns:
        None where the model is no run, or was trained on other data.
    Raises:
        ValueError: see `resolve`.
    """
    place = resolve(model)
    if not isinstance(place, Path) or not formats.is_ours(place):
        return None
    try:
        run = load_json(place.parent / CONFIG)
    except ValueError:  # a weights folder may lie anywhere
        return None
    loader = run.get("loader")
    share = loader.get("validation") if isinstance(loader, Mapping) else None
    if not isinstance(share, float) or not 0 < share < 1 or _place(str(run.get("data"))) != _place(data):
        return None
    return share


def build(name: str) -> nn.Module:
    """A built-in architecture with random weights.

    Raises:
        ValueError: for a name that `list_models` does not know.
    """
    return ResNet(resnet_config(name)) if name in resnet.NAMES else ViT(vit_config(name))


def _record(name: str) -> ModelRecord:
    if name in NAMES:
        return ModelRecord(name, "features", _parameters(name), _image_size(name), APACHE.name, APACHE.commercial, True)
    release = RELEASES[name]
    licence = release.licence
    size, here = (release.parameters, release.resolution), _is_here(release)
    return ModelRecord(name, release.task, *size, licence.name, licence.commercial, here)


def _shown(value: str | bool) -> str:
    """A value as users type it."""
    return str(value).lower() if isinstance(value, bool) else value


def _folder_of(release: Release) -> Path:
    """Where the folder of a release of the Hub may be put by hand."""
    return downloads.models_folder() / release.name


def _is_here(release: Release) -> bool:
    if release.files:
        return downloads.place_of(release.files[0]).is_file()
    return formats.has_weights(_folder_of(release)) or hub_files.is_here(release.repository)


def _fetch(release: Release) -> Path:
    """The weights file or folder of a release.

    Raises:
        ValueError: it cannot be had, telling what to put where.
    """
    if release.files:
        weights = downloads.fetch(release.files[0])
        for remote in release.files[1:]:
            try:
                downloads.fetch(remote, "load.vocabulary")
            except ValueError as error:  # pictures need none
                log.warning("%s knows no words without its vocabulary: %s", release.name, error)
        return weights
    folder = _folder_of(release)
    if formats.has_weights(folder):
        return folder
    try:
        return hub_files.fetch_folder(hub_files.PREFIX + release.repository)
    except ValueError as error:
        raise ValueError(f"{error}, or put that folder at {folder}") from None


def _with_origin(record: Record, model: str | Path, place: Path) -> Record:
    """A record that tells where the model came from, and what its licence is, where either is known."""
    if model in RELEASES:
        release = RELEASES[str(model)]
        name, facts = release.name, {"origin": release.source, "licence": release.licence.name}
    elif hub_files.is_spec(model):
        name = str(model).removeprefix(hub_files.PREFIX).partition("@")[0]
        licence = hub_files.licence_of(place)
        facts = {"origin": f"{hub_files.PREFIX}{name}@{place.name}", **({"licence": licence} if licence else {})}
    else:
        return record
    return replace(record, name=name, trained={**record.trained, **facts})


def _tell_licence(record: Record) -> None:
    licence = str(record.trained.get("licence", ""))
    if not allows_commerce(licence):
        _warn_of_licence(record.name, licence)


@cache  # once
def _warn_of_licence(name: str, licence: str) -> None:
    log.warning("%s: its licence, %s, forbids commercial use", name, licence)


def _place(data: str) -> str:
    """One spelling of a path, and of what else a DIR argument may be."""
    return os.path.realpath(os.path.expanduser(data))


def _image_size(name: str) -> int:
    return (resnet_config(name) if name in resnet.NAMES else vit_config(name)).image_size


@cache
def _parameters(name: str) -> int:
    with shapes_alone():
        return sum(parameter.numel() for parameter in build(name).parameters())


def _what_lacks(folder: Path) -> str:
    if (folder / "checkpoints").is_dir():
        return "this run has no weights/ yet, since it has not ended; start it again to go on with it"
    return f"neither it nor its weights/ holds {CONFIG} and one of {', '.join(formats.FILES)}"
