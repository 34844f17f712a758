"""ADM's U-Net as Dhariwal & Nichol 2021 (section 3, appendix A) and its checkpoints describe it: a function of a dictionary.

The other side of `load_guided_diffusion`'s tests. `random_weights` makes a checkpoint with guided-diffusion's names, and
`evaluate` is the forward pass in PyTorch's functions, straight from the formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

GROUPS = 32


@dataclass(frozen=True)
class Adm:
    """What its command line says. attention: levels that attend. four_dims: 1x1 weights as consistency_models stores them."""

    width: int = 32
    multipliers: tuple[int, ...] = (1, 2)
    layers: int = 1
    attention: tuple[int, ...] = (1,)
    head_dim: int = 16
    classes: int | None = 5
    learn_sigma: bool = True
    resblock_updown: bool = True
    scale_shift: bool = True
    new_order: bool = False
    four_dims: bool = False

    @property
    def channels(self) -> list[int]:
        """Of each level."""
        return [self.width * multiplier for multiplier in self.multipliers]


def random_weights(adm: Adm, seed: int = 0) -> dict[str, Tensor]:
    """A checkpoint, every layer of which acts."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    emb_dim, trailing = 4 * adm.width, (1, 1) if adm.four_dims else (1,)

    def layer(name: str, *shape: int) -> None:
        fan_in = math.prod(shape[1:])
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) / math.sqrt(fan_in)
        weights[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)

    def norm(name: str, channels: int) -> None:
        weights[f"{name}.weight"] = 1 + 0.1 * torch.randn(channels, generator=generator)
        weights[f"{name}.bias"] = 0.1 * torch.randn(channels, generator=generator)

    def resnet(name: str, before: int, after: int) -> None:
        norm(f"{name}.in_layers.0", before)
        layer(f"{name}.in_layers.2", after, before, 3, 3)
        layer(f"{name}.emb_layers.1", (2 if adm.scale_shift else 1) * after, emb_dim)
        norm(f"{name}.out_layers.0", after)
        layer(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            layer(f"{name}.skip_connection", after, before, 1, 1)

    def attention(name: str, channels: int) -> None:
        norm(f"{name}.norm", channels)
        layer(f"{name}.qkv", 3 * channels, channels, *trailing)
        layer(f"{name}.proj_out", channels, channels, *trailing)

    layer("time_embed.0", emb_dim, adm.width)
    layer("time_embed.2", emb_dim, emb_dim)
    if adm.classes is not None:
        weights["label_emb.weight"] = torch.randn(adm.classes, emb_dim, generator=generator)
    channels = adm.channels
    layer("input_blocks.0.0", channels[0], 3, 3, 3)
    skips, current, k = [channels[0]], channels[0], 0
    for level, wanted in enumerate(channels):
        for _ in range(adm.layers):
            k += 1
            resnet(f"input_blocks.{k}.0", current, wanted)
            current = wanted
            if level in adm.attention:
                attention(f"input_blocks.{k}.1", current)
            skips.append(current)
        if level < len(channels) - 1:
            k += 1
            if adm.resblock_updown:
                resnet(f"input_blocks.{k}.0", current, current)
            else:
                layer(f"input_blocks.{k}.0.op", current, current, 3, 3)
            skips.append(current)
    resnet("middle_block.0", current, current)
    attention("middle_block.1", current)
    resnet("middle_block.2", current, current)
    k = -1
    for level in reversed(range(len(channels))):
        for j in range(adm.layers + 1):
            k += 1
            resnet(f"output_blocks.{k}.0", current + skips.pop(), channels[level])
            current, place = channels[level], 1
            if level in adm.attention:
                attention(f"output_blocks.{k}.1", current)
                place = 2
            if level and j == adm.layers:
                if adm.resblock_updown:
                    resnet(f"output_blocks.{k}.{place}", current, current)
                else:
                    layer(f"output_blocks.{k}.{place}.conv", current, current, 3, 3)
    norm("out.0", current)
    layer("out.2", 6 if adm.learn_sigma else 3, current, 3, 3)
    return weights


def evaluate(adm: Adm, weights: dict[str, Tensor], x: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
    """x [B, 3, H, W], timestep [B], label [B] -> [B, 3 or 6, H, W], in the weights' dtype."""

    def of(name: str) -> tuple[Tensor, Tensor]:
        return weights[f"{name}.weight"], weights[f"{name}.bias"]

    def conv(name: str, value: Tensor, stride: int = 1) -> Tensor:
        weight, bias = of(name)
        return F.conv2d(value, weight, bias, stride=stride, padding=weight.shape[-1] // 2)

    def norm(name: str, value: Tensor) -> Tensor:
        return F.group_norm(value, GROUPS, *of(name), eps=1e-5)

    def resized(value: Tensor, how: str) -> Tensor:
        if how == "down":
            return F.avg_pool2d(value, 2)
        return value.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) if how == "up" else value

    def resnet(name: str, value: Tensor, how: str = "") -> Tensor:
        h = conv(f"{name}.in_layers.2", resized(F.silu(norm(f"{name}.in_layers.0", value)), how))
        value = resized(value, how)
        projected = F.linear(F.silu(emb), *of(f"{name}.emb_layers.1"))[:, :, None, None]
        if adm.scale_shift:
            half = projected.shape[1] // 2
            h = norm(f"{name}.out_layers.0", h) * (1 + projected[:, :half]) + projected[:, half:]
        else:
            h = norm(f"{name}.out_layers.0", h + projected)
        h = conv(f"{name}.out_layers.3", F.silu(h))
        return h + (conv(f"{name}.skip_connection", value) if f"{name}.skip_connection.weight" in weights else value)

    def attention(name: str, value: Tensor) -> Tensor:
        batch, channels, height, width = value.shape
        weight, bias = of(f"{name}.qkv")
        rows = torch.einsum("oc,bcn->bon", weight.flatten(1), norm(f"{name}.norm", value).flatten(2)) + bias[:, None]
        attended = torch.empty_like(rows[:, :channels])
        d, heads = adm.head_dim, channels // adm.head_dim
        for head in range(heads):
            first = [(part * heads + head) * d if adm.new_order else (head * 3 + part) * d for part in range(3)]
            q, k, v = (rows[:, start : start + d] for start in first)
            share = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(d), dim=-1)
            attended[:, head * d : head * d + d] = v @ share.transpose(1, 2)
        weight, bias = of(f"{name}.proj_out")
        out = torch.einsum("oc,bcn->bon", weight.flatten(1), attended) + bias[:, None]
        return value + out.reshape(batch, channels, height, width)

    half = adm.width // 2
    angles = timestep.double()[:, None] * 10_000.0 ** (-torch.arange(half).double() / half)
    emb = torch.cat([angles.cos(), angles.sin()], dim=1).to(x.dtype)
    emb = F.linear(F.silu(F.linear(emb, *of("time_embed.0"))), *of("time_embed.2"))
    if label is not None:
        emb = emb + weights["label_emb.weight"][label]
    skips, k = [conv("input_blocks.0.0", x)], 0
    h = skips[0]
    for level in range(len(adm.multipliers)):
        for _ in range(adm.layers):
            k += 1
            h = resnet(f"input_blocks.{k}.0", h)
            h = attention(f"input_blocks.{k}.1", h) if level in adm.attention else h
            skips.append(h)
        if level < len(adm.multipliers) - 1:
            k += 1
            h = resnet(f"input_blocks.{k}.0", h, "down") if adm.resblock_updown else conv(f"input_blocks.{k}.0.op", h, 2)
            skips.append(h)
    h = resnet("middle_block.2", attention("middle_block.1", resnet("middle_block.0", h)))
    k = -1
    for level in reversed(range(len(adm.multipliers))):
        for j in range(adm.layers + 1):
            k, place = k + 1, 1
            h = resnet(f"output_blocks.{k}.0", torch.cat([h, skips.pop()], dim=1))
            if level in adm.attention:
                h, place = attention(f"output_blocks.{k}.1", h), 2
            if level and j == adm.layers:
                name = f"output_blocks.{k}.{place}"
                h = resnet(name, h, "up") if adm.resblock_updown else conv(f"{name}.conv", resized(h, "up"))
    return conv("out.2", F.silu(norm("out.0", h)))
