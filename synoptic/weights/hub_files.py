"""The files that make a model of Hugging Face's Hub, fetched into the Hub's own cache.

`HF_HOME` says where that lies, `HF_HUB_OFFLINE=1` that nothing is to be asked.
"""

from __future__ import annotations

import logging
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synoptic.config import load_json
from synoptic.files import read_bounded
from synoptic.weights.checksums import SUMS, read_sums
from synoptic.weights.descriptions import PROCESSOR, PROCESSORS
from synoptic.weights.folder import CARD, CONFIG, FORMAT, WEIGHTS
from synoptic.weights.formats import FILES
from synoptic.weights.reading import INDEX, shards_of

log = logging.getLogger(__name__)

PREFIX = "hf:"
TOKENIZER, MERGES, PIECES = "tokenizer.json", "merges.txt", "vocab.txt"
_LARGEST_CARD = 1 << 20  # bytes of a card that are read
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_LICENCE = re.compile(r"^license:[ \t]*[\"']?([\w.+-]+)", re.MULTILINE)


def is_spec(model: str | Path) -> bool:
    """Whether a MODEL names a model on the Hub."""
    return isinstance(model, str) and model.startswith(PREFIX)


def fetch_folder(spec: str) -> Path:
    """The folder of a model, its files fetched where they are not here yet, all of one commit.

    Of several kinds of weights the safest is taken: safetensors before PyTorch's, one file before several.

    Args:
        spec: `hf:owner/name`, or `hf:owner/name@revision`, a branch, tag or commit.
    Raises:
        ValueError: there is no such model, it has no weights that are known here, or it cannot be had, telling what to
            do then.
    """
    name, _, revision = spec.removeprefix(PREFIX).partition("@")
    if not _NAME.fullmatch(name) or ".." in revision:
        raise ValueError(f"{spec}: is not of the form {PREFIX}owner/name or {PREFIX}owner/name@revision")
    config = _Repository(name, revision or "main").need(CONFIG)
    model = _Repository(name, config.parent.name)  # the commit's folder
    header = load_json(config)
    if header.get("format") == FORMAT:
        _fetch_ours(model, header)
    else:
        _fetch_theirs(model, header)
    return config.parent


def is_here(repository: str) -> bool:
    """Whether a model's configuration and weights are in the Hub's cache."""
    model = _Repository(repository, "main")
    return model.has(CONFIG) and any(map(model.has, FILES))


def licence_of(folder: Path) -> str | None:
    """The licence that the card of a folder from the Hub tells between its first two lines of dashes, if any."""
    try:
        parts = read_bounded(folder / CARD, _LARGEST_CARD).decode("utf-8").split("---", 2)
    except (OSError, ValueError):
        return None
    found = _LICENCE.search(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    return found[1] if found else None


@dataclass(frozen=True)
class _Repository:
    """A model on the Hub, at a revision."""

    name: str
    revision: str

    def known(self, file: str) -> bool | None:
        """Whether the cache has a file; None where it does not know whether there is one."""
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(self.name, file, revision=self.revision)
        except HFValidationError:
            return None
        return None if found is None else isinstance(found, str)

    def has(self, file: str) -> bool:
        """Whether the cache has a file."""
        return self.known(file) is True

    def get(self, file: str) -> Path | None:
        """A file; None where there is none on the Hub.

        Raises:
            ValueError: it cannot be had.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        if self.known(file) is False:
            return None
        try:
            return Path(hf_hub_download(self.name, file, revision=self.revision))
        except Exception as error:  # the libraries below it raise what they like
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                return None
            told = textwrap.shorten(str(error), 200, placeholder=" ...") or type(error).__name__
        raise ValueError(
            f"{PREFIX}{self.name}: {file} cannot be fetched ({told}); fetch the model's {CONFIG}, weights and "
            "tokenizer elsewhere into one folder, and give that folder as MODEL"
        ) from None

    def need(self, file: str) -> Path:
        """A file without which there is no model."""
        path = self.get(file)
        if path is None:
            raise ValueError(f"{PREFIX}{self.name}: has no {file}, so it is no model that is known here")
        return path


def _fetch_ours(model: _Repository, header: Mapping[str, Any]) -> None:
    if header.get("checksums") is None:  # a folder of before there were any
        model.need(WEIGHTS)
        model.get(TOKENIZER)
        return
    for name in read_sums(model.need(SUMS).parent):
        model.need(name)


def _fetch_theirs(model: _Repository, header: Mapping[str, Any]) -> None:
    # What is here needs no network, though something better may lie on the Hub.
    weights = next((name for name in FILES if model.has(name)), None) or next(filter(model.get, FILES), None)
    if weights is None:
        raise ValueError(f"{PREFIX}{model.name}: has none of {', '.join(FILES)}, so it is no model that is known here")
    if weights.endswith(INDEX):
        for shard in shards_of(model.need(weights)):
            model.need(shard)
    if model.get(PROCESSOR) is None:  # one of them decides how pictures are normalised, so it has to be known
        model.get(PROCESSORS)
    try:
        model.get(CARD)
    except ValueError as error:
        log.info("%s; so its licence is not known", error)
    try:
        if "text_config" in header and model.get(TOKENIZER) is None:
            model.get(PIECES if header["text_config"].get("model_type") == "bert" else MERGES)
    except ValueError as error:  # pictures need none
        log.warning("%s%s knows no words without its tokenizer: %s", PREFIX, model.name, error)
