"""`export --max-drop`: the fewest layers of an integer artifact kept in float so that its metric holds, and what that costs in time.

Layers are chosen on validation samples; the artifact's verdict is on test samples, as always.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .models.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from .export.artifact import MetricGate, Reverts
    from .export.convert import Source
    from .export.making import Order, Product
    from .exporting import Settings
    from .models.tasks.task import Task

SAMPLES = 2000
"""Validation samples that every try is judged on."""
RANKED_ON = 16
"""Calibration samples that the ranking of layers is made on."""
FLOAT = ("fp32", "fp16")


@dataclass(frozen=True)
class Reverted:
    """The layers of one artifact to keep in float (none, when it holds as it is) and how they were found."""

    format: str
    precision: str
    keep: frozenset[str]
    record: Reverts


def check_drop(max_drop: float, pairs: Sequence[tuple[str, str]]) -> None:
    """None, when every integer pair can have layers in float. Raises UserError with the reason where not."""
    from .export.exporter import exporters

    if not (math.isfinite(max_drop) and max_drop >= 0):
        raise UserError(f"--max-drop {max_drop:g} is not a loss", hint="give points of the metric: --max-drop 0.5")
    wanted = [pair for pair in pairs if pair[1] not in FLOAT]
    if not wanted:
        raise UserError("--max-drop is for integer artifacts, and none is asked for", hint="add --precision int8")
    for name, precision in wanted:
        card = exporters.entry(name).card
        reason = card.keeps_float or ("" if precision in card.calibrated else "its layers have no ranges that could be wrong")
        if reason:
            able = [e.name for e in exporters if not e.card.keeps_float]
            raise UserError(
                f"--max-drop can't be met by {card.title} {precision}: {reason}", hint=f"--to {','.join(able)} --precision int8"
            )


def reverted(
    source: Source, pair: tuple[str, str], *, task: Task | None, calibration: np.ndarray | None, settings: Settings
) -> Reverted | None:
    """What to keep in float in the artifact of this format and precision; None for a float one. Raises UserError when nothing helps."""
    from .export.accuracy import fewest_in_float
    from .export.artifact import Ranked, Reverts, RevertTrial
    from .export.convert import order_of
    from .export.exporter import exporters
    from .export.sensitivity import sensitivities
    from .scoring import score
    from .workflow import require_task

    if pair[1] in FLOAT or settings.max_drop is None:
        return None
    own = require_task(task, "--max-drop")
    order = order_of(source, pair, calibration=calibration, options=settings.options.get(pair[0]))
    ranking = sensitivities(source.traced(), order.feeds[:RANKED_ON])
    judge = score(source, own, split="val", limit=SAMPLES)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trimtab-")))
        make = _maker(settings, stack)
        gates: list[MetricGate] = []

        def trial(kept: frozenset[str]) -> RevertTrial:
            path = folder / f"{len(gates)}{order.path.suffix}"
            contract = make(replace(order, path=path, keep_float=kept)).exported.contract
            gates.append(judge(exporters.get(order.format).runner(path, contract), contract))
            return RevertTrial(kept=tuple(sorted(kept)), metric=gates[-1].artifact, drop=gates[-1].drop)

        keep, tried = fewest_in_float([each.node for each in ranking], trial, max_drop=settings.max_drop)
    record = Reverts(
        metric=own.metric,
        samples=gates[0].samples,
        reference=gates[0].reference,
        max_drop=settings.max_drop,
        ranking=tuple(Ranked(node=s.node, op=s.op, sqnr_db=s.sqnr_db) for s in ranking),
        trials=tuple(tried),
    )
    if keep:
        record = record.model_copy(update=_price(source, pair, keep, calibration=calibration, settings=settings))
    return Reverted(*pair, keep, record)


def _maker(settings: Settings, stack: ExitStack) -> Callable[[Order], Product]:
    """What makes one artifact: a worker for all tries, or this process."""
    from .export.making import make
    from .export.worker import Worker

    return stack.enter_context(Worker(settings.limits)).make if settings.limits else make


def _price(
    source: Source, pair: tuple[str, str], keep: frozenset[str], *, calibration: np.ndarray | None, settings: Settings
) -> Mapping[str, Any]:
    """What keeping these layers in float costs in time here: all in integers, as chosen, and fp32, timed in the same rounds."""
    from .devices.profile import profile
    from .devices.runtime import fitting, require
    from .export.convert import convert

    runtimes = fitting(pair[0])
    if not runtimes:
        return {}
    require(runtimes[0])
    shared: dict[str, Any] = {"options": settings.options, "seed": settings.seed}
    with tempfile.TemporaryDirectory(prefix="trimtab-") as work:
        folders = []
        for label, kept, what in (
            ("integers", frozenset(), pair),
            ("chosen", keep, pair),
            ("float", frozenset(), (pair[0], "fp32")),
        ):
            given = {**shared, "keep_float": {pair: kept}, "calibration": calibration}
            if what != pair:
                given = {"seed": settings.seed}
            (made,) = convert(replace(source, label=label), [what], Path(work) / label, **given)
            folders.append(made.folder)
        result = profile(folders, runtimes=[runtimes[0]], preset="quick", seed=settings.seed, force=True)
    ratios = {c.b.split("-")[0]: c for c in result.comparisons}
    chosen, plain = ratios.get("chosen"), ratios.get("float")
    if chosen is None:
        return {"runtime": runtimes[0]}
    return {
        "runtime": runtimes[0],
        "latency": 1 / chosen.speedup,
        "latency_low": 1 / chosen.high if chosen.high else None,
        "latency_high": 1 / chosen.low if chosen.low else None,
        "over_fp32": plain.speedup / chosen.speedup if plain else None,
    }
