"""Norm modules and the residual block, against plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastcond.nn import AdaGroupNorm, FusedGroupNorm
from fastcond.nn.blocks import Conv3x3, ResnetBlock, SelfAttention, TokenLinear
from tests.support.networks import perturb, small_config
from tests.tolerances import assert_network_close


class ChapterAdaGroupNorm(nn.Module):
    """The course chapter's AdaGN: GroupNorm without affine, times 1 + scale, plus shift."""

    def __init__(self, channels: int, num_groups: int, embed_dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, channels, affine=False)
        self.linear = nn.Linear(embed_dim, 2 * channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.linear(emb)[:, :, None, None].chunk(2, dim=1)
        return self.norm(x) * (1 + scale) + shift


class ChapterResBlock(nn.Module):
    """The course chapter's ResBlockWithAdaGN."""

    def __init__(self, channels: int, embed_dim: int, num_groups: int) -> None:
        super().__init__()
        self.norm1 = ChapterAdaGroupNorm(channels, num_groups, embed_dim)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = ChapterAdaGroupNorm(channels, num_groups, embed_dim)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.SiLU()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(self.act(self.norm1(x, emb)))
        return x + self.conv2(self.act(self.norm2(h, emb)))


def test_adagn_block_is_the_course_chapters() -> None:
    config = small_config()
    ours = ResnetBlock(config, 16, 16)
    perturb(ours, size=0.5)
    chapter = ChapterResBlock(16, config.embedding_dim, config.norm_num_groups)
    chapter.load_state_dict(ours.state_dict(), strict=True)
    x, emb = torch.randn(3, 16, 6, 6), torch.randn(3, config.embedding_dim)
    assert_network_close(ours(x, emb), chapter(x, emb))
    for block in (ours, chapter):
        block(x, emb).square().sum().backward()
    expected = dict(chapter.named_parameters())
    for name, parameter in ours.named_parameters():
        assert_network_close(parameter.grad, expected[name].grad)


@pytest.mark.parametrize("activation", [None, "silu"])
def test_fused_group_norm_has_the_state_and_values_of_nn_group_norm(activation: str | None) -> None:
    ours, plain = FusedGroupNorm(4, 8, eps=1e-6, activation=activation), nn.GroupNorm(4, 8, eps=1e-6)
    perturb(ours)
    plain.load_state_dict(ours.state_dict(), strict=True)
    x, scale, shift = torch.randn(2, 8, 5, 5), torch.randn(2, 8), torch.randn(2, 8)
    act = nn.SiLU() if activation else nn.Identity()
    assert_network_close(ours(x), act(plain(x)))
    assert_network_close(ours(x, scale, shift), act(plain(x) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]))


@pytest.mark.parametrize(
    ("ours", "plain", "x"),
    [
        (lambda: Conv3x3(16, 20), lambda: nn.Conv2d(16, 20, 3, padding=1), torch.randn(2, 16, 6, 5)),
        (lambda: TokenLinear(32, 40), lambda: nn.Linear(32, 40), torch.randn(2, 16, 32)),
    ],
)
def test_layers_by_our_ops_are_pytorchs_layers(ours: Callable[[], nn.Module], plain: Callable[[], nn.Module], x: Tensor) -> None:
    """The same bits from the same seed, the same names, the same values and gradients."""
    layers = []
    for make in (ours, plain):
        torch.manual_seed(1)
        layers.append(make())
    expected = layers[1].state_dict()
    assert layers[0].state_dict().keys() == expected.keys()
    for name, value in layers[0].state_dict().items():
        assert torch.equal(value, expected[name])
    outputs = [layer(x) for layer in layers]
    assert_network_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for parameter, other in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        assert_network_close(parameter.grad, other.grad)


def test_new_adaptive_norm_is_a_plain_group_norm() -> None:
    x = torch.randn(2, 8, 5, 5)
    assert_network_close(AdaGroupNorm(12, 8, 4)(x, torch.randn(2, 12)), nn.functional.group_norm(x, 4))


@pytest.mark.parametrize("conditioning", ["adagn", "scale_shift", "bias"])
@pytest.mark.parametrize(("resampling", "size"), [(None, (6, 4)), ("down", (3, 2)), ("up", (12, 8))])
def test_new_block_passes_its_input_through(conditioning: str, resampling: str | None, size: tuple[int, int]) -> None:
    config = small_config(conditioning=conditioning)
    x, emb = torch.randn(2, 8, 6, 4), torch.randn(2, config.embedding_dim)
    y = ResnetBlock(config, 8, 8, resampling)(x, emb)
    assert y.shape == (2, 8, *size)
    if resampling is None:
        assert torch.equal(y, x)
    elif resampling == "down":
        torch.testing.assert_close(y, x.unflatten(2, (3, 2)).unflatten(4, (2, 2)).mean(dim=(3, 5)))
    else:
        assert torch.equal(y, x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    assert ResnetBlock(config, 8, 16)(x, emb).shape == (2, 16, 6, 4)


def test_attention_is_softmax_over_all_positions() -> None:
    attention = SelfAttention(small_config(), 16)
    assert torch.equal(attention(torch.ones(1, 16, 2, 2)), torch.ones(1, 16, 2, 2)), "a new attention adds nothing"
    perturb(attention, size=0.3)
    x = torch.randn(2, 16, 3, 5)
    tokens = nn.functional.group_norm(x, 4, attention.group_norm.weight, attention.group_norm.bias)
    tokens = tokens.flatten(2).transpose(1, 2)
    heads = []
    for head in range(2):
        q, k, v = (
            projection(tokens)[:, :, head * 8 : head * 8 + 8] for projection in (attention.to_q, attention.to_k, attention.to_v)
        )
        heads.append(torch.softmax(q @ k.transpose(1, 2) / 8**0.5, dim=-1) @ v)
    expected = x + attention.to_out[0](torch.cat(heads, dim=2)).transpose(1, 2).reshape(x.shape)
    assert_network_close(attention(x), expected)
