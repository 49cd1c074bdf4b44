"""The words of a command line: `key=value` to configurations, and the page that lists the keys."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Annotated, Any, Literal, Protocol, TypeVar, Union, get_args, get_origin

from docstring_parser import parse as parse_docstring
from rich.console import Console
from rich.table import Table
from rich.text import Text

from synoptic.config import Key, find_key, from_dict, is_mapping, keys, nearest

T = TypeVar("T")

_KEY_VALUE = re.compile(r"([A-Za-z_]\w*(?:\.\w[\w' -]*)*)=(.*)", re.DOTALL)  # behind a dot also names of people's own
_NONE = re.compile(r"\bNone\b")
_NOTHING = ("none", "null")


@dataclass(frozen=True)
class Words:
    """A command line taken apart.

    Attributes:
        plain: the words without a key, in order.
        values: key -> text; of a key given twice the last text holds, but for shards (see `_one_of`).
        flags: what stands behind `--`.
    """

    plain: tuple[str, ...]
    values: Mapping[str, str]
    flags: frozenset[str]


class Verb(Protocol):
    """What comes first on the command line.

    Attributes:
        name: as it is typed.
        line: what it does, for the list of verbs.
        flags: words that may stand behind `--`.
    """

    @property
    def name(self) -> str: ...

    @property
    def line(self) -> str: ...

    @property
    def flags(self) -> Sequence[str]: ...

    def run(self, words: Words) -> None:
        """Does it. Raises ValueError for a user's mistake."""
        ...

    def help(self, words: Words) -> list[Any]:
        """Texts and tables of its page."""
        ...


@dataclass(frozen=True)
class OptionsVerb:
    """A verb whose keys are the fields of one dataclass.

    Attributes:
        function: does it; the verb has its name and its docstring's first line.
        options: the dataclass that `function` takes.
        positional: the field that words without a key fill.
    """

    function: Callable[[Any], None]
    options: type
    positional: str | None = None
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def line(self) -> str:
        return summary(self.function)

    def run(self, words: Words) -> None:
        self.function(read(self.options, words, self.name, self.positional))

    def help(self, words: Words) -> list[Any]:
        return [_usage(self), f"{summary(self.options)}.", key_table(self.options)]


def split(arguments: Sequence[str], flags: Iterable[str] = ()) -> Words:
    """Takes a command line apart.

    Args:
        arguments: words as the shell passes them.
        flags: names that may stand behind `--`, beside `help`.

    Raises:
        ValueError: a word begins with `-` and is none of the flags.
    """
    plain: list[str] = []
    values: dict[str, list[str]] = {}
    found = set()
    known = {"--help": "help", "-h": "help"} | {f"--{name}": name for name in flags}
    for word in arguments:
        pair = _KEY_VALUE.fullmatch(word)
        if word in known:
            found.add(known[word])
        elif word.startswith("-") and word != "-":
            key = word.lstrip("-").partition("=")[0].replace("-", "_")
            if meant := difflib.get_close_matches(word, known, n=1, cutoff=0.8):
                raise ValueError(f"{word}: did you mean {meant[0]}?")
            raise ValueError(f"{word}: keys are typed without dashes, as in {key or 'key'}=VALUE")
        elif pair:
            values.setdefault(pair[1], []).append(pair[2])
        else:
            plain.append(word)
    shards = len(plain) > 1 and _are_shards(plain)
    typed_once = {key: _one_of(texts) for key, texts in values.items()}
    return Words((_one_of(plain),) if shards else tuple(plain), typed_once, frozenset(found))


def _one_of(texts: Sequence[str]) -> str:
    """The text of a key: the last one given, but all shards where a shell made several words of their pattern.

    `out=x-{0..2}.tar` reaches us as `out=x-0.tar out=x-1.tar out=x-2.tar`, unless it is quoted.
    """
    if len(texts) == 1 or not _are_shards(texts):
        return texts[-1]
    from synoptic.data.shard_names import pattern_of  # here, since it is slow to import

    return pattern_of(texts)


def _are_shards(texts: Sequence[str]) -> bool:
    return all(text.endswith(".tar") for text in texts)


def typed(kind: type, values: Mapping[str, str], where: str) -> dict[str, Any]:
    """Texts as the values that a configuration class takes: nothing, sequences, or text for its own checks to convert.

    Raises:
        ValueError: a key that `kind` does not have.
    """
    known = keys(kind)
    return {name: _value(text, _hint(name, known, where)) for name, text in values.items()}


def read(kind: type[T], words: Words, where: str, positional: str | None = None) -> T:
    """The options of a verb.

    Args:
        kind: their dataclass.
        words: what was typed.
        where: told in errors.
        positional: the field that plain words fill; if it is a tuple, any number of them.

    Raises:
        ValueError: a plain word too many, a key unknown or missing, a value of the wrong type.
    """
    given: dict[str, Any] = {}
    if words.plain:
        many = positional is not None and _is_sequence(keys(kind)[positional].hint)
        if positional is None or (len(words.plain) > 1 and not many):
            extra = words.plain[0 if positional is None else 1]
            raise ValueError(f"{where}: {extra!r} is not of the form key=value{nearest(extra, keys(kind))}")
        if positional in words.values:
            raise ValueError(f"{where}: {positional} is given twice, as {words.plain[0]!r} and as {positional}=")
        given[positional] = words.plain if many else words.plain[0]
    return from_dict(kind, given | typed(kind, words.values, where), where)


def key_table(kind: type, unset: str = "none", required: Iterable[str] = ()) -> Table:
    """Every key of a configuration class with its type, its default and what its docstring says of it.

    Args:
        kind: the class.
        unset: what a default of None means, where the docstring of its key does not say.
        required: keys that must be given though they have a default.
    """
    groups: dict[str, list[Key]] = {}
    for key in keys(kind).values():
        groups.setdefault(key.name.rpartition(".")[0], []).append(key)
    table = two_columns(())
    for group, members in groups.items():
        if group:
            table.add_row()
            about = _description(kind, group) or summary(members[0].owner)
            table.add_row(Text(f"{group}.", style="bold"), Text(about, style="bold"))
        for key in members:
            kinds = _type_name(key.hint)
            if len(key.name) + len(kinds) > WIDEST - 5:  # many choices: lines may break between them
                kinds = kinds.replace("|", "| ")
                if len(key.name) + len(kinds.partition(" ")[0]) > WIDEST - 5:
                    kinds = f"\n      {kinds}"
            label = Text(f"  {key.name}", style="cyan").append(f"={kinds}", style="dim")
            table.add_row(label, _meaning(kind, key, unset, key.name in required))
    return table


def _meaning(kind: type, key: Key, unset: str, required: bool) -> Text:
    """What a key does, and what it is when it is not given."""
    about = _description(kind, key.name) or _description(key.owner, key.name.rpartition(".")[2])
    if key.default is None and _NONE.search(about):
        return Text(_NONE.sub("none", _NONE.sub("none, the default,", about, count=1)))
    if key.default is MISSING or required:
        standard = "required"
    elif key.default is None:
        standard = f"default {unset}"
    else:
        standard = f"default {show(key.default) or 'nothing'}"
    return Text(_NONE.sub("none", about)).append(f" ({standard})", style="dim")


WIDEST = 40  # columns of what is typed


def two_columns(rows: Iterable[tuple[str, str]]) -> Table:
    """What is typed, and beside it what it means."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(max_width=WIDEST)
    table.add_column()
    for typed_words, meaning in rows:
        table.add_row(Text(f"  {typed_words}", style="cyan"), Text(meaning))
    return table


def summary(thing: Any) -> str:
    """The first sentence of a docstring, without its full stop."""
    return (parse_docstring(thing.__doc__ or "").short_description or "").rstrip(".")


def show(value: Any) -> str:
    """A value as it is typed."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(show(item) for item in value)
    if isinstance(value, Mapping):
        return ",".join(f"{key}:{show(item)}" for key, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def print_help(console: Console, *parts: Any) -> None:
    """Prints texts and tables, a blank line between them."""
    for index, part in enumerate(parts):
        if index:
            console.print()
        console.print(part, markup=False, highlight=False)


def _usage(verb: OptionsVerb) -> str:
    words = []
    known = keys(verb.options)
    if verb.positional:
        word = verb.positional.upper()
        word = f"{word.removesuffix('S')} ..." if _is_sequence(known[verb.positional].hint) else word
        words.append(word if known[verb.positional].default is MISSING else f"[{word}]")
    needed = [key.name for key in known.values() if key.default is MISSING and key.name != verb.positional]
    return " ".join(["synoptic", verb.name, *words, *(f"{name}=..." for name in needed), "[key=value ...]"])


def _hint(name: str, known: Mapping[str, Key], where: str) -> Any:
    found = find_key(name, known)
    if found is not None:
        return found.hint
    parent, _, _ = name.rpartition(".")
    if parent in known and is_mapping(known[parent].hint):
        return get_args(known[parent].hint)[1]
    if any(key.startswith(f"{name}.") for key in known):
        return Any
    raise ValueError(f"{where}: unknown key {name}{nearest(name, known)}")


def _options(hint: Any) -> list[Any]:
    """The members of a union; of any other type, itself."""
    if get_origin(hint) is Annotated:
        return _options(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [inner for option in get_args(hint) for inner in _options(option)]
    return [hint]


def _is_sequence(hint: Any) -> bool:
    return any(get_origin(option) in (tuple, list, Sequence) for option in _options(hint))


def _value(text: str, hint: Any) -> Any:
    if text.lower() in _NOTHING and (type(None) in _options(hint) or hint is Any):
        return None
    only = [option for option in _options(hint) if option is not type(None)]
    if _is_sequence(hint) and ("," in text or len(only) == 1):
        return [part.strip() for part in text.split(",")] if text else []
    return text


def _type_name(hint: Any) -> str:
    names = {int: "INT", float: "NUMBER", bool: "true|false", str: "TEXT", type(None): "none"}
    parts = []
    for option in _options(hint):
        inner = get_args(option)
        if get_origin(option) is Literal:
            parts.append("|".join(show(value) for value in inner))
        elif _is_sequence(option):
            items = inner if get_origin(option) is tuple and Ellipsis not in inner else (*inner[:1], "...")
            parts.append(",".join("..." if item == "..." else _type_name(item) for item in items))
        else:
            parts.append(names.get(option, "VALUE"))
    return "|".join(parts)


def _description(kind: type, name: str) -> str:
    """What the docstring of a class, or of the nearest class it derives from, says of a key, dotted ones included."""
    for owner in kind.__mro__:
        for entry in parse_docstring(owner.__doc__ or "").params:
            if name in entry.arg_name.split(", ") and entry.description:
                return " ".join(entry.description.split()).rstrip(".")
    return ""
