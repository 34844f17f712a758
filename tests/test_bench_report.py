"""benchmarks/report.py: what a run becomes, on a made-up one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report, tables

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


# Of networks: two batches of which one peer has one, a run of two peers, a step that we lose.
NETWORKS: list[tuple[str, str, str, float, dict[str, float]]] = [
    ("network evaluation", "16x16, batch 1", "ours", 10e-3, {"relative_error": 1.23e-6, "prepare_s": 0.2}),
    ("network evaluation", "16x16, batch 8", "ours", 40e-3, {"relative_error": 2e-6, "prepare_s": 0.34}),
    ("network evaluation", "16x16, batch 8", "OpenVINO", 30e-3, {"relative_error": 3e-6, "prepare_s": 2.0}),
    ("guided run", "16x16, batch 16", "ours", 2.0, {"cold_start_s": 4.44, "prepare_s": 0.1, "peak_mib": 299.6, "off": 4e-6}),
    ("guided run", "16x16, batch 16", "diffusers", 5.0, {"cold_start_s": 9.0, "prepare_s": 4.0, "peak_mib": 500, "off": 0.0}),
    ("training step", "tiny, batch 64", "ours", 0.1, {"prepare_s": 0.3}),
    ("training step", "tiny, batch 64", "diffusers compiled", 0.09, {"prepare_s": 30.0}),
]


def run_with_networks() -> dict[str, Any]:
    run = made_up_run()
    for op, case, way, median, figures in NETWORKS:
        figures = {**figures, "images_per_s": 16 / median} if op == "guided run" else figures
        extra = {"op": op, "case": case, "way": way, "bytes": None, "figures": figures}
        run["benchmarks"].append({"extra_info": extra, "stats": {"median": median, "data": [median]}})
    return run


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


def test_networks_have_tables_of_their_own() -> None:
    record = report.make_record(run_with_networks(), MACHINE, {"torch": "9.9"}, "abc1234", "2030-01-02T03:04:05+00:00")
    text = report.render([record])
    assert [line for line in text.splitlines() if line.startswith("##")] == [
        "## Toaster, 2 threads",
        "### norm",
        "### step",
        "### One evaluation of the 16x16 network",
        "### A guided run of 50 steps, 16x16, batch 16",
        "### One step of training",
        "### Slower than a baseline",
        "### Microseconds a call, on a few numbers",
    ]
    assert table_below(text, "One evaluation") == [
        "| | batch 1 | batch 8 | error | ready |",
        "|---|---|---|---|---|",
        "| ours | 10.00 ms | 40.00 ms | 2e-06 | 0.3 s |",
        *(f"| {name} | - | - | - | - |" for name in tables.PEER_NAMES[1:6]),
        "| OpenVINO | - | 30.00 ms, 0.75× | 3e-06 | 2.0 s |",
        "| OpenVINO, bf16 | - | - | - | - |",
    ]
    assert table_below(text, "A guided run")[2:5] == [
        "| ours | 2.00 s | 8 | 4.4 s | 0.1 s | 300 MiB | 4e-06 |",
        "| diffusers | 5.00 s, 2.50× | 3.2 | 9.0 s | 4.0 s | 500 MiB | 0e+00 |",
        "| diffusers, channels_last | - | - | - | - | - | - |",
    ]
    assert table_below(text, "One step")[0] == "| | tiny, batch 64 | ready |"
    assert table_below(text, "One step")[-1] == "| diffusers compiled | 90.00 ms, 0.90× | 30.0 s |"
    losses = text.split("### Slower than a baseline")[1].split("###")[0].strip().splitlines()
    assert losses == [
        "- network evaluation, 16x16, batch 8: 0.75× OpenVINO",
        "- norm, 8x8: 0.90× eager",
        "- training step, tiny, batch 64: 0.90× diffusers compiled",
    ]


def table_below(text: str, title: str) -> list[str]:
    return text.split(f"### {title}")[1].split("\n\n")[1].strip().splitlines()


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
    assert tables.ratio_text(ratio) == text


def test_a_machine_is_named_without_its_host() -> None:
    assert report.slug("AMD EPYC 9R14 96-Core Processor 2 threads") == "amd-epyc-9r14-96-core-processor-2-threads"
    assert report.threads_text(1) == "1 thread" and report.threads_text(2) == "2 threads"
    assert report.slug("Intel(R) Xeon(R) CPU @ 2.20GHz 4 threads") == "intel-xeon-cpu-2.20ghz-4-threads"
    machine = report.this_machine()
    assert machine["name"] == report.slug(f"{machine['gpu'] or machine['cpu']} {report.threads_text(machine['threads'])}")
    assert machine.keys() == MACHINE.keys() and "/" not in machine["name"]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("AMD EPYC 9R14 96-Core Processor", "AMD EPYC 9R14 96-Core Processor"),
        ("AMD EPYC", "AMD EPYC family 23 model 49"),
        ("Intel(R) Xeon(R)  CPU @ 2.20GHz", "Intel(R) Xeon(R) CPU @ 2.20GHz family 23 model 49"),
    ],
)
def test_a_processor_without_a_number_gets_family_and_model(model: str, name: str) -> None:
    of_one = "processor\t: {}\ncpu family\t: 23\nmodel\t\t: 49\nmodel name\t: {}\nbogomips\t: 1.5\nflags\t\t: a: b\n"
    assert report.name_in(of_one.format(0, model) + "\n" + of_one.format(1, "another")) == name


def test_a_processor_may_have_no_name() -> None:
    assert report.name_in("processor\t: 0\nBogoMIPS\t: 243.75\nCPU architecture: 8\n") is None
    assert report.name_in("") is None


def test_the_committed_table_is_that_of_the_committed_records(repository: Path) -> None:
    assert (repository / "benchmarks/RESULTS.md").read_text(encoding="utf-8") == report.render(report.read_records())
