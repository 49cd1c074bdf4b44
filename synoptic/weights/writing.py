"""Writing a model in the layout of its makers, of Hugging Face, or of this library, the way back of `formats`.

A layout has a way to say a model if what it would be read as is that model: what differs is told, or refused. All that
is written is read back and compared bit by bit before it is put where it was asked for, where nothing may lie yet.
"""

from __future__ import annotations

import json
import os
import shutil
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from synoptic.config import from_dict
from synoptic.files import check_file, write_atomically
from synoptic.models.adaptors import Student
from synoptic.types import Preprocess
from synoptic.weights import formats, zoo
from synoptic.weights.card import CALLED
from synoptic.weights.convert import from_ours, kept, left_out
from synoptic.weights.descriptions import CONFIG, PROCESSOR, Description
from synoptic.weights.folder import KINDS, WEIGHTS, Record, kind_of, load_folder, save_folder
from synoptic.weights.headers import processor
from synoptic.weights.layouts import FORMATS, Format, decisive
from synoptic.weights.options import LoadOptions
from synoptic.weights.reading import ARGUMENTS, State, read_whole
from synoptic.weights.words import find_tokenizer, write_tokenizer

Target = Literal["official", "huggingface", "synoptic"]
SUFFIXES = (".pth", ".pt", ".bin")  # of the makers' files

_AT_OTHER_SIZES = ("position_offset", "antialias", "interpolation", "align_corners")
_AT_BORDERS = ("refine_eps", "head_eps")


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        out: the file or folder.
        layout: what it is, as people call it.
        tensors: how many it holds; each was read back bit by bit.
        notes: what the layout leaves unsaid or says otherwise.
    """

    out: Path
    layout: str
    tensors: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Fit:
    """A model in a layout.

    Attributes:
        form: the layout.
        lost: what it has no way to say.
        apart: 0 where it reads what is written, 1 where it has no such configuration, 2 where its keys do not fit.
        notes: what it leaves unsaid or says otherwise, though the model answers the same.
        state: the model's tensors under its keys.
        headers: its JSON files by name, in a folder of Hugging Face.
        options: what has to be said to whoever reads it.
    """

    form: Format
    lost: tuple[str, ...]
    apart: int = 0
    notes: tuple[str, ...] = ()
    state: State = field(default_factory=dict)
    headers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    options: LoadOptions = field(default_factory=LoadOptions)


def convert(model: str | Path, to: Target, out: str | Path, options: LoadOptions | None = None) -> Conversion:
    """Writes a model in another layout, in float32, in which half precision is exact, whatever it was stored in.

    Args:
        model: a MODEL.
        to: "official", a state dict that the makers' code loads; "huggingface", a folder that transformers loads, with
            its preprocessor and, where the model has one, its tokenizer; or "synoptic", a weights folder.
        out: the file or folder. Nothing may lie there.
        options: what a file of other makers does not say itself.
    Returns:
        What was written, and how it differs.
    Raises:
        ValueError: there is no such model, the layout has no way to say it, or `out` is taken.
    """
    out = Path(out).expanduser().absolute()
    _check_free(out, to)
    network, preprocess, record = zoo.load(model, options)
    if to == "synoptic":
        _write_ours(out, network, preprocess, record)
        return Conversion(out, "a weights folder of synoptic", len(network.state_dict()))
    fit = _best_fit(network, preprocess, record, to)
    (_write_file if to == "official" else _write_folder)(out, network, fit)
    return Conversion(out, fit.form.name, len(fit.state), fit.notes)


def _check_free(out: Path, to: Target) -> None:
    if out.is_dir() and to != "official" and not any(out.iterdir()):
        return
    if out.exists():
        raise ValueError(f"out={out}: is there already, and nothing is overwritten; give a new name or delete it")
    if to == "official" and out.suffix not in SUFFIXES:
        raise ValueError(f"out={out}: give the name of a file that ends in {' or '.join(SUFFIXES)}")
    check_file(out)


def _best_fit(network: nn.Module, preprocess: Preprocess, record: Record, to: Target) -> _Fit:
    """The layout that says all of a model, best the one that it was read from, or else most of it.

    Raises:
        ValueError: none has a way to say it.
    """
    kind = kind_of(network)
    forms = [form for form in FORMATS if form.kind == kind and form.maker == to]
    fits = [_fit(form, network, preprocess) for form in forms if to == "official" or form.header]
    if not fits:
        adaptors = f" with the adaptors {', '.join(network.adaptors)}" if isinstance(network, Student) else ""
        what = f"{CALLED[kind]}{adaptors}"
        raise ValueError(f"to={to}: {record.name} is a {what}, of which there is no such layout; to=synoptic holds it")
    origin = record.trained.get("from")
    best = min(fits, key=lambda fit: (fit.apart, len(fit.lost), len(fit.notes), fit.form.name != origin))
    if best.lost:
        raise ValueError(f"to={to}: {best.form.name} has no way to say what {record.name} is: {'; '.join(best.lost)}")
    return best


def _fit(form: Format, network: Any, preprocess: Preprocess) -> _Fit:
    config, state = network.config, kept(network.state_dict(), form.table)
    gone = {left_out(key, form.table) for key in network.state_dict().keys() - state.keys()}
    ours = {name: value for name, value in decisive(config).items() if left_out(name, form.table) is None}
    fixed = {name: (ours[name], value) for name, value in form.always.items() if ours.get(name, value) != value}
    options = LoadOptions(**{option: ours.get(name) for option, name in form.unsaid.items()})
    apart = 2
    try:
        theirs = form.finish(from_ours(state, form.table), config)
        if lacking := form.lacking(theirs):
            raise ValueError(f"it has no {lacking[0]}")
        apart = 1
        headers = _headers(form, config, preprocess)
        told = _read_as(form, state, theirs, headers, options)
    except ValueError as error:
        return _Fit(form, _told(fixed) or (str(error),), apart)
    said = decisive(told)
    differing = fixed | {name: (value, said.get(name)) for name, value in ours.items() if said.get(name) != value}
    resampling, refining = (
        {name: differing.pop(name) for name in list(differing) if name.rpartition(".")[2] in some}
        for some in (_AT_OTHER_SIZES, _AT_BORDERS)
    )
    notes = [_lost(name) for name in sorted(filter(None, gone)) if not name.endswith(".logit_scale")]
    if refining:
        notes.append(f"boxes that touch the border are refined otherwise: {', '.join(_told(refining))}")
    if resampling:
        how, size = ", ".join(_told(resampling)), formats.seeing(config).image_size
        notes.append(f"at sizes other than {size} its positions are resampled otherwise: {how}")
    read = formats.prepared(told, _described(headers))
    if preprocess != (read if network.channels == 3 else replace(read, bands=preprocess.bands)):
        usual = vars(Preprocess(preprocess.size))
        differs = {name: value for name, value in vars(preprocess).items() if value != usual[name]}
        how = ", ".join(f"{name}={value}" for name, value in {"size": preprocess.size, **differs}.items())
        notes.append(f"it does not say how pictures are prepared: {how}")
    if form.maker == "official":
        notes += _unsaid(form, network, (state, theirs, headers), told, options)
    return _Fit(form, _told(differing), 0, tuple(notes), theirs, headers, options)


def _lost(name: str) -> str:
    """What is told of tensors that a layout has no place for."""
    if name.endswith(".text"):
        return f"it has no place for the words of {name.split('.')[1]}, which to=synoptic keeps"
    return f"it has no place for the {name}, which takes no part in answers"


def _headers(form: Format, config: Any, preprocess: Preprocess) -> dict[str, dict[str, Any]]:
    if form.header is None:
        return {}
    if form.maker == "official":  # the arguments of a training, in the file itself
        return {CONFIG: form.header(config)}
    part = formats.seeing(config)
    pictures = processor(preprocess, part.mean, part.std) | ({"do_normalize": False} if form.normalizes else {})
    return {PROCESSOR: pictures, CONFIG: form.header(config)}


def _described(headers: Mapping[str, Mapping[str, Any]]) -> Description:
    return Description(headers.get(CONFIG, {}), headers.get(PROCESSOR))


def _read_as(
    form: Format, state: State, theirs: State, headers: Mapping[str, Mapping[str, Any]], options: LoadOptions
) -> Any:
    """The configuration that a layout's reader takes a model for.

    Args:
        state, theirs: the same tensors under our keys and under theirs.
    """
    _, said = form.tidy(theirs, _described(headers).header, options)
    return from_dict(KINDS[form.kind].config, form.fields(state, said, options), form.name)


def _unsaid(
    form: Format, network: Any, written: tuple[State, State, Mapping[str, Any]], told: Any, options: LoadOptions
) -> Iterator[str]:
    """What has to be told beside a bare file.

    Args:
        written: see `_read_as`.
    """
    given = " ".join(f"load.{name}={value}" for name, value in vars(options).items() if value is not None)
    try:
        enough = _read_as(form, *written, LoadOptions()) == told
    except ValueError:
        enough = False
    if not enough:
        yield f"the file does not say {given}, without which it is not read, or wrongly"
    if getattr(network, "tokenizer", None) is not None:
        yield "the file holds no vocabulary, which load.vocabulary=FILE gives where it is read"


def _told(differing: Mapping[str, tuple[Any, Any]]) -> tuple[str, ...]:
    return tuple(f"{name}={ours}, there {theirs}" for name, (ours, theirs) in differing.items())


def _write_file(out: Path, network: nn.Module, fit: _Fit) -> None:
    def write(file: IO[bytes]) -> None:
        state: dict[str, Any] = {key: _alone(tensor) for key, tensor in fit.state.items()}
        if ARGUMENTS in fit.headers.get(CONFIG, {}):
            args = Namespace(**fit.headers[CONFIG][ARGUMENTS])
            state = {"arch": args.model, "epoch": 0, "args": args, "state_dict": state}
        torch.save(state, file)
        file.flush()
        _check(Path(file.name), Description(), network, fit)

    write_atomically(out, write)


def _write_folder(out: Path, network: Any, fit: _Fit) -> None:
    with _fresh_folder(out) as fresh:
        save_file({key: _alone(tensor) for key, tensor in fit.state.items()}, fresh / WEIGHTS, {"format": "pt"})
        for name, values in fit.headers.items():
            (fresh / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        shutil.copymode(fresh / CONFIG, fresh / WEIGHTS)  # which safetensors writes for the user alone
        if getattr(network, "tokenizer", None) is not None:
            write_tokenizer(fresh, network.tokenizer)
            find_tokenizer(fresh, network.config, LoadOptions())  # raises where it cannot be read
        file, said = formats.open_place(fresh)
        _check(file, said, network, fit)


def _write_ours(out: Path, network: nn.Module, preprocess: Preprocess, record: Record) -> None:
    with _fresh_folder(out) as fresh:
        save_folder(fresh, network, preprocess, {"name": record.name, **record.trained})
        _compare(network.state_dict(), load_folder(fresh)[0].state_dict())


@contextmanager
def _fresh_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place if all went well, and is gone otherwise."""
    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)  # left by one that was killed
    fresh.mkdir(parents=True)
    try:
        yield fresh
        for path in fresh.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if out.is_dir():
            out.rmdir()  # empty, or this fails
        fresh.rename(out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _check(file: Path, said: Description, network: nn.Module, fit: _Fit) -> None:
    """Reads what was written, as whoever loads it does, and compares."""
    parts, args = read_whole(file)
    (state,) = parts.values()
    _compare(fit.state, state)
    header = {**({ARGUMENTS: args} if args else {}), **said.header}
    found = formats.identify(parts, header, fit.options, str(file))
    assert found.format is fit.form, f"{fit.form.name} is read as {found.format.name}"
    _compare(kept(network.state_dict(), fit.form.table), kept(found.state, fit.form.table))


def _compare(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Sees to it that two sets of tensors are the same bit by bit.

    Raises:
        OSError: they are not, which no fault of a conversion is: what was written is not what is read.
    """
    assert wanted.keys() == found.keys(), "keys were lost on the way"
    for key, tensor in wanted.items():
        if tensor.dtype != found[key].dtype or not torch.equal(_bits(tensor), _bits(found[key])):
            raise OSError(f"{key} is read back with other bits than were written; is the disk sound?")


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _alone(tensor: Tensor) -> Tensor:
    """A tensor that takes no more of a file than its own numbers, one after the other."""
    tensor = tensor.detach().contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()
