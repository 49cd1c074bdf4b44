"""Folders of Hugging Face that no layout of ours reads: any vision model of `transformers`, as a `HubBackbone`.

Files are read by `reading`, as all others are, and `transformers` is given their tensors: it renames them, as its
versions do, and no code of a file is run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from synoptic.config import nearest
from synoptic.models import hub_build
from synoptic.models.bounds import LARGEST
from synoptic.models.hub import HubBackbone
from synoptic.models.hub_build import HubConfig
from synoptic.types import Preprocess
from synoptic.weights.checksums import file_state
from synoptic.weights.descriptions import Description, tell_without_processor
from synoptic.weights.processors import preprocessing, statistics
from synoptic.weights.reading import State, check_values, read_parts, ready

_COUNTED = {"position_ids", "relative_position_index"}  # whole numbers in older files, which are computed by now
_FEW = 10_000_000  # parameters that take neither time nor memory


def load_hub(folder: Path, file: Path, said: Description) -> tuple[HubBackbone, Preprocess, str]:
    """Reads a model of transformers: on the CPU, in evaluation mode.

    Args:
        folder: told in errors.
        file: the weights in it, or their index.
        said: what its other files say.
    Returns:
        The model, what its pictures go through, and its class in transformers.
    Raises:
        ValueError: it needs code that comes with it, is no vision model, is damaged, or its weights do not fit it.
    """
    with hub_build.quiet():
        return _load(folder, file, said)


def _load(folder: Path, file: Path, said: Description) -> tuple[HubBackbone, Preprocess, str]:
    values = said.config
    _check_kind(values, str(folder))
    since = file_state(file)
    processor, state = said.processor or {}, read_parts(file).get("", {})
    try:
        config = hub_build.configuration(values)
        name = _architecture(values, config)
        seen, (mean, std) = preprocessing(processor, _image_size(config)), statistics(processor)
        if said.processor is None:
            tell_without_processor(folder, mean)
        size = _image_size(config) or seen.size
        pooler = any(_is_pooler(key) for key in state)
        kept = hub_build.plain(values)
        described = HubConfig(architecture=name, transformers=kept, image_size=size, mean=mean, std=std, pooler=pooler)
        model = HubBackbone(described)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    _check_count(described, state, str(file))
    check_values(state, file, since)
    model.model, model.projection = hub_build.parts(_filled(values, name, state, str(file)), pooler)
    return model.eval(), _fitted(seen, model), name


def _fitted(seen: Preprocess, model: HubBackbone) -> Preprocess:
    """Preprocessing to a size that the patches tile, or to the only one that the model takes."""
    wanted = max(round(seen.size / model.stride), 1) * model.stride
    size = wanted if model.layout.any_size and seen.size != model.config.image_size else model.size
    return Preprocess(size, seen.mode, share=seen.share, interpolation=seen.interpolation)


def _image_size(config: Any) -> int | None:
    """The side of a model's pictures, where its configuration, or that of its part that sees, says one."""
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", None)
    if size is None and hasattr(config, "num_patches"):  # NaFlex: pictures of any shape, as many patches in all
        size = math.isqrt(config.num_patches) * config.patch_size
    if isinstance(size, list | tuple):
        if len(set(size)) != 1:
            raise ValueError(f"its pictures are of {'x'.join(map(str, size))}, and only square ones are read here")
        size = size[0]
    return size if isinstance(size, int) and size > 0 else None


def _check_kind(values: Mapping[str, Any], where: str) -> None:
    from transformers import CONFIG_MAPPING, __version__

    kind = str(values.get("model_type"))
    if kind not in CONFIG_MAPPING:
        if "auto_map" in values:
            raise ValueError(
                f"{where}: is a model of code that comes with it (auto_map), and such code is not run here"
            )
        told = f"model_type={kind} is known neither here nor to transformers {__version__}"
        raise ValueError(f"{where}: {told}{nearest(kind, CONFIG_MAPPING)}")
    if values.get("quantization_config"):
        raise ValueError(f"{where}: its weights are quantized; take those that it was made of")


def _architecture(values: Mapping[str, Any], config: Any) -> str:
    """The class that the file says it holds, or else the plain one of its configuration."""
    from transformers import MODEL_MAPPING

    said = values.get("architectures")
    if isinstance(said, list) and said and isinstance(said[0], str):
        return said[0]
    if type(config) not in MODEL_MAPPING:
        raise ValueError(
            f'says no architectures, and transformers has no plain model of model_type="{config.model_type}"'
        )
    plain: type = MODEL_MAPPING[type(config)]
    return plain.__name__


def _check_count(described: HubConfig, state: State, where: str) -> None:
    """Sees to it that a file holds about as much as its model needs: transformers makes up what is missing."""
    needed = sum(parameter.numel() for parameter in hub_build.build(described).parameters())
    held = sum(tensor.numel() for tensor in state.values())
    if needed > 2 * held + _FEW:
        name = described.architecture
        raise ValueError(f"{where}: holds {held:,} numbers, and its configuration makes a {name} of {needed:,}")


def _filled(values: Mapping[str, Any], name: str, state: State, where: str) -> Any:
    """The whole model of transformers with the tensors of a file, every one of them and no other.

    Poolers that a file lacks as a whole, or has although its model makes none, are passed over: nothing uses them.
    """
    kind = hub_build.architecture(name)
    pooled = any(_is_pooler(key) for key in state)
    state = {key: ready(tensor) for key, tensor in state.items()}
    config = hub_build.configuration(values)
    config.num_labels = _labels(values)
    try:
        model, told = kind.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # so that they are told below, with all else
            output_loading_info=True,
        )
    except Exception as error:  # of conversions, each of which may stumble over a spoiled tensor
        raise ValueError(f"{where}: the weights do not fit a {name} ({hub_build.one_line(error)})") from None
    whole = {_leaf(key) for key, tensor in model.state_dict().items() if not tensor.is_floating_point()} | _COUNTED
    problems = {
        "missing": [key for key in told["missing_keys"] if pooled or not _is_pooler(key)],
        "unexpected": [key for key in told["unexpected_keys"] if not _is_pooler(key)],
        "misshapen": [f"{key} {tuple(has)} for {tuple(wants)}" for key, has, wants in told["mismatched_keys"]],
    }
    problems["mistyped"] = [
        f"{key} {tensor.dtype}"
        for key, tensor in state.items()
        if not tensor.is_floating_point() and _leaf(key) not in whole
    ]
    parts = [_told(problem, keys) for problem, keys in problems.items() if keys]
    if parts:
        raise ValueError(f"{where}: the weights do not fit a {name}: {'; '.join(parts)}")
    return model


def _labels(values: Mapping[str, Any]) -> int:
    """How many classes a head tells apart."""
    named, count = values.get("id2label"), values.get("num_labels")
    if isinstance(named, Mapping) and named:
        return len(named)
    return count if isinstance(count, int) and 0 < count <= LARGEST else 2


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _told(problem: str, keys: Iterable[str]) -> str:
    names = sorted(keys)
    return f"{len(names)} {problem} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def _is_pooler(key: str) -> bool:
    return "pooler" in key.split(".")
