"""Weights on disk: one folder that holds everything a model needs, written whole or not at all.

weights/
    model.safetensors       float32
    config.json             format, version, kind, name, model, preprocess, trained, checksums
    tokenizer.json          of a CLIP; `tokenizer.<adaptor>.json` of a student's adaptor that knows words
    README.md               the model card
    SHA256SUMS              of all of these; but for the card, which may be edited, loading looks at them
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from synoptic.config import from_dict, load_json, nearest, to_dict
from synoptic.files import read_bounded
from synoptic.models.adaptors import Student, StudentConfig
from synoptic.models.classifier import Classifier, ClassifierConfig
from synoptic.models.clip import Clip, ClipConfig
from synoptic.models.grounding_dino import GroundingDino, GroundingDinoConfig
from synoptic.models.hub import HubBackbone
from synoptic.models.hub_build import HubConfig
from synoptic.models.plain_resnet import PlainResNet, PlainResNetConfig
from synoptic.models.resnet import ResNet, ResNetConfig
from synoptic.models.sam import Sam, SamConfig
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViT, ViTConfig, tiled_sizes
from synoptic.types import Preprocess
from synoptic.weights.card import model_card
from synoptic.weights.checksums import SUMS, read_sums, verified, write_sums
from synoptic.weights.convert import load_state
from synoptic.weights.descriptions import CONFIG
from synoptic.weights.reading import owned, read_safetensors
from synoptic.weights.words import LARGEST_TOKENIZER

FORMAT, VERSION = "synoptic", 1
NO_WORDS = "null"  # in place of a tokenizer, of weights of others that came without
WEIGHTS, CARD = "model.safetensors", "README.md"


@dataclass(frozen=True)
class Record:
    """What is known of a model beside its function.

    Attributes:
        kind: its key in `KINDS`.
        name: what people call it.
        trained: facts about its training, as JSON values: method, data, steps, scores, ...
    """

    kind: str
    name: str
    trained: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """A kind of model that can lie in a weights folder.

    Attributes:
        config: its configuration class.
        model: its class.
        build: (configuration, tokenizers by adaptor, "" for the model's own) -> the model.
    """

    config: type
    model: type[nn.Module]
    build: Callable[[Any, Mapping[str, Tokenizer]], nn.Module]


KINDS: dict[str, Kind] = {
    "vit": Kind(ViTConfig, ViT, lambda config, tokenizers: ViT(config)),
    "resnet": Kind(ResNetConfig, ResNet, lambda config, tokenizers: ResNet(config)),
    "plain_resnet": Kind(PlainResNetConfig, PlainResNet, lambda config, tokenizers: PlainResNet(config)),
    "classifier": Kind(ClassifierConfig, Classifier, lambda config, tokenizers: Classifier(config)),
    "clip": Kind(ClipConfig, Clip, lambda config, tokenizers: Clip(config, tokenizers.get(""))),
    "student": Kind(StudentConfig, Student, Student),
    "sam": Kind(SamConfig, Sam, lambda config, tokenizers: Sam(config)),
    "grounding_dino": Kind(
        GroundingDinoConfig, GroundingDino, lambda config, tokenizers: GroundingDino(config, tokenizers.get(""))
    ),
    "hub": Kind(HubConfig, HubBackbone, lambda config, tokenizers: HubBackbone(config)),
}


def kind_of(model: nn.Module) -> str:
    """The key in `KINDS` of a model."""
    found = [name for name, kind in KINDS.items() if type(model) is kind.model]
    assert found, f"{type(model).__name__} is no kind of model that can be saved"
    return found[0]


def text_towers(model: nn.Module) -> dict[str, Any]:
    """The parts of a model that know words, by adaptor, "" for the model itself.

    Each has `encode_text`, `tokenizer` (None for weights of others that came without) and `logit_scale`.
    """
    if isinstance(model, Clip):
        return {"": model}
    adaptors = model.adaptors.items() if isinstance(model, Student) else ()
    return {name: adaptor for name, adaptor in adaptors if adaptor.text is not None}


def tokenizers_of(model: nn.Module) -> dict[str, Tokenizer | None]:
    """The tokenizers of a model's parts that read words, by adaptor, "" for the model itself; None for weights of
    others that came without."""
    if isinstance(model, GroundingDino):
        return {"": model.tokenizer}
    return {name: tower.tokenizer for name, tower in text_towers(model).items()}


def save_folder(
    folder: str | Path, model: nn.Module, preprocess: Preprocess, card: Mapping[str, Any] | None = None
) -> None:
    """Writes a weights folder in place of the one that may lie there; what lies there is always whole.

    It is the old one or the new one. A process killed between the two renames of the exchange leaves none there, and
    both beside it under hidden names; the next save begins by putting the old one back. Only one process at a time
    may save there.

    Args:
        folder: new, empty, or an older weights folder.
        model: of one of the `KINDS`; floating-point tensors are written as float32.
        preprocess: what its pictures go through.
        card: facts for the model card, as JSON values: `name`, and whatever should be known of the training.
    Raises:
        ValueError: `folder` is a file, or holds files of another sort, which would be lost.
    """
    folder = Path(folder).expanduser().absolute()
    _check_replaceable(folder)
    trained = dict(card or {})
    record = Record(kind_of(model), str(trained.pop("name", folder.name)), trained)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _tidy(folder)
    fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.new")
    fresh.mkdir()
    try:
        _write(fresh, model, preprocess, record)
        _replace(folder, fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def load_folder(
    folder: str | Path, size: int | None = None, window: int | None = None
) -> tuple[nn.Module, Preprocess, Record]:
    """Reads a weights folder: the model on the CPU, in evaluation mode, with what belongs to it.

    Args:
        folder: as `save_folder` has written it.
        size: side in pixels of the pictures that a ViT, a student or a CLIP is given; None takes what it says.
        window: side in patches of the windows in which a ViT or a student is to attend, likewise.
    Raises:
        ValueError: something is missing, damaged, changed since it was saved, of a newer version, or does not fit
            together; or windows were asked of a model that has none, or do not tile its pictures.
    """
    folder = Path(folder)
    with _unchanged(folder):
        path = folder / CONFIG
        header = load_json(path)
        record, kind = _check_header(header, path)
        config: Any = from_dict(kind.config, _mapping(header, "model", path), f"{path}: model")
        preprocess = from_dict(Preprocess, _mapping(header, "preprocess", path), f"{path}: preprocess")
        if size is not None:
            preprocess = _resized(preprocess, config, size)
        if window is not None:
            config = _in_windows(config, window, preprocess.size)
        state = {name: owned(tensor) for name, tensor in read_safetensors(folder / WEIGHTS).items()}
        tokenizers = _read_tokenizers(folder, config)
        try:
            with shapes_alone():
                model = kind.build(config, tokenizers)
        except ValueError as error:  # of a model of transformers, whose configuration that library judges
            raise ValueError(f"{path}: model: {error}") from None
        load_state(model, state, str(folder / WEIGHTS))
        return model.eval(), preprocess, record


def _resized(preprocess: Preprocess, config: Any, size: int) -> Preprocess:
    """Pictures of another size, for a model that takes any that its patches tile."""
    vit = getattr(config, "backbone", getattr(config, "image", config))
    if not isinstance(vit, ViTConfig):
        raise ValueError(f"load.size={size}: the model is no ViT, student or CLIP, and says itself what it reads")
    if size % vit.patch_size:
        low, high = tiled_sizes(size, vit.patch_size)
        told = f"patches of {vit.patch_size} pixels do not tile it; the nearest that work: {low}, {high}"
        raise ValueError(f"load.size={size}: {told}")
    return replace(preprocess, size=size)


def _in_windows(config: Any, window: int, size: int) -> ViTConfig | StudentConfig:
    """A configuration whose ViT attends in windows of a side in patches, which should tile pictures of a size."""
    if not isinstance(config, ViTConfig | StudentConfig):
        raise ValueError(f"load.window={window}: is for a ViT or a student, and this is neither; leave it out")
    vit = config if isinstance(config, ViTConfig) else config.backbone
    step = window * vit.patch_size
    if size % step:
        grid, (low, high) = size // vit.patch_size, tiled_sizes(size, step)
        told = f"windows of {window} x {window} patches do not tile the {grid} x {grid} of pictures of {size} pixels"
        raise ValueError(f"load.window={window}: {told}; give a divisor of {grid}, or load.size={low} or {high}")
    vit = replace(vit, window=window)
    return vit if isinstance(config, ViTConfig) else replace(config, backbone=vit)


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Networks built within it have shapes and no values: on the meta device, in no time, whatever their size."""
    with torch.device("meta"), _NoRandomFill():
        yield


_RANDOM_FILLS = {
    *(Tensor.normal_, Tensor.uniform_),
    *(nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_, nn.init.kaiming_uniform_, nn.init.xavier_uniform_),
}


class _NoRandomFill(TorchFunctionMode):
    """Passes over random initialisation, which on the meta device would first import PyTorch's whole compiler."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function in _RANDOM_FILLS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def weights_hash(model: nn.Module) -> str:
    """16 hexadecimal digits that tell weights apart: SHA-256 of names, shapes and float32 values, in order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(model).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.numpy().reshape(-1).view("uint8").data)
    return digest.hexdigest()[:16]


def model_hash(model: Any, preprocess: Preprocess | None = None) -> str:
    """16 hexadecimal digits that tell apart what models answer: their weights, configurations and tokenizers.

    Args:
        model: of one of the `KINDS`.
        preprocess: what its pictures go through, where it is asked with pictures of any size.
    """
    words = {name: each.to_json() for name, each in tokenizers_of(model).items() if each}
    seen = None if preprocess is None else to_dict(preprocess)
    decisive = [weights_hash(model), kind_of(model), to_dict(model.config), words, seen]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def is_weights_folder(folder: Path) -> bool:
    """Whether a folder looks like one that `save_folder` has written."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder for the weights")
    others = [entry.name for entry in folder.iterdir() if not _is_ours(entry.name)] if folder.is_dir() else []
    if others:
        raise ValueError(f"{folder} holds other files, such as {min(others)}; name a new folder for the weights")


def _is_ours(name: str) -> bool:
    return name in (WEIGHTS, CONFIG, CARD, SUMS) or (name.startswith("tokenizer.") and name.endswith(".json"))


def _write(folder: Path, model: Any, preprocess: Preprocess, record: Record) -> None:
    save_file(_tensors(model), folder / WEIGHTS, metadata={"format": "pt"})
    for adaptor, tokenizer in tokenizers_of(model).items():
        words = tokenizer.to_json() if tokenizer else NO_WORDS
        (folder / _tokenizer_file(adaptor)).write_text(f"{words}\n", encoding="utf-8")
    header = {
        "format": FORMAT,
        "version": VERSION,
        "kind": record.kind,
        "name": record.name,
        "model": to_dict(model.config),
        "preprocess": to_dict(preprocess),
        "trained": dict(record.trained),
        "checksums": SUMS,
    }
    (folder / CONFIG).write_text(json.dumps(header, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # which safetensors writes for the user alone
    card = model_card(model, preprocess, record.kind, record.name, record.trained)
    (folder / CARD).write_text(card, encoding="utf-8")
    write_sums(folder)
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _tidy(folder: Path) -> None:
    """Undoes what a killed save left beside `folder`: brings back weights that lie there no more, removes the rest."""
    mine = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{8}}\.(new|old)")
    for left in sorted(folder.parent.iterdir()):
        if not mine.fullmatch(left.name):
            continue
        if left.suffix == ".old" and not folder.exists():
            left.rename(folder)
        else:
            shutil.rmtree(left)


def _replace(folder: Path, fresh: Path) -> None:
    """Puts `fresh` where `folder` is; a process killed on the way leaves what `_tidy` knows to mend."""
    if not folder.exists():
        fresh.rename(folder)
        return
    old = fresh.with_suffix(".old")
    folder.rename(old)
    try:
        fresh.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors on the CPU, contiguous, floats as float32, none sharing memory with another."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu()
        tensor = (tensor.float() if tensor.is_floating_point() else tensor).contiguous()
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return tensors


def _check_header(header: Mapping[str, Any], path: Path) -> tuple[Record, Kind]:
    if header.get("format") != FORMAT:
        raise ValueError(f'{path}: is no model of this library, whose files say "format": "{FORMAT}"')
    if header.get("version") != VERSION:
        raise ValueError(f"{path}: version {header.get('version')!r} is unknown; this synoptic reads version {VERSION}")
    kind = str(header.get("kind"))
    if kind not in KINDS:
        raise ValueError(f"{path}: unknown kind {kind!r}{nearest(kind, KINDS)}")
    sums = path.with_name(SUMS)
    if header.get("checksums") is not None and not sums.is_file():
        raise ValueError(f"{sums}: no such file, though {CONFIG} tells of it, so the weights folder is not whole")
    return Record(kind, str(header.get("name", "")), dict(_mapping(header, "trained", path))), KINDS[kind]


def _unchanged(folder: Path) -> AbstractContextManager[None]:
    """Raises at its end, or before, where a folder is not as it was saved; one without checksums is taken as it is."""
    if not (folder / SUMS).is_file():
        return nullcontext()
    sums = read_sums(folder)
    unlisted = {CONFIG, WEIGHTS, *filter(_is_ours, os.listdir(folder))} - {CARD, SUMS} - sums.keys()
    if unlisted:
        raise ValueError(f"{folder / SUMS}: lists no {min(unlisted)}; copy the folder anew")
    return verified(folder, {name: sums[name] for name in sums if _is_ours(name) and name != CARD}, WEIGHTS)


def _mapping(header: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    value = header.get(key)
    if not isinstance(value, Mapping):
        raise ValueError(f"{path}: {key!r} should hold an object of keys and values, not {value!r}")
    return value


def _texts(config: Any) -> dict[str, tuple[int, int, int]]:
    """Vocabulary, end of a text and context of all that reads words, by adaptor, "" for the model's own."""
    if isinstance(config, GroundingDinoConfig):
        return {"": (config.text.vocabulary, config.stops[1], config.context)}
    adaptors = config.adaptors if isinstance(config, StudentConfig) else {}
    towers = {name: part.text for name, part in adaptors.items() if part.text is not None}
    if isinstance(config, ClipConfig):
        towers = {"": config.text}
    return {name: (text.vocabulary, text.end, text.context) for name, text in towers.items()}


def _tokenizer_file(adaptor: str) -> str:
    return f"tokenizer.{adaptor}.json" if adaptor else "tokenizer.json"


def _read_tokenizers(folder: Path, config: Any) -> dict[str, Tokenizer]:
    tokenizers = {}
    for adaptor, (vocabulary, end, context) in _texts(config).items():
        path = folder / _tokenizer_file(adaptor)
        try:
            definition = read_bounded(path, LARGEST_TOKENIZER).decode("utf-8")
            if definition.strip() == NO_WORDS and not adaptor:
                continue
            tokenizer = Tokenizer.from_json(definition)
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror}), so the weights folder is not whole") from None
        except Exception as error:  # the engine raises plain Exception on a definition that it cannot read
            raise ValueError(f"{path}: damaged tokenizer ({error})") from None
        if (tokenizer.vocabulary, tokenizer.end) != (vocabulary, end):
            raise ValueError(
                f"{path}: {tokenizer.vocabulary} tokens, of which {tokenizer.end} ends a text, do not fit a text tower "
                f"of {vocabulary} tokens ended by {end}"
            )
        if tokenizer.context > context:
            raise ValueError(
                f"{path}: texts of up to {tokenizer.context} tokens do not fit a text tower that reads {context}"
            )
        tokenizers[adaptor] = tokenizer
    return tokenizers
