"""The table of docs/develop.md, from results/models/develop.json."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trials import stored

NOT_RUN = "_not run_"
TITLES = {"efficient_isp": "EfficientISP", "robust_isp": "RobustISP", "rmfa_tiny": "RMFA-Net tiny"}
ARMS = ("torch, tiled", "torch, tiled, again", "torch, whole")


def develop_table() -> str:
    """Seconds, peak memory and speed-up over torch in tiles, for every network, size and runtime."""
    result = stored("develop", folder="models")
    if result is None:
        return NOT_RUN
    low, high = result["load_average"]
    rounds = max(row.get("rounds", 0) for rows in result["summary"].values() for row in rows.values())
    lines = [
        f"Seconds (median), peak memory of the whole process (largest), and how many times as fast as torch in tiles of {result['tile']} "
        f"in the same round (median, least–most of {rounds} rounds in random order). {result['host']['cpu']}, {result['threads']} thread, "
        f"load average {low:.1f} to {high:.1f}; random weights, noise as the frame.",
        "",
        "| network (MAC per pixel) | frame | run by | seconds | peak memory | times as fast |",
        "|---|---|---|---:|---:|---:|",
    ]
    for key, rows in result["summary"].items():
        net, size = key.split(", ")
        name = f"{TITLES[net]} ({result['macs_per_pixel'][net]:,.0f})"
        ordered = sorted(rows, key=lambda arm: ARMS.index(arm) if arm in ARMS else len(ARMS))
        lines += [f"| {name} | {size} | {_named(arm)} | {_cells(rows[arm], first=arm == ARMS[0])} |" for arm in ordered]
    for key, why in result["left_out"].items():
        net, size = key.split(", ")
        lines += ["", f"{TITLES[net]} at {size}: one round, in tiles alone; {why}."]
    return "\n".join(lines)


def _named(arm: str) -> str:
    return "torch, tiled, a second time (A/A)" if arm == ARMS[1] else arm


def _cells(row: dict[str, Any], *, first: bool) -> str:
    if "failed" in row:
        return f"failed: {row['failed']} | | "
    up = row["speed_up"]
    ratio = "1" if first else f"{up['median']:.2f} ({up['least']:.2f}–{up['most']:.2f})"
    return f"{row['seconds']:.2f} | {row['peak_bytes'] / 2**30:.2f} GiB | {ratio}"


TABLES: dict[str, Callable[[], str]] = {"develop": develop_table}
