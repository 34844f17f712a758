"""Folders that fastcond has saved, run in diffusers by the pipeline that is written into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch


def pipeline_of(folder: Path) -> Any:
    """The folder's own pipeline class, as docs/diffusers.md loads it. diffusers runs a copy, kept beside the folder."""
    import diffusers
    from diffusers.utils import dynamic_modules_utils, logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    before = dynamic_modules_utils.HF_MODULES_CACHE
    dynamic_modules_utils.HF_MODULES_CACHE = str(folder.resolve().with_name("modules"))
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True)
    finally:
        dynamic_modules_utils.HF_MODULES_CACHE = before
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn_in_diffusers(folder: Path, *, seed: int = 0, **call: Any) -> np.ndarray:
    """Gray levels as int64 [N, H, W, C]."""
    images = pipeline_of(folder)(generator=torch.Generator().manual_seed(seed), output_type="np", **call).images
    return np.round(images * 255).astype(int)
