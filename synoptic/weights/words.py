"""The tokenizer that belongs to another maker's weights: their files hold none, folders of Hugging Face often do, and
are written with one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synoptic.files import read_bounded
from synoptic.models.clip import ClipConfig, Towers
from synoptic.models.grounding_dino import STOPS, GroundingDinoConfig
from synoptic.models.text import TextConfig
from synoptic.models.tokenizers import BERT_END, BERT_PAD, BERT_START, BERT_UNKNOWN, END, START, Tokenizer
from synoptic.weights.options import LoadOptions

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

MERGES = "bpe_simple_vocab_16e6.txt"  # of OpenAI, which it packs with gzip
LARGEST = 16_000_000  # bytes of an unpacked vocabulary; that of CLIP has 3.2 million
LARGEST_TOKENIZER = 1 << 26  # bytes of a tokenizer.json; those of a quarter of a million tokens have 35 million
VOCABULARY = "vocab.txt"  # of BERT
_HUB_PREFIX = "hf:"
_SIGLIP_END = "</s>"
_HUB_FILE = "tokenizer.json"
_HUB_CONFIG = "tokenizer_config.json"


def find_tokenizer(path: Path, config: Any, options: LoadOptions) -> Tokenizer | None:
    """The tokenizer that is named by the options, or lies in a folder or beside a file; None where there is none.

    Args:
        path: the weights file, or the folder of Hugging Face.
        config: of the model that is to read its ids; one that reads nothing has none.
        options: may name the file of a vocabulary.
    Raises:
        ValueError: a file is damaged, or does not fit the model.
    """
    if isinstance(config, GroundingDinoConfig):
        return _word_pieces(path, config, options)
    return _byte_pairs(path, config.text, options) if isinstance(config, ClipConfig) else None


def _byte_pairs(path: Path, text: TextConfig, options: LoadOptions) -> Tokenizer | None:
    """That of CLIP or SigLIP."""
    place = _place(path, options)
    if place is None:
        return None
    found = read_tokenizer(place, text.context, "siglip" if text.read_at == "last" else "clip")
    if (found.vocabulary, found.end) != (text.vocabulary, text.end):
        raise ValueError(
            f"{place}: {found.vocabulary:,} tokens, of which {found.end} ends a text, do not fit a model of "
            f"{text.vocabulary:,} ended by {text.end}"
        )
    return found


def read_tokenizer(place: Path, context: int, towers: Towers) -> Tokenizer:
    """A tokenizer from a file.

    Args:
        place: CLIP's vocabulary, as OpenAI packs it or as `merges.txt`; or a `tokenizer.json`, that of a weights folder
            of this library, or of Hugging Face.
        context: most tokens of a text.
        towers: those of SigLIP read rows that end, and are filled, with its own token.
    Raises:
        ValueError: the file cannot be read, or is none of these.
    """
    try:
        if place.suffix == ".json":
            return _definition(read_bounded(place, LARGEST_TOKENIZER).decode("utf-8"), context, towers)
        if towers == "siglip":
            raise ValueError("SigLIP's towers read a tokenizer.json")
        return Tokenizer.clip(_lines(place), context)
    except OSError as error:
        raise ValueError(f"{place}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # the engine raises plain Exception on a definition that it cannot read
        raise ValueError(f"{place}: is no vocabulary ({error})") from None


def _word_pieces(path: Path, config: GroundingDinoConfig, options: LoadOptions) -> Tokenizer | None:
    """That of BERT: a `vocab.txt`, a `tokenizer.json`, or that of `hf:owner/name`."""
    place = _pieces_place(path, options)
    if place is None:
        return None
    try:
        if place.suffix == ".json":
            content = read_bounded(place, LARGEST_TOKENIZER).decode("utf-8")
            ours = "tokenizer" in json.loads(content)
            found = Tokenizer.from_json(content) if ours else _of_bert(content, config.context)
        else:
            found = Tokenizer.bert(read_bounded(place, LARGEST).decode("utf-8").split("\n"), config.context)
    except OSError as error:
        raise ValueError(f"{place}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # the engine raises plain Exception on a definition that it cannot read
        raise ValueError(f"{place}: is no vocabulary of BERT ({error})") from None
    stops = tuple(found.id_of(each) for each in STOPS)
    if found.vocabulary != config.text.vocabulary or stops != config.stops:
        told = f"{found.vocabulary:,} pieces with {', '.join(STOPS)} at {', '.join(map(str, stops))}"
        wanted = f"{config.text.vocabulary:,} with these at {', '.join(map(str, config.stops))}"
        raise ValueError(f"{place}: {told} do not fit a detector that reads {wanted}")
    return found


def _of_bert(definition: str, context: int) -> Tokenizer:
    return Tokenizer(definition, context, start=BERT_START, end=BERT_END)


def _pieces_place(path: Path, options: LoadOptions) -> Path | None:
    if options.vocabulary is not None and options.vocabulary.startswith(_HUB_PREFIX):
        return fetch_tokenizer(options.vocabulary.removeprefix(_HUB_PREFIX))
    if options.vocabulary is not None:
        return Path(options.vocabulary).expanduser()
    folder = path if path.is_dir() else path.parent
    names = (_HUB_FILE, VOCABULARY) if path.is_dir() else (VOCABULARY,)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def fetch_tokenizer(repository: str) -> Path:
    """The `tokenizer.json` of a model on the Hub, from the cache on this machine where it lies there.

    Args:
        repository: as `owner/name`.
    Raises:
        ValueError: it cannot be had, naming what to do without a network.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, _HUB_FILE))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        mend = f"download its {_HUB_FILE} elsewhere, and give the file in place of hf:{repository}"
        raise ValueError(f"hf:{repository}: no {_HUB_FILE} can be had ({reason}); {mend}") from None


def write_tokenizer(folder: Path, words: Tokenizer) -> None:
    """Writes a tokenizer as transformers reads it, which gives a text the same ids, start and end among them.

    What is cleaned here before a text is cut, is done there by the tokenizer itself, but for two steps that it has no
    way to do: what ftfy repairs (broken encodings, curled quotes), and HTML's names (`&amp;`).
    """
    from tokenizers import Tokenizer as Engine
    from tokenizers.processors import TemplateProcessing

    said = json.loads(words.to_json())
    engine = Engine.from_str(json.dumps(said["tokenizer"]))
    _clean_inside(engine, said["clean"])
    start, end = said["start"], said["end"]
    marks = [(token, engine.token_to_id(token)) for token in (start, end) if token is not None]
    engine.post_processor = TemplateProcessing(
        single=[*([] if start is None else [start]), "$A", end], special_tokens=list(dict(marks).items())
    )
    (folder / _HUB_FILE).write_text(engine.to_str(), encoding="utf-8")
    pad, unknown = (end if words.id_of(each) is None else each for each in (BERT_PAD, BERT_UNKNOWN))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": words.context,
        **({} if start is None else {"bos_token": start}),
        **{"eos_token": end, "pad_token": pad, "unk_token": unknown},
        "clean_up_tokenization_spaces": False,
    }
    (folder / _HUB_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _clean_inside(engine: Engine, clean: str) -> None:
    """Puts what is done to a text first before what the tokenizer does to it, unless it does so already."""
    from tokenizers import Regex
    from tokenizers import Tokenizer as Engine
    from tokenizers.models import BPE
    from tokenizers.normalizers import NFC, Lowercase, Replace, Sequence, Strip

    spaces, punctuation = Regex(r"\s+"), Regex(r"[!-/:-@\[-`{-~]")
    steps: dict[str, list[Any]] = {
        "none": [],
        "clip": [NFC(), Replace(spaces, " "), Lowercase()],
        "siglip": [Replace(punctuation, ""), Lowercase(), Replace(spaces, " "), Strip()],
    }
    first = Engine(BPE())
    first.normalizer = Sequence(steps[clean])
    wanted, there = (json.loads(each.to_str())["normalizer"] or {} for each in (first, engine))
    if there.get("normalizers", [])[: len(steps[clean])] != wanted["normalizers"]:
        engine.normalizer = Sequence([*steps[clean], *([engine.normalizer] if there else [])])


def _place(path: Path, options: LoadOptions) -> Path | None:
    if options.vocabulary is not None:
        return Path(options.vocabulary).expanduser()
    folder = path if path.is_dir() else path.parent
    names = (_HUB_FILE, "merges.txt") if path.is_dir() else (f"{MERGES}.gz", MERGES)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _lines(path: Path) -> list[str]:
    if path.suffix != ".gz":
        return read_bounded(path, LARGEST).decode("utf-8").split("\n")
    with gzip.open(path) as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"it unpacks to more than {LARGEST:,} bytes")
    return content.decode("utf-8").split("\n")


def _definition(content: str, context: int, towers: Towers) -> Tokenizer:
    """A tokenizer of the library `tokenizers`, as this library or Hugging Face keeps it."""
    if "tokenizer" in json.loads(content):
        return Tokenizer.from_json(content, context)
    if towers == "siglip":
        end = _SIGLIP_END if json.dumps(_SIGLIP_END) in content else END  # words learned here end as CLIP's do
        return Tokenizer(content, context, start=None, end=end, clean="siglip", full=True)
    return Tokenizer(content, context, start=START, end=END, clean="clip")
