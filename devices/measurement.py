"""Measurements: raw samples with the conditions they were taken under, comparisons of pairs, and the whole profile."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError, computed_field, model_validator

from ..export.manifest import UserError, read_json, write_json
from .intervals import Ratio, median_interval, paired_ratio, relative_precision, sitting_medians
from .reading import Reading, Snapshot
from .records import Derived, Evaluated, Frozen, InstructionCount, OpRecord, Sustained
from .timing import Stop


class Conditions(Frozen):
    """Where and how a measurement was taken. `hints`: precision and other settings that the runtime says are in force.

    `cpu_quota` is the container's limit in cores. `emulated`: true when another CPU's instructions are interpreted, in which
    case the milliseconds are no device's latency. `timed_region` says what one timed call includes.
    """

    device: str
    cpu_model: Reading
    machine: str
    cores_online: int
    affinity: tuple[int, ...] | None
    affinity_reason: str = ""
    cpu_quota: Reading
    virtualised: Reading
    emulated: bool
    power_source: Reading
    os: str
    python: str
    runtime: str
    runtime_version: str
    threads: int
    provider: str
    hints: dict[str, str]
    timed_region: str
    before: Snapshot
    after: Snapshot


_DERIVED = ("p50_ms", "p90_ms", "p99_ms", "mean_ms", "median_low_ms", "median_high_ms", "median_precision")


class Measurement(Frozen):
    """One artifact's latency on one runtime: `samples_ns[i]` is the time per call in round i (a mean over `block` calls).

    `sittings` lists how many rounds each sitting had, between which everything was loaded anew.

    Percentiles and intervals are always computed from the samples; a file whose figures disagree with them is refused.
    `median_precision` is ±, relative, at 95 % confidence over the sittings; it and the interval are None below 6. `outputs_ok` is None
    when the artifact brought no golden outputs; `sqnr_db` None then too, or when the outputs are bit-identical.

    A network that adapts to its input is timed on several real ones in turn: a sample is their mean, and `inputs_ns` has each
    input's own time (the median of a few calls after the rounds); empty where there is one input.
    """

    label: str
    artifact: str
    sha256: str
    format: str
    precision: str
    size_bytes: int
    runtime: str
    dims: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    samples_ns: tuple[float, ...] = Field(min_length=1)
    sittings: tuple[int, ...] = Field(min_length=1)
    block: int = Field(ge=1)
    warmups: int
    steady_sittings: int
    load_ms: float
    first_inference_ms: float
    peak_memory_bytes: Reading
    stopped_because: Stop
    partial: bool
    outputs_ok: bool | None
    max_abs_error: float | None
    sqnr_db: float | None
    conditions: Conditions
    inputs_ns: tuple[float, ...] = ()

    def input_percentile_ms(self, percent: float) -> float | None:
        """A percentile over inputs in ms, None where all calls had the same one."""
        return float(np.percentile(self.inputs_ns, percent)) / 1e6 if self.inputs_ns else None

    @property
    def rounds(self) -> int:
        """How many rounds the samples come from."""
        return len(self.samples_ns)

    def _percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self.samples_ns, percent)) / 1e6

    @computed_field  # type: ignore[prop-decorator]
    @property
    def p50_ms(self) -> float:
        """The median latency in ms."""
        return self._percentile_ms(50)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def p90_ms(self) -> float:
        """The 90th percentile in ms."""
        return self._percentile_ms(90)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def p99_ms(self) -> float:
        """The 99th percentile in ms; near the maximum when there are fewer than 100 rounds."""
        return self._percentile_ms(99)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def mean_ms(self) -> float:
        """The mean in ms: of little use on a busy machine, where a few samples carry it."""
        return float(np.mean(self.samples_ns)) / 1e6

    @computed_field  # type: ignore[prop-decorator]
    @property
    def median_low_ms(self) -> float | None:
        """The lower end of the 95 % interval of the sittings' medians, in ms."""
        interval = median_interval(sitting_medians(self.samples_ns, self.sittings))
        return interval[0] / 1e6 if interval else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def median_high_ms(self) -> float | None:
        """The upper end of the 95 % interval of the sittings' medians, in ms."""
        interval = median_interval(sitting_medians(self.samples_ns, self.sittings))
        return interval[1] / 1e6 if interval else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def median_precision(self) -> float | None:
        """How far that interval reaches from the median, relative to it (0.02 = ±2 %)."""
        return relative_precision(self.samples_ns, self.sittings)

    @model_validator(mode="wrap")
    @classmethod
    def _figures_follow_from_samples(cls, data: Any, handler: Any) -> Any:
        if not isinstance(data, dict):
            return handler(data)
        built = handler({key: value for key, value in data.items() if key not in _DERIVED})
        if sum(built.sittings) != len(built.samples_ns) or min(built.sittings) < 1:
            raise ValueError(f"sittings of {list(built.sittings)} rounds do not make {len(built.samples_ns)} samples")
        for key in _DERIVED:
            told, computed = data.get(key), getattr(built, key)
            if told is not None and (computed is None or not math.isclose(told, computed, rel_tol=1e-9)):
                raise ValueError(f"{key} {told} does not follow from the samples, which give {computed}")
        return built


class AAPair(Derived):
    """The baseline against a second instance of itself in the same rounds: what it shows is no difference, but noise."""

    runtime: str
    device: str = "local"
    artifact: str
    baseline_ns: tuple[float, ...] = Field(min_length=1)
    twin_ns: tuple[float, ...] = Field(min_length=1)
    sittings: tuple[int, ...] = Field(min_length=1)

    @property
    def ratio(self) -> Ratio:
        """Baseline over twin: the truth is 1."""
        return paired_ratio(self.baseline_ns, self.twin_ns, self.sittings)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def deviation(self) -> float:
        """The pair's median ratio less 1."""
        return self.ratio.value - 1

    @computed_field  # type: ignore[prop-decorator]
    @property
    def noise_floor(self) -> float | None:
        """How far from 1 this pair's 95 % interval reaches, as a fraction: smaller differences prove nothing here."""
        return self.ratio.reach

    @model_validator(mode="after")
    def _paired(self) -> AAPair:
        if not sum(self.sittings) == len(self.baseline_ns) == len(self.twin_ns):
            raise ValueError(
                f"{len(self.baseline_ns)} and {len(self.twin_ns)} samples of {sum(self.sittings)} rounds are no pairs"
            )
        return self


class Comparison(Frozen):
    """`speedup` of b over a: the median of a's time / b's time, above 1 when b is faster, with a 95 % interval over sittings.

    It is the median over sittings of the median over their rounds.
    `significant` when that interval excludes 1 *and* the speed-up lies further from 1 than the A/A pair's noise floor.
    """

    a: str
    b: str
    runtime: str
    device: str = "local"
    sittings: int
    rounds: int
    speedup: float
    low: float | None
    high: float | None
    noise_floor: float | None
    significant: bool


def compare(a: Measurement, b: Measurement, *, noise_floor: float | None) -> Comparison:
    """b against a, from samples of the same rounds. Raises ValueError when they are not."""
    ratio = paired_ratio(a.samples_ns, b.samples_ns, a.sittings)
    return Comparison(
        a=a.label,
        b=b.label,
        runtime=a.runtime,
        device=a.conditions.device,
        sittings=len(a.sittings),
        rounds=a.rounds,
        speedup=ratio.value,
        low=ratio.low,
        high=ratio.high,
        noise_floor=noise_floor,
        significant=is_significant(ratio, noise_floor),
    )


def is_significant(ratio: Ratio, noise_floor: float | None) -> bool:
    """Whether a ratio's interval excludes 1 and the ratio is further from 1, on the log scale, than the noise floor."""
    if ratio.low is None or ratio.high is None or noise_floor is None:
        return False
    return not ratio.low <= 1 <= ratio.high and abs(math.log(ratio.value)) > math.log1p(noise_floor)


SkipKind = Literal["no runtime", "missing package", "rejected", "wrong outputs", "dims", "interrupted", "lost", "device"]


class Skipped(Frozen):
    """An artifact that was not timed on a runtime, and why."""

    label: str
    runtime: str | None
    device: str | None = None
    kind: SkipKind
    reason: str
    max_abs_error: float | None = None
    sqnr_db: float | None = None


class ProfileResult(Frozen):
    """Everything one profile run found, readable back from its JSON. `devices` in the order that they were asked for.

    Version 1 had one `device` and latencies alone; it is read as version 2.
    """

    schema_version: Literal[2] = 2
    trimtab: str
    devices: tuple[str, ...]
    preset: str
    seed: int
    budget_s: float
    measurements: tuple[Measurement, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    aa: tuple[AAPair, ...] = ()
    ops: tuple[OpRecord, ...] = ()
    sustained: tuple[Sustained, ...] = ()
    evaluated: tuple[Evaluated, ...] = ()
    counts: tuple[InstructionCount, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()
    partial: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_version_1(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("schema_version") == 1 and "device" in data:
            rest = {key: value for key, value in data.items() if key not in ("device", "schema_version")}
            return {**rest, "schema_version": 2, "devices": (data["device"],)}
        return data

    def write_json(self, path: Path) -> Path:
        """`path`, written whole."""
        return write_json(path, self.model_dump(mode="json"))

    @classmethod
    def read_json(cls, path: Path) -> ProfileResult:
        """The result in `path`. Raises UserError when it is missing, of another version, or its figures contradict its samples."""
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(
                f"{path} is not a profile of this version: {where}: {first['msg']}", hint="measure again with `trimtab profile`"
            ) from None
