"""A browser as a device: trimtab serves a page, and the phone or computer that opens it runs the artifacts."""

from __future__ import annotations

import ipaddress
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from ...export.manifest import Progress, UserError
from ..device import DeviceCard, DeviceConfig, Job, JobResult, Offer, devices
from ..linked import Linked
from . import address, engines
from .certificate import certificate
from .desk import Desk
from .doctor import diagnose
from .link import PageLink
from .qr import qr_lines
from .server import PageServer
from .shelf import Shelf
from .site import Site

BACKENDS = ("wasm", "webgpu")
RELOAD_S = 60.0
_OFFERED = {"onnxruntime-web": ("ONNX Runtime Web", "onnx"), "litert-web": ("LiteRT.js", "tflite")}


class BrowserConfig(DeviceConfig):
    """`lan`: reachable from the local network, else from this machine alone. `https`: with a self-signed certificate.

    `address`: the IP address that others reach this machine at, found out when left out. `port`: 0 takes a free one.
    `wait_s`: how long to wait for the page. `adb_serial`: the Android phone to use where several are plugged in.
    """

    lan: bool = False
    https: bool = False
    address: str | None = None
    port: int = Field(default=0, ge=0, le=65535)
    wait_s: float = Field(default=300.0, gt=0, le=86400)
    adb_serial: str | None = None

    @field_validator("address")
    @classmethod
    def _an_ip(cls, value: str | None) -> str | None:
        return None if value is None else str(ipaddress.IPv4Address(value))

    @field_validator("adb_serial")
    @classmethod
    def _a_serial(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.:_-]{0,63}", value):
            raise ValueError("not a serial number as `adb devices` lists them")
        return value


@devices.register(
    "browser",
    DeviceCard(
        title="a browser",
        config=BrowserConfig,
        packages=("segno",),
        diagnose=diagnose,
        set_up=lambda say: _done(engines.set_up(say)),
        set_up_name="browser",
        note="serves a page that a phone opens: WebAssembly and WebGPU figures, not an app's",
    ),
)
class BrowserDevice(Linked):
    """Serves the page from `prepare` to `close`."""

    def __init__(self, name: str, config: BrowserConfig) -> None:
        super().__init__(name)
        self.config = config
        self.desk = Desk(name)
        self.cdn = engines.CDN
        self.server: PageServer | None = None
        self.shelf: Shelf | None = None
        self._work: tempfile.TemporaryDirectory[str] | None = None
        self._reversed = ""
        self._backend = BACKENDS[0]
        self._titles: dict[str, str] = {}

    def prepare(self, say: Callable[[str], None]) -> None:
        """Serves the page, tells its address, and waits for somebody to open it. Raises UserError when nobody does."""
        config = self.config
        host = self._host()
        pair = certificate(_config_folder(), ["127.0.0.1", *([host] if host else [])]) if config.https else None
        self._work = tempfile.TemporaryDirectory(prefix="trimtab-browser-")
        self.shelf = Shelf(Path(self._work.name))
        local = engines.engine_folder() if engines.installed() else None
        site = Site(self.desk, self.shelf, local=local, cdn=self.cdn, certificate=pair[0] if pair else None)
        try:
            self.server = PageServer(site, bind="0.0.0.0" if config.lan else "127.0.0.1", port=config.port, tls=pair)  # noqa: S104 (asked for)
        except OSError as error:
            raise UserError(
                f"port {config.port} can't be listened on: {error.strerror}", hint="another port, or 0 for a free one"
            ) from None
        if host:
            self.server.allow(host)
        self.server.start()
        self.desk.say = say
        if local is None:
            where = urlsplit(self.cdn).hostname
            say(f"engine files are not installed; the phone will fetch them from {where}; or run: {engines.SETUP}")
        self._invite(say, host)
        if not self.desk.wait_for_page(config.wait_s):
            raise UserError(
                f"no browser has opened {self.server.url(host or '127.0.0.1')} within {config.wait_s:g} s",
                hint="is the phone on the same network, and does the firewall here let it in?"
                if host
                else "from another device: --lan, or an Android phone over USB with adb",
            )
        say("the page is open: keep it in front and the screen on")

    def offers(self) -> Mapping[str, Offer]:
        """What the page runs: ONNX and TFLite files, in WebAssembly or on WebGPU."""
        told = self.hello().runtimes
        return {
            name: Offer(title=title, formats=(kind,), options={"backend": BACKENDS}, version=told[name].version or "")
            for name, (title, kind) in _OFFERED.items()
            if name in told
        }

    def run(self, job: Job, progress: Progress) -> JobResult:
        """The job's results. Raises UserError, LinkLostError."""
        self._backend = job.options.get("backend", BACKENDS[0])
        self._titles = {item.place: item.label for item in job.items}
        return super().run(job, progress)

    def put(self, source: Path, place: str) -> str:
        """The name that the page fetches the file or folder under: from now on, and these files alone, it may."""
        return self._shelf().put(source, place)

    def link(self) -> PageLink:
        """The page, freshly loaded. Raises LinkLostError."""
        self.desk.restart(RELOAD_S)
        return PageLink(self.desk, self._shelf(), backend=self._backend, titles=self._titles)

    def collect(self, place: str, target: Path) -> Path:
        """`target`, from what the page brought. Raises UserError."""
        return self._shelf().collect(place, target)

    def close(self) -> None:
        """The page is told that it is over; nothing is served any more."""
        if self.server is not None:
            self.desk.end("done: this page can be closed")
            self.server.close()
            if self._reversed:
                address.unreverse(self._reversed, self.server.port)
            self.server = None
        if self._work is not None:
            self._work.cleanup()
            self._work = None

    def _shelf(self) -> Shelf:
        if self.shelf is None:
            raise UserError(f"{self.name} is not prepared", hint="call prepare() first", exit_code=1)
        return self.shelf

    def _host(self) -> str | None:
        """The address for others, None when only this machine may come. Raises UserError when there is none."""
        if not self.config.lan:
            return None
        found = self.config.address or address.lan_address()
        if found is None:
            raise UserError(
                "this machine has no address on a local network", hint='connect it, or name its address: address = "192.168.…"'
            )
        return found

    def _invite(self, say: Callable[[str], None], host: str | None) -> None:
        """Tells who can open the page, and how."""
        assert self.server is not None  # noqa: S101 (prepare has made it)
        phone = "" if host else self._phone(say)
        url = self.server.url(host or "127.0.0.1")
        if phone and address.show_on(phone, url):
            say(f"the browser on {phone} was told to open the page; should it not, scan the code on that phone")
        say(f"open in a browser: {url}")
        if host or phone:
            for line in qr_lines(url):
                say(line)
        else:
            say(
                "this address is for a browser on this machine; for a phone: --lan, or an Android phone over USB with adb installed"
            )
        if host and self.config.https:
            for line in HTTPS_WORDS:
                say(line.format(url=url))
        elif host:
            say("plain http: browsers then give 1 thread, no WebGPU and a coarse clock; --https gives all of it")

    def _phone(self, say: Callable[[str], None]) -> str:
        """The serial of the Android phone that now reaches this server as its own 127.0.0.1, empty when there is none."""
        assert self.server is not None  # noqa: S101 (prepare has made it)
        seen, wanted = address.phones(), self.config.adb_serial
        if wanted is not None and seen.get(wanted) != "device":
            state = seen.get(wanted, "not there")
            raise UserError(
                f"adb sees no phone {wanted} that is ready ({state})",
                hint="install adb (package android-tools-adb or adb), allow USB debugging on the phone, and accept this computer there",
            )
        for serial, state in seen.items():
            if state != "device" and wanted is None:
                say(f"{serial} is {state}: unlock the phone and accept this computer there to use it over USB")
        ready = [serial for serial, state in seen.items() if state == "device" and wanted in (None, serial)]
        if len(ready) > 1:
            say(f"adb sees {', '.join(ready)}: adb_serial names the one to use")
        if len(ready) != 1:
            return ""
        address.reverse(ready[0], self.server.port)
        self._reversed = ready[0]
        return ready[0]


HTTPS_WORDS = (
    "the certificate is made by trimtab itself, so the phone warns once:",
    "  Android: Advanced, then Proceed.   iPhone: Show Details, then visit this website.",
    "  should an iPhone refuse: open {url}certificate.pem there, install the profile (Settings, General, VPN & Device Management),",
    "  and trust it (Settings, General, About, Certificate Trust Settings). Remove it when you are done.",
)


def _done(_: Path) -> None:
    """Nothing."""


def _config_folder() -> Path:
    from ..known import config_path

    return config_path().parent
