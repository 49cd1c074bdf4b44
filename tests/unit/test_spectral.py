"""Spectral reparametrisation: the same answers at first, norms that are parameters, plain weights at the end."""

import copy

import pytest
import torch
from torch import nn

from synoptic.models.heads import DinoHead
from synoptic.models.layers import Attention, Mlp, SwiGLU, init_linear
from synoptic.models.linear import quicken
from synoptic.models.spectral import Spectral, SpectralParts, fold, leading, spectral
from synoptic.models.vit import ViT, vit_config

GROUPS = ((2, 5),)


class Block(nn.Module):
    """Attention and a gated feed-forward layer on packed tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Linear(12, 16)
        self.attn = Attention(16, 2)
        self.mlp = SwiGLU(16, 48)
        self.apply(init_linear)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = self.patch_embed(tokens)
        return self.mlp(tokens + self.attn(tokens, GROUPS))


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block()


def tokens_of(seed: int = 0) -> torch.Tensor:
    return torch.randn(10, 12, generator=torch.Generator().manual_seed(seed))


def norms(weight: torch.Tensor, parts: int = 1) -> list[float]:
    return [float(torch.linalg.matrix_norm(part, 2)) for part in weight.detach().chunk(parts)]


def held(layer: nn.Linear) -> list[float]:
    made = layer.parametrizations.weight[0]
    assert isinstance(made, Spectral | SpectralParts)
    return [part.norm.item() for part in (made.parts if isinstance(made, SpectralParts) else [made])]


@pytest.mark.parametrize("shape", [(7, 7), (5, 9), (9, 5), (1, 4)])
def test_leading_is_the_largest_singular_value_and_its_vectors(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm, left, right = leading(matrix)
    assert float(norm) == pytest.approx(float(torch.linalg.svdvals(matrix)[0]), rel=1e-12)
    torch.testing.assert_close(matrix @ right, norm * left, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(left @ matrix, norm * right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_answers_are_the_same_at_first(block: Block, training: bool) -> None:
    plain = copy.deepcopy(block).train(training)
    spectral(block.train(training))
    with torch.no_grad():
        torch.testing.assert_close(block(tokens_of()), plain(tokens_of()), rtol=1e-5, atol=1e-7)
    for name in ("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3"):
        given, weight = block.get_submodule(name).weight, plain.get_submodule(name).weight
        assert float((given - weight).detach().abs().max()) <= 1e-6 * float(weight.detach().abs().max())


def test_each_of_the_matrices_in_one_layer_has_a_norm_of_its_own(block: Block) -> None:
    with torch.no_grad():
        block.attn.qkv.weight[:16] *= 5.0
        block.mlp.w12.weight[16:] *= 3.0
    spectral(block)
    for layer, parts in ((block.attn.qkv, 3), (block.mlp.w12, 2), (block.attn.proj, 1), (block.mlp.w3, 1)):
        assert held(layer) == pytest.approx(norms(layer.weight, parts), rel=1e-5) and len(held(layer)) == parts
    assert held(block.attn.qkv)[0] > 4 * held(block.attn.qkv)[1]


def test_scales_are_matrices_which_weight_decay_reaches_and_patch_embeddings_are_left_alone(block: Block) -> None:
    spectral(block)
    scales = {name: tuple(scale.shape) for name, scale in block.named_parameters() if name.endswith("scale")}
    assert len(scales) == 3 + 1 + 2 + 1 and set(scales.values()) == {(1, 1)}
    assert "patch_embed.weight" in dict(block.named_parameters())


def test_sigma_converges_to_the_largest_singular_value(block: Block) -> None:
    spectral(block.train())
    proj, made = block.attn.proj, block.attn.proj.parametrizations.weight[0]
    with torch.no_grad():
        proj.parametrizations.weight.original.copy_(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))
    wanted = held(proj)[0]
    first = abs(norms(proj.weight)[0] / wanted - 1)
    for _ in range(300):
        block(tokens_of())
    assert norms(proj.weight)[0] == pytest.approx(wanted, rel=1e-5) and first > 1e-2
    left, _, right = torch.linalg.svd(proj.parametrizations.weight.original.detach())
    assert abs(float(made.u @ left[:, 0])) == pytest.approx(1.0, abs=1e-4)
    assert abs(float(made.v @ right[0])) == pytest.approx(1.0, abs=1e-4)


def trained(block: Block) -> tuple[float, float]:
    """The loss before and after 200 steps."""
    optimiser = torch.optim.AdamW(block.train().parameters(), lr=1e-3)
    target = torch.randn(10, 16, generator=torch.Generator().manual_seed(2))
    losses = []
    for _ in range(200):
        optimiser.zero_grad()
        loss = (block(tokens_of()) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def test_training_keeps_the_norms_at_what_the_scales_say(block: Block) -> None:
    """Whereas those of plain weights grow many times over in these few steps."""
    plain, before = copy.deepcopy(block), norms(block.mlp.w3.weight)[0]
    spectral(block)
    first, last = trained(block)
    assert last < 0.9 * first
    for layer, parts in ((block.attn.qkv, 3), (block.attn.proj, 1), (block.mlp.w12, 2), (block.mlp.w3, 1)):
        assert norms(layer.weight, parts) == pytest.approx(held(layer), rel=0.02)
    trained(plain)
    assert norms(plain.mlp.w3.weight)[0] > 5 * before > 3 * norms(block.mlp.w3.weight)[0]


def test_weight_decay_of_scales_makes_norms_fall_and_never_below_the_least(block: Block) -> None:
    spectral(block.train())
    scales = [scale for name, scale in block.named_parameters() if name.endswith("scale")]
    before = norms(block.mlp.w3.weight)[0]
    with torch.no_grad():
        for scale in scales:
            scale.fill_(-20.0)
    assert norms(block.mlp.w3.weight)[0] == pytest.approx(0.05, rel=1e-4) and before > 0.1


def test_gradients_go_through_sigma(block: Block) -> None:
    """w' does not change with the length of w, so its gradient has no part along w; s takes that part."""
    spectral(block.train())
    block(tokens_of()).square().sum().backward()
    held_weight = block.mlp.w3.parametrizations.weight.original
    along = (held_weight.grad * held_weight).sum() / (held_weight.grad.norm() * held_weight.norm())
    assert float(along.detach().abs()) < 1e-5
    assert all(scale.grad.abs() > 0 for name, scale in block.named_parameters() if name.endswith("scale"))


def test_two_passes_before_one_backward_have_the_gradients_of_both(block: Block) -> None:
    spectral(block.train())
    (block(tokens_of()).sum() + block(tokens_of(1)).sum()).backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


def test_in_evaluation_mode_nothing_changes(block: Block) -> None:
    spectral(block)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1)
    block.eval()
    state = copy.deepcopy(block.state_dict())
    first, second = block(tokens_of()), block(tokens_of())
    assert torch.equal(first, second)
    assert all(torch.equal(state[name], tensor) for name, tensor in block.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_a_folded_model_answers_alike_with_plain_weights(block: Block, training: bool) -> None:
    """Also where power iteration is far from its end."""
    names = set(block.state_dict())
    spectral(block.train())
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    block(tokens_of())
    expected = block.eval()(tokens_of()).detach()
    weights = block.mlp.w12.weight.detach().clone()
    fold(block.train(training))
    assert set(block.state_dict()) == names and block.training == training
    torch.testing.assert_close(block.mlp.w12.weight.detach(), weights, rtol=1e-6, atol=0)
    torch.testing.assert_close(block(tokens_of()).detach(), expected, rtol=1e-5, atol=1e-6)
    assert block.mlp.w12.weight.requires_grad
    fold(block)  # once more does nothing


def test_the_state_is_kept_by_a_checkpoint(block: Block) -> None:
    other = copy.deepcopy(block)
    for each in (block, other):
        spectral(each.train())
    for step in range(3):
        block(tokens_of(step))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(1.1)
    other.load_state_dict(block.state_dict())
    assert torch.equal(other(tokens_of()), block(tokens_of()))


def test_keys_are_those_of_released_training_states(block: Block) -> None:
    """`parametrizations.weight.0.scale`, and `parts` in layers of several matrices (RADIO's hub code)."""
    spectral(block)
    keys = set(block.state_dict())
    assert {"attn.proj.parametrizations.weight.original", "attn.proj.parametrizations.weight.0.scale"} <= keys
    assert {f"attn.qkv.parametrizations.weight.0.parts.{part}.scale" for part in range(3)} <= keys


def test_a_whole_vit_answers_alike_before_and_after(block: Block) -> None:
    torch.manual_seed(0)
    vit = ViT(vit_config("vit_nano8", image_size=16)).eval()
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        plain = vit(images)
        spectral(vit)
        parametrised = vit(images)
        fold(vit)
        quicken(vit)
        folded = vit(images)
    for answer in (parametrised, folded):
        torch.testing.assert_close(answer.patches, plain.patches, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(answer.summary, plain.summary, rtol=1e-4, atol=1e-5)


def test_frozen_and_weight_normalised_layers_are_left_alone() -> None:
    head = DinoHead(16, 8, hidden=16, bottleneck=4)
    head.mlp[0].requires_grad_(False)
    keys = set(head.state_dict())
    spectral(head)
    added = {name.partition(".parametrizations")[0] for name in set(head.state_dict()) - keys}
    assert added == {"mlp.2", "mlp.4"}
    fold(head)
    assert set(head.state_dict()) == keys


def test_twice_is_once(block: Block) -> None:
    spectral(block)
    keys = set(block.state_dict())
    spectral(block)
    assert set(block.state_dict()) == keys


def test_skipped_layers_are_left_alone() -> None:
    mlp = nn.ModuleDict({"a": Mlp(8, 16), "b": Mlp(8, 16)}).apply(
        lambda module: nn.init.orthogonal_(module.weight) if isinstance(module, nn.Linear) else None
    )
    spectral(mlp, skip=("b", "fc2"))
    parametrised = {name for name in mlp.state_dict() if name.endswith("original")}
    assert parametrised == {"a.fc1.parametrizations.weight.original"}


def test_weights_of_zero_are_refused_with_their_place() -> None:
    mlp = Mlp(8, 16)
    nn.init.zeros_(mlp.fc2.weight)
    with pytest.raises(ValueError, match=r"fc2\.weight: a norm of 0 is not above 0\.05.*skip=\('fc2',\)"):
        spectral(mlp)


def test_norms_are_found_in_float32_under_autocast(block: Block) -> None:
    spectral(block.eval())
    exact = block.mlp.w3.weight
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(block.mlp.w3.weight, exact, rtol=0, atol=0)
