"""The tables of docs/dynamic.md, from results/dynamic/."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence

from trials import RESULTS as ALL
from trials import column

RESULTS = ALL / "dynamic"
NETS = ("resnet20", "vgg16_bn", "mobilenet_v1")
RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "litert": "LiteRT"}
NOT_RUN = "_not run_"
GATE_COLUMNS = {
    "accuracy": "accuracy %",
    "reduction": "MACs cut %",
    "estimated": "estimated %",
    "distinct_masks": "distinct masks of 1024",
    "dynamic_layers": "dynamic layers %",
    "entropy_bits": "entropy, bits",
    "class_bits": "about the class, bits",
    "beyond_constant": "beyond a constant, points",
    "headroom": "of at most",
}


def load(name: str) -> dict | None:
    """A result file, or None when the experiment has not been run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def shown(values: Sequence[float]) -> str:
    """Mean ± standard error over seeds; three figures."""
    mean = statistics.mean(values)
    digits = 0 if abs(mean) >= 200 else 1 if abs(mean) >= 2 else 2
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{error}".replace("-", "−")


def _about(result: Mapping) -> str:
    about = result["about"]
    training = about["training"]
    net = ", ".join(f"{k} {v:g}" for k, v in about["network"].items() if k != "name")
    dense = about.get("dense")
    dense = dense["accuracy"] if isinstance(dense, dict) else dense
    return (
        f"{about['network']['name']}{f' ({net})' if net else ''}; {about['data']}; {training['epochs']:g} epochs, "
        f"{training.get('optimizer', 'sgd')}, lr {training['lr']:g}, batch {training['batch_size']}"
        + (f"; dense {dense:.2f} %." if dense else ".")
    )


def accuracy_table(net: str) -> str:
    """Every arm at every cut: accuracy, and the MACs really cut (beside the estimate, for gates)."""
    result = load(f"accuracy-{net}")
    if result is None:
        return NOT_RUN
    trials = result["trials"]
    arms: dict[str, dict[str, str]] = {}
    for name in trials:
        arm, _, cut = name.rpartition(" @ ")
        arms.setdefault(arm, {})[cut] = name
    cuts = list(dict.fromkeys(cut for found in arms.values() for cut in found))
    seeds = min((len(trials[name]) for found in arms.values() for name in found.values()), default=0)
    lines = [
        f"{_about(result)} Accuracy in %, then MACs cut in % (estimated → realised for gates), mean ± s.e. of {seeds} seeds or more.",
        "",
        "| arm | " + " | ".join(f"aim {cut.replace('%', ' %')}" for cut in cuts) + " |",
        "|---|" + "---:|" * len(cuts),
    ]
    for arm, found in arms.items():
        cells = [_cell(trials, found[cut]) if cut in found and trials[found[cut]] else "" for cut in cuts]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(trials: Mapping, name: str) -> str:
    cut = f"{statistics.mean(column(trials, name, 'reduction')):.1f}"
    if "estimated" in next(iter(trials[name].values())):
        cut = f"{statistics.mean(column(trials, name, 'estimated')):.1f} → {cut}"
    return f"**{shown(column(trials, name, 'accuracy'))}** at {cut}"


def estimate_table() -> str:
    """How far the realised MAC reduction lies from the estimate, per network and arm."""
    lines = ["| network | arm | realised − estimated, points (mean, largest) | runs |", "|---|---|---:|---:|"]
    for net in NETS:
        result = load(f"accuracy-{net}")
        gaps: dict[str, list[float]] = {}
        for name, trials in (result or {"trials": {}})["trials"].items():
            for figures in trials.values():
                if "estimated" in figures:
                    gaps.setdefault(name.rpartition(" @ ")[0], []).append(figures["reduction"] - figures["estimated"])
        for arm, found in gaps.items():
            largest = max(found, key=abs)
            lines.append(
                f"| {net} | {arm} | {statistics.mean(found):+.1f}, {largest:+.1f} | {len(found)} |".replace("-", "−").replace(
                    "|−−−|−−−|−−−:|−−−:|", "|---|---|---:|---:|"
                )
            )
    return "\n".join(lines) if len(lines) > 2 else NOT_RUN


def gates_table(net: str) -> str:
    """Every predictor's figures."""
    result = load(f"gates-{net}")
    if result is None:
        return NOT_RUN
    lines = [
        f"{_about(result)} r = {result['about']['training']['r']:g}.",
        "",
        "| predictor | seeds | " + " | ".join(GATE_COLUMNS.values()) + " |",
        "|---|---:|" + "---:|" * len(GATE_COLUMNS),
    ]
    for arm, seeds in result["trials"].items():
        cells = [shown(column(result["trials"], arm, figure)) for figure in GATE_COLUMNS]
        lines.append(f"| {arm} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def routes_table(net: str) -> str:
    """Accuracy at shares of the MACs: static networks, and branches at thresholds chosen on validation data."""
    result = load(f"routes-{net}")
    if result is None:
        return NOT_RUN
    trials = result["trials"]
    lines = [_about(result), "", "| arm | setting | MACs % | accuracy % | seeds |", "|---|---|---:|---:|---:|"]
    for arm, seeds in trials.items():
        for figure in next(iter(seeds.values())):
            if found := re.fullmatch(r"accuracy( @ (.*))?", figure):
                have = {s: f for s, f in seeds.items() if figure in f}
                macs = shown([f[f"macs{found[1] or ''}"] for f in have.values()])
                aim = f"at most {100 * float(found[2]):g} %" if found[2] else ""
                lines.append(f"| {arm} | {aim} | {macs} | {shown([f[figure] for f in have.values()])} | {len(have)} |")
    return "\n".join(lines)


def speed_table(net: str) -> str:
    """Every form's speed-up over the dense network in every runtime, on real inputs one at a time."""
    result = load(f"speed-{net}")
    if result is None:
        return NOT_RUN
    latency, about = result["latency"], result["contenders"]
    lines = [
        f"{_about(result)} {result['about']['timing']}. Speed-up = dense mean latency / its mean latency, median over sittings "
        "(lowest–highest); p99 in ms.",
        "",
        "| form | accuracy % | MACs % | " + " | ".join(RUNTIMES.values()) + " |",
        "|---|---:|---:|" + "---:|" * len(RUNTIMES),
    ]
    for name, facts in about.items():
        macs = f"{100 * facts['mac_ratio']:.1f}" if "mac_ratio" in facts else ""
        cells = [_speed(latency.get(runtime, {}).get(name)) for runtime in RUNTIMES]
        lines.append(f"| {name} | {facts['accuracy']:.2f} | {macs} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


README_NET = "resnet20"
README_ROWS = {
    "dense": "dense",
    "masked": "masked: what papers count as saved",
    "gathered": "gathered: only the channels that are on",
    "routed nested @ 0.2": "routed, thresholds for 20 % of the MACs",
    "routed nested @ 0.35": "… for 35 %",
    "routed nested @ 0.5": "… for 50 %",
    "static 0.2": "static, 20 % of the MACs",
    "static 0.35": "static, 35 %",
    "static 0.5": "static, 50 %",
}


def readme_table() -> str:
    """The README's table: a few rows of the shipped network's."""
    result = load(f"speed-{README_NET}")
    if result is None:
        return NOT_RUN
    lines = [
        "| form | accuracy % | MACs % | " + " | ".join(RUNTIMES.values()) + " |",
        "|---|---:|---:|" + "---:|" * len(RUNTIMES),
    ]
    for name, words in README_ROWS.items():
        if facts := result["contenders"].get(name):
            rows = [result["latency"][runtime].get(name) for runtime in RUNTIMES]
            cells = [f"{row['speedup']:.2f}×" if row else "—" for row in rows]
            lines.append(f"| {words} | {facts['accuracy']:.2f} | {100 * facts['mac_ratio']:.1f} | " + " | ".join(cells) + " |")
    again = [abs(result["latency"][runtime]["dense again"]["speedup"] - 1) for runtime in RUNTIMES]
    return (
        "\n".join(lines)
        + f"\n\nResNet-20 on Fashion-MNIST, speed-up over dense (two copies of dense differ by {max(again):.1%})."
    )


def _speed(row: Mapping[str, float] | None) -> str:
    if row is None:
        return "—"
    return f"**{row['speedup']:.2f}×** ({row['speedup_low']:.2f}–{row['speedup_high']:.2f}), p99 {row['p99_ms']:.2f}"


def verdict_table() -> str:
    """The two goals: routed speed-up against its MAC ratio, and its latency against the best static network as accurate."""
    lines = [
        "| network | runtime | routed form | accuracy % | speed-up × MAC ratio (goal ≥ 0.8) | … of the static net of nearest MACs "
        "| fastest static form as accurate | routed latency / static latency (goal ≤ 0.5) |",
        "|---|---|---|---:|---:|---:|---|---:|",
    ]
    for net in NETS:
        result = load(f"speed-{net}")
        for runtime, rows in (result or {"latency": {}})["latency"].items():
            lines += _verdicts(net, runtime, rows, (result or {})["contenders"])
    return "\n".join(lines) if len(lines) > 2 else NOT_RUN


def _verdicts(net: str, runtime: str, rows: Mapping, about: Mapping) -> list[str]:
    """One line per routed setting that loses at most 1.5 points against dense."""
    lines = []
    for name, facts in about.items():
        if not name.startswith("routed") or facts["accuracy"] < about["dense"]["accuracy"] - 1.5:
            continue
        plain = [n for n in rows if n.startswith(("static", "dense")) and n != "dense again"]
        equal = [n for n in plain if about[n]["accuracy"] >= facts["accuracy"] - 0.1]
        best = min(equal, key=lambda n: rows[n]["mean_ms"], default=None)
        near = min((n for n in plain if n != "dense"), key=lambda n: abs(about[n]["mac_ratio"] - facts["mac_ratio"]))
        against = f"{rows[name]['mean_ms'] / rows[best]['mean_ms']:.2f}" if best else ""
        lines.append(
            f"| {net} | {RUNTIMES[runtime]} | {name.replace('routed ', '')} | {facts['accuracy']:.2f} "
            f"| {rows[name]['speedup'] * facts['mac_ratio']:.2f} | {rows[near]['speedup'] * about[near]['mac_ratio']:.2f} ({near}) "
            f"| {best or 'none'} | {against} |"
        )
    return lines


def overhead_table() -> str:
    """What a gate costs per layer, in microseconds."""
    result = load("overhead")
    if result is None:
        return NOT_RUN
    lines = [
        f"{result['about'][0].upper()}{result['about'][1:]}; ratio of the whole and extra microseconds per layer.",
        "",
        "| runtime | layer | dense µs | A/A | " + " | ".join(forms := list(result["cells"][0]["forms"])) + " |",
        "|---|---|---:|---:|" + "---:|" * len(forms),
    ]
    for cell in result["cells"]:
        shown_forms = [_overhead(cell["forms"].get(form)) for form in forms]
        layer = f"{cell['kernel']}×{cell['kernel']}, {cell['channels']} channels, {cell['side']}²"
        name = RUNTIMES.get(cell["runtime"], cell["runtime"])
        lines.append(
            f"| {name} | {layer} | {cell['dense_us']:.1f} | ×{cell['aa_ratio']:.2f} | " + " | ".join(shown_forms) + " |"
        )
    return "\n".join(lines)


def _overhead(row: Mapping[str, float] | None) -> str:
    return "—" if row is None else f"×{row['ratio']:.2f} ({row['extra_us']:+.1f} µs)".replace("-", "−")


def tables() -> dict[str, Callable[[], str]]:
    """Every table by the name of its place in the page."""
    found: dict[str, Callable[[], str]] = {
        "dynamic-estimates": estimate_table,
        "dynamic-verdicts": verdict_table,
        "dynamic-overhead": overhead_table,
        "dynamic": readme_table,
    }
    for net in NETS:
        found[f"dynamic-accuracy-{net}"] = lambda net=net: accuracy_table(net)
        found[f"dynamic-gates-{net}"] = lambda net=net: gates_table(net)
        found[f"dynamic-routes-{net}"] = lambda net=net: routes_table(net)
        found[f"dynamic-speed-{net}"] = lambda net=net: speed_table(net)
    return found
