"""Engine files, Android over USB, QR codes and the doctor: what is said and done before a page is open. No browser is needed here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.devices.browser import address, engines
from trimtab.devices.browser.device import BrowserConfig, BrowserDevice
from trimtab.devices.browser.doctor import diagnose
from trimtab.devices.browser.qr import qr_lines
from trimtab.devices.known import check_config
from trimtab.export.manifest import UserError


def _program(folder: Path, name: str, body: str) -> None:
    """A program for the PATH: a Python script."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport sys, os, pathlib\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def path_with(tmp_path, monkeypatch):
    """Puts a program on a PATH that has nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return lambda name, body: _program(folder, name, body)


# engine files


def test_the_pinned_versions_are_those_of_the_lock_file_and_no_host_is_named():
    lock = json.loads((engines.PAGE / "package-lock.json").read_text())
    for package, version in engines.versions().items():
        assert lock["packages"][f"node_modules/{package}"]["version"] == version
    for name, entry in lock["packages"].items():
        assert not name or entry["integrity"].startswith("sha512-")
        assert entry.get("resolved", "https://registry.npmjs.org/").startswith("https://registry.npmjs.org/")
    assert engines.cdn_url("@litertjs/core/dist/index.js") == "https://cdn.jsdelivr.net/npm/@litertjs/core@2.5.3/dist/index.js"


NPM = """
root = pathlib.Path("node_modules")
assert sys.argv[1:3] == ["ci", "--ignore-scripts"], sys.argv
for file in {files!r}:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"engine" * 20000)
"""


def test_set_up_keeps_just_the_files_that_pages_ask_for(tmp_path, monkeypatch, path_with):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path_with("npm", NPM.format(files=[*engines.FILES, "onnxruntime-web/dist/ort.all.js"]))
    assert not engines.installed()
    said: list[str] = []
    folder = engines.set_up(said.append)
    assert engines.installed()
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {*engines.FILES, *(f"{file}.gz" for file in engines.FILES)}
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f"{folder.name}.lock"}  # nothing else is left
    path_with("npm", "sys.exit(1)")
    assert engines.set_up(said.append) == folder  # there already: npm is not asked again


@pytest.mark.parametrize(
    ("npm", "said", "hint"),
    [
        (None, "npm is not on the PATH", "cdn.jsdelivr.net"),
        ("sys.stderr.write('npm error code E404'); sys.exit(3)", "npm ci failed \\(exit code 3\\)", "E404"),
        ("pathlib.Path('node_modules').mkdir()", "npm's package has no onnxruntime-web/dist", "pinned versions"),
    ],
)
def test_set_up_that_fails_says_why_and_leaves_nothing(tmp_path, monkeypatch, path_with, npm, said, hint):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if npm:
        path_with("npm", npm)
    with pytest.raises(UserError, match=said) as caught:
        engines.set_up(lambda _: None)
    assert hint in caught.value.hint
    assert not engines.installed()
    parent = engines.engine_folder().parent
    assert not parent.exists() or all(path.suffix == ".lock" for path in parent.iterdir())


# QR codes


@pytest.mark.parametrize("host", ["127.0.0.1", "192.168.100.100"])
def test_a_code_fits_a_narrow_terminal_and_is_the_code(host):
    import segno

    url = f"https://{host}:54321/{'Aa0-_' * 4}xx/"
    lines = qr_lines(url)
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 40
    assert len(lines) <= 20
    light = {"█": (1, 1), "▀": (1, 0), "▄": (0, 1), " ": (0, 0)}
    drawn = [[light[letter][half] for letter in line] for line in lines for half in (0, 1)]
    code = segno.make(url, error="l", micro=False, boost_error=False)
    side, border = code.symbol_size(border=0)[0], 2
    inner = [[1 - cell for cell in row[border : border + side]] for row in drawn[border : border + side]]
    assert inner == [list(row) for row in code.matrix]
    assert all(drawn[0])
    assert all(row[0] and row[-1] for row in drawn[: side + 2 * border])


# Android over USB

ADB = """
log = pathlib.Path({log!r})
with log.open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
if sys.argv[1] == "devices":
    print("List of devices attached")
    for line in {seen!r}:
        print(line.replace(" ", "\\t"))
elif "reverse" in sys.argv and {broken!r}:
    sys.stderr.write("error: closed")
    sys.exit(1)
elif "am" in sys.argv:
    print("Starting: Intent")
"""


@pytest.fixture
def adb(tmp_path, path_with):
    log = tmp_path / "adb.log"
    log.touch()

    def install(*seen, broken=False):
        path_with("adb", ADB.format(log=str(log), seen=list(seen), broken=broken))
        return lambda: log.read_text().splitlines()

    return install


def _prepare(**fields):
    """What a device says before it gives up waiting, its port, and its error."""
    device, said = BrowserDevice("browser", check_config("browser", {"wait_s": 0.1, **fields})), []
    with pytest.raises(UserError) as caught:
        device.prepare(said.append)
    port = device.server.port if device.server else None
    device.close()
    return said, port, caught.value


def test_a_phone_over_usb_gets_the_page_as_its_own_loopback(adb):
    log = adb("PHONE1 device")
    said, port, error = _prepare()
    assert "no browser has opened" in error.what
    lines = log()
    assert f"-s PHONE1 reverse tcp:{port} tcp:{port}" in lines
    assert any(line.startswith("-s PHONE1 shell am start -a android.intent.action.VIEW -d http://127.0.0.1:") for line in lines)
    assert lines[-1] == f"-s PHONE1 reverse --remove tcp:{port}"
    assert any("PHONE1 was told to open the page" in line for line in said)
    assert any("█" in line for line in said)


def test_several_phones_want_a_serial(adb):
    log = adb("PHONE1 device", "PHONE2 device")
    said, *_ = _prepare()
    assert any("adb sees PHONE1, PHONE2: adb_serial names the one to use" in line for line in said)
    assert not any("reverse" in line for line in log())
    _prepare(adb_serial="PHONE2")
    assert any("-s PHONE2 reverse tcp:" in line for line in log())


@pytest.mark.parametrize(
    ("seen", "serial", "what"),
    [
        (["PHONE1 unauthorized"], "PHONE1", "PHONE1 that is ready \\(unauthorized\\)"),
        (["PHONE1 offline"], "PHONE1", "\\(offline\\)"),
        ([], "PHONE9", "PHONE9 that is ready \\(not there\\)"),
    ],
)
def test_a_phone_that_was_named_and_is_not_ready(adb, seen, serial, what):
    adb(*seen)
    *_, error = _prepare(adb_serial=serial)
    with pytest.raises(UserError, match=what):
        raise error
    assert "USB debugging" in error.hint


def test_an_unauthorised_phone_is_mentioned(adb):
    adb("PHONE1 unauthorized")
    said, *_ = _prepare()
    assert any(line.startswith("PHONE1 is unauthorized: unlock the phone") for line in said)
    assert any("this address is for a browser on this machine" in line for line in said)


def test_a_phone_that_refuses_the_way_back(adb):
    adb("PHONE1 device", broken=True)
    *_, error = _prepare()
    assert error.what.endswith("failed: error: closed")
    assert "plugged in" in error.hint


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"port": 70000}, "port"),
        ({"wait_s": 0}, "wait_s"),
        ({"address": "not an address"}, "address"),
        ({"adb_serial": "x; rm -rf /"}, "adb_serial"),
        ({"lann": True}, "has no 'lann'"),
    ],
)
def test_settings_are_checked(fields, said):
    with pytest.raises(UserError, match=said):
        check_config("browser", fields)


def test_a_port_that_is_taken(path_with):
    first = BrowserDevice("browser", BrowserConfig(wait_s=0.1))
    with pytest.raises(UserError, match="no browser has opened"):
        first.prepare(lambda _: None)
    try:
        *_, error = _prepare(port=first.server.port)
        assert f"port {first.server.port} can't be listened on" in error.what
    finally:
        first.close()


def test_no_network_to_be_reached_from(path_with, monkeypatch):
    monkeypatch.setattr(address, "lan_address", lambda: None)
    *_, error = _prepare(lan=True)
    assert "no address on a local network" in error.what


# the doctor


def test_the_doctor_says_what_is_missing_and_what_mends_it(tmp_path, monkeypatch, path_with, adb):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = {finding.subject: finding for finding in diagnose(BrowserConfig())}
    assert found["browser: engine files"].mend == "trimtab devices setup browser"
    assert "adb is not on the PATH" in found["browser: Android over USB"].detail
    (strict,) = (f for f in diagnose(BrowserConfig(adb_serial="P1")) if f.subject == "browser: Android over USB")
    assert strict.state == "missing"
    adb("PHONE1 unauthorized", "PHONE2 device")
    usb = [f for f in diagnose(BrowserConfig()) if f.subject == "browser: Android over USB"]
    assert [f.state for f in usb] == ["note", "ok"]
    adb()
    (usb,) = (f for f in diagnose(BrowserConfig()) if f.subject == "browser: Android over USB")
    assert "sees no phone" in usb.detail


def test_the_page_is_part_of_the_package():
    """Every file that the page loads by name is one that the server gives out, and JavaScript that parses."""
    import shutil

    from trimtab.devices.browser.site import PAGE_FILES

    names = {path.name for path in engines.PAGE.iterdir()}
    assert names == {*PAGE_FILES, "index.html", "package.json", "package-lock.json"}
    node = shutil.which("node", path=os.defpath + ":/usr/local/bin")
    if node is None:
        pytest.skip("Node.js is not installed: apt-get install nodejs")
    for name in PAGE_FILES:
        if name.endswith(".js"):
            text = (engines.PAGE / name).read_text()
            done = subprocess.run(
                [node, "--input-type=module", "--check"], input=text, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{name}: {done.stderr}"
