"""What the JSON files of a folder of Hugging Face say of its model.

Where they are silent, they mean what the classes of transformers take by themselves, and so they are completed from
these. transformers is imported only then: most files say all that decides.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synoptic.config import load_json
from synoptic.models import hub_build
from synoptic.weights.processors import statistics
from synoptic.weights.radio import is_packaged

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"  # of pictures alone
PROCESSORS = "processor_config.json"  # of pictures and words: all that transformers 5 writes of a CLIP

Values = Mapping[str, Any]

log = logging.getLogger(__name__)

# What no shape of a weight tells, in the parts of the configurations that layouts of ours read, "" for the whole.
_UNTOLD = ("num_attention_heads", "hidden_act", "layer_norm_eps")
_OF_TEXT = ("eos_token_id", "pad_token_id")
_REGISTERS = "num_register_tokens"
_ALSO_UNTOLD = (*_OF_TEXT, "window_size", "global_attn_indexes", _REGISTERS)
_TOWERS = {"text_config": (*_UNTOLD, *_OF_TEXT), "vision_config": _UNTOLD}
_SECTIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    **{kind: {"": _UNTOLD} for kind in ("vit", "dinov2", "sam_vision_model", "radio")},
    "dinov2_with_registers": {"": (*_UNTOLD, _REGISTERS)},  # told by shapes, but for a file that lost them
    **{"clip": _TOWERS, "siglip": _TOWERS, "sam": {"vision_config": _UNTOLD, "mask_decoder_config": _UNTOLD}},
}
_OVERRIDING = ("text_config_dict", "vision_config_dict")  # older names, whose values win in transformers

# What decides how pictures are prepared, and what processors that cut nothing say of it.
_PREPARED = ("image_mean", "image_std", "size", "resample")
_CUT = ("do_center_crop", "crop_size")
_WHOLE = ("ViT", "Siglip", "Sam")
_ELSE = ("crop_pct", "rescale_factor", "rescale_offset", "do_resize", "do_rescale", "do_normalize")


@dataclass(frozen=True)
class Description:
    """What is known of weights beside their tensors; nothing, of a file.

    Attributes:
        config: the values of config.json.
        processor: what pictures go through; None where nothing tells it.
    """

    config: Values = field(default_factory=dict)
    processor: Values | None = None

    @property
    def header(self) -> dict[str, Any]:
        """The configuration, with the mean and deviation (`image_mean`, `image_std`) of pictures in [0, 1].

        Raises:
            ValueError: the processor says what makes no sense.
        """
        if self.processor is None:
            return dict(self.config)
        mean, std = statistics(self.processor)
        return {**self.config, "image_mean": list(mean), "image_std": list(std)}


def describe(folder: Path) -> Description:
    """What a folder of Hugging Face says, completed.

    Raises:
        ValueError: a file is damaged, or transformers refuses the configuration that it is asked to complete.
    """
    try:
        config = _completed(load_json(folder / CONFIG))
        return Description(config, read_processor(folder, str(config.get("model_type"))))
    except ValueError as error:
        raise error if str(folder) in str(error) else ValueError(f"{folder}: {error}") from None


def read_processor(folder: Path, model_type: str) -> dict[str, Any] | None:
    """What the pictures of a folder go through; None where it does not say.

    Args:
        folder: of Hugging Face.
        model_type: of its model, which tells what processor is meant where none is named.
    Raises:
        ValueError: a file is damaged.
    """
    both = load_json(folder / PROCESSORS) if (folder / PROCESSORS).is_file() else {}
    inside = both.get("image_processor")
    if isinstance(inside, Mapping):  # what transformers reads first
        return _whole(inside, model_type)
    return _whole(load_json(folder / PROCESSOR), model_type) if (folder / PROCESSOR).is_file() else None


def tell_without_processor(folder: Path, mean: Sequence[float]) -> None:
    """Warns that nothing says how pictures are normalised, and what mean is taken."""
    told = ", ".join(f"{each:.3f}" for each in mean)
    log.warning("%s: has no %s; its pictures are normalised about the mean %s", folder, PROCESSOR, told)


def _completed(values: Values) -> Values:
    """A configuration with what transformers takes where it says nothing, and no shape does."""
    if is_packaged(values):  # which says what it means in words of its makers
        return values
    sections = _SECTIONS.get(str(values.get("model_type")), {})
    if any(values.get(key) for key in _OVERRIDING):
        return dict(hub_build.configuration(values).to_dict())
    if all(key in _section(values, name) for name, keys in sections.items() for key in keys):
        return values
    usual = hub_build.configuration(values).to_dict()
    whole = dict(values)
    for name in sections:
        taken = {key: value for key, value in _section(usual, name).items() if key in (*_UNTOLD, *_ALSO_UNTOLD)}
        part = {**taken, **_section(values, name)}
        whole = {**whole, **(part if name == "" else {name: part})}
    return whole


def _section(values: Values, name: str) -> Values:
    part = values if name == "" else values.get(name)
    return part if isinstance(part, Mapping) else {}


def _whole(processor: Values, model_type: str) -> dict[str, Any]:
    """A processor with what its class in transformers takes where it says nothing."""
    told = str(processor.get("image_processor_type") or processor.get("feature_extractor_type") or "")
    needed = _PREPARED if told.startswith(_WHOLE) else (*_PREPARED, *_CUT)
    if told and all(key in processor for key in needed):
        return dict(processor)
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    usual_name = (IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or {}).get("pil") or ""
    name = re.sub(r"(FeatureExtractor|ImageProcessor)(Fast|Pil)?$", "ImageProcessorPil", told) or usual_name
    known = getattr(transformers, name, None)
    usual = {key: getattr(known, key, None) for key in (*_PREPARED, *_CUT, *_ELSE)}
    completed = {key: value for key, value in usual.items() if value is not None}
    return {**completed, **({} if told else {"image_processor_type": name.removesuffix("Pil")}), **processor}
