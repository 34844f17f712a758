"""The command lines with models of diffusers: what is told of them by flags, which labels they take, what is refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcond.engine import generate
from fastcond.interop.diffusers import load_diffusers
from fastcond.training import load_run
from tests.support.command_lines import assert_one_line, convert_here, export_here, sample_here, start
from tests.support.foreign import label_mlp, plain_network, save_blog
from tests.support.tiny_runs import write_run

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

FEW = ("--n", "1", "--steps", "2")


def drawn(folder: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """The images, and what samples.json says."""
    return np.load(folder / "samples.npz")["images"], json.loads((folder / "samples.json").read_text())


def with_scheduler(folder: Path, **settings: Any) -> Path:
    """A model's folder, with a scheduler of its own in it."""
    diffusers.DDPMScheduler(**settings).save_pretrained(folder / "scheduler")
    return folder


def test_the_blog_s_model_with_all_that_its_files_do_not_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A label MLP elsewhere, a null label of zeros, T = 200: sampled, converted and exported the same."""
    (tmp_path / "elsewhere").mkdir()
    blog = save_blog(tmp_path, "elsewhere/labels.pth")
    mlp = tmp_path / "elsewhere" / "labels.pth"
    assert_one_line(sample_here("--run", blog, "--label", "0", "--out", tmp_path / "no"), capsys, "--label-mlp FILE")
    told = ("--label-mlp", mlp, "--null-label", "--timesteps", "200", "--prediction", "v")
    flags = (*FEW, "--label", "1,null", "--cfg", "2", "--sampler", "ddim")
    assert sample_here("--run", blog, *flags, *told, "--out", tmp_path / "drawn") == 0
    images, settings = drawn(tmp_path / "drawn")
    model = load_diffusers(blog, label_mlp=mlp, null_label=True, timesteps=200, prediction="v")
    expected = generate(model, [1, 5], guidance=2.0, sampler="ddim", steps=2, indices=[0, 0])
    assert np.array_equal(images, expected)
    assert settings["null_label"] and (settings["timesteps"], settings["prediction"]) == (200, "v")
    assert convert_here(blog, tmp_path / "converted", *told) == 0
    assert sample_here("--run", tmp_path / "converted", *flags, "--out", tmp_path / "again") == 0
    assert np.array_equal(drawn(tmp_path / "again")[0], images)
    assert export_here(blog, tmp_path / "step.pt2", *told, "--steps", "2", "--batch-size", "1") == 0
    # The same set is gone on with under the same settings only.
    others = (*told[:-1], "eps")
    capsys.readouterr()
    assert sample_here("--run", blog, *flags, *others, "--out", tmp_path / "drawn", "--resume") == 2
    assert "prediction" in capsys.readouterr().err.splitlines()[-1]


def test_guidance_names_the_flag_that_a_null_label_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain_network().save_pretrained(tmp_path / "table")
    plain_network(class_embed_type="timestep").save_pretrained(tmp_path / "timestep")
    for name, remedy in (("table", "say so: --null-label, load_diffusers(..., null_label=True)"), ("timestep", "with 1 only")):
        folder, flags = with_scheduler(tmp_path / name), (*FEW, "--label", "0", "--cfg", "2", "--out", tmp_path / f"{name}-drawn")
        assert_one_line(sample_here("--run", folder, *flags), capsys, "or its files name none", remedy)
    assert "--null-label" not in capsys.readouterr().err
    assert (
        sample_here("--run", tmp_path / "table", *FEW, "--label", "0,null", "--cfg", "2", "--null-label", "--out", tmp_path / "d")
        == 0
    )
    assert drawn(tmp_path / "d")[0].shape == (2, 8, 8, 3)


def test_a_variant_is_chosen(tmp_path: Path) -> None:
    network = plain_network()
    network.save_pretrained(tmp_path / "in")
    with torch.no_grad():
        network.conv_in.weight.zero_()
    network.save_pretrained(with_scheduler(tmp_path / "in"), variant="ema")
    for flags in ((), ("--variant", "ema")):
        assert sample_here("--run", tmp_path / "in", *FEW, "--label", "0", *flags, "--out", tmp_path / f"s{len(flags)}") == 0
    (plain, said), (other, said_of_other) = drawn(tmp_path / "s0"), drawn(tmp_path / "s2")
    assert not np.array_equal(plain, other) and said["weights_sha256"] != said_of_other["weights_sha256"]


def test_a_guide_is_told_the_same(tmp_path: Path) -> None:
    """Its labels and schedule have to be the model's; its files are its own."""
    for name in ("model", "guide"):
        save_blog(tmp_path / name, "emb_net.pth")
    run, guide = (tmp_path / name / "conditional_unet.pth" for name in ("model", "guide"))
    torch.save(label_mlp().state_dict(), tmp_path / "own.pth")
    flags = (*FEW, "--label", "0", "--cfg", "2", "--sampler", "ddim", "--timesteps", "200", "--label-mlp", tmp_path / "own.pth")
    assert sample_here("--run", run, "--guide", guide, *flags, "--out", tmp_path / "drawn") == 0
    model = load_diffusers(run, timesteps=200, label_mlp=tmp_path / "own.pth")
    expected = generate(model, [0], guidance=2.0, sampler="ddim", steps=2, guide=load_diffusers(guide, timesteps=200))
    assert np.array_equal(drawn(tmp_path / "drawn")[0], expected)


def test_a_guide_beside_a_run_is_told_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of ours says all of itself, so that the flags are the guide's."""
    run = write_run(tmp_path / "run")
    model = load_run(run).model
    theirs = plain_network(in_channels=1, out_channels=1, num_class_embeds=3)
    theirs.save_pretrained(tmp_path / "guide", variant="a")
    theirs.save_pretrained(tmp_path / "guide", variant="b")
    flags = ("--guide", tmp_path / "guide", *FEW, "--label", "0", "--cfg", "2", "--sampler", "ddim", "--out", tmp_path / "drawn")
    assert_one_line(sample_here("--run", run, *flags), capsys, "choose one by variant=")
    told = ("--null-label", "--variant", "a", "--timesteps", str(model.diffusion.num_timesteps))
    told = (*told, "--prediction", model.diffusion.prediction)
    code = sample_here("--run", run, *flags, *told)
    assert code == 0, capsys.readouterr().err
    settings = {"timesteps": model.diffusion.num_timesteps, "prediction": model.diffusion.prediction}
    guide = load_diffusers(tmp_path / "guide", null_label=True, variant="a", **settings)
    expected = generate(model, [0], guidance=2.0, sampler="ddim", steps=2, guide=guide)
    assert np.array_equal(drawn(tmp_path / "drawn")[0], expected)
    (tmp_path / "other").mkdir()
    code = sample_here("--run", run, "--guide", tmp_path / "other", *flags[2:], "--null-label")
    assert_one_line(code, capsys, "--null-label (null_label) is of a model of diffusers")


def test_a_run_has_no_such_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    for flags in (("--timesteps", "200"), ("--null-label",), ("--variant", "fp16"), ("--label-mlp", "x"), ("--prediction", "v")):
        message = f"{flags[0]} ({flags[0][2:].replace('-', '_')}) is of a model of diffusers; {run} is a run of fastcond"
        assert_one_line(sample_here("--run", run, "--label", "0", *flags, "--out", tmp_path / "out"), capsys, message)
        assert_one_line(convert_here(run, tmp_path / "out", *flags), capsys, message)
    (tmp_path / "adm.pt").write_bytes(b"x")
    assert_one_line(convert_here(tmp_path / "adm.pt", tmp_path / "out", "--null-label"), capsys, "--null-label is of a model of")


def test_a_model_alone_warns_in_one_line(tmp_path: Path) -> None:
    """In a process of its own, whose warnings pytest does not catch."""
    plain_network().save_pretrained(tmp_path / "in")
    process = start("sample", "--run", tmp_path / "in", *FEW, "--label", "0", "--out", tmp_path / "out")
    lines = process.communicate()[1].splitlines()
    assert (
        process.returncode == 0
        and len(lines) == 1
        and "warning: " in lines[0]
        and "comes with no scheduler" in lines[0]
        and "--timesteps" in lines[0]
    )


def test_a_scheduler_that_is_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain_network().save_pretrained(tmp_path / "in")
    diffusers.PNDMScheduler().save_pretrained(tmp_path / "in" / "scheduler")
    flags = ("--run", tmp_path / "in", *FEW, "--label", "0")
    with pytest.warns(UserWarning) as caught:
        assert sample_here(*flags, "--out", tmp_path / "own") == 0
    told = [str(warning.message) for warning in caught]
    assert len(told) == 1 and "comes with PNDMScheduler" in told[0] and "ddim draws" in told[0]
    assert "with ddim, 2 steps" in capsys.readouterr().out
    assert sample_here(*flags, "--sampler", "ddim", "--out", tmp_path / "ddim") == 0
    assert np.array_equal(drawn(tmp_path / "own")[0], drawn(tmp_path / "ddim")[0])
    capsys.readouterr()
    assert sample_here(*flags, "--sampler", "scheduler", "--out", tmp_path / "no") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: the model's scheduler is not followed; choose one of ddpm, ddim" in last and "PNDMScheduler" in last


def test_labels_that_are_embedded_as_timesteps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any number, since there is no table."""
    plain_network(class_embed_type="timestep").save_pretrained(tmp_path / "in")
    with_scheduler(tmp_path / "in")
    assert sample_here("--run", tmp_path / "in", *FEW, "--label", "731,1,0", "--sampler", "ddim", "--out", tmp_path / "out") == 0
    model = load_diffusers(tmp_path / "in")
    expected = generate(model, [731, 1, 0], sampler="ddim", steps=2, indices=[0, 0, 0])
    assert np.array_equal(drawn(tmp_path / "out")[0], expected)
    assert (tmp_path / "out" / "731-731-00000.png").is_file() and (tmp_path / "out" / "1-1-00000.png").is_file()
    capsys.readouterr()
    for label in ("all", "null", "-1", str(2**31), "9" * 5000, "hero"):
        code = sample_here("--run", tmp_path / "in", *FEW, "--label", label, "--out", tmp_path / "no")
        assert_one_line(code, capsys, "is no label of this network, which takes whole numbers from 0 to 2147483647")
    assert convert_here(tmp_path / "in", tmp_path / "converted") == 0
    assert capsys.readouterr().out.rstrip().endswith("--label 0")


def test_labels_that_are_vectors_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain_network(class_embed_type="identity").save_pretrained(tmp_path / "in")
    with_scheduler(tmp_path / "in")
    code = sample_here("--run", tmp_path / "in", *FEW, "--label", "0", "--out", tmp_path / "out")
    assert_one_line(code, capsys, "are vectors of 64 numbers (class_embed_type identity)", "fastcond.generate(model, vectors)")


def test_the_command_that_convert_names_runs_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain_network().save_pretrained(tmp_path / "in")
    target = tmp_path / "of two words; and $more"
    assert convert_here(with_scheduler(tmp_path / "in"), target) == 0
    command = capsys.readouterr().out.partition("draw from it with: ")[2]
    assert shlex.split(command) == ["python", "-m", "fastcond.sample", "--run", str(target), "--label", "all"]
