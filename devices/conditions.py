"""What this machine tells about itself before and after a measurement. What it won't tell comes back with the reason.

It needs the standard library alone, so that it travels to boards; psutil, where it is there, answers on other systems than Linux.
"""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from ..export.light import UserError
from .reading import Machine, Reading, Snapshot


def _optional(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


psutil = _optional("psutil")

ROOT = Path("/")


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return None


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first value of every key in /proc/cpuinfo."""
    pairs = (line.partition(":") for line in (_text(root / "proc/cpuinfo") or "").splitlines())
    found: dict[str, str] = {}
    for key, colon, value in pairs:
        if colon:
            found.setdefault(key.strip(), value.strip())
    return found


def _sysctl(name: str) -> str | None:
    """A macOS kernel variable."""
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def cpu_model(root: Path = ROOT) -> Reading:
    """The CPU's name: on Arm boards the device tree's, or the core's implementer and part numbers."""
    info = _cpuinfo(root)
    arm = f"Arm implementer {info['CPU implementer']} part {info['CPU part']}" if "CPU part" in info else None
    board = _text(root / "proc/device-tree/model")
    name = info.get("model name") or " · ".join(
        part for part in (board or info.get("Model") or info.get("Hardware"), arm) if part
    )
    if not name and platform.system() == "Darwin":
        name = _sysctl("machdep.cpu.brand_string") or ""
    name = name or (platform.processor() if root == ROOT else "")
    return Reading(value=name) if name else Reading(reason="neither /proc/cpuinfo nor the platform names the CPU")


def virtualised(root: Path = ROOT) -> Reading:
    """Whether a hypervisor runs below: x86 has a CPU flag for it."""
    flags = _cpuinfo(root).get("flags")
    if flags is None:
        return Reading(reason="this CPU or system has no flag that tells")
    return Reading(value="yes" if "hypervisor" in flags.split() else "no")


FAMILIES = (
    ("x86_64", "amd64", "i386", "i486", "i586", "i686", "x86"),
    ("aarch64", "arm64", "aarch64_be", "arm"),
    ("riscv64", "riscv32", "riscv"),
)


def _family(machine: str) -> str:
    """The name that all machines which run the same programs go by: a 64-bit Arm core runs 32-bit Arm programs itself."""
    name = machine.lower()
    return next(
        (family[0] for family in FAMILIES if name in family or (family[0] == "aarch64" and name.startswith("armv"))), name
    )


def emulated(root: Path = ROOT, *, machine: str | None = None) -> bool:
    """Whether another CPU's instructions are interpreted or translated here (QEMU's TCG, Rosetta).

    User-mode emulation hides behind the names of the imitated CPU. What gives it away: the kernel's own architecture is not that
    of its programs, the file that the kernel runs for a thread is the emulator (it answers for /proc/self/exe, not for threads),
    or the kernel has an interpreter registered for the very programs that a real CPU would run.
    """
    name = str(cpu_model(root).value or "").upper()
    if "QEMU" in name or "TCG" in name or (platform.system() == "Darwin" and _sysctl("sysctl.proc_translated") == "1"):
        return True
    own = machine or platform.machine()
    kernel = _text(root / "proc/sys/kernel/arch")
    if kernel and own and _family(kernel) != _family(own):
        return True
    for thread in (root / "proc/self/task").glob("*"):
        try:
            program = (thread / "exe").readlink().name
        except OSError:
            continue
        if program.startswith(("qemu-", "rosetta", "box64", "fex")):
            return True
    entry = _text(root / "proc/sys/fs/binfmt_misc" / f"qemu-{own}")
    return entry is not None and entry.startswith("enabled")


def cpu_quota(root: Path = ROOT) -> Reading:
    """The container's CPU limit in cores."""
    v2 = (_text(root / "sys/fs/cgroup/cpu.max") or "").split()
    v1 = [_text(root / "sys/fs/cgroup/cpu" / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    parts = v2 if len(v2) == 2 else [part for part in v1 if part]
    if len(parts) != 2:
        return Reading(reason="no control group limit is visible")
    if parts[0] in ("max", "-1"):
        return Reading(value="none")
    return Reading(value=float(parts[0]) / float(parts[1]), unit="cores")


def governor(root: Path = ROOT) -> Reading:
    """The frequency governor of the first core."""
    value = _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return Reading(value=value) if value else Reading(reason="no cpufreq driver (virtual machines and macOS have none)")


def clock_mhz(root: Path = ROOT) -> Reading:
    """The first core's clock now, in MHz; where only /proc/cpuinfo tells, that is the nominal clock in most virtual machines."""
    khz = _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    if khz and khz.isdigit():
        return Reading(value=int(khz) / 1000, unit="MHz")
    mhz = _cpuinfo(root).get("cpu MHz")
    if mhz:
        return Reading(value=float(mhz), unit="MHz, from /proc/cpuinfo")
    if root == ROOT and psutil:
        try:
            now = psutil.cpu_freq()
        except (OSError, AttributeError, NotImplementedError, RuntimeError):
            now = None
        if now:
            return Reading(value=float(now.current), unit="MHz")
    return Reading(reason="neither cpufreq nor the platform tells the clock")


def temperature_c(root: Path = ROOT) -> Reading:
    """The hottest thermal zone, in °C."""
    zones = [_text(path) for path in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp"))]
    heat = [int(zone) / 1000 for zone in zones if zone and zone.lstrip("-").isdigit()]
    return Reading(value=max(heat), unit="°C") if heat else Reading(reason="no thermal zone is visible")


def load_average() -> Reading:
    """The one-minute load average."""
    try:
        return Reading(value=os.getloadavg()[0])
    except (OSError, AttributeError):
        return Reading(reason="the platform keeps no load average")


def power_source(root: Path = ROOT) -> Reading:
    """ "mains" or "battery"."""
    supplies = [path for path in sorted((root / "sys/class/power_supply").glob("*")) if _text(path / "type") == "Battery"]
    if supplies:
        return Reading(value="battery" if _text(supplies[0] / "status") == "Discharging" else "mains")
    battery = None
    if root == ROOT and psutil and hasattr(psutil, "sensors_battery"):
        try:
            battery = psutil.sensors_battery()
        except (OSError, ValueError, NotImplementedError):
            battery = None
    if battery is None:
        return Reading(reason="no battery or power supply is reported")
    return Reading(value="mains" if battery.power_plugged else "battery")


def allowed_cpus() -> tuple[int, ...] | None:
    """The CPUs that this thread may run on, or None where the platform has no affinity."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    process = psutil.Process() if psutil else None
    return tuple(process.cpu_affinity()) if process and hasattr(process, "cpu_affinity") else None


def usable_cores() -> int:
    """How many cores this thread may use."""
    allowed = allowed_cpus()
    return len(allowed) if allowed else os.cpu_count() or 1


def pin(cpus: Sequence[int] | None) -> None:
    """This thread, and every thread that it starts from now on, runs on `cpus` alone. Raises UserError for CPUs that are not ours."""
    if cpus is None:
        return
    before = allowed_cpus()
    if before is None:
        raise UserError(f"{platform.system()} has no CPU affinity to set", hint="leave the affinity out")
    wrong = sorted(set(cpus) - set(before))
    if wrong or not cpus:
        asked = ", ".join(map(str, wrong)) or "none"
        raise UserError(f"CPU affinity names {asked}", hint="this process may use " + ", ".join(map(str, before)))
    _set_affinity(cpus)


@contextmanager
def pinned(cpus: Sequence[int] | None) -> Iterator[None]:
    """Inside the block this thread, and every thread it starts, runs on `cpus` alone. Raises UserError for CPUs that are not ours."""
    before = allowed_cpus()
    pin(cpus)
    try:
        yield
    finally:
        if cpus is not None and before is not None:
            _set_affinity(before)


def _set_affinity(cpus: Sequence[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    elif psutil:
        psutil.Process().cpu_affinity(list(cpus))


def snapshot(root: Path = ROOT) -> Snapshot:
    """What changes from minute to minute, now."""
    return Snapshot(
        governor=governor(root), clock_mhz=clock_mhz(root), temperature_c=temperature_c(root), load_average=load_average()
    )


def machine() -> Machine:
    """What this machine is."""
    return Machine(
        cpu_model=cpu_model(),
        machine=platform.machine(),
        cores_online=os.cpu_count() or 1,
        cpu_quota=cpu_quota(),
        virtualised=virtualised(),
        emulated=emulated(),
        power_source=power_source(),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
    )
