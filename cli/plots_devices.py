"""Plots of what devices tell: where an inference's time goes, and what becomes of latency in a long run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes

from .plots import BAND, INK, MUTED, SERIES, drawing, even_ticks, shortened, svg
from .report_text import fixed


@dataclass(frozen=True)
class Bar:
    """One operation's share of the whole (0 … 1); `series` is the colour of where it ran, None: of several places."""

    label: str
    share: float
    series: int | None


@dataclass(frozen=True)
class Reading:
    """One window of a long run: minutes since its begin, the median latency in ms, and a second quantity where it is known."""

    minutes: float
    latency_ms: float
    second: float | None


def waterfall(bars: Sequence[Bar], *, name: str, x_label: str, alt: str) -> Markup:
    """Shares as bars from the top down, each beginning where the one above ends, so that the last ends at 100 %."""
    with drawing(0.75 + 0.24 * len(bars)) as figure:
        axes = figure.add_subplot()
        done = 0.0
        for row, bar in enumerate(bars):
            colour = MUTED if bar.series is None else SERIES[bar.series % len(SERIES)]
            left, width = 100 * done, 100 * bar.share
            axes.barh(row, width, left=left, height=0.72, color=colour)
            if row + 1 < len(bars):
                axes.plot([left + width] * 2, [row, row + 1], color=MUTED, linewidth=0.8)
            inside = left + width > 78  # no room to the right: the figure stands before its bar
            axes.annotate(
                f"{fixed(width, 1)} %",
                (left if inside else left + width, row),
                xytext=(-4 if inside else 4, 0),
                textcoords="offset points",
                ha="right" if inside else "left",
                va="center",
                fontsize=9,
            )
            done += bar.share
        axes.set_yticks(range(len(bars)), [shortened(bar.label, 26) for bar in bars])
        axes.tick_params(axis="y", length=0)
        axes.set(xlim=(0, 100), ylim=(len(bars) - 0.4, -0.6), xlabel=x_label)
        even_ticks(axes.xaxis)
        return svg(figure, name=name, alt=alt)


def endurance(
    points: Sequence[Reading], *, name: str, second: str | None, throttled_from: float | None, first_ms: float, alt: str
) -> Markup:
    """Latency over minutes, and below it the quantity that `second` names. The dashed line is `first_ms`, where it began.

    From `throttled_from` minutes on the ground is shaded: the device was slower there.
    """
    with drawing(3.4 if second else 2.2) as figure:
        panels = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2)) if second else [figure.add_subplot()]
        upper: Axes = panels[0]
        minutes = [p.minutes for p in points]
        for axes in panels:
            axes.grid(visible=True, axis="y")
            if throttled_from is not None:
                axes.axvspan(throttled_from, minutes[-1], color=BAND, linewidth=0, zorder=0)
        upper.axhline(first_ms, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
        _line(upper, minutes, [p.latency_ms for p in points], series=1)
        low, high = min(p.latency_ms for p in points), max(p.latency_ms for p in points)
        span = max(high - low, 0.1 * high)  # a tenth at least: noise is not drawn as a cliff
        upper.set(ylim=(max(0.0, (low + high) / 2 - 0.8 * span), (low + high) / 2 + 0.9 * span), ylabel="median (ms)")
        if throttled_from is not None:
            upper.annotate("throttled", (minutes[-1], 1), xycoords=("data", "axes fraction"), ha="right", va="top", color=INK)
        even_ticks(upper.yaxis, 4)
        if second:
            lower: Axes = panels[1]
            known = [(p.minutes, p.second) for p in points if p.second is not None]
            _line(lower, [m for m, _ in known], [value for _, value in known], series=2)
            lower.set_ylabel(second)
            lower.margins(y=0.2)
            even_ticks(lower.yaxis, 3)
        panels[-1].set_xlabel("minutes since the begin")
        even_ticks(panels[-1].xaxis)
        return svg(figure, name=name, alt=alt)


def _line(axes: Axes, xs: Sequence[float], ys: Sequence[float], *, series: int) -> None:
    axes.plot(xs, ys, color=SERIES[series], linewidth=1.6, marker="o" if len(xs) < 30 else "", markersize=3.5)
