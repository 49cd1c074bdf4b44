"""One training run, from a configuration to a folder with weights; and the evaluation of a model on a data set."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from synoptic.config import TrainConfig, from_dict, from_layers, load_json, save_json, to_dict
from synoptic.data.loader import Loader
from synoptic.data.sources import Source, open_source
from synoptic.engine import checkpoint, loop
from synoptic.evaluation.protocols import build_evaluator, judged_part
from synoptic.evaluation.recognition import KNN
from synoptic.methods import get_method
from synoptic.methods.base import Method, Task
from synoptic.predict import VisionModel, load
from synoptic.types import Preprocess, present
from synoptic.weights import formats, zoo

log = logging.getLogger(__name__)

BANK, QUERIES = 2000, 500  # pictures used for k-NN while training: enough for a steady score, quick on a CPU
LONGEST = 2.0  # pictures are read at up to this times the training size: a crop of a quarter of the area loses nothing


def train(
    method: str,
    config: TrainConfig | str | Path | None = None,
    *,
    preset: str | None = None,
    **keys: Any,
) -> Path:
    """Trains a model, or goes on with the run that stands in `out`.

    Args:
        method: dino, clip or radio.
        config: a whole configuration; or the JSON file of one, under the preset and the keys.
        preset: one of the method's presets, under the keys.
        keys: as on the command line; nested ones as dictionaries (`optim={"lr": 1e-3}`).
    Returns:
        The run folder: its `weights/` hold the best model, and the folder itself is a MODEL.
    Raises:
        ValueError: for what cannot be trained so, in one line.
    """
    recipe = get_method(method)
    if isinstance(config, TrainConfig):
        return _train(recipe, config)
    where = f"train {method}"
    return _train(recipe, from_layers(recipe.config, keys, where, file=config, preset=preset, presets=recipe.presets))


def _train(recipe: Method, config: TrainConfig) -> Path:
    _check_place(Path(config.out), config)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    source, config = _resolve(recipe, config)
    torch.manual_seed(config.seed)
    task = recipe.build(config, source)
    validation = _validation_scores(config, source)
    if config.checkpoint.metric is None and validation is not None:
        config = replace(config, checkpoint=replace(config.checkpoint, metric=recipe.metric))
    out = _claim(config)
    source.record_errors(out / "data_errors.jsonl")
    device = torch.device(config.device)
    longest = int(LONGEST * present(config.size))
    loader = Loader(source, config.batch, config.seed, longest, config.loader, pin=device.type == "cuda")
    result = loop.train(task, loader, config, out, validation, device)
    _export(task, recipe, config, out, result)
    return out


def plan(method: str, config: TrainConfig) -> dict[str, Any]:
    """What a run would be: its configuration as resolved, pictures, steps per epoch, parameters."""
    recipe = get_method(method)
    source, config = _resolve(recipe, config)
    task = recipe.build(config, source)
    trained = sum(parameter.numel() for group in task.parameter_groups() for parameter in group.params)
    return {
        "config": to_dict(config),
        "pictures": len(source),
        "steps_per_epoch": len(source) / config.batch,
        "parameters": {"exported": _count(task.exported().parameters()), "trained": trained},
    }


def evaluate(
    model: str | Path | VisionModel,
    on: Iterable[str],
    data: str,
    out: Path | str | None = None,
    adaptor: str | None = None,
) -> dict[str, float]:
    """Scores of a model on the test part of a data set, or for want of one on its validation part (with a warning).

    Args:
        model: a MODEL or one that is loaded.
        on: names of evaluations: knn, zeroshot, segmentation.
        data: a data set with labels, words or masks, as the evaluations need.
        out: JSON file for the scores, which also names the part that was judged and the adaptor.
        adaptor: the teacher in whose space a student is judged, needed for `zeroshot` where several know words; None
            takes the model's own space.
    Raises:
        ValueError: for an unknown evaluation or adaptor, and for data that lack what an evaluation needs.
    """
    vision = model if isinstance(model, VisionModel) else load(model)
    if adaptor is not None and adaptor not in vision.adaptors:
        has = f"choose from {', '.join(vision.adaptors)}" if vision.adaptors else f"{vision.name} has none"
        raise ValueError(f"adaptor={adaptor}: no such adaptor; {has}")
    share = None if isinstance(model, VisionModel) else zoo.validation_share(model, data)
    part = judged_part(data, share)
    # All are built first: mistakes show at once.
    evaluators = [build_evaluator(name, data, part, adaptor=adaptor, validation=share) for name in on]
    scores: dict[str, float] = {}
    for evaluator in evaluators:
        scores.update(evaluator.run(vision))
    if out is not None:
        facts = {"model": vision.name, "data": data, "part": part, "adaptor": adaptor}
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(facts | scores, indent=2) + "\n")
    return scores


def _resolve(recipe: Method, config: Any) -> tuple[Source, Any]:
    """The training pictures, and the configuration with everything derived from them and from the machine."""
    source = open_source(config.data, "train", captions=recipe.captions, validation=config.loader.validation)
    config = recipe.resolve(config, len(source))
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    precision = _fast_precision(device) if config.precision == "auto" else config.precision
    return source, replace(config, device=device, precision=precision)


def _fast_precision(device: str) -> str:
    """bf16 where the hardware multiplies it natively, else fp32."""
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def _check_place(out: Path, config: TrainConfig) -> None:
    """Sees to it that nothing that stands in the run folder is lost unasked."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={out}: is a file; give a folder for the run")
    is_run = (out / "config.json").exists() or (out / "checkpoints").exists()
    if is_run and config.resume == "never" and not config.overwrite:
        raise ValueError(f"out={out}: holds a run; resume=auto goes on with it, overwrite=true throws it away")
    if not is_run and out.exists() and any(out.iterdir()):
        raise ValueError(f"out={out}: holds files that are no run; give a new or an empty folder")


def _claim(config: TrainConfig) -> Path:
    """Makes the run folder, and writes down what the run is; a run that was begun otherwise is left as it is."""
    out = Path(config.out)
    if config.overwrite and out.exists():
        shutil.rmtree(out)
    known = out / "config.json"
    if known.exists():
        before = from_dict(type(config), load_json(known), str(known))
        checkpoint.check_identity(checkpoint.identity(before), checkpoint.identity(config), out)
    out.mkdir(parents=True, exist_ok=True)
    save_json(config, known)
    _write_environment(out / "environment.json")
    return out


def _validation_scores(config: TrainConfig, source: Source) -> Callable[[nn.Module], Mapping[str, float]] | None:
    """k-NN of the validation part among training pictures; None where there are no labels to vote with."""
    if source.labels is None:
        return None
    validation = open_source(config.data, "validation", validation=config.loader.validation)
    if validation.labels is None or not len(validation):
        return None
    knn = KNN(_spread(source, BANK), _spread(validation, QUERIES))
    preprocess = Preprocess(present(config.size))

    def scores(model: nn.Module) -> Mapping[str, float]:
        return dict(knn.run(VisionModel(model, preprocess, config.model)))

    return scores


def _spread(source: Source, count: int) -> Source:
    """At most `count` pictures, evenly from the whole source."""
    if len(source) <= count:
        return source
    return source.select([place * len(source) // count for place in range(count)])


def _export(task: Task, recipe: Method, config: TrainConfig, out: Path, result: Mapping[str, Any]) -> None:
    """Writes the best model of a finished run to `weights/`."""
    facts = {
        "name": out.name,
        "method": recipe.name,
        "architecture": config.model,
        "data": config.data,
        "steps": config.steps,
        "batch": config.batch,
        "seed": config.seed,
        "seconds": round(result["seconds"], 1),
        "scores": result["evaluation"],
    }
    formats.save(out / "weights", loop.best_model(task, config, out), Preprocess(present(config.size)), facts)


def _write_environment(path: Path) -> None:
    packages = ("synoptic-vision", "torch", "numpy", "pillow", "transformers", "tokenizers")
    environment = {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "commit": _commit(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    path.write_text(json.dumps(environment, indent=2) + "\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, where it is one."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
