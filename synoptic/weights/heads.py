"""Linear classifiers that were released beside backbones, put onto the backbones that they were made for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from synoptic.models.classifier import Classifier, ClassifierConfig, Mean
from synoptic.models.plain_resnet import PlainResNet
from synoptic.models.vit import ViT
from synoptic.types import Preprocess
from synoptic.weights.convert import load_state
from synoptic.weights.folder import shapes_alone
from synoptic.weights.reading import State, read_parts, ready

TRAINED_SIZE = 224  # side in pixels of the pictures that all of them were trained on (DINO app. F, DINOv2 sec. B.3)

# What a head reads, by its number of channels over the backbone's width: blocks, and where the mean of patches stands.
# DINO's code puts that mean between the channels of the summary, DINOv2's behind the summaries.
_DINO: dict[int, tuple[int, Mean]] = {1: (1, "none"), 2: (1, "between"), 4: (4, "none")}
_DINOV2: dict[int, tuple[int, Mean]] = {2: (1, "behind"), 5: (4, "behind")}


def find_head(state: State) -> dict[str, Tensor] | None:
    """Weight and bias of a linear classifier, by our names; None where tensors are something else."""
    for names in (("weight", "bias"), ("linear.weight", "linear.bias"), ("module.linear.weight", "module.linear.bias")):
        if state.keys() == set(names) and state[names[0]].ndim == 2:
            return dict(zip(("weight", "bias"), (state[name] for name in names), strict=True))
    return None


def put_on(model: nn.Module, preprocess: Preprocess, path: str | Path) -> tuple[Classifier, Preprocess]:
    """A backbone with the linear classifier of a file.

    Args:
        model: a ViT of DINO or DINOv2, or a plain ResNet.
        preprocess: what its pictures go through.
        path: the file of the head: `<model>_linear_head.pth` and `<model>_linear4_head.pth` of DINOv2,
            `<model>_linearweights.pth` of DINO.
    Returns:
        The classifier, and what pictures go through for it.
    Raises:
        ValueError: the file is damaged, or holds no linear classifier for this backbone.
    """
    path = Path(path).expanduser()
    head, released_by = _read(path)
    if not isinstance(model, ViT | PlainResNet):
        raise ValueError(f"{path}: a linear classifier is put onto a ViT or a plain ResNet, not onto a {_name(model)}")
    (classes, channels), known = head["weight"].shape, _DINO if released_by == "DINO" else _DINOV2
    times, rest = divmod(channels, model.width)
    if rest or times not in known:
        reads = " or ".join(str(model.width * count) for count in known)
        raise ValueError(
            f"{path}: reads {channels} channels, and classifiers of {released_by} on a backbone {model.width} wide "
            f"read {reads}; give the backbone that it was made for"
        )
    layers, mean = known[times]
    part: dict[str, Any] = {"resnet" if isinstance(model, PlainResNet) else "vit": model.config}
    try:
        config = ClassifierConfig(classes=classes, layers=layers, mean=mean, **part)
    except ValueError as error:
        raise ValueError(f"{path}: does not fit the backbone ({error})") from None
    with shapes_alone():
        classifier = Classifier(config)
    load_state(classifier.head, {name: ready(tensor) for name, tensor in head.items()}, str(path))
    classifier.backbone = model
    side = min(preprocess.size, max(TRAINED_SIZE // model.stride, 1) * model.stride)
    return classifier.eval(), replace(preprocess, size=side)


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """A head, and whose it is: DINO's lies in a dictionary of its training, DINOv2's is a plain one."""
    for name, state in read_parts(path).items():
        if name in ("", "state_dict") and (head := find_head(state)) is not None:
            return head, "DINOv2" if "weight" in state else "DINO"
    raise ValueError(f"{path}: holds no linear classifier, which is a weight and a bias alone")


def _name(model: nn.Module) -> str:
    return type(model).__name__
