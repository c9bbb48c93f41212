"""What gets into the page's server and what does not: tokens, hosts, sizes, names, junk. No browser is needed here."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import ssl
import threading

import pytest

from trimtab.devices.browser import certificate as certificates
from trimtab.devices.browser import server as module
from trimtab.devices.browser.certificate import certificate
from trimtab.devices.browser.desk import Desk
from trimtab.devices.browser.link import PageLink
from trimtab.devices.browser.server import LARGEST_POST, PageServer
from trimtab.devices.browser.shelf import Shelf
from trimtab.devices.browser.site import Site
from trimtab.devices.link import LinkLostError
from trimtab.devices.runtime import RejectedError
from trimtab.export.manifest import UserError


@pytest.fixture
def place(tmp_path):
    """A server with one artifact, and a secret beside it that nobody may have."""
    (tmp_path / "art").mkdir()
    (tmp_path / "art" / "model.onnx").write_bytes(b"model")
    (tmp_path / "art" / "a name #1?.bin").write_bytes(b"odd")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "work").mkdir()
    shelf, desk = Shelf(tmp_path / "work"), Desk("browser")
    server = PageServer(Site(desk, shelf, local=None), bind="127.0.0.1", port=0)
    server.start()
    server.name = shelf.put(tmp_path / "art", "a0")
    yield server
    desk.end("done", wait_s=0.1)
    server.close()


def ask(server, path, body=None, **headers):
    """Status and body of one request; `path` below the token."""
    status, got, _ = fetch(server, path, body, **headers)
    return status, got


def fetch(server, path, body=None, *, trust=None, **headers):
    """Status, body and headers."""
    if trust:
        wire = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=30, context=trust)
    else:
        wire = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    kind = {} if body is None else {"Content-Type": "application/json"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with contextlib.closing(wire):
        wire.request("GET" if body is None else "POST", f"/{server.token}/{path}", body=body, headers={**kind, **named})
        got = wire.getresponse()
        return got.status, got.read(), got.headers


def post(server, path, body, **headers):
    status, got = ask(server, path, json.dumps(body).encode(), **headers)
    return status, json.loads(got) if got.startswith(b"{") else got


def raw(server, data: bytes, *, timeout=10.0) -> bytes:
    """What comes back for bytes that need be no HTTP."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout) as wire:
        got = b""
        with contextlib.suppress(OSError):  # hung up on, at whatever point
            wire.sendall(data)
            wire.shutdown(socket.SHUT_WR)
            while piece := wire.recv(1 << 16):
                got += piece
        return got


def test_the_page_and_what_it_may_load(place):
    status, body, headers = fetch(place, "")
    assert status == 200
    assert b"{{" not in body
    assert b"cdn.jsdelivr.net/npm/@litertjs/wasm-utils@2.5.3/dist/index.js" in body
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer"
    assert ask(place, "main.js")[0] == 200
    assert ask(place, f"{place.name}/model.onnx") == (200, b"model")
    assert ask(place, f"{place.name}/a%20name%20%231%3F.bin") == (200, b"odd")


@pytest.mark.parametrize(
    "path",
    [
        "index.html",
        "files/",
        "files/1-a0",
        "files/1-a0/",
        "files/1-a0/../secret.txt",
        "files/1-a0/..%2f..%2fsecret.txt",
        "files/1-a0/%2e%2e/%2e%2e/secret.txt",
        "..%5c..%5csecret.txt",
        "%2fetc%2fpasswd",
        "//etc/passwd",
        "engine/",
        "engine/../package.json",
        "package-lock.json",
        "certificate.pem",
        "out/x",
        "main.js%00",
        "%ff%fe",
    ],
)
def test_nothing_else_is_given_out(place, path):
    got = raw(place, f"GET /{place.token}/{path} HTTP/1.1\r\nHost: 127.0.0.1:{place.port}\r\n\r\n".encode())
    assert got.startswith(b"HTTP/1.1 404 ")
    assert b"secret" not in got
    assert b"root:" not in got


def test_without_the_token_nothing_answers_on_loopback_either(place):
    token = place.token
    for wrong in ("", "x", token[:-1], token + "x", token.lower(), "é" * 22):
        place.token = wrong
        url = f"/{wrong}/".encode()
        place.token = token
        got = raw(place, b"GET " + url + f" HTTP/1.1\r\nHost: 127.0.0.1:{place.port}\r\n\r\n".encode())
        assert got.startswith(b"HTTP/1.1 404 ")


def test_another_host_or_origin_is_refused(place):
    assert ask(place, "", Host="evil.example")[0] == 403  # a name that somebody points at 127.0.0.1
    assert ask(place, "", Host=f"evil.example:{place.port}")[0] == 403
    assert post(place, "join", {}, Origin="https://evil.example")[0] == 403
    assert post(place, "join", {}, Sec_Fetch_Site="cross-site")[0] == 403
    assert ask(place, "", Sec_Fetch_Site="cross-site")[0] == 200  # a link in a mail may be followed
    assert post(place, "join", {}, Origin=f"http://127.0.0.1:{place.port}", Sec_Fetch_Site="same-origin")[0] == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("join", {"x": 1}),
        ("next", {}),
        ("next", {"runner": "a", "last": {"id": "1", "answer": {}}}),
        ("next", {"runner": "a", "last": {"id": 1, "answer": []}}),
        ("next", {"runner": "../x", "last": None}),
        ("next", {"runner": "a" * 100, "last": None}),
        ("state", {"runner": "a", "state": "gone"}),
        ("state", [1, 2]),
        ("state", "closing"),
    ],
)
def test_a_post_of_another_form_is_refused(place, path, body):
    status, told = post(place, path, body)
    assert status == 400
    assert told["error"]


def test_a_stranger_can_neither_answer_nor_close(place):
    runner = post(place, "join", {})[1]["runner"]
    assert post(place, "state", {"runner": "stranger", "state": "closing"})[0] == 403
    assert "no longer takes part" in post(place, "next", {"runner": "stranger", "last": None})[1]["end"]
    assert post(place, "state", {"runner": runner, "state": "beat"})[0] == 200


def test_sizes_and_kinds_are_checked_before_a_body_is_read(place):
    start = f"POST /{place.token}/next HTTP/1.1\r\nHost: 127.0.0.1:{place.port}\r\nContent-Type: application/json\r\n"
    for head, status in [
        (f"Content-Length: {LARGEST_POST + 1}\r\n", 413),
        ("Content-Length: -1\r\n", 411),
        ("Content-Length: 1e3\r\n", 411),
        ("Content-Length: 99999999999999999999\r\n", 411),
        ("", 411),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 411),
    ]:
        assert raw(place, (start + head + "\r\n").encode()).startswith(f"HTTP/1.1 {status} ".encode())
    assert ask(place, "join", b"{}", Content_Type="text/plain")[0] == 415  # what a form of another site could send
    assert ask(place, "nothing", b"{}")[0] == 404
    assert ask(place, "main.js", b"{}")[0] == 404


def test_a_page_brings_what_it_was_asked_for_and_nothing_else(place, tmp_path):
    shelf = place.site.shelf
    shelf.expect(["files/1-a0/out.bin"])
    assert ask(place, "out/files/1-a0/other.bin", b"1234")[0] == 404
    assert ask(place, "out/../../x", b"1234")[0] == 404
    assert ask(place, "out/files/1-a0/out.bin", b"1234") == (200, b"{}")
    assert ask(place, "files/1-a0/out.bin")[0] == 404  # it is not given out again
    assert shelf.collect("files/1-a0/out.bin", tmp_path / "got.bin").read_bytes() == b"1234"
    with pytest.raises(UserError, match="has brought no"):
        shelf.collect("files/1-a0/out.bin", tmp_path / "again.bin")
    shelf._room = 3
    assert ask(place, "out/files/1-a0/out.bin", b"1234")[0] == 404
    got = raw(
        place,
        f"POST /{place.token}/out/files/1-a0/out.bin HTTP/1.1\r\nHost: 127.0.0.1:{place.port}\r\nContent-Length: 3\r\n\r\n1".encode(),
    )
    assert got == b""
    assert list(shelf.folder.iterdir()) == []  # half a file is none


def _junk(rng: random.Random, kind: int, *, token: str, port: int) -> bytes:
    """One of twelve kinds of request that no page makes."""
    host = f"Host: 127.0.0.1:{port}\r\n"
    post = f"POST /{token}/next HTTP/1.1\r\n{host}Content-Type: application/json\r\n"
    verb = rng.choice(["PUT", "DELETE", "TRACE", "CONNECT", "OPTIONS", "HEAD", "X" * 50])
    text = {
        1: f"GET /{rng.randbytes(11).hex()}/ HTTP/1.1\r\n{host}\r\n",
        2: f"GET /{token}/{'../' * rng.randrange(1, 9)}etc/passwd HTTP/1.1\r\n{host}\r\n",
        3: f"{verb} /{token}/ HTTP/1.1\r\n{host}\r\n",
        4: f"{post}Content-Length: 9\r\n\r\n{rng.randbytes(4).hex()}!",
        5: f"{post}Content-Length: 99999999\r\n\r\nx",
        6: f"{post}Content-Length: 50\r\n\r\n{{",
        7: f"GET /{token}/ HTTP/1.1\r\nHost: {'a' * rng.randrange(1, 70_000)}\r\n\r\n",
        8: f"GET /{token}/ HTTP/1.1\r\n{'X: y' * 300}\r\n" + "X: y\r\n" * 300 + "\r\n",
        9: f"GET /{'a' * 70_000} HTTP/1.1\r\n\r\n",
        10: f"GET //[ HTTP/9.9\r\n{host}\r\n",
        11: json.dumps({"runner": "x"}),
    }
    return text[kind].encode() if kind else rng.randbytes(rng.randrange(1, 300))


def test_a_thousand_junk_requests_leave_it_serving(place):
    rng = random.Random(7)
    found = [raw(place, _junk(rng, k % 12, token=place.token, port=place.port)) for k in range(1000)]
    assert not any(b"root:" in got or b"Traceback" in got for got in found)
    assert not any(got.startswith(b"HTTP/1.1 200") for got in found)
    runner = post(place, "join", {})[1]["runner"]
    assert post(place, "state", {"runner": runner, "state": "beat"}) == (200, {})


def test_connections_that_prove_nothing_are_closed_and_limited(place, monkeypatch):
    monkeypatch.setattr(module, "PROVE_S", 0.2)
    idle = [socket.create_connection(("127.0.0.1", place.port), timeout=20) for _ in range(module.CONNECTIONS + 10)]
    for wire in idle:
        with contextlib.suppress(ConnectionError):
            assert wire.recv(10) == b""  # closed by the server: at once above the limit, else after its patience
        wire.close()
    assert ask(place, "")[0] == 200


# the desk, with a page made of Python


def _page(server, answers):
    """Joins, and answers every request by `answers` (verb → answer) until told to end."""
    runner = post(server, "join", {})[1]["runner"]
    last = None
    while True:
        _, told = post(server, "next", {"runner": runner, "last": last})
        if "end" in told or "reload" in told:
            return
        if "request" in told:
            last = {"id": told["id"], "answer": answers[told["request"]["do"]]}


@pytest.mark.parametrize(
    ("verb", "answer", "said"),
    [
        ("time", {"ns": [1.0]}, "1 times for 2 calls"),
        ("time", {"ns": [1.0, -1.0]}, "ns.1: .*greater than or equal to 0"),
        ("time", {"ns": "fast"}, "ns: .*list"),
        ("time", {}, "ns: Field required"),
        ("time", {"ns": [1, 2], "note": "x"}, "note: Extra inputs"),
        ("snapshot", {"snapshot": {"governor": {"value": None}}}, "snapshot"),
        ("drop", {"error": {"kind": "user"}}, "error.what"),
        ("hello", {"protocol": 1}, "runner: Field required"),
    ],
)
def test_an_answer_that_is_none_ends_the_link(place, verb, answer, said):
    threading.Thread(target=_page, args=(place, {verb: answer}), daemon=True).start()
    desk = place.site.desk
    assert desk.wait_for_page(30)
    link = PageLink(desk, place.site.shelf, backend="wasm", titles={})
    with pytest.raises(LinkLostError, match=f"answered '{verb}' with what is no answer to it: .*{said}"):
        link.ask({"do": verb, "order": [0, 1], "blocks": [1, 1]}, timeout_s=30)


def test_errors_of_the_page_keep_their_kind(place):
    answers = {
        "load": {"error": {"kind": "rejected", "what": "no such op", "hint": ""}},
        "open": {"error": {"kind": "user", "what": "too many", "hint": "fewer"}},
    }
    threading.Thread(target=_page, args=(place, answers), daemon=True).start()
    desk = place.site.desk
    assert desk.wait_for_page(30)
    link = PageLink(desk, place.site.shelf, backend="wasm", titles={})
    with pytest.raises(RejectedError, match="no such op"):
        link.ask({"do": "load", "file": "files/1-a0/model.onnx"}, timeout_s=30)
    with pytest.raises(UserError, match="too many") as caught:
        link.ask({"do": "open"}, timeout_s=30)
    assert (caught.value.hint, caught.value.exit_code) == ("fewer", 2)


def test_an_answer_counts_once_and_only_for_its_request():
    desk = Desk("browser")
    runner = desk.join()["runner"]
    told = []
    asking = threading.Thread(target=lambda: told.append(desk.ask({"do": "drop"}, timeout_s=30)), daemon=True)
    asking.start()
    request = desk.next(runner, None, wait_s=30)
    assert request["request"] == {"do": "drop"}
    assert desk.next(runner, None, wait_s=0) == request  # its answer to the first poll was lost on the way
    assert desk.next(runner, (request["id"] + 1, {"wrong": 1}), wait_s=0) == request
    assert desk.next(runner, (request["id"], {"right": 1}), wait_s=0) == {}
    assert desk.next(runner, (request["id"], {"late": 1}), wait_s=0) == {}
    asking.join(30)
    assert told == [{"right": 1}]


def test_no_answer_in_time():
    desk = Desk("browser")
    desk.join()
    with pytest.raises(LinkLostError, match="browser gave no answer to 'load' within 0 s"):
        desk.ask({"do": "load"}, timeout_s=0.1)


# certificates


@pytest.mark.parametrize("by", ["openssl", "cryptography"])
def test_a_certificate_is_good_for_its_addresses_and_no_others(tmp_path, monkeypatch, by):
    if by == "cryptography":
        pytest.importorskip("cryptography", reason="cryptography is not installed: pip install cryptography")
    elif certificates.shutil.which("openssl") is None:
        pytest.skip("no openssl program is on the PATH: apt-get install openssl")
    monkeypatch.setattr(certificates.importlib.util, "find_spec", lambda name: by == "cryptography" or None)
    made, key = certificate(tmp_path / "c", ["127.0.0.1", "192.0.2.7"])
    assert (made, key) == certificate(tmp_path / "c", ["127.0.0.1", "192.0.2.7"])  # kept
    assert key.stat().st_mode & 0o077 == 0
    desk, shelf = Desk("browser"), Shelf(tmp_path)
    server = PageServer(Site(desk, shelf, local=None, certificate=made), bind="127.0.0.1", port=0, tls=(made, key))
    server.start()
    try:
        trust = ssl.create_default_context(cafile=made)
        assert fetch(server, "", trust=trust)[0] == 200
        assert fetch(server, "certificate.pem", trust=trust)[:2] == (200, made.read_bytes())
        assert raw(server, b"GET / HTTP/1.1\r\n\r\n") == b""  # plain http, hung up on
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=30) as wire,
            pytest.raises(ssl.SSLCertVerificationError),
        ):
            trust.wrap_socket(wire, server_hostname="192.0.2.8")
    finally:
        server.close()


def test_https_without_a_way_to_a_certificate(tmp_path, monkeypatch):
    monkeypatch.setattr(certificates.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="neither the cryptography package nor the openssl program") as caught:
        certificate(tmp_path, ["127.0.0.1"])
    assert "pip install cryptography" in caught.value.hint
