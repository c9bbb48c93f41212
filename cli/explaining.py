"""`export --explain` and what is written beside a failure: where an artifact departs, and the smallest script that shows it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import output
from .models import files
from .models.errors import UnchangedError, UserError

if TYPE_CHECKING:
    from .export.convert import Converted, Source
    from .export.explain.bisect import Culprit
    from .export.explain.explanation import Explanation
    from .export.explain.pieces import Target, Verdict
    from .export.parity import Probe
    from .exporting import Settings
    from .models.tasks.task import Task

REPRO_S = 120.0
"""Seconds after which the search for a failure's smallest piece begins no further export."""
SHOWN = 12
"""Rows of the walk that the screen shows: the first departure is among them, all are in the JSON file."""


def explain_all(source: Source, made: Sequence[Converted], *, task: Task | None, settings: Settings) -> None:
    """None; every artifact whose format shows its inner values has `explain.json` and `explain.png`, and a summary on the screen."""
    from .export.convert import fitting_probes, probed
    from .export.exporter import exporters
    from .exporting import real_samples

    real = real_samples(task)
    source, probes = probed(source, real, settings.seed)
    for each in made:
        card = exporters.entry(each.artifact.format).card
        name = f"{each.artifact.format} {each.artifact.precision}"
        if not card.taps:
            told = "it passed as a whole" if each.ok else "a float artifact is reduced to its smallest wrong piece instead"
            output.say(f"{name}: {card.title} does not show what it computes inside; {told}")
            continue
        options = settings.options.get(each.artifact.format) or card.options()
        _explained(source, each, fitting_probes(source, options, probes, real), name)


def _explained(source: Source, made: Converted, probes: Sequence[Probe], name: str) -> None:
    from .export.explain.plot import plot
    from .export.explain.walk import explain

    artifact = made.artifact
    try:
        found = explain(
            source, artifact.format, artifact.path(made.folder), artifact.contract, inputs=probes, precision=artifact.precision
        )
    except UserError as error:
        output.say(f"{name}: it can't be explained: {error}")
        return
    files.write_json(made.folder / "explain.json", found.model_dump(mode="json"))
    picture = plot(found, made.folder / "explain.png")
    say_explanation(name, found)
    output.say(f"   all {len(found.rows)} layers: {made.folder / 'explain.json'}, {picture}")


def say_explanation(name: str, found: Explanation) -> None:
    """The summary of a walk, then the layers that add most of the error (or, where one departs, those around it)."""
    output.say(f"{name}, layer by layer:")
    for line in found.summary():
        output.say(f"   {line}")
    rows = [
        (row.module or row.node, row.op, f"{row.sqnr_db:.1f}", "–" if row.local_db is None else f"{row.local_db:.1f}")
        for row in _telling(found)
    ]
    if rows:
        output.table("", ("layer", "operator", ">SQNR dB", ">its own dB"), rows)


def _telling(found: Explanation) -> list[Any]:
    names = {getattr(each, "layer", getattr(each, "name", each)) for each in found.worst}
    rows = list(found.rows)
    if found.first_departing:
        at = next(i for i, row in enumerate(rows) if row.name == found.first_departing.layer)
        names |= {row.name for row in rows[max(0, at - 2) : at + 3]}
    return [row for row in rows if row.name in names][:SHOWN]


def reproduce(
    source: Source,
    failures: Mapping[tuple[str, str], UserError],
    rejected: Sequence[Converted],
    out: Path,
    *,
    task: Task | None,
    calibration: Any,
    settings: Settings,
) -> None:
    """None; beside every failed conversion (`FORMAT-PRECISION.failed/`) and rejected float artifact lies `repro.py`, where one
    could be found: the smallest piece of the network that fails the same way, with torch and the converter alone.

    An integer artifact that misses its gate is not reduced: its error is spread, and `--explain` shows how.
    """
    from .export.convert import order_of, probed
    from .export.exporter import exporters
    from .exporting import real_samples
    from .max_drop import FLOAT

    wanted = [
        (pair, out / f"{'-'.join(pair)}.failed") for pair, error in failures.items() if not isinstance(error, UnchangedError)
    ]
    wanted += [
        ((c.artifact.format, c.artifact.precision), c.folder) for c in rejected if c.artifact.precision in FLOAT and not c.ok
    ]
    if not wanted:
        return
    source, probes = probed(source, real_samples(task), settings.seed)
    if source.graph is None:
        wanted = _trace_first(wanted)
    for pair, folder in wanted:
        options = settings.options.get(pair[0])
        with ExitStack() as stack:
            try:
                call = _worker(settings, stack)
                if source.graph is None and exporters.entry(pair[0]).card.source == "onnx":
                    culprit = _untraceable(source, probes, call)
                else:
                    order = order_of(source, pair, calibration=calibration, options=options, found=probes)
                    culprit = _culprit(source, pair, order, call)
            except UserError as error:
                output.say(f"{' '.join(pair)}: no smallest piece: {error.what}")
                continue
        if culprit is None:
            output.say(f"{' '.join(pair)}: no single piece of the network fails by itself in the same way")
            continue
        _written(source, pair, culprit, folder, options=options, failed=pair in failures)


def _worker(settings: Settings, stack: ExitStack) -> Callable[..., Any]:
    """Calls a function in a worker, or here."""
    from .export.worker import Worker

    if settings.limits is None:
        return lambda function, *args, label: function(*args)
    return stack.enter_context(Worker(settings.limits)).call


def _trace_first(wanted: Sequence[tuple[tuple[str, str], Path]]) -> list[tuple[tuple[str, str], Path]]:
    """Formats written from the torch module, and of those that want the ONNX graph one: they all failed at the same trace."""
    from .export.exporter import exporters

    traced = [entry for entry in wanted if exporters.entry(entry[0][0]).card.source == "onnx"]
    return [entry for entry in wanted if entry not in traced] + traced[:1]


def _culprit(source: Source, pair: tuple[str, str], order: Any, call: Callable[..., Any]) -> Culprit | None:
    from .export.explain.bisect import bisect_source
    from .export.explain.pieces import Target

    target = Target(*pair, options=order.options)
    with _judging(target, call) as judged:
        return bisect_source(source, target, inputs=order.probes, feeds=order.feeds, judge_piece=judged, seconds=REPRO_S)


def _untraceable(source: Source, probes: Sequence[Probe], call: Callable[..., Any]) -> Culprit | None:
    """What keeps the network from being traced to ONNX."""
    from .export.explain.bisect import bisect
    from .export.explain.pieces import Target
    from .export.explain.pieces_torch import TorchPieces

    if source.module is None:
        return None
    with _judging(Target("onnx", "fp32"), call) as judged:
        return bisect(TorchPieces(source.module, source.contract, probes), judged, seconds=REPRO_S)


@contextmanager
def _judging(target: Target, call: Callable[..., Any]) -> Iterator[Callable[[Any], Verdict]]:
    """Judges pieces of a network as `target`, in a temp folder."""
    import tempfile

    from .export.explain.pieces import Verdict, convert_and_judge

    with tempfile.TemporaryDirectory(prefix="trimtab-") as work:

        def judged(piece: Any) -> Verdict:
            try:
                found: Verdict = call(convert_and_judge, piece, target, Path(work), label=f"{target.format} {target.precision}")
            except UserError as error:  # the process itself died: a failed conversion too
                return Verdict(ok=False, kind="conversion", message=error.what, sqnr_db=None)
            return found

        yield judged


def _written(source: Source, pair: tuple[str, str], culprit: Culprit, folder: Path, *, options: Any, failed: bool) -> None:
    from .export.explain.repro import write_repro

    if failed:
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier try
    folder.mkdir(parents=True, exist_ok=True)
    output.say(f"{' '.join(pair)}: smallest piece that fails: {culprit}")
    try:
        script = write_repro(source, pair[0], pair[1], culprit, folder, options=options)
    except UserError as error:
        output.say(f"   no script: {error.what}")
        return
    output.say(f"   python {script}")
