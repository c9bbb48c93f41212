"""What a job costs before anything is timed: over ssh to this machine, and in a browser on it.

Over ssh the clock starts with the command and stops at the first request that times something: connecting, the work folder, the runner, the
artifact, its first load and the check of its outputs lie between. In a browser it starts when the page has connected; opening the page is
told apart. The artifact is the shipped ResNet-20. The servers and the browser are those of the tests.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import devices_nets

from trimtab.devices.device import Item, Job
from trimtab.devices.link import ANSWER_S, Link
from trimtab.devices.linked import Linked
from trimtab.devices.staging import stage
from trimtab.export.manifest import LogProgress, load_artifact

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "devices"))
Say = Callable[[str], None]


class Noting:
    """A link that notes when it was first asked to time something."""

    def __init__(self, link: Link) -> None:
        self.link, self.first = link, 0.0

    def ask(self, request: dict[str, Any], *, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """The answer."""
        if request["do"] == "time" and not self.first:
            self.first = time.monotonic()
        return self.link.ask(request, timeout_s=timeout_s)

    def close(self) -> None:
        """Ends the runner."""
        self.link.close()


def once(device: Linked, folder: Path, *, runtime: str, say: Say, seed: int) -> Mapping[str, float]:
    """Seconds until the device is ready, and from then until something is timed."""
    links: list[Noting] = []
    plain = device.link

    def noting() -> Link:
        links.append(Noting(plain()))
        return links[-1]

    device.link = noting  # type: ignore[method-assign]
    begin = time.monotonic()
    try:
        device.prepare(say)
        ready = time.monotonic()
        device.offers()
        with tempfile.TemporaryDirectory() as work:
            staged = Path(work) / "a0"
            stage(folder, load_artifact(folder), staged, dims={"N": 1}, seed=seed)
            item = Item(folder=str(staged), place=device.put(staged, "a0"), label="net", dims={"N": 1})
            device.run(Job(runtime=runtime, items=(item,), budget_s=0.1, preset="quick", seed=seed), LogProgress())
        return {"prepare_s": ready - begin, "job_s": links[-1].first - ready, "whole_s": links[-1].first - begin}
    finally:
        device.close()


def over_ssh(folder: Path, *, repeats: int, seed: int) -> list[Mapping[str, float]]:
    """Set-ups over a real sshd on the loopback address."""
    import sshd_kit

    from trimtab.devices.ssh import SshConfig, SshDevice

    with tempfile.TemporaryDirectory() as home:
        server = sshd_kit.start(Path(home))
        try:
            config = SshConfig.model_validate({"host": "board", "python": sys.executable, "config": str(server.config)})
            return [
                once(SshDevice("board", config), folder, runtime="onnxruntime", say=print, seed=seed) for _ in range(repeats)
            ]
        finally:
            server.stop()


def in_a_browser(folder: Path, *, repeats: int, seed: int) -> list[Mapping[str, float]]:
    """Set-ups in a headless Chromium."""
    import browser_kit

    from trimtab.devices.browser import engines
    from trimtab.devices.browser.device import BrowserConfig, BrowserDevice

    engines.set_up(print, wait=True)
    found = []
    browser = browser_kit.Browser(browser_kit.need_chromium())
    try:
        for _ in range(repeats):
            opener = browser_kit.Opener(browser.open)
            found.append(
                once(
                    BrowserDevice("browser", BrowserConfig(wait_s=60)), folder, runtime="onnxruntime-web", say=opener, seed=seed
                )
            )
            opener.tab.result(60).close()
    finally:
        browser.close()
    return found


def study(*, seed: int, repeats: int = 11) -> dict[str, Any]:
    """Seconds of every set-up, and their medians."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        (place,) = devices_nets.artifacts("resnet20", [("onnx", "fp32")], Path(folder)).values()
        for name, way, what in (("ssh", over_ssh, "whole_s"), ("browser", in_a_browser, "job_s")):
            times = way(place, repeats=repeats, seed=seed)
            values = [each[what] for each in times]
            rows[name] = {"what": what, "median_s": statistics.median(values), "largest_s": max(values), "times": times}
            print(name, f"{rows[name]['median_s']:.2f} s", f"at most {rows[name]['largest_s']:.2f} s", flush=True)
    return {"rows": rows}
