"""CLIP: pictures and captions find each other in one space (arXiv 2103.00020)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Annotated, Any, Literal

import torch
from pydantic import Field as Bound
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from synoptic.config import AreaSpan, OptimConfig, Share, TrainConfig
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
from synoptic.methods.start import (
    LoadOptions,
    architecture,
    fingerprint,
    given_backbone,
    given_sizes,
    given_tokenizer,
    given_towers,
)
from synoptic.methods.teachers import Teacher, load_teacher
from synoptic.models import resnet
from synoptic.models.clip import (
    TEXT_OF,
    Clip,
    ClipConfig,
    Towers,
    clip_config,
    most_heads,
    picture_encoder,
    text_size,
)
from synoptic.models.resnet import ResNetConfig
from synoptic.models.text import TextConfig
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViTConfig
from synoptic.types import Batch, present

SMALLEST_VOCABULARY = 258  # all bytes, start and end
LARGEST_LOGIT_SCALE = math.log(100.0)  # CLIP sec. 2.5: logits are never scaled by more than 100
CONTEXT: dict[Towers, int] = {"clip": 77, "siglip": 64}  # as published
LOOKED_AT = 10_000  # captions whose length is looked at before the first step

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClipTrainConfig(TrainConfig):
    """Contrastive training on captioned pictures.

    Attributes:
        init: a MODEL to go on with: a CLIP or SigLIP with its words, or of any other model the picture encoder alone;
            None begins with random weights.
        load: what the file in `init` does not say itself.
        towers: "clip" has a text encoder that is read at a text's end; "siglip" one that sees whole texts, and a
            picture encoder that pools by attention; None takes those of `init`, or CLIP's.
        embedding: width of the space shared by pictures and words.
        text_width, text_depth, text_heads: of the text transformer; None takes the published one of `model`, or one in
            proportion to it.
        tokenizer: CLIP's vocabulary file, a tokenizer.json, or `hf:owner/name`; None learns one from the captions.
        vocabulary: most tokens of the byte-pair encoding learned from the captions; the bytes alone are 258 with the
            marks of start and end.
        context: most tokens of a caption, start and end among them; None takes 77, with SigLIP's towers 64.
        too_long: what becomes of captions of more tokens: they are cut, or end the run with an error.
        crop_scale: share of a picture's area that a training crop keeps, lowest and highest.
        flip: share of the crops that are mirrored, for captions that tell no left from right.
        loss: "clip" lets each picture pick its caption among those of the batch, "siglip" judges every pair by itself,
            which small batches bear better; None takes that of the towers.
        gathering: how processes share what the loss of CLIP compares: "local" compares the own pairs with all, "whole"
            all with all in each process, "detached" as well, and sends no gradients around.
        teacher: a CLIP that knows words, whose choices among the captions and pictures of a batch are learned as well;
            None learns from the captions alone.
        distillation: weight of that beside the loss of the captions.
    """

    init: str | None = None
    load: LoadOptions = field(default_factory=LoadOptions)
    towers: Towers | None = None
    embedding: PositiveInt | None = None
    text_width: PositiveInt | None = None
    text_depth: PositiveInt | None = None
    text_heads: PositiveInt | None = None
    tokenizer: str | None = None
    vocabulary: Annotated[int, Bound(ge=SMALLEST_VOCABULARY)] = 8192
    context: Annotated[int, Bound(ge=3)] | None = None
    too_long: Literal["cut", "error"] = "cut"
    crop_scale: AreaSpan = (0.9, 1.0)
    flip: Share = 0.0
    loss: Literal["clip", "siglip"] | None = None
    gathering: contrastive.Gathering = "local"
    teacher: str | None = None
    distillation: PositiveFloat = 1.0
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(weight_decay=0.2, betas=(0.9, 0.98), clip=1.0))


@dataclass(frozen=True)
class Pairs:
    """Embeddings of pictures and of their captions.

    Attributes:
        images, texts: (B, C) float32 at least.
        taught: those of a teacher, in its own space; None without one.
    """

    images: Tensor
    texts: Tensor
    taught: Pairs | None = None

    @staticmethod
    def joined(parts: Sequence[Pairs]) -> Pairs:
        """Several parts of a batch as one."""
        taught = [part.taught for part in parts if part.taught is not None]
        images, texts = (torch.cat([getattr(part, kind) for part in parts]) for kind in ("images", "texts"))
        return Pairs(images, texts, Pairs.joined(taught) if taught else None)


class ClipTask(Task):
    """Trains a Clip on one random caption of each picture.

    Args:
        config: resolved configuration.
        model: the two towers and the tokenizer.
        teacher: of another Clip; None learns from the captions alone.
    """

    def __init__(self, config: ClipTrainConfig, model: Clip, teacher: Teacher | None = None):
        super().__init__()
        assert config.size is not None and model.tokenizer is not None
        self.config = config
        self.model = model
        self.tokenizer = model.tokenizer
        self._teacher = [] if teacher is None else [teacher]  # in a list: no submodule, neither trained nor saved
        self.sizes = tuple(sorted({config.size, *(each.size for each in self._teacher)}))
        self.crop = RandomCrop(self.sizes, scale=config.crop_scale, flip=config.flip)
        if config.accumulate > 1:
            self.whole_batches, self.passes = True, 1 + config.accumulate

    @property
    def reads(self) -> int:
        return max(self.sizes)

    def facts(self) -> dict[str, str]:
        given = {} if self.config.init is None else {"init.weights": fingerprint(self.model)}
        taught = {"teacher.weights": self._teacher[0].fingerprint()} if self._teacher else {}
        bands = {} if self.model.config.image is None else facts_of_bands(self.config, self.model.config.image)
        return {**given, **taught, **bands}

    def _apply(self, *args: Any, **kwargs: Any) -> ClipTask:  # the teacher follows to the student's device
        for teacher in self._teacher:
            teacher._apply(*args, **kwargs)
        return super()._apply(*args, **kwargs)

    def prepare(self, batch: Batch, seed: int) -> Batch:
        counts = torch.tensor([len(captions) for captions in batch.captions])
        chosen = Draws(seed, present(batch.position)).integers("caption", counts)
        texts = [captions[place] for captions, place in zip(batch.captions, chosen.tolist(), strict=True)]
        tokens = self.tokenizer(texts, too_long=self.config.too_long)  # on the host, where they are packed
        return replace(self.crop(batch, seed), tokens=tokens, captions=tuple((text,) for text in texts))

    def losses(self, batch: Batch, progress: float) -> Iterator[dict[str, Tensor]]:
        if not self.whole_batches:
            yield self.terms(self.embed(batch))
            return
        yield from self.cached(batch.split(self.config.accumulate))

    def embed(self, batch: Batch) -> Pairs:
        """What the towers say of a batch, and what a teacher does."""
        return Pairs(*self.towers(batch), self.taught(batch))

    def towers(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, C) of the pictures and of their captions, float32 at least."""
        seen = self.model(self.view(batch, present(self.config.size))).summary
        found = (seen, self.model.encode_text(present(batch.tokens)))
        images, texts = (vectors.to(torch.promote_types(vectors.dtype, torch.float32)) for vectors in found)
        return images, texts

    def taught(self, batch: Batch) -> Pairs | None:
        """The same of the teacher."""
        if not self._teacher:
            return None
        (teacher,) = self._teacher
        texts = [text for texts in batch.captions for text in texts]
        return Pairs(present(teacher(self.view(batch, teacher.size)).summary), teacher.encode_text(texts))

    def view(self, batch: Batch, size: int) -> Tensor:
        """The crops of that size."""
        return batch.crops[self.sizes.index(size)]

    def terms(self, pairs: Pairs) -> dict[str, Tensor]:
        """The loss of the whole batch, over all processes, and what is told beside it."""
        scale, bias = self.model.logit_scale, self.model.logit_bias
        if self.config.loss == "siglip":
            loss = contrastive.siglip(pairs.images, pairs.texts, scale, present(bias), self.group)
        else:
            loss = contrastive.clip(pairs.images, pairs.texts, scale, self.group, self.config.gathering)
        terms = {"contrastive": loss.detach()}
        if pairs.taught:
            told = (pairs.taught.images, pairs.taught.texts, self._teacher[0].model.logit_scale)
            choices = contrastive.distillation(pairs.images, pairs.texts, scale, *told, self.group)
            loss = loss + self.config.distillation * choices
            terms["distillation"] = choices.detach()
        return {"loss": loss, **terms, "logit_scale": scale.detach().exp()}

    def cached(self, parts: Sequence[Batch]) -> Iterator[dict[str, Tensor]]:
        """The loss of a batch that is never in memory as a whole, but for its embeddings.

        These are found without gradients first, and the loss with gradients for them; then each part is embedded anew,
        and hands what its embeddings were asked for down to the weights (Gao et al. 2021, "GradCache", arXiv
        2101.06983). The gradients are those of the whole batch at once, since what the towers draw by chance is drawn
        again alike; only a ResNet's norms see the statistics of a part.
        """
        chances, embedded = [], []
        with torch.no_grad():
            for part in parts:
                chances.append(self.chance())
                embedded.append(self.embed(part))
        whole = Pairs.joined(embedded)
        images, texts = whole.images.requires_grad_(), whole.texts.requires_grad_()
        yield self.terms(whole)
        asked = [present(kind.grad).split([len(part) for part in parts]) for kind in (images, texts)]
        for part, chance, *gradients in zip(parts, chances, *asked, strict=True):
            self.repeat(chance)
            again = self.towers(part)
            handed = torch.stack([(one * g).sum() for one, g in zip(again, gradients, strict=True)]).sum()
            # Of no value itself. Every process looks for a gradient of every weight in the last part.
            unused = sum(parameter.sum() for parameter in self.scalars()) * 0.0
            yield {"loss": handed - handed.detach() + unused}

    def chance(self) -> tuple[Tensor, ...]:
        """What the next draws depend on: the state of the host's generator, and of that of the model's GPU."""
        device = self.model.logit_scale.device
        host = torch.get_rng_state()
        return (host, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (host,)

    def repeat(self, chance: tuple[Tensor, ...]) -> None:
        """Lets the next draws be those that followed `chance`: of a viewport of positions, of pictures left out."""
        torch.set_rng_state(chance[0])
        for state in chance[1:]:
            torch.cuda.set_rng_state(state, self.model.logit_scale.device)

    def scalars(self) -> Iterator[Tensor]:
        """The weights that are no tower's."""
        yield self.model.logit_scale
        if self.model.logit_bias is not None:
            yield self.model.logit_bias

    def expected_losses(self) -> dict[str, float]:
        if self.config.loss == "siglip" or self.config.init is not None:
            return {}  # it depends on how alike all pictures are to all captions at first, and on what is known already
        return {"contrastive": math.log(self.config.batch)}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        if self.config.loss == "clip":  # SigLIP's own grows beyond
            self.model.logit_scale.clamp_(0.0, LARGEST_LOGIT_SCALE)

    def shard_units(self) -> Iterator[nn.Module]:
        yield from self.model.image.blocks
        yield from self.model.text.blocks

    def frozen_units(self) -> Iterator[nn.Module]:
        for teacher in self._teacher:
            yield from teacher.blocks()

    def exported(self) -> nn.Module:
        return self.model


def resolve(config: ClipTrainConfig, samples: int) -> ClipTrainConfig:
    """Fills what is None: learning rate 5e-4 (CLIP, table 20), with SigLIP's towers 1e-3 (its sec. 4), for given ones
    1e-5; and 32 epochs."""
    given = _given(config)
    encoder = _encoder(config, given)
    by_name = config.init is None and isinstance(encoder, ViTConfig)
    size = 224 if by_name else encoder.image_size
    lr = 1e-5 if given is not None else 1e-3 if config.towers == "siglip" else 5e-4
    config = resolve_common(config, samples, lr=lr, epochs=32, size=size)
    if config.init is not None:
        config = replace(config, model=config.init)
    check_tiles("size", present(config.size), config.model, encoder.patch_size)
    if config.init is not None and encoder.channels != config.channels:
        raise ValueError(f"init={config.init}: reads {encoder.channels} bands, not channels={config.channels}")
    pictures = config.batch // (config.accumulate * config.devices)
    if isinstance(encoder, ResNetConfig) and pictures < 2:
        mend = "give a larger batch, or fewer parts or processes"
        raise ValueError(f"model={config.model}: normalises over two pictures or more, not over {pictures}; {mend}")
    if isinstance(encoder, ResNetConfig) and config.bands is not None:
        raise ValueError(f"model={config.model}: reads RGB of 8 bits; take a vit_* for pictures of other bands or bits")
    config = _as_given(config, given) if given else _sized(config, encoder)
    if config.loss == "clip" and config.batch == 1:
        raise ValueError("batch=1: pictures and captions are told apart within a batch; give 2 or more")
    return config


def _given(config: ClipTrainConfig) -> ClipConfig | None:
    """What both towers are that a training goes on with."""
    return None if config.init is None else given_sizes(config.init, config.load)


def _loss(config: ClipTrainConfig) -> str | None:
    """The loss as far as it is told, before the configuration is resolved."""
    given = _given(config)
    return config.loss or config.towers if given is None else "siglip" if given.bias else "clip"


def _encoder(config: ClipTrainConfig, given: ClipConfig | None) -> ViTConfig | ResNetConfig:
    """The architecture of the picture encoder, before anything is said of the pictures."""
    if given is not None:
        return given.encoder
    if config.init is None and config.model in resnet.NAMES:
        if config.towers == "siglip":
            raise ValueError(f"model={config.model}: SigLIP's towers pool a ViT; take a vit_*, or towers=clip")
        return resnet.resnet_config(config.model)
    if config.init is not None and config.towers == "siglip":
        raise ValueError(f"towers=siglip: init={config.init} is no SigLIP; leave towers out, or init")
    return architecture(config.model, config.init, config.load)


def _as_given(config: ClipTrainConfig, given: ClipConfig) -> ClipTrainConfig:
    """The sizes of given towers, which cannot be others."""
    text = given.text
    return replace(
        config,
        towers="clip" if text.read_at == "end" else "siglip",
        loss="siglip" if given.bias else "clip",
        embedding=text.embedding,
        text_width=text.width,
        text_depth=text.depth,
        text_heads=text.heads,
        context=text.context,
        tokenizer=None,
    )


def _sized(config: ClipTrainConfig, encoder: ViTConfig | ResNetConfig) -> ClipTrainConfig:
    """The published sizes of the text tower, or those in proportion, where the user gave none."""
    towers: Towers = config.towers or "clip"
    usual = text_size(config.model, encoder, towers)
    width = config.text_width or usual.width
    heads = config.text_heads or (usual.heads if width == usual.width else most_heads(width))
    if width % heads:
        raise ValueError(f"text_heads={heads}: does not divide text_width={width}")
    return replace(
        config,
        towers=towers,
        loss=config.loss or towers,
        embedding=config.embedding or usual.embedding,
        text_width=width,
        text_depth=config.text_depth or usual.depth,
        text_heads=heads,
        context=config.context or CONTEXT[towers],
    )


def build(config: ClipTrainConfig, source: Source) -> ClipTask:
    """The task for a resolved configuration; a tokenizer that is not given is learned from the captions of `source`."""
    if not any(source.captions):
        forms = "a captions JSON, a table of paths and captions, shards, or a folder with a captions.json"
        raise ValueError(f"data={config.data}: no captions to learn words from; give {forms}")
    model = None if config.init is None else given_towers(config.init, config.load)
    if model is None:
        model = _fresh(config, source)
    elif model.tokenizer is None:
        raise ValueError(f"init={config.init}: came without a vocabulary; name it with load.vocabulary=FILE")
    _look_at_lengths(present(model.tokenizer), source, config)
    return ClipTask(config, model.requires_grad_().train(), _teacher(config))


def _fresh(config: ClipTrainConfig, source: Source) -> Clip:
    """Towers of random weights, but for a picture encoder that may be given."""
    towers: Towers = present(config.towers)
    context = present(config.context)
    if config.tokenizer is not None:
        tokenizer = given_tokenizer(config.tokenizer, context, towers)
    else:
        captions = (text for texts in source.captions for text in texts)
        tokenizer = Tokenizer.learn(captions, config.vocabulary, context, siglip=towers == "siglip")
    size = text_size(config.model, _encoder(config, None), towers)
    text = TextConfig(
        vocabulary=tokenizer.vocabulary,
        context=tokenizer.context,
        end=tokenizer.end,
        width=present(config.text_width),
        depth=present(config.text_depth),
        heads=present(config.text_heads),
        hidden=size.hidden if config.text_width == size.width else None,
        embedding=present(config.embedding),
        **TEXT_OF[towers],
    )
    bias = config.loss == "siglip"
    if config.init is None:
        pixels = of_bands(config, source)
        image = picture_encoder(config.model, towers, present(config.size), present(config.embedding), **pixels)
        return Clip(clip_config(image, text, bias), tokenizer)
    backbone = given_backbone(config.init, config.load, mask_token=False, drop_path=0.0)  # CLIP knows none
    if not backbone.summary_width:
        raise ValueError(f"init={config.init}: has no summary of a picture, which is what words are compared with")
    model = Clip(clip_config(backbone.config, text, bias), tokenizer)
    model.image.load_state_dict(backbone.state_dict())
    return model


def _look_at_lengths(tokenizer: Tokenizer, source: Source, config: ClipTrainConfig) -> None:
    """Tells how many captions are longer than the context, or refuses them, before the first step."""
    every = max(sum(map(len, source.captions)) // LOOKED_AT, 1)
    captions = list(islice(chain.from_iterable(source.captions), 0, None, every))
    room = tokenizer.room
    long = [text for text, ids in zip(captions, tokenizer.encode(captions), strict=True) if len(ids) > room]
    if not long:
        return
    told = f"{len(long)} of {len(captions)} captions looked at have more than {room} tokens, such as {long[0][:60]!r}"
    if config.too_long == "error":
        raise ValueError(f"data={config.data}: {told}; shorten them, raise context=, or give too_long=cut")
    log.warning("%s: they lose their ends (context=%d)", told, tokenizer.context)


def _teacher(config: ClipTrainConfig) -> Teacher | None:
    if config.teacher is None:
        return None
    teacher = load_teacher(config.teacher, config.channels)
    if teacher.words() is None:
        raise ValueError(f"teacher={config.teacher}: knows no words; take a CLIP or SigLIP with its vocabulary")
    return teacher


PHOTOS: dict[str, Any] = {
    **{"model": "rn50", "size": 64, "batch": 64, "steps": 240, "crop_scale": (0.3, 1.0), "flip": 0.5},
    **{"embedding": 128, "text_width": 128, "text_depth": 1, "text_heads": 2, "vocabulary": 1000},
}
"""For some hundred captioned photographs and a CPU, from random weights: a ResNet, which learns from so few what a ViT
does not, small crops, mirrored ones too, and a small text tower. What was tried, and what it gave: docs/log.md; by hand
`synoptic train clip preset=photos data=coco_mini/captions_train.json`.
"""

# SigLIP sec. 4: small batches too, the second moment of Adam over fewer steps.
SIGLIP: dict[str, Any] = {"towers": "siglip", "optim.weight_decay": 1e-4, "optim.betas": (0.9, 0.95)}

BROUGHT = (
    *("towers", "loss", "embedding", "text_width", "text_depth", "text_heads"),
    *("tokenizer", "vocabulary", "context"),
)

METHOD = Method(
    name="clip",
    summary="learn to see with words, from captioned pictures",
    config=ClipTrainConfig,
    resolve=resolve,
    build=build,
    presets={"photos": PHOTOS, "siglip": SIGLIP},
    captions=True,
    metric="r_mean",
    unused=(
        Unused("beside a CLIP or SigLIP in init=, which brings its own", BROUGHT, lambda config: bool(_given(config))),
        Unused("with the loss of SigLIP", ("gathering",), lambda config: _loss(config) == "siglip"),
        Unused("with SigLIP's towers, whose width it is", ("embedding",), lambda config: config.towers == "siglip"),
        Unused("beside init=, which has its own architecture", ("model",), lambda config: config.init is not None),
        Unused("without init=", ("load",), lambda config: config.init is None),
        Unused("beside tokenizer=", ("vocabulary",), lambda config: config.tokenizer is not None),
        Unused("without teacher=", ("distillation",), lambda config: config.teacher is None),
    ),
)
