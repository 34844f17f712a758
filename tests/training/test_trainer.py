"""The training loop."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path

import pytest
import torch

from fastcond.config import TrainingConfig
from fastcond.training import Intervals, Progress, RunDirectory
from fastcond.training import trainer as trainer_module
from fastcond.training.metrics import read_metrics
from fastcond.training.trainer import Trainer, compile_mode, learning_rate
from tests.support.tiny_runs import bright_and_dark, last_checkpoint, make_trainer, tiny_config


def assert_same_checkpoint(first: Path, second: Path) -> None:
    """Every tensor file of the last checkpoints is equal, byte for byte."""
    assert last_checkpoint(first) == last_checkpoint(second)


@pytest.mark.parametrize("stop_at", [1, 5, 11])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, stop_at: int) -> None:
    assert make_trainer(tmp_path / "whole").train()
    first = make_trainer(tmp_path / "parts")
    first.on_progress = lambda progress: first.stop() if progress.step == stop_at else None
    assert not first.train()
    assert RunDirectory(tmp_path / "parts").checkpoint_steps() == [stop_at]
    torch.manual_seed(123)  # whatever the process did before
    second = make_trainer(tmp_path / "parts")
    second.resume()
    assert second.train()
    assert_same_checkpoint(tmp_path / "whole", tmp_path / "parts")


def test_writing_checkpoints_and_samples_changes_no_weight(tmp_path: Path) -> None:
    make_trainer(tmp_path / "quiet").train()
    drawn: list[int] = []
    busy = make_trainer(tmp_path / "busy", intervals=Intervals(save_every=3, sample_every=4, keep=2))
    busy.on_sample = lambda model, step: (drawn.append(step), torch.rand(3))[0]  # type: ignore[assignment]
    busy.train()
    assert drawn == [4, 8, 12]
    assert RunDirectory(tmp_path / "busy").checkpoint_steps() == [9, 12]
    assert_same_checkpoint(tmp_path / "quiet", tmp_path / "busy")


def test_the_loss_falls(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", tiny_config(steps=200))
    trainer.train()
    losses = [record["loss"] for record in read_metrics(trainer.directory.metrics_path)]
    assert [record["step"] for record in read_metrics(trainer.directory.metrics_path)] == [50, 100, 150, 200]
    assert losses[-1] < 0.5 * losses[0]


def test_the_seed_is_the_run(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_trainer(tmp_path / name, tiny_config(steps=3, seed=seed)).train()
    assert_same_checkpoint(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_checkpoint(tmp_path / "a", tmp_path / "c")


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    config = tiny_config(steps=3, warmup_steps=0)
    config = dataclasses.replace(config, network=dataclasses.replace(config.network, dropout=0.0))
    accumulated = dataclasses.replace(config, training=dataclasses.replace(config.training, accumulation=4))
    models = []
    for name, each in (("whole", config), ("parts", accumulated)):
        trainer = make_trainer(tmp_path / name, each)
        trainer.train()
        models.append(trainer.model.state_dict())
    # Adam turns a gradient near 0 into a step of the learning rate's size, whatever its sign, so rounding may cost a few weights
    # a step; of all of them the median must agree.
    differences = torch.cat([(models[0][name] - models[1][name]).abs().flatten() for name in models[0]])
    assert float(differences.median()) < 1e-6 < config.training.learning_rate


def test_minutes_end_the_run_and_drive_the_learning_rate(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", tiny_config(minutes=0.05))
    rates: list[float] = []
    trainer.on_progress = lambda progress: rates.append(trainer.optimizer.param_groups[0]["lr"])
    started = time.monotonic()
    assert trainer.train()
    assert 3.0 <= time.monotonic() - started < 30.0
    assert max(rates) > 1e-3 and rates[-1] < 0.2 * max(rates)
    state = json.loads(next(trainer.directory.checkpoints_path.glob("*/state.json")).read_text())
    assert state["elapsed_seconds"] >= 3.0 and state["step"] == len(rates)


def test_a_budget_of_minutes_counts_all_sessions(tmp_path: Path) -> None:
    first = make_trainer(tmp_path / "run", tiny_config(minutes=0.05))
    first.on_progress = lambda progress: first.stop() if progress.elapsed > 1.5 else None
    first.train()
    told: list[Progress] = []
    second = make_trainer(tmp_path / "run", on_progress=told.append)
    second.resume()
    assert second.train()
    assert told[0].elapsed > 1.5 and told[0].fraction > 0.5


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[Progress] = []
    trainer = make_trainer(tmp_path / "run", on_progress=told.append)
    trainer.train()
    assert [progress.step for progress in told] == list(range(1, 13))
    assert told[-1].images == 12 * 8 and told[-1].fraction == 1.0


def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", tiny_config(steps=200), intervals=Intervals(save_every=20))

    def poison(progress: Progress) -> None:
        if progress.step == 25:
            with torch.no_grad():
                trainer.model.conv_out.weight.fill_(math.nan)

    trainer.on_progress = poison
    with pytest.raises(ValueError, match=r"not finite at step 40.*lower --lr"):
        trainer.train()
    assert RunDirectory(tmp_path / "run").checkpoint_steps() == [20]


def test_a_batch_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be split into 3 equal micro-batches"):
        tiny_config(accumulation=3)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path / "run").train()
    config = tiny_config()
    other = dataclasses.replace(config, network=dataclasses.replace(config.network, block_out_channels=(16, 16)))
    trainer = Trainer(other, bright_and_dark(), RunDirectory(tmp_path / "run"), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"does not fit its config\.json"):
        trainer.resume()


def test_learning_rate_warms_up_and_falls() -> None:
    config = TrainingConfig(steps=1000, learning_rate=1.0, warmup_steps=10)
    assert learning_rate(config, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(config, 9, 0.009) == pytest.approx(1.0, abs=1e-3)
    assert learning_rate(config, 500, 0.5) == pytest.approx(0.5)
    assert learning_rate(config, 1000, 1.0) == pytest.approx(0.0)
    constant = dataclasses.replace(config, lr_schedule="constant")
    assert learning_rate(constant, 999, 0.999) == 1.0
    # Of a run of 20 steps, warm-up takes two and not ten.
    assert learning_rate(config, 2, 0.1) == pytest.approx(1.0, abs=0.03)


def test_without_warmup_the_first_step_has_the_full_rate() -> None:
    assert learning_rate(TrainingConfig(steps=10, learning_rate=0.5, warmup_steps=0), 0, 0.0) == 0.5


def test_a_session_removes_its_own_checkpoints_only(tmp_path: Path) -> None:
    make_trainer(tmp_path / "run", intervals=Intervals(save_every=4, keep=9)).train()
    longer = make_trainer(tmp_path / "run", tiny_config(steps=20), intervals=Intervals(save_every=2, keep=1))
    longer.resume()
    longer.train()
    assert RunDirectory(tmp_path / "run").checkpoint_steps() == [4, 8, 12, 20]


def test_a_budget_behind_the_run_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path / "run").train()
    with pytest.raises(ValueError, match="--steps 5 is behind the run, which is at step 12"):
        make_trainer(tmp_path / "run", tiny_config(steps=5)).resume()


def test_a_step_is_recorded_on_a_gpu_where_it_is_in_one_part() -> None:
    assert compile_mode("cuda", 1) == "reduce-overhead"
    assert {compile_mode("cuda", 2), compile_mode("cuda", 8), compile_mode("cpu", 1)} == {"default"}


@pytest.mark.parametrize(
    ("asked", "mode", "modes"),
    [(False, "reduce-overhead", []), (True, "default", ["default"]), (True, "reduce-overhead", ["reduce-overhead"])],
)
def test_the_network_is_compiled_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool, mode: str, modes: list[str]
) -> None:
    """Recorded steps begin where PyTorch is told so, each of them."""
    compiled: list[str] = []
    begun: list[int] = []
    monkeypatch.setattr(torch, "compile", lambda model, *, mode: (compiled.append(mode), model)[1])
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(0))
    monkeypatch.setattr(trainer_module, "compile_mode", lambda device_type, parts: mode)
    trainer = make_trainer(tmp_path / "run", tiny_config(compile=asked, steps=3))
    trainer.train()
    assert compiled == modes and len(begun) == (3 if modes == ["reduce-overhead"] else 0)


def test_the_optimiser_is_fused(tmp_path: Path) -> None:
    assert make_trainer(tmp_path / "run").optimizer.param_groups[0]["fused"] is True
