"""The weight average."""

from __future__ import annotations

import copy
from unittest import mock

import torch
from torch import nn

from fastcond.training.ema import ema_decay, update_ema


def test_decay_rises_to_its_limit() -> None:
    assert ema_decay(0, 0.9999) == 0.1
    assert abs(ema_decay(90, 0.9999) - 0.91) < 1e-12
    assert ema_decay(10**7, 0.9999) == 0.9999
    assert ema_decay(50, 0.5) == 0.5


def test_average_is_the_weighted_sum_and_the_model_is_untouched() -> None:
    torch.manual_seed(0)
    model, average = nn.Linear(3, 2), nn.Linear(3, 2)
    before, weights = copy.deepcopy(average.state_dict()), copy.deepcopy(model.state_dict())
    update_ema(average, model, 0.75)
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * weights[name])
        assert torch.equal(model.state_dict()[name], weights[name])


def test_all_parameters_are_averaged_in_one_call() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    with mock.patch.object(torch, "_foreach_lerp_", wraps=torch._foreach_lerp_) as lerp:
        update_ema(copy.deepcopy(model), model, 0.9)
    assert [len(call.args[0]) for call in lerp.call_args_list] == [4]
