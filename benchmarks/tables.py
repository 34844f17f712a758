"""The tables of RESULTS.md, from the entries of a record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Json = dict[str, Any]

BASELINES = ("reference", "eager", "compile")
OVERHEAD = "call overhead"
EVALUATION, GUIDED_RUN, BLOG_RUN, TRAINING = NETWORK_OPS = ("network evaluation", "guided run", "blog run", "training step")
# The rows of a network's tables, whether they were timed or not.
PEER_NAMES = (
    "ours",
    "diffusers",
    "diffusers, channels_last",
    "diffusers compiled",
    "diffusers compiled, bf16",
    "ONNX Runtime",
    "OpenVINO",
    "OpenVINO, bf16",
)
TRAINING_NAMES = PEER_NAMES[:4]
BLOG_NAMES = PEER_NAMES[:3]


def table_of(ours: list[Json]) -> list[str]:
    """One row a case of an op."""
    lines = ["| case | ours | GB/s | of copy | " + " | ".join(BASELINES) + " |", "|---" * (4 + len(BASELINES)) + "|"]
    for bench in ours:
        percent = f"{bench['percent_of_copy']:.0f}%" if "percent_of_copy" in bench else "-"
        ratios = [ratio_text(bench["baseline_over_ours"].get(name)) for name in BASELINES]
        cells = [bench["case"], time_text(bench["median_us"]), f"{bench['gb_per_s']:.1f}", percent, *ratios]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def losses(ours: list[Json], without_kernel: list[str]) -> list[str]:
    """One item for each case and baseline that was faster than ours, the worst first; no op loses to itself."""
    slower = [
        (ratio, f"- {bench['op']}, {bench['case']}: {ratio_text(ratio)} {name}")
        for bench in ours
        for name, ratio in bench["baseline_over_ours"].items()
        if ratio < 1 and not (name == "reference" and bench["op"].split()[0] in without_kernel)
    ]
    return [line for _, line in sorted(slower)]


def overhead_table(overhead: list[Json]) -> list[str]:
    """One row a function, one column a kind of call; for these a bench's way is the function and its case the kind."""
    kinds = list(dict.fromkeys(bench["case"] for bench in overhead))
    medians = {(bench["way"], bench["case"]): bench["median_us"] for bench in overhead}
    lines = ["| function | " + " | ".join(kinds) + " |", "|---" * (1 + len(kinds)) + "|"]
    for function in dict.fromkeys(bench["way"] for bench in overhead):
        cells = [f"{medians[function, kind]:.1f}" if (function, kind) in medians else "-" for kind in kinds]
        lines.append("| " + " | ".join([function, *cells]) + " |")
    return lines


def time_text(microseconds: float) -> str:
    if microseconds >= 1e6:
        return f"{microseconds / 1e6:.2f} s"
    return f"{microseconds:.0f} µs" if microseconds < 1000 else f"{microseconds / 1000:.2f} ms"


def ratio_text(ratio: float | None) -> str:
    """A ratio below 1 stays below 1 in print."""
    return "-" if ratio is None else f"{ratio:.2f}×" if ratio >= 1 or ratio < 0.995 else "0.99×"


def network_tables(benches: list[Json]) -> dict[str, list[str]]:
    """Title -> table of everything that was timed of whole networks."""
    of_op: dict[str, list[Json]] = {op: [bench for bench in benches if bench["op"] == op] for op in NETWORK_OPS}
    tables = {}
    for network in dict.fromkeys(split_case(bench)[0] for bench in of_op[EVALUATION]):
        found = [bench for bench in of_op[EVALUATION] if split_case(bench)[0] == network]
        tables[f"One evaluation of the {network} network"] = peer_table(found, {"error": error_text, "ready": ready_text})
    for case in dict.fromkeys(bench["case"] for bench in of_op[GUIDED_RUN]):
        found = [bench for bench in of_op[GUIDED_RUN] if bench["case"] == case]
        tables[f"A guided run of 50 steps, {case}"] = run_table(found)
    for case in dict.fromkeys(bench["case"] for bench in of_op[BLOG_RUN]):
        found = [bench for bench in of_op[BLOG_RUN] if bench["case"] == case]
        tables[f"The blog's twenty images, {case}"] = blog_table(found)
    if of_op[TRAINING]:
        tables["One step of training"] = peer_table(of_op[TRAINING], {"ready": ready_text}, TRAINING_NAMES)
    return tables


def split_case(bench: Json) -> tuple[str, str]:
    """("16x16", "batch 8")."""
    network, _, batch = bench["case"].partition(", ")
    return network, batch


def peer_table(
    benches: list[Json], figures: dict[str, Callable[[list[Json]], str]], names: tuple[str, ...] = PEER_NAMES
) -> list[str]:
    """One row a peer, one column a case, then the figures, each of all cases of a peer."""
    cases = list(dict.fromkeys(bench["case"] for bench in benches))
    one_network = len({split_case(bench)[0] for bench in benches}) == 1 and len(cases) > 1
    titles = [case.partition(", ")[2] if one_network else case for case in cases]
    times = {(bench["way"], bench["case"]): bench["median_us"] for bench in benches}
    lines = ["| | " + " | ".join([*titles, *figures]) + " |", "|---" * (1 + len(titles) + len(figures)) + "|"]
    for name in names:
        own = [bench for bench in benches if bench["way"] == name]
        cells = [beside_ours(times.get((name, case)), times.get(("ours", case)), name) for case in cases]
        lines.append("| " + " | ".join([name, *cells, *(text(own) if own else "-" for text in figures.values())]) + " |")
    return lines


def run_table(benches: list[Json]) -> list[str]:
    """One row a peer; the benches are of one case."""
    by_name = {bench["way"]: bench for bench in benches}
    lines = ["| | a run | images/s | cold start | of it ready | memory | off |", "|---|---|---|---|---|---|---|"]
    for name in PEER_NAMES:
        bench, ours = by_name.get(name), by_name.get("ours", {}).get("median_us")
        if bench is None:
            cells = ["-"] * 6
        else:
            time = beside_ours(bench["median_us"], ours, name)
            seconds = [f"{bench[key]:.1f} s" for key in ("cold_start_s", "prepare_s")]
            cells = [time, f"{bench['images_per_s']:.3g}", *seconds, f"{bench['peak_mib']:.0f} MiB", f"{bench['off']:.0e}"]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return lines


def blog_table(benches: list[Json]) -> list[str]:
    """One row a pipeline; the benches are of one case."""
    by_name = {bench["way"]: bench for bench in benches}
    lines = ["| | twenty images | images/s | ready | of it loading | memory | off |", "|---|---|---|---|---|---|---|"]
    for name in BLOG_NAMES:
        bench, ours = by_name.get(name), by_name.get("ours", {}).get("median_us")
        if bench is None:
            cells = ["-"] * 6
        else:
            seconds = [f"{bench[key]:.1f} s" for key in ("ready_s", "prepare_s")]
            cells = [beside_ours(bench["median_us"], ours, name), f"{bench['images_per_s']:.3g}", *seconds]
            cells += [f"{bench['peak_mib']:.0f} MiB", f"{bench['off']:.0f}"]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return lines


def beside_ours(time: float | None, ours: float | None, name: str) -> str:
    """A time and how many times ours it is."""
    if time is None:
        return "-"
    return time_text(time) if name == "ours" or ours is None else f"{time_text(time)}, {ratio_text(time / ours)}"


def error_text(benches: list[Json]) -> str:
    return f"{max(bench['relative_error'] for bench in benches):.0e}"


def ready_text(benches: list[Json]) -> str:
    """The longest, over the cases."""
    return f"{max(bench['prepare_s'] for bench in benches):.1f} s"
