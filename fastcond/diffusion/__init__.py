"""The process: schedules, predictions, objective, guidance and samplers. Meets the network only at `denoiser(x_t, t, label)`."""

from fastcond.diffusion.guidance import guidance_per_row
from fastcond.diffusion.objective import diffusion_loss, loss_weights
from fastcond.diffusion.samplers import SAMPLERS, ddim, ddpm, dpmpp2m, heun
from fastcond.diffusion.schedule import NoiseSchedule
from fastcond.diffusion.step_table import StepTable

__all__ = [
    "SAMPLERS",
    "NoiseSchedule",
    "StepTable",
    "ddim",
    "ddpm",
    "diffusion_loss",
    "dpmpp2m",
    "guidance_per_row",
    "heun",
    "loss_weights",
]
