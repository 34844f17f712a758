"""diffusers' schedulers as step tables: grids, arithmetic and settings are theirs; docs/schedulers.md lists what differs."""

from __future__ import annotations

from fastcond.diffusion.schedulers.ancestral import ddim_scheduler, ddpm_scheduler
from fastcond.diffusion.schedulers.config import DiffusersScheduler, from_diffusers_config, to_diffusers_config
from fastcond.diffusion.schedulers.in_sigma import dpm_solver_scheduler, euler_scheduler, heun_scheduler

__all__ = [
    "DiffusersScheduler",
    "ddim_scheduler",
    "ddpm_scheduler",
    "dpm_solver_scheduler",
    "euler_scheduler",
    "from_diffusers_config",
    "heun_scheduler",
    "to_diffusers_config",
]
