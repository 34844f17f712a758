"""Sampling with the words of a diffusers pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcond.diffusion import SAMPLERS, StepTable, from_diffusers_config
from fastcond.engine import DEFAULT_BATCH_SIZE, generate, step_table
from fastcond.engine.conditioning_table import vector_label_width
from fastcond.engine.generate import OWN_SCHEDULER, OnStep
from fastcond.interop.diffusers import load_diffusers
from fastcond.interop.opening import open_model
from fastcond.interop.pipeline_output import PipelineOutput, check_output_type, converted
from fastcond.interop.saving import save_diffusers
from fastcond.interop.scheduler_choice import check_learned_rows, config_of, scheduler_config
from fastcond.nn import ConditionalUNet

Labels = int | str | Sequence[int | str] | Sequence[Sequence[float]] | np.ndarray | Tensor
_CLASS_OF = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp2m": "DPMSolverMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
}
_STEPS = 50


@dataclass(frozen=True)
class PipelineScheduler:
    """config: a scheduler_config.json's object, from which diffusers makes a scheduler: `DDIMScheduler.from_config(config)`."""

    config: Mapping[str, Any]


class Pipeline:
    """A network, its scheduler and its class names, called as a pipeline of diffusers is.

    Args: model: in eval mode or not. class_names: K of them; None: the labels as numbers. sampler: as `fastcond.generate`'s;
        None: the scheduler that the model came with, else "ddpm".
    Raises: ValueError for another number of names, and for a sampler that is not known.
    """

    def __init__(
        self,
        model: ConditionalUNet,
        class_names: Sequence[str] | None = None,
        sampler: str | Callable[..., StepTable] | StepTable | None = None,
    ) -> None:
        self.unet = model
        count = model.config.num_classes
        self.class_names = tuple(map(str, range(count))) if class_names is None else tuple(class_names)
        if len(self.class_names) != count:
            raise ValueError(f"there are {len(self.class_names)} class names for {count} classes")
        self._scheduler = model.diffusion.scheduler
        known = [*SAMPLERS, *([] if self._scheduler is None else [OWN_SCHEDULER])]
        if sampler is None:
            sampler = "ddpm" if self._scheduler is None else OWN_SCHEDULER
        is_known = sampler in known if isinstance(sampler, str) else callable(sampler) or isinstance(sampler, StepTable)
        if not is_known:
            raise ValueError(f"sampler is {sampler!r}; choose one of {', '.join(known)}, or give a function or a StepTable")
        self.sampler = sampler
        self._progress_bar: dict[str, Any] | None = None

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        **settings: Any,
    ) -> Pipeline:
        """Of a run of fastcond, or a model or pipeline folder of diffusers.

        Args: torch_dtype, or dtype, as diffusers calls it too: of the weights; None: float32. settings: further keywords of
            `fastcond.interop.open_model`.
        Raises: as `fastcond.interop.open_model`; TypeError for a keyword that it does not have.
        """
        taken = ["step", *list(inspect.signature(load_diffusers).parameters)[1:]]
        unknown = sorted(settings.keys() - set(taken))
        if unknown:
            raise TypeError(f"{', '.join(unknown)}: no such argument; beside device and dtype there are {', '.join(taken)}")
        if torch_dtype is not None and dtype is not None:
            raise ValueError("torch_dtype and dtype are both given, two words for one thing; give one of them")
        opened = open_model(path, device=device, **settings)
        pipeline = cls(opened.model, opened.class_names, opened.sampler)
        wanted = torch_dtype or dtype
        return pipeline if wanted is None else pipeline.to(wanted)

    def save_pretrained(self, path: str | Path) -> None:
        """Write a folder that diffusers loads, with the present scheduler. Raises: as `fastcond.save_diffusers`."""
        save_diffusers(self.unet, path, class_names=self.class_names, scheduler=self.scheduler.config)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's weights."""
        return self.unet.dtype

    def to(self, *place: Any, **named: Any) -> Pipeline:
        """Move the network to a device, or change its dtype, or both, as `torch.nn.Module.to` takes them."""
        self.unet.to(*place, **named)
        return self

    @property
    def scheduler(self) -> PipelineScheduler:
        """What samples, in diffusers' words; of a sampler of ours, the class of diffusers that is written for it.

        A scheduler of diffusers can be assigned, such as `DDIMScheduler.from_config(pipe.scheduler.config)`, or a
        scheduler_config.json's object: it samples from then on. Raises: ValueError for one that cannot be followed, and, where
        it is asked for, for a sampler that no class of diffusers is.
        """
        if self.sampler == OWN_SCHEDULER and self._scheduler is not None:
            return PipelineScheduler(self._scheduler)
        name = next((name for name, function in SAMPLERS.items() if self.sampler in (name, function)), None)
        if name is None:
            raise ValueError(
                f"the sampler is a {type(self.sampler).__name__}, which no scheduler of diffusers says; give it to the calls as "
                f"sampler=, or make the pipeline with one of {', '.join(SAMPLERS)}, or assign a scheduler"
            )
        return PipelineScheduler(scheduler_config(self.unet.diffusion, _CLASS_OF[name]))

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        config = config_of(scheduler)
        network = self.unet.config
        rows = network.num_timesteps if network.time_embedding == "learned" else None
        check_learned_rows(from_diffusers_config(config).schedule.num_timesteps, rows)
        self._scheduler, self.sampler = config, OWN_SCHEDULER

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name."""
        return {"unet": self.unet, "scheduler": self.scheduler}

    @property
    def config(self) -> dict[str, tuple[str, str]]:
        """Of each part the library and the class, as in model_index.json; the scheduler's is what would be written."""
        return {"unet": ("fastcond", type(self.unet).__name__), "scheduler": ("diffusers", self.scheduler.config["_class_name"])}

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Show a bar of tqdm at each call, with these keywords of its; disable=True shows none, as before the first time."""
        self._progress_bar = None if settings.get("disable") else settings

    def __call__(
        self,
        class_labels: Labels | None = None,
        *,
        batch_size: int | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        eta: float | None = None,
        seed: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> PipelineOutput | tuple[Any]:
        """Draw one image a label.

        Args:
            class_labels: an index or a name, or a list of them; a list of one-hot rows, or, where the network takes vectors, of
                soft or multi-label ones, as a list, array or tensor [N, K]. A flat list is always one label an image:
                pipe([0, 0, 1]) is three images, of the labels 0, 0 and 1; one image of a one-hot row is pipe([[0, 0, 1]]).
                May be left out where the network knows no labels.
            batch_size: where class_labels is left out, how many images, by default 1; else how many are drawn at a time, by
                default all of them with one generator, as in diffusers, and 64 otherwise.
            guidance_scale: w in u + w (c - u), one number or one an image; 1, the default, is off.
            num_inference_steps: of the sampler; by default 50, or as many as there are timesteps where those are fewer.
            generator: draws the noise as diffusers' pipelines do, so that the images can be compared; None: noise by `seed`.
            eta: of DDIM, in [0, 1]: how much noise its steps add; 0 by default.
            seed: of the noise; None: drawn from PyTorch's global generator, so that torch.manual_seed repeats a call.
            output_type: "pil", "np" (or "numpy") or "pt". return_dict: False: a tuple of the images takes the output's place.
            options: further keywords of `fastcond.generate`, such as sampler or guidance_interval.
        Returns: a `PipelineOutput`.
        Raises: ValueError naming the argument that does not fit and what was found.
        """
        unknown = sorted(options.keys() - (inspect.signature(generate).parameters.keys() - {"model", "labels"}))
        if unknown:
            raise TypeError(f"{', '.join(unknown)}: no such argument; images are asked for by class_labels and guidance_scale")
        check_output_type(output_type, self.unet.config.in_channels)
        steps = _one_of("num_inference_steps", num_inference_steps, "steps", options.pop("steps", None), None)
        guidance = _one_of("guidance_scale", guidance_scale, "guidance", options.pop("guidance", None), 1.0)
        guide = options.get("guide")
        if guide is not None and not isinstance(guide, ConditionalUNet):
            raise ValueError(f"guide is {guide!r}; give a network, such as fastcond.load_diffusers(folder)")
        noise = _noise(generator, seed, options.pop("rng", None))
        if class_labels is None:
            batch_size = 1 if batch_size is None else batch_size
        labels = self._labels(class_labels, batch_size)
        if batch_size is None and isinstance(generator, torch.Generator):
            batch_size = max(1, len(labels))  # diffusers draws the noise of all images together
        sampler = options.pop("sampler", self.sampler)
        if steps is None:
            steps = min(_STEPS, self._num_timesteps(sampler))
        sampler = self._sampler(sampler, steps, eta)
        batches = -(-len(labels) // (batch_size or DEFAULT_BATCH_SIZE))
        with self._showing_progress(sampler, steps, batches, options.pop("on_step", None)) as on_step:
            settings = {**options, **noise, "guidance": guidance, "batch_size": batch_size, "on_step": on_step}
            pixels = generate(self.unet, labels, sampler=sampler, steps=steps, **settings)
        images: Any = converted(pixels, output_type)
        return PipelineOutput(images) if return_dict else (images,)

    def _num_timesteps(self, sampler: Any) -> int:
        """T of what samples."""
        own = isinstance(sampler, str) and sampler == OWN_SCHEDULER
        if not own or self._scheduler is None or self._scheduler is self.unet.diffusion.scheduler:
            return self.unet.diffusion.num_timesteps
        return from_diffusers_config(self._scheduler).schedule.num_timesteps

    def _sampler(self, sampler: Any, steps: int, eta: float | None) -> Any:
        """What `generate` takes."""
        named = {} if eta is None else {"eta": eta}
        if not isinstance(sampler, str) or sampler != OWN_SCHEDULER or self._scheduler is None:
            if not named:
                return sampler
            if isinstance(sampler, str) and sampler == "ddim":
                return partial(SAMPLERS[sampler], **named)
        elif not named and self._scheduler is self.unet.diffusion.scheduler:
            return sampler  # `generate` knows it
        elif not named or self._scheduler["_class_name"] == "DDIMScheduler":
            found = from_diffusers_config(self._scheduler)
            return found.sampler(found.schedule, steps, prediction=found.prediction, **named)
        raise ValueError(f"eta is {eta}, a setting of DDIM; leave it out, or use sampler='ddim' or a DDIMScheduler")

    @contextmanager
    def _showing_progress(self, sampler: Any, steps: int, batches: int, on_step: OnStep | None) -> Iterator[OnStep | None]:
        """What is to be called after each row: the caller's, and the bar's where one was asked for."""
        if self._progress_bar is None:
            yield on_step
            return
        from tqdm import tqdm  # here, since most calls show none

        with tqdm(total=step_table(self.unet, sampler, steps).num_rows * batches, **self._progress_bar) as bar:

            def advance(row: int, first: int, x_0: Tensor) -> None:
                bar.update()
                if on_step is not None:
                    on_step(row, first, x_0)

            yield advance

    def _labels(self, labels: Labels | None, batch_size: int | None) -> Any:
        """What `generate` takes."""
        if labels is None:
            if self.unet.config.class_embedding != "none" or self.unet.config.conditioning == "label_attention":
                names = ", ".join(self.class_names[:20])
                raise ValueError(f"class_labels is missing; give labels or names ({names}), or a list of them, one an image")
            return np.zeros(max(1, batch_size or 1), dtype=np.int64)
        given: Any = labels
        if isinstance(given, str) or not hasattr(given, "__len__") or getattr(given, "ndim", 1) == 0:
            given = [given]
        given = _in_numpy(given)
        if not isinstance(given, np.ndarray):
            given = [_in_numpy(label) for label in given]
            widths = {0 if isinstance(label, str) or not np.ndim(label) else len(label) for label in given}
            if len(widths) > 1:
                found = ", ".join(f"rows of {width} numbers" if width else "single labels" for width in sorted(widths))
                raise ValueError(f"class_labels mixes {found}; give single labels, or rows of {len(self.class_names)} numbers")
            given = [self._index(label) if isinstance(label, str) else label for label in given]
            given = np.asarray(given)
        if given.ndim != 2 or vector_label_width(self.unet.config) is not None:
            return given
        # A table knows classes only: a row must be one of them.
        is_binary = np.isin(given, (0, 1)).all() and (given.sum(axis=1) == 1).all()
        if given.shape[1] != len(self.class_names) or not is_binary:
            raise ValueError(
                f"class_labels is {given.dtype} {list(given.shape)}; this network knows classes by a table: give indices, "
                f"names, or one-hot rows of {len(self.class_names)} numbers"
            )
        return given.argmax(axis=1)

    def _index(self, name: str) -> int:
        if name not in self.class_names:
            raise ValueError(f"there is no class {name!r}; the names are {', '.join(self.class_names[:50])}")
        return self.class_names.index(name)


def _in_numpy(labels: Any) -> Any:
    """A tensor as an array, and an array of names as a list; else as it is."""
    if isinstance(labels, Tensor):
        labels = labels.detach()
        return (labels.float() if labels.is_floating_point() else labels).cpu().numpy()
    return labels.tolist() if isinstance(labels, np.ndarray) and labels.dtype.kind == "U" else labels


def _one_of(name: str, value: Any, other: str, other_value: Any, default: Any) -> Any:
    """An argument that has two names. Raises: ValueError where both are given."""
    given = [one for one in (value, other_value) if one is not None]
    if len(given) > 1:
        raise ValueError(f"{name} and {other} are both given, two words for one thing; give one of them")
    return given[0] if given else default


def _noise(generator: Any, seed: int | None, rng: Any) -> dict[str, Any]:
    """What the noise is, as `generate` takes it. rng: generate's, where it is given."""
    if generator is None:
        return {"rng": "philox" if rng is None else rng, "seed": int(torch.randint(2**32, ())) if seed is None else seed}
    for name, other in (("seed", seed), ("rng", rng)):
        if other is not None:
            raise ValueError(f"generator and {name} are both given; one of them says what the noise is")
    many = isinstance(generator, Sequence) and all(isinstance(one, torch.Generator) for one in generator)
    if not many and not isinstance(generator, torch.Generator):
        found = repr(generator)[:50]
        raise ValueError(f"generator is {found}; give a torch.Generator, or a list with one an image; a number is given as seed")
    return {"rng": generator}
