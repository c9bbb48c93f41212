"""What a profile finds besides latencies: operations, long runs, metrics on the device, counted instructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator


class Frozen(BaseModel):
    """A record of results: it never changes, and a file with fields that it does not have is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Derived(Frozen):
    """A record with figures that follow from the others: they are written for readers, and computed again when it is read."""

    @model_validator(mode="before")
    @classmethod
    def _drop_derived(cls, data: object) -> object:
        return {k: v for k, v in data.items() if k not in cls.model_computed_fields} if isinstance(data, dict) else data


class OpTime(Frozen):
    """One operation of the running program: ns per inference, or instructions where they are counted, and where it ran."""

    name: str
    kind: str
    ns: float = Field(ge=0)
    where: str


class OpRecord(Frozen):
    """Where one artifact's time goes, in the order that operations run in; `reason` says why nothing is known.

    Profiling costs time, so the sum is more than a plain inference takes: shares are what to read. `unit` is "ns" on a device,
    "instructions" on an emulated core.
    """

    label: str
    device: str
    runtime: str
    emulated: bool = False
    unit: Literal["ns", "instructions"] = "ns"
    runs: int = 0
    note: str = ""
    reason: str = ""
    ops: tuple[OpTime, ...] = ()

    @property
    def total(self) -> float:
        """The sum over all operations."""
        return sum(op.ns for op in self.ops)

    def top(self, count: int = 10) -> list[tuple[OpTime, float]]:
        """The operations that take the most, each with its share of the total."""
        total = self.total or 1.0
        return [(op, op.ns / total) for op in sorted(self.ops, key=lambda op: -op.ns)[:count]]

    def placement(self) -> dict[str, tuple[int, float]]:
        """Where → how many operations ran there, and their share of the time."""
        total = self.total or 1.0
        places = dict.fromkeys(op.where for op in self.ops)
        return {
            place: (
                sum(op.where == place for op in self.ops),
                sum(op.ns for op in self.ops if op.where == place) / total,
            )
            for place in places
        }


class SustainedPoint(Frozen):
    """One window of a long run: when it ended, its median latency, and what the device told then."""

    t_s: float
    p50_ms: float
    calls: int
    temperature_c: float | None = None
    clock_mhz: float | None = None


THROTTLED = 1.05
"""The last fifth of the windows must be slower than the first by more than this to be called throttled."""


class Sustained(Derived):
    """Latency of one artifact run without a pause. `partial`: it ended before the time that was asked for."""

    label: str
    device: str
    runtime: str
    emulated: bool = False
    asked_s: float
    points: tuple[SustainedPoint, ...] = Field(min_length=1)
    partial: bool = False

    def _fifth(self, end: Literal["first", "last"]) -> list[float]:
        count = max(1, len(self.points) // 5)
        part = self.points[:count] if end == "first" else self.points[-count:]
        return [point.p50_ms for point in part]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def slowdown(self) -> float | None:
        """Median latency of the last fifth of the windows over that of the first; None below ten windows."""
        if len(self.points) < 10:
            return None
        return float(np.median(self._fifth("last")) / np.median(self._fifth("first")))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def throttled(self) -> bool | None:
        """Whether the device slowed down: by more than 5 %, and every window of the last fifth above every one of the first."""
        slower = self.slowdown
        if slower is None:
            return None
        return slower > THROTTLED and min(self._fifth("last")) > max(self._fifth("first"))


class Evaluated(Frozen):
    """The task's metrics through the runtime on the device, over `samples` real samples."""

    label: str
    device: str
    runtime: str
    emulated: bool = False
    data: str
    samples: int
    metrics: dict[str, float]
    seconds: float


class InstructionCount(Derived):
    """Instructions that one inference takes on an emulated core: exact, and no time. `repeats`: the same, counted again and again."""

    label: str
    artifact: str
    sha256: str
    format: str
    precision: str
    device: str
    core: str
    runtime: str
    runtime_version: str
    emulator: str
    emulated: Literal[True] = True
    dims: dict[str, int]
    repeats: tuple[int, ...] = Field(min_length=1)
    outputs_ok: bool | None
    max_abs_error: float | None
    sqnr_db: float | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def instructions(self) -> int:
        """The count of the last inference: the first ones may still set things up."""
        return self.repeats[-1]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def stable(self) -> bool:
        """Whether every counted inference took the same number."""
        return len(set(self.repeats)) == 1


def over_budget(counts: Sequence[InstructionCount], limit: int) -> list[InstructionCount]:
    """The counts above `limit` instructions."""
    return [count for count in counts if count.instructions > limit]
