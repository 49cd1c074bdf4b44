"""Using a model: pictures of any kind in, features, embeddings and labels out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synoptic.config import from_dict
from synoptic.data.inputs import Picture, Pictures, at_once, is_single, read_batches
from synoptic.data.prompts import Labels, Templates, class_names
from synoptic.detection.detections import Detections
from synoptic.detection.detector import Detector, Grounding
from synoptic.detection.finder import DetectOptions, Finder, Texts, each_text
from synoptic.models.adaptors import Student
from synoptic.models.classifier import Classifier
from synoptic.models.grounding_dino import GroundingDino
from synoptic.models.hub import HubBackbone
from synoptic.models.linear import quicken
from synoptic.models.vit import ViT
from synoptic.segmenter import Numbers, Segmenter, open_segmenter
from synoptic.speaking import Speaking
from synoptic.types import Features, Preprocess, Segments
from synoptic.weights import zoo
from synoptic.weights.folder import save_folder
from synoptic.weights.options import LoadOptions
from synoptic.zeroshot import ranked


def load(model: str | Path, device: str | torch.device = "auto", **options: Any) -> VisionModel:
    """A model ready for use. On a CPU it keeps the weights of linear layers a second time, as they are read quickest.

    Weights in a folder of Hugging Face stay mapped while the model lives: a file may be replaced or deleted then, but
    not written into.

    Args:
        model: a name that `list_models` tells (built-in architectures have random weights, released models are fetched
            at their first use), a run folder, a weights folder of this library or of Hugging Face, a weights file of
            DINO, DINOv2, CLIP, SigLIP or SAM, or `hf:owner/name` or `hf:owner/name@revision` on the Hub.
        device: where it computes; "auto" takes a GPU where there is one.
        options: what a file of other makers does not say itself, as in `heads=3, part="student"`; see `LoadOptions`.
    Raises:
        ValueError: there is no such model, its files are not whole, or an option does not fit it.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    network, preprocess, record = zoo.load(model, from_dict(LoadOptions, options, f"load {model}"))
    quicken(network)
    return VisionModel(network, preprocess, record.name, record.trained).to(device)


class VisionModel(Speaking):
    """A network together with what its pictures go through before it and what its answers mean.

    Nothing here computes gradients, though answers may be used in computations that do.

    Args:
        model: a network of `synoptic.models`; put into evaluation mode.
        preprocess: what pictures go through. Those of a network of other than three bands are read at full depth,
            whether it says so or not.
        name: told in messages and kept in files.
        trained: facts about its training, kept in files.
    """

    def __init__(self, model: nn.Module, preprocess: Preprocess, name: str, trained: Mapping[str, Any] | None = None):
        self.model: Any = model.eval()
        full_depth = preprocess.bands is not None or self.channels != 3
        self.preprocess = replace(preprocess, bands=self.channels if full_depth else None)
        self.name = name
        self.trained = dict(trained or {})

    @property
    def width(self) -> int:
        """Channels of a patch."""
        return self.model.width

    @property
    def stride(self) -> int:
        """Pixels from one patch to the next."""
        return self.model.stride

    @property
    def step(self) -> int:
        """Pixels of which the sides of its pictures are multiples: those of its patches, or of windows of them."""
        vit = self._vit
        return self.stride * ((vit.config.window if vit else None) or 1)

    @property
    def channels(self) -> int:
        """Bands of the pictures it reads."""
        return self.model.channels

    @property
    def any_size(self) -> bool:
        """Whether it takes pictures of other sizes than its own."""
        return not isinstance(self.model, HubBackbone) or self.model.layout.any_size

    @property
    def adaptors(self) -> tuple[str, ...]:
        """Names of the teachers in whose spaces it answers too."""
        return tuple(self.model.adaptors) if isinstance(self.model, Student) else ()

    @property
    def classes(self) -> int:
        """How many classes it was itself trained to tell apart; 0 where it has no linear classifier."""
        return self.model.config.classes if isinstance(self.model, Classifier) else 0

    @property
    def depth(self) -> int:
        """How many blocks, or stages, can be asked for as `layers`; 0 where none can."""
        vit = self._vit
        return getattr(self.model, "depth", 0) if vit is None else len(vit.blocks)

    @property
    def attends(self) -> bool:
        """Whether it has a summary token, and so can tell what that looks at."""
        vit = self._vit
        return vit is not None and vit.config.summary_tokens > 0

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What its weights are, and what it computes in."""
        return next(self.model.parameters()).dtype

    def to(self, device: str | torch.device) -> VisionModel:
        """Moves the model; returns itself."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        layers: Sequence[int] = (),
        adaptors: Sequence[str] | None = None,
        window: int | None = None,
    ) -> Features:
        """Features of pictures as they are, without cropping or resizing.

        Args:
            images: (B, C, H, W) float in [0, 1] (of full depth: scaled as `data.bands` does); H and W are multiples of
                `stride`. Normalisation is inside.
            layers: blocks whose features are wanted too, counted from 0 or, if negative, from the end.
            adaptors: teachers in whose spaces answers are wanted; None answers for all, () for none.
            window: side in patches of the windows in which most blocks of a ViT or a student attend, which costs less
                for large pictures; 0 for none. None takes what the model says.
        Returns:
            Features on the model's device.
        Raises:
            ValueError: for other shapes or types, layers, adaptors or windows that do not exist.
        """
        images = self._placed(images)
        if self.is_detector:
            raise ValueError(f"{self.name} is a detector, and answers with boxes: take detect()")
        if isinstance(self.model, Student):
            return self.model(images, layers=layers, adaptors=adaptors, window=window)
        if adaptors:
            raise ValueError(f"no adaptor {adaptors[0]!r}: {self.name} answers in its own space alone")
        if isinstance(self.model, ViT):
            return self.model(images, layers=layers, window=window)
        if window:
            raise ValueError(f"window={window}: {self.name} is no ViT or student, and attends in no windows")
        return self.model(images, layers=layers)

    def encode_image(self, images: Tensor, layers: Sequence[int] = ()) -> Features:
        """Features of (B, C, H, W) float pictures in [0, 1], as by calling the model."""
        return self(images, layers)

    @torch.no_grad()
    def attention(self, images: Tensor, layer: int = -1, adaptor: str | None = None) -> Tensor:
        """What the summary token looks at in one block, of the patches alone: registers and summaries are left out.

        Args:
            images: (B, C, H, W) float in [0, 1]; H and W are multiples of `stride`.
            layer: block, counted from 0 or, if negative, from the end.
            adaptor: of a student with a summary token a teacher, the teacher whose token is asked; None takes the mean
                of all tokens.
        Returns:
            (B, heads, h, w) float32 at least, the share of each patch; every map sums to 1.
        Raises:
            ValueError: for a model without summary token, other shapes, a layer or an adaptor that does not exist.
        """
        vit = self._vit
        if vit is None or not self.attends:
            raise ValueError(f"{self.name} has no attention to show: it is no Vision Transformer with a summary token")
        if adaptor is not None and adaptor not in self.adaptors:
            raise ValueError(f"{self.name} has no adaptor {adaptor!r}; it has {', '.join(self.adaptors) or 'none'}")
        summaries = vit.config.summary_tokens
        weights = vit.attention(self._placed(images), layer)  # (B, heads, T, T + R + h*w)
        patches = weights[..., summaries + vit.config.registers :]
        shares = patches / patches.sum(-1, keepdim=True).clamp_min(torch.finfo(patches.dtype).tiny)
        if adaptor is not None and summaries > 1:
            shares = shares[:, :, [self.model.config.slots[adaptor]]]
        return shares.mean(2).unflatten(-1, (-1, images.shape[-1] // self.stride))

    def features(
        self,
        inputs: Pictures,
        batch_size: int = 64,
        adaptors: Sequence[str] | None = None,
        window: int | None = None,
    ) -> Features:
        """Features of pictures of any kind and size, cropped and resized as the model was trained to see them.

        Args:
            inputs: a file, folder (any depth), glob or `.txt` list; a Pillow picture; an array (H, W, C) or tensor
                (C, H, W), uint8 or float in [0, 1], or a stack of them; or a list of such things. A model of full
                depth takes values of any type and range, scaled as in the files that it was trained on.
            batch_size: how many of 224 pixels the network sees together; of larger ones fewer.
            adaptors, window: as by calling the model.
        Returns:
            Features of all pictures, in order, on the CPU.
        Raises:
            ValueError: for something that is no picture, naming the file; and as by calling the model.
        """
        batches = read_batches(inputs, self.preprocess, at_once(self.preprocess.size, batch_size))
        return Features.joined([self(batch.images, adaptors=adaptors, window=window).cpu() for batch in batches])

    def embed(self, inputs: Pictures, adaptor: str | None = None, batch_size: int = 64) -> np.ndarray:
        """One vector a picture, whose dot products are cosine similarities.

        Args:
            inputs: see `features`.
            adaptor: a teacher in whose space the vectors are to lie; None takes the model's own summary.
            batch_size: see `features`.
        Returns:
            (N, C) float32, L2-normalised.
        Raises:
            ValueError: for something that is no picture, and where the model has no summary.
        """
        vectors = []
        for batch in read_batches(inputs, self.preprocess, at_once(self.preprocess.size, batch_size)):
            answer = _answer(self(batch.images, adaptors=() if adaptor is None else (adaptor,)), adaptor)
            if answer.summary is None:
                space = "" if adaptor is None else f" in the space of {adaptor}"
                raise ValueError(f"{self.name} has no summary{space}, only patches: take features()")
            vectors.append(_unit(answer.summary))
        return np.concatenate(vectors)

    def classify(
        self,
        inputs: Pictures,
        labels: Labels | None = None,
        templates: Templates = ("a {}",),
        adaptor: str | None = None,
        batch_size: int = 64,
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Which of some labels fits a picture, by words alone (CLIP sec. 3.1, arXiv 2103.00020), or by the linear
        classifier that the model has.

        Args:
            inputs: see `features`.
            labels, templates, adaptor: see `zero_shot_head`; with a linear classifier, see `own_classes`.
        Returns:
            [{"label", "score"}, ...] with the highest score first; scores sum to one. For a single picture one such
            list, for a folder, glob, stack or list of pictures one a picture.
        Raises:
            ValueError: see `embed`, `zero_shot_head` and `own_classes`.
        """
        if self.classes and adaptor is None:
            answers = self.own_classes(inputs, labels, batch_size=batch_size)
        else:
            head = self.zero_shot_head(labels, templates, adaptor)
            answers = head.ranked(torch.from_numpy(self.embed(inputs, head.adaptor, batch_size)))
        return answers[0] if is_single(inputs) else answers

    @torch.no_grad()
    def own_classes(
        self, inputs: Pictures, labels: Labels | None = None, k: int | None = None, batch_size: int = 64
    ) -> list[list[dict[str, Any]]]:
        """Which of the classes that its linear classifier was trained on fits a picture.

        Args:
            inputs: see `features`.
            labels: names of all classes, in the classifier's order, or a file with a line a class; None numbers them.
            k: only so many; None takes all.
        Returns:
            For each picture [{"label", "score"}, ...] with the highest score first; of all classes they sum to one.
        Raises:
            ValueError: for a model without a linear classifier, and for more or fewer names than classes.
        """
        if not self.classes:
            raise ValueError(f"{self.name} has no classes of its own: give labels, or load it with a linear_head")
        names, answers = class_names(labels, self.classes), []
        for batch in read_batches(inputs, self.preprocess, batch_size):
            answers += ranked(self.model.classify(self._placed(batch.images)).float().softmax(1), names, k)
        return answers

    def segmenter(self, image: Picture) -> Segmenter:
        """One picture that will be asked for many masks; the network looks at it once, at the first question.

        Args:
            image: a file, a Pillow picture, an array (H, W, C) or a tensor (C, H, W); see `features`.
        Raises:
            ValueError: for no picture or several, and for a model that is no SAM, or one without its decoder.
        """
        return open_segmenter(self.model, image, self.preprocess.bands, self._placed, self.name)

    def segment(
        self,
        image: Picture,
        points: Numbers | None = None,
        boxes: Numbers | None = None,
        labels: Numbers | None = None,
        alternatives: bool = False,
    ) -> Segments:
        """What points and boxes mean in one picture, cut out.

        Args:
            image: see `segmenter`, which answers many questions about one picture.
            points, boxes, labels, alternatives: see `Segmenter.segment`.
        Returns:
            Masks (n, H, W) bool at the picture's own size and scores (n,), one of each an object.
        Raises:
            ValueError: see `segmenter` and `Segmenter.segment`.
        """
        return self.segmenter(image).segment(points, boxes, labels, alternatives)

    def detect(
        self, inputs: Pictures, text: Texts, batch_size: int = 1, **options: Any
    ) -> Detections | list[Detections]:
        """What words name in pictures of any kind and size.

        Args:
            inputs: see `features`.
            text: classes as "a cat. a dog." or as a list of names; or a list of such lists, one for each picture. With
                `phrases=True` a sentence, or a list with one for each picture.
            batch_size: how many pictures the network sees together.
            options: see `DetectOptions`.
        Returns:
            Of a single picture its detections, of a folder, glob, stack or list of pictures those of each.
        Raises:
            ValueError: for a model that is no detector or came without a vocabulary, for something that is no picture,
                for texts that name nothing or too much, and options that make no sense.
        """
        wanted = from_dict(DetectOptions, options, "detect")
        found = list(self.finder(wanted).find(inputs, each_text(text, wanted.phrases), batch_size))
        return found[0] if is_single(inputs) else found

    def finder(self, options: DetectOptions) -> Finder:
        """Looks for objects in one picture after the other; raises as `detect` does."""
        return Finder(self._detector, self.preprocess, options)

    def objects(
        self, paths: Sequence[Path], names: Sequence[str], limit: int, names_per_prompt: int | None = None
    ) -> Iterator[Detections | None]:
        """The surest objects of each picture, of any score; None where a file is no picture."""
        finder = self.finder(DetectOptions(threshold=0.0, limit=limit, names_per_prompt=names_per_prompt))
        there = [path for path in paths if path.is_file()]
        found = finder.find(there, [list(names)], on_error=lambda path, reason: None) if there else iter(())
        following = next(found, None)
        for path in paths:
            answer = following if following is not None and following.path == str(path) else None
            if answer is not None:
                following = next(found, None)
            yield answer

    @torch.no_grad()
    def ground(self, images: Tensor | Sequence[Tensor], texts: Sequence[str]) -> Grounding:
        """A detector's raw answer to pictures as they are, without resizing.

        Args:
            images: (B, C, H, W) float in [0, 1], or a list of pictures (C, H, W) of any sizes.
            texts: one for each, such as "a cat. a dog.".
        Returns:
            Boxes and logits on the model's device, float32.
        Raises:
            ValueError: as `detect`, and for another number of texts.
        """
        return self._detector.grounding(images, texts)

    @property
    def is_detector(self) -> bool:
        """Whether it answers with boxes, see `detect`, and with no features."""
        return isinstance(self.model, GroundingDino)

    @cached_property
    def _detector(self) -> Detector:
        """The part that finds what words name; it keeps the words that it has read."""
        if not isinstance(self.model, GroundingDino):
            raise ValueError(f"{self.name} finds no objects: take a Grounding DINO, its authors' file or a folder")
        return Detector(self.model, self.name)

    def save(self, folder: str | Path) -> None:
        """Writes a weights folder that `load` reads; one that lies there already is replaced.

        Raises:
            ValueError: `folder` holds files of another sort.
        """
        save_folder(folder, self.model, self.preprocess, {"name": self.name, **self.trained})

    def _placed(self, images: Tensor) -> Tensor:
        if not images.is_floating_point():
            raise ValueError(f"expected pictures as floats in [0, 1], got {images.dtype}; divide bytes by 255")
        return images.to(self.device, self.dtype)

    @property
    def _vit(self) -> ViT | None:
        """The Vision Transformer that reads its pictures."""
        inside = (self.model, *(getattr(self.model, name, None) for name in ("backbone", "image")))
        return next((part for part in inside if isinstance(part, ViT)), None)


def _unit(vectors: Tensor) -> np.ndarray:
    return F.normalize(vectors.float(), dim=-1).cpu().numpy()


def _answer(features: Features, adaptor: str | None) -> Features:
    return features if adaptor is None else features.adaptors[adaptor]
