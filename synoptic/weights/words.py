"""The tokenizer that belongs to another maker's weights: their files hold none, folders of Hugging Face often do."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from synoptic.models.text import TextConfig
from synoptic.models.tokenizers import END, START, Tokenizer
from synoptic.weights.options import LoadOptions

MERGES = "bpe_simple_vocab_16e6.txt"  # of OpenAI, which it packs with gzip
_SIGLIP_END = "</s>"


def find_tokenizer(path: Path, text: TextConfig, options: LoadOptions) -> Tokenizer | None:
    """The tokenizer that is named by the options, or lies in a folder or beside a file; None where there is none.

    Args:
        path: the weights file, or the folder of Hugging Face.
        text: the tower that is to read its ids.
        options: may name CLIP's vocabulary file.
    Raises:
        ValueError: a file is damaged, or does not fit the tower.
    """
    place = _place(path, options)
    if place is None:
        return None
    try:
        found = _definition(place, text) if place.suffix == ".json" else Tokenizer.clip(_lines(place), text.context)
    except OSError as error:
        raise ValueError(f"{place}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # the engine raises plain Exception on a definition that it cannot read
        raise ValueError(f"{place}: is no vocabulary ({error})") from None
    if (found.vocabulary, found.end) != (text.vocabulary, text.end):
        raise ValueError(
            f"{place}: {found.vocabulary:,} tokens, of which {found.end} ends a text, do not fit a model of "
            f"{text.vocabulary:,} ended by {text.end}"
        )
    return found


def _place(path: Path, options: LoadOptions) -> Path | None:
    if options.vocabulary is not None:
        return Path(options.vocabulary).expanduser()
    folder = path if path.is_dir() else path.parent
    names = ("tokenizer.json", "merges.txt") if path.is_dir() else (f"{MERGES}.gz", MERGES)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _lines(path: Path) -> list[str]:
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8").split("\n")


def _definition(path: Path, text: TextConfig) -> Tokenizer:
    """A tokenizer of the library `tokenizers`, as Hugging Face keeps it."""
    definition = path.read_text(encoding="utf-8")
    if text.read_at == "last":
        return Tokenizer(definition, text.context, start=None, end=_SIGLIP_END, clean="siglip", full=True)
    json.loads(definition)
    return Tokenizer(definition, text.context, start=START, end=END, clean="clip")
