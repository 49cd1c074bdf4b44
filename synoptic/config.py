"""Configuration shared by all methods: frozen dataclasses, JSON in and out. No torch here.

A method's own configuration derives from `TrainConfig` (see `synoptic.methods`). What is None here is derived when the
run is built, from the data and the method's recipe, and written to the run's `config.json` as resolved.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache, reduce
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)
from pydantic import Field as Bound

from synoptic.files import read_bounded, write_text

T = TypeVar("T")

LARGEST_JSON = 16 << 20  # bytes of a configuration, an index, or the header of a weights file

Share = Annotated[float, Bound(ge=0, le=1)]  # of a whole, which may be all of it
Fraction = Annotated[float, Bound(ge=0, lt=1)]  # of a whole, never all of it
Rate = Annotated[float, Bound(gt=0, le=1)]  # a factor that makes smaller, never nothing
Threads = Annotated[int, Bound(ge=1, le=1024)]  # OpenMP crashes where it can start no more
Seed = Annotated[int, Bound(ge=0, lt=2**63)]  # what an int64 holds


def _rising(span: tuple[float, float]) -> tuple[float, float]:
    if span[0] > span[1]:
        raise ValueError("the lowest value comes first")
    return span


AreaSpan = Annotated[tuple[Rate, Rate], AfterValidator(_rising)]  # lowest and highest share of a picture's area
PositiveSpan = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_rising)]

_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)  # building one takes longer than using it


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule. Every span is a fraction of the run.

    Attributes:
        lr: highest learning rate; None takes the method's rule for the batch size.
        final_lr: last learning rate, as a fraction of the highest.
        warmup: share of the run in which the rate rises linearly from zero.
        weight_decay: of weight matrices; biases, norms and other vectors are never decayed.
        final_weight_decay: where the decay ends on a cosine; None keeps it constant.
        betas: of AdamW.
        clip: largest norm of the gradients; None leaves them alone.
        clip_by: whether that bounds the norm of "all" gradients together, of those of each "module" (backbone, head) or
            of each "tensor" for itself.
        ema: decay of an average of the weights that is evaluated and exported in their place; None keeps no average.
    """

    lr: PositiveFloat | None = None
    final_lr: NonNegativeFloat = 0.0
    warmup: Share = 0.1
    weight_decay: NonNegativeFloat = 0.05
    final_weight_decay: NonNegativeFloat | None = None
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    clip: PositiveFloat | None = 3.0
    clip_by: Literal["all", "module", "tensor"] = "all"
    ema: Fraction | None = None


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How pictures get from disk to the loop.

    Attributes:
        workers: reading processes; None takes none on a CPU (where they would compete with training) and up to 8
            beside a GPU.
        cache_mb: decoded pictures are kept in memory while they fit in this many megabytes, in each reading process.
        validation: share of the training pictures, above 0 and below 1, set apart where a data set has no validation
            part.
        unreadable: share of the pictures that may be unreadable before the run stops; 1 never stops.
    """

    workers: NonNegativeInt | None = None
    cache_mb: NonNegativeInt = 1024
    validation: Annotated[Fraction, Bound(gt=0)] = 0.1
    unreadable: Share = 0.05


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Which states of a run are kept.

    Attributes:
        keep: how many of the newest checkpoints stay, beside the best.
        metric: the validation score that decides which is best, higher being better. None takes the method's, where the
            data tell it: `knn`, which needs labels, or of methods that learn from captions `r_mean`, the mean recall of
            retrieval both ways, which needs 30 validation pictures with captions. Without it, the last one counts as
            best. Of a run in stages those of the last stage alone are rivals.
    """

    keep: PositiveInt = 2
    metric: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run; what every method understands.

    Attributes:
        data: a folder of pictures (with class folders or not), a folder with `train/` inside, a captions file (.json
            in COCO's form, .csv, .tsv, .parquet), or WebDataset shards (`x-{000..009}.tar`, a folder of them); several,
            comma-separated.
        images: the folder that the names in a captions file are relative to, or one for each of several such files,
            comma-separated; None takes `images/` beside a JSON, and the folder that a table is in.
        out: the run folder.
        model: architecture to train (`synoptic models` lists them).
        size: side of the training pictures in pixels; None takes the method's.
        channels: bands of the pictures, which are TIFF files, arrays (`.npy`) or, where these have as many, files of
            other kinds; other than 3 they are normalised by their own mean and deviation.
        depth: "8bit" reads every picture as 8-bit RGB; "full" keeps 16 bits and floats as they are, and normalises by
            the pictures' own mean and deviation; None takes "8bit" for 3 bands, and "full" for any other number.
        steps: optimiser steps.
        epochs: passes over the data, in place of `steps`; where a preset or a file tells the one, the other that is
            typed holds.
        batch: pictures per optimiser step.
        accumulate: parts into which a batch is cut to save memory.
        precision: fp32, bf16 (autocast), or auto: bf16 where the hardware is fast at it.
        device: cpu, cuda or auto.
        devices: processes that train together, each on a GPU of its own or on its share of the CPU's cores; every one
            sees its part of each batch.
        threads: CPU threads for the computation; None leaves the choice to PyTorch.
        compile: whether PyTorch compiles the blocks of the networks, frozen teachers among them: slower to start,
            faster afterwards.
        recompute: whether activations inside the blocks are computed again when they are needed, which takes less
            memory and more time.
        seed: decides everything random.
        log_every: steps between two lines of metrics.
        checkpoint_every: steps between checkpoints; None takes twenty a run.
        evaluate_every: steps between evaluations; None takes five a run.
        resume: auto goes on with the run found in `out`; never refuses.
        overwrite: throw away the run found in `out`.
    """

    data: str
    images: str | None = None
    out: str
    model: str = "vit_s16"
    size: PositiveInt | None = None
    channels: PositiveInt = 3
    depth: Literal["8bit", "full"] | None = None
    steps: PositiveInt | None = None
    epochs: Annotated[PositiveFloat, Bound(allow_inf_nan=False)] | None = None
    batch: PositiveInt = 64
    accumulate: PositiveInt = 1
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: PositiveInt = 1
    threads: Threads | None = None
    compile: bool = False
    recompute: bool = False
    seed: Seed = 0
    log_every: PositiveInt = 10
    checkpoint_every: PositiveInt | None = None
    evaluate_every: PositiveInt | None = None
    resume: Literal["auto", "never"] = "auto"
    overwrite: bool = False
    optim: OptimConfig = field(default_factory=OptimConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    @property
    def bands(self) -> int | None:
        """How many bands are read at their full depth; None reads 8-bit RGB."""
        return self.channels if self.depth == "full" else None


@dataclass(frozen=True)
class Key:
    """One value of a configuration, under the name that users type.

    Attributes:
        name: dotted, as in `optim.lr`.
        hint: its type.
        default: the value it has when not given; `dataclasses.MISSING` where it must be.
        owner: the dataclass that declares it, whose docstring describes it.
    """

    name: str
    hint: Any
    default: Any
    owner: type


NAME = "NAME"  # in a key, what the user calls an entry: `teacher.NAME.size` is typed as `teacher.clip.size=224`


def keys(kind: type) -> dict[str, Key]:
    """Every key of a configuration class by its dotted name, in order of declaration, those of nested ones included."""
    return {key.name: key for key in _walk(kind, MISSING, "")}


def find_key(name: str, known: Mapping[str, Key]) -> Key | None:
    """The key that a dotted name means, be it of an entry of the user's own naming; None where there is none."""
    if name in known:
        return known[name]
    parts = name.split(".")
    fitting = (key for key in known.values() if NAME in key.name.split(".") and _fits(parts, key.name.split(".")))
    return next(fitting, None)


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    return len(parts) == len(pattern) and all(
        part == wanted or wanted == NAME for part, wanted in zip(parts, pattern, strict=True)
    )


def is_mapping(hint: Any) -> bool:
    """Whether a key holds entries of the user's own naming (`weights.clip=2`)."""
    return isinstance(get_origin(hint), type) and issubclass(get_origin(hint), Mapping)


def _entry_kind(hint: Any) -> type | None:
    """The dataclass that each entry of the user's own naming is, where a key holds such entries."""
    kind = get_args(hint)[1] if is_mapping(hint) else None
    return kind if isinstance(kind, type) and is_dataclass(kind) else None


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as dictionaries in dictionaries: {"optim.lr": 1} and {"optim": {"lr": 1}} say the same.

    Later entries win over earlier ones.
    """
    result: dict[str, Any] = {}
    for name, value in values.items():
        first, _, rest = name.partition(".")
        entry = {rest: value} if rest else value
        if isinstance(entry, Mapping):
            known = result.get(first)
            entry = merged(known if isinstance(known, dict) else {}, nested(entry))
        result[first] = entry
    return result


def merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested `values` with the entries of nested `over` in their place, dictionary by dictionary."""
    result = dict(values)
    for name, value in over.items():
        known = result.get(name)
        both = isinstance(known, Mapping) and isinstance(value, Mapping)
        result[name] = merged(known, value) if both else value  # type: ignore[arg-type]
    return result


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dictionaries in dictionaries as one with dotted keys: the reverse of `nested`."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint to append to an error about an unknown name: its nearest neighbours, or all valid names where few."""
    names = list(known)
    same = [other for other in names if other.rpartition(".")[2] == name.rpartition(".")[2]]
    close = same[:3] or difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f" (did you mean {' or '.join(close)}?)"
    return f" (valid are {', '.join(names)})" if 0 < len(names) <= 12 else ""


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values."""
    return _adapter(type(config)).dump_python(config, mode="json")


def from_dict(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Builds and checks a configuration.

    Args:
        kind: its dataclass.
        values: nested or with dotted keys. What is not given keeps its default, key by key: the defaults that `kind`
            gives to a nested configuration hold also where some of its keys are given.
        where: told in errors: the file, or the command.

    Raises:
        ValueError: naming `where`, the key, its value and what is wrong with it.
    """
    try:
        return _adapter(kind).validate_python(_over_defaults(kind, nested(values)), extra="forbid")
    except ValidationError as error:
        raise ValueError(f"{where}: {_explain(kind, error)}") from None


def from_layers(
    kind: type[T],
    values: Mapping[str, Any],
    where: str,
    *,
    file: str | Path | None = None,
    preset: str | None = None,
    presets: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> T:
    """Builds and checks a configuration from a file, a preset over it, and values over both.

    Args:
        kind, values, where: see `from_dict`.
        file: JSON file with values, such as the `config.json` of a run.
        preset: one of the names in `presets`.
        presets: name -> values.

    Raises:
        ValueError: see `from_dict` and `load_json`; and for an unknown preset.
    """
    layers: list[Mapping[str, Any]] = []
    if file is not None:
        where = f"{where} config={file}"
        layers.append(load_json(Path(file)))
    if preset is not None:
        if preset not in presets:
            raise ValueError(f"{where}: unknown preset {preset!r}{nearest(preset, presets) or ' (there is none)'}")
        where = f"{where} preset={preset}"
        layers.append(presets[preset])
    return from_dict(kind, reduce(_laid_over, map(nested, [*layers, values])), where)


def _laid_over(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """As `merged`, but of `steps` and `epochs`, which both tell how long a run is, the later one alone counts."""
    told = over.keys() & {"steps", "epochs"}
    kept = {key: value for key, value in values.items() if not (told and key in ("steps", "epochs"))}
    return merged(kept, over)


def load_json(path: Path) -> dict[str, Any]:
    """The values in a JSON file.

    Raises:
        ValueError: the file is missing, is not JSON, holds something else than an object, or is larger than any of
            these files.
    """
    try:
        values = json.loads(read_bounded(path, LARGEST_JSON).decode("utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path}: is not JSON that is read here ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: should hold a JSON object of keys and values, not a {type(values).__name__}")
    return values


def save_json(config: Any, path: Path) -> None:
    """Writes a configuration, atomically, so that `load_json` and `from_dict` read it back equal."""
    write_text(path, json.dumps(to_dict(config), indent=2) + "\n")


def _walk(kind: type, defaults: Any, prefix: str) -> Iterator[Key]:
    hints = get_type_hints(kind, include_extras=True)
    for item in fields(kind):
        default = _default(item) if defaults is MISSING else getattr(defaults, item.name)
        inner, entry = _nested_kind(hints[item.name]), _entry_kind(hints[item.name])
        if entry is not None:
            yield from _walk(entry, MISSING, f"{prefix}{item.name}.{NAME}.")
        elif inner is None:
            yield Key(prefix + item.name, hints[item.name], default, kind)
        else:
            yield from _walk(inner, MISSING if default is None else default, f"{prefix}{item.name}.")


def _default(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _nested_kind(hint: Any) -> type | None:
    """The dataclass that a field holds, also where it may be None."""
    options = [hint, *(option for option in get_args(hint) if get_origin(hint) in (Union, UnionType))]
    return next((option for option in options if isinstance(option, type) and is_dataclass(option)), None)


def _over_defaults(kind: type, values: Mapping[str, Any], defaults: Any = MISSING) -> dict[str, Any]:
    """Nested `values` completed with the defaults of nested configurations, so that giving one key resets no other."""
    result = dict(values)
    for item in fields(kind):
        default = _default(item) if defaults is MISSING else getattr(defaults, item.name)
        given = values.get(item.name, MISSING)
        if is_dataclass(default) and isinstance(given, Mapping) and _has_all(type(default), given):
            result[item.name] = _over_defaults(type(default), given, default)
        elif given is MISSING and defaults is not MISSING:
            result[item.name] = default
    return result


def _has_all(kind: type, values: Mapping[str, Any]) -> bool:
    """Whether a configuration has all these keys; one that has not may be another one that stands in its place."""
    return not values.keys() - {item.name for item in fields(kind)}


def _explain(kind: type, error: ValidationError) -> str:
    """What is wrong with one key, in one line: the unknown key first, since it often explains a missing one."""
    known = keys(kind)
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "unexpected_keyword_argument")
    name = _key_of(problems[0]["loc"], known)
    if problems[0]["type"] == "unexpected_keyword_argument":
        return f"unknown key {name}{nearest(name, known)}"
    reasons = [_reason(problem, name) for problem in problems if _key_of(problem["loc"], known) == name]
    return f"{name}{' or '.join(dict.fromkeys(reasons))}"


def _key_of(location: tuple[int | str, ...], known: Mapping[str, Key]) -> str:
    """The key in a location, which goes on into items of a tuple, entries of a mapping, members of a union."""
    parts = [str(part) for part in location]
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        key = find_key(name, known)
        if key is not None:
            return ".".join(parts[: end + 1]) if is_mapping(key.hint) else name
    return ".".join(parts)


def _reason(problem: Any, name: str) -> str:
    value = f"={_shown(problem['input'])}"
    if problem["type"] == "missing":
        return "= is missing" if len(problem["loc"]) == name.count(".") + 1 else f"{value} has too few values"
    if problem["type"] == "value_error":
        return f"{value}: {problem['ctx']['error']}" if name else str(problem["ctx"]["error"])
    message = problem["msg"].removeprefix("Input ")
    return f"{value} {message}" if message.startswith("should") else f"{value}: {message}"


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(str(part) for part in value)
    return value if isinstance(value, str) else json.dumps(value, default=repr)
