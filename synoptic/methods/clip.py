"""CLIP: pictures and captions find each other in one space (arXiv 2103.00020)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from pydantic import Field as Bound
from pydantic import PositiveInt
from torch import Tensor, nn

from synoptic.config import AreaSpan, OptimConfig, TrainConfig
from synoptic.data.draws import Draws
from synoptic.data.sources import Source
from synoptic.data.transforms import RandomCrop
from synoptic.losses import contrastive
from synoptic.methods.base import (
    Method,
    Task,
    Unused,
    check_tiles,
    facts_of_bands,
    of_bands,
    resolve_common,
)
from synoptic.models.clip import CLIP_MEAN, CLIP_STD, Clip, ClipConfig
from synoptic.models.text import TextConfig
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import vit_config
from synoptic.types import Batch, present

SMALLEST_VOCABULARY = 258  # all bytes, start and end
LARGEST_LOGIT_SCALE = math.log(100.0)  # CLIP sec. 2.5: logits are never scaled by more than 100


@dataclass(frozen=True, kw_only=True)
class ClipTrainConfig(TrainConfig):
    """Contrastive training on captioned pictures.

    Attributes:
        embedding: width of the space shared by pictures and words.
        text_width, text_depth, text_heads: of the text transformer; None follows the picture encoder.
        vocabulary: most tokens of the byte-pair encoding learned from the captions; the bytes alone are 258 with the
            marks of start and end.
        context: most tokens of a caption, start and end among them.
        crop_scale: share of a picture's area that a training crop keeps, lowest and highest.
        loss: "clip" lets each picture pick its caption among those of the batch, "siglip" judges every pair by itself,
            which small batches bear better.
        gathering: how processes share what the loss of CLIP compares: "local" compares the own pairs with all, "whole"
            all with all in each process, "detached" as well, and sends no gradients around.
    """

    embedding: PositiveInt | None = None
    text_width: PositiveInt | None = None
    text_depth: PositiveInt | None = None
    text_heads: PositiveInt | None = None
    vocabulary: Annotated[int, Bound(ge=SMALLEST_VOCABULARY)] = 8192
    context: Annotated[int, Bound(ge=3)] = 32
    crop_scale: AreaSpan = (0.9, 1.0)
    loss: Literal["clip", "siglip"] = "clip"
    gathering: contrastive.Gathering = "local"
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(weight_decay=0.2, betas=(0.9, 0.98), clip=1.0))


class ClipTask(Task):
    """Trains a Clip on one random caption of each picture.

    Args:
        config: resolved configuration.
        model: the two towers and the tokenizer.
    """

    def __init__(self, config: ClipTrainConfig, model: Clip):
        super().__init__()
        assert config.size is not None and model.tokenizer is not None
        self.config = config
        self.model = model
        self.tokenizer = model.tokenizer
        self.crop = RandomCrop((config.size,), scale=config.crop_scale)
        if config.accumulate > 1:
            self.whole_batches, self.passes = True, 1 + config.accumulate

    @property
    def reads(self) -> int:
        return max(self.crop.sizes)

    def facts(self) -> dict[str, str]:
        return facts_of_bands(self.config, present(self.model.config.image))

    def prepare(self, batch: Batch, seed: int) -> Batch:
        counts = torch.tensor([len(captions) for captions in batch.captions])
        chosen = Draws(seed, present(batch.position)).integers("caption", counts)
        texts = [captions[place] for captions, place in zip(batch.captions, chosen.tolist(), strict=True)]
        return replace(self.crop(batch, seed), tokens=self.tokenizer(texts))  # on the host, where they are packed

    def losses(self, batch: Batch, progress: float) -> Iterator[dict[str, Tensor]]:
        if not self.whole_batches:
            yield self.terms(*self.embed(batch))
            return
        yield from self.cached(batch.split(self.config.accumulate))

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, C) of the pictures and of their captions, float32 at least."""
        found = (self.model(batch.crops[0]).summary, self.model.encode_text(present(batch.tokens)))
        images, texts = (vectors.to(torch.promote_types(vectors.dtype, torch.float32)) for vectors in found)
        return images, texts

    def terms(self, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
        """The loss of the whole batch, over all processes, and what is told beside it."""
        scale = self.model.logit_scale
        if self.model.logit_bias is not None:
            loss = contrastive.siglip(images, texts, scale, self.model.logit_bias, self.group)
        else:
            loss = contrastive.clip(images, texts, scale, self.group, self.config.gathering)
        return {"loss": loss, "contrastive": loss.detach(), "logit_scale": scale.detach().exp()}

    def cached(self, parts: Sequence[Batch]) -> Iterator[dict[str, Tensor]]:
        """The loss of a batch that is never in memory as a whole, but for its embeddings.

        These are found without gradients first, and the loss with gradients for them; then each part is embedded anew,
        and hands what its embeddings were asked for down to the weights (Gao et al. 2021, "GradCache", arXiv
        2101.06983). The gradients are those of the whole batch at once, since nothing in the towers is drawn by chance.
        """
        with torch.no_grad():
            found = [self.embed(part) for part in parts]
        images, texts = (torch.cat(kind).requires_grad_() for kind in zip(*found, strict=True))
        yield self.terms(images, texts)
        asked = [present(kind.grad).split([len(part) for part in parts]) for kind in (images, texts)]
        for part, *gradients in zip(parts, *asked, strict=True):
            handed = torch.stack([(one * g).sum() for one, g in zip(self.embed(part), gradients, strict=True)]).sum()
            # Of no value itself. Every process looks for a gradient of every weight in the last part.
            unused = sum(parameter.sum() for parameter in self.scalars()) * 0.0
            yield {"loss": handed - handed.detach() + unused}

    def scalars(self) -> Iterator[Tensor]:
        """The weights that are no tower's."""
        yield self.model.logit_scale
        if self.model.logit_bias is not None:
            yield self.model.logit_bias

    def expected_losses(self) -> dict[str, float]:
        if self.config.loss == "siglip":
            return {}  # it depends on how alike all pictures are to all captions at first
        return {"contrastive": math.log(self.config.batch)}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.model.logit_scale.clamp_(0.0, LARGEST_LOGIT_SCALE)

    def shard_units(self) -> Iterator[nn.Module]:
        yield from self.model.image.blocks
        yield from self.model.text.blocks

    def exported(self) -> nn.Module:
        return self.model


def resolve(config: ClipTrainConfig, samples: int) -> ClipTrainConfig:
    """Fills what is None: learning rate 5e-4 (CLIP, table 20), 32 epochs, a text tower in proportion to the ViT."""
    config = resolve_common(config, samples, lr=5e-4, epochs=32, size=224)
    check_tiles("size", present(config.size), config.model)
    image = vit_config(config.model)
    # CLIP's text towers are two thirds as wide as their ViT; 64 channels a head.
    width = config.text_width or max(round(image.width * 2 / 3 / 64), 1) * 64
    heads = config.text_heads or next(heads for heads in range(max(width // 64, 1), 0, -1) if width % heads == 0)
    if width % heads:
        raise ValueError(f"text_heads={heads}: does not divide text_width={width}")
    return replace(
        config,
        embedding=config.embedding or width,
        text_width=width,
        text_depth=config.text_depth or min(image.depth, 12),
        text_heads=heads,
    )


def build(config: ClipTrainConfig, source: Source) -> ClipTask:
    """The task for a resolved configuration, its tokenizer learned from the captions of `source`."""
    if not any(source.captions):
        raise ValueError(
            f"data={config.data}: no captions to learn words from; give a captions JSON or a folder with one"
        )
    tokenizer = Tokenizer.learn(
        (text for texts in source.captions for text in texts), config.vocabulary, config.context
    )
    text = TextConfig(
        vocabulary=tokenizer.vocabulary,
        context=config.context,
        end=tokenizer.end,
        width=present(config.text_width),
        depth=present(config.text_depth),
        heads=present(config.text_heads),
        embedding=present(config.embedding),
    )
    pixels = of_bands(config, source) or {"mean": CLIP_MEAN, "std": CLIP_STD}
    image = vit_config(config.model, image_size=config.size, **pixels)
    # CLIP changes the ViT by a norm before its blocks (sec. 2.4). A convolutional stem has norms of its own, and with
    # one more it learned less in a short run: zero-shot 0.78 against 0.88 (docs/log.md).
    image = replace(image, pre_norm=image.stem == "patch")
    return ClipTask(config, Clip(ClipConfig(image=image, text=text, bias=config.loss == "siglip"), tokenizer))


METHOD = Method(
    name="clip",
    summary="learn to see with words, from captioned pictures",
    config=ClipTrainConfig,
    resolve=resolve,
    build=build,
    presets={},
    captions=True,
    unused=(Unused("with loss=siglip", ("gathering",), lambda config: config.loss == "siglip"),),
)
