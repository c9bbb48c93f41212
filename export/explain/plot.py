"""A picture of a walk: every layer's SQNR as a bar, in execution order from the top, with the gate drawn."""

from __future__ import annotations

from pathlib import Path

from .explanation import Explanation, Row, shown

_OWN, _BELOW, _FIRST = "#4878a8", "#d08050", "#b02020"
_INCH_PER_ROW = 0.17
_NAME = 46
_EDGE_DB = 150.0
"""Float32's own rounding lies below this: what is exact to the last bit ends at the edge."""


def plot(explanation: Explanation, path: Path) -> Path:
    """The PNG written at `path`: SQNR in dB by layer (the worst over sizes), the gate, the first departing layer marked.

    A dot shows a layer's own error, without what it inherits, where it has one. Twenty to two hundred layers are readable.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rows = explanation.rows
    departing = explanation.first_departing
    top = min(_EDGE_DB, max([explanation.gate_db, *(row.sqnr_db for row in rows)]) * 1.04)
    figure = Figure(figsize=(9, 2.0 + _INCH_PER_ROW * max(8, len(rows))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for y, row in enumerate(rows):
        first = departing is not None and row.name == departing.layer
        colour = _FIRST if first else _BELOW if row.sqnr_db < explanation.gate_db else _OWN
        axes.barh(y, max(row.sqnr_db, 0.0), color=colour, height=0.72)
        if row.sqnr_db <= 0:
            axes.text(0.004 * top, y, f"{row.sqnr_db:.0f} dB", va="center", fontsize=6, color=colour)
        if row.local_db is not None and 0 <= row.local_db <= top:
            axes.plot(row.local_db, y, "o", color="black", markersize=2.5)
    axes.axvline(explanation.gate_db, color="black", linestyle="--", linewidth=0.9)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=6.5, family="monospace")
    axes.set_ylim(max(len(rows), 1) - 0.3, -0.7)
    axes.set_xlim(0, top)
    axes.set_xlabel("SQNR against the float network (dB), worst over sizes")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    handles: list[Line2D | Patch] = [
        Patch(color=_OWN, label="above the gate"),
        Line2D([], [], color="black", linestyle="--", linewidth=0.9, label=f"gate {explanation.gate_db:g} dB"),
        Line2D([], [], color="black", marker="o", linestyle="", markersize=3, label="the layer's own error"),
    ]
    if any(row.sqnr_db < explanation.gate_db for row in rows):
        handles.insert(1, Patch(color=_BELOW, label="below the gate"))
    if departing is not None:
        handles.insert(0, Patch(color=_FIRST, label="first departing"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=7, frameon=False)
    axes.set_title(_title(explanation), fontsize=9, loc="left")
    figure.savefig(path, dpi=130)
    return path


def _label(row: Row) -> str:
    name = row.module or row.node
    kept = name if len(name) <= _NAME else "…" + name[-_NAME + 1 :]
    return f"{kept} {row.op}"


def _title(explanation: Explanation) -> str:
    lines = [f"{explanation.format} {explanation.precision}, layer by layer"]
    if explanation.first_departing is not None:
        lines.append(f"first departing: {explanation.first_departing.node}")
    departing = {tuple(d.items()) for d in explanation.departing_sizes}
    if departing and len(departing) < len(explanation.sizes):
        lines.append("departs only at " + ", ".join(shown(dict(d)) for d in departing))
    return "\n".join(lines)
