"""`trimtab formats`: what each export format can hold, and why not."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import output

if TYPE_CHECKING:
    from .export.exporter import ExporterCard


def formats(
    name: Annotated[str | None, typer.Argument(help="One format, with its options and the reasons of every no.")] = None,
) -> None:
    """What each export format can hold: precisions, free dimensions, layers in float, options; and the reason where it can't."""
    from .export.exporter import exporters

    chosen = [exporters.entry(name)] if name else list(exporters)
    if name is None:
        rows: list[tuple[str, ...]] = [
            (
                e.name,
                ", ".join(precision for precision, why in e.card.precisions.items() if not why),
                ", ".join(part for part, why in e.card.free.items() if not why) or "–",
                ", ".join(e.card.runtimes) or "–",
                f"pip install 'trimtab[{e.card.extra}]'" if e.card.missing() else "installed",
            )
            for e in chosen
        ]
        columns: tuple[str, ...] = ("format", "precisions", "free", "timed in", "state")
        if shutil.get_terminal_size((100, 24)).columns < 80:  # the names of precisions must not break
            columns, rows = columns[:2], [row[:2] for row in rows]
        output.table("", columns, rows)
        output.say("`trimtab formats NAME` has the options of one, and the reason of every no")
    for e in chosen if name else ():
        say_format(e.name, e.card)
    output.result([{"name": e.name, **format_facts(e.card)} for e in chosen])


def format_facts(card: ExporterCard) -> dict[str, Any]:
    """A format's capability record as plain data."""
    return {
        "title": card.title,
        "precisions": dict(card.precisions),
        "defaults": card.defaults,
        "calibrated": card.calibrated,
        "free": dict(card.free),
        "keeps_float": card.keeps_float,
        "taps": card.taps,
        "runtimes": card.runtimes,
        "extra": card.extra,
        "missing": card.missing(),
        "options": {key: {"default": f.default, "help": f.description or ""} for key, f in card.options.model_fields.items()},
    }


def say_format(name: str, card: ExporterCard) -> None:
    """One format in full."""
    output.say(f"{card.title} (--to {name}), from the {'torch module' if card.source == 'module' else 'ONNX graph'}")
    for precision, why in card.precisions.items():
        notes = [
            *(["default"] if precision in card.defaults else []),
            *(["calibrated on real inputs"] if precision in card.calibrated else []),
        ]
        output.say(f"  {precision:<14} {f'no: {why}' if why else 'yes' + (f' ({chr(44).join(notes)})' if notes else '')}")
    for part, why in card.free.items():
        output.say(f"  free {part:<9} {f'no: {why}' if why else 'yes'}")
    output.say(f"  layers in float {f'no: {card.keeps_float}' if card.keeps_float else 'yes (--max-drop)'}")
    for key, field in card.options.model_fields.items():
        output.say(f"  --set {name}.{key}={field.default}: {field.description}")
