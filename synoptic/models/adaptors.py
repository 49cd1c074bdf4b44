"""The student of several teachers: one backbone, and for each teacher an adaptor that answers in its space.

Source: AM-RADIO, sec. 3 (Ranzinger et al. 2024, arXiv 2312.06709).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from synoptic.models.bounds import check_sizes
from synoptic.models.heads import MlpHead
from synoptic.models.text import TextConfig, TextTower
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViT, ViTConfig
from synoptic.types import Features


@dataclass(frozen=True, kw_only=True)
class AdaptorConfig:
    """How the student answers for one teacher.

    Attributes:
        patches: channels of the teacher's patches.
        summary: channels of the teacher's summary; None where it has none.
        hidden: width inside the heads.
        text: the teacher's text tower, kept with the student so that words work without the teacher.
    """

    patches: int
    summary: int | None
    hidden: int
    text: TextConfig | None = None

    def __post_init__(self) -> None:
        check_sizes(self, "patches", "summary", "hidden")
        if self.text is not None and self.text.embedding != self.summary:
            raise ValueError(f"text.embedding={self.text.embedding} should equal summary={self.summary}, one space")


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """A backbone whose summary tokens are one for all teachers, or one for each in the order of `adaptors`.

    The names of adaptors are identifiers.
    """

    backbone: ViTConfig
    adaptors: Mapping[str, AdaptorConfig]

    def __post_init__(self) -> None:
        if not self.adaptors:
            raise ValueError("adaptors={}: a student needs one at least")
        for name in self.adaptors:
            # They are keys of the weights and parts of file names, and attributes of PyTorch's dictionary of modules.
            if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
                raise ValueError(f"adaptors: none can be called {name!r}; take another name of letters, digits and _")
        if self.backbone.summary_tokens not in (1, len(self.adaptors)):
            raise ValueError(
                f"{len(self.adaptors)} adaptors need one summary token or as many, not {self.backbone.summary_tokens}"
            )


class Adaptor(nn.Module):
    """Two heads that carry the student's features into one teacher's space, and the teacher's words.

    Attributes:
        text: the teacher's frozen text tower or None.
        logit_scale: the teacher's, a buffer; meaningful with `text` alone.
        tokenizer: the teacher's or None.
    """

    def __init__(self, width: int, config: AdaptorConfig, tokenizer: Tokenizer | None):
        super().__init__()
        self.config = config
        self.patch_head = MlpHead(width, config.hidden, config.patches)
        self.summary_head = None if config.summary is None else MlpHead(width, config.hidden, config.summary)
        self.text = None if config.text is None else TextTower(config.text).requires_grad_(False)
        self.register_buffer("logit_scale", torch.zeros(()))
        self.tokenizer = tokenizer

    def forward(self, summary: Tensor, patches: Tensor, grid: tuple[int, int]) -> Features:
        """The teacher's features as the student sees them, from its (B, D) summary token and (B, h*w, D) patches."""
        head = self.summary_head
        return Features(self.patch_head(patches), grid, None if head is None else head(summary))

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
        self.summary_width = self.backbone.summary_width

    def forward(
        self,
        images: Tensor,
        masks: Tensor | None = None,
        layers: Sequence[int] = (),
        adaptors: Sequence[str] | None = None,
    ) -> Features:
        """Features of (B, C, H, W) pictures in [0, 1]: the backbone's own, and in `adaptors` the teachers'.

        Args:
            adaptors: names of the wanted ones; None answers for all, () for none.
        Raises:
            ValueError: for an adaptor that the student does not have.
        """
        features = self.backbone(images, masks, layers)
        names = list(self.adaptors) if adaptors is None else list(adaptors)
        unknown = [name for name in names if name not in self.adaptors]
        if unknown:
            raise ValueError(f"no adaptor {unknown[0]!r}; this student has {', '.join(self.adaptors)}")
        tokens = features.summary.unflatten(1, (-1, self.width)).expand(-1, len(self.adaptors), -1)  # (B, T, D)
        slots = {name: slot for slot, name in enumerate(self.adaptors)}
        answers = {name: self.adaptors[name](tokens[:, slots[name]], features.patches, features.grid) for name in names}
        return replace(features, adaptors=answers)

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
        assert isinstance(head, MlpHead), "this adaptor has no summary"
        return Features(head(features.patches), features.grid)
