"""The tables of docs/isp-training.md, from results/models/isp.json and isp_long.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trials import column, mean_error, paired, stored

NOT_RUN = "_not run_"
FIGURES = {"psnr": ("PSNR, dB", 2), "ssim": ("SSIM", 3), "delta_e": ("ΔE", 2), "perceptual": ("perceptual", 3)}
NAMES = {
    "rendering": "fixed rendering (nothing trained)",
    "rendering, the camera's gains": "… with the middle of the camera's own gains",
    "unpaired": "**unpaired**, all five terms",
    "paired": "paired, five terms",
    "paired, no critics": "paired, content (in colour) and variation alone",
    "paired L1": "paired, L1 (`finetune`)",
    "no content": "unpaired without content",
    "no variation": "… without total variation",
    "no shallow texture": "… without the shallow texture critic",
    "no deep texture": "… without the deep texture critic",
    "no colour": "… without the colour critic",
    "not balanced": "… not balanced by gradient norms",
    "code's penalty": "… with the released code's penalty on the critics (γ = 1000)",
}


def _cells(trials: Mapping, arm: str, prefix: str = "") -> str:
    return " | ".join(mean_error(column(trials, arm, prefix + name), digits) for name, (_, digits) in FIGURES.items())


def arms_table() -> str:
    """Every arm on held-out photographs, with its paired difference to the unpaired run."""
    result = stored("isp", "models")
    if result is None:
        return NOT_RUN
    trials, about = result["trials"], result["about"]
    done = [arm for arm in NAMES if arm in trials]
    counts = {arm: len(trials[arm]) for arm in done}
    seeds, fewer = max(counts.values()), [NAMES[arm] for arm in done if counts[arm] < max(counts.values())]
    said = _fewer(fewer, min(counts.values()))
    lines = [
        f"EfficientISP from scratch; {about['steps']} steps of {about['batch']} mosaics of {about['side']}×{about['side']}; "
        f"{len(about['photographs'])} photographs, split anew by each of {seeds} seeds{said}; figures of {about['test']} patches of held-out "
        "photographs (mean ± s.e. over seeds). Last column: PSNR minus that of the unpaired run.",
        "",
        "| arm | " + " | ".join(label for label, _ in FIGURES.values()) + " | against unpaired |",
        "|---|" + "---:|" * (len(FIGURES) + 1),
    ]
    for arm in done:
        gap = ""
        shared = sorted(trials[arm].keys() & trials.get("unpaired", {}).keys(), key=int)
        if arm != "unpaired" and len(shared) > 1:
            gap = paired(*([trials[name][seed]["psnr"] for seed in shared] for name in ("unpaired", arm))).text(2)
        lines.append(f"| {NAMES[arm]} | {_cells(trials, arm)} | {gap} |")
    return "\n".join(lines)


def _fewer(arms: list[str], least: int) -> str:
    return f" (fewer, {least} at least: {', '.join(arms)})" if arms else ""


def long_table() -> str:
    """The arms that were trained four times as long, with what the longer training brought."""
    result, short = stored("isp_long", "models"), stored("isp", "models")
    if result is None or short is None:
        return NOT_RUN
    trials, about = result["trials"], result["about"]
    done = [arm for arm in NAMES if arm in trials]
    lines = [
        f"The same with {about['steps']:,} steps; mean ± s.e. over {max(len(trials[arm]) for arm in done)} seeds. Last columns: change against "
        f"{short['about']['steps']} steps, paired by seed.",
        "",
        "| arm | " + " | ".join(label for label, _ in FIGURES.values()) + " | PSNR, change | ΔE, change |",
        "|---|" + "---:|" * (len(FIGURES) + 2),
    ]
    for arm in done:
        shared = sorted(trials[arm].keys() & short["trials"][arm].keys(), key=int)
        told = " | ".join(
            paired(*([found[arm][seed][figure] for seed in shared] for found in (short["trials"], trials))).text(2)
            for figure in ("psnr", "delta_e")
        )
        lines.append(f"| {NAMES[arm].replace('…', 'unpaired')} | {_cells(trials, arm)} | {told} |")
    return "\n".join(lines)


def selection_table() -> str:
    """The rule's iterate, the last one and the oracle's."""
    result = stored("isp", "models")
    if result is None:
        return NOT_RUN
    trials = result["trials"]
    lines = [
        "| arm, iterate | step | " + " | ".join(label for label, _ in FIGURES.values()) + " |",
        "|---|---:|" + "---:|" * len(FIGURES),
    ]
    for arm in ("unpaired", "paired"):
        if arm not in trials:
            continue
        steps = {
            "": " ".join(f"{s:.0f}" for s in column(trials, arm, "step")),
            "last ": f"{result['about']['steps']}",
            "oracle ": " ".join(f"{s:.0f}" for s in column(trials, arm, "oracle step")),
        }
        for prefix, label in (("", "by the rule"), ("last ", "the last"), ("oracle ", "best PSNR on pairs (oracle)")):
            lines.append(f"| {arm}, {label} | {steps[prefix]} | {_cells(trials, arm, prefix)} |")
    return "\n".join(lines)


def photographs_table() -> str:
    """The photographs and their licences."""
    result = stored("isp", "models")
    if result is None:
        return NOT_RUN
    by_licence: dict[str, list[str]] = {}
    for name, licence in result["about"]["photographs"].items():
        by_licence.setdefault(licence, []).append(name)
    lines = ["| licence | photographs |", "|---|---|"]
    return "\n".join(lines + [f"| {licence} | {', '.join(sorted(names))} |" for licence, names in sorted(by_licence.items())])


def arm_table() -> str:
    """Multiply-accumulates and instructions per pixel on emulated Arm cores."""
    result = stored("isp_arm", "models")
    if result is None:
        return NOT_RUN
    rows, pixels = result["rows"], result["side"] ** 2
    cores = list(dict.fromkeys(row["core"] for row in rows))
    by_net: dict[tuple[str, str], dict[str, dict]] = {}
    for row in rows:
        by_net.setdefault((row["net"], row["packing"]), {})[row["core"]] = row
    stable = "the same in both processes" if all(row["stable"] for row in rows) else "not always the same in both processes"
    lines = [
        f"Per pixel of a {result['side']}×{result['side']} mosaic; TFLite fp32 by {rows[0]['runtime']}, one thread; instructions are exact "
        f"({stable}) and no time.",
        "",
        "| network | packing | MACs | " + " | ".join(f"instructions, {core}" for core in cores) + " |",
        "|---|---|---:|" + "---:|" * len(cores),
    ]
    for (net, packing), found in by_net.items():
        counts = " | ".join(f"{found[core]['instructions'] / pixels:,.0f}" for core in cores)
        lines.append(f"| `{net}` | {packing} | {found[cores[0]]['macs'] / pixels:,.0f} | {counts} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "isp-arms": arms_table,
    "isp-long": long_table,
    "isp-selection": selection_table,
    "isp-photographs": photographs_table,
    "isp-arm": arm_table,
}
