"""Models by name: what a MODEL argument stands for, wherever it is given."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from torch import nn

from synoptic.config import load_json, nearest
from synoptic.models import resnet, vit
from synoptic.models.resnet import ResNet, resnet_config
from synoptic.models.vit import ViT, vit_config
from synoptic.types import Preprocess
from synoptic.weights import formats
from synoptic.weights.folder import CONFIG, Record, load_folder, shapes_alone
from synoptic.weights.options import LoadOptions

NAMES = (*vit.NAMES, *resnet.NAMES)
FORMS = (
    "a name that `synoptic models` lists, a run folder, a weights folder of this library or of Hugging Face, "
    "or a weights file of DINO, DINOv2, CLIP or SigLIP"
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
        local: whether it is on this machine.
    """

    name: str
    task: str
    parameters: int
    resolution: int
    licence: str
    local: bool


def list_models(pattern: str = "") -> list[ModelRecord]:
    """The built-in models, small ones first.

    Args:
        pattern: part of a name, or a glob such as `vit_*16`.
    Raises:
        ValueError: nothing matches.
    """
    wanted = pattern if glob.has_magic(pattern) else f"*{pattern}*"
    names = [name for name in NAMES if fnmatchcase(name, wanted)]
    if not names:
        raise ValueError(f"no model matches {pattern!r}{nearest(pattern, NAMES)}")
    return [ModelRecord(name, "features", _parameters(name), _image_size(name), "Apache-2.0", True) for name in names]


def resolve(model: str | Path) -> str | Path:
    """What a MODEL argument means: the name of a built-in architecture, a weights folder, or a weights file.

    Raises:
        ValueError: it means nothing, naming the nearest names and what would.
    """
    if model in NAMES:
        return str(model)
    path = Path(model).expanduser()
    if path.name in formats.FILES and formats.has_weights(path.parent):
        path = path.parent
    found = [folder for folder in (path, path / "weights") if formats.has_weights(folder)]
    if found:
        return found[0]
    if path.is_file():
        return path
    if path.is_dir():
        raise ValueError(f"{path}: {_what_lacks(path)}; a model is {FORMS}")
    raise ValueError(f"there is no model {str(model)!r}{nearest(str(model), NAMES)}; a model is {FORMS}")


def load(model: str | Path, options: LoadOptions | None = None) -> tuple[nn.Module, Preprocess, Record]:
    """The model that a MODEL argument means, on the CPU, in evaluation mode; a built-in one with random weights.

    Args:
        model: see `resolve`.
        options: what a file of other makers does not say itself.
    Raises:
        ValueError: it means nothing, its files are not whole, or options are given for what says all of itself.
    """
    place, options = resolve(model), options or LoadOptions()
    if isinstance(place, Path) and not formats.is_ours(place):
        return formats.load(place, options)
    given = [name for name, value in vars(options).items() if value is not None]
    if given:
        raise ValueError(f"{model}: says itself what {', '.join(given)}= should be; leave that out")
    if isinstance(place, Path):
        return load_folder(place)
    return build(place).eval(), Preprocess(_image_size(place)), Record("vit" if place in vit.NAMES else "resnet", place)


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
