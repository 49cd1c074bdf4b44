"""Key tables of RADIO: of the files of its makers, of their folders on the Hub, and of RadioModel of transformers.

They name tensors as `radio.tidied` leaves them, with the learned tokens apart: those of the summary, and registers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from synoptic.weights.convert import Change, Rule, Table, same

TRUNK, INNER = "base_model.", "base_model.inner."  # of files; radio_v2.5-g is a ViT of DINOv2 inside of another module
HUB = "radio_model."

FLAT = Change(lambda parts: parts[0], lambda tensor: (tensor.flatten(1),))  # which knows the bands, and cuts
STACKED_GATES = Change(lambda parts: torch.cat(list(parts)), lambda tensor: tensor.chunk(2))


def _trunk(ours: str, theirs: str) -> tuple[Rule, ...]:
    """The rules of a ViT, our keys and theirs beginning so."""
    patches = f"{theirs}patch_generator"
    return (
        same(f"{ours}positions.table", f"{patches}.pos_embed"),
        Rule(f"{ours}patch_embed.weight", (f"{patches}.embedder.weight",), FLAT),
        same(f"{ours}patch_embed.bias", f"{patches}.embedder.bias"),
        same(f"{ours}summary_token", f"{patches}.cls_token.summary"),
        same(f"{ours}register_token", f"{patches}.cls_token.registers"),
        same(f"{ours}mask_token", f"{theirs}mask_token"),
        same(f"{ours}norm.{{p}}", f"{theirs}norm.{{p}}"),
        *(  # written so since transformers renamed whatever was called gamma; files have both
            same(f"{ours}blocks.{{i}}.ls{place}.gamma", f"{theirs}blocks.{{i}}.ls{place}.grandma") for place in (1, 2)
        ),
        same(f"{ours}blocks.{{i}}.{{part}}.{{p}}", f"{theirs}blocks.{{i}}.{{part}}.{{p}}"),
        same(f"{ours}blocks.{{i}}.{{part}}.{{layer}}.{{p}}", f"{theirs}blocks.{{i}}.{{part}}.{{layer}}.{{p}}"),
    )


def _heads(theirs: Mapping[str, str]) -> tuple[Rule, ...]:
    """The rules of adaptors; how theirs begin, by our heads. Which layers there are, the kind of the head decides."""
    depths = ["{a}.{p}", "{a}.{b}.{p}", "{a}.{b}.{c}.{p}", "{a}.{b}.{c}.{d}.{p}"]
    return (
        *(
            same(f"adaptors.{{name}}.{head}.{below}", f"{begin}.{below}")
            for head, begin in theirs.items()
            for below in depths
        ),
        same("adaptors.{name}.logit_scale", "{name}.logit_scale"),  # which is made, as it means nothing
    )


_FILE_HEADS = _heads({"summary_head": "_heads.{name}", "patch_head": "_feature_projections.{name}"})
_HUB_HEADS = _heads(
    {"summary_head": f"{HUB}adaptors.{{name}}.head_mlp", "patch_head": f"{HUB}adaptors.{{name}}.feat_mlp"}
)

# Of no use: tokens that nothing reads, statistics that stand twice, those of blocks (radio_v2.5-h-norm), and what reads
# films.
_UNUSED = ("reg_token", "input_conditioner.{p}", "inner.input_conditioner.{p}", "patch_generator.video_embedder.{p}")
_IGNORED = {
    TRUNK: (*(f"{TRUNK}{key}" for key in _UNUSED), "_intermediate_feature_normalizer.{p}"),
    HUB: (*(f"{HUB}model.{key}" for key in _UNUSED), f"{HUB}inter_feature_normalizer.{{p}}"),
}
_WORDS = ("adaptors.{name}.logit_scale", "adaptors.{name}.text")


def _table(theirs: str, adaptors: bool) -> Table:
    """Of files or folders of the makers, whose trunk begins so."""
    at_home, ours = theirs.startswith(TRUNK), "backbone." if adaptors else ""
    normaliser = "_feature_normalizer" if at_home else f"{HUB}feature_normalizer"
    trunk = (*_trunk(ours, theirs), same(f"{ours}patch_normaliser.{{p}}", f"{normaliser}.{{p}}"))
    heads = () if not adaptors else _FILE_HEADS if at_home else _HUB_HEADS
    return Table((*trunk, *heads), _IGNORED[TRUNK if at_home else HUB], _WORDS if adaptors else ())


RADIO, RADIO_INNER = _table(TRUNK, True), _table(INNER, True)
RADIO_TRUNK, RADIO_INNER_TRUNK = _table(TRUNK, False), _table(INNER, False)
HUB_RADIO, HUB_RADIO_TRUNK = _table(f"{HUB}model.", True), _table(f"{HUB}model.", False)
HUB_RADIO_INNER, HUB_RADIO_INNER_TRUNK = _table(f"{HUB}model.inner.", True), _table(f"{HUB}model.inner.", False)

# RadioModel of transformers, whose files have its makers' names, but for factors on branches and gated layers.
HUGGINGFACE_RADIO = Table(
    (
        *(
            same(f"blocks.{{i}}.ls{place}.gamma", f"{HUB}model.blocks.{{i}}.layer_scale{place}.lambda1")
            for place in (1, 2)
        ),
        Rule(
            "blocks.{i}.mlp.w12.{p}",
            tuple(f"{HUB}model.blocks.{{i}}.mlp.{gate}.{{p}}" for gate in ("gate_proj", "up_proj")),
            STACKED_GATES,
        ),
        same("blocks.{i}.mlp.w3.{p}", f"{HUB}model.blocks.{{i}}.mlp.down_proj.{{p}}"),
        *(
            rule
            for rule in _trunk("", f"{HUB}model.")
            if rule.ours not in ("norm.{p}", "mask_token", "patch_embed.bias") and "grandma" not in rule.theirs[0]
        ),
    ),
    (f"{HUB}model.patch_generator.video_embedder.weight",),
)
