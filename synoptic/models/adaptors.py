"""The student of several teachers: one backbone, and for each teacher an adaptor that answers in its space.

Source: AM-RADIO, sec. 3 (Ranzinger et al. 2024, arXiv 2312.06709).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from synoptic.models.bounds import check_sizes
from synoptic.models.heads import PAPER, HeadConfig, build_head, finer
from synoptic.models.text import TextConfig, TextTower
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViT, ViTConfig
from synoptic.types import Features, present


@dataclass(frozen=True, kw_only=True)
class AdaptorConfig:
    """How the student answers for one teacher.

    Attributes:
        patches: channels of the teacher's patches.
        summary: channels of the teacher's summary; None where it has none.
        hidden: width inside the heads.
        text: the teacher's text tower, kept with the student so that words work without the teacher.
        patch_head, summary_head: what the heads are.
    """

    patches: int
    summary: int | None
    hidden: int
    text: TextConfig | None = None
    patch_head: HeadConfig = PAPER
    summary_head: HeadConfig = PAPER

    def __post_init__(self) -> None:
        check_sizes(self, "patches", "summary", "hidden")
        if self.summary_head.form == "attention" or self.summary_head.upsample > 1:
            raise ValueError("summary_head: one vector has nothing to attend to and no finer grid; that is for patches")
        if self.text is not None and self.text.embedding != self.summary:
            raise ValueError(f"text.embedding={self.text.embedding} should equal summary={self.summary}, one space")


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """A backbone whose summary tokens are one for all teachers, one for each in the order of `adaptors`, or as said.

    Attributes:
        backbone: of any number of summary tokens where `tokens` says which is whose.
        adaptors: how it answers for each teacher, by a name that is an identifier.
        tokens: the summary token that each adaptor reads, counted from 0; None is one for all, or one for each.
        summary: the summary tokens that make the student's own summary, in order; None takes all. Releases of RADIO
            leave out those of teachers that have no summary.
    """

    backbone: ViTConfig
    adaptors: Mapping[str, AdaptorConfig]
    tokens: Mapping[str, int] | None = None
    summary: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.adaptors:
            raise ValueError("adaptors={}: a student needs one at least")
        for name in self.adaptors:
            # They are keys of the weights and parts of file names, and attributes of PyTorch's dictionary of modules.
            if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
                raise ValueError(f"adaptors: none can be called {name!r}; take another name of letters, digits and _")
        count = self.backbone.summary_tokens
        if self.tokens is None and count not in (1, len(self.adaptors)):
            raise ValueError(f"{len(self.adaptors)} adaptors need one summary token or as many, not {count}")
        if self.tokens is not None and self.tokens.keys() != self.adaptors.keys():
            raise ValueError(f"tokens={dict(self.tokens)} should name one for each of {', '.join(self.adaptors)}")
        if not all(0 <= slot < count for slot in (self.tokens or {}).values()):
            raise ValueError(f"tokens={dict(self.tokens or {})}: the backbone has {count}, 0 to {count - 1}")
        if self.summary is not None and (
            not self.summary
            or len(set(self.summary)) < len(self.summary)
            or not all(0 <= slot < count for slot in self.summary)
        ):
            raise ValueError(f"summary={self.summary} should be different tokens out of 0 to {count - 1}")

    @property
    def slots(self) -> dict[str, int]:
        """The summary token that each adaptor reads."""
        if self.tokens is not None:
            return dict(self.tokens)
        shared = self.backbone.summary_tokens == 1
        return {name: 0 if shared else place for place, name in enumerate(self.adaptors)}


class Adaptor(nn.Module):
    """Two heads that carry the student's features into one teacher's space, and the teacher's words.

    Attributes:
        space: while it learns, the standard form in which its patches are compared with the teacher's, and are
            answered by the head; `invert` brings them back. None where the head answers in the teacher's own space.
        text: the teacher's frozen text tower or None.
        logit_scale: the teacher's, a buffer; meaningful with `text` alone.
        tokenizer: the teacher's or None.
    """

    def __init__(self, width: int, config: AdaptorConfig, tokenizer: Tokenizer | None):
        super().__init__()
        self.config = config
        self.patch_head = build_head(config.patch_head, width, config.hidden, config.patches)
        self.summary_head = (
            None if config.summary is None else build_head(config.summary_head, width, config.hidden, config.summary)
        )
        self.space: Any = None
        self.text = None if config.text is None else TextTower(config.text).requires_grad_(False)
        self.register_buffer("logit_scale", torch.zeros(()))
        self.tokenizer = tokenizer

    def forward(self, summary: Tensor, patches: Tensor, grid: tuple[int, int]) -> Features:
        """The teacher's features as the student sees them, from its (B, D) summary token and (B, h*w, D) patches."""
        said = self.standard(summary, patches, grid)
        return said if self.space is None else replace(said, patches=self.space.invert(said.patches))

    def standard(self, summary: Tensor, patches: Tensor, grid: tuple[int, int]) -> Features:
        """What the heads say, patches in the standard form of `space`, where there is one."""
        head = self.summary_head
        said = finer(self.patch_head(patches), grid, self.config.patch_head.upsample)
        return Features(*said, None if head is None else head(summary))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(n, L) int64 ids to (n, C) embeddings in the teacher's space, not normalised."""
        assert self.text is not None, "this adaptor has no text tower"
        return self.text(tokens)


class Student(nn.Module):
    """One forward pass that answers for all teachers.

    Args:
        config: backbone and adaptors.
        tokenizers: of those teachers that have a text tower, by name.
    """

    def __init__(self, config: StudentConfig, tokenizers: Mapping[str, Tokenizer] | None = None):
        super().__init__()
        self.config = config
        self.backbone = ViT(config.backbone)
        tokenizers = tokenizers or {}
        self.adaptors = nn.ModuleDict(
            {name: Adaptor(config.backbone.width, part, tokenizers.get(name)) for name, part in config.adaptors.items()}
        )
        self.width, self.stride, self.channels = self.backbone.width, self.backbone.stride, self.backbone.channels
        kept = config.summary
        self.summary_width = self.backbone.summary_width if kept is None else self.width * len(kept)

    def forward(
        self,
        images: Tensor,
        masks: Tensor | None = None,
        layers: Sequence[int] = (),
        adaptors: Sequence[str] | None = None,
        window: int | None = None,
    ) -> Features:
        """Features of (B, C, H, W) pictures in [0, 1]: the backbone's own, and in `adaptors` the teachers'.

        Args:
            adaptors: names of the wanted ones; None answers for all, () for none.
            window: see ViT.forward.
        Raises:
            ValueError: for an adaptor that the student does not have.
        """
        features = self.backbone(images, masks, layers, window)
        names = list(self.adaptors) if adaptors is None else list(adaptors)
        unknown = [name for name in names if name not in self.adaptors]
        if unknown:
            raise ValueError(f"no adaptor {unknown[0]!r}; this student has {', '.join(self.adaptors)}")
        answers = {name: self.adaptors[name](*self._read(name, features)) for name in names}
        return replace(self._own(features), adaptors=answers)

    def standard(self, features: Features, adaptors: Sequence[str]) -> dict[str, Features]:
        """What the heads of some adaptors make of the backbone's features, as training compares it: `Adaptor.space`."""
        found: Any = self.adaptors
        return {name: found[name].standard(*self._read(name, features)) for name in adaptors}

    def _read(self, name: str, features: Features) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """What an adaptor reads of the backbone's features: its summary token, the patches, their grid."""
        tokens = present(features.summary).unflatten(1, (-1, self.width))  # (B, T, D)
        return tokens[:, self.config.slots[name]], features.patches, features.grid

    def _own(self, features: Features) -> Features:
        """The backbone's features, with those summary tokens alone that make the student's summary."""
        kept = self.config.summary
        if kept is None or features.summary is None:
            return features
        tokens = features.summary.unflatten(1, (-1, self.width))[:, list(kept)]
        return replace(features, summary=tokens.flatten(1), layers=tuple(map(self._own, features.layers)))

    def encode_patches(self, images: Tensor, adaptor: str) -> Features:
        """Each patch of (B, C, H, W) pictures in the space of a teacher's summaries, where its words lie.

        In the last block every patch looks at itself alone, and then takes the place of the summary token in the
        adaptor. The adaptor's own patches imitate the teacher's, which lie in no space with words.

        Args:
            adaptor: one with a summary.
        Returns:
            Features, patches (B, h*w, C), not normalised.
        Source: the last block as in MaskCLIP, Zhou et al. 2022 (arXiv 2112.01071), sec. 3.2.
        """
        features, head = self.backbone.alone(images), self.adaptors[adaptor].summary_head
        assert isinstance(head, nn.Module), "this adaptor has no summary"
        return Features(head(features.patches), features.grid)
