"""What a machine tells about itself, or the reason why it does not. Plain data: runners on devices make it too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """A value that this machine may refuse to tell; then `value` is None and `reason` says why. Raises ValueError without either."""

    value: float | str | None = None
    unit: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        if self.value is None and not self.reason:
            raise ValueError("a reading without a value needs its reason")


@dataclass(frozen=True)
class Snapshot:
    """What changes while measuring: clock and temperature of the CPU, its governor, and who else is at work."""

    governor: Reading
    clock_mhz: Reading
    temperature_c: Reading
    load_average: Reading


@dataclass(frozen=True)
class Machine:
    """What stays: the CPU and the system. `cpu_quota` is the container's limit in cores; `emulated`: its CPU is interpreted."""

    cpu_model: Reading
    machine: str
    cores_online: int
    cpu_quota: Reading
    virtualised: Reading
    emulated: bool
    power_source: Reading
    os: str
    python: str
