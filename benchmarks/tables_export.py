"""The tables of docs/export.md: what formats can hold, from their capability records, and what was measured, from results/export/."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from typing import Any

from trials import RESULTS as ALL

RESULTS = ALL / "export"
FORMATS = ("onnx", "tflite", "coreml", "openvino", "executorch", "ncnn", "mnn")
COMMON = ("fp32", "fp16", "int8")
NETS = (
    *("resnet20", "vgg16_bn", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "vit_nano", "efficientnet_lite0"),
    *("isp", "segmenter", "routed"),
)
GATES = {"fp32": 90.0, "fp16": 45.0, "sparse": 45.0}


def formats_table() -> str:
    """Formats × precisions, every no with the number of its reason, and the reasons."""
    from trimtab.export.exporter import exporters

    reasons: list[str] = []

    def cell(why: str, yes: str = "yes") -> str:
        if not why:
            return yes
        if why not in reasons:
            reasons.append(why)
        return f"no ({reasons.index(why) + 1})"

    rows = [
        "| format | fp32 | fp16 | int8 | other precisions | free batch | free H×W | layers in float | extra |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in FORMATS:
        card = exporters.entry(name).card
        known = card.precisions
        cells = [cell(known[p], "default" if p in card.defaults else "yes") if p in known else "–" for p in COMMON]
        more = [p if not why else f"{p}: {cell(why)}" for p, why in known.items() if p not in COMMON]
        free = [cell(card.free.get(part, "")) for part in ("batch", "size")]
        rows.append(
            f"| {card.title} (`{name}`) | {' | '.join(cells)} | {', '.join(more) or '–'} | {' | '.join(free)} "
            f"| {cell(card.keeps_float)} | `{card.extra}` |"
        )
    return "\n".join([*rows, "", *(f"{number}. {reason[0].upper()}{reason[1:]}." for number, reason in enumerate(reasons, 1))])


def results() -> dict[str, dict[str, Any]]:
    """The result files that there are, by network."""
    found = {name: RESULTS / f"{name}.json" for name in NETS}
    nets = {name: json.loads(path.read_text()) for name, path in found.items() if path.exists()}
    for net in nets.values():
        net["rows"] = {
            key: row for key, row in net["rows"].items() if "sparse" not in key
        }  # none of them has zeros to leave out
    return nets


def parity_table() -> str:
    """The worst SQNR of every network in every format and precision."""
    nets = results()
    keys = list(dict.fromkeys(key for net in nets.values() for key in net["rows"]))
    rows = [f"| | {' | '.join(nets)} |", f"|---|{'---:|' * len(nets)}"]
    rows.extend(f"| {key} | " + " | ".join(_parity(net["rows"].get(key)) for net in nets.values()) + " |" for key in keys)
    return "\n".join([*rows, "", *(f"- {name}: {net['about']}" for name, net in nets.items())])


def _parity(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if "error" in row:
        return "refused"
    shown = f"{row['sqnr_db']:.0f}"
    return shown if row["ok"] and row["sqnr_db"] >= 25 else f"{shown} by metric" if row["ok"] else f"({shown})"


def size_table() -> str:
    """kB, operators and seconds of each format and precision: medians of ratios to the ONNX fp32 file, over the networks."""
    nets = results()
    keys = list(dict.fromkeys(key for net in nets.values() for key in net["rows"]))
    rows = [
        "| | networks proven | size over ONNX fp32 | operators over ONNX fp32 | seconds, median (most) |",
        "|---|---:|---:|---:|---:|",
    ]
    for key in keys:
        pairs = [(net["rows"][key], net["rows"].get("onnx fp32", {})) for net in nets.values() if key in net["rows"]]
        done = [(row, base) for row, base in pairs if "error" not in row and base.get("size_bytes")]
        if not done:
            rows.append(f"| {key} | 0 of {len(pairs)} | | | |")
            continue
        sizes = [row["size_bytes"] / base["size_bytes"] for row, base in done]
        ops = [row["ops"] / base["ops"] for row, base in done]
        seconds = [row["seconds"] for row, _ in done]
        rows.append(
            f"| {key} | {sum(row['ok'] for row, _ in done)} of {len(pairs)} | {statistics.median(sizes):.2f} "
            f"| {statistics.median(ops):.2f} | {statistics.median(seconds):.1f} ({max(seconds):.1f}) |"
        )
    return "\n".join(rows)


def refusals_table() -> str:
    """What was refused or missed its gate, and why."""
    rows = ["| network | format, precision | |", "|---|---|---|"]
    for name, net in results().items():
        for key, row in net["rows"].items():
            if "error" in row:
                rows.append(f"| {name} | {key} | refused: {_line(row['error'])} |")
            elif not row["ok"]:
                rows.append(f"| {name} | {key} | rejected: {_line(row['reason'])} |")
    return "\n".join(rows)


def _line(text: str) -> str:
    return text.split("\n", maxsplit=1)[0].replace("|", "\\|")[:220]


def comparisons() -> list[tuple[str, str, str, dict[str, Any], dict[str, Any]]]:
    """(network, format and precision, other converter, what the ratio is, the whole row), where both were timed."""
    return [
        (name, key, other, ratio, row)
        for name, net in results().items()
        for key, row in net["rows"].items()
        for other, ratio in row.get("latency", {}).get("ours_over", {}).items()
    ]


def _label(other: str, name: str) -> str:
    return other.removeprefix(f"{name} ")


def best_other(row: dict[str, Any], name: str) -> tuple[str, dict[str, Any]] | None:
    """Of the other converters whose file is right, the one that ours is slowest against."""
    found = {
        other: ratio
        for other, ratio in row.get("latency", {}).get("ours_over", {}).items()
        if row["others"].get(_label(other, name), {}).get("ok")
    }
    return max(found.items(), key=lambda item: item[1]["ratio"]) if found else None


def latency_table() -> str:
    """Our latency over the best other converter's whose output is right, by network and format."""
    keys = ("onnx fp32", "onnx int8", "tflite fp32", "tflite int8", "openvino fp32", "openvino int8")
    nets = results()
    rows = [f"| | {' | '.join(nets)} | geometric mean | goal ≤ 0.97, none > 1.03 |", f"|---|{'---:|' * len(nets)}---:|---|"]
    for key in keys:
        found = {name: best_other(net["rows"].get(key, {}), name) for name, net in nets.items()}
        ratios = [best[1]["ratio"] for best in found.values() if best]
        if not ratios:
            continue
        mean = math.exp(statistics.mean(map(math.log, ratios)))
        met = mean <= 0.97 and max(ratios) <= 1.03
        cells = [_ratio(best[1]) if best else "–" for best in found.values()]
        rows.append(f"| {key} | {' | '.join(cells)} | {mean:.3f} | {'met' if met else 'missed'} |")
    return "\n".join(rows)


def _ratio(ratio: dict[str, Any]) -> str:
    return f"{ratio['ratio']:.2f}" + ("" if ratio["significant"] else " =")


def others_table() -> str:
    """Each other converter: of how many networks its file is right, and ours over it in latency, size and worst dB."""
    found: dict[tuple[str, str], list[tuple[dict[str, Any], dict[str, Any], float | None]]] = {}
    for name, net in results().items():
        for key, row in net["rows"].items():
            ratios = row.get("latency", {}).get("ours_over", {})
            for other, facts in row.get("others", {}).items():
                ratio = ratios.get(f"{name} {other}", {}).get("ratio")
                found.setdefault((key, other), []).append((row, facts, ratio))
    rows = [
        "| | other converter | right | ours in time of theirs (from – to) | ours in bytes of theirs | dB: ours, theirs (medians) |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for (key, other), entries in found.items():
        right = [(row, facts, ratio) for row, facts, ratio in entries if facts.get("ok")]
        timed = [ratio for _, _, ratio in right if ratio]
        mean = math.exp(statistics.mean(map(math.log, timed))) if timed else None
        time = f"{mean:.2f} ({min(timed):.2f} – {max(timed):.2f})" if mean else "–"
        made = [(row, facts) for row, facts, _ in entries if "size_bytes" in facts and "size_bytes" in row]
        size = f"{statistics.median(row['size_bytes'] / facts['size_bytes'] for row, facts in made):.2f}" if made else "–"
        dbs = (
            f"{statistics.median(row['sqnr_db'] for row, _ in made):.0f}, {statistics.median(f['sqnr_db'] for _, f in made):.0f}"
            if made
            else "–"
        )
        rows.append(f"| {key} | {other} | {len(right)} of {len(entries)} | {time} | {size} | {dbs} |")
    return "\n".join(rows)


def integers_table() -> str:
    """int8 against fp32 of the same format here: how many times as fast, and the accuracy."""
    nets = results()
    rows = [
        "| | ONNX Runtime | LiteRT | OpenVINO | accuracy: network's int8 of ONNX, TFLite, OpenVINO |",
        "|---|---:|---:|---:|---|",
    ]
    for name, net in nets.items():
        cells, scores = [], []
        for kind in ("onnx", "tflite", "openvino"):
            times = [_ours(net["rows"].get(f"{kind} {precision}", {}), name) for precision in ("fp32", "int8")]
            cells.append(f"{times[0] / times[1]:.2f}×" if all(times) else "–")
            accuracy = net["rows"].get(f"{kind} int8", {}).get("accuracy")
            scores.append("–" if accuracy is None else f"{100 * accuracy:.2f} %")
        rows.append(f"| {name} | {' | '.join(cells)} | {', '.join(scores)} |")
    return "\n".join(rows)


def _ours(row: dict[str, Any], name: str) -> float:
    times = row.get("latency", {}).get("p50_ms", {})
    return next((ms for label, ms in times.items() if label.startswith(f"{name}-")), 0.0)


def tables() -> dict[str, Callable[[], str]]:
    """The tables by name; those of measurements only where there are some."""
    made: dict[str, Callable[[], str]] = {"formats": formats_table}
    if results():
        made |= {
            "export-parity": parity_table,
            "export-size": size_table,
            "export-refusals": refusals_table,
            "export-latency": latency_table,
            "export-others": others_table,
            "export-int8": integers_table,
        }
    return made
