"""An arm64 Linux board of which only the processor is imitated: its own root file system, sshd, Python and aarch64 wheels."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from sshd_kit import Server, client_config, free_port, known_host, new_key, wait_for

HERE = Path(__file__).parent / "board"
CORE = "cortex-a76"
TOOLS = {
    "qemu-aarch64-static": "qemu-user-static",
    "update-binfmts": "binfmt-support",
    "debootstrap": "debootstrap",
    "unshare": "util-linux",
    "ssh": "openssh-client",
}


def obstacle() -> str:
    """Why no board can be had here, or nothing."""
    if sys.platform != "linux" or os.getuid() != 0:
        return "the emulated board needs root on Linux (mounts and chroot): run it as root"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    gone = sorted({package for tool, package in TOOLS.items() if shutil.which(tool, path=path) is None})
    return f"the emulated board needs packages: apt install {' '.join(gone)}" if gone else ""


def board_root() -> Path:
    """The root file system, made at the first call (about half a minute and 320 MB) and kept in the cache. Raises RuntimeError."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab" / "board"
    script = HERE / "make_root.sh"
    folder = cache / hashlib.sha256(script.read_bytes()).hexdigest()[:12]
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([str(script), str(folder), sys.executable], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError("the board's root could not be made: " + " · ".join(done.stderr.splitlines()[-3:]))
    return folder / "root"


def start_board(folder: Path) -> Server:
    """A running board. Raises RuntimeError."""
    port, root, inside = free_port(), board_root(), folder / "inside"
    inside.mkdir()
    host_key, user_key = new_key(inside / "host_key"), new_key(folder / "user_key")
    shutil.copy(user_key.with_suffix(".pub"), inside / "authorized_keys")
    (inside / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey /run/board/host_key\nAuthorizedKeysFile /run/board/authorized_keys\nPidFile none\n"
        "UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nStrictModes no\n"
        f"PrintMotd no\nSetEnv QEMU_CPU={CORE}\n"  # sshd clears the environment; the default core is slow and takes other kernels
    )
    log = folder / "sshd.log"
    process = subprocess.Popen([str(HERE / "start_board.sh"), str(root), str(inside), CORE], stderr=log.open("wb"))
    wait_for(port, process, log, seconds=60)
    config = client_config(folder, port=port, key=user_key, known=known_host(port, host_key), user="root")
    return Server(folder, port, config, process, end=signal.SIGKILL)  # `unshare --fork` minds nothing else
