"""The tables of docs/devices.md and docs/devices-ops.md, from results/devices/."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any

from trials import RESULTS as ALL

RESULTS = ALL / "devices"
CUT = 128
AGREES, AA_QUIET, AA_BUSY, FOUND, FALSE = 0.02, 0.015, 0.02, 0.95, 0.05


def load(name: str) -> dict[str, Any]:
    """A committed result."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def _host(result: dict[str, Any]) -> str:
    told = result["conditions"]
    before, after = told["load_average"]
    return f"{told['cpu']}, {told['cores']} cores, virtual machine: {told['virtualised']}, load average {before:.1f} before, {after:.1f} after"


def agreement_table() -> str:
    """trimtab's median over the tool's, by network."""
    result = load("agreement")
    rows = [
        "| network | the runtime's own tool | trimtab ÷ tool | 95 % interval | pairs | within 2 % |",
        "|---|---|---:|---:|---:|---|",
    ]
    for row in result["rows"]:
        low, high = row["interval"] or (row["lowest"], row["highest"])
        yes = "yes" if abs(row["ratio"] - 1) <= AGREES else "**no**"
        rows.append(
            f"| {row['net']} | {row['tool']} | {row['ratio']:.3f} | {low:.3f}–{high:.3f} | {len(row['pairs'])} | {yes} |"
        )
    versions = result["conditions"]["versions"]
    told = f"One thread on one CPU; {_host(result)}; OpenVINO {versions['openvino'].partition('-')[0]}, LiteRT {versions['ai-edge-litert']}"
    return "\n".join([*rows, "", f"{told}, ONNX Runtime {versions['onnxruntime']}."])


def detection_table() -> str:
    """How often a planted 5 % slow-down is found, and nothing is called something."""
    result = load("detection")
    rows = [
        "| beside | A/A deviation, median | 95 % of trials within | planted 5 % found | false alarms | goals |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for cell in result["cells"]:
        s, busy = cell["summary"], cell["neighbour"] == "busy"
        n = s["trials"]
        goals = (
            s["aa_deviation_median"] <= (AA_BUSY if busy else AA_QUIET),
            s["hits"] >= FOUND * n,
            s["false_alarms"] <= FALSE * n,
        )
        words = ("A/A", "detection", "false alarms")
        missed = [word for word, met in zip(words, goals, strict=True) if not met]
        said = "met" if not missed else "**missed: " + ", ".join(missed) + "**"
        where = (
            f"a busy process on the same CPU, calls of {s['baseline_ms']:.1f} ms"
            if busy
            else f"nothing, calls of {s['baseline_ms']:.1f} ms"
        )
        rows.append(
            f"| {where} | {100 * s['aa_deviation_median']:.2f} % | {100 * s['aa_deviation_p95']:.2f} % | {s['hits']} of {n} "
            f"| {s['false_alarms']} of {n} | {said} |"
        )
    return "\n".join([*rows, "", f"{result['budget_s']:g} s a trial; {_host(result)}."])


def setup_table() -> str:
    """Seconds from the command to the first timed call."""
    result = load("setup")
    goals = {
        "ssh": ("ssh to this machine, from the command on", 3.0),
        "browser": ("browser, from the page's connection on", 5.0),
    }
    rows = ["| device | median | slowest | set-ups | goal |", "|---|---:|---:|---:|---:|"]
    for name, row in result["rows"].items():
        title, goal = goals[name]
        rows.append(f"| {title} | {row['median_s']:.2f} s | {row['largest_s']:.2f} s | {len(row['times'])} | ≤ {goal:g} s |")
    return "\n".join([*rows, "", f"{_host(result)}."])


def counts_table() -> str:
    """Instructions by network, precision and core."""
    result = load("counts")
    cores = list(dict.fromkeys(row["core"] for row in result["rows"]))
    rows = [
        "| network | precision | " + " | ".join(f"{core}, M" for core in cores) + " | fp32 ÷ int8 | same in both processes |",
        "|---|---|" + "---:|" * len(cores) + "---|---|",
    ]
    by = {(row["net"], row["precision"], row["core"]): row for row in result["rows"]}
    for net in dict.fromkeys(row["net"] for row in result["rows"]):
        for precision in dict.fromkeys(row["precision"] for row in result["rows"] if row["net"] == net):
            cells = [by[net, precision, core] for core in cores]
            ratio = "–"
            if precision == "int8":
                ratio = " / ".join(
                    f"{by[net, 'fp32', core]['instructions'] / by[net, 'int8', core]['instructions']:.2f}" for core in cores
                )
            mark = "" if cells[0]["proven"] else " (missed its gate)"
            same = all(repeats == cell["repeats"][0] for cell in cells for repeats in cell["repeats"])
            within = max(max(cell["repeats"][0]) - min(cell["repeats"][0]) for cell in cells)
            steady = ("yes" if same else "**no**") + (f", inferences of one differ by {within}" if within else "")
            figures = " | ".join(f"{cell['instructions'] / 1e6:.3f}" for cell in cells)
            rows.append(f"| {net} | {precision}{mark} | {figures} | {ratio} | {steady} |")
    first = result["rows"][0]
    return "\n".join([*rows, "", f"{first['runtime']} with XNNPACK, {first['emulator']}; one thread, batch 1."])


def ops_table() -> str:
    """What looking costs."""
    result = load("ops")
    nets = list(dict.fromkeys(row["net"] for row in result["rows"]))
    rows = [
        "| runtime | " + " | ".join(f"{net}: watched | sum" for net in nets) + " |",
        "|---|" + "---:|---:|" * len(nets),
    ]
    by = {(row["runtime"], row["net"]): row for row in result["rows"]}
    most = max(len(row["sum"]) for row in result["rows"])
    many = "One profile" if most == 1 else f"Medians of {most} profiles"
    for runtime in dict.fromkeys(row["runtime"] for row in result["rows"]):
        cells = []
        for net in nets:
            row = by.get((runtime, net))
            for key in ("watched", "sum"):
                values = [value for value in (row[key] if row else []) if value is not None]
                cells.append(f"{statistics.median(values):.2f}" if values else "–")
        rows.append(f"| {runtime} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", f"{many} of {result['runs']} inferences; {_host(result)}."])


def _example(name: str) -> Callable[[], str]:
    """A table maker that gives an example's commands and outputs: long lines cut, progress left out."""

    def text() -> str:
        lines = []
        for entry in load("examples")["examples"][name]:
            told = [line for line in entry["output"] if not line.startswith("  ")]
            lines += [f"$ {entry['command']}", *(line if len(line) <= CUT else f"{line[: CUT - 1]}…" for line in told)]
            lines += [f"(exit code {entry['exit_code']})"] if entry["exit_code"] else []
        return "\n".join(["```", *lines, "```"])

    return text


TABLES: dict[str, Callable[[], str]] = {
    "agreement": agreement_table,
    "detection": detection_table,
    "setup": setup_table,
    "counts": counts_table,
    "ops-cost": ops_table,
    **{f"example-{name}": _example(name) for name in ("browser", "ssh", "adb", "qemu")},
}
