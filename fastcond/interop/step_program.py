"""One row of a sampler as a module of PyTorch's own operations, for programs that run without this package.

    (x, row, label, guidance, noise, history) -> (x of the next row, x_0 prediction)

The timesteps' part of the embedding is worked out beforehand, row by row; the label's is part of the program, so that a thousand
classes take the room of their embedding and not of every block's scales and shifts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fastcond.diffusion import LearnedNoise, StepTable
from fastcond.engine.frozen_unet import Ends
from fastcond.engine.network_walk import Walk
from fastcond.engine.torch_operations import TorchOperations
from fastcond.nn import ConditionalUNet
from fastcond.ops.conv3x3.reference import forward as conv3x3_forward
from fastcond.ops.diffusion_step.reference import update
from fastcond.ops.linear.reference import forward as linear_forward
from fastcond.ops.token_attention.reference import forward as token_attention_forward


class StepProgram(nn.Module):
    """The network and the update of a run's rows.

    Args:
        model: on the CPU, in float32; it is copied. table: the run's, on the CPU.
        guided: with both halves of classifier-free guidance; else the conditional one alone.
    Attributes: inputs: the names of what `forward` takes for this table, in its order; the others are left out.
    Raises: ValueError for a network or table that is no such program.
    """

    coefficients: Tensor
    timesteps: Tensor
    time_embeddings: Tensor
    noise_coefficients: Tensor

    def __init__(self, model: ConditionalUNet, table: StepTable, *, guided: bool) -> None:
        super().__init__()
        config = model.config
        learned = table.learned_noise
        if config.out_channels not in (config.in_channels, 2 * config.in_channels):
            found = f"the network maps {config.in_channels} to {config.out_channels} channels"
            raise ValueError(f"{found}; a step needs equal numbers of them, or twice as many with a learned variance")
        if learned is not None and config.out_channels == config.in_channels:
            found = f"the network has {config.out_channels} channels, none for the sampler's learned variance"
            raise ValueError(f"{found}; use fixed_small or fixed_large")
        if config.class_embedding == "identity":
            raise ValueError("the network takes vectors for labels (class_embedding 'identity'), which a step does not")
        if table.threshold is not None or (learned is not None and learned.is_variance):
            raise ValueError(
                "this sampler's step is more than a row of coefficients (dynamic thresholding, or a variance learned otherwise "
                "than as learned_range)"
            )
        if guided and not config.has_null_label:
            raise ValueError("the network was trained without a null label, which guidance compares with")
        self.guided, self._keeps_history, self._learned = guided, table.keeps_history, learned is not None
        self._draws_noise = table.draws_noise or self._learned
        with torch.no_grad():
            time_embeddings = model.embed_timestep(table.timesteps)
        self.network = copy.deepcopy(model).requires_grad_(False).eval()
        del self.network.time_embedding
        for value in (*self.network.parameters(), *self.network.buffers()):
            # Weights that were read from a file are views of it, which would be written along with each of them.
            value.data = value.detach().clone(memory_format=torch.contiguous_format)
        self._walk = Walk(self.network)
        self.register_buffer("coefficients", table.coefficients.clone())
        self.register_buffer("timesteps", table.timesteps.clone())
        self.register_buffer("time_embeddings", time_embeddings)
        if learned is not None:
            self.register_buffer("noise_coefficients", learned.coefficients.clone())

    @property
    def inputs(self) -> tuple[str, ...]:
        optional = (("guidance", self.guided), ("noise", self._draws_noise), ("history", self._keeps_history))
        return ("x", "row", "label", *(name for name, needed in optional if needed))

    def forward(
        self,
        x: Tensor,
        row: Tensor,
        label: Tensor,
        guidance: Tensor | None = None,
        noise: Tensor | None = None,
        history: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x float32 [B, C, H, W]; row int64 [1]; label int64 [B]; guidance float32 [B]; noise and history like x."""
        both, labels = x, label
        if self.guided:
            null = torch.full_like(label, self.network.config.null_label)
            both, labels = torch.cat([x, x]), torch.cat([label, null])
        with InPyTorch():
            output = self._evaluate(both, row, labels)
        batch, channels = x.shape[:2]
        # Guidance acts on the first C channels; what the others say of the variance is the conditional half's.
        v, output = output[:batch, channels:], output[:, :channels]
        out_cond, out_uncond = (output[:batch], output[batch:]) if self.guided else (output, None)
        of_row, drawn = self.coefficients.index_select(0, row)[0], None if self._learned else noise
        x_next, x_0 = update(x, out_cond, out_uncond, history, of_row, guidance, drawn)
        if self._learned:
            assert noise is not None, "among the inputs"
            x_next = x_next + LearnedNoise(self.noise_coefficients).std(v, row) * noise
        return x_next, x_0

    def _evaluate(self, x_t: Tensor, row: Tensor, label: Tensor) -> Tensor:
        """The network's output for x_t [N, C, H, W] and label [N]."""
        network, ends = self.network, Ends(self.network.config, self.timesteps)
        class_emb = network.embed_label(label)
        emb = self.time_embeddings.index_select(0, row)
        emb = emb.expand(x_t.shape[0], -1) if class_emb is None else emb + class_emb
        if network.config.conditioning != "adagn":
            emb = F.silu(emb)
        token = network.embed_token(label)
        columns = [network.get_submodule(site.name)(token if site.of_label else emb) for site in self._walk.sites]
        return ends.after(self._walk(TorchOperations(torch.cat(columns, dim=1)), ends.before(x_t)), row)


def _ada_group_norm(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`fastcond::ada_group_norm` by PyTorch's own group norm, which whoever runs the program has a kernel for."""
    batch, channels, positions = x.shape[0], x.shape[1], x.shape[2:].numel()
    y, mean, rstd = torch.native_group_norm(x, weight, bias, batch, channels, positions, num_groups, eps)
    after_channels = [1] * (x.dim() - 2)
    if scale is not None:
        y = y * (1 + scale.unflatten(1, (channels, *after_channels)))
    if shift is not None:
        y = y + shift.unflatten(1, (channels, *after_channels))
    return F.silu(y) if silu else y, torch.stack((mean, torch.zeros_like(mean))), rstd


_IN_PYTORCH: Mapping[Any, Callable[..., Any]] = {
    torch.ops.fastcond.ada_group_norm.default: _ada_group_norm,
    torch.ops.fastcond.conv3x3.default: conv3x3_forward,
    torch.ops.fastcond.linear.default: linear_forward,
    torch.ops.fastcond.token_attention.default: token_attention_forward,
}


class InPyTorch(TorchFunctionMode):
    """Within it, the ops of this package are PyTorch's own operations, whatever the device has kernels for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _IN_PYTORCH.get(func, func)(*args, **(kwargs or {}))
