"""What a runner says of the machine that it is on, checked: it may be anything that answers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..export.manifest import UserError
from .link import Link, LinkLostError
from .reading import Machine, Reading, Snapshot
from .wire import PROTOCOL


class RuntimeThere(BaseModel):
    """A runtime on the device: the packages that it lacks, else its version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    missing: tuple[str, ...] = ()
    version: str | None = None


class Hello(BaseModel):
    """A runner's greeting. `clock_step_ns` is the resolution of its clock."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    runner: str
    machine: Machine
    snapshot: Snapshot
    usable_cores: int = Field(ge=1)
    usable_cpus: tuple[int, ...] | None = None
    clock_step_ns: float = Field(ge=0)
    runtimes: dict[str, RuntimeThere]


_SNAPSHOT, _READING = TypeAdapter(Snapshot), TypeAdapter(Reading)


def greeted(link: Link) -> Hello:
    """The runner's greeting. Raises UserError for a runner of another version, LinkLostError for no runner at all."""
    told = link.ask({"do": "hello"}, timeout_s=60)
    if told.get("protocol") != PROTOCOL:
        raise UserError(
            f"the runner there speaks version {told.get('protocol')} of the protocol, this trimtab {PROTOCOL}",
            hint="update trimtab on the side that is older",
        )
    try:
        return Hello.model_validate(told)
    except ValidationError as error:
        raise _damaged("hello", error) from None


def snapshot_of(link: Link) -> Snapshot:
    """Clock, temperature, governor and load of the device now. Raises LinkLostError."""
    try:
        return _SNAPSHOT.validate_python(link.ask({"do": "snapshot"}).get("snapshot"))
    except ValidationError as error:
        raise _damaged("snapshot", error) from None


def reading(told: Any) -> Reading:
    """The reading of an answer. Raises LinkLostError when it is none."""
    try:
        return _READING.validate_python(told)
    except ValidationError as error:
        raise _damaged("load", error) from None


def numbers(answer: dict[str, Any], count: int) -> list[float]:
    """The `count` times of an answer in ns. Raises LinkLostError when they are none."""
    found = answer.get("ns")
    if not isinstance(found, list) or len(found) != count or not all(isinstance(v, int | float) and v >= 0 for v in found):
        raise LinkLostError(f"the runner was asked for {count} times and answered {str(found)[:60]!r}", hint="is it ours?")
    return [float(value) for value in found]


def _damaged(what: str, error: ValidationError) -> LinkLostError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return LinkLostError(f"the runner's answer to {what!r} is damaged: {where}: {first['msg']}", hint="is it ours?")
