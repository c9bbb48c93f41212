"""What a phone tells over adb: its model, its clusters of cores, its thermal zones and its battery."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..export.manifest import UserError
from .adb_client import Adb
from .reading import Machine, Reading, Snapshot

CPU = "/sys/devices/system/cpu"
THERMAL = "/sys/class/thermal"
DENIED = "this phone does not let adb read it"
LOOK = (
    "echo @@props; getprop; echo @@kernel; uname -r; uname -m; "
    f"echo @@cpus; grep -Hs . {CPU}/online {CPU}/cpu[0-9]*/cpufreq/cpuinfo_max_freq {CPU}/cpu[0-9]*/cpu_capacity; "
    f"echo @@zones; grep -Hs . {THERMAL}/thermal_zone*/type; "
    "echo @@saver; settings get global low_power 2>/dev/null; true"
)
BATTERY = "dumpsys battery 2>/dev/null; true"
COOLEST_C, HOTTEST_C = 1.0, 150.0
"""Zones outside of it are switched off, or no thermometers."""
LOW_BATTERY = 20


@dataclass(frozen=True)
class Cluster:
    """Cores of one kind. `speed` orders clusters: the kernel's capacity where it tells one, then the highest clock."""

    cpus: tuple[int, ...]
    max_mhz: float | None
    speed: tuple[float, float]


@dataclass(frozen=True)
class Phone:
    """What stays the same while it is plugged in. `clusters` from fast to slow; `zones`: those of the CPU, path → name."""

    model: str
    soc: str
    abi: str
    android: str
    api: str
    kernel: str
    machine: str
    emulator: bool
    saver: bool
    cpus: tuple[int, ...]
    clusters: tuple[Cluster, ...] = ()
    zones: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.title}, {self.system}"

    @property
    def title(self) -> str:
        """Maker, model and SoC."""
        return f"{self.model} ({self.soc})" if self.soc else self.model

    @property
    def system(self) -> str:
        """The Android version and the kernel's."""
        return f"Android {self.android or 'of unknown version'} (API {self.api or '?'}), Linux {self.kernel}"


@dataclass(frozen=True)
class Battery:
    """Percent, °C, and whether a charger feeds the phone; None where it does not tell."""

    level: float | None = None
    temperature_c: float | None = None
    charging: bool | None = None


def look(adb: Adb) -> Phone:
    """The phone. Raises UserError, LinkLostError."""
    return phone_of(adb.shell(LOOK))


def phone_of(text: str) -> Phone:
    """The phone from what the script `LOOK` prints."""
    parts = _sections(text)
    props = dict(re.findall(r"^\[([^\]]+)\]: \[(.*)\]$", parts.get("props", ""), re.MULTILINE))
    kernel, _, machine = parts.get("kernel", "").strip().partition("\n")
    tells = _told(parts.get("cpus", ""))
    maker, model = props.get("ro.product.manufacturer", ""), props.get("ro.product.model", "phone")
    soc = " ".join(part for part in (props.get("ro.soc.manufacturer", ""), props.get("ro.soc.model", "")) if part)
    clusters = _clusters(tells)
    online = _cpu_list(tells.get(f"{CPU}/online", ""))
    return Phone(
        model=model if model.lower().startswith(maker.lower()) else f"{maker} {model}",
        soc=soc or props.get("ro.board.platform", ""),
        abi=props.get("ro.product.cpu.abi", ""),
        android=props.get("ro.build.version.release", ""),
        api=props.get("ro.build.version.sdk", ""),
        kernel=kernel,
        machine=machine.strip(),
        emulator="1" in (props.get("ro.kernel.qemu"), props.get("ro.boot.qemu")),
        saver=parts.get("saver", "").strip() == "1",
        cpus=online,
        clusters=tuple(cluster for cluster in (_among(cluster, online) for cluster in clusters) if cluster.cpus),
        zones=_cpu_zones(_told(parts.get("zones", ""))),
    )


def cores_for(phone: Phone, wanted: str | Sequence[int], *, threads: int) -> tuple[int, ...] | None:
    """The CPUs to run on: "big", "little" or "all" of them, those named, or ("") the fastest clusters that hold `threads`.

    None when the phone does not tell its clusters and none were asked for. Raises UserError.
    """
    if not isinstance(wanted, str):
        if away := sorted(set(wanted) - set(phone.cpus)):
            raise UserError(
                f"cores names {', '.join(map(str, away))}, not online on this phone", hint=f"it has {_ranges(phone.cpus)}"
            )
        return tuple(wanted)
    if wanted == "all":
        return phone.cpus
    if not phone.clusters:
        if not wanted:
            return None
        raise UserError(
            f'cores = "{wanted}": this phone does not tell which cores those are', hint="name CPUs: cores = [4, 5, 6, 7]"
        )
    if wanted:
        return phone.clusters[0 if wanted == "big" else -1].cpus
    chosen: list[int] = []
    for cluster in phone.clusters:
        if len(chosen) < threads:
            chosen += cluster.cpus
    return tuple(sorted(chosen))


def said_cores(phone: Phone, cpus: Sequence[int] | None) -> str:
    """The CPUs with their highest clocks, in words."""
    if cpus is None:
        return "any core"
    parts = []
    for cluster in phone.clusters:
        if inside := sorted(set(cluster.cpus) & set(cpus)):
            clock = f" (up to {cluster.max_mhz:.0f} MHz)" if cluster.max_mhz else ""
            parts.append(f"{_ranges(inside)}{clock}")
    return "CPU " + (", ".join(parts) or _ranges(cpus))


def machine_of(phone: Phone, battery: Battery) -> Machine:
    """The phone as the conditions of a measurement name it."""
    return Machine(
        cpu_model=Reading(value=phone.title),
        machine=phone.machine,
        cores_online=len(phone.cpus) or 1,
        cpu_quota=Reading(reason="no control group limit is visible"),
        virtualised=Reading(value="yes") if phone.emulator else Reading(reason="phones do not tell"),
        emulated=phone.emulator,
        power_source=power_of(battery),
        os=phone.system,
        python="none",
    )


def power_of(battery: Battery) -> Reading:
    """ "mains" or "battery"."""
    if battery.charging is None:
        return Reading(reason="dumpsys battery does not tell")
    return Reading(value="mains" if battery.charging else "battery")


def battery_of(adb: Adb) -> Battery:
    """The battery now. Raises LinkLostError."""
    return parsed_battery(adb.shell(BATTERY))


def parsed_battery(text: str) -> Battery:
    """The battery from what `dumpsys battery` prints."""
    told = dict(re.findall(r"^\s*([A-Za-z ]+): (\S+)\s*$", text, re.MULTILINE))
    level, heat = told.get("level", ""), told.get("temperature", "")
    powered = [told[key] for key in ("AC powered", "USB powered", "Wireless powered", "Dock powered") if key in told]
    return Battery(
        level=float(level) if level.isdigit() else None,
        temperature_c=int(heat) / 10 if re.fullmatch(r"-?\d+", heat) else None,
        charging="true" in powered if powered else None,
    )


def snapshot_script(phone: Phone, cpu: int) -> str:
    """A script that prints the governor and the clock of one core, the load, and the temperatures of the CPU's zones."""
    files = [f"{CPU}/cpu{cpu}/cpufreq/scaling_governor", f"{CPU}/cpu{cpu}/cpufreq/scaling_cur_freq", "/proc/loadavg"]
    files += [f"{path}/temp" for path in phone.zones]
    return f"grep -Hs . {shlex.join(files)}; true"


def snapshot_of(phone: Phone, adb: Adb, cpus: Sequence[int] | None) -> Snapshot:
    """What changes from minute to minute, of the cores that are measured on. Raises LinkLostError."""
    cpu = cpus[0] if cpus else 0
    found = parsed_snapshot(phone, adb.shell(snapshot_script(phone, cpu)), cpu)
    if found.temperature_c.value is None and (heat := battery_of(adb).temperature_c) is not None:
        return replace(found, temperature_c=Reading(value=heat, unit="°C, of the battery"))
    return found


def parsed_snapshot(phone: Phone, text: str, cpu: int) -> Snapshot:
    """The readings from what `snapshot_script` prints."""
    told = _told(text)
    governor = told.get(f"{CPU}/cpu{cpu}/cpufreq/scaling_governor")
    khz = told.get(f"{CPU}/cpu{cpu}/cpufreq/scaling_cur_freq", "")
    load = told.get("/proc/loadavg", "").split()
    heat = [int(value) / 1000 for key, value in told.items() if key.endswith("/temp") and re.fullmatch(r"-?\d+", value)]
    plausible = [value for value in heat if COOLEST_C < value < HOTTEST_C]
    return Snapshot(
        governor=Reading(value=governor) if governor else Reading(reason=DENIED),
        clock_mhz=Reading(value=int(khz) / 1000, unit="MHz") if khz.isdigit() else Reading(reason=DENIED),
        temperature_c=Reading(value=max(plausible), unit=f"°C, the hottest of {', '.join(phone.zones.values())}")
        if plausible
        else Reading(reason="no thermal zone of the CPU can be read over adb"),
        load_average=Reading(value=float(load[0])) if load else Reading(reason=DENIED),
    )


def _sections(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in re.split(r"^@@", text, flags=re.MULTILINE)[1:]:
        name, _, rest = part.partition("\n")
        found[name.strip()] = rest
    return found


def _told(text: str) -> dict[str, str]:
    """Path → first line, from what `grep -H` prints."""
    pairs = (line.partition(":") for line in text.splitlines() if line.startswith("/"))
    found: dict[str, str] = {}
    for path, _, value in pairs:
        found.setdefault(path, value.strip())
    return found


def _cpu_list(text: str) -> tuple[int, ...]:
    """The numbers in a kernel's list such as 0-3,6."""
    found: list[int] = []
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def _clusters(told: Mapping[str, str]) -> list[Cluster]:
    """Cores of equal capacity and clock, the fastest first."""
    speeds: dict[int, dict[str, float]] = defaultdict(dict)
    for path, value in told.items():
        match = re.search(r"/cpu(\d+)/(?:cpufreq/)?(cpuinfo_max_freq|cpu_capacity)$", path)
        if match and value.isdigit():
            speeds[int(match[1])][match[2]] = float(value)
    ranked = all("cpu_capacity" in entry for entry in speeds.values())
    kinds: dict[tuple[float, float], list[int]] = defaultdict(list)
    for cpu, entry in sorted(speeds.items()):
        kinds[(entry["cpu_capacity"] if ranked else 0.0, entry.get("cpuinfo_max_freq", 0.0))].append(cpu)
    return [
        Cluster(tuple(cpus), speed[1] / 1000 if speed[1] else None, speed)
        for speed, cpus in sorted(kinds.items(), reverse=True)
    ]


def _among(cluster: Cluster, online: Sequence[int]) -> Cluster:
    return replace(cluster, cpus=tuple(cpu for cpu in cluster.cpus if cpu in online)) if online else cluster


def _cpu_zones(told: Mapping[str, str]) -> dict[str, str]:
    """The thermal zones that are the CPU's by their names: vendors call them cpu-1-0-usr, BIG, MID, LITTLE, mtktscpu, …"""
    found = {}
    for path, name in told.items():
        if re.search(r"cpu|^(big|mid|little)\b|^soc", name, re.IGNORECASE):
            found[path.rpartition("/")[0]] = name
    return found


def _ranges(cpus: Sequence[int]) -> str:
    """1, 2, 3, 5 as 1–3, 5."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and cpu == parts[-1][-1] + 1:
            parts[-1].append(cpu)
        else:
            parts.append([cpu])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts) or "none"
