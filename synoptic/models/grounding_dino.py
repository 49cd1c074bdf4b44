"""Grounding DINO: a detector that is told in words what to look for.

A picture becomes a pyramid once, whatever is asked; words become tokens, phrase by phrase, whatever is seen. Both are
fused by the encoder; the places that fit the words best become queries, which the decoder refines into boxes.

Pictures of any sizes and prompts of any lengths make a batch without padding, so that each is answered as if it were
asked alone.

Source: Liu et al. 2023 (arXiv 2303.05499); MM-Grounding-DINO, Zhao et al. 2024 (arXiv 2401.02361), for the scaled class
head; details as in the authors' code, where the papers are silent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from synoptic.models.bert import Bert, BertConfig
from synoptic.models.bounds import MOST_BLOCKS, check_sizes
from synoptic.models.deform_attn import Path, of_queries
from synoptic.models.detector_backbones import (
    BackboneConfig,
    SimplePyramid,
    build_backbone,
    config_of,
    plain_maps,
    swin_maps,
)
from synoptic.models.grounding_layers import BoxHead, DecoderLayer, Fusion, ImageLayer, TextLayer, Words
from synoptic.models.linear import Linear
from synoptic.models.pyramid import Neck, Pyramid, sines
from synoptic.models.reference_boxes import box_sines, centres, inverse_sigmoid, proposed
from synoptic.models.swin import SwinConfig
from synoptic.models.tokenizers import BERT_END, BERT_START, Tokenizer

STOPS = (BERT_START, BERT_END, ".", "?")  # tokens that end a phrase

_RARE = -math.log(99)  # what the class head of MM-Grounding-DINO begins with: one object in a hundred places


@dataclass(frozen=True, kw_only=True)
class GroundingDinoConfig:
    """Everything that decides the function of a Grounding DINO, beside its weights and its tokenizer.

    Attributes:
        backbone: that of the pictures.
        text: that of the words.
        stops: ids of `STOPS`.
        context: most tokens of a prompt.
        width: channels D of all tokens.
        heads: of attention among tokens of pictures and among queries; that of words, and between words and pictures,
            has half of them.
        hidden: width of the feed-forward layers; those of words are half as wide, as is the space in which both meet.
        encoder_depth, decoder_depth: layers.
        levels: of the pyramid.
        encoder_points, decoder_points: that a head looks at in a level.
        queries: places that are refined into boxes; of a picture with fewer places, all of them.
        temperature: of the sines that say where a token of a picture lies.
        refine_eps: how near to 0 and 1 sides and centres of boxes may come before they are refined from layer to layer:
            1e-3 in the authors' code and in that of MM-Grounding-DINO, 1e-5 in transformers.
        head_eps: likewise, before a layer's own box is read: 1e-3, and 1e-5 in the other two.
        scaled: whether scores are divided by the square root of `width` and have a learned bias (MM-Grounding-DINO).
        shared_heads: whether all layers of the decoder have one head for boxes, and one bias.
        drop_path: share of pictures that a layer leaves unfused while training.
        norm_eps: of all norms of encoder and decoder.
    """

    backbone: BackboneConfig = field(default_factory=SwinConfig)
    text: BertConfig = field(default_factory=BertConfig)
    stops: tuple[int, ...] = (101, 102, 1012, 1029)
    context: int = 256
    width: int = 256
    heads: int = 8
    hidden: int = 2048
    encoder_depth: int = 6
    decoder_depth: int = 6
    levels: int = 4
    encoder_points: int = 4
    decoder_points: int = 4
    queries: int = 900
    temperature: float = 20.0
    refine_eps: float = 1e-3
    head_eps: float = 1e-3
    scaled: bool = False
    shared_heads: bool = True
    drop_path: float = 0.1
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_sizes(self, "width", "heads", "hidden", "encoder_points", "decoder_points", "queries", "context")
        check_sizes(self, "encoder_depth", least=0, most=MOST_BLOCKS)
        check_sizes(self, "decoder_depth", least=1, most=MOST_BLOCKS)
        maps = len(self.backbone.stages) if isinstance(self.backbone, SwinConfig) else 3
        check_sizes(self, "levels", least=maps, most=maps + 4)
        if self.heads % 2 or self.width % self.heads or self.hidden % self.heads or self.width % 32:
            raise ValueError(
                f"heads={self.heads} should be even and divide width={self.width}, a multiple of 32, and hidden"
            )
        if not (0 < self.refine_eps < 0.5 and 0 < self.head_eps < 0.5):
            raise ValueError(f"refine_eps={self.refine_eps} and head_eps={self.head_eps} should lie between 0 and 0.5")
        if not (self.norm_eps > 0 and self.temperature > 0 and 0 <= self.drop_path < 1):
            raise ValueError(
                f"norm_eps={self.norm_eps} and temperature={self.temperature} should be above 0, "
                f"drop_path={self.drop_path} from 0 to below 1"
            )


@dataclass(frozen=True)
class Found:
    """Boxes and scores of some pictures.

    Attributes:
        boxes: of each picture (q, 4) cx, cy, w, h as shares of its width and height.
        logits: of each picture (q, n), of every token of its prompt.
    """

    boxes: tuple[Tensor, ...]
    logits: tuple[Tensor, ...]


@dataclass(frozen=True)
class Grounded:
    """What a detector makes of pictures and prompts.

    Attributes:
        image: (S, D) tokens of the pictures after the encoder.
        text: (T, D) likewise, of the prompts.
        selected: the places that became queries, as the encoder alone sees them.
        layers: what the layers of the decoder found: all of them, or the last.
        states: for each of these layers (Q, D) normalised queries.
    """

    image: Tensor
    text: Tensor
    selected: Found
    layers: tuple[Found, ...]
    states: tuple[Tensor, ...]

    @property
    def last(self) -> Found:
        """The answer."""
        return self.layers[-1]


def phrases_of(ids: Sequence[int], stops: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """A prompt's ids cut into phrases, each with the stop that ends it; what no stop ends but the text's own is cut
    into single tokens (the authors' code).

    Args:
        ids: from the start to the end of a text.
        stops: ids that end a phrase.
    """
    phrases: list[tuple[int, ...]] = []
    begin, last = 0, len(ids) - 1
    for place, token in enumerate(ids):
        if token in stops and place < last:
            phrases.append(tuple(ids[begin : place + 1]))
            begin = place + 1
    return (*phrases, *((token,) for token in ids[begin:]))


class Select(nn.Module):
    """Chooses the places of a picture that fit its prompt best, and says where the objects there lie."""

    def __init__(self, config: GroundingDinoConfig):
        super().__init__()
        self.queries = config.queries
        self.enc_output = Linear(config.width, config.width)
        nn.init.xavier_uniform_(self.enc_output.weight)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.score = Score(config)
        self.box = BoxHead(config.width)

    def forward(self, words: Words, pyramid: Pyramid) -> tuple[Found, Tensor]:
        """
        Args:
            words, pyramid: after the encoder.
        Returns:
            What was found, the best first; and (Q, 4) the same boxes as logits.
        """
        image, levels = pyramid.tokens, pyramid.levels
        proposals = [proposed(shapes, image) for shapes in levels.shapes]  # logits, infinite where none lies
        never = torch.cat(proposals).isinf().any(-1, keepdim=True)
        memory = self.norm(self.enc_output(image.masked_fill(never, 0)))
        boxes, logits = [], []
        pictures = zip(memory.split(list(levels.counts)), words.split(), proposals, strict=True)
        for places, its_words, where in pictures:
            scores = self.score(places, its_words)  # (N, n)
            best = scores.amax(-1).topk(min(self.queries, len(places))).indices
            boxes.append(self.box(places[best]).to(where.dtype) + where[best])
            logits.append(scores[best])
        flat = torch.cat(boxes)
        return Found(tuple(each.sigmoid() for each in boxes), tuple(logits)), flat


class Score(nn.Module):
    """How well queries fit the tokens of a prompt, as logits."""

    def __init__(self, config: GroundingDinoConfig):
        super().__init__()
        self.scale = config.width**-0.5 if config.scaled else 1.0
        self.bias = nn.Parameter(torch.tensor(_RARE)) if config.scaled else None

    def forward(self, queries: Tensor, text: Tensor) -> Tensor:  # (q, D), (n, D) -> (q, n)
        logits = queries @ text.T
        return logits if self.bias is None else logits * self.scale + self.bias


class Decoder(nn.Module):
    """Refines boxes layer by layer; each layer looks where the one before has put them.

    The gradient of a layer's box reaches the layer before it, and no further: look forward twice (DINO, Zhang et al.
    2022, arXiv 2203.03605, sec. 3.5).
    """

    def __init__(self, config: GroundingDinoConfig):
        super().__init__()
        self.config = config
        width, eps = config.width, config.norm_eps
        self.layers = nn.ModuleList(
            DecoderLayer(width, config.heads, config.hidden, config.levels, config.decoder_points, eps)
            for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        first, second = Linear(2 * width, width), Linear(width, width)
        for head in (first, second):
            nn.init.xavier_uniform_(head.weight)
        self.ref_point_head = nn.Sequential(first, nn.ReLU(), second)
        count = 1 if config.shared_heads else config.decoder_depth
        self.boxes = nn.ModuleList(BoxHead(width) for _ in range(count))
        self.scores = nn.ModuleList(Score(config) for _ in range(count))

    def forward(
        self,
        queries: Tensor,
        references: Tensor,
        counts: Sequence[int],
        words: Words,
        pyramid: Pyramid,
        every: bool,
    ) -> tuple[tuple[Found, ...], tuple[Tensor, ...]]:
        """
        Args:
            queries: (Q, D) what they begin with.
            references: (Q, 4) boxes as shares of the pictures.
            counts: queries of each picture.
            words, pyramid: after the encoder.
            every: answers of all layers, in place of the last one's.
        """
        found, states = [], []
        ratios = of_queries(references.new_tensor(pyramid.valid_ratios), counts).repeat(1, 2)  # (Q | 1, 4)
        refined = references
        for place, layer in enumerate(self.layers):
            references = refined.detach()
            where = self.ref_point_head(box_sines(references * ratios, self.config.width // 2).to(queries.dtype))
            queries = layer(queries, where, references, counts, words, pyramid)
            if every or place + 1 == len(self.layers):
                states.append(self.norm(queries))
                found.append(self._found(place, states[-1], refined, counts, words))
            head = self.boxes[place % len(self.boxes)]
            logits = inverse_sigmoid(references, self.config.refine_eps)
            refined = (head(queries).to(logits.dtype) + logits).sigmoid()
        return tuple(found), tuple(states)

    def _found(self, place: int, states: Tensor, references: Tensor, counts: Sequence[int], words: Words) -> Found:
        head: Any = self.boxes[place % len(self.boxes)]
        score: Any = self.scores[place % len(self.scores)]
        logits = inverse_sigmoid(references, self.config.head_eps)
        boxes = (head(states).to(logits.dtype) + logits).sigmoid()
        pairs = zip(states.split(list(counts)), words.split(), strict=True)
        return Found(boxes.split(list(counts)), tuple(score(*pair) for pair in pairs))


class GroundingDino(nn.Module):
    """Pictures and prompts to boxes and scores.

    Args:
        config: its own.
        tokenizer: of its words; None of weights of others that came without.
    """

    def __init__(self, config: GroundingDinoConfig, tokenizer: Tokenizer | None = None):
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        width, eps = config.width, config.norm_eps
        self.backbone = build_backbone(config.backbone)
        if isinstance(config.backbone, SwinConfig):
            self.pyramid, widths = None, [config.backbone.widths[stage] for stage in config.backbone.stages]
        else:
            self.pyramid, widths = SimplePyramid(self.backbone.width, width), [width] * 3
        self.neck = Neck(widths, width, config.levels, config.temperature)
        self.text = Bert(config.text, width)
        half, inner = config.heads // 2, config.hidden // 2
        self.fusions = nn.ModuleList(
            Fusion(width, half, inner, config.drop_path, eps) for _ in range(config.encoder_depth)
        )
        self.text_layers = nn.ModuleList(TextLayer(width, half, inner, eps) for _ in range(config.encoder_depth))
        self.image_layers = nn.ModuleList(
            ImageLayer(width, config.heads, config.hidden, config.levels, config.encoder_points, eps)
            for _ in range(config.encoder_depth)
        )
        self.select = Select(config)
        self.queries = nn.Parameter(torch.randn(config.queries, width))
        self.decoder = Decoder(config)

    @classmethod
    def around(cls, backbone: nn.Module, tokenizer: Tokenizer | None = None, **sizes: Any) -> GroundingDino:
        """A detector that sees through a copy of an encoder which is trained already, as a student of many teachers is;
        the rest begins untrained.

        Args:
            backbone: a ViT, a Swin, a ResNet or a SAM.
            tokenizer: of its words.
            sizes: of the rest, see GroundingDinoConfig.
        Raises:
            ValueError: a detector cannot see through it.
        """
        model = cls(GroundingDinoConfig(backbone=config_of(backbone), **sizes), tokenizer)
        own = model.backbone.state_dict()
        model.backbone.load_state_dict({key: tensor for key, tensor in backbone.state_dict().items() if key in own})
        return model

    @property
    def channels(self) -> int:
        """Bands of the pictures."""
        return self.backbone.channels

    @property
    def width(self) -> int:
        """Channels of all tokens."""
        return self.config.width

    @property
    def summary_width(self) -> None:
        """It has no summary of a picture."""
        return None

    @property
    def stride(self) -> int:
        """Pixels from one token of the backbone's coarsest map to the next."""
        return self.backbone.stride

    def forward(
        self,
        images: Sequence[Tensor],
        prompts: Sequence[Sequence[int]],
        sizes: Sequence[tuple[int, int]] | None = None,
        every: bool = False,
    ) -> Grounded:
        """Finds what prompts name in pictures; see `see`, `read` and `ground`."""
        return self.ground(self.see(images, sizes), self.read(prompts), every)

    def see(self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None = None) -> Pyramid:
        """What pictures show, whatever is asked.

        Args:
            images: groups of pictures of one size each, (B, C, H, W) float in [0, 1].
            sizes: height and width of each picture where it is filled up on the right and below; what its tokens see of
                the filling is as in the authors' code. None stands for pictures as they are.
        Raises:
            ValueError: there are none, or not as many sizes.
        """
        shown = [tuple(group.shape[2:]) for group in images for _ in group]
        inside = shown if sizes is None else list(sizes)
        if not shown or len(inside) != len(shown):
            raise ValueError(
                f"{len(inside)} sizes were given for {len(shown)} pictures; give one or more, and a size each"
            )
        if self.pyramid is None:
            maps = swin_maps(self.backbone, images)
        else:
            maps = plain_maps(self.backbone, self.pyramid, images)
        step = 1 if self.pyramid is None else self.backbone.stride
        valid_ratios = [
            (height / (-(-down // step) * step), width / (-(-across // step) * step))
            for (height, width), (down, across) in zip(inside, shown, strict=True)
        ]
        return self.neck(maps, valid_ratios)

    def read(self, prompts: Sequence[Sequence[int]]) -> Words:
        """What prompts say, whatever is seen.

        Args:
            prompts: ids of each, from the start to the end of its text.
        Raises:
            ValueError: one has more tokens than the context.
        """
        for ids in prompts:
            if len(ids) > self.config.context:
                raise ValueError(f"a prompt of {len(ids)} tokens is longer than the {self.config.context} of the model")
        return self.joined([phrases_of(ids, self.config.stops) for ids in prompts])

    def joined(self, prompts: Sequence[Sequence[Sequence[int]]]) -> Words:
        """As `read`, of prompts that are cut into phrases; each phrase is read once, wherever it stands."""
        if not prompts or not all(prompts):
            raise ValueError("a prompt is empty, or there is none; give ids from the start to the end of a text")
        different = list(dict.fromkeys(tuple(phrase) for phrases in prompts for phrase in phrases))
        tokens = dict(zip(different, self.text(different), strict=True))
        packed = torch.cat([tokens[tuple(phrase)] for phrases in prompts for phrase in phrases])
        return Words(packed, tuple(tuple(map(len, phrases)) for phrases in prompts))

    def ground(self, pyramid: Pyramid, words: Words, every: bool = False) -> Grounded:
        """Finds in each picture what its prompt names.

        Args:
            pyramid: of pictures.
            words: of as many prompts.
            every: answers of all layers of the decoder, in place of the last one's; training compares them all.
        """
        pictures, prompts = len(pyramid.levels.shapes), len(words.phrases)
        if pictures != prompts:
            raise ValueError(f"{prompts} prompts were given for {pictures} pictures; give one for each")
        pyramid, words = self._encoded(pyramid, words)
        selected, logits = self.select(words, pyramid)
        counts = [len(boxes) for boxes in selected.boxes]
        queries = torch.cat([self.queries[:count] for count in counts]).to(pyramid.tokens.dtype)
        references = logits.detach().sigmoid()
        layers, states = self.decoder(queries, references, counts, words, pyramid, every)
        return Grounded(pyramid.tokens, words.tokens, selected, layers, states)

    def _encoded(self, pyramid: Pyramid, words: Words) -> tuple[Pyramid, Words]:
        """Pictures and words, each having looked at the other."""
        image, text, levels = pyramid.tokens, words.tokens, pyramid.levels
        masks = [_together(phrases, text.device) for phrases in words.phrases]
        within = torch.tensor([place for prompt in words.phrases for count in prompt for place in range(count)])
        positions = sines(within.to(text.device), self.config.width).to(text.dtype)
        references = torch.cat([centres(shapes, image) for shapes in levels.shapes])
        for fusion, text_layer, image_layer in zip(self.fusions, self.text_layers, self.image_layers, strict=True):
            image, text = fusion(image, text, levels.counts, words.counts)
            text = text_layer(text, positions, words.counts, masks)
            image = image_layer(image, pyramid.positions, references, levels)
        return replace(pyramid, tokens=image), replace(words, tokens=text)

    def look_by(self, path: Path) -> None:
        """How points are read everywhere, see `models.deform_attn`."""
        if path not in get_args(Path):
            raise ValueError(f"points can't be read by {path!r}; ways are {', '.join(get_args(Path))}")
        for layer in (*self.image_layers, *self.decoder.layers):
            attention: Any = layer.attn if isinstance(layer, ImageLayer) else layer.image_attn
            attention.path = path


def _together(phrases: Sequence[int], device: torch.device) -> Tensor:
    """(n, n), which tokens of a prompt are of one phrase."""
    counts = torch.tensor(phrases)
    phrase = torch.arange(len(phrases)).repeat_interleave(counts)
    return (phrase[:, None] == phrase).to(device)
