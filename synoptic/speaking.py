"""What models that know words do with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from synoptic.data.prompts import Labels, Templates, class_prompts
from synoptic.text_encoder import TextEncoder, encoder_of
from synoptic.types import Features
from synoptic.weights.folder import text_towers
from synoptic.zeroshot import ZeroShotHead


class Speaking:
    """The words of a `VisionModel`; a model that knows none says so when it is asked.

    Attributes:
        model: a network.
        name: told in messages.
    """

    model: Any
    name: str

    def _placed(self, images: Tensor) -> Tensor:
        """Pictures where the model computes, and as it does."""
        raise NotImplementedError

    @property
    def text_space(self) -> str | None:
        """The adaptor in whose space words lie; None where they lie in the model's own.

        Raises:
            ValueError: for a model that knows no words, or knows them in several spaces.
        """
        return self._words(None).adaptor

    def speaks(self, adaptor: str | None = None) -> bool:
        """Whether it knows words in the adaptor's space; without one, whether it does so in a single space."""
        towers = text_towers(self.model)
        return len(towers) == 1 if adaptor is None else adaptor in towers

    def zero_shot_head(
        self,
        labels: Labels | None,
        templates: Templates = ("a {}",),
        adaptor: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> ZeroShotHead:
        """A classifier made of words, for any number of embeddings: `head.ranked(torch.from_numpy(model.embed(...)))`.

        One of many prompts is kept on disk, by all that decides it, and read the next time.

        Args:
            labels: the classes in words, at least two; or class -> its prompts; or a class file, a line a class: its
                name, then its prompts with commas between them. A class without prompts takes the templates.
            templates: sentences in which `{}` stands for a label, and "a {}" for one after "a" or "an"; "7" or "80" for
                those published with CLIP; or a file with one a line. A class lies in the middle of its sentences. The
                best ones say what the captions that the model learned from say ("a photo of a {}"); "{}" takes the
                labels as they are.
            adaptor: the student's teacher whose words are used; needed where several know words.
            progress: told how many of how many prompts are done.
        Raises:
            ValueError: for a model that knows no words or came without a vocabulary, and see `class_prompts`.
        """
        words = self._words(adaptor)
        if labels is None:
            raise ValueError(f"{self.name} has no classes of its own: give labels=")
        prompts = class_prompts(labels, templates)
        classes = words.directions(list(prompts.values()), progress)
        return ZeroShotHead(tuple(prompts), classes, words.scale, words.adaptor)

    def encode_text(self, texts: Sequence[str], adaptor: str | None = None, batch_size: int = 256) -> np.ndarray:
        """One vector a text, in the space of the pictures' summary, or of the summary of the adaptor that knows words.

        Args:
            texts: any words; what does not fit the model's context is cut off, and how many were is told as a warning.
            adaptor: the student's teacher whose words are used; needed where several know words.
        Returns:
            (n, C) float32, L2-normalised.
        Raises:
            ValueError: for a model that knows no words, and for no texts.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError(f'expected a list of texts such as ["a cat"], got {texts!r}')
        return self._words(adaptor).encode(texts, batch_size).numpy()

    def logit_scale(self, adaptor: str | None = None) -> float:
        """What cosines of pictures and words are multiplied by before a softmax, as in the model's training.

        Args:
            adaptor: see `encode_text`.
        Raises:
            ValueError: for a model that knows no words.
        """
        return self._words(adaptor).scale

    @torch.no_grad()
    def similarity(self, images: Tensor, texts: Sequence[str], adaptor: str | None = None) -> Tensor:
        """How much each patch is like words, each patch taken as if it were all that the picture shows.

        Args:
            images: (B, C, H, W) float in [0, 1]; H and W are multiples of `stride`.
            texts: at least one.
            adaptor: see `encode_text`.
        Returns:
            (B, n, h, w) float32 on the CPU, cosines. They lie in a narrow range, not at 0 where nothing is alike: what
            tells is which are higher than others.
        Raises:
            ValueError: see `encode_text` and `__call__`.
        Source: MaskCLIP, Zhou et al. 2022 (arXiv 2112.01071); see `Clip.encode_patches` and `Student.encode_patches`.
        """
        words = torch.from_numpy(self.encode_text(texts, adaptor))
        features = self.encode_patches(images, adaptor)
        return (features.patches.cpu() @ words.T).transpose(1, 2).unflatten(2, features.grid)

    @torch.no_grad()
    def encode_patches(self, images: Tensor, adaptor: str | None = None) -> Features:
        """Each patch in the space of words, as if it were all that the picture shows; see `similarity`.

        Args:
            images: (B, C, H, W) float in [0, 1]; H and W are multiples of `stride`.
            adaptor: see `encode_text`.
        Returns:
            Features without summary, patches (B, h*w, C) float32, L2-normalised.
        Raises:
            ValueError: for a model that knows no words, and see `__call__`.
        """
        space = self._words(adaptor).adaptor
        features = self.model.encode_patches(self._placed(images), *(() if space is None else (space,)))
        return Features(F.normalize(features.patches.float(), dim=-1), features.grid)

    def _words(self, adaptor: str | None) -> TextEncoder:
        """The part that encodes words; of a student that of the adaptor, None standing for the only one that does."""
        return encoder_of(self.model, adaptor, self.name)
