"""Ways in which a network's weights become others between two calls."""

from __future__ import annotations

import torch
from torch import nn

from fastcond.nn import ConditionalUNet
from tests.support.networks import perturb


def in_place(model: ConditionalUNet) -> None:
    perturb(model, seed=3)


def optimizer_step(model: ConditionalUNet) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def behind_autograd(model: ConditionalUNet) -> None:
    """Which counts no version."""
    versions = [parameter._version for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.data.mul_(1.1)
    assert versions == [parameter._version for parameter in model.parameters()]


def other_storage(model: ConditionalUNet) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.1


def other_parameters(model: ConditionalUNet) -> None:
    model.load_state_dict({name: value * 1.1 for name, value in model.state_dict().items()}, assign=True)


def other_module(model: ConditionalUNet) -> None:
    other = nn.Conv2d(8, 3, 3, padding=1)
    perturb(other, seed=5)
    model.conv_out = other


CHANGES = (in_place, optimizer_step, behind_autograd, other_storage, other_parameters, other_module)


class Negating(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return -super().forward(input)


def other_kind_of_module(model: ConditionalUNet) -> None:
    """The same parameters by name and shape, used in another way."""
    other = Negating(8, 3, 3, padding=1)
    other.load_state_dict(model.conv_out.state_dict())
    model.conv_out = other
