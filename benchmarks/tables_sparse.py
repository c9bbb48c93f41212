"""The tables of docs/sparsity.md, from results/lottery/sparse.json and readout.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trials import stored

NOT_RUN = "_not run_"
NETS = ("resnet20", "mobilenet_v1")
NAMES = {
    "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "litert": "LiteRT", "executorch": "ExecuTorch", "mnn": "MNN",
    "onnx": "ONNX", "tflite": "TFLite", "coreml": "Core ML",
}  # fmt: skip
AT = "95 %"
"""The share of zeros that verdicts are about."""
RUNS = (
    *("onnxruntime fp32", "onnxruntime int8", "openvino fp32", "openvino int8", "litert fp32", "litert int8"),
    *("ncnn fp32", "mnn fp32", "executorch fp32"),
)


def named(key: str) -> str:
    """ "onnxruntime int8" → "ONNX Runtime int8"."""
    first, _, rest = key.partition(" ")
    return f"{NAMES.get(first, first)} {rest}".strip()


def interval(found: Mapping[str, Any]) -> str:
    """A ratio with its 95 % interval: "1.00× [0.99, 1.01]"."""
    if found["low"] is None:
        return f"{found['ratio']:.2f}× [too few sittings]"
    return f"{found['ratio']:.2f}× [{found['low']:.2f}, {found['high']:.2f}]"


def conditions(result: Mapping[str, Any]) -> str:
    """The machine, and how busy it was."""
    c = result["conditions"]
    low, high = (f"{value:.1f}" for value in sorted(c["load_average"]))
    return f"{c['cpu']}, {c['cores']} cores, load average {low} to {high} while it ran"


def sizes_table(net: str) -> str:
    """File and download size of every format at every share of zeros, in kB."""
    result = stored("sparse")
    if result is None or net not in result["nets"]:
        return NOT_RUN
    row, arms = result["nets"][net], list(result["arms"])
    lines = [
        f"{row['about'][0].upper()}{row['about'][1:]}. File → download (deflated), kB.",
        "",
        "| artifact | " + " | ".join(arms) + " |",
        "|---|" + "---:|" * len(arms),
        "| zeros in all weights | " + " | ".join(f"{100 * row['zeros'][arm]:.1f} %" for arm in arms) + " |",
    ]
    for key, found in row["sizes"].items():
        cells = [_size(found.get(arm)) for arm in arms]
        lines.append(f"| {named(key)} | " + " | ".join(cells) + " |")
    for key, reasons in row["unable"].items():
        if key not in row["sizes"]:
            lines += ["", f"{named(key)} is missing: {next(iter(reasons.values()))}."]
    return "\n".join(lines)


def _size(found: Mapping[str, int] | None) -> str:
    return "—" if found is None else f"{found['size_bytes'] / 1000:,.0f} → {found['deflated_bytes'] / 1000:,.0f}"


def latency_table(net: str) -> str:
    """How many times as fast as dense every variant is, in every runtime."""
    result = stored("sparse")
    if result is None or net not in result["nets"]:
        return NOT_RUN
    latency, arms = result["nets"][net]["latency"], [arm for arm in result["arms"] if arm != "0 %"]
    lines = [
        f"Times as fast as the dense network, with 95 % intervals over sittings; **bold**: beyond the A/A pair's noise. "
        f"{conditions(result)}.",
        "",
        "| runtime | dense ms | dense against itself (A/A) | " + " | ".join(arms) + " |",
        "|---|---:|---:|" + "---:|" * len(arms),
    ]
    for key, found in latency.items():
        cells = [f"**{interval(c)}**" if c["significant"] else interval(c) for c in (found["speedup"][arm] for arm in arms)]
        lines.append(f"| {named(key)} | {found['p50_ms']['0 %']:.3f} | {interval(found['aa'])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdicts() -> str:
    """One sentence a runtime: whether zeros made anything faster."""
    result = stored("sparse")
    if result is None:
        return NOT_RUN
    told: dict[str, list[str]] = {}
    for net, row in result["nets"].items():
        for key, found in row["latency"].items():
            told.setdefault(key, []).append(f"{net}: {_verdict(found['speedup'])}")
    lines = [f"- **{named(key)}**: {'; '.join(words)}." for key, words in told.items()]
    missing = [
        f"{named(key)} ({net})"
        for net in NETS
        for key in RUNS
        if key not in result["nets"].get(net, {"latency": {}})["latency"]
    ]
    if missing:
        lines.append(f"- Not measured, or on too busy a machine to say anything: {', '.join(missing)}.")
    return "\n".join(lines)


def _verdict(speedup: Mapping[str, Mapping[str, Any]]) -> str:
    at, gains = speedup[AT], [arm for arm, c in speedup.items() if c["significant"] and c["ratio"] > 1]
    losses = [arm for arm, c in speedup.items() if c["significant"] and c["ratio"] < 1]
    words = f"{'faster' if AT in gains else 'slower' if AT in losses else 'no gain'} at {AT}: {interval(at)}"
    for others, what in ((gains, "faster"), (losses, "slower")):
        if rest := [arm for arm in others if arm != AT]:
            words += f", {what} at " + ", ".join(f"{arm} ({interval(speedup[arm])})" for arm in rest)
    return words


def downloads() -> str:
    """What share of the dense download is left, format by format."""
    result = stored("sparse")
    if result is None:
        return NOT_RUN
    arms = [arm for arm in result["arms"] if arm != "0 %"]
    lines = ["| artifact | network | " + " | ".join(arms) + " |", "|---|---|" + "---:|" * len(arms)]
    for net, row in result["nets"].items():
        for key in ("onnx fp32", "tflite int8", "coreml fp16"):
            if (found := row["sizes"].get(key)) and "0 %" in found:
                base = found["0 %"]["deflated_bytes"]
                cells = [f"{100 * found[arm]['deflated_bytes'] / base:.0f} %" if arm in found else "—" for arm in arms]
                lines.append(f"| {named(key)} | {net} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def readout_table() -> str:
    """Dead channels sliced: MACs, accuracy, and latency against the masked network of the same weights."""
    result = stored("readout")
    if result is None:
        return NOT_RUN
    found = [share for row in result["nets"].values() for share in row["shares"].values()]
    runtimes = list(dict.fromkeys(runtime for share in found for runtime in share["latency"]))
    lines = [
        f"Times as fast as the masked network, with 95 % intervals; **bold**: beyond the A/A pair's noise. {conditions(result)}.",
        "",
        "| network | zeros | form | accuracy % | MACs | params | channels removed | " + " | ".join(map(named, runtimes)) + " |",
        "|---|---|---|---:|---:|---:|---:|" + "---:|" * len(runtimes),
    ]
    for net, row in result["nets"].items():
        lines.append(
            f"| {net} | 0 % | dense | {row['dense_accuracy']:.2f} | 1 | 1 | | " + " | ".join("" for _ in runtimes) + " |"
        )
        for share, found in row["shares"].items():
            for arm, facts in found["arms"].items():
                cells = []
                for runtime in runtimes:
                    if runtime not in found["latency"]:
                        cells.append("too noisy")
                        continue
                    c = found["latency"][runtime]["speedup"].get(arm)
                    cells.append("1" if c is None else f"**{interval(c)}**" if c["significant"] else interval(c))
                lines.append(f"| {net} | {share} | {arm} | {_facts(facts)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _facts(facts: Mapping[str, Any]) -> str:
    if "mac_ratio" not in facts:
        return f"{facts['accuracy']:.2f} | 1 | 1 | 0"
    gone = sum(facts["removed"].values()) + sum(facts["removed_approximately"].values())
    return f"{facts['accuracy']:.2f} | {facts['mac_ratio']:.3f} | {facts['param_ratio']:.3f} | {gone}"


TABLES: dict[str, Callable[[], str]] = {
    "sparse-verdicts": verdicts,
    "sparse-downloads": downloads,
    "sparse-readout": readout_table,
    **{f"sparse-sizes-{net}": (lambda net=net: sizes_table(net)) for net in NETS},
    **{f"sparse-latency-{net}": (lambda net=net: latency_table(net)) for net in NETS},
}
