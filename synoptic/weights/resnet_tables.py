"""Key tables of the plain ResNet: as torchvision has it, in which DINO released its ResNet-50, and of transformers."""

from __future__ import annotations

from synoptic.weights.convert import Table, same

# torchvision's names, which DINO's files have, without the classifier `fc`.
TORCHVISION_RESNET = Table(
    rules=(
        same("stem.0.weight", "conv1.weight"),
        same("stem.1.{p}", "bn1.{p}"),
        *(
            rule
            for stage in range(4)
            for rule in (
                same(f"stages.{stage}.{{i}}.{{layer}}.{{p}}", f"layer{stage + 1}.{{i}}.{{layer}}.{{p}}"),
                *(
                    same(
                        f"stages.{stage}.{{i}}.shortcut.{place}.{{p}}",
                        f"layer{stage + 1}.{{i}}.downsample.{place}.{{p}}",
                    )
                    for place in range(2)
                ),
            )
        ),
    )
)

_LAYER = "encoder.stages.{stage}.layers.{i}"

# ResNetModel of transformers, with bottlenecks.
HUGGINGFACE_RESNET = Table(
    rules=(
        same("stem.0.weight", "embedder.embedder.convolution.weight"),
        same("stem.1.{p}", "embedder.embedder.normalization.{p}"),
        *(
            rule
            for place in range(3)
            for rule in (
                same(f"stages.{{stage}}.{{i}}.conv{place + 1}.weight", f"{_LAYER}.layer.{place}.convolution.weight"),
                same(f"stages.{{stage}}.{{i}}.bn{place + 1}.{{p}}", f"{_LAYER}.layer.{place}.normalization.{{p}}"),
            )
        ),
        same("stages.{stage}.{i}.shortcut.0.weight", f"{_LAYER}.shortcut.convolution.weight"),
        same("stages.{stage}.{i}.shortcut.1.{p}", f"{_LAYER}.shortcut.normalization.{{p}}"),
    )
)
