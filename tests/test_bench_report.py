"""benchmarks/report.py: what a run becomes, on a made-up one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report

MACHINE = {
    "name": "toaster-2-threads",
    "cpu": "Toaster",
    "cores": 4,
    "threads": 2,
    "isa": "crumbs",
    "gpu": None,
    "without_kernel": ["diffusion_step"],
}
MOVED = 3_000_000
# A case of four times in seconds, one of it lost to eager; a case without baselines; two kinds of a call's overhead.
MEDIANS: dict[tuple[str, str, str], tuple[float, int | None]] = {
    ("norm", "8x8", "ours"): (1e-3, MOVED),
    ("norm", "8x8", "reference"): (4e-3, MOVED),
    ("norm", "8x8", "eager"): (0.9e-3, MOVED),
    ("norm", "8x8", "compile"): (2.5e-3, MOVED),
    ("norm", "8x8", "copy"): (0.5e-3, MOVED),
    ("step", "1x1", "ours"): (20e-6, MOVED),
    ("call overhead", "without gradient", "torch.add"): (1.25e-6, None),
    ("call overhead", "with gradient", "torch.add"): (3e-6, None),
    ("call overhead", "without gradient", "draw"): (9e-6, None),
}


def made_up_run() -> dict[str, Any]:
    return {
        "machine_info": {"node": "a-host-name"},
        "benchmarks": [
            {"extra_info": {"op": op, "case": case, "way": way, "bytes": moved}, "stats": {"median": median, "data": [median]}}
            for (op, case, way), (median, moved) in MEDIANS.items()
        ],
    }


def made_up_record(date: str = "2030-01-02T03:04:05+00:00", **machine: Any) -> dict[str, Any]:
    return report.make_record(made_up_run(), {**MACHINE, **machine}, {"torch": "9.9"}, "abc1234-dirty", date)


def entry_of(record: dict[str, Any], way: str) -> dict[str, Any]:
    return next(bench for bench in record["benches"] if bench["way"] == way)


def test_a_record_holds_medians_and_ratios() -> None:
    record = made_up_record()
    assert entry_of(record, "ours") == {
        "op": "norm",
        "case": "8x8",
        "way": "ours",
        "median_us": 1000.0,
        "gb_per_s": 3.0,
        "percent_of_copy": 50.0,
        "baseline_over_ours": {"reference": 4.0, "eager": 0.9, "compile": 2.5},
    }
    assert entry_of(record, "copy")["percent_of_copy"] == 100.0
    assert entry_of(record, "draw") == {"op": "call overhead", "case": "without gradient", "way": "draw", "median_us": 9.0}
    assert "a-host-name" not in json.dumps(record)


def test_a_record_survives_its_file() -> None:
    text = report.to_text(made_up_record())
    assert json.loads(text) == made_up_record()
    assert len(text.splitlines()) < 30 + len(MEDIANS)


def test_a_run_without_benches_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no bench"):
        report.make_record({"benchmarks": []}, MACHINE, {}, "abc1234", "2030-01-02")


def test_the_table_shows_every_case() -> None:
    lines = report.render([made_up_record()]).splitlines()
    assert "| case | ours | GB/s | of copy | reference | eager | compile |" in lines
    assert "| 8x8 | 1.00 ms | 3.0 | 50% | 4.00× | 0.90× | 2.50× |" in lines
    assert "| 1x1 | 20 µs | 150.0 | - | - | - | - |" in lines
    assert [line for line in lines if line.startswith("##")] == [
        "## Toaster, 2 threads",
        "### norm",
        "### step",
        "### Slower than a baseline",
        "### Microseconds a call, on a few numbers",
    ]
    assert any("2030-01-02, commit abc1234-dirty. Toaster, 4 cores, crumbs; no GPU. torch 9.9." in line for line in lines)
    assert any("ours is the reference: diffusion_step." in line for line in lines)


def test_losses_are_listed() -> None:
    text = report.render([made_up_record()])
    assert text.split("### Slower than a baseline")[1].split("###")[0].strip() == "- norm, 8x8: 0.90× eager"
    record = made_up_record()
    entry_of(record, "ours")["baseline_over_ours"] = {"eager": 1.0}
    assert report.render([record]).split("### Slower than a baseline")[1].split("###")[0].strip() == "None."


@pytest.mark.parametrize(("without_kernel", "expected"), [([], "- norm, 8x8: 0.50× reference"), (["norm"], "None.")])
def test_an_op_that_is_its_reference_does_not_lose_to_it(without_kernel: list[str], expected: str) -> None:
    record = made_up_record(without_kernel=without_kernel)
    entry_of(record, "ours")["baseline_over_ours"] = {"reference": 0.5}
    assert report.render([record]).split("### Slower than a baseline")[1].split("###")[0].strip() == expected


def test_overhead_has_a_table_of_its_own() -> None:
    table = report.render([made_up_record()]).split("on a few numbers")[1].split()
    expected = "| function | without gradient | with gradient | |---|---|---| | torch.add | 1.2 | 3.0 | | draw | 9.0 | - |"
    assert " ".join(table) == expected


def test_what_no_gpu_ran_is_said_so() -> None:
    assert "nothing here has run on one" in report.render([made_up_record()])
    assert "nothing here has run on one" not in report.render([made_up_record(), made_up_record(name="gpu", gpu="Lamp 9")])
    empty = report.render([])
    assert "Not yet measured" in empty and "nothing here has run on one" in empty


def test_the_newest_record_of_each_machine_is_shown() -> None:
    old, new = made_up_record("2030-01-02T03:04:05+00:00"), made_up_record("2030-01-02T13:04:05+00:00")
    old["commit"], new["commit"] = "old", "new"
    text = report.render([new, old, made_up_record(name="another", cpu="Kettle")])
    assert "commit new" in text and "commit old" not in text and "## Kettle" in text


@pytest.mark.parametrize(
    ("ratio", "text"), [(None, "-"), (3.14159, "3.14×"), (1.0, "1.00×"), (0.999, "0.99×"), (0.995, "0.99×"), (0.5, "0.50×")]
)
def test_a_loss_is_never_rounded_to_a_draw(ratio: float | None, text: str) -> None:
    assert report.ratio_text(ratio) == text


def test_a_machine_is_named_without_its_host() -> None:
    assert report.slug("AMD EPYC 9R14 96-Core Processor 2 threads") == "amd-epyc-9r14-96-core-processor-2-threads"
    assert report.threads_text(1) == "1 thread" and report.threads_text(2) == "2 threads"
    assert report.slug("Intel(R) Xeon(R) CPU @ 2.20GHz 4 threads") == "intel-xeon-cpu-2.20ghz-4-threads"
    machine = report.this_machine()
    assert machine["name"] == report.slug(f"{machine['gpu'] or machine['cpu']} {report.threads_text(machine['threads'])}")
    assert machine.keys() == MACHINE.keys() and "/" not in machine["name"]


def test_the_committed_table_is_that_of_the_committed_records(repository: Path) -> None:
    assert (repository / "benchmarks/RESULTS.md").read_text(encoding="utf-8") == report.render(report.read_records())
