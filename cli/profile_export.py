"""A profile as CSV for spreadsheets and plotting tools: a row a measurement, and in a file of its own a row an operation.

Columns keep their names and their order from version to version; new ones come at the end. Units are in the names.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from .devices.measurement import Measurement, ProfileResult
from .devices.reading import Reading
from .devices.records import OpRecord, OpTime
from .models import files

Row = TypeVar("Row")
Columns = Mapping[str, tuple[str, Callable[[Row], Any]]]
"""Column → (what it holds, how it is had)."""


def _of(name: str) -> Callable[[Any], Any]:
    return lambda m: getattr(m, name)


def _where(name: str) -> Callable[[Any], Any]:
    return lambda m: getattr(m.conditions, name)


def _at(when: str, name: str) -> Callable[[Any], Any]:
    return lambda m: getattr(getattr(m.conditions, when), name)


def _percentile(percent: float) -> Callable[[Measurement], float | None]:
    return lambda m: m.input_percentile_ms(percent)


MEASUREMENTS: Columns[Measurement] = {
    "device": ("the device's name", _where("device")),
    "runtime": ("the runtime", _of("runtime")),
    "label": ("the artifact's label in this profile", _of("label")),
    "artifact": ("the artifact's name", _of("artifact")),
    "format": ("file format", _of("format")),
    "precision": ("precision of the file", _of("precision")),
    "sha256": ("the file's digest", _of("sha256")),
    "size_bytes": ("the file's size", _of("size_bytes")),
    "dims": ("sizes of symbolic dimensions, as name=size", lambda m: _pairs(m.dims)),
    "shapes": ("input shapes, as name=1x3x224x224", lambda m: _pairs({k: "x".join(map(str, v)) for k, v in m.shapes.items()})),
    "emulated": ("true: another CPU's instructions are interpreted, and the times are no latencies", _where("emulated")),
    "p50_ms": ("median time per inference", _of("p50_ms")),
    "p90_ms": ("90th percentile", _of("p90_ms")),
    "p99_ms": ("99th percentile", _of("p99_ms")),
    "mean_ms": ("mean", _of("mean_ms")),
    "min_ms": ("the shortest sample", lambda m: min(m.samples_ns) / 1e6),
    "max_ms": ("the longest sample", lambda m: max(m.samples_ns) / 1e6),
    "median_low_ms": ("lower end of the median's 95 % interval over sittings", _of("median_low_ms")),
    "median_high_ms": ("upper end of that interval", _of("median_high_ms")),
    "median_precision": ("how far the interval reaches, as a fraction of the median", _of("median_precision")),
    "inputs": ("how many real inputs were timed one by one (adaptive networks; else 0)", lambda m: len(m.inputs_ns)),
    "inputs_p50_ms": ("median over those inputs", _percentile(50)),
    "inputs_p99_ms": ("99th percentile over those inputs", _percentile(99)),
    "load_ms": ("time to load the model", _of("load_ms")),
    "first_inference_ms": ("time of the first inference", _of("first_inference_ms")),
    "peak_memory_bytes": ("peak memory", _of("peak_memory_bytes")),
    "sittings": ("how many times everything was loaded anew", lambda m: len(m.sittings)),
    "rounds": ("timed rounds in all", _of("rounds")),
    "block_calls": ("calls per round, of which a sample is the mean", _of("block")),
    "warmups": ("untimed calls before", _of("warmups")),
    "steady_sittings": ("sittings whose warm-up became steady", _of("steady_sittings")),
    "stopped_because": ("why measuring ended", _of("stopped_because")),
    "partial": ("true: it was interrupted", _of("partial")),
    "outputs_ok": ("whether outputs agreed with the golden ones; empty: not checked", _of("outputs_ok")),
    "max_abs_error": ("largest deviation from them", _of("max_abs_error")),
    "sqnr_db": ("signal over error; empty: bit-identical or not checked", _of("sqnr_db")),
    "runtime_version": ("the runtime's version", _where("runtime_version")),
    "provider": ("execution provider or delegate", _where("provider")),
    "threads": ("threads per inference", _where("threads")),
    "hints": ("settings that the runtime says are in force, as name=value", lambda m: _pairs(m.conditions.hints)),
    "timed_region": ("what one timed call includes", _where("timed_region")),
    "cpu_model": ("the CPU", _where("cpu_model")),
    "machine": ("instruction set", _where("machine")),
    "cores_online": ("cores online", _where("cores_online")),
    "affinity": ("CPUs that it was allowed to run on", lambda m: " ".join(map(str, m.conditions.affinity or ()))),
    "cpu_quota_cores": ("the container's limit", _where("cpu_quota")),
    "virtualised": ("whether a hypervisor runs below", _where("virtualised")),
    "power_source": ("mains or battery", _where("power_source")),
    "os": ("operating system", _where("os")),
    "python": ("Python's version", _where("python")),
    "governor_before": ("frequency governor before", _at("before", "governor")),
    "governor_after": ("and after", _at("after", "governor")),
    "clock_before_mhz": ("clock of the first core before", _at("before", "clock_mhz")),
    "clock_after_mhz": ("and after", _at("after", "clock_mhz")),
    "temperature_before_c": ("the hottest thermal zone before", _at("before", "temperature_c")),
    "temperature_after_c": ("and after", _at("after", "temperature_c")),
    "load_before": ("one-minute load average before", _at("before", "load_average")),
    "load_after": ("and after", _at("after", "load_average")),
}

OPERATIONS: Columns[tuple[OpRecord, int, OpTime]] = {
    "device": ("the device's name", lambda row: row[0].device),
    "runtime": ("the runtime", lambda row: row[0].runtime),
    "label": ("the artifact's label in this profile", lambda row: row[0].label),
    "emulated": ("true: on an interpreted CPU", lambda row: row[0].emulated),
    "position": ("place in the order that operations run in, from 1", lambda row: row[1]),
    "name": ("the operation's name", lambda row: row[2].name),
    "kind": ("its type, in the runtime's words", lambda row: row[2].kind),
    "where": ("what it ran on", lambda row: row[2].where),
    "amount": ("per inference, in the unit of the next column", lambda row: row[2].ns),
    "unit": ("ns or instructions", lambda row: row[0].unit),
    "share": ("of the sum over all operations, as a fraction", lambda row: row[2].ns / (row[0].total or 1.0)),
    "runs": ("inferences that were profiled", lambda row: row[0].runs),
}


def write_csv(result: ProfileResult, path: Path) -> Path:
    """`path`, holding a row for every measurement (whole or not at all). What a device did not tell is an empty cell."""
    return files.write_text(path, _table(MEASUREMENTS, result.measurements))


def write_ops_csv(result: ProfileResult, path: Path) -> Path:
    """`path`, holding a row for every operation of every artifact that was profiled."""
    rows = [(record, i, op) for record in result.ops for i, op in enumerate(record.ops, start=1)]
    return files.write_text(path, _table(OPERATIONS, rows))


def _table(columns: Columns[Row], rows: Iterable[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(get(row)) for _, get in columns.values()] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A value as a spreadsheet reads it: nothing for None, true and false in lower case, text that is no formula.

    Names come from other people's files, and a spreadsheet runs a cell that begins with =, +, - or @; such text gets a quote before.
    """
    if isinstance(value, Reading):
        value = value.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    return value


def _pairs(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())
