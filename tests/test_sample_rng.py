"""python -m fastcond.sample --rng torch: the images of a pipeline of diffusers, and what they depend on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcond import drawing
from fastcond.engine import to_uint8
from fastcond.engine.executor import EagerExecutor
from tests.support.command_lines import assert_one_line, sample_here
from tests.support.networks import perturb
from tests.support.tiny_runs import write_run
from tests.tolerances import GRAY_LEVELS

STEPS, SEED = 6, 11


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run")


def pipeline_folder(folder: Path, scheduler: str, *, classes: int | None, null_label: bool = False, **settings: Any) -> Any:
    """A pipeline of a small network, written to a folder."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=classes,
    ).eval()
    perturb(network)
    made = getattr(diffusers, scheduler)(**{"num_train_timesteps": 100, **settings})
    pipeline = getattr(diffusers, scheduler.replace("Scheduler", "Pipeline"))(network, made)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    if null_label:
        names = {str(i): i for i in range((classes or 1) - 1)}
        (folder / "class_labels.json").write_text(json.dumps({"label2id": names, "null_class_id": len(names)}))
    return pipeline


def drawn(folder: Path, *flags: str | int | Path) -> np.ndarray:
    """The images that the command line draws."""
    out = folder.with_name(f"drawn-{len(list(folder.parent.iterdir()))}")
    assert sample_here("--run", folder, "--steps", STEPS, "--seed", SEED, *flags, "--out", out) == 0
    with np.load(out / "samples.npz") as arrays:
        return arrays["images"].astype(int)


@torch.no_grad()
def loop(pipeline: Any, batches: list[list[int]], guidance: float = 1.0, **options: Any) -> np.ndarray:
    """diffusers' network and scheduler, one generator for all batches; the last class is the null label."""
    from diffusers.utils.torch_utils import randn_tensor

    generator, images = torch.Generator().manual_seed(SEED), []
    network, scheduler = pipeline.unet, pipeline.scheduler
    for labels in batches:
        label = torch.tensor(labels)
        null = torch.full_like(label, network.config.num_class_embeds - 1)
        x = randn_tensor((len(labels), 3, 8, 8), generator=generator)
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            g = network(x, t, class_labels=label).sample
            if guidance != 1.0:
                u = network(x, t, class_labels=null).sample
                g = u + guidance * (g - u)
            x = scheduler.step(g, t, x, generator=generator, **options).prev_sample
        images.append(to_uint8(x))
    return np.concatenate(images).astype(int)


@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "DDIMScheduler"])
def test_an_unconditional_pipeline_s_images(tmp_path: Path, scheduler: str) -> None:
    """The pipeline itself, called once for the whole set."""
    pipeline = pipeline_folder(tmp_path / "pipeline", scheduler, classes=None)
    generator = torch.Generator().manual_seed(SEED)
    called = pipeline(batch_size=5, generator=generator, num_inference_steps=STEPS, output_type="np")
    expected = np.round(called.images * 255).astype(int)
    ours = drawn(tmp_path / "pipeline", "--label", "0", "--n", 5, "--rng", "torch")
    assert np.abs(ours - expected).max() <= GRAY_LEVELS
    assert np.abs(drawn(tmp_path / "pipeline", "--label", "0", "--n", 5) - expected).max() > GRAY_LEVELS, "philox is other noise"


@pytest.mark.parametrize(
    ("scheduler", "settings", "guidance"),
    [
        ("DDPMScheduler", {}, 1.0),
        ("DDPMScheduler", {"variance_type": "fixed_large"}, 3.0),
        ("DDIMScheduler", {"clip_sample": False}, 1.0),
        ("DDIMScheduler", {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}, 2.0),
    ],
)
def test_labels_and_batches_in_order(tmp_path: Path, scheduler: str, settings: dict[str, Any], guidance: float) -> None:
    """All images of the first label, then of the next; a batch is a call of the pipeline with the same generator."""
    pipeline = pipeline_folder(tmp_path / "pipeline", scheduler, classes=4, null_label=True, **settings)
    flags = ("--label", "2,0", "--n", 3, "--rng", "torch", "--cfg", guidance)
    by_four = drawn(tmp_path / "pipeline", *flags, "--batch-size", 4)
    assert np.abs(by_four - loop(pipeline, [[2, 2, 2, 0], [0, 0]], guidance)).max() <= GRAY_LEVELS
    together = drawn(tmp_path / "pipeline", *flags)
    assert np.abs(together - loop(pipeline, [[2, 2, 2, 0, 0, 0]], guidance)).max() <= GRAY_LEVELS
    if scheduler == "DDPMScheduler":
        assert np.abs(together - by_four).max() > GRAY_LEVELS, "what a step draws for a batch comes before the next batch's"


def test_ddim_s_noise(tmp_path: Path) -> None:
    """A sampler of ours: eta's noise comes from the generator too, as that of diffusers' scheduler does."""
    # The steps divide T: elsewhere the two go to other noise levels.
    own = {"num_train_timesteps": 20 * STEPS, "timestep_spacing": "trailing"}
    pipeline = pipeline_folder(tmp_path / "pipeline", "DDIMScheduler", classes=4, null_label=True, **own)
    flags = ("--label", "2,0", "--n", 2, "--batch-size", 3, "--sampler", "ddim", "--rng", "torch", "--eta")
    with_noise, batches = drawn(tmp_path / "pipeline", *flags, 1), [[2, 2, 0], [0]]
    assert np.abs(with_noise - loop(pipeline, batches, eta=1.0)).max() <= GRAY_LEVELS
    assert np.abs(with_noise - loop(pipeline, batches)).max() > GRAY_LEVELS, "without eta there is no such noise"


def test_it_is_said_and_kept_with_the_set(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--run", run, "--label", "0", "--n", "3", "--steps", "2", "--batch-size", "2")
    assert sample_here(*flags, "--rng", "torch", "--out", tmp_path / "torch") == 0
    assert ", cfg 1, rng torch: " in capsys.readouterr().out
    settings = json.loads((tmp_path / "torch" / "samples.json").read_text())
    assert (settings["rng"], settings["batch_size"]) == ("torch", 2)
    assert sample_here(*flags, "--rng", "philox", "--out", tmp_path / "philox") == 0
    assert not {"rng", "batch_size"} & json.loads((tmp_path / "philox" / "samples.json").read_text()).keys()
    capsys.readouterr()
    again = (*flags, "--rng", "torch", "--resume", "--out")
    assert sample_here(*again, tmp_path / "torch") == 0, "whole already"
    capsys.readouterr()
    code = sample_here(*again, tmp_path / "torch", "--batch-size", "3")
    assert_one_line(code, capsys, "begun with batch_size 2, not 3")
    assert_one_line(sample_here(*again, tmp_path / "philox"), capsys, 'begun with rng null, not "torch"')


def test_a_set_that_was_interrupted_is_gone_on_with(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the files of an uninterrupted one, the picture and its animation too."""
    flags = ("--run", run, "--label", "0,1", "--n", "7", "--steps", "3", "--rng", "torch", "--batch-size", "4", "--gif")
    assert sample_here(*flags, "--out", tmp_path / "whole") == 0

    class Interrupted(drawing.SampleFolder):
        def add(self, images: np.ndarray) -> None:
            if self._stream.done + sum(not future.done() for future in self._pending) * 4 >= 8:
                raise KeyboardInterrupt
            super().add(images)

    with monkeypatch.context() as patch:
        patch.setattr(drawing, "SampleFolder", Interrupted)
        assert sample_here(*flags, "--out", tmp_path / "parts") != 0
    with np.load(tmp_path / "parts" / "samples.npz") as arrays:
        assert 0 < len(arrays["images"]) < 14
    assert sample_here(*flags, "--out", tmp_path / "parts", "--resume") == 0
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "parts").iterdir())
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name


def test_frames_are_drawn_again_without_the_other_batches(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 18 batches those that hold an image of the picture: two of the first label's, three of the second's."""
    monkeypatch.setattr(drawing, "_MOST_ROWS_A_LABEL", 1)
    flags = ("--run", run, "--label", "0,1", "--n", "43", "--steps", "2", "--rng", "torch", "--batch-size", "5")
    out, batches = tmp_path / "set", []
    assert sample_here(*flags, "--gif", "--out", out) == 0
    expected = (out / "denoising.gif").read_bytes()
    (out / "denoising.gif").unlink()
    begin = EagerExecutor.begin

    def counted(executor: EagerExecutor, batch: Any) -> Any:
        batches.append(len(batch.labels) // 2)
        return begin(executor, batch)

    monkeypatch.setattr(EagerExecutor, "begin", counted)
    assert sample_here(*flags, "--gif", "--out", out, "--resume") == 0
    assert batches == [5] * 5
    assert (out / "denoising.gif").read_bytes() == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--rng", "torch", "--precision", "bf16"), "precision bf16 has no effect with rng torch: images are then drawn row by"),
        (("--rng", "torch", "--compile"), "compile has no effect with rng torch"),
        (("--guide", "OTHER", "--cfg", "2", "--precision", "bf16"), "precision bf16 has no effect with guide: images"),
        (("--guide", "RUN"), "--guide has no effect with --cfg 1"),
        (("--sampler", "ddim", "--cfg-plus-plus", "--compile"), "compile has no effect with cfg_plus_plus: images"),
    ],
)
def test_flags_without_effect_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    other = write_run(tmp_path / "other", seed=1)
    own = [{"RUN": run, "OTHER": other}.get(flag, flag) for flag in flags]
    code = sample_here("--run", run, "--label", "0", *own, "--out", tmp_path / "s")
    assert_one_line(code, capsys, message)
    assert not (tmp_path / "s").exists()
