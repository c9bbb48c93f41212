"""The one renderer: text for people, JSON for machines, progress bars on a terminal and plain lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from .models import processes

if TYPE_CHECKING:
    from .models.progress import Meter


class Output:
    """Where a command's words go. With `json_only`, standard output carries one JSON document and words go to standard error."""

    def __init__(self) -> None:
        self.json_only = False
        self.debug = False

    @property
    def out(self) -> Any:
        """Rich's console for words."""
        from rich.console import Console

        return Console(stderr=self.json_only, highlight=False)

    def say(self, text: str = "") -> None:
        """One line (or more) of words; Rich markup is not read, so that names can't break it."""
        if processes.is_main():
            self.out.print(text, markup=False, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table: columns whose name starts with ">" are right-aligned; the first, of names, is folded only beyond a third of the width."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(title) if title else None, title_justify="left", header_style="bold", box=None, pad_edge=False)
        names = max((len(str(row[0])) for row in rows), default=0)
        for place, column in enumerate(columns):
            whole = place == 0 and names <= self.out.width // 3
            side: Literal["right", "left"] = "right" if column.startswith(">") else "left"
            table.add_column(column.lstrip(">"), justify=side, overflow="fold", no_wrap=whole)
        for row in rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        self.out.print(table)

    def result(self, data: Any) -> None:
        """The machine-readable result: printed only under --json."""
        if self.json_only and processes.is_main():
            sys.stdout.write(json.dumps(data, indent=1, default=str) + "\n")

    def error(self, text: str) -> None:
        """An error, to standard error."""
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True, highlight=False).print(Text("error: ", style="bold red") + Text(text), soft_wrap=True)


output = Output()


class ConsoleProgress:
    """Progress as Rich bars on a terminal, else one plain line every ten seconds."""

    @contextmanager
    def meter(self, label: str, total: float, unit: str, *, done: float = 0) -> Iterator[Meter]:
        """A meter for `total` units of work, `done` of them before this process."""
        console = output.out
        if not processes.is_main():
            yield SilentMeter()
            return
        if not console.is_terminal:
            yield PlainMeter(label, total, unit, done)
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Progress(*columns, console=console, transient=True) as bars:
            task = bars.add_task(label, total=total, completed=round(done), unit=unit, rate="", figures="")
            yield _BarMeter(bars, task, unit, done)


class SilentMeter:
    """Progress in the processes that do not speak."""

    def advance(self, units: float = 1, **figures: float) -> None:
        """Nothing."""


class _BarMeter:
    def __init__(self, bars: Any, task: Any, unit: str, done: float) -> None:
        self.bars, self.task, self.unit = bars, task, unit
        self.started, self.first, self.done = time.monotonic(), done, done

    def advance(self, units: float = 1, **figures: float) -> None:
        """The bar moved on, with its rate and figures."""
        self.done += units
        rate = (self.done - self.first) / max(time.monotonic() - self.started, 1e-9)
        shown = "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
        self.bars.update(self.task, advance=units, rate=f"{rate:.0f} {self.unit}/s", figures=shown)


class PlainMeter:
    """Progress for logs: a line with rate and time left, at most one every ten seconds."""

    every_s = 10.0

    def __init__(self, label: str, total: float, unit: str, done: float) -> None:
        self.label, self.total, self.unit, self.first, self.done = label, total, unit, done, done
        self.started = self.said = time.monotonic()

    def advance(self, units: float = 1, **figures: float) -> None:
        """The count moved on; says so when ten seconds have passed since the last line."""
        self.done += units
        now = time.monotonic()
        if now - self.said < self.every_s:
            return
        self.said = now
        rate = (self.done - self.first) / (now - self.started)
        left = f"{max(0.0, self.total - self.done) / rate:.0f} s left" if rate > 0 else ""
        shown = "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
        output.say(f"  {self.label}: {self.done:.0f}/{self.total:.0f} {self.unit}  {rate:.0f} {self.unit}/s  {left}  {shown}")
