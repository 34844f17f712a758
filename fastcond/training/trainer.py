"""The training loop: loss, optimiser, EMA, learning rate, checkpoints and samples of one run."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastcond.config import RunConfig, TrainingConfig
from fastcond.data import LabelledImages
from fastcond.diffusion import NoiseSchedule, VariationalBound, diffusion_loss, loss_weights
from fastcond.nn import ConditionalUNet
from fastcond.ops.native import keep_freed_memory
from fastcond.training.batches import Batch, BatchSource
from fastcond.training.distributed import ProcessGroup
from fastcond.training.ema import ema_decay, update_ema
from fastcond.training.metrics import MetricsLog
from fastcond.training.run_directory import Checkpoint, RunDirectory

LOG_EVERY = 50  # steps between records of metrics.jsonl
_SECONDS_BETWEEN_SAVES = 600.0
_WARMUP_SHARE = 0.1  # warm-up takes at most this share of a run
_SAMPLES_A_RUN = 4
_AVERAGES = ("exp_avg", "exp_avg_sq")  # AdamW's state of a parameter, beside the step that all share


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `fraction` of its budget, elapsed seconds in all, loss of the last window (None at first)."""

    step: int
    images: int
    elapsed: float
    fraction: float
    loss: float | None


@dataclass(frozen=True)
class Intervals:
    """When to write: steps between checkpoints and between sample grids (None: by the clock).

    keep: how many of its own checkpoints a session keeps; those of earlier sessions are left alone.
    """

    save_every: int | None = None
    sample_every: int | None = None
    keep: int = 3


class Trainer:
    """Trains one run. Build it, `resume()` if there is a checkpoint, `train()`."""

    def __init__(
        self,
        config: RunConfig,
        data: LabelledImages,
        directory: RunDirectory,
        device: torch.device,
        *,
        group: ProcessGroup | None = None,
        intervals: Intervals | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        on_sample: Callable[[ConditionalUNet, int], None] | None = None,
    ) -> None:
        """on_progress is called after every step; on_sample with the EMA model when a sample grid is due, on the main process."""
        self.config, self.directory, self.device = config, directory, device
        self.group, self.intervals = group or ProcessGroup(), intervals or Intervals()
        self.on_progress, self.on_sample = on_progress, on_sample
        training = config.training
        parts = self.group.world_size * training.accumulation
        if training.batch_size % parts:
            raise ValueError(
                f"batch size {training.batch_size} cannot be split over {self.group.world_size} processes and "
                f"{training.accumulation} micro-batches; make it a multiple of {parts}"
            )
        learned = config.diffusion.variance == "learned_range"
        channels, wanted = config.network.out_channels, config.network.in_channels * (2 if learned else 1)
        if channels != wanted:
            raise ValueError(f"the network has {channels} output channels; variance {config.diffusion.variance} needs {wanted}")
        if data.labels.ndim == 2 and config.network.conditioning != "label_attention":
            found = (
                f"labels are rows of {data.labels.shape[1]} numbers, and conditioning {config.network.conditioning} takes classes"
            )
            raise ValueError(f"{found}; rows are for --conditioning label-attention")
        self.micro_batch = training.batch_size // parts
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            model = ConditionalUNet(config.network, config.diffusion)
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._has_dropout = any(isinstance(module, nn.Dropout) and module.p > 0 for module in self.model.modules())
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
        )
        mode = compile_mode(device.type, parts) if training.compile else None
        self._records = mode == "reduce-overhead"
        denoiser = self.model if mode is None else torch.compile(self.model, mode=mode)
        self.denoiser: nn.Module = self.group.wrap(denoiser)  # type: ignore[arg-type]
        schedule = NoiseSchedule.from_config(config.diffusion)
        self.alphas_cumprod = schedule.alphas_cumprod.float().to(device)
        weights = loss_weights(schedule, config.diffusion.prediction, training.weighting, training.min_snr_gamma)
        self.weights = weights.float().to(device)
        self.bound = VariationalBound.of(schedule, config.diffusion.prediction, device) if learned else None
        self.batches = BatchSource(data, training, schedule.num_timesteps, config.network.null_label, device)
        self.step, self.elapsed_before = 0, 0.0
        self._loss_sum = torch.zeros((), device=device)
        self._loss_count = 0
        self._last_loss: float | None = None
        self._window_start = (0, 0.0)
        self._stop_requested = False
        self._last_save = self._last_sample = 0.0
        self._written: list[int] = []  # steps of this session's checkpoints, the only ones that it removes

    def resume(self) -> None:
        """Take weights, averages, optimiser state and step from the run's last checkpoint."""
        checkpoint = self.directory.read_checkpoint()
        optimizer = checkpoint.tensors["optimizer"]
        try:
            self.model.load_state_dict(dict(checkpoint.tensors["model"]))
            self.average.load_state_dict(dict(checkpoint.tensors["ema"]))
            for name, parameter in self.model.named_parameters():
                self.optimizer.state[parameter] = {
                    "step": optimizer["step"].clone().to(self.device),
                    # The fused update walks memory: its averages must have the parameter's memory format.
                    **{key: torch.empty_like(parameter).copy_(optimizer[f"{key}.{name}"]) for key in _AVERAGES},
                }
        except (RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"the last checkpoint of {self.directory.path} does not fit its config.json: {reason}") from error
        self.step = checkpoint.step
        self.elapsed_before = float(checkpoint.state.get("elapsed_seconds", 0.0))
        steps = self.config.training.steps
        if steps is not None and steps < self.step:
            raise ValueError(f"--steps {steps} is behind the run, which is at step {self.step}; give at least that many")

    def stop(self) -> None:
        """Ask the loop to end after the step in hand; it saves first."""
        self._stop_requested = True

    def train(self) -> bool:
        """Train to the end of the budget. Returns whether it was reached (False after `stop`). Always ends with a checkpoint."""
        keep_freed_memory()
        started = time.monotonic()
        metrics = None
        if self.group.is_main:
            self.directory.remove_partial_checkpoints()
            metrics = MetricsLog(self.directory.metrics_path, self.step)
        self._last_save = self._last_sample = self.elapsed_before
        self._window_start = (self.step, self.elapsed_before)
        self.model.train()
        while True:
            elapsed, stop = self.group.agree(self.elapsed_before + time.monotonic() - started, self._stop_requested)
            fraction = self._fraction(elapsed)
            if fraction >= 1.0 or stop:
                break
            gradient_norm = self._train_step(fraction)
            self.step += 1
            elapsed = self.elapsed_before + time.monotonic() - started
            if self.step % LOG_EVERY == 0:
                self._log(metrics, elapsed, float(gradient_norm))
            if self.on_progress is not None:
                images = self.step * self.config.training.batch_size
                self.on_progress(Progress(self.step, images, elapsed, self._fraction(elapsed), self._last_loss))
            if self.group.is_main:
                self._write_what_is_due(elapsed)
        if self.group.is_main:
            self._save(elapsed)
            if self.on_sample is not None and not stop:
                self.on_sample(self.average, self.step)
        return not stop

    def _train_step(self, fraction: float) -> Tensor:
        """Forward, backward and update on one batch. Returns the gradient's norm before clipping."""
        training = self.config.training
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate(training, self.step, fraction)
        if self._has_dropout:
            # nn.Dropout draws from the global generator, which thus becomes a function of (seed, step, process).
            own = self.group.rank * 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: far apart for any two ranks
            torch.manual_seed(((training.seed << 32) + self.step + own) % 2**64)
        for micro in range(training.accumulation):
            first = (micro * self.group.world_size + self.group.rank) * self.micro_batch
            batch = self.batches.draw(self.step, first, self.micro_batch)
            if self._records:
                torch.compiler.cudagraph_mark_step_begin()
            last = micro == training.accumulation - 1
            # Gradients of all but the last micro-batch stay in this process.
            with nullcontext() if last or self.group.world_size == 1 else self.denoiser.no_sync():  # type: ignore[operator]
                loss = self._loss(batch) / training.accumulation
                loss.backward()
            self._loss_sum += loss.detach()
        self._loss_count += 1
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), training.clip_grad_norm, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad()
        update_ema(self.average, self.model, ema_decay(self.step, training.ema_decay))
        return norm

    def _loss(self, batch: Batch) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.training.precision == "bf16"):
            return diffusion_loss(
                self.denoiser,
                batch.x_0,
                batch.label,
                batch.timestep,
                batch.eps,
                alphas_cumprod=self.alphas_cumprod,
                weights=self.weights,
                prediction=self.config.diffusion.prediction,
                bound=self.bound,
            )

    def _fraction(self, elapsed: float) -> float:
        """Share of the budget that is used up."""
        training = self.config.training
        if training.steps is not None:
            return self.step / training.steps
        assert training.minutes is not None
        return elapsed / (60.0 * training.minutes)

    def _log(self, metrics: MetricsLog | None, elapsed: float, gradient_norm: float) -> None:
        """Write a record and empty the loss window. Raises where the loss is no number any more."""
        loss = float(self.group.mean(self._loss_sum / max(self._loss_count, 1)))
        batch_size = self.config.training.batch_size
        if not math.isfinite(loss):
            steps = self.directory.checkpoint_steps()
            kept = f"the checkpoint of step {steps[-1]} is from before" if steps else "there is no checkpoint yet"
            raise ValueError(f"the loss is {loss} at step {self.step}: training has diverged; use a lower --lr; {kept}")
        first_step, first_elapsed = self._window_start
        if metrics is not None:
            metrics.write(
                {
                    "step": self.step,
                    "images": self.step * batch_size,
                    "loss": loss,
                    "learning_rate": self.optimizer.param_groups[0]["lr"],
                    "gradient_norm": gradient_norm,
                    "images_per_second": (self.step - first_step) * batch_size / max(elapsed - first_elapsed, 1e-9),
                    "elapsed_seconds": elapsed,
                }
            )
        self._loss_sum.zero_()
        self._loss_count, self._last_loss = 0, loss
        self._window_start = (self.step, elapsed)

    def _write_what_is_due(self, elapsed: float) -> None:
        if _is_due(self.intervals.save_every, self.step, elapsed - self._last_save, _SECONDS_BETWEEN_SAVES):
            self._save(elapsed)
            self._last_save = elapsed
        # A short run shows itself a few times all the same.
        fraction = self._fraction(elapsed)
        expected = elapsed / fraction if fraction > 0 else math.inf
        seconds = min(_SECONDS_BETWEEN_SAVES, expected / _SAMPLES_A_RUN)
        due = _is_due(self.intervals.sample_every, self.step, elapsed - self._last_sample, seconds)
        if due and fraction < 1.0 and self.on_sample is not None:
            self.on_sample(self.average, self.step)
            self._last_sample = elapsed

    def _save(self, elapsed: float) -> None:
        optimizer: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            state: dict[str, Any] = self.optimizer.state.get(parameter, {})
            optimizer["step"] = state.get("step", torch.zeros(()))
            optimizer |= {f"{key}.{name}": state.get(key, torch.zeros_like(parameter)) for key in _AVERAGES}
        tensors = {"model": self.model.state_dict(), "ema": self.average.state_dict(), "optimizer": optimizer}
        if not all(bool(value.isfinite().all()) for value in tensors["model"].values()):
            raise ValueError(f"weights are not finite at step {self.step}: training has diverged; use a lower --lr")
        images = self.step * self.config.training.batch_size
        state = {"step": self.step, "images": images, "elapsed_seconds": elapsed}
        if self.directory.write_checkpoint(self.step, Checkpoint(tensors, state)):
            self._written.append(self.step)
        while len(self._written) > self.intervals.keep:
            self.directory.remove_checkpoint(self._written.pop(0))


def compile_mode(device_type: str, parts: int) -> str:
    """The mode of `torch.compile` for training: on a GPU "reduce-overhead", which records the network as CUDA graphs.

    But not where a step is in several parts, of processes or of micro-batches: their gradients would have to outlive the replay
    in whose memory they lie, among DistributedDataParallel's buckets or until the next micro-batch is added.
    """
    return "reduce-overhead" if device_type == "cuda" and parts == 1 else "default"


def learning_rate(config: TrainingConfig, step: int, fraction: float) -> float:
    """Linear warm-up over `warmup_steps`, but at most a tenth of the run, then constant or half a cosine down to zero.

    Args: step: steps done. fraction: share of the budget used up, in [0, 1].
    Source of the cosine: Loshchilov & Hutter 2017, eq. 5.
    """
    warmup = 1.0
    if config.warmup_steps > 0:
        warmup = min(1.0, max((step + 1) / config.warmup_steps, fraction / _WARMUP_SHARE))
    decay = 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0))) if config.lr_schedule == "cosine" else 1.0
    return config.learning_rate * warmup * decay


def _is_due(every: int | None, step: int, seconds_since: float, seconds_between: float) -> bool:
    return step % every == 0 if every is not None else seconds_since >= seconds_between
