"""The wire to a runner on a phone: what the phone itself tells over adb is put beside what the runner sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from . import adb_phone
from .adb_client import Adb
from .adb_phone import Phone
from .link import ANSWER_S, Link, LinkLostError
from .reading import Reading, Snapshot


class PhoneLink:
    """A runner behind `adb shell`. Its snapshots are of the cores in `cpus`: a runner looks at core 0, mostly a little one."""

    def __init__(self, link: Link, adb: Adb, phone: Phone, cpus: Sequence[int] | None) -> None:
        self.link, self.adb, self.phone, self.cpus = link, adb, phone, cpus

    def ask(self, request: dict[str, Any], *, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """The answer. Raises LinkLostError in words about the phone, RejectedError, UserError."""
        try:
            answer = self.link.ask(request, timeout_s=timeout_s)
        except LinkLostError as error:
            raise self._why(error) from None
        if request.get("do") == "open":
            self.cpus = answer.get("affinity") or self.cpus
        if request.get("do") == "hello":
            answer = {**answer, "machine": self._machine(answer.get("machine"))}
        if request.get("do") in ("hello", "snapshot"):
            answer = {**answer, "snapshot": self._snapshot(answer.get("snapshot"))}
        return answer

    def close(self) -> None:
        """Ends the runner."""
        self.link.close()

    def _why(self, error: LinkLostError) -> LinkLostError:
        """The same loss, with what adb knows of the phone."""
        try:
            there = self.adb.state() == "device"
        except LinkLostError:
            there = False
        return error if there else self.adb.lost(error.what)

    def _machine(self, told: Any) -> Any:
        """What the runner says of the machine, with the phone's name, its system and its battery."""
        if not isinstance(told, dict):
            return told
        battery = adb_phone.battery_of(self.adb)
        ours = asdict(adb_phone.machine_of(self.phone, battery))
        core = (told.get("cpu_model") or {}).get("value")
        if core:
            ours["cpu_model"] = asdict(Reading(value=f"{self.phone.title}, {core}"))
        power = told.get("power_source") if battery.charging is None else ours["power_source"]
        return {
            **told,
            **{name: ours[name] for name in ("cpu_model", "os")},
            "power_source": power,
            "emulated": bool(told.get("emulated")) or self.phone.emulator,
        }

    def _snapshot(self, told: Any) -> Any:
        """The phone's readings; where adb may not look, those that the runner found."""
        if not isinstance(told, dict):
            return told
        now: Snapshot = adb_phone.snapshot_of(self.phone, self.adb, self.cpus)
        return {**told, **{name: asdict(found) for name, found in vars(now).items() if found.value is not None}}
