"""The process: schedules, predictions, objective, guidance and samplers. Meets the network only at `denoiser(x_t, t, label)`."""

from fastcond.diffusion.guidance import check_rescale, guidance_per_row, rescale_guidance
from fastcond.diffusion.objective import diffusion_loss, loss_weights
from fastcond.diffusion.samplers import SAMPLERS, ddim, ddpm, dpmpp2m, edm, heun
from fastcond.diffusion.schedule import NoiseSchedule, TerminalSignalWarning
from fastcond.diffusion.schedulers import DiffusersScheduler, from_diffusers_config, to_diffusers_config
from fastcond.diffusion.step_table import LearnedNoise, StepTable
from fastcond.diffusion.thresholding import DynamicThreshold, check_percentile, dynamic_threshold
from fastcond.diffusion.variational_bound import VariationalBound

__all__ = [
    "SAMPLERS",
    "DiffusersScheduler",
    "DynamicThreshold",
    "LearnedNoise",
    "NoiseSchedule",
    "StepTable",
    "TerminalSignalWarning",
    "VariationalBound",
    "check_percentile",
    "check_rescale",
    "ddim",
    "ddpm",
    "diffusion_loss",
    "dpmpp2m",
    "dynamic_threshold",
    "edm",
    "from_diffusers_config",
    "guidance_per_row",
    "heun",
    "loss_weights",
    "rescale_guidance",
    "to_diffusers_config",
]
