"""What a machine over ssh has and lacks, step by step; each step that fails says what would mend it."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Mapping

from ..export.manifest import UserError
from .doctor import Finding
from .greeting import Hello
from .ssh import WHEELS, SshConfig, SshDevice, pip_line
from .ssh_shell import quoted

SPACE_MB = 200
"""Less free space than this is worth a word."""
PROBE = r"""
say() { printf '%s\t%s\n' "$1" "$2"; }
say system "$(uname -sm)"
say python "$($PY -c 'import sys; print(sys.version.split()[0])' 2>&1 | tail -n 1)"
say numpy "$($PY -c 'import numpy; print(numpy.__version__)' 2>&1 | tail -n 1)"
base=$BASE; mkdir -p "$base" 2> /dev/null
say space "$(df -Pk "$base" 2> /dev/null | tail -n 1 | sed 's/.*[[:space:]]\([0-9][0-9]*\)[[:space:]][[:space:]]*[0-9]*%.*/\1/')"
cpu=/sys/devices/system/cpu
say governor "$(cat $cpu/cpu0/cpufreq/scaling_governor 2> /dev/null)"
for core in $cpu/cpu[0-9]*; do
    [ -r "$core/cpufreq/cpuinfo_max_freq" ] && say "max ${core##*cpu}" "$(cat "$core/cpufreq/cpuinfo_max_freq")"
done
for zone in /sys/class/thermal/thermal_zone*; do
    [ -r "$zone/temp" ] && say "zone $(cat "$zone/type")" "$(cat "$zone/temp" 2> /dev/null)"
done
exit 0
"""


def diagnose(config: SshConfig) -> tuple[Finding, ...]:
    """Findings on the way there, and on what is there. They end at the first step without which no other can be."""
    device = SshDevice(config.host, config)
    if shutil.which("ssh") is None:
        return (Finding("ssh", "missing", "the program ssh is not on the PATH", "apt install openssh-client"),)
    try:
        settings = device.shell.settings()
    except UserError as error:
        return (Finding("ssh", "broken", error.what, error.hint),)
    found = [Finding("ssh", "ok", shutil.which("ssh") or "ssh"), _name(settings)]
    base = quoted(config.folder) if config.folder else '"${TMPDIR:-/tmp}"'
    try:
        device.shell.share()
        told = device.shell.run(PROBE.replace("$PY", quoted(config.python)).replace("$BASE", base))
    except UserError as error:
        device.close()
        return (*found, Finding("connection", "broken", error.what, error.hint))
    facts = dict(line.split("\t", 1) for line in told.splitlines() if "\t" in line)
    found += [Finding("connection", "ok", f"logged in without a password: {facts.get('system', '')}"), *_python(facts, config)]
    found += _runtimes(device)
    return (*found, _space(facts), _governor(facts), _heat(facts), *_cores(facts))


def _name(settings: Mapping[str, str]) -> Finding:
    """Whether the name resolves, where it is this machine that has to resolve it."""
    name = settings.get("hostname", "")
    where = f"{settings.get('user', '')}@{name} port {settings.get('port', '22')}"
    for way in ("proxyjump", "proxycommand"):
        if settings.get(way, "none") != "none":
            return Finding("name", "ok", f"{where}, by way of {settings[way]}")
    try:
        address = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        return Finding(
            "name",
            "broken",
            f"{name} is not known here: {error}",
            "try NAME.local or its address, or an alias in ~/.ssh/config",
        )
    return Finding("name", "ok", f"{where} ({address})")


def _python(facts: Mapping[str, str], config: SshConfig) -> list[Finding]:
    version, numpy = facts.get("python", ""), facts.get("numpy", "")
    numbers = version.split(".")
    if len(numbers) < 2 or not numbers[0].isdigit():
        mend = "install Python 3.10 or newer there, or name one by its path: python"
        return [Finding("python", "missing", f"{config.python}: {version or 'says nothing'}", mend)]
    if (int(numbers[0]), int(numbers[1])) < (3, 10):
        return [Finding("python", "broken", f"{config.python} is {version}, the runner needs 3.10", "name a newer one: python")]
    found = [Finding("python", "ok", f"{config.python} is {version}")]
    if numpy[:1].isdigit():
        return [*found, Finding("numpy", "ok", numpy)]
    return [*found, Finding("numpy", "missing", numpy or "not there", pip_line(config, "onnxruntime") + " (brings it)")]


def _runtimes(device: SshDevice) -> list[Finding]:
    """Every runtime, as the runner there sees it; and whether a work folder can be made at all."""
    try:
        device.reach()
        hello, offers = device.hello(), device.offers()
    except UserError as error:
        return [Finding("runner", "broken", error.what, error.hint)]
    finally:
        device.close()
    found = [_emulation(hello)] if hello.machine.emulated else []
    for name, offer in offers.items():
        if offer.missing:
            mend = pip_line(device.config, WHEELS.get(name, name))
            found.append(Finding(f"runtime {name}", "missing", offer.missing.removesuffix(f": {mend}"), mend))
        else:
            found.append(Finding(f"runtime {name}", "ok", f"{offer.title} {offer.version}, runs {', '.join(offer.formats)}"))
    return found


def _emulation(hello: Hello) -> Finding:
    return Finding(
        "emulation",
        "note",
        f"{hello.machine.machine} instructions are emulated there: the milliseconds are no device's latency",
    )


def _space(facts: Mapping[str, str]) -> Finding:
    free = facts.get("space", "")
    if not free.isdigit():
        return Finding("disk", "note", "the work folder's disk does not tell how much is free")
    mb = int(free) // 1024
    if mb < SPACE_MB:
        return Finding("disk", "note", f"{mb} MB are free", "free some space, or name a folder on another disk: folder")
    return Finding("disk", "ok", f"{mb} MB are free")


def _governor(facts: Mapping[str, str]) -> Finding:
    governor = facts.get("governor", "")
    if not governor:
        return Finding("governor", "note", "no cpufreq driver (virtual machines and macOS have none)")
    if governor == "performance":
        return Finding("governor", "ok", governor)
    return Finding("governor", "note", f"{governor}: the clock rises and falls", "sudo cpupower frequency-set -g performance")


def _heat(facts: Mapping[str, str]) -> Finding:
    zones = [
        f"{key[5:]} {int(value) / 1000:.0f} °C"
        for key, value in facts.items()
        if key.startswith("zone ") and value.lstrip("-").isdigit()
    ]
    return Finding("temperature", "ok" if zones else "note", ", ".join(zones) or "no thermal zone is visible")


def _cores(facts: Mapping[str, str]) -> list[Finding]:
    """Where cores differ in their highest clock, which are the fast ones."""
    clocks: dict[int, list[int]] = {}
    for key, value in facts.items():
        if key.startswith("max ") and value.isdigit() and key[4:].isdigit():
            clocks.setdefault(int(value) // 1000, []).append(int(key[4:]))
    if not clocks:
        return []
    said = [f"{mhz} MHz: {', '.join(map(str, sorted(cpus)))}" for mhz, cpus in sorted(clocks.items(), reverse=True)]
    if len(clocks) == 1:
        return [Finding("cores", "ok", f"all at up to {said[0]}")]
    fast = ",".join(map(str, sorted(clocks[max(clocks)])))
    return [Finding("cores", "note", "fast and slow ones, up to " + "; ".join(said), f"measure on one kind: cores = [{fast}]")]
