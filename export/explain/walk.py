"""The walk: every inner value of an artifact against the float network's, at every size, and each layer's own share of the error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...models.contract import Contract
from ...models.errors import UserError
from ..exporter import Runner, exporters
from ..parity import EXACT_DB, Probe, gate_db, inputs_in_layout, relayout
from .explanation import Departure, Explanation, Row, SizeWalk, Unmatched, shown_sizes
from .layouts import aligned
from .severed import Severed
from .values import Layer, Observed, Reference

if TYPE_CHECKING:
    from ..source import Source

DROP_DB = 10.0
"""A layer of reduced precision that loses more than this departs, though it be above the gate."""
WORST = 5
_FLOAT_DB = 90.0
"""What is nearer than this has not been rounded yet: the first rounding is no drop."""
_ROUNDING_DB = 120.0
"""Better than this is float32's own rounding: nothing is lost or won above it."""
_HIDDEN = "the artifact does not show them (fused into a neighbour, or not told by its runtime)"
_OTHER_SHAPE = "they have another shape in the artifact"

Size = tuple[tuple[str, int], ...]


class Ratio:
    """Σ ref² and Σ (value − ref)², summed over inputs."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, reference: np.ndarray, value: np.ndarray) -> None:
        """None; a value that is not finite makes the ratio the worst."""
        reference, value = reference.astype(np.float64), value.astype(np.float64)
        self.signal += float(np.square(reference).sum())
        self.noise += float(np.square(value - reference).sum()) if np.isfinite(value).all() else math.inf

    @property
    def db(self) -> float:
        """The signal-to-quantisation-noise ratio in dB, within ±200."""
        if self.noise == 0:
            return EXACT_DB
        if self.signal == 0 or math.isinf(self.noise):
            return -EXACT_DB
        return max(-EXACT_DB, min(EXACT_DB, 10 * math.log10(self.signal / self.noise)))


def explain(
    source: Source, exporter_name: str, path: Path, artifact_contract: Contract, *, inputs: Sequence[Probe], precision: str
) -> Explanation:
    """The layer-by-layer comparison of the artifact at `path` with the float network, over the probes `inputs`.

    Raises UserError for a format whose artifacts do not show what they compute inside.
    """
    entry = exporters.entry(exporter_name)
    if not entry.card.taps or not hasattr(entry.value, "tapped"):
        raise UserError(
            f"{entry.card.title} does not show what its artifacts compute inside",
            hint="find the layer by bisection, or explain another format of the same network",
        )
    run: Runner = entry.value.tapped(path, artifact_contract)
    walked = _Walk(source, artifact_contract, run, inputs[0], by_module=entry.card.taps == "modules")
    for probe in inputs:
        walked.take(probe)
    return walked.explanation(exporter_name, precision, inputs)


class _Walk:
    """Ratios by layer and size, filled probe by probe."""

    def __init__(self, source: Source, contract: Contract, run: Runner, first: Probe, *, by_module: bool) -> None:
        self.module, self.artifact, self.run, self.by_module = source.contract, contract, run, by_module
        self.reference = Reference(source, first.inputs)
        self.layers = {layer.name: layer for layer in self.reference.layers}
        self.graph = source.traced()
        self.severed: Severed | None = None
        self.overall: dict[tuple[str, Size], Ratio] = {}
        self.local: dict[str, Ratio] = {}
        self.traced: dict[str, Ratio] = {}
        self.misshapen: dict[str, set[Size]] = {}
        self.failures: dict[Size, str] = {}

    def take(self, probe: Probe) -> None:
        """None; one probe's values are added."""
        size = tuple(probe.dims.items())
        seen = self.reference.observe(probe.inputs)
        try:
            taps = self.run(inputs_in_layout(probe.inputs, module=self.module, artifact=self.artifact))
        except Exception as error:  # the artifact's own runtime may raise anything
            self.failures[size] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            return
        outputs = zip(self.module.outputs, self.artifact.outputs, strict=True)
        told = {s.name: relayout(np.asarray(taps[t.name]), t, s) for s, t in outputs}
        values: dict[str, np.ndarray] = {}
        for layer in self.layers.values():
            expected = probe.outputs[layer.name] if layer.name in told else seen.of(layer)
            if layer.name in told or layer.module:
                self._add(self.traced, layer.name, expected, seen.values[layer.name])
            value = told.get(layer.name)
            value = value if value is not None else self._tap(layer, taps, seen)
            if value is not None:
                self._compare(layer, size, expected, value, seen, values)
        self._locally(probe, values)

    def _compare(
        self, layer: Layer, size: Size, expected: np.ndarray, value: np.ndarray, seen: Observed, values: dict[str, np.ndarray]
    ) -> None:
        read = seen.values.get(layer.inputs[0]) if layer.op in ("Flatten", "Reshape") and layer.inputs else None
        fitting = aligned(expected, value, read)
        if fitting is None:
            self.misshapen.setdefault(layer.name, set()).add(size)
            return
        values[layer.name] = fitting.astype(expected.dtype, copy=False)
        self.overall.setdefault((layer.name, size), Ratio()).add(expected, fitting)

    @staticmethod
    def _add(ratios: dict[str, Ratio], name: str, expected: np.ndarray, value: np.ndarray) -> None:
        if expected.shape == value.shape:
            ratios.setdefault(name, Ratio()).add(expected, value)

    def _tap(self, layer: Layer, taps: Mapping[str, np.ndarray], seen: Observed) -> np.ndarray | None:
        """The artifact's value of a layer; by module, that of the norm folded into it or else its own, if it is the same one."""
        if not self.by_module:
            return taps.get(layer.name)
        if layer.call or not layer.module:
            return None
        if layer.module in taps or layer.scope == layer.module:
            return taps.get(layer.module)
        own, folded = seen.modules.get((layer.scope, 0)), seen.of(layer)
        value = taps.get(layer.scope)
        if value is None or own is None or own.shape != folded.shape:
            return value
        before, after = Ratio(), Ratio()
        for ratio, reference in ((before, own), (after, folded)):
            fitting = aligned(reference, value)
            if fitting is not None:
                ratio.add(reference, fitting)
        return value if after.db >= before.db else None  # the convolution without its norm is another value

    def _locally(self, probe: Probe, values: Mapping[str, np.ndarray]) -> None:
        if self.severed is None:
            self.severed = Severed(self.graph, values)
        for name, float_value in self.severed(probe.inputs, values).items():
            self._add(self.local, name, float_value, values[name])

    def explanation(self, name: str, precision: str, probes: Sequence[Probe]) -> Explanation:
        """The ratios as rows, and what they say."""
        gate = gate_db(precision)
        sizes = list(dict.fromkeys(tuple(probe.dims.items()) for probe in probes))
        rows = self._rows(sizes)
        walks = []
        for i, size in enumerate(sizes):
            departing = self._departing(rows, gate, reduced=precision not in ("fp32", "fp16"), column=i)
            count = sum(len(next(iter(p.inputs.values()))) for p in probes if tuple(p.dims.items()) == size)
            walks.append(SizeWalk(dims=dict(size), inputs=count, departs=departing or "", failure=self.failures.get(size, "")))
        return Explanation(
            format=name,
            precision=precision,
            gate_db=gate,
            rows=rows,
            sizes=tuple(walks),
            first_departing=self._departure(rows, walks, gate),
            worst=_worst(rows),
            unmatched=self._unmatched(rows),
        )

    def _rows(self, sizes: Sequence[Size]) -> tuple[Row, ...]:
        at: dict[str, tuple[float | None, ...]] = {}
        for name in self.layers:
            column: list[float | None] = []
            for size in sizes:
                ratio = self.overall.get((name, size))
                wrong = size in self.misshapen.get(name, ())
                column.append(-EXACT_DB if wrong else ratio.db if ratio else None)
            if any((name, size) in self.overall for size in sizes):  # with another shape everywhere it is not comparable
                at[name] = tuple(column)
        worst = {name: min(v for v in column if v is not None) for name, column in at.items()}
        rows = []
        for name, figures in at.items():
            layer = self.layers[name]
            read = self._read_db(layer, worst)
            rows.append(
                Row(
                    name=name,
                    node=layer.node,
                    op=layer.op,
                    module=layer.module or layer.scope,
                    sqnr_db=worst[name],
                    added_db=None if read is None else min(read, _ROUNDING_DB) - min(worst[name], _ROUNDING_DB),
                    local_db=self.local[name].db if name in self.local else None,
                    traced_db=self.traced[name].db if name in self.traced else None,
                    at=figures,
                )
            )
        return tuple(rows)

    def _read_db(self, layer: Layer, known: Mapping[str, float]) -> float | None:
        """The worst SQNR among the values that a layer reads; through layers that were not compared, what those read."""
        found, waiting, visited = [], list(layer.inputs), set()
        while waiting:
            name = waiting.pop()
            if name in visited:
                continue
            visited.add(name)
            if name in known:
                found.append(known[name])
            elif name in self.layers:
                waiting.extend(self.layers[name].inputs)
            else:
                found.append(EXACT_DB)  # the network's own input
        return min(found) if found else None

    def _departing(self, rows: Sequence[Row], gate: float, *, reduced: bool, column: int) -> str | None:
        """The name of the first layer that departs at one size."""
        known = {row.name: value for row in rows if (value := row.at[column]) is not None}
        for row in rows:
            if row.name in known and self._reason(row, known, gate, reduced=reduced):
                return row.name
        return None

    def _reason(self, row: Row, known: Mapping[str, float], gate: float, *, reduced: bool) -> str:
        value, wrong = known[row.name], row.name in self.misshapen and known[row.name] == -EXACT_DB
        if value < gate:
            return "another shape than the network's" if wrong else f"{value:.1f} dB, below the gate of {gate:g} dB"
        read = self._read_db(self.layers[row.name], known)
        if reduced and read is not None and value < read - DROP_DB and read < _FLOAT_DB:
            return f"{value:.1f} dB, {read - value:.1f} dB less than what it reads"
        return ""

    def _departure(self, rows: Sequence[Row], walks: Sequence[SizeWalk], gate: float) -> Departure | None:
        departing = {walk.departs for walk in walks if walk.departs}
        row = next((row for row in rows if row.name in departing), None)
        if row is None:
            return None
        there = [i for i, walk in enumerate(walks) if walk.departs == row.name]
        worst = min(there, key=lambda i: row.at[i] if row.at[i] is not None else EXACT_DB)  # type: ignore[return-value,arg-type]  # not None
        known = {r.name: value for r in rows if (value := r.at[worst]) is not None}
        reason = self._reason(row, known, gate, reduced=True)
        dims = tuple(walks[i].dims for i in there)
        if len(there) < len(walks):
            reason += f", at {shown_sizes(dims)}"
        return Departure(
            layer=row.name, node=row.node, op=row.op, module=row.module, sqnr_db=known[row.name], reason=reason, dims=dims
        )

    def _unmatched(self, rows: Sequence[Row]) -> tuple[Unmatched, ...]:
        compared = {row.name for row in rows}
        left = [layer for layer in self.layers.values() if layer.name not in compared]
        groups: dict[str, list[str]] = {}
        for layer in left:
            groups.setdefault(_OTHER_SHAPE if layer.name in self.misshapen else _HIDDEN, []).append(layer.node)
        return tuple(Unmatched(reason=reason, count=len(n), layers=tuple(n)) for reason, n in groups.items())


def _worst(rows: Sequence[Row]) -> tuple[str, ...]:
    """The layers that add most error of their own: by the local figure where there is one, else by what is lost."""

    def own(row: Row) -> float:
        if row.local_db is not None:
            return row.local_db
        return row.sqnr_db if row.added_db is None or row.added_db > 0 else EXACT_DB

    return tuple(row.name for row in sorted(rows, key=own)[:WORST] if own(row) < _ROUNDING_DB)
