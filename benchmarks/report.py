"""From one run of the benches to a committed record, and from all records to RESULTS.md.

    python -m benchmarks.report RUN.json        RUN.json is what pytest --benchmark-json wrote

A record, benchmarks/results/<machine>/<date>-<commit>.json, holds medians and what follows from them. Its machine is named by
processor or GPU and number of threads. Of each machine the newest record is shown.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.tables import BASELINES, NETWORK_OPS, OVERHEAD, Json, losses, network_tables, overhead_table, table_of

FOLDER = Path(__file__).resolve().parent
RESULTS, TABLE = FOLDER / "results", FOLDER / "RESULTS.md"
OPS = (
    "ada_group_norm",
    "conv3x3",
    "diffusion_step",
    "linear",
    "norm_conv",
    "philox_normal",
    "small_attention",
    "token_attention",
)
PACKAGES = ("fastcond", "torch", "triton", "numpy", "diffusers", "onnx", "onnxruntime", "openvino")

INTRODUCTION = """\
# What ops and networks cost

Written by `make bench`; not edited by hand. Medians of one run, in which each of ours first passed the parity check on the same
shape. *GB/s* counts the bytes that must move however it is done, and *of copy* is that over the GB/s of `y.copy_(x)` on as many
bytes. The other columns are the baseline's time over ours: above 1 ours is faster. *reference* is the op's definition in PyTorch,
*eager* what one writes without it (for `diffusion_step` the scheduler of diffusers and guidance, for `norm_conv` our norm and
`F.conv2d`, for `philox_normal` `torch.randn`), and *compile* is `torch.compile` of that (for `diffusion_step` and `norm_conv` of
the same written by hand); `-` was not timed. A call finds its tensors in the caches as the call before left them, and
memory that the process has had before (`fastcond.ops.native.keep_freed_memory`, as in training), for whichever way: new pages are
the system's to zero. Machines differ and drift: compare within a row.

Whole networks are beside diffusers' module (as it is, in both memory formats, and under `torch.compile`) and the runtimes that
it is converted to, each in the fastest setting found for it, with the same weights and on as many threads; `-` was not timed or
is not installed. The number after a time is that time over ours. *error* is the largest one against a float64 evaluation,
relative to the largest output; what claims fp32 passed a bound on it before it was timed. *ready* is what making the network,
converting or compiling it and one evaluation take. A guided run is DDIM from the same noise at guidance 2.5, in a process of
its own; all runs but ours are diffusers' scheduler around the network. *cold start* is from the start of that process to its
first images, *of it ready* the part of making the network ready, *memory* the most that the process held, and *off* how far any
pixel of [-1, 1] lies from diffusers' images, on which fp32 passed a bound too. Outside the loop of a run we work out what
depends on timestep and label alone, and an evaluation of ours is one inside it.

*The blog's twenty images* are those of the two `UNet2DConditionModel`s of vroger11/diffusers-tutorials, four of each of five
labels, with random weights: the pipeline that its author wrote with diffusers beside `fastcond.Pipeline` on the same folder, both
with noise of the same `torch.Generator`. *ready* is from the start of a process to the end of a run of two steps, *of it loading*
the part after the imports, and *off* how far any pixel lies from diffusers', in gray levels of 255, of which one is allowed.
"""


def make_record(run: Json, machine: Json, versions: Json, commit: str, date: str) -> Json:
    """A run of pytest-benchmark as a record.

    Args:
        run: pytest-benchmark's JSON, its benches made by `benchmarks.measuring.measure`.
        machine: see `this_machine`. versions: package -> version. commit, date (ISO 8601): when it ran and on what.
    Raises: ValueError where the run holds no bench.
    """
    medians = {key(bench): 1e6 * bench["stats"]["median"] for bench in run["benchmarks"]}
    if not medians:
        raise ValueError("the run holds no bench; was pytest called with --benchmark-only?")
    benches = []
    for bench in run["benchmarks"]:
        op, case, way = key(bench)
        median, moved = medians[op, case, way], bench["extra_info"]["bytes"]
        entry: Json = {"op": op, "case": case, "way": way, "median_us": round(median, 2)}
        if moved is not None:
            entry["gb_per_s"] = round(moved / median / 1e3, 2)
            if (op, case, "copy") in medians:
                entry["percent_of_copy"] = round(100 * medians[op, case, "copy"] / median, 1)
        if way == "ours":
            others = [name for *same, name in medians if same == [op, case] and name != way]
            names = others if op in NETWORK_OPS else [name for name in BASELINES if name in others]
            entry["baseline_over_ours"] = {name: round(medians[op, case, name] / median, 3) for name in names}
        entry |= {name: float(f"{value:.4g}") for name, value in bench["extra_info"].get("figures", {}).items()}
        benches.append(entry)
    return {"date": date, "commit": commit, "machine": machine, "versions": versions, "benches": benches}


def key(bench: Json) -> tuple[str, str, str]:
    info = bench["extra_info"]
    return info["op"], info["case"], info["way"]


def render(records: Iterable[Json]) -> str:
    """RESULTS.md: the newest record of each machine."""
    newest: dict[str, Json] = {}
    for record in sorted(records, key=lambda record: record["date"]):
        newest[record["machine"]["name"]] = record
    parts = [INTRODUCTION]
    if not newest:
        parts.append("**Not yet measured.**\n")
    if not any(record["machine"]["gpu"] for record in newest.values()):
        parts.append("**No GPU: nothing here has run on one.**\n")
    parts += [render_record(newest[name]) for name in sorted(newest)]
    return "\n".join(parts)


def render_record(record: Json) -> str:
    """One machine's section."""
    machine, benches = record["machine"], record["benches"]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    lines = [
        f"## {machine['gpu'] or machine['cpu']}, {threads_text(machine['threads'])}",
        "",
        f"{record['date'][:10]}, commit {record['commit']}. {machine['cpu']}, {machine['cores']} cores, {machine['isa']}; "
        f"{machine['gpu'] or 'no GPU'}. {versions}.",
    ]
    if machine["without_kernel"]:
        lines.append(f"No kernel of this device, so ours is the reference: {', '.join(machine['without_kernel'])}.")
    ours = [bench for bench in benches if bench["way"] == "ours"]
    for op in dict.fromkeys(bench["op"] for bench in ours if bench["op"] not in NETWORK_OPS):
        lines += ["", f"### {op}", "", *table_of([bench for bench in ours if bench["op"] == op])]
    for title, table in network_tables(benches).items():
        lines += ["", f"### {title}", "", *table]
    lines += ["", "### Slower than a baseline", "", *(losses(ours, machine["without_kernel"]) or ["None."])]
    overhead = [bench for bench in benches if bench["op"] == OVERHEAD]
    if overhead:
        lines += ["", "### Microseconds a call, on a few numbers", "", *overhead_table(overhead)]
    return "\n".join([*lines, ""])


def threads_text(threads: int) -> str:
    return f"{threads} thread{'s' if threads != 1 else ''}"


def slug(text: str) -> str:
    """Lower-case words and numbers joined by hyphens, for a folder's name."""
    return "-".join(re.findall(r"[a-z0-9.]+", re.sub(r"\((r|tm)\)", " ", text.lower())))


def this_machine() -> Json:
    """Processor, threads and GPU; no host name, no path."""
    import torch

    from fastcond.ops import native

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    threads, cpu = torch.get_num_threads(), processor_name()
    isa = native.native.instruction_sets()[-1] if native.native is not None else torch.backends.cpu.get_cpu_capability()
    return {
        "name": slug(f"{gpu or cpu} {threads_text(threads)}"),
        "cpu": cpu,
        "cores": cores(),
        "threads": threads,
        "isa": isa,
        "gpu": gpu,
        "without_kernel": [op for op in OPS if not has_kernel(op)],
    }


def has_kernel(op: str) -> bool:
    """Whether the device of the benches runs something else than the op's reference."""
    import torch

    from benchmarks.measuring import DEVICE
    from fastcond.ops import native

    registered = torch._C._dispatch_has_kernel_for_dispatch_key(f"fastcond::{op}", DEVICE.type.upper())
    return registered and (DEVICE.type != "cpu" or native.native is not None)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """The processor's model as Linux names it, elsewhere as Python does."""
    information = Path("/proc/cpuinfo")
    found = name_in(information.read_text(encoding="utf-8")) if information.is_file() else None
    return found or platform.processor() or platform.machine()


def name_in(information: str) -> str | None:
    """The first processor's name in the text of Linux's /proc/cpuinfo; None where it has none.

    A virtual machine may say no more than "AMD EPYC", of any generation: a name without a number, its clock's apart, gets family
    and model.
    """
    fields = dict(re.findall(r"^([^:\t]+?)[ \t]*:[ \t]*(.*)$", information.split("\n\n")[0], re.MULTILINE))
    name = " ".join(fields.get("model name", "").split())
    if name and not re.search(r"\d", name.split("@")[0]) and "cpu family" in fields:
        name += f" family {fields['cpu family']} model {fields['model']}"
    return name or None


def this_commit() -> str:
    """The commit's short name, with -dirty where sources differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=FOLDER.parent, capture_output=True, text=True, check=True).stdout.strip()

    try:
        own = [f":!{path.relative_to(FOLDER.parent).as_posix()}" for path in (RESULTS, TABLE)]
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".", *own) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def these_versions() -> dict[str, str]:
    """What the numbers depend on."""
    versions = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def read_records(folder: Path = RESULTS) -> list[Json]:
    """Every committed record."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/*.json"))]


def to_text(record: Json) -> str:
    """JSON with a line for each bench."""
    head = {name: value for name, value in record.items() if name != "benches"}
    benches = ",\n".join("  " + json.dumps(bench, ensure_ascii=False) for bench in record["benches"])
    return json.dumps(head, indent=1, ensure_ascii=False)[:-2] + ',\n "benches": [\n' + benches + "\n ]\n}\n"


def main(arguments: list[str]) -> int:
    """Write the record of one run, then RESULTS.md anew."""
    if len(arguments) != 1:
        print("usage: python -m benchmarks.report RUN.json", file=sys.stderr)
        return 2
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    run = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    record = make_record(run, this_machine(), these_versions(), this_commit(), now)
    path = RESULTS / record["machine"]["name"] / f"{now[:10]}-{record['commit']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_text(record), encoding="utf-8")
    TABLE.write_text(render(read_records()), encoding="utf-8")
    print(f"wrote {path.relative_to(FOLDER.parent)} and {TABLE.relative_to(FOLDER.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
