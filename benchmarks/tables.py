"""Writes every table of the README and docs/ from the committed results: `python benchmarks/tables.py [--check]`.

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; nothing else is touched. `--check` exits 1 when the page is out of date.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import tables_devices
import tables_distill
import tables_dynamic
import tables_export
import tables_filters
import tables_geometry
import tables_lottery
import tables_models_anomaly
import tables_models_anomaly_features
import tables_models_bias
import tables_models_develop
import tables_models_isp
import tables_sparse

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (
    "README.md",
    "docs/analyze.md",
    "docs/distillation.md",
    "docs/dynamic.md",
    "docs/export.md",
    "docs/sparsity.md",
    "docs/filters.md",
    "docs/lottery.md",
    *(f"docs/{page}.md" for page in ("bias-loss", "isp-training", "develop", "anomaly", "anomaly-baselines")),
    *(f"docs/devices{part}.md" for part in ("", "-ops", "-ssh", "-arm", "-adb")),
)


def load(name: str) -> dict:
    """A committed result file."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard error over seeds."""
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def signed(value: float) -> str:
    """A difference with its sign, as it is printed."""
    return f"{value:+.2f}".replace("-", "−")


def demo_table() -> str:
    """The demo's network before and after, over seeds."""
    runs = load("spine")["demo"]
    first = runs[0]
    accuracy, error = spread([100 * r["accuracy"] for r in runs])
    delta, delta_error = spread([100 * (r["accuracy"] - r["parent_accuracy"]) for r in runs])
    rows = [
        "| | parent | half (mean ± s.e. of " + f"{len(runs)} seeds) | change |",
        "|---|---:|---:|---:|",
        f"| accuracy, {first['test_samples']:,} test images | {100 * first['parent_accuracy']:.2f} % | {accuracy:.2f} ± {error:.2f} % "
        f"| {signed(delta)} ± {delta_error:.2f} points |",
        _ratio_row("MMACs", first["parent_macs"] / 1e6, [r["macs"] / 1e6 for r in runs], "MAC ratio"),
        _ratio_row("thousand params", first["parent_params"] / 1e3, [r["params"] / 1e3 for r in runs], "ratio"),
    ]
    for runtime in dict.fromkeys(c["runtime"] for r in runs for c in r["comparisons"]):
        pairs = [c for r in runs for c in r["comparisons"] if c["runtime"] == runtime]
        ups, floors = [c["speedup"] for c in pairs], [c["noise_floor"] for c in pairs if c["noise_floor"] is not None]
        latency = {m["label"].split("-")[0]: [] for m in first["latency"]}
        for r in runs:
            for m in r["latency"]:
                if m["runtime"] == runtime:
                    latency[m["label"].split("-")[0]].append(m["p50_ms"])
        rows.append(
            f"| {runtime}, 1 thread, p50 | {statistics.mean(latency['parent']):.3f} ms | {statistics.mean(latency['compressed']):.3f} ms "
            f"| speed-up {statistics.median(ups):.2f}× ({min(ups):.2f}–{max(ups):.2f}; noise floor ≤ {100 * max(floors):.1f} %) |"
        )
    return "\n".join(rows)


def _ratio_row(name: str, before: float, after: list[float], label: str) -> str:
    return f"| {name} | {before:.2f} | {statistics.mean(after):.2f} | {label} {statistics.mean(after) / before:.3f} |"


def artifact_table() -> str:
    """The compressed network's artifacts and their verdicts: the worst over seeds."""
    by_name: dict[str, list[dict]] = {}
    for run in load("spine")["demo"]:
        for artifact in run["artifacts"]:
            by_name.setdefault(artifact["name"], []).append(artifact)
    rows = ["| artifact | size | worst SQNR | top-1 agreement | judged with | verdict |", "|---|---:|---:|---:|---|---|"]
    for name, found in by_name.items():
        if not name.startswith("compressed-"):
            continue
        verdicts = "proven" if all(a["status"] == "accepted" for a in found) else "rejected"
        rows.append(
            f"| {name.removeprefix('compressed-')} | {max(a['size_bytes'] for a in found) / 1e3:.0f} kB "
            f"| {min(a['sqnr_db'] for a in found):.1f} dB | {100 * min(a['top1_agreement'] for a in found):.1f} % "
            f"| {found[0]['evaluator'].split(' (')[0]} | {verdicts} |"
        )
    return "\n".join(rows)


def speed_table() -> str:
    """trimtab's own speed against its goals."""
    spine, training = load("spine"), load("training")
    runs, start = spine["demo"], spine["start"]
    rows = ["| what | measured | goal |", "|---|---:|---:|"]
    rows.append(
        f"| `trimtab demo`, fresh, 2 cores | {max(r['fresh_s'] for r in runs):.0f} s (slowest of {len(runs)}) | ≤ 240 s |"
    )
    rows.append(f"| … its peak memory | {max(r['peak_bytes'] for r in runs) / 2**30:.2f} GiB | ≤ 4 GiB |")
    rows.append(f"| … a second time, everything cached | {max(r['again_s'] for r in runs):.1f} s | ≤ 10 s |")
    ratio = start["help_over_bare"]
    rows.append(
        f"| `trimtab --help` over a bare interpreter start | {ratio['median']:.1f}× ({ratio['q1']:.1f}–{ratio['q3']:.1f}; "
        f"A/A {start['aa']['median']:.2f}) | ≤ {start['goal']}× |"
    )
    rows += training_rows(training)
    return "\n".join(rows)


def training_rows(training: dict) -> list[str]:
    """The training engine's step against a hand-written loop, and distillation with cached against live teacher outputs."""
    engine, distill = (training["results"][key] for key in ("engine_resnet20", "distill_resnet56_resnet20"))
    hand, aa, cached = (
        part["wall"] for part in (engine["engine_over_hand"], engine["hand_again_over_hand"], distill["cached_over_uncached"])
    )

    def cell(ratio: dict) -> str:
        return f"{ratio['median']:.3f} ({ratio['quartile_low']:.2f}–{ratio['quartile_high']:.2f})"

    return [
        f"| training step over a hand-written torch loop (ResNet-20) | {cell(hand)}; A/A {cell(aa)} | ≤ {engine['goal_engine_over_hand']} |",
        f"| distillation step, cached over live teacher (ResNet-56 → 20) | {cell(cached)} | ≤ {distill['goal_cached_over_uncached']} |",
    ]


TABLES: dict[str, Callable[[], str]] = {
    "demo": demo_table,
    "artifacts": artifact_table,
    "speed": speed_table,
    **tables_distill.tables(),
    **tables_dynamic.tables(),
    **tables_export.tables(),
    **tables_devices.TABLES,
    **tables_sparse.TABLES,
    **tables_filters.TABLES,
    **tables_lottery.TABLES,
    **tables_geometry.TABLES,
    **tables_models_anomaly.TABLES,
    **tables_models_anomaly_features.TABLES,
    **tables_models_bias.TABLES,
    **tables_models_develop.TABLES,
    **tables_models_isp.TABLES,
}


def render(page: str) -> str:
    """The page with every table written anew."""
    for name, make in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if pattern.search(page):
            page = pattern.sub(lambda m, make=make: m[1] + make() + "\n" + m[2], page)
    return page


def main() -> int:
    """0, or 1 when --check finds a page out of date."""
    stale = []
    for name in PAGES:
        path = ROOT / name
        text = path.read_text()
        if (new := render(text)) != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(new)
    if stale and "--check" in sys.argv:
        print(f"out of date: {', '.join(stale)}; run python benchmarks/tables.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
