"""A real sshd on the loopback address, with keys and a configuration of its own, for one test session."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
NEEDS = "a real ssh server is needed: apt install openssh-server openssh-client"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def new_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def client_config(folder: Path, *, port: int, key: Path, known: str, user: str = "") -> Path:
    """An ssh configuration with one host, `board`, that looks at nothing of the user's own."""
    (folder / "known_hosts").write_text(known)
    path = folder / "ssh_config"
    path.write_text(
        f"Host board\n  HostName 127.0.0.1\n  Port {port}\n  User {user or getpass.getuser()}\n  IdentityFile {key}\n  IdentitiesOnly yes\n"
        f"  IdentityAgent none\n  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking ask\n"
    )
    return path


def known_host(port: int, host_key: Path) -> str:
    return f"[127.0.0.1]:{port} {host_key.with_suffix('.pub').read_text()}"


def wait_for(port: int, process: subprocess.Popen, log: Path, *, seconds: float = 20) -> None:
    """Until something listens. A server that ended, or never listens, fails with its own words."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"sshd does not listen: {log.read_text(errors='replace')[-2000:]}")


def bare_site(folder, *packages):
    """A folder with these installed packages alone."""
    folder.mkdir()
    for package in packages:
        home = next(path for path in (Path(place) / package for place in sys.path) if path.is_dir())
        for path in (home, home.with_name(f"{package}.libs")):
            if path.is_dir():
                (folder / path.name).symlink_to(path)
    return folder


@dataclass
class Server:
    """A running sshd: `config` is what a client needs to reach it as `board`."""

    folder: Path
    port: int
    config: Path
    process: subprocess.Popen
    end: int = signal.SIGTERM

    def another(self, folder: Path, *, key: Path | None = None, known: str | None = None, port: int | None = None) -> Path:
        """A client's configuration with something else in it."""
        folder.mkdir(exist_ok=True)
        known = known_host(self.port, self.folder / "host_key") if known is None else known
        return client_config(folder, port=port or self.port, key=key or self.folder / "user_key", known=known)

    def stop(self) -> None:
        self.process.send_signal(self.end)
        self.process.wait()


def start(folder: Path, *, more: str = "") -> Server:
    """sshd as this user, for this user: root need not be asked."""
    assert SSHD
    port = free_port()
    host_key, user_key = new_key(folder / "host_key"), new_key(folder / "user_key")
    shutil.copy(user_key.with_suffix(".pub"), folder / "authorized_keys")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # root's sshd shuts its unprivileged half up in it
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {host_key}\nAuthorizedKeysFile {folder}/authorized_keys\nPidFile none\n"
        "UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
        f"StrictModes no\nPrintMotd no\nMaxStartups 100\n{more}"
    )
    log = folder / "sshd.log"
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log.open("wb"))
    wait_for(port, process, log)
    config = client_config(folder, port=port, key=user_key, known=known_host(port, host_key))
    return Server(folder, port, config, process)
