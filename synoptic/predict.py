"""Using a model: pictures of any kind in, features, embeddings and labels out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from synoptic.config import from_dict
from synoptic.data.listing import list_images
from synoptic.data.pictures import PictureError, read_picture
from synoptic.data.transforms import fit
from synoptic.data.words import sentence
from synoptic.models.adaptors import Student
from synoptic.types import Features, Preprocess
from synoptic.weights import zoo
from synoptic.weights.folder import save_folder, text_towers
from synoptic.weights.options import LoadOptions

Picture = str | Path | Image.Image | np.ndarray | Tensor
Pictures = Picture | Sequence[Picture]

_READERS = 2  # threads; decoding runs beside the network, and more would only compete with it


def load(model: str | Path, device: str | torch.device = "auto", **options: Any) -> VisionModel:
    """A model ready for use.

    Args:
        model: a name that `list_models` tells (random weights), a run folder, a weights folder of this library or of
            Hugging Face, or a weights file of DINO or DINOv2.
        device: where it computes; "auto" takes a GPU where there is one.
        options: what a file of other makers does not say itself, as in `heads=3, part="student"`; see `LoadOptions`.
    Raises:
        ValueError: there is no such model, its files are not whole, or an option does not fit it.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    network, preprocess, record = zoo.load(model, from_dict(LoadOptions, options, f"load {model}"))
    return VisionModel(network, preprocess, record.name, record.trained).to(device)


class VisionModel:
    """A network together with what its pictures go through before it and what its answers mean.

    Nothing here computes gradients, though answers may be used in computations that do.

    Args:
        model: a network of `synoptic.models`; put into evaluation mode.
        preprocess: what pictures go through.
        name: told in messages and kept in files.
        trained: facts about its training, kept in files.
    """

    def __init__(self, model: nn.Module, preprocess: Preprocess, name: str, trained: Mapping[str, Any] | None = None):
        self.model: Any = model.eval()
        self.preprocess = preprocess
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
    def channels(self) -> int:
        """Bands of the pictures it reads."""
        return self.model.channels

    @property
    def adaptors(self) -> tuple[str, ...]:
        """Names of the teachers in whose spaces it answers too."""
        return tuple(self.model.adaptors) if isinstance(self.model, Student) else ()

    @property
    def text_space(self) -> str | None:
        """The adaptor in whose space words lie; None where they lie in the model's own.

        Raises:
            ValueError: for a model that knows no words, or knows them in several spaces.
        """
        return self._text_tower(None)[0]

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
    def __call__(self, images: Tensor, layers: Sequence[int] = (), adaptors: Sequence[str] | None = None) -> Features:
        """Features of pictures as they are, without cropping or resizing.

        Args:
            images: (B, C, H, W) float in [0, 1]; H and W are multiples of `stride`. Normalisation is inside.
            layers: blocks whose features are wanted too, counted from 0 or, if negative, from the end.
            adaptors: teachers in whose spaces answers are wanted; None answers for all, () for none.
        Returns:
            Features on the model's device.
        Raises:
            ValueError: for other shapes or types, layers or adaptors that do not exist.
        """
        if not images.is_floating_point():
            raise ValueError(f"expected pictures as floats in [0, 1], got {images.dtype}; divide bytes by 255")
        images = images.to(self.device, self.dtype)
        if isinstance(self.model, Student):
            return self.model(images, layers=layers, adaptors=adaptors)
        if adaptors:
            raise ValueError(f"no adaptor {adaptors[0]!r}: {self.name} answers in its own space alone")
        return self.model(images, layers=layers)

    def encode_image(self, images: Tensor) -> Features:
        """Features of (B, C, H, W) float pictures in [0, 1], as by calling the model."""
        return self(images)

    def features(self, inputs: Pictures, batch_size: int = 64) -> Features:
        """Features of pictures of any kind and size, cropped and resized as the model was trained to see them.

        Args:
            inputs: a file, folder (any depth), glob or `.txt` list; a Pillow picture; an array (H, W, C) or tensor
                (C, H, W), uint8 or float in [0, 1], or a stack of them; or a list of such things.
        Returns:
            Features of all pictures, in order, on the CPU.
        Raises:
            ValueError: for something that is no picture, naming the file.
        """
        batches = read_batches(inputs, self.preprocess, batch_size, self.channels)
        return _joined([_on_cpu(self(batch.images)) for batch in batches])

    def embed(self, inputs: Pictures, adaptor: str | None = None, batch_size: int = 64) -> np.ndarray:
        """One vector a picture, whose dot products are cosine similarities.

        Args:
            inputs: see `features`.
            adaptor: a teacher in whose space the vectors are to lie; None takes the model's own summary.
        Returns:
            (N, C) float32, L2-normalised.
        Raises:
            ValueError: for something that is no picture, and where the model has no summary.
        """
        vectors = []
        for batch in read_batches(inputs, self.preprocess, batch_size, self.channels):
            answer = _answer(self(batch.images, adaptors=() if adaptor is None else (adaptor,)), adaptor)
            if answer.summary is None:
                raise ValueError(
                    f"{self.name} has no summary{'' if adaptor is None else f' in the space of {adaptor}'}"
                )
            vectors.append(_unit(answer.summary))
        return np.concatenate(vectors)

    def classify(
        self,
        inputs: Pictures,
        labels: Sequence[str],
        templates: Sequence[str] = ("a {}",),
        adaptor: str | None = None,
        batch_size: int = 64,
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Which of some labels fits a picture, by words alone (CLIP sec. 3.1, arXiv 2103.00020).

        Args:
            inputs: see `features`.
            labels: the classes in words.
            templates: sentences in which `{}` stands for a label, and "a {}" for one after "a" or "an"; a class lies
                in the middle of its sentences. The best ones say what the captions that the model learned from say
                ("a photo of a {}"); "{}" takes the labels as they are.
            adaptor: the student's teacher whose words are used; needed where several know words.
        Returns:
            [{"label", "score"}, ...] with the highest score first; scores sum to one. For a single picture one such
            list, for a folder, glob, stack or list of pictures one a picture.
        Raises:
            ValueError: see `embed`; and for a model that knows no words, no labels, or a template without `{}`.
        """
        _check_words(labels, templates)
        space, tower = self._text_tower(adaptor)
        sentences = [sentence(template, label) for label in labels for template in templates]
        words = self.encode_text(sentences, adaptor).reshape(len(labels), len(templates), -1)  # (n, t, C)
        classes = F.normalize(torch.from_numpy(words).mean(1), dim=1)
        pictures = torch.from_numpy(self.embed(inputs, space, batch_size))
        scores = (tower.logit_scale.detach().cpu().float().exp() * pictures @ classes.T).softmax(1)  # (N, n)
        ranked = [_ranked(row, labels) for row in scores.tolist()]
        return ranked[0] if _is_single(inputs) else ranked

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], adaptor: str | None = None, batch_size: int = 256) -> np.ndarray:
        """One vector a text, in the space of the pictures' summary, or of the summary of the adaptor that knows words.

        Args:
            texts: any words; what does not fit the model's context is cut off.
            adaptor: the student's teacher whose words are used; needed where several know words.
        Returns:
            (n, C) float32, L2-normalised.
        Raises:
            ValueError: for a model that knows no words, and for no texts.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError(f'expected a list of texts such as ["a cat"], got {texts!r}')
        _, tower = self._text_tower(adaptor)
        chunks = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
        return np.concatenate([_unit(tower.encode_text(tower.tokenizer(chunk).to(self.device))) for chunk in chunks])

    def save(self, folder: str | Path) -> None:
        """Writes a weights folder that `load` reads; one that lies there already is replaced.

        Raises:
            ValueError: `folder` holds files of another sort.
        """
        save_folder(folder, self.model, self.preprocess, {"name": self.name, **self.trained})

    def _text_tower(self, adaptor: str | None) -> tuple[str | None, Any]:
        """The adaptor that knows words (None for the model itself), and the part that encodes them."""
        towers = text_towers(self.model)
        if not towers:
            raise ValueError(f"{self.name} knows no words: take a CLIP, or a student of a CLIP")
        if adaptor is None and len(towers) == 1:
            adaptor = next(iter(towers))
        if adaptor not in towers:
            wrong = "knows words in several spaces" if adaptor is None else f"knows no words as {adaptor!r}"
            names = ", ".join(filter(None, towers))
            raise ValueError(f"{self.name} {wrong}; {f'choose adaptor= from {names}' if names else 'take no adaptor='}")
        return adaptor or None, towers[adaptor]


@dataclass(frozen=True)
class ReadBatch:
    """Some pictures, ready for a model.

    Attributes:
        inputs: the paths, or whatever the pictures were given as.
        images: (B, C, S, S) float32 in [0, 1].
        sizes: height and width of each picture as it was, upright.
    """

    inputs: list[Picture]
    images: Tensor
    sizes: list[tuple[int, int]]


def read_batches(
    inputs: Pictures,
    preprocess: Preprocess,
    batch_size: int = 64,
    channels: int = 3,
    on_error: Callable[[str, str], None] | None = None,
) -> Iterator[ReadBatch]:
    """Reads pictures, two batches ahead of their use.

    Args:
        inputs: see `VisionModel.features`.
        preprocess: what they go through.
        batch_size: pictures a batch; one with unreadable files is smaller.
        channels: bands that pictures must have.
        on_error: told (path, reason) of every unreadable file, which is then left out; without it, that is an error.
    Raises:
        ValueError: for something that is no picture, naming the file.
    """
    chunks = iter(_chunks(_listed(inputs), batch_size))
    with ThreadPoolExecutor(_READERS) as pool:

        def submit(count: int) -> list[list[tuple[Picture, Future[_Read]]]]:
            return [
                [(item, pool.submit(_read, item, preprocess, channels)) for item in c] for c in islice(chunks, count)
            ]

        pending = deque(submit(2))
        try:
            while pending:
                batch = _gathered(pending.popleft(), on_error)
                pending.extend(submit(1))
                if batch is not None:
                    yield batch
        finally:
            pool.shutdown(cancel_futures=True)


_Read = tuple[Tensor, tuple[int, int]]


def _read(item: Picture, preprocess: Preprocess, channels: int) -> _Read:
    """One picture: (C, S, S) as the model wants it, and its own size."""
    image = _as_tensor(item)
    if len(image) != channels:
        raise ValueError(f"{_name(item)} has {len(image)} bands, and the model reads {channels}")
    size = (image.shape[1], image.shape[2])
    return fit(image[None], torch.tensor([size]), preprocess.size, preprocess.mode)[0], size


def _gathered(
    reads: list[tuple[Picture, Future[_Read]]], on_error: Callable[[str, str], None] | None
) -> ReadBatch | None:
    read: list[tuple[Picture, _Read]] = []
    for item, future in reads:
        try:
            read.append((item, future.result()))
        except PictureError as error:
            if on_error is None:
                raise
            on_error(error.path, error.reason)
    if not read:
        return None
    images = torch.stack([image for _, (image, _) in read])
    return ReadBatch([item for item, _ in read], images, [size for _, (_, size) in read])


def _chunks(items: list[Picture], count: int) -> list[list[Picture]]:
    return [items[start : start + count] for start in range(0, len(items), count)]


def _listed(inputs: Pictures) -> list[Picture]:
    """Every picture apart: folders, globs, lists and stacks opened.

    Raises:
        ValueError: for something that is no picture, and for none at all.
    """
    if isinstance(inputs, list | tuple):
        items = [item for part in inputs for item in _listed(part)]
    elif isinstance(inputs, str | Path):
        items = list(list_images(inputs))
    elif isinstance(inputs, np.ndarray | Tensor) and inputs.ndim == 4:
        items = list(inputs)
    elif isinstance(inputs, Image.Image | np.ndarray | Tensor):
        items = [inputs]
    else:
        raise ValueError(f"cannot read a picture from a {type(inputs).__name__}; {_KINDS}")
    if not items:
        raise ValueError("no pictures were given")
    return items


_KINDS = "give a path, a Pillow picture, an array (H, W, C) or a tensor (C, H, W), or a list of these"


def _is_single(inputs: Pictures) -> bool:
    """Whether one picture was given, not something that holds pictures."""
    if isinstance(inputs, str | Path):
        path = Path(inputs).expanduser()
        return path.is_file() and path.suffix.lower() != ".txt"
    return isinstance(inputs, Image.Image) or (isinstance(inputs, np.ndarray | Tensor) and inputs.ndim < 4)


def _as_tensor(item: Picture) -> Tensor:
    """(C, H, W), uint8 or float32 in [0, 1]."""
    if isinstance(item, str | Path | Image.Image):
        return torch.from_numpy(read_picture(item)).permute(2, 0, 1)
    if item.ndim not in (2, 3) or 0 in item.shape or (item.ndim == 2 and isinstance(item, Tensor)):
        raise ValueError(f"expected an array (H, W, C) or a tensor (C, H, W), got the shape {tuple(item.shape)}")
    if isinstance(item, np.ndarray):
        if item.dtype.kind not in "uifb":
            raise ValueError(f"pixels should be uint8, or floats in [0, 1], not {item.dtype}")
        bands = item[None].repeat(3, axis=0) if item.ndim == 2 else item.transpose(2, 0, 1)  # 2: grey
        item = torch.from_numpy(bands.astype(item.dtype.newbyteorder("="), order="C"))
    item = item.detach().cpu()
    if item.dtype == torch.uint8:
        return item
    if not item.is_floating_point():
        raise ValueError(f"pixels should be uint8, or floats in [0, 1], not {item.dtype}")
    item = item.float()
    low, high = item.aminmax()
    if not (low >= 0 and high <= 1):  # NaN too
        raise ValueError(f"pixels as floats should lie in [0, 1], and these lie in [{low:g}, {high:g}]")
    return item


def _name(item: Picture) -> str:
    return str(item) if isinstance(item, str | Path) else f"a picture given as {type(item).__name__}"


def _check_words(labels: Sequence[str], templates: Sequence[str]) -> None:
    if isinstance(labels, str) or not labels:
        raise ValueError(f'labels should be a list such as ["cat", "dog"], not {labels!r}')
    if isinstance(templates, str) or not templates or not all("{}" in template for template in templates):
        raise ValueError(
            f'templates should be a list of sentences with {{}} in them, such as "a {{}}", not {templates!r}'
        )


def _ranked(scores: list[float], labels: Sequence[str]) -> list[dict[str, Any]]:
    answers = [{"label": label, "score": score} for label, score in zip(labels, scores, strict=True)]
    return sorted(answers, key=lambda answer: answer["score"], reverse=True)


def _unit(vectors: Tensor) -> np.ndarray:
    return F.normalize(vectors.float(), dim=-1).cpu().numpy()


def _answer(features: Features, adaptor: str | None) -> Features:
    return features if adaptor is None else features.adaptors[adaptor]


def _on_cpu(features: Features) -> Features:
    return Features(
        features.patches.cpu(),
        features.grid,
        None if features.summary is None else features.summary.cpu(),
        adaptors={name: _on_cpu(answer) for name, answer in features.adaptors.items()},
    )


def _joined(parts: Sequence[Features]) -> Features:
    """Features of batches of equally large pictures as those of one batch."""
    first = parts[0]
    return Features(
        torch.cat([part.patches for part in parts]),
        first.grid,
        None if first.summary is None else torch.cat([part.summary for part in parts if part.summary is not None]),
        adaptors={name: _joined([part.adaptors[name] for part in parts]) for name in first.adaptors},
    )
