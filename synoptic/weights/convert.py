"""Key maps between our weights and other makers' files: written once as a table, used both ways.

In the keys of a table `{i}` stands for a number, and any other `{name}` for one part of a key between dots.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from torch import Tensor, nn

from synoptic.weights.room import stacked

Problems = Mapping[str, Sequence[str]]  # sort -> keys


@dataclass(frozen=True)
class Change:
    """How their tensors become one of ours, and how they come out of it again."""

    join: Callable[[Sequence[Tensor]], Tensor]
    split: Callable[[Tensor], Sequence[Tensor]]


SAME = Change(lambda parts: parts[0], lambda tensor: (tensor,))
STACKED_QKV = Change(stacked, lambda tensor: tensor.chunk(3))


@dataclass(frozen=True)
class Rule:
    """One line of a table.

    Attributes:
        ours: our key.
        theirs: their key, or the keys of the tensors that ours is made of.
        change: what is done to the tensors on their way.
    """

    ours: str
    theirs: tuple[str, ...]
    change: Change = SAME


@dataclass(frozen=True)
class Table:
    """How one family's files relate to our model.

    Attributes:
        rules: every key that both have.
        ignored: keys of theirs that our model has no use for.
        left_out: keys of ours that theirs has no place for, or what those of a part begin with, and that take no part
            in an answer.
    """

    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def same(ours: str, theirs: str) -> Rule:
    """One tensor that both have alike."""
    return Rule(ours, (theirs,))


def qkv(ours: str, attention: str, *names: str) -> Rule:
    """Query, key and value, which are three layers of theirs, in one of ours."""
    return Rule(ours, tuple(f"{attention}.{name}.{{p}}" for name in names), STACKED_QKV)


_DINO = (  # the blocks of DINO, iBOT and DINOv2 are named as ours
    same("summary_token", "cls_token"),
    same("positions.table", "pos_embed"),
    same("patch_embed.{p}", "patch_embed.proj.{p}"),
    same("blocks.{i}.{part}.{p}", "blocks.{i}.{part}.{p}"),
    same("blocks.{i}.{part}.{layer}.{p}", "blocks.{i}.{part}.{layer}.{p}"),
    same("norm.{p}", "norm.{p}"),
)

# The released backbones of DINO, those of iBOT, whose students have a token in place of hidden patches, and those of
# DINOv2, with and without registers.
DINO_VIT = Table(_DINO, left_out=("mask_token",))
IBOT_VIT = Table((*_DINO, same("mask_token", "masked_embed")))
DINOV2_VIT = Table((*_DINO, same("register_token", "register_tokens"), same("mask_token", "mask_token")))

# The heads in the files of their trainings, as `models.heads.DinoHead`.
DINO_HEAD = Table(
    rules=(
        same("mlp.{i}.{p}", "mlp.{i}.{p}"),
        same("last_layer.parametrizations.weight.original0", "last_layer.weight_g"),
        same("last_layer.parametrizations.weight.original1", "last_layer.weight_v"),
    )
)

# ViTModel of transformers, as its files have it (its modules are named otherwise since version 5).
HUGGINGFACE_VIT = Table(
    rules=(
        same("summary_token", "embeddings.cls_token"),
        same("positions.table", "embeddings.position_embeddings"),
        same("patch_embed.{p}", "embeddings.patch_embeddings.projection.{p}"),
        same("blocks.{i}.norm1.{p}", "encoder.layer.{i}.layernorm_before.{p}"),
        qkv("blocks.{i}.attn.qkv.{p}", "encoder.layer.{i}.attention.attention", "query", "key", "value"),
        same("blocks.{i}.attn.proj.{p}", "encoder.layer.{i}.attention.output.dense.{p}"),
        same("blocks.{i}.norm2.{p}", "encoder.layer.{i}.layernorm_after.{p}"),
        same("blocks.{i}.mlp.fc1.{p}", "encoder.layer.{i}.intermediate.dense.{p}"),
        same("blocks.{i}.mlp.fc2.{p}", "encoder.layer.{i}.output.dense.{p}"),
        same("norm.{p}", "layernorm.{p}"),
    ),
    ignored=("pooler.dense.{p}", "embeddings.mask_token"),
    left_out=("mask_token",),
)

# Dinov2Model and Dinov2WithRegistersModel of transformers, as their files have it.
HUGGINGFACE_DINOV2 = Table(
    rules=(
        same("summary_token", "embeddings.cls_token"),
        same("register_token", "embeddings.register_tokens"),
        same("mask_token", "embeddings.mask_token"),
        same("positions.table", "embeddings.position_embeddings"),
        same("patch_embed.{p}", "embeddings.patch_embeddings.projection.{p}"),
        same("blocks.{i}.norm1.{p}", "encoder.layer.{i}.norm1.{p}"),
        qkv("blocks.{i}.attn.qkv.{p}", "encoder.layer.{i}.attention.attention", "query", "key", "value"),
        same("blocks.{i}.attn.proj.{p}", "encoder.layer.{i}.attention.output.dense.{p}"),
        same("blocks.{i}.ls1.gamma", "encoder.layer.{i}.layer_scale1.lambda1"),
        same("blocks.{i}.norm2.{p}", "encoder.layer.{i}.norm2.{p}"),
        same("blocks.{i}.mlp.fc1.{p}", "encoder.layer.{i}.mlp.fc1.{p}"),
        same("blocks.{i}.mlp.fc2.{p}", "encoder.layer.{i}.mlp.fc2.{p}"),
        same("blocks.{i}.mlp.w12.{p}", "encoder.layer.{i}.mlp.weights_in.{p}"),
        same("blocks.{i}.mlp.w3.{p}", "encoder.layer.{i}.mlp.weights_out.{p}"),
        same("blocks.{i}.ls2.gamma", "encoder.layer.{i}.layer_scale2.lambda1"),
        same("norm.{p}", "layernorm.{p}"),
    )
)

# CLIPTextModelWithProjection of transformers.
HUGGINGFACE_CLIP_TEXT = Table(
    rules=(
        same("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        same("positions", "text_model.embeddings.position_embedding.weight"),
        same("blocks.{i}.norm1.{p}", "text_model.encoder.layers.{i}.layer_norm1.{p}"),
        same("blocks.{i}.norm2.{p}", "text_model.encoder.layers.{i}.layer_norm2.{p}"),
        qkv("blocks.{i}.attn.qkv.{p}", "text_model.encoder.layers.{i}.self_attn", "q_proj", "k_proj", "v_proj"),
        same("blocks.{i}.attn.proj.{p}", "text_model.encoder.layers.{i}.self_attn.out_proj.{p}"),
        same("blocks.{i}.mlp.{layer}.{p}", "text_model.encoder.layers.{i}.mlp.{layer}.{p}"),
        same("norm.{p}", "text_model.final_layer_norm.{p}"),
        same("projection.weight", "text_projection.weight"),
    ),
    ignored=("text_model.embeddings.position_ids",),
)


def to_ours(state: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Tensors of a file of theirs under our keys.

    Raises:
        ValueError: for keys that the table does not know, or where some of the tensors that make one of ours lack.
    """
    ours, problems = sorted_out(state, table)
    refuse("the keys do not fit the table", problems)
    return ours


def sorted_out(state: Mapping[str, Tensor], table: Table) -> tuple[dict[str, Tensor], Problems]:
    """Those tensors of a file of theirs that the table knows, under our keys; and what does not fit it."""
    gathered: dict[tuple[str, Rule], dict[str, Tensor]] = {}  # (our key, rule) -> their pattern -> tensor
    unknown = []
    for key, tensor in state.items():
        found = _find(key, ((part, rule) for rule in table.rules for part in rule.theirs))
        if found is not None:
            part, rule, names = found
            gathered.setdefault((rule.ours.format(**names), rule), {})[part] = tensor
        elif not any(_pattern(ignored).fullmatch(key) for ignored in table.ignored):
            unknown.append(key)
    whole = {place: parts for place, parts in gathered.items() if len(parts) == len(place[1].theirs)}
    incomplete = [key for key, _ in gathered.keys() - whole.keys()]
    ours: dict[str, Tensor] = {}
    twice, unlike = [], []
    for (key, rule), parts in whole.items():
        if key in ours:
            twice.append(key)
        try:
            ours[key] = rule.change.join([parts[part] for part in rule.theirs])
        except (RuntimeError, IndexError):  # of shapes that cannot be stacked or turned
            unlike.append(f"{key} of {', '.join(str(tuple(part.shape)) for part in parts.values())}")
    return ours, {
        **{"unknown": unknown, "incomplete": sorted(incomplete)},
        **{"there twice, by two names": twice, "of unlike shapes": unlike},
    }


def from_ours(state: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Our tensors under their keys: what `to_ours` turns into `state`, but for those that the table leaves out.

    Raises:
        ValueError: for keys that the table does not know, since their model has no place for those tensors.
    """
    converted: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in kept(state, table).items():
        found = _find(key, ((rule.ours, rule) for rule in table.rules))
        if found is None:
            unknown.append(key)
            continue
        _, rule, names = found
        parts = rule.change.split(tensor)
        converted |= {part.format(**names): piece for part, piece in zip(rule.theirs, parts, strict=True)}
    refuse("the keys do not fit the table", {"unknown": unknown})
    return converted


def kept(state: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Those of our tensors that a table does not leave out."""
    return {key: tensor for key, tensor in state.items() if left_out(key, table) is None}


def left_out(key: str, table: Table) -> str | None:
    """What a table leaves out with one of our keys: the key, or the part that it lies in. None for others."""
    for pattern in table.left_out:
        parts = key.split(".")[: pattern.count(".") + 1]
        if _pattern(pattern).fullmatch(".".join(parts)):
            return ".".join(parts)
    return None


def load_state(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Gives a model its weights, every one of them and no other. The tensors become the model's own, uncopied.

    Args:
        model: built anywhere, on the meta device too.
        state: its tensors by key.
        where: told in errors, the file.
    Raises:
        ValueError: naming the keys that are missing, unexpected, of another shape, no floats where floats belong, or
            not finite; where they are many, the message counts them and names the first, and the error's notes name
            all.
    """
    refuse(f"{where}: the weights do not fit the model", misfits(model, state))
    refuse_infinite(state, where)
    model.load_state_dict(dict(state), assign=True)


def load_known_state(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """As `load_state`, of tensors that are known to be finite."""
    refuse(f"{where}: the weights do not fit the model", misfits(model, state))
    model.load_state_dict(dict(state), assign=True)


def refuse_infinite(state: Mapping[str, Tensor], where: str) -> None:
    """Raises where tensors hold values that are no numbers, or infinite.

    Raises:
        ValueError: naming their keys.
    """
    broken = [key for key, tensor in state.items() if not _is_finite(tensor)]
    refuse(f"{where}: weights that are no numbers or infinite", {"spoiled": broken})


def misfits(model: nn.Module, state: Mapping[str, Tensor]) -> Problems:
    """What keeps tensors from being the weights of a model."""
    expected = model.state_dict()
    both = [(key, tensor, state[key]) for key, tensor in expected.items() if key in state]
    return {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "misshapen": [
            f"{key} {tuple(given.shape)} for {tuple(wanted.shape)}"
            for key, wanted, given in both
            if given.shape != wanted.shape
        ],
        "mistyped": [
            f"{key} {given.dtype} for {wanted.dtype}"
            for key, wanted, given in both
            if given.is_floating_point() != wanted.is_floating_point()
        ],
    }


def _is_finite(tensor: Tensor) -> bool:
    """A sum is quicker to look at than its parts, and finite if they are, unless it is too large itself."""
    if tensor.is_meta or not tensor.is_floating_point():
        return True
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


_TOLD = 3  # keys that a message names of each problem


def refuse(what: str, problems: Problems) -> None:
    """Raises where there are problems. The message is one line; notes, which tracebacks show, hold the whole lists.

    Args:
        what: told first.
        problems: the keys of each sort.
    """
    told = [
        f"{len(keys)} {problem} ({', '.join(keys[:_TOLD])}{', ...' if len(keys) > _TOLD else ''})"
        for problem, keys in problems.items()
        if keys
    ]
    if not told:
        return
    error = ValueError(f"{what}: {'; '.join(told)}")
    for problem, keys in problems.items():
        if len(keys) > _TOLD:
            error.add_note("\n  ".join([f"{problem}:", *keys]))
    raise error


def _find(key: str, patterns: Iterable[tuple[str, Rule]]) -> tuple[str, Rule, dict[str, str]] | None:
    for pattern, rule in patterns:
        match = _pattern(pattern).fullmatch(key)
        if match:
            return pattern, rule, match.groupdict()
    return None


@cache
def _pattern(key: str) -> re.Pattern[str]:
    """`a.{i}.{p}` as a regular expression with the groups i (digits) and p (no dots)."""
    parts = re.split(r"\{(\w+)\}", key)
    groups = [f"(?P<{name}>{r'[0-9]+' if name == 'i' else r'[^.]+'})" for name in parts[1::2]]
    literals = [re.escape(part) for part in parts[::2]]
    return re.compile("".join(text for pair in zip(literals, [*groups, ""], strict=True) for text in pair))
