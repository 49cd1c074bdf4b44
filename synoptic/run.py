"""One training run, from a configuration to a folder with weights; and the evaluation of a model on a data set."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from synoptic.config import TrainConfig, load_json, save_json, to_dict
from synoptic.data.listing import expand
from synoptic.data.loader import Loader
from synoptic.data.look import look, tell_depth
from synoptic.data.sources import Source, open_source, share_errors
from synoptic.engine import checkpoint, distributed, loop
from synoptic.engine.stopping import Worsened
from synoptic.evaluation.captions import CaptionRetrieval
from synoptic.evaluation.recognition import KNN
from synoptic.evaluation.spread import RankMe
from synoptic.files import LOCK, is_ours, sole_writer, write_text
from synoptic.machine import cores, memory, peak_memory, processor
from synoptic.methods import get_method
from synoptic.methods.base import Collapsed, Method, Task
from synoptic.predict import VisionModel
from synoptic.types import Evaluator, Group, Preprocess, present
from synoptic.weights.folder import CONFIG, is_weights_folder, save_folder

log = logging.getLogger(__name__)

BANK, QUERIES = 2000, 500  # pictures used for k-NN while training: enough for a steady score, quick on a CPU
# Pictures are read with their longer side at up to this times what the networks see. A crop is then enlarged, and so
# blurred, only where it is less than a quarter of a square picture; of one of 4:3 less than a third, of 16:9 less than
# 0.44. Bounding the shorter side would spare long pictures that, but a batch is padded to its largest, so that a single
# panorama would take the memory of many pictures.
LONGEST = 2.0
FEWEST = 30  # pictures whose score, k-NN's or the rank of their embeddings, says something of the network
TURNS = 4  # processes a core at most: they do nothing faster, but a small machine may try what a larger one will do


def train(
    method: str,
    config: TrainConfig | str | Path | None = None,
    *,
    preset: str | None = None,
    **keys: Any,
) -> Path:
    """Trains a model, or goes on with the run that stands in `out`.

    Args:
        method: dino, dinov2, clip or radio.
        config: a whole configuration, which stands alone; or the JSON file of one, under the preset and the keys.
        preset: one of the method's presets, under the keys.
        keys: as on the command line; nested ones as dictionaries (`optim={"lr": 1e-3}`).
    Returns:
        The run folder: its `weights/` hold the best model, and the folder itself is a MODEL.
    Raises:
        ValueError: for what cannot be trained so, in one line.
    """
    recipe = get_method(method)
    where = f"train {method}"
    if isinstance(config, TrainConfig):
        if keys or preset is not None:
            given = ", ".join([*keys, *(["preset"] if preset is not None else [])])
            raise ValueError(f"{where}: {given} beside a whole config; change that by dataclasses.replace(config, ...)")
        return _train(recipe, config)
    return _train(recipe, recipe.configure(keys, where, file=config, preset=preset))


def _train(recipe: Method, config: TrainConfig) -> Path:
    if not config.out:
        raise ValueError("out=: is empty; give a folder for the run")
    out = expand(config.out)
    config = replace(config, out=str(out))
    started = distributed.world()[1] > 1
    if distributed.world()[0] == 0:
        _check_place(out, config)
    if config.devices > 1 and not started:
        _launch(recipe, config)
        return out
    torch.set_num_threads(config.threads or torch.get_num_threads())
    given = config
    source, config = _resolve(recipe, config)
    sides = _looked_at(source, given, config) if distributed.world()[0] == 0 else []
    with distributed.joined(config.device) as group:
        torch.manual_seed(config.seed)
        task = recipe.build(config, source)
        _tell_enlarged(sides, given, config, task.reads)
        _train_task(task, recipe, config, source, group)
    return out


def _train_task(task: Task, recipe: Method, config: TrainConfig, source: Source, group: Group) -> None:
    """Trains and exports a task, as one of the processes of the group; the first alone writes."""
    out, first = Path(config.out), group.rank == 0
    evaluators = _evaluators(recipe, config, source)
    config = _with_metric(config, recipe.metric, evaluators)
    facts = task.facts()
    data = {"data.pictures": len(source), "data.sha256": source.fingerprint(recipe.captions)}
    loader = _loader(task, config, source, part=(group.rank, group.size))
    with sole_writer(out) if first else nullcontext():
        if task.largest_fall is not None and not _judges_steadily(evaluators):
            told = "max_drop=%g: there are fewer than %d pictures to judge by, too few; nothing stops this run"
            log.warning(told, task.largest_fall, FEWEST)
            task.largest_fall = 1.0  # of everything, so that the score of the start is still told
        if first:
            _claim(out, recipe.name, config, checkpoint.identity(config, {**data, **facts}))
        distributed.shared(None, group)  # the others write down what they cannot read once the folder is claimed
        source.record_errors(out / "data_errors.jsonl")
        judge = _judge(evaluators, _preprocess(task, config), config.model)
        device = distributed.place(config.device)
        try:
            result = loop.train(task, loader, config, out, judge, device, group)
        except (Collapsed, Worsened):
            kept = checkpoint.Checkpoints(out / "checkpoints", config.checkpoint.keep).so_far() if first else None
            if kept:
                _export(task, recipe, config, out, kept, facts)
                which = "the best model so far" if kept["best"] else "the last model that was saved"
                step = kept["best"]["step"] if kept["best"] else kept["steps"]
                log.warning("%s holds %s, of step %d", out / "weights", which, step)
            raise
        if first:
            _export(task, recipe, config, out, result, facts)


def _looked_at(source: Source, given: TrainConfig, config: TrainConfig) -> list[int]:
    """The shorter sides in pixels of some of the pictures; tells what is unusual about them.

    Args:
        given: the configuration as the user gave it.
        config: the same as resolved.
    Raises:
        ValueError: too many of the pictures cannot be read.
    """
    sides = look(source, config.bands, config.loader.unreadable)
    if given.depth is None and config.bands is None:
        tell_depth(source, sides)
    if config.batch > len(source):
        told = "batch=%d is more than the %d pictures: each is seen several times a step"
        log.warning(told, config.batch, len(source))
    return list(sides.values())


def _tell_enlarged(sides: Sequence[int], given: TrainConfig, config: TrainConfig, size: int) -> None:
    """Warns where most pictures are smaller than what is made of them.

    Args:
        sides: shorter sides of some pictures, in pixels.
        given: the configuration as the user gave it.
        config: the same as resolved.
        size: of the largest that a network is shown, in pixels.
    """
    usual = statistics.median(sides or [size])
    if usual < size:
        told = "most pictures are about %d pixels and are enlarged to %d: a smaller %s= sees as much"
        log.warning(told, usual, size, _size_key(given, config, size))


def _size_key(given: TrainConfig, config: TrainConfig, size: int) -> str:
    """The key that decides that a network is shown pictures of this size."""
    crops = getattr(given, "crops", None)  # where it gives sizes, they win over the run's own
    named = [name for name in ("global_size", "local_size") if getattr(crops, name, None) == size]
    if named:
        return f"crops.{named[0]}"
    return "size" if size == config.size else "high_resolution.scale"


def _launch(recipe: Method, config: TrainConfig) -> None:
    """Trains in several processes of this machine, of which this one is none."""
    available = torch.cuda.device_count() if config.device != "cpu" else 0
    if available and config.devices > available:
        raise ValueError(f"devices={config.devices}: this machine has {available}; give fewer, or device=cpu")
    if not available and config.devices > TURNS * cores():
        raise ValueError(f"devices={config.devices}: this machine has {cores()} cores for them; give fewer")
    source, resolved = _resolve(recipe, config)  # here, where a mistake is told once
    loop.check_parts(resolved, config.devices)
    look(source, resolved.bands, resolved.loader.unreadable)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        save_json(config, file)
        distributed.launch(config.devices, ("synoptic.apps.worker", recipe.name, str(file), *sys.argv))


def plan(method: str, config: TrainConfig) -> dict[str, Any]:
    """What a run would be, found by three steps of each of its phases; writes nothing.

    With `devices=N` that is what one of the processes would be, with its share of every batch and of the cores.

    Returns:
        "pictures", "steps_per_epoch", "parameters" (exported, trained), "phases" (from which share of the run on a step
        takes how long), "hours" (without evaluations, and without what processes say to each other), "memory_gb" (the
        most that was held: on a GPU by tensors, else by the process), "losses" (for each term its "start", and what is
        "expected" where theory tells), "config" (as resolved).
    """
    recipe, given = get_method(method), config
    source, config = _resolve(recipe, config)
    sides = _looked_at(source, given, config)
    torch.manual_seed(config.seed)
    task = recipe.build(config, source)
    _tell_enlarged(sides, given, config, task.reads)
    trained = sum(parameter.numel() for group in task.parameter_groups() for parameter in group.params)
    expected = task.expected_losses()
    loop.check_parts(config, config.devices)
    loader = _loader(task, config, source, part=(0, config.devices))
    with _threads(config.threads or max(torch.get_num_threads() // config.devices, 1)):
        tried = loop.trial(task, loader, config, distributed.place(config.device))
    shares = [end - start for start, end in pairwise((*(phase.start for phase in task.phases), 1.0))]
    seconds = sum(share * each for share, each in zip(shares, tried["seconds"], strict=True)) * present(config.steps)
    return {
        "pictures": len(source),
        "steps_per_epoch": len(source) / config.batch,
        "parameters": {"exported": _count(task.exported().parameters()), "trained": trained},
        "phases": [
            {"from": round(phase.start, 4), "seconds_per_step": round(each, 4)}
            for phase, each in zip(task.phases, tried["seconds"], strict=True)
        ],
        "hours": round(seconds / 3600, 3),
        "memory_gb": _peak_memory(config.device),
        "losses": {
            name: {"start": round(start, 4)} | ({"expected": round(expected[name], 4)} if name in expected else {})
            for name, start in tried["losses"].items()
        },
        "config": to_dict(config),
    }


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Within it PyTorch computes in so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _peak_memory(device: str) -> float | None:
    most = torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory()
    return None if most is None else round(most / 1e9, 2)


def _loader(task: Task, config: TrainConfig, source: Source, part: tuple[int, int]) -> Loader:
    """Batches of the source as the task reads them, of each the part of one process: its number, and how many there
    are."""
    longest = int(LONGEST * task.reads)
    return Loader(source, config.batch, config.seed, longest, config.loader, config.device, part, config.bands)


def _resolve(recipe: Method, config: Any) -> tuple[Source, Any]:
    """The training pictures, and the configuration with everything derived from them and from the machine."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: PyTorch finds no GPU that it can use; give device=cpu, or leave it out")
    share = config.loader.validation
    source = open_source(config.data, "train", captions=recipe.captions, validation=share, images=config.images)
    source.allow_unreadable(config.loader.unreadable)
    config = recipe.resolve(config, len(source))
    _check_batch(config)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    precision = _fast_precision(device) if config.precision == "auto" else config.precision
    return source, replace(config, device=device, precision=precision)


def _check_batch(config: TrainConfig) -> None:
    """Refuses a batch whose pictures alone, as bytes, are more than the main memory."""
    needed, there = config.batch * config.channels * present(config.size) ** 2, memory()
    if there is not None and needed > there:
        taken = f"with size={config.size} its pictures take {needed / 1e9:.0f} GB, and there are {there / 1e9:.0f}"
        raise ValueError(f"batch={config.batch}: {taken}; give less")


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
    if not is_run and out.exists() and not all(is_ours(path) for path in out.iterdir()):
        raise ValueError(f"out={out}: holds files that are no run; give a new or an empty folder")


def _claim(out: Path, method: str, config: TrainConfig, identity: Mapping[str, Any]) -> None:
    """Writes down what the run is; one that was begun otherwise is left as it is, or thrown away where that is asked.

    Args:
        out: the run folder, held by this process.
        identity: what decides the weights.
    """
    if config.overwrite:
        _empty(out)
    checkpoints = checkpoint.Checkpoints(out / "checkpoints", config.checkpoint.keep)
    checkpoints.claim(identity)
    if not checkpoints.steps():  # what an attempt that came to nothing says of its data may be of others
        (out / "data_errors.jsonl").unlink(missing_ok=True)
    # Whoever starts from this file wants the same run again, and not the one that stands there thrown away.
    save_json(replace(config, overwrite=False, resume="auto"), out / "config.json")
    write_text(out / "environment.json", json.dumps({"method": method, **_environment()}, indent=2) + "\n")


def _empty(out: Path) -> None:
    """Removes a run from its folder, which stays locked; config.json last, which tells the folder to be a run's."""
    for path in sorted(out.iterdir(), key=lambda path: path.name == "config.json"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _with_metric(config: Any, score: Literal["knn", "r_mean"], evaluators: Sequence[Evaluator[Any]]) -> Any:
    """The configuration with what decides which checkpoint is best.

    Args:
        score: the only one that may.
        evaluators: what judges while training.
    """
    metric, judge = config.checkpoint.metric, KNN if score == "knn" else CaptionRetrieval
    if metric not in (None, score):
        raise ValueError(f"checkpoint.metric={metric}: only {score} decides in this method; leave the key out")
    judged = any(isinstance(found, judge) for found in evaluators)
    if metric and not judged:
        lacking = {
            "knn": ("no labels to judge by", "a folder for each class would tell labels"),
            "r_mean": (f"fewer than {FEWEST} validation pictures with captions", "a larger loader.validation helps"),
        }
        what, mend = lacking[score]
        told = "checkpoint.metric=%s: data=%s has %s; the last checkpoint counts as best; %s"
        log.warning(told, metric, config.data, what, mend)
    return replace(config, checkpoint=replace(config.checkpoint, metric=score if judged else None))


def _evaluators(recipe: Method, config: TrainConfig, source: Source) -> list[Evaluator[Any]]:
    """What judges the model while it trains: k-NN of the validation part among training pictures, where there are
    labels to vote with; for methods that learn without labels also the effective rank of its embeddings, and for those
    that learn from captions retrieval both ways.

    Pictures of both parts that cannot be read are listed together.
    """
    if (source.labels is None and not (recipe.rankme or recipe.captions)) or len(source) < 2:
        return []
    validation = open_source(config.data, "validation", validation=config.loader.validation, images=config.images)
    share_errors([source, validation])
    queries = validation.sample(QUERIES)
    labelled = source.labels is not None and validation.labels is not None and len(source.classes) > 1
    found: list[Evaluator[Any]] = [KNN(source.sample(BANK), queries)] if labelled else []
    if recipe.captions and sum(map(bool, queries.captions)) >= FEWEST:
        found.append(CaptionRetrieval(queries, bounds=False))
    if not recipe.rankme:
        return found
    # A rank needs no pictures that were set apart; few of them say nothing of it.
    ranked = queries if len(queries) >= FEWEST else source.sample(QUERIES)
    return [*found, RankMe(ranked)] if len(ranked) >= FEWEST else found


def _judges_steadily(evaluators: Sequence[Evaluator[Any]]) -> bool:
    """Whether the score that decides, the first one, is found from enough pictures that none alone moves it much."""
    return bool(evaluators) and not (isinstance(evaluators[0], KNN) and len(evaluators[0].queries) < FEWEST)


def _preprocess(task: Task, config: TrainConfig) -> Preprocess:
    """What the exported model's pictures go through."""
    return Preprocess(task.resolution or present(config.size), bands=config.bands)


def _judge(evaluators: Sequence[Evaluator[Any]], preprocess: Preprocess, name: str) -> loop.Evaluate | None:
    """All their scores of a network in training; None where there are none."""

    def scores(model: nn.Module) -> Mapping[str, float]:
        vision = VisionModel(model, preprocess, name)
        return {name: score for evaluator in evaluators for name, score in evaluator.run(vision)}

    return scores if evaluators else None


def _export(
    task: Task, recipe: Method, config: TrainConfig, out: Path, result: Mapping[str, Any], facts: Mapping[str, str]
) -> None:
    """Writes the best model of a finished run to `weights/`, unless it is there already."""
    best = result["best"] or {"step": result["steps"], "scores": result["evaluation"]}
    trained = {
        "method": recipe.name,
        **_origin(config),
        "data": config.data,
        "steps": best["step"],
        "batch": config.batch,
        "seed": config.seed,
        "seconds": round(result["seconds"], 1),
        **({"scores": best["scores"]} if best["scores"] else {}),
        **facts,
    }
    folder = out / "weights"
    if is_weights_folder(folder):
        there = load_json(folder / CONFIG)
        if (there.get("name"), there.get("trained")) == (out.name, trained):
            return
    save_folder(folder, loop.best_model(task, config, out), _preprocess(task, config), {"name": out.name, **trained})


def _origin(config: TrainConfig) -> dict[str, Any]:
    """What the weights were before the first step: random ones of an architecture, or given ones."""
    init = getattr(config, "init", None)
    return {"architecture": config.model} if init is None else {"init": init}


def _environment() -> dict[str, Any]:
    """What the run was started with, and where."""
    packages = ("synoptic-vision", "torch", "numpy", "pillow", "transformers", "tokenizers")
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "commit": _commit(),
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


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
