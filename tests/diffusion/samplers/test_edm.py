"""EDM's samplers against the paper's algorithms in the paper's coordinates, in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcond.diffusion import edm
from fastcond.ops import philox_normal
from fastcond.ops.philox import INITIAL_NOISE
from tests.support.samplers import seeds_of, wavy_network
from tests.support.schedulers import SHAPE, run_config
from tests.tolerances import SCHEDULER, largest_error


def levels(N: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> list[float]:
    """Karras et al. 2022, eq. 5, and the 0 behind."""
    ends = high ** (1 / rho), low ** (1 / rho)
    return [(ends[0] + i / max(N - 1, 1) * (ends[1] - ends[0])) ** rho for i in range(N)] + [0.0]


def denoised(y: Tensor, s: float, data: float, clip: float) -> Tensor:
    """D = c_skip y + c_out F(c_in y, c_noise), eq. 7."""
    power = s**2 + data**2
    F = wavy_network(y / math.sqrt(power), torch.tensor(math.log(s) / 4))
    return (data**2 / power * y + s * data / math.sqrt(power) * F).clamp(-clip, clip)


def algorithm_2(y: Tensor, t: list[float], data: float, clip: float, *, second: bool) -> Tensor:
    """Karras et al. 2022, algorithm 2, without churn."""
    for now, after in itertools.pairwise(t):
        d = (y - denoised(y, now, data, clip)) / now
        y_next = y + (after - now) * d
        if after > 0 and second:
            d_next = (y_next - denoised(y_next, after, data, clip)) / after
            y_next = y + (after - now) * (d + d_next) / 2
        y = y_next
    return y


@pytest.mark.parametrize("clip", [math.inf, 0.8])
@pytest.mark.parametrize("N", [1, 5, 10, 40])
@pytest.mark.parametrize("method", ["heun", "euler"])
def test_it_is_the_papers_algorithm(method: Any, N: int, clip: float) -> None:
    table = edm(None, N, method=method, clip=clip)
    assert table.num_rows == (2 * N - 1 if method == "heun" else N)
    noise = philox_normal(seeds_of(SHAPE[0]), SHAPE[1:], stream=INITIAL_NOISE).double()
    expected = algorithm_2(80.0 * noise, levels(N), 0.5, clip, second=method == "heun")
    assert largest_error(run_config(table, wavy_network)[-1], expected) <= SCHEDULER


def test_the_network_is_fed_what_edm_feeds_it() -> None:
    """Of unit variance, for data of standard deviation sigma_data under noise; and told log(sigma)/4."""
    table = edm(None, 10, method="euler", sigma_data=0.7)
    assert table.timesteps.tolist() == pytest.approx([math.log(s) / 4 for s in levels(10)[:-1]])
    assert table.initial_scale == pytest.approx(80 / math.hypot(80, 0.7))
    assert edm(None, 10, prediction="v").column("p_o").tolist() == pytest.approx((-edm(None, 10).column("p_o")).tolist())


def test_what_does_not_fit_is_refused() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"steps": 0}, "steps is 0"),
        ({"prediction": "x_0"}, "prediction is 'x_0'; EDM's network predicts F"),
        ({"sigma_min": 90.0}, "sigma_min 90, sigma_max 80, .* are needed"),
        ({"method": "dpm"}, "method 'dpm'"),
        ({"order": 3}, "order 3"),
        ({"clip": -1.0}, "clip is -1; it must be positive"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            edm(None, **{"steps": 10, **options})
