"""Noise schedules: alphas_cumprod of q(x_t | x_0) = N(sqrt(a_t) x_0, (1 - a_t) I), in fp64."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastcond.config import DiffusionConfig
from fastcond.diffusion.beta_schedules import alphas_cumprod_of, betas_of

_LARGEST_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2: beta is clipped so that no step destroys everything
_SETTINGS = ("beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr")
SIGNAL_LEFT = 1e-3  # above it the last timestep is not noise enough for sampling to start there


class TerminalSignalWarning(UserWarning):
    """The last timestep of a schedule still holds signal, which sampling from pure noise lacks."""


@dataclass(frozen=True)
class NoiseSchedule:
    """alphas_cumprod: float64 [T] on the CPU, decreasing, in [0, 1]; entry t belongs to timestep t.

    settings: what makes a diffusers scheduler build this schedule, such as beta_start, where that is known; else empty.
    Raises: ValueError where alphas_cumprod is not such a vector.
    """

    alphas_cumprod: Tensor
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        a = self.alphas_cumprod
        if a.dtype != torch.float64 or a.dim() != 1 or len(a) < 1:
            raise ValueError(f"alphas_cumprod is {a.dtype} {list(a.shape)}; float64 [T] is needed")
        if not bool(((a >= 0) & (a <= 1)).all()) or not bool((a[1:] < a[:-1]).all()):
            raise ValueError("alphas_cumprod must fall strictly from timestep to timestep and stay in [0, 1]")

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self.alphas_cumprod)

    def signal_to_noise(self) -> Tensor:
        """a_t / (1 - a_t), float64 [T]."""
        return self.alphas_cumprod / (1 - self.alphas_cumprod)

    @classmethod
    def linear(cls, num_timesteps: int = 1000, *, rescale: bool = True) -> NoiseSchedule:
        """Betas from 1e-4 to 0.02 (Ho et al. 2020, section 4); `rescale` multiplies them by 1000/T, so that any T ends in noise.

        Source of the rescaling: Dhariwal & Nichol 2021. Warns (`TerminalSignalWarning`) where the last timestep holds signal.
        """
        factor = 1000 / num_timesteps if rescale else 1.0
        start, end = 1e-4 * factor, 0.02 * factor
        betas = torch.linspace(start, end, num_timesteps, dtype=torch.float64)
        settings = {"beta_schedule": "linear", "beta_start": start, "beta_end": end} if end <= _LARGEST_BETA else {}
        return cls._from_betas(betas.clamp(max=_LARGEST_BETA), settings)

    @classmethod
    def cosine(cls, num_timesteps: int = 1000) -> NoiseSchedule:
        """a(t) = f(t)/f(0), f(t) = cos^2((t/T + 0.008)/1.008 pi/2) (Nichol & Dhariwal 2021, eq. 17), betas clipped at 0.999."""

        def f(t: int) -> float:
            return math.cos((t / num_timesteps + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = [min(1 - f(t + 1) / f(t), _LARGEST_BETA) for t in range(num_timesteps)]
        return cls._from_betas(torch.tensor(betas, dtype=torch.float64), {"beta_schedule": "squaredcos_cap_v2"})

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """The alphas_cumprod of a diffusers scheduler, to the bit: its betas and their product in float32, kept in float64.

        Args: config: beta_schedule ("linear" where absent; BETA_SCHEDULES has all), beta_start (1e-4), beta_end (0.02),
            num_train_timesteps (1000), trained_betas, rescale_betas_zero_snr, whatever else it holds being left alone; of
            a HeunDiscreteScheduler, by _class_name, beta_start and beta_end default to 0.00085 and 0.012, as there.
        Raises: ValueError for an unknown beta_schedule, or trained_betas that are not num_train_timesteps numbers in [0, 1].
        """
        defaults = (0.00085, 0.012) if config.get("_class_name") == "HeunDiscreteScheduler" else (1e-4, 0.02)
        T, trained = int(config.get("num_train_timesteps", 1000)), config.get("trained_betas")
        settings = {key: config[key] for key in _SETTINGS if key in config}
        if trained is None:
            start, end = config.get("beta_start", defaults[0]), config.get("beta_end", defaults[1])
            settings |= {"beta_start": start, "beta_end": end}
            betas = betas_of(config.get("beta_schedule", "linear"), T, start, end)
        else:
            betas = torch.tensor(trained, dtype=torch.float32)
            if betas.shape != (T,) or not bool(((betas >= 0) & (betas <= 1)).all()):
                raise ValueError(f"trained_betas has shape {list(betas.shape)}; {T} numbers in [0, 1] are needed")
        rescale = bool(config.get("rescale_betas_zero_snr", False))
        a = alphas_cumprod_of(betas, rescale_zero_snr=rescale)
        return cls(a, settings)

    @classmethod
    def from_config(cls, config: DiffusionConfig) -> NoiseSchedule:
        """The schedule that a `DiffusionConfig` describes."""
        if config.scheduler is not None:
            return cls.from_diffusers(config.scheduler)
        if config.zero_terminal_snr:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TerminalSignalWarning)  # of what is removed next
                schedule = cls._named(config)
            return schedule.rescaled_to_zero_terminal_snr()
        return cls._named(config)

    @classmethod
    def _named(cls, config: DiffusionConfig) -> NoiseSchedule:
        """The schedule of that name, whatever signal it ends with."""
        if config.schedule == "linear":
            return cls.linear(config.num_timesteps, rescale=config.rescale_linear_betas)
        return cls.cosine(config.num_timesteps)

    def rescaled_to_zero_terminal_snr(self) -> NoiseSchedule:
        """Shift and scale sqrt(a) so that the first value stays and the last is 0 (Lin et al. 2024, algorithm 1)."""
        if self.num_timesteps < 2:
            raise ValueError("a schedule of one timestep cannot be rescaled to zero terminal SNR; use more timesteps")
        root = self.alphas_cumprod.sqrt()
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        settings = {**self.settings, "rescale_betas_zero_snr": True} if self.settings else {}
        return NoiseSchedule(root.square(), settings)

    @classmethod
    def _from_betas(cls, betas: Tensor, settings: Mapping[str, Any]) -> NoiseSchedule:
        schedule = cls(torch.cumprod(1 - betas, dim=0), settings)
        left = float(schedule.alphas_cumprod[-1])
        if left > SIGNAL_LEFT:
            warnings.warn(
                f"the last of {len(betas)} timesteps keeps alphas_cumprod = {left:.3g}, a signal that sampling from pure noise "
                "lacks; use more timesteps, the 1000/T rescale or a zero-terminal-SNR schedule",
                TerminalSignalWarning,
                stacklevel=3,
            )
        return schedule
