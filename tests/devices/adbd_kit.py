"""An Android-like phone for tests: Debian's real adbd in namespaces of its own, on an emulated 64-bit Arm or on this machine's CPU.

Nothing is installed: packages are unpacked into the cache folder. adbd listens without any authentication, so it has a network of its
own; adb runs in the same one. Arm programs run by qemu-aarch64 through a binfmt_misc of the phone's own user namespace, so neither this
machine's settings nor root are needed. What no such phone shows: the dialog that allows a computer, SELinux, bionic, real clocks and heat.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PORT = 5999
"""Not 5555…5585, which adb takes for emulators."""
SERIAL = f"127.0.0.1:{PORT}"
PACKAGES = (
    "adb",
    "adbd",
    "android-libbase",
    "android-libboringssl",
    "android-libcutils",
    "android-liblog",
    "android-libziparchive",
    "libbrotli1",
    "libprotobuf32",
    "libusb-1.0-0",
)
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
TOOLS = "usr/lib/android-sdk/platform-tools"
PROPS = {
    "ro.product.manufacturer": "Test",
    "ro.product.model": "Phone",
    "ro.soc.model": "QEMU",
    "ro.build.version.release": "14",
    "ro.build.version.sdk": "34",
    "ro.boot.qemu": "1",
}
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  level: 85
  temperature: 312
"""
CPUINFO = (
    "processor\t: {cpu}\nBogoMIPS\t: 62.50\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm"
    " lrcpc dcpop asimddp\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n"
)
"""A Cortex-A76: it has to match what QEMU emulates, or LiteRT picks instructions that are not there."""
BINFMT = (
    r":arm64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    r":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/system/qemu:"
)
START = """set -e
mount -t tmpfs tmpfs {root}
cd {root}
for d in bin sbin lib lib64; do if [ -L /$d ]; then cp -P /$d .; elif [ -d /$d ]; then mkdir $d; mount --rbind /$d $d; fi; done
mkdir -p usr etc proc sys dev data tmp adb system binfmt
mount --rbind /usr usr; mount --bind /etc etc; mount --rbind /proc proc; mount --rbind /sys sys; mount --rbind /dev dev
mount --bind {kit} adb; mount --bind {files} system
for d in {more}; do mkdir -p ./$d; mount --rbind $d ./$d; done
mount -t tmpfs -o size={data_mb}m tmpfs data
mkdir -p data/local/tmp
mount --bind system/cpu sys/devices/system/cpu
mkdir -p system/thermal; if [ -d sys/class/thermal ]; then mount --bind system/thermal sys/class/thermal; fi
{arm}
ip link set lo up
chroot . /usr/bin/env -i PATH=/system/bin:/usr/bin:/bin HOME=/data ADBD_PORT={port} LD_LIBRARY_PATH={libraries} /adb/{tools}/adbd &
wait
exec sleep infinity
"""
ARM = """mount --bind system/cpuinfo proc/cpuinfo
mount -t binfmt_misc binfmt_misc binfmt
printf %s {binfmt} > binfmt/register
"""


class KitError(Exception):
    """Why there is no such phone here, and what would mend it."""


@dataclass
class Phone:
    """A phone that runs. `path` is what the PATH has to begin with for `adb` to reach it; `inner` keeps its namespaces."""

    process: subprocess.Popen[str]
    inner: int
    path: str
    serial: str = SERIAL

    def adb(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """What an adb command gave."""
        return subprocess.run([f"{self.path}/adb", *words], capture_output=True, text=True, timeout=60, check=check)

    def unplug(self) -> None:
        """Ends adbd, as if the cable were pulled."""
        for child in _children(self.inner):
            if Path(f"/proc/{child}/exe").readlink().name == "adbd":
                os.kill(child, signal.SIGKILL)

    def end(self) -> None:
        """Ends everything: `inner` is the first process of its namespace, so the kernel takes the others along."""
        if self.process.poll() is None:
            os.kill(self.inner, signal.SIGKILL)
        self.process.wait()


def cache() -> Path:
    """Where the packages lie."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab" / "adbd"


def kit() -> Path:
    """The folder with adb, adbd and their libraries, fetched the first time. Raises KitError."""
    for tool in ("unshare", "nsenter", "apt-get", "dpkg-deb", "ip"):
        if shutil.which(tool) is None:
            raise KitError(f"{tool} is missing; this test needs Debian with util-linux and iproute2")
    probe = subprocess.run(["unshare", "-U", "-r", "-n", "-m", "-p", "-f", "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        raise KitError(f"namespaces are not allowed here ({probe.stderr.strip()}): run as root, or allow user namespaces")
    home = cache() / "root"
    if not (home / TOOLS / "adbd").exists():
        _fetch(home)
    return home


def _fetch(home: Path) -> None:
    work = home.parent / f"fetch-{os.getpid()}"
    for part in ("state/lists/partial", "cache/archives/partial", "debs", "root"):
        (work / part).mkdir(parents=True, exist_ok=True)
    codename = next(
        (
            line.partition("=")[2].strip('"')
            for line in Path("/etc/os-release").read_text().splitlines()
            if line.startswith("VERSION_CODENAME=")
        ),
        "",
    )
    suite = f"{codename}-backports" if codename == "bookworm" else codename
    asked = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)"], capture_output=True, text=True, check=False
    )
    mirrors = [line.split()[-1] for line in asked.stdout.splitlines() if line.startswith("Debian ") and "security" not in line]
    mirror = mirrors[0] if mirrors else "http://deb.debian.org/debian"
    sources = work / "sources.list"
    sources.write_text(
        "".join(f"deb [signed-by={KEYRING}] {mirror} {name} main\n" for name in dict.fromkeys((codename, suite)))
    )
    options = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "Dir::State": work / "state",
        "Dir::State::lists": work / "state/lists",
        "Dir::State::status": "/var/lib/dpkg/status",
        "Dir::Cache": work / "cache",
        "APT::Sandbox::User": "root" if os.getuid() == 0 else "",
        "APT::Default-Release": suite,
    }
    apt = ["apt-get", "-q", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    for words in (["update"], ["download", *PACKAGES]):
        done = subprocess.run([*apt, *words], cwd=work / "debs", capture_output=True, text=True, timeout=240, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise KitError(f"adbd can't be had from {mirror} {suite}: {said[-1] if said else words[0]}")
    for package in sorted((work / "debs").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(package), str(work / "root")], check=True, capture_output=True)
    shutil.rmtree(home, ignore_errors=True)
    (work / "root").rename(home)
    shutil.rmtree(work)


@contextmanager
def phone(
    folder: Path, *, arm: bool = True, data_mb: int = 96, more: Sequence[Path] = (), props: dict[str, str] | None = None
) -> Iterator[Phone]:
    """A phone with `data_mb` MiB of storage, `adb connect`ed; `more` folders of this machine are seen on it. Raises KitError."""
    home = kit()
    if arm and shutil.which("qemu-aarch64") is None:
        raise KitError("qemu-aarch64 is missing: apt install qemu-user")
    root, files = folder / "root", folder / "system"
    root.mkdir(parents=True)
    _system_files(files, arm=arm, props={**PROPS, "ro.product.cpu.abi": "arm64-v8a" if arm else "x86_64", **(props or {})})
    places = [home / part for part in ("usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/android", "lib/x86_64-linux-gnu")]
    script = START.format(
        root=shlex.quote(str(root)),
        kit=shlex.quote(str(home)),
        files=shlex.quote(str(files)),
        more=shlex.join(str(path) for path in more),
        data_mb=data_mb,
        arm=ARM.format(binfmt=shlex.quote(BINFMT)) if arm else "",
        port=PORT,
        libraries=":".join(f"/adb/{place.relative_to(home)}" for place in places),
        tools=TOOLS,
    )
    (folder / "start.sh").write_text(script)
    argv = ["unshare", "-U", "-r", "-n", "-m", "-p", "-f", "bash", str(folder / "start.sh")]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    inner = _first_child(process)
    there = Phone(process, inner, str(_adb_wrapper(folder, home, inner, places)))
    try:
        _await_adbd(process)
        said = there.adb("connect", SERIAL).stdout
        if "connected" not in said:
            raise KitError(f"adb can't connect to its phone: {said.strip()}")
        try:
            yield there
        finally:
            there.adb("kill-server", check=False)
    finally:
        there.end()


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _first_child(process: subprocess.Popen[str]) -> int:
    """The process that it started, once it has."""
    while process.poll() is None:
        if found := _children(process.pid):
            return found[0]
    raise KitError(f"the phone's namespaces could not be made: {process.stderr.read() if process.stderr else ''}")


def _await_adbd(process: subprocess.Popen[str]) -> None:
    """Reads what adbd says until it listens; somebody goes on reading, since a full pipe would stop it."""
    stream = process.stderr
    assert stream
    said = []
    for line in stream:
        said.append(line.strip())
        if "adbd started" in line:
            threading.Thread(target=lambda: [None for _ in stream], daemon=True).start()
            return
    raise KitError(f"adbd did not start: {' · '.join(said[-3:])}")


def _adb_wrapper(folder: Path, home: Path, inner: int, libraries: Sequence[Path]) -> Path:
    """A folder with an `adb` that runs in the phone's network."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "adb"
    environment = [f"HOME={folder}", f"LD_LIBRARY_PATH={':'.join(map(str, libraries))}"]
    inside = [
        "nsenter",
        "-U",
        "-n",
        "--preserve-credentials",
        "--target",
        str(inner),
        "env",
        *environment,
        str(home / TOOLS / "adb"),
    ]
    program.write_text(f'#!/bin/sh\nexec {shlex.join(inside)} "$@"\n')
    program.chmod(0o755)
    return program.parent


def _system_files(files: Path, *, arm: bool, props: dict[str, str]) -> None:
    """Stubs of what Android has and Debian has not, a big and a little core, and thermal zones."""
    (files / "bin").mkdir(parents=True)
    listing = "".join(f"[{key}]: [{value}]\n" for key, value in props.items())
    for name, text in {"getprop": listing, "dumpsys": BATTERY, "settings": "0\n"}.items():
        (files / f"{name}.txt").write_text(text)
        (files / "bin" / name).write_text(f"#!/bin/sh\nexec cat /system/{name}.txt\n")
    (files / "qemu").write_text('#!/bin/sh\nexec /usr/bin/qemu-aarch64 -cpu cortex-a76 "$@"\n')
    for program in (*(files / "bin").iterdir(), files / "qemu"):
        program.chmod(0o755)
    cpus = sorted(os.sched_getaffinity(0))
    (files / "cpuinfo").write_text("".join(CPUINFO.format(cpu=cpu) for cpu in cpus))
    for cpu in cpus:
        clock = files / "cpu" / f"cpu{cpu}" / "cpufreq"
        clock.mkdir(parents=True)
        big = cpu == cpus[-1]
        (clock / "cpuinfo_max_freq").write_text("2800000\n" if big else "1800000\n")
        (clock / "scaling_cur_freq").write_text("2400000\n" if big else "600000\n")
        (clock / "scaling_governor").write_text("schedutil\n" if big else "walt\n")
    for name in ("online", "possible", "present"):
        (files / "cpu" / name).write_text(",".join(map(str, cpus)) + "\n")
    for number, (name, heat) in enumerate({"battery": 31200, "cpu-1-0-usr": 43500, "cpu-0-0-usr": 38000}.items()):
        zone = files / "thermal" / f"thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "type").write_text(f"{name}\n")
        (zone / "temp").write_text(f"{heat}\n")


def python_folders() -> list[Path]:
    """The folders that this Python needs and that are not below /usr."""
    found = {Path(sys.prefix), Path(sys.base_prefix)}
    return [path for path in sorted(found) if not path.is_relative_to("/usr")]
