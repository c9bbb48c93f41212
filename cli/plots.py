"""The report's plots as inline SVG: matplotlib draws, CSS variables of the page colour, text stays text."""

from __future__ import annotations

import io
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator, ScalarFormatter

from .report_text import significant

# Matplotlib wants real colours; these stand for the page's CSS variables, which know light and dark.
INK, MUTED, GRID, BAND, PAPER = "#010101", "#010102", "#010103", "#010104", "#010105"
SERIES = ("#010111", "#010112", "#010113", "#010114")
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", BAND: "band", PAPER: "paper"} | {
    colour: f"series-{i}" for i, colour in enumerate(SERIES)
}
_MARKERS = ("o", "s", "D", "^")
_WIDTH = 4.5  # inches of 72 px: 324 px, so that 9 px type is 9 px on the narrowest phone and grows with the screen
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are anybody's: "$" is a dollar
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}


@dataclass(frozen=True)
class Point:
    """A network in a trade-off plot; `error` is the standard error of `y` (0: none is known)."""

    label: str
    x: float
    y: float
    error: float
    series: int


@dataclass(frozen=True)
class Ridge:
    """The latency samples (ms) of one artifact."""

    label: str
    samples: Sequence[float] | np.ndarray
    series: int


@dataclass(frozen=True)
class Interval:
    """A ratio with its confidence interval, and the noise floor (a fraction) that it has to clear."""

    label: str
    value: float
    low: float
    high: float
    floor: float
    clears: bool


def tradeoff(points: Sequence[Point], *, name: str, x_label: str, y_label: str, alt: str) -> Markup:
    """Points of networks, joined in the given order; y with its standard error."""
    with drawing(2.9) as figure:
        axes = figure.add_subplot()
        axes.plot([p.x for p in points], [p.y for p in points], color=GRID, linewidth=1.4, zorder=1)
        for point in points:
            colour = SERIES[point.series % len(SERIES)]
            axes.errorbar(
                point.x,
                point.y,
                yerr=point.error or None,
                color=colour,
                marker=_MARKERS[point.series % len(_MARKERS)],
                markersize=8,
                elinewidth=1.4,
                capsize=4,
                zorder=2,
            )
        _label_points(axes, points)
        axes.grid(visible=True, axis="y")
        axes.set(xlabel=x_label, ylabel=y_label)
        _frame(axes, points)
        even_ticks(axes.xaxis)
        even_ticks(axes.yaxis)
        return svg(figure, name=name, alt=alt)


def layer_bars(layers: Sequence[str], series: Mapping[str, Sequence[float]], *, name: str, x_label: str, alt: str) -> Markup:
    """Horizontal bars by layer, first layer on top, one bar a network."""
    with drawing(0.75 + 0.2 * len(layers) * max(1.0, 0.62 * len(series))) as figure:
        axes = figure.add_subplot()
        rows = np.arange(len(layers))
        height = 0.8 / max(1, len(series))
        for i, (label, values) in enumerate(series.items()):
            offset = (i - (len(series) - 1) / 2) * height
            axes.barh(rows + offset, values, height=height * 0.94, color=SERIES[i % len(SERIES)], label=shortened(label))
        axes.set_yticks(rows, [shortened(layer, 26) for layer in layers])
        axes.set_ylim(len(layers) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(x_label)
        even_ticks(axes.xaxis)
        figure.legend(loc="outside upper left", ncols=2, handlelength=1.0, borderaxespad=0.2)
        return svg(figure, name=name, alt=alt)


def ridges(rows: Sequence[Ridge], *, name: str, alt: str) -> Markup:
    """One density a row over a shared logarithmic axis: the middle 99 % of the samples, median as a line with its value."""
    ranges = [np.quantile(row.samples, (0.005, 0.995)) for row in rows]
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    low, high = low / 1.08, high * 1.08
    edges = np.geomspace(low, high, 91)
    with drawing(0.75 + 0.62 * len(rows)) as figure:
        axes = figure.add_subplot()
        for i, row in enumerate(rows):
            counts, _ = np.histogram(row.samples, bins=edges)
            base, colour = len(rows) - 1 - i, SERIES[row.series % len(SERIES)]
            tops = base + 0.5 * counts / max(1, counts.max())
            axes.stairs(tops, edges, baseline=base, fill=True, color=colour, alpha=0.75, linewidth=0)
            median = float(np.median(row.samples))
            axes.plot([median, median], [base, base + 0.58], color=INK, linewidth=1.2)
            axes.axhline(base, color=GRID, linewidth=0.8, zorder=0)
            axes.annotate(shortened(row.label, 34), (0, base + 0.86), xycoords=("axes fraction", "data"), va="top", fontsize=9)
            axes.annotate(
                f"median {significant(median)} ms",
                (1, base + 0.86),
                xycoords=("axes fraction", "data"),
                va="top",
                ha="right",
                fontsize=9,
            )
        axes.set(xscale="log", xlim=(low, high), ylim=(-0.06, len(rows)), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("latency (ms, log scale)")
        _log_ticks(axes, low, high)
        return svg(figure, name=name, alt=alt)


def forest(rows: Sequence[Interval], *, name: str, x_label: str, alt: str) -> Markup:
    """Ratios of latency with their confidence intervals; behind each the band that A/A pairs call noise; 1× is a line."""
    with drawing(0.85 + 0.5 * len(rows)) as figure:
        axes = figure.add_subplot()
        for i, row in enumerate(rows):
            y = len(rows) - 1 - i
            low, high = 1 / (1 + row.floor), 1 + row.floor
            axes.fill_between([low, high], y - 0.3, y + 0.3, color=BAND, linewidth=0)
            axes.plot([1, 1], [y - 0.3, y + 0.3], color=INK, linewidth=1)
            axes.plot([row.low, row.high], [y, y], color=SERIES[1], linewidth=2.4, solid_capstyle="butt")
            axes.plot(row.value, y, "s", color=SERIES[1], markersize=7, markerfacecolor=SERIES[1] if row.clears else PAPER)
            axes.annotate(shortened(row.label, 54), (0, y + 0.62), xycoords=("axes fraction", "data"), va="top", fontsize=9)
        reach = [0.97, 1.03] + [v for r in rows for v in (r.low, r.high, 1 + r.floor, 1 / (1 + r.floor))]
        span = max(reach) - min(reach)
        axes.set(xlim=(min(reach) - 0.08 * span, max(reach) + 0.08 * span), ylim=(-0.5, len(rows) - 0.3), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(x_label)
        even_ticks(axes.xaxis)
        return svg(figure, name=name, alt=alt)


def curve(epochs: Sequence[float], values: Sequence[float], *, name: str, y_label: str, alt: str) -> Markup:
    """A sparkline with its first and last value."""
    with drawing(1.3) as figure:
        axes = figure.add_subplot()
        axes.plot(epochs, values, color=SERIES[1], linewidth=1.6, marker="o" if len(values) < 12 else "", markersize=3.5)
        axes.set(xlabel="epoch", ylabel=y_label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        even_ticks(axes.yaxis, 3)
        axes.grid(visible=True, axis="y")
        axes.margins(y=0.15)
        return svg(figure, name=name, alt=alt)


def relation(
    points: Sequence[tuple[float, float]], *, marked: tuple[float, float], name: str, x_label: str, y_label: str, alt: str
) -> Markup:
    """A line through points (x, y), one of its places marked."""
    with drawing(2.4) as figure:
        axes = figure.add_subplot()
        axes.plot(
            *zip(*points, strict=True), color=SERIES[0], linewidth=1.6, marker="o" if len(points) < 20 else "", markersize=3.5
        )
        axes.plot(*marked, _MARKERS[1], color=SERIES[1], markersize=8, zorder=3)
        axes.annotate("chosen", marked, xytext=(8, -12), textcoords="offset points")
        axes.set(xlabel=x_label, ylabel=y_label)
        even_ticks(axes.xaxis)
        even_ticks(axes.yaxis, 4)
        axes.grid(visible=True, axis="y")
        axes.margins(x=0.08, y=0.12)
        return svg(figure, name=name, alt=alt)


def heat(
    values: Sequence[Sequence[float | None]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    name: str,
    x_label: str,
    alt: str,
    numbers: bool = False,
    stretch: bool = False,
) -> Markup:
    """A matrix of shares (0 … 1) as cells of one colour, stronger for more, `numbers` in percent in them; None is left empty.

    `stretch` gives the smallest value the palest colour, for values that are all high.
    """
    matrix = np.array([[np.nan if v is None else v for v in row] for row in values], dtype=float)
    low = float(np.nanmin(matrix)) if stretch else 0.0
    strength = np.nan_to_num((matrix - low) / max(1e-9, float(np.nanmax(matrix)) - low))
    with drawing(0.75 + 0.2 * len(rows)) as figure:
        axes = figure.add_subplot()
        for (i, j), share in np.ndenumerate(strength):
            axes.fill([j, j + 1, j + 1, j], [i, i, i + 1, i + 1], color=SERIES[0], alpha=0.04 + 0.8 * share, linewidth=0)
            if numbers and not np.isnan(matrix[i, j]):
                axes.text(j + 0.5, i + 0.5, f"{100 * matrix[i, j]:.0f}", ha="center", va="center", fontsize=9)
        short = 9 if numbers else 6
        axes.set_xticks(np.arange(len(columns)) + 0.5, [shortened(c, short) for c in columns])
        if max(map(len, columns)) > 2:
            axes.tick_params(axis="x", rotation=90)
        axes.set_yticks(np.arange(len(rows)) + 0.5, [shortened(row, 26) for row in rows])
        axes.tick_params(length=0)
        axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0), xlabel=x_label)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return svg(figure, name=name, alt=alt)


@contextmanager
def drawing(height: float) -> Iterator[Figure]:
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's browser has the fonts; ours only measures
        yield Figure(figsize=(_WIDTH, height), layout="constrained")


def svg(figure: Figure, *, name: str, alt: str) -> Markup:
    """The figure as an `<svg>` element: no size of its own, no metadata, ids that begin with `name`, CSS variables as colours."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        nothing: dict[str, str | None] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    root = ET.fromstring(buffer.getvalue())  # noqa: S314 (matplotlib wrote it just now)
    for parent in root.iter():
        for child in [c for c in parent if c.tag.endswith("style")]:
            parent.remove(child)  # `* {…}` would reach the whole page; the page's own CSS has it for its plots
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: _rewritten(key, value, name) for key, value in element.attrib.items()}
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": alt, "focusable": "false"}
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704 (ElementTree escapes text and attributes)


def _rewritten(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key.endswith("href"):
        return value.replace("#", f"#{name}-", 1)
    if key == "clip-path":
        return value.replace("url(#", f"url(#{name}-")
    if key == "style":
        parts = [part.strip() for part in value.split(";")]
        kept = [part for part in parts if part and not part.startswith("font-family")]
        style = "; ".join(kept)
        for colour, variable in _VARIABLES.items():
            style = style.replace(colour, f"var(--{variable})")
        return style
    return value


def _frame(axes: Axes, points: Sequence[Point]) -> None:
    """Limits with room for labels; the y axis spans at least 2 % of its values, so that noise is not drawn as a cliff."""
    xs = [p.x for p in points]
    ys = [p.y - p.error for p in points] + [p.y + p.error for p in points]
    span_x = max(max(xs) - min(xs), 0.2 * max(abs(x) for x in xs), 1e-9)
    span_y = max(max(ys) - min(ys), 0.02 * max(abs(y) for y in ys), 1e-9)
    axes.set_xlim(min(xs) - 0.3 * span_x, max(xs) + 0.3 * span_x)
    middle = (max(ys) + min(ys)) / 2
    axes.set_ylim(middle - 0.85 * span_y, middle + 0.85 * span_y)


def _label_points(axes: Axes, points: Sequence[Point]) -> None:
    """Names above the upper half of the points and below the lower half, so that neighbours don't collide."""
    ranked = sorted(range(len(points)), key=lambda i: -points[i].y)
    for rank, i in enumerate(ranked):
        point, above = points[i], rank < (len(points) + 1) // 2
        axes.annotate(
            shortened(point.label),
            (point.x, point.y + point.error if above else point.y - point.error),
            xytext=(0, 9 if above else -9),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
        )


def _log_ticks(axes: Axes, low: float, high: float) -> None:
    wide = high / low > 12
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    if wide:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=12))
    else:
        ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)
        axes.set_xticks([t for t in ticks if low <= t <= high])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def even_ticks(axis: Axis, count: int = 5) -> None:
    """Round numbers with equal decimals, no offset and no power of ten."""
    axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]))
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_scientific(False)
    axis.set_major_formatter(formatter)


def shortened(text: str, limit: int = 24) -> str:
    """`text`, its middle cut out when it is longer than `limit`."""
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"
