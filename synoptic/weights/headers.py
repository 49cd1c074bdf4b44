"""What our configurations are in the files of Hugging Face: the counterpart of `fields`, which reads them."""

from __future__ import annotations

from typing import Any

from synoptic.models.clip import ClipConfig
from synoptic.models.layers import gated_width
from synoptic.models.plain_resnet import PlainResNetConfig
from synoptic.models.resnet import EXPANSION
from synoptic.models.text import TextConfig
from synoptic.models.vit import ViTConfig
from synoptic.types import Preprocess, present

Header = dict[str, Any]

ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh"}  # ours by the names of transformers
_RESAMPLING = {"bilinear": 2, "bicubic": 3}  # as Pillow numbers them


def vit(config: ViTConfig) -> Header:
    """`config.json` of a ViTModel, which is read with `add_pooling_layer=False`: there is no pooler to write."""
    hidden = {"intermediate_size": config.hidden or 4 * config.width}
    kind = {"model_type": "vit", "architectures": ["ViTModel"], "qkv_bias": config.qkv_bias}
    return {**kind, **_vision(config), **hidden}


def dinov2(config: ViTConfig) -> Header:
    """`config.json` of a Dinov2Model.

    Raises:
        ValueError: its feed-forward layers are of a width that transformers cannot say.
    """
    kind = {"model_type": "dinov2", "architectures": ["Dinov2Model"], "use_mask_token": config.mask_token}
    return {**kind, **_dinov2(config)}


def dinov2_with_registers(config: ViTConfig) -> Header:
    """`config.json` of a Dinov2WithRegistersModel.

    Raises:
        ValueError: see `dinov2`.
    """
    kind = {"model_type": "dinov2_with_registers", "architectures": ["Dinov2WithRegistersModel"]}
    return {**kind, **_dinov2(config), "num_register_tokens": config.registers}


def plain_resnet(config: PlainResNetConfig) -> Header:
    """`config.json` of a ResNetModel."""
    return {
        "model_type": "resnet",
        "architectures": ["ResNetModel"],
        "num_channels": config.channels,
        "embedding_size": config.width,
        "hidden_sizes": [config.width * EXPANSION * 2**stage for stage in range(4)],
        "depths": list(config.blocks),
        "layer_type": "bottleneck",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }


def clip(config: ClipConfig) -> Header:
    """`config.json` of a CLIPModel."""
    image = present(config.image)
    space = {"projection_dim": config.text.embedding}
    text = {**_text(config.text), **space}
    vision = {**_vision(image), **space, "intermediate_size": image.hidden or 4 * image.width}
    return {"model_type": "clip", "architectures": ["CLIPModel"], "text_config": text, "vision_config": vision, **space}


def siglip(config: ClipConfig) -> Header:
    """`config.json` of a SiglipModel."""
    image = present(config.image)
    text = {**_text(config.text), "projection_size": config.text.embedding}
    vision = {**_vision(image), "intermediate_size": image.hidden or 4 * image.width}
    return {"model_type": "siglip", "architectures": ["SiglipModel"], "text_config": text, "vision_config": vision}


def processor(preprocess: Preprocess, mean: tuple[float, ...], std: tuple[float, ...]) -> Header:
    """`preprocessor_config.json`: CLIP's image processor can be told of crops and of whole pictures alike, that of SAM
    of pictures that keep their shape and are filled up."""
    square = {"height": preprocess.size, "width": preprocess.size}
    side = round(preprocess.size / preprocess.share)  # before the middle is cut out
    usual = {
        "do_convert_rgb": len(mean) == 3,
        "do_resize": True,
        "resample": _RESAMPLING[preprocess.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    if preprocess.mode == "pad":
        small = preprocess.size // 4  # of the masks that may be given as prompts (SAM sec. 3)
        padded = {"do_pad": True, "size": {"longest_edge": preprocess.size}, "pad_size": square}
        masks = {"mask_size": {"longest_edge": small}, "mask_pad_size": {"height": small, "width": small}}
        return {"image_processor_type": "SamImageProcessor", **usual, **padded, **masks}
    if preprocess.mode == "fit":
        size = {"shortest_edge": preprocess.size, "longest_edge": preprocess.longest}
        return {"image_processor_type": "GroundingDinoImageProcessor", **usual, "size": size, "do_pad": True}
    crop = preprocess.mode == "crop"
    return {
        "image_processor_type": "CLIPImageProcessor",
        **usual,
        "size": {"shortest_edge": side} if crop else {"height": side, "width": side},
        "do_center_crop": crop or side > preprocess.size,
        "crop_size": square,
    }


def _vision(config: ViTConfig) -> Header:
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "hidden_act": ACTIVATIONS.get(config.activation, config.activation),
        "layer_norm_eps": config.norm_eps,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.channels,
    }


def _dinov2(config: ViTConfig) -> Header:
    """What both of their DINOv2 say; the width of feed-forward layers is a whole multiple of the model's there."""
    hidden = config.hidden or 4 * config.width
    gated = config.feed_forward == "swiglu"
    fitting = (ratio for ratio in range(1, hidden // config.width + 2) if _same(ratio * config.width, hidden, gated))
    ratio = next(fitting, None)
    if ratio is None:
        raise ValueError(f"hidden={hidden} is no multiple of width={config.width}, as its mlp_ratio has it")
    return {**_vision(config), "mlp_ratio": ratio, "use_swiglu_ffn": gated, "qkv_bias": config.qkv_bias}


def _same(first: int, second: int, gated: bool) -> bool:
    """Whether feed-forward layers of two widths are the same layers; gated ones are rounded."""
    return (gated_width(first) == gated_width(second)) if gated else first == second


def _text(config: TextConfig) -> Header:
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.hidden or 4 * config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.context,
        "bos_token_id": None,  # the tokenizer's business; the default is an id that small vocabularies do not have
        "eos_token_id": config.end,
        "pad_token_id": config.end,
        "hidden_act": ACTIVATIONS.get(config.activation, config.activation),
        "layer_norm_eps": config.norm_eps,
    }
