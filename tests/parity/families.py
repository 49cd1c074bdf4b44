"""Models of transformers of every family that is read here, tiny and full-size, and what they and ours answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from comparison import normalised
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

PATCHES: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 8}
SIZES = ((32, 32), (24, 56), (64, 16))  # the first is that of the position tables
VISION = {**PATCHES, "intermediate_size": 40, "image_size": 32}
WORDS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
END = 98


def tokens(model: PreTrainedModel, images: Tensor) -> list[Tensor]:
    """Of a ViT: all tokens after the last norm."""
    options = {"interpolate_pos_encoding": True} if isinstance(model, ViTModel) else {}
    return [model(normalised(images), **options).last_hidden_state]


def our_tokens(model: Any, images: Tensor) -> list[Tensor]:
    features = model(images)
    return [torch.cat([features.summary[:, None], features.patches], dim=1)]


def without_registers(theirs: list[Tensor], registers: int) -> list[Tensor]:
    return [torch.cat([each[:, :1], each[:, 1 + registers :]], dim=1) for each in theirs]


def maps(model: PreTrainedModel, images: Tensor) -> list[Tensor]:
    """Of a ResNet: the maps of all stages and the pooled one."""
    answer = model(normalised(images), output_hidden_states=True)
    return [*(each.flatten(2).mT for each in answer.hidden_states[1:]), answer.pooler_output.flatten(1)]


def our_maps(model: Any, images: Tensor) -> list[Tensor]:
    features = model(images, layers=range(4))
    assert torch.equal(features.patches, features.layers[-1].patches)
    return [*(layer.patches for layer in features.layers), features.summary]


def ids(end: int) -> Tensor:
    """Texts as long as the towers of SigLIP here want them, which may end in anything."""
    rows = torch.randint(2, 97, (2, 16), generator=torch.Generator().manual_seed(1))
    rows[:, -1] = end
    return rows


def both_towers(model: PreTrainedModel, images: Tensor) -> list[Tensor]:
    """Of a CLIP: embeddings of pictures and words, of length 1, and logits."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics(model))
    end = END if isinstance(model, SiglipModel) else model.config.text_config.eos_token_id
    answer = model(input_ids=ids(end), pixel_values=(images - mean) / std, interpolate_pos_encoding=True)
    return [answer.image_embeds, answer.text_embeds, answer.logits_per_image]


def statistics(model: PreTrainedModel) -> tuple[tuple[float, ...], tuple[float, ...]]:
    half = (0.5, 0.5, 0.5)
    if isinstance(model, SiglipModel):
        return half, half
    return (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def our_towers(model: Any, images: Tensor) -> list[Tensor]:
    texts = ids(END if model.config.bias else model.config.text.end)
    pictures, words = (F.normalize(each, dim=1) for each in (model(images).summary, model.encode_text(texts)))
    bias = 0.0 if model.logit_bias is None else model.logit_bias
    return [pictures, words, model.logit_scale.exp() * pictures @ words.T + bias]


@dataclass(frozen=True)
class Family:
    build: Callable[[], PreTrainedModel]
    theirs: Callable[[PreTrainedModel, Tensor], list[Tensor]]
    ours: Callable[[Any, Tensor], list[Tensor]]
    sizes: tuple[tuple[int, int], ...] = SIZES
    options: dict[str, Any] = field(default_factory=dict)  # of from_pretrained


def clip(act: str, **vision: Any) -> CLIPModel:
    text = {**WORDS, "max_position_embeddings": 20, "eos_token_id": END, "bos_token_id": 97, "pad_token_id": END}
    config = CLIPConfig(
        text_config={**text, "hidden_act": act},
        vision_config={**VISION, **vision, "hidden_act": act},
        projection_dim=20,
    )
    return CLIPModel(config)


def siglip(act: str) -> SiglipModel:
    text = {**WORDS, "hidden_size": 24, "max_position_embeddings": 16, "pad_token_id": 1, "hidden_act": act}
    return SiglipModel(SiglipConfig(text_config=text, vision_config={**VISION, "hidden_act": act}))


def registers(model: PreTrainedModel, images: Tensor) -> list[Tensor]:
    return without_registers(tokens(model, images), model.config.num_register_tokens)


VIT = {"theirs": tokens, "ours": our_tokens}
TOWERS = {"theirs": both_towers, "ours": our_towers}
NO_POOLER = {"add_pooling_layer": False}
FAMILIES = {
    "vit": Family(lambda: ViTModel(ViTConfig(**VISION), **NO_POOLER), **VIT, options=NO_POOLER),
    "vit of DINO": Family(
        lambda: ViTModel(
            ViTConfig(**VISION, layer_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh", qkv_bias=False), **NO_POOLER
        ),
        **VIT,
        options=NO_POOLER,
    ),
    "dinov2": Family(lambda: Dinov2Model(Dinov2Config(**PATCHES, image_size=32, mlp_ratio=2)), **VIT),
    "dinov2 swiglu": Family(
        lambda: Dinov2Model(Dinov2Config(**PATCHES, image_size=32, use_swiglu_ffn=True, use_mask_token=False)), **VIT
    ),
    "registers": Family(
        lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**PATCHES, image_size=32)), registers, our_tokens
    ),
    "registers swiglu": Family(
        lambda: Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**PATCHES, image_size=32, use_swiglu_ffn=True, num_register_tokens=2)
        ),
        registers,
        our_tokens,
    ),
    "resnet": Family(
        lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[32, 64, 128, 256], depths=[1, 2, 1, 2])),
        maps,
        our_maps,
        ((64, 64), (32, 96), (96, 64)),
    ),
    "clip": Family(lambda: clip("quick_gelu"), **TOWERS),
    "clip gelu": Family(lambda: clip("gelu", layer_norm_eps=1e-4), **TOWERS),
    "siglip": Family(lambda: siglip("gelu_pytorch_tanh"), **TOWERS),
}


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    """Weights, biases, norms and running statistics so far from their beginning that every part shows."""
    torch.manual_seed(0)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith("running_var") or (isinstance(model, ResNetModel) and "normalization.weight" in name):
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif tensor.is_floating_point():
            nn.init.normal_(tensor, std=0.2 if tensor.ndim < 4 else tensor[0].numel() ** -0.5)
    return model.eval()


FULL = {
    "vit": Family(
        lambda: ViTModel(
            ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, layer_norm_eps=1e-6), **NO_POOLER
        ),
        **VIT,
        sizes=((224, 224), (96, 320), (256, 160)),
        options=NO_POOLER,
    ),
    "dinov2": Family(
        lambda: Dinov2Model(Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518)),
        **VIT,
        sizes=((518, 518), (224, 224), (98, 308)),
    ),
    "registers": Family(
        lambda: Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14)
        ),
        registers,
        our_tokens,
        ((518, 518), (224, 224), (98, 308)),
    ),
    "resnet": Family(lambda: ResNetModel(ResNetConfig()), maps, our_maps, ((224, 224), (96, 320), (256, 160))),
    "clip": Family(lambda: CLIPModel(CLIPConfig()), **TOWERS, sizes=((224, 224), (96, 320), (256, 160))),
    "siglip": Family(
        lambda: SiglipModel(SiglipConfig(text_config={"max_position_embeddings": 16})),
        **TOWERS,
        sizes=((224, 224), (96, 320), (256, 160)),
    ),
}
