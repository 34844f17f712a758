"""How a sample is made: StepTable, then network and diffusion_step row by row, then uint8 images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastcond.config import DiffusionConfig, UNetConfig
from fastcond.diffusion import (
    SAMPLERS,
    NoiseSchedule,
    StepTable,
    check_percentile,
    check_rescale,
    ddpm,
    from_diffusers_config,
    guidance_per_row,
)
from fastcond.engine.compile import choose_dtype, has_c_compiler
from fastcond.engine.conditioning_table import vector_label_width
from fastcond.engine.cuda_graph import graph_executor, release_graphs
from fastcond.engine.executor import EagerExecutor, Executor, SamplingBatch
from fastcond.engine.kept_form import release_form
from fastcond.engine.torch_noise import Rng, TorchNoise, generators, skip_batch
from fastcond.nn import ConditionalUNet

DEFAULT_BATCH_SIZE = 64
OWN_SCHEDULER = "scheduler"  # the sampler that a model of diffusers comes with

_SCHEDULE_RTOL = 1e-3  # a product of a thousand betas in float32 is off by some 1e-4
_K_O = 5  # of a row's coefficients: what the network's output is multiplied by

OnStep = Callable[[int, int, Tensor], None]


def generate(
    model: ConditionalUNet,
    labels: Sequence[int] | np.ndarray | Tensor,
    *,
    guidance: float | Sequence[float] = 1.0,
    sampler: str | Callable[..., StepTable] | StepTable = "ddpm",
    steps: int = 100,
    seed: int = 0,
    indices: Sequence[int] | np.ndarray | None = None,
    batch_size: int | None = None,
    guidance_interval: tuple[float, float] | None = None,
    guidance_rescale: float = 0.0,
    dynamic_threshold: float | None = None,
    guide: ConditionalUNet | None = None,
    cfg_plus_plus: bool = False,
    precision: Literal["fp32", "bf16"] | None = None,
    compile: bool | None = None,
    rng: Rng = "philox",
    on_step: OnStep | None = None,
) -> np.ndarray:
    """Draw one image a label.

    Args:
        model: the denoiser; it runs where its parameters are, without dropout, and is left as it was. Weights that have
            changed are seen at the next batch. What is made of them is kept for the next call: `fastcond.engine.release`.
        labels: N integers in 0 .. K; K is the null label, "any class". A network that takes vectors (with "label_attention",
            one-hot, soft or several classes at once) is given float [N, K] too, of which zeros are the null label.
        guidance: w in u + w (c - u), one number or one an image; 1 is off.
        sampler: "ddpm" (with the variance that the model predicts, where it was trained to), "ddim", "dpmpp2m" or "heun",
            "scheduler" for the one that a model of diffusers came with, a function (schedule, steps, prediction=...) ->
            StepTable, or a StepTable.
        steps: steps of the sampler, 1 .. T; a step is one evaluation of the network, and up to two with heun.
        seed, indices: the noise of image i is a function of (seed, indices[i]) alone, whatever the batch and the other labels
            are. Both lie in [0, 2^32); indices default to 0 .. N-1.
        batch_size: images at a time; the result does not depend on it but for float rounding. Default 64.
        guidance_interval: (start, stop) as fractions of the run's timesteps in which guidance acts; outside, only the
            conditional half is computed.
        guidance_rescale: phi in [0, 1]; with g = u + w (c - u), phi std(c)/std(g) g + (1 - phi) g takes g's place; 0 is off.
        dynamic_threshold: percentile in (0, 1] of |x_0| over an image, s = max(1, that); clamp(x_0, -s, s) / s takes the place
            of the sampler's clamp; None is off. Neither changes the cost of the network, and a row then is several ops for one.
        guide: a worse network of the same labels, such as an earlier checkpoint, whose prediction for the image's own label takes
            the place of u ("autoguidance"): no null label is needed.
        cfg_plus_plus: with ddim: x_0 is guided, and u is what is noised again ("CFG++"); guidance then lies in [0, 1].
            With either, a GPU executes row by row in the model's own precision.
        precision: what the network computes in; by default "bf16" on a GPU that has it, elsewhere "fp32", the only one on a CPU.
            What runs row by row refuses to be asked for "bf16" or to compile.
            Samples, coefficients, norms and the conditioning are float32 with either. With "fp32", PyTorch's settings say
            whether a GPU may use TF32.
        compile: whether `torch.compile` makes the network on a GPU faster, before the first image; later calls with the model
            use it again. By default where a C compiler is found; on a CPU there is nothing to compile.
        rng: where the noise comes from. "philox": as above. "torch": torch.Generator().manual_seed(seed), drawn from as
            diffusers' pipelines do, a batch together, so that the images are those of such a pipeline and depend on batch_size.
            A torch.Generator, or a list with one an image, is used in its place. indices then do nothing, and a GPU executes row
            by row in the model's own precision.
        on_step: called after each row with (row, index in labels of the batch's first image, x_0 prediction float32
            [B, C, H, W], which the next row overwrites).
    Returns: uint8 [N, H, W, C].
    Raises: ValueError naming the argument that does not fit and what was found.
    Source: Ho et al. 2020 algorithm 2; Ho & Salimans 2022 eq. 6; Lin et al. 2024 eq. 14 to 16 (rescale); Saharia et al. 2022
        section 2.3 (dynamic thresholding).
    """
    batches = generate_batches(
        model,
        labels,
        guidance=guidance,
        sampler=sampler,
        steps=steps,
        seed=seed,
        indices=indices,
        batch_size=batch_size,
        guidance_interval=guidance_interval,
        guidance_rescale=guidance_rescale,
        dynamic_threshold=dynamic_threshold,
        guide=guide,
        cfg_plus_plus=cfg_plus_plus,
        precision=precision,
        compile=compile,
        rng=rng,
        on_step=on_step,
    )
    images = np.empty((len(labels), *model.config.image_size, model.config.in_channels), dtype=np.uint8)
    first = 0
    for batch in batches:
        images[first : first + len(batch)] = batch
        first += len(batch)
    return images


def generate_batches(
    model: ConditionalUNet,
    labels: Sequence[int] | np.ndarray | Tensor,
    *,
    guidance: float | Sequence[float] = 1.0,
    sampler: str | Callable[..., StepTable] | StepTable = "ddpm",
    steps: int = 100,
    seed: int = 0,
    indices: Sequence[int] | np.ndarray | None = None,
    batch_size: int | None = None,
    guidance_interval: tuple[float, float] | None = None,
    guidance_rescale: float = 0.0,
    dynamic_threshold: float | None = None,
    guide: ConditionalUNet | None = None,
    cfg_plus_plus: bool = False,
    precision: Literal["fp32", "bf16"] | None = None,
    compile: bool | None = None,
    rng: Rng = "philox",
    on_step: OnStep | None = None,
    start: int = 0,
) -> Iterator[np.ndarray]:
    """`generate`, batch after batch, for more images than fit into memory.

    Args: those of `generate`. start: the images before this one are left out; the others are what they are without it. With one
            torch.Generator it is a multiple of batch_size, and the noise of the images before is drawn and thrown away.
    Returns: an iterator of uint8 [B, H, W, C], at most batch_size images each; a batch is drawn when it is asked for.
    Raises: ValueError at the call, not at the first batch.
    """
    config = model.config
    if config.out_channels not in (config.in_channels, 2 * config.in_channels):
        found = f"the network maps {config.in_channels} to {config.out_channels} channels"
        raise ValueError(f"{found}; sampling needs equal numbers, or twice as many with a learned variance")
    label = _labels(labels, config)
    count = len(label)
    index = np.arange(count) if indices is None else _integers("indices", indices, 2**32 - 1)
    if len(index) != count:
        raise ValueError(f"there are {len(index)} indices for {count} labels; give one each")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; it must lie in [0, 2^32)")
    scales = np.asarray(guidance, dtype=np.float32)
    if scales.shape not in ((), (count,)):
        raise ValueError(f"guidance has shape {list(scales.shape)}; give one number or {count}, one a label")
    batch_size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
    if batch_size < 1:
        raise ValueError(f"batch size is {batch_size}; it must be at least 1")

    drawn_from = generators(rng, count, seed)
    if isinstance(drawn_from, torch.Generator) and start % batch_size and start < count:
        found = f"start is {start}, within a batch of {batch_size}, whose noise one torch.Generator draws together"
        raise ValueError(f"{found}; give a multiple of batch_size, or use rng philox or a list of generators")
    check_rescale(guidance_rescale)
    if dynamic_threshold is not None:
        check_percentile(dynamic_threshold)

    device = next(model.parameters()).device
    table = step_table(model, sampler, steps).to(device)
    if table.learned_noise is not None and config.out_channels == config.in_channels:
        found = f"the network has {config.out_channels} channels, none for the sampler's learned variance"
        raise ValueError(f"{found}; use fixed_small or fixed_large")
    noisy_rows = table.noisy_rows()
    # Rows where even an image of scale 2 would be unguided need no unconditional half at all.
    # Rows of one timestep go together: an interval is one of noise.
    visits, visit_of_row = table.timesteps.unique_consecutive(return_inverse=True)
    guided_visits = [w != 1.0 for w in guidance_per_row(2.0, len(visits), guidance_interval)]
    inside = [guided_visits[visit] for visit in visit_of_row.tolist()]
    if not np.isfinite(scales).all():
        raise ValueError(f"guidance is {guidance}; it must be finite (1 is off)")
    if guide is not None:
        _check_guide(model, guide)
    if cfg_plus_plus and not bool((table.coefficients[:, _K_O] != 0).any()):
        raise ValueError("cfg_plus_plus needs a sampler that noises its prediction again; use ddim")
    if cfg_plus_plus and ((scales < 0) | (scales > 1)).any():
        raise ValueError(f"guidance is {guidance}; with cfg_plus_plus it lies in 0 to 1")
    if guide is None and not config.has_null_label and (scales != 1.0).any():
        remedy = "; where its last class, or a row of zeros, is one, say so: --null-label, load_diffusers(..., null_label=True)"
        raise ValueError(
            f"guidance is {guidance}, but the network was trained without a null label, or its files name none; it can be "
            f"sampled with 1 only{remedy if config.class_embedding == 'table' else ''}"
        )
    scales = np.broadcast_to(scales, (count,))
    reasons = {
        "rng torch": drawn_from is not None,
        "guide": guide is not None,
        "cfg_plus_plus": cfg_plus_plus,
        "labels that are vectors": label.ndim == 2,
    }
    executor = _executor(model, precision, compile, guide, plain_for=[reason for reason, holds in reasons.items() if holds])

    def draw(first: int) -> np.ndarray:
        part = slice(first, first + batch_size)
        any_guided = bool((scales[part] != 1.0).any())
        # Left after each batch: between two of them the caller's code runs, in the caller's modes.
        with torch.no_grad():
            own_label = torch.from_numpy(label[part]).to(device)
            other = own_label
            if guide is None:
                other = torch.zeros_like(own_label) if own_label.dim() == 2 else torch.full_like(own_label, config.largest_label)
            noise = None
            if drawn_from is not None:
                image, dtype = (config.in_channels, *config.image_size), next(model.parameters()).dtype
                own = drawn_from if isinstance(drawn_from, torch.Generator) else drawn_from[part]
                if isinstance(own, torch.Generator) and first == start:
                    for _ in range(start // batch_size):
                        skip_batch(own, (batch_size, *image), noisy_rows, dtype)
                noise = TorchNoise(own, (len(own_label), *image), noisy_rows, dtype, device)
            batch = SamplingBatch(
                table,
                [any_guided and row_inside for row_inside in inside],
                labels=torch.cat([own_label, other]),
                seeds=torch.from_numpy(np.stack([np.full(len(label[part]), seed), index[part]], axis=1)).to(device),
                guidance=torch.tensor(scales[part], dtype=torch.float32, device=device),
                guidance_rescale=guidance_rescale,
                dynamic_threshold=dynamic_threshold,
                cfg_plus_plus=cfg_plus_plus,
                noise=noise,
            )
            with executor.begin(batch) as run:
                for row in range(table.num_rows):
                    run.advance(row)
                    if on_step is not None:
                        on_step(row, first, run.x_0)
                finite = run.x.flatten(1).isfinite().all(dim=1)
                if not bool(finite.all()):
                    place = first + int(finite.logical_not().nonzero()[0])
                    warnings.warn(
                        f"image {place} came out as numbers that are not finite, and is black there; look at the model's weights "
                        "and at what it was guided by",
                        stacklevel=3,
                    )
                return to_uint8(run.x)

    return map(draw, range(start, count, batch_size))


def release(model: ConditionalUNet) -> None:
    """Give back what `generate` keeps of a model for its next call, else as long as the model: on a CPU packed weights, on a GPU
    copied ones, code and recordings."""
    release_graphs(model)
    release_form(model)


def _executor(
    model: ConditionalUNet,
    precision: str | None,
    compile: bool | None,
    guide: ConditionalUNet | None,
    plain_for: Sequence[str],
) -> Executor:
    """What runs the model's batches: the one place that asks for the device. plain_for: what there is that is not recorded.

    Raises: ValueError for what was asked for and cannot be had, on this device or with these.
    """
    for asked, is_asked in (("precision bf16", precision == "bf16"), ("compile", compile)):
        if plain_for and is_asked:
            found = f"{asked} has no effect with {' and '.join(plain_for)}"
            raise ValueError(f"{found}: images are then drawn row by row in the model's own precision; leave it out")
    dtype = choose_dtype(precision, model)
    if plain_for:
        return EagerExecutor(model, guide)
    if next(model.parameters()).device.type == "cuda":
        return graph_executor(model, dtype, compiled=has_c_compiler() if compile is None else compile)
    if compile:
        raise ValueError("compile is True, which is for GPUs; on a CPU leave it out")
    return EagerExecutor(model)


def _check_guide(model: ConditionalUNet, guide: ConditionalUNet) -> None:
    """Raises: ValueError where the guide's prediction is no answer to the model's question."""
    for name in ("in_channels", "out_channels", "num_classes"):
        ours, theirs = getattr(model.config, name), getattr(guide.config, name)
        if ours != theirs:
            raise ValueError(f"the guide's {name} is {theirs}, the model's {ours}; they must agree")
    ours, theirs = model.diffusion, guide.diffusion
    for name in ("num_timesteps", "prediction"):
        if getattr(ours, name) != getattr(theirs, name):
            raise ValueError(f"the guide's {name} is {getattr(theirs, name)}, the model's {getattr(ours, name)}; they must agree")
    # By the numbers, which diffusers keeps in float32 and which other settings may give too.
    if _is_edm(ours) != _is_edm(theirs):
        raise ValueError("one of the model and its guide has a scheduler of EDM, whose networks predict another thing")
    a, b = (_schedule(config).alphas_cumprod for config in (ours, theirs))
    if not torch.allclose(a, b, rtol=_SCHEDULE_RTOL, atol=1e-9):
        t = int((a - b).abs().argmax())
        raise ValueError(f"the guide's alphas_cumprod at timestep {t} is {b[t]:.4g}, the model's {a[t]:.4g}; they must agree")


def _is_edm(config: DiffusionConfig) -> bool:
    return config.scheduler is not None and str(config.scheduler.get("_class_name")).startswith("EDM")


def _schedule(config: DiffusionConfig) -> NoiseSchedule:
    """Of any scheduler, EDM's training noise levels too."""
    if config.scheduler is not None and _is_edm(config):
        return from_diffusers_config(config.scheduler).schedule
    return NoiseSchedule.from_config(config)


def step_table(model: ConditionalUNet, sampler: str | Callable[..., StepTable] | StepTable, steps: int) -> StepTable:
    """The table that `generate` executes for this model, on the CPU."""
    if isinstance(sampler, StepTable):
        return sampler
    own = None
    if sampler == OWN_SCHEDULER:
        if model.diffusion.scheduler is None:
            raise ValueError(f"the model comes with no scheduler of its own; choose one of {', '.join(SAMPLERS)}")
        try:
            sampler = own = from_diffusers_config(model.diffusion.scheduler).sampler
        except ValueError as error:
            raise ValueError(f"the model's scheduler is not followed; choose one of {', '.join(SAMPLERS)}: {error}") from error
    if isinstance(sampler, str):
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler is {sampler!r}; choose one of {', '.join(SAMPLERS)}")
        sampler = SAMPLERS[sampler]
    if own is None and _is_edm(model.diffusion):
        raise ValueError(f"the model is one of EDM, which its own scheduler samples only; use sampler {OWN_SCHEDULER!r}")
    schedule, prediction = NoiseSchedule.from_config(model.diffusion), model.diffusion.prediction
    if sampler is ddpm and model.diffusion.variance != "fixed":
        return ddpm(schedule, steps, prediction=prediction, variance=model.diffusion.variance)
    return sampler(schedule, steps, prediction=prediction)


def to_uint8(x_0: Tensor) -> np.ndarray:
    """[B, C, H, W] in [-1, 1] (clamped) -> uint8 [B, H, W, C], rounded."""
    return ((x_0 / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def _labels(labels: Sequence[int] | np.ndarray | Tensor, config: UNetConfig) -> np.ndarray:
    """int64 [N], or float32 [N, width] where the network takes vectors and is given them."""
    width = vector_label_width(config)
    array = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if width is None or (array.ndim == 1 and config.class_embedding != "identity"):
        return _integers("labels", labels, config.largest_label)
    if array.ndim != 2 or array.shape[1] != width or array.dtype == object:
        raise ValueError(f"labels is {array.dtype} {list(array.shape)}; the network takes vectors of {width} numbers")
    if not np.isfinite(array.astype(np.float64)).all():
        raise ValueError("labels holds a number that is not finite")
    return array.astype(np.float32)


def _integers(name: str, values: Sequence[int] | np.ndarray | Tensor, largest: int) -> np.ndarray:
    """`values` as int64 [N], all in [0, largest]."""
    array = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} is {array.dtype} {list(array.shape)}; a list of integers is needed")
    wrong = array[(array < 0) | (array > largest)]
    if len(wrong):
        raise ValueError(f"{name} holds {wrong[0]}; values lie in 0 to {largest}")
    return array.astype(np.int64)
