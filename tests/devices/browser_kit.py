"""A real browser that opens what a device says, driven from a thread of its own (Playwright's plain interface belongs to one thread)."""

from __future__ import annotations

import concurrent.futures
import queue
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trimtab.devices.browser import engines
from trimtab.devices.browser.device import BrowserConfig, BrowserDevice
from trimtab.devices.device import Item, Job
from trimtab.devices.staging import stage
from trimtab.export.artifact import load_artifact
from trimtab.export.manifest import UserError

FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"]
SOFTWARE_GPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
URL = re.compile(r"https?://\S+/")


def need_chromium() -> str:
    """The browser's program. Skips the test where it or Playwright is missing, saying how to mend that."""
    pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium is on the PATH: apt-get install chromium")


def need_engine_files() -> None:
    """The engines, fetched into the user's cache folder by the first test run on a machine. Skips where that can't be done."""
    try:
        engines.set_up(lambda _: None, wait=True)
    except UserError as error:
        pytest.skip(f"the engine files can't be fetched: {error.what} ({error.hint})")


class Browser:
    """Chromium, started once; `open` gives a page. Everything runs in one thread."""

    def __init__(self, program: str) -> None:
        self.program = program
        self._work: queue.Queue[tuple[Callable[[], Any], concurrent.futures.Future] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def _live(self) -> None:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            self.chromium = playwright.chromium.launch(
                executable_path=self.program, headless=True, args=[*FLAGS, *SOFTWARE_GPU]
            )
            while (entry := self._work.get()) is not None:
                act, told = entry
                try:
                    told.set_result(act())
                except BaseException as error:
                    told.set_exception(error)
            self.chromium.close()

    def do(self, act: Callable[[], Any]) -> concurrent.futures.Future:
        """The future of `act`, run in the browser's thread."""
        told: concurrent.futures.Future = concurrent.futures.Future()
        self._work.put((act, told))
        return told

    def open(self, url: str, *, script: str = "") -> Tab:
        """A tab of a fresh profile that loads the address; `script` runs before the page's own."""

        def act() -> Any:
            context = self.chromium.new_context(ignore_https_errors=True)
            page = context.new_page()
            if script:
                page.add_init_script(script)
            said: list[str] = []
            page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: said.append(str(error)))
            page.goto(url)
            return page, said

        return Tab(self, *self.do(act).result(60))

    def close(self) -> None:
        self._work.put(None)
        self._thread.join(30)


class Tab:
    """An open page. `said`: the errors in its console."""

    def __init__(self, browser: Browser, page: Any, said: list[str]) -> None:
        self.browser, self.page, self.said = browser, page, said

    def text(self, selector: str) -> str:
        return self.browser.do(lambda: self.page.text_content(selector)).result(60)

    def wait_for(self, selector: str, text: str) -> None:
        words = f"() => document.querySelector({selector!r}).textContent.includes({text!r})"
        self.browser.do(lambda: self.page.wait_for_function(words, timeout=30_000)).result(60)

    def evaluate(self, script: str) -> Any:
        return self.browser.do(lambda: self.page.evaluate(script)).result(60)

    def close(self) -> None:
        """Closes the tab as a user does, so that the page hears of it."""
        self.browser.do(self.page.context.close).result(60)


class Opener:
    """What `prepare` says is kept, and the first address in it is opened (once the server waits) by `how`, from another thread."""

    def __init__(self, how: Callable[[str], Any]) -> None:
        self.how, self.said = how, list[str]()
        self.tab: concurrent.futures.Future | None = None

    def __call__(self, line: str) -> None:
        self.said.append(line)
        if self.tab is None and line.startswith("open in a browser") and (found := URL.search(line)):
            self.tab = concurrent.futures.ThreadPoolExecutor(1).submit(self.how, found.group())


@dataclass
class Opened:
    """A prepared device whose page is open in `tab`, with an artifact on it and a job for that."""

    device: BrowserDevice
    tab: Tab
    job: Job

    @property
    def item(self) -> Item:
        return self.job.items[0]


def open_device(browser: Browser, folder: Path, *, into: Path) -> Opened:
    device = BrowserDevice("browser", BrowserConfig(wait_s=60))
    opener = Opener(browser.open)
    device.prepare(opener)
    artifact = load_artifact(folder)
    stage(folder, artifact, into, dims={"N": 1}, seed=0)
    item = Item(folder=str(into), place=device.put(into, "a0"), label=artifact.name)
    runtime = {"onnx": "onnxruntime-web", "tflite": "litert-web"}[artifact.format]
    return Opened(device, opener.tab.result(60), Job(runtime=runtime, items=(item,)))
