"""What a page may answer to each request: whatever opens the page's address can post, so nothing is taken on trust."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, ValidationError

Text = Annotated[str, StringConstraints(max_length=4096)]
Name = Annotated[str, StringConstraints(max_length=1024)]
Time = Annotated[FiniteFloat, Field(ge=0)]
Shape = Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(max_length=16)]


class _Told(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReadingTold(_Told):
    """A value with its unit, or the reason why there is none."""

    value: FiniteFloat | Text | None
    unit: Text = ""
    reason: Text = ""

    def model_post_init(self, _: Any) -> None:
        """Raises ValueError for a reading without a value and a reason."""
        if self.value is None and not self.reason:
            raise ValueError("a reading without a value needs its reason")


class SnapshotTold(_Told):
    """What changes while measuring."""

    governor: ReadingTold
    clock_mhz: ReadingTold
    temperature_c: ReadingTold
    load_average: ReadingTold


class MachineTold(_Told):
    """What stays."""

    cpu_model: ReadingTold
    machine: Text
    cores_online: int = Field(ge=1, le=4096)
    cpu_quota: ReadingTold
    virtualised: ReadingTold
    emulated: bool
    power_source: ReadingTold
    os: Text
    python: Text


class RuntimeTold(_Told):
    """A runtime that the page has."""

    missing: list[Text]
    version: Text | None


class HelloTold(_Told):
    """The answer to `hello`. A protocol of another version is refused by the asking side in its own words."""

    protocol: int
    runner: Text
    machine: MachineTold
    snapshot: SnapshotTold
    usable_cores: int = Field(ge=1, le=4096)
    usable_cpus: None
    clock_step_ns: FiniteFloat = Field(gt=0, le=1e9)
    runtimes: dict[Name, RuntimeTold] = Field(max_length=16)


class OpenTold(_Told):
    """The answer to `open`."""

    version: Text
    affinity: None


class FactsTold(_Told):
    """What a session says of itself."""

    runtime: Text
    version: Text
    threads: int = Field(ge=1, le=4096)
    provider: Text
    hints: dict[Name, Text] = Field(max_length=64)
    timed_region: Text
    reduced_precision: bool


class LoadTold(_Told):
    """The answer to `load`."""

    load_ns: Time
    first_ns: Time
    peak_bytes: ReadingTold
    facts: FactsTold


class OutputTold(_Told):
    """How one output compares."""

    name: Name
    shape: Shape
    finite: bool | None = None
    max_abs_error: Time | None = None
    noise: Time | None = None
    signal: Time | None = None


class CheckTold(_Told):
    """The answer to `check`."""

    outputs: list[OutputTold] = Field(max_length=1024)


class TimesTold(_Told):
    """The answer to `time` and `each`."""

    ns: list[Time] = Field(max_length=200_000)


class OpTold(_Told):
    """One operation."""

    name: Name
    kind: Name
    ns: Time
    where: Name


class OpsTold(_Told):
    """The answer to `ops`."""

    ops: list[OpTold] = Field(max_length=100_000)
    runs: int = Field(ge=0)
    note: Text
    reason: Text


class WrittenTold(_Told):
    """One output that was written."""

    shape: Shape
    dtype: Name


class RunTold(_Told):
    """The answer to `run`."""

    outputs: dict[Name, WrittenTold] = Field(max_length=1024)


class SnapshotAnswer(_Told):
    """The answer to `snapshot`."""

    snapshot: SnapshotTold


class NothingTold(_Told):
    """The answer to `drop`."""


class ErrorTold(_Told):
    """Why a request failed."""

    kind: Name
    what: Text
    hint: Text = ""


class ErrorAnswer(_Told):
    """The answer of a request that failed."""

    error: ErrorTold


ANSWERS: dict[str, type[_Told]] = {
    "hello": HelloTold,
    "open": OpenTold,
    "load": LoadTold,
    "check": CheckTold,
    "time": TimesTold,
    "each": TimesTold,
    "ops": OpsTold,
    "run": RunTold,
    "snapshot": SnapshotAnswer,
    "drop": NothingTold,
}


def wrong_in(request: dict[str, Any], answer: dict[str, Any]) -> str:
    """What is wrong with an answer to a request, in words; empty when it is one."""
    try:
        model = ErrorAnswer if "error" in answer else ANSWERS[str(request["do"])]
        told = model.model_validate(answer)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc']) or 'answer'}: {first['msg']}"
    if isinstance(told, TimesTold) and request["do"] == "time" and len(told.ns) != len(request["order"]):
        return f"ns: {len(told.ns)} times for {len(request['order'])} calls"
    return ""
