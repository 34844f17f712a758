"""A run on disk is whole or absent, and says clearly what is wrong with it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from fastcond.training import Intervals, RunDirectory, load_run
from fastcond.training.run_directory import Checkpoint
from tests.support.tiny_runs import CLASS_NAMES, make_trainer, tiny_config


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run with checkpoints of steps 6 and 12."""
    make_trainer(tmp_path / "run", intervals=Intervals(save_every=6)).train()
    return RunDirectory(tmp_path / "run")


def test_a_run_has_the_files_of_the_format(run: RunDirectory) -> None:
    assert {path.name for path in run.path.iterdir()} == {
        "config.json",
        "class_labels.json",
        "metrics.jsonl",
        "samples",
        "checkpoints",
    }
    assert {path.name for path in (run.checkpoints_path / "00000012").iterdir()} == {
        "model.safetensors",
        "ema.safetensors",
        "optimizer.safetensors",
        "state.json",
    }
    assert json.loads((run.path / "class_labels.json").read_text()) == {
        "label2id": {"dark": 0, "bright": 1},
        "null_class_id": 2,
    }
    assert run.read_config() == tiny_config()
    assert run.read_class_names() == CLASS_NAMES


def test_load_run_gives_the_averaged_weights(run: RunDirectory) -> None:
    loaded = load_run(run.path)
    assert loaded.step == 12 and loaded.class_names == CLASS_NAMES and not loaded.model.training
    average = run.read_checkpoint(files=("ema",)).tensors["ema"]
    weights = run.read_checkpoint(files=("model",)).tensors["model"]
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, average[name])
    assert any(not torch.equal(average[name], weights[name]) for name in weights)
    assert load_run(run.path, step=6).step == 6


def test_no_run_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run in .*nothing; make one with: python -m fastcond\.train --out"):
        load_run(tmp_path / "nothing")


def test_a_run_without_checkpoint_says_how_to_go_on(tmp_path: Path) -> None:
    make_trainer(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint yet; train it with: .*--resume"):
        load_run(tmp_path / "run")


def test_an_unknown_step_lists_the_known(run: RunDirectory) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 7; there are 6, 12"):
        load_run(run.path, step=7)


@pytest.mark.parametrize("cut", [1, 1000])
def test_a_truncated_checkpoint_is_named(run: RunDirectory, cut: int) -> None:
    path = run.checkpoints_path / "00000012" / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ValueError, match=r"ema\.safetensors is damaged.*remove .*00000012 to go back"):
        load_run(run.path)
    assert load_run(run.path, step=6).step == 6


def test_a_flipped_bit_is_found(run: RunDirectory) -> None:
    path = run.checkpoints_path / "00000012" / "ema.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        load_run(run.path)


@pytest.mark.parametrize("file", ["config.json", "checkpoints/00000012/state.json"])
def test_another_version_is_refused(run: RunDirectory, file: str) -> None:
    values = json.loads((run.path / file).read_text())
    (run.path / file).write_text(json.dumps({**values, "format_version": 99}))
    with pytest.raises(ValueError, match="has format version 99; this fastcond reads version 1"):
        load_run(run.path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "config.json is not valid JSON"),
        ("config.json", "[]", "config.json holds list, not an object"),
        ("config.json", '{"format_version": 1}', "key 'network' is missing"),
        ("class_labels.json", '{"label2id": {"a": 3}}', "does not number its classes"),
        ("class_labels.json", '{"label2id": {"a": "x", "b": 0}}', "does not number its classes"),
        ("class_labels.json", '{"label2id": {"a": 0}}', "names 1 classes, its network has 2"),
        ("checkpoints/00000012/state.json", '{"format_version": 1}', "state.json has no step"),
        ("checkpoints/00000012/state.json", "\x00", "state.json is not valid JSON"),
    ],
)
def test_broken_json_is_named(run: RunDirectory, file: str, content: str, message: str) -> None:
    (run.path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_run(run.path)


def test_an_unknown_key_is_named(run: RunDirectory) -> None:
    values = json.loads((run.path / "config.json").read_text())
    values["network"]["quantum"] = True
    (run.path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"config\.json: unknown key 'quantum' in network"):
        load_run(run.path)


def test_a_folder_in_use_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dog.png").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"not empty; choose another --out"):
        RunDirectory(tmp_path / "photos").create(tiny_config(), CLASS_NAMES)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["dog.png"]


def test_a_full_disk_leaves_the_last_checkpoint_whole(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"could not write checkpoint .*00000018: No space left.*step 12 is whole; make room"):
        run.write_checkpoint(18, Checkpoint({"model": {"w": torch.zeros(3)}}, {"step": 18}))
    monkeypatch.undo()
    assert run.checkpoint_steps() == [6, 12]
    assert not list(run.checkpoints_path.glob(".partial*"))
    assert load_run(run.path).step == 12


def test_a_half_written_checkpoint_is_not_seen_and_is_removed(run: RunDirectory) -> None:
    partial = run.checkpoints_path / ".partial-00000018"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    assert run.checkpoint_steps() == [6, 12]
    run.remove_partial_checkpoints()
    assert not partial.exists()


def test_a_checkpoint_that_is_there_is_not_written_again(run: RunDirectory) -> None:
    before = run.read_checkpoint(12, files=("model",)).tensors["model"]
    assert not run.write_checkpoint(12, Checkpoint({"model": {"w": torch.zeros(3)}}, {"step": 12}))
    assert run.read_checkpoint(12, files=("model",)).tensors["model"].keys() == before.keys()
    assert run.write_checkpoint(18, Checkpoint({"model": {"w": torch.zeros(3)}}, {"step": 18}))
    assert run.checkpoint_steps() == [6, 12, 18]


def test_a_removed_checkpoint_is_gone(run: RunDirectory) -> None:
    run.remove_checkpoint(6)
    assert run.checkpoint_steps() == [12] and len(list(run.checkpoints_path.iterdir())) == 1


def test_what_a_killed_create_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "run" / "samples").mkdir(parents=True)
    (tmp_path / "run" / "class_labels.json").write_text("{}")
    RunDirectory(tmp_path / "run").create(tiny_config(), CLASS_NAMES)
    assert RunDirectory(tmp_path / "run").read_config() == tiny_config()


def test_commands_quote_a_folder_with_a_space(tmp_path: Path) -> None:
    assert RunDirectory("my run").resume_command() == "python -m fastcond.train --out 'my run' --resume"
