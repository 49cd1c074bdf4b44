"""Models of `transformers` made of their configurations alone: which class, which part of it sees, and no weights yet.

Configurations come from files of others. They lose all that might name code or fetch it, and what they may ask for has
bounds; models are made on PyTorch's meta device, so that they take no memory before their weights are known to fit.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from synoptic.models.bounds import LARGEST_VOCABULARY, MOST_BLOCKS, check_sizes
from synoptic.models.vit import IMAGENET_MEAN, IMAGENET_STD

# Where the part that sees lies in a model of several.
PARTS = ("vision_model", "vision_encoder")

# What a configuration says of how its model is run, fetched or told to others, not of what it is; some names code.
_NOT_THE_MODEL = {
    *("auto_map", "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "fusion_config"),
    *("experts_implementation", "_experts_implementation", "_experts_implementation_internal", "transformers_weights"),
    *("dtype", "torch_dtype", "output_attentions", "_output_attentions", "output_hidden_states", "return_dict"),
    *("use_return_dict", "name_or_path", "_name_or_path", "id2label", "label2id", "num_labels", "problem_type"),
}


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """Everything that decides the function of a model of `transformers`, beside its weights.

    Attributes:
        architecture: its class there, such as "Dinov2Model".
        transformers: its configuration there, as in its config.json.
        image_size: side in pixels of the pictures that it is made for; they may be a little larger than its patches
            reach.
        mean, std: pixel statistics a band, of pictures in [0, 1], with which the input is normalised.
        pooler: whether its weights came with those of its pooler, where its class makes one; else its summary is its
            first token.
    """

    architecture: str
    transformers: Mapping[str, Any] = field(default_factory=dict)
    image_size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    pooler: bool = True

    def __post_init__(self) -> None:
        check_sizes(self, "image_size")
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"mean={self.mean} and std={self.std} should have a value for each band")
        if not all(deviation > 0 for deviation in self.std):
            raise ValueError(f"std={self.std} should be above 0, since pictures are divided by it")


def plain(values: Any) -> Any:
    """A configuration of transformers without what does not belong to the model, which may name code to be fetched."""
    if isinstance(values, Mapping):
        return {str(key): plain(value) for key, value in values.items() if key not in _NOT_THE_MODEL}
    return [plain(value) for value in values] if isinstance(values, list | tuple) else values


def configuration(values: Mapping[str, Any]) -> Any:
    """A configuration as transformers holds it.

    Args:
        values: those of its config.json.
    Raises:
        ValueError: transformers has none of this kind, or refuses a value; a number is beyond all networks; or the
            model is made of parts that another library brings, or that it would download.
    """
    from transformers import CONFIG_MAPPING, __version__

    kind = str(values.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"transformers {__version__} knows no model_type={kind}")
    if kind.startswith("timm") or _says(values, "use_timm_backbone") or _says(values, "use_pretrained_backbone"):
        raise ValueError(f"model_type={kind} is made of a model of another library, or of one that it would download")
    _check_bounds(values)
    try:
        return CONFIG_MAPPING[kind](**plain(values))
    except Exception as error:  # every configuration has checks of its own
        raise ValueError(f"transformers refuses its configuration ({one_line(error)})") from None


def architecture(name: str) -> Any:
    """A class of transformers.

    Raises:
        ValueError: it has no model of that name.
    """
    import transformers

    found: Any = getattr(transformers, name, None)
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    if not is_model or not isinstance(found.config_class, type):
        raise ValueError(f"transformers {transformers.__version__} has no model {name!r}")
    return found


def build(config: HubConfig) -> Any:
    """The whole model of transformers, in evaluation mode, on the meta device: it has shapes and no values.

    Raises:
        ValueError: see `configuration` and `architecture`, and where transformers cannot make it.
    """
    from transformers.initialization import no_init_weights

    values, kind = configuration(config.transformers), architecture(config.architecture)
    if not isinstance(values, kind.config_class):
        raise ValueError(f"a {config.architecture} is of another kind than model_type={values.model_type}")
    try:
        with torch.device("meta"), no_init_weights():
            return kind(values).eval()
    except Exception as error:  # whatever its code stumbles over
        raise ValueError(f"transformers cannot make a {config.architecture} of it ({one_line(error)})") from None


def parts(whole: Any, pooler: bool) -> tuple[Any, nn.Module]:
    """The part of a model of transformers that sees, and what projects its summary into the space of words.

    Args:
        whole: the model.
        pooler: see `HubConfig`.
    Raises:
        ValueError: no part of it reads pictures alone.
    """
    from transformers import MODEL_MAPPING

    sees = next((getattr(whole, name) for name in PARTS if hasattr(whole, name)), None)
    if sees is None:
        is_base = type(whole.config) in MODEL_MAPPING and type(whole) is MODEL_MAPPING[type(whole.config)]
        sees = whole if is_base else whole.base_model
    name, needed = type(sees).__name__, inspect.signature(sees.forward).parameters
    if "pixel_values" not in needed:
        raise ValueError(f"{name} reads {', '.join(list(needed)[:2])}, and no part of it pictures")
    made = getattr(sees, "pooler", None)
    learned = isinstance(made, nn.Module) and any(True for _ in made.parameters())
    if isinstance(getattr(made, "dense", None), nn.Linear) or (learned and not pooler):
        sees.pooler = None
    if hasattr(sees.config, "mask_ratio"):
        sees.config.mask_ratio = 0.0  # masked autoencoders hide patches whenever they are asked
    return sees, getattr(whole, "visual_projection", nn.Identity())


def one_line(error: Exception) -> str:
    """What an error of other code says, short enough for a line."""
    told = " ".join(str(error).split()) or type(error).__name__
    return told if len(told) <= 200 else f"{told[:200]}..."


def _says(values: Any, key: str) -> bool:
    """Whether a configuration, or one inside it, says yes to a key."""
    if not isinstance(values, Mapping):
        return False
    return bool(values.get(key)) or any(_says(value, key) for value in values.values())


def _check_bounds(values: Any, key: str = "") -> None:
    """Refuses numbers beyond all networks, of which some would be counted to before anything else goes wrong."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            _check_bounds(value, str(name))
    elif isinstance(values, list | tuple):
        for value in values:
            _check_bounds(value, key)
    elif isinstance(values, int):
        most = MOST_BLOCKS if any(part in key for part in ("layers", "depths", "blocks")) else LARGEST_VOCABULARY
        if values > most:
            raise ValueError(f"{key}={values} should be at most {most}")


def compute_buffers(sees: Any) -> None:
    """Gives a model on the meta device the tables that its class computes and files do not hold, on the host."""
    for parameter in sees.parameters():
        parameter._is_hf_initialized = True  # or else transformers would draw them
    for module in sees.modules():
        for name in module._non_persistent_buffers_set:
            setattr(module, name, torch.empty_like(getattr(module, name), device="cpu"))
        if module._non_persistent_buffers_set:
            sees._init_weights(module)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bar and the reports of transformers, which are told in one line here."""
    from transformers.utils import logging as theirs

    level, bar = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.CRITICAL)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bar:
            theirs.enable_progress_bar()
