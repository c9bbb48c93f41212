"""The HTTP server: what gets in, how large and how slow it may be. What is answered stands in site.py.

Every address begins with a token that is made anew for each run, on loopback too: a page of another site can make a browser ask
127.0.0.1. Requests whose Host or Origin is another than the server's are refused as well.
"""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from .site import Found, Site

LARGEST_POST = 8 << 20
"""Bytes of a post that is no tensor: ten thousand times, or a few thousand operations, take less than 1 MiB."""
IDLE_S = 60.0
"""A connection on which nothing moves for so long is closed; a page's poll lasts 20 s."""
PROVE_S = 15.0
"""A connection that has shown no token after so long is closed."""
CONNECTIONS = 64
SMALL_BODY = 1 << 16
LOOK_S = 0.1
_SAFE = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class PageServer(ThreadingHTTPServer):
    """Serves a site from threads of its own until it is closed. `hosts`: the addresses that requests may name."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, site: Site, *, bind: str, port: int, tls: tuple[Path, Path] | None = None) -> None:
        super().__init__((bind, port), _Handler)
        self.site, self.token = site, secrets.token_urlsafe(16)
        self.port, self.scheme = self.server_address[1], "https" if tls else "http"
        self.hosts = {f"{name}:{self.port}" for name in ("127.0.0.1", "localhost")}
        self._unproved: dict[socket.socket, float] = {}
        self._lock, self._count = threading.Lock(), 0
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_cert_chain(*tls)
            # the handshake is the handler's thread's to do: a client that won't finish it must not stop the others
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self.serve_forever, args=(LOOK_S,), name="trimtab-page", daemon=True)

    def start(self) -> None:
        """Serves from now on."""
        self._thread.start()

    def allow(self, host: str) -> None:
        """Requests may name this host, too."""
        self.hosts.add(f"{host}:{self.port}")

    def url(self, host: str = "127.0.0.1") -> str:
        """The page's address."""
        return f"{self.scheme}://{host}:{self.port}/{self.token}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection, unless there are too many already."""
        with self._lock:
            full = self._count >= CONNECTIONS
            if not full:
                self._count += 1
                self._unproved[request] = time.monotonic() + PROVE_S
        if full:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The connection, from its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._count -= 1
                self._unproved.pop(request, None)

    def proved(self, request: Any) -> None:
        """The connection has shown the token."""
        with self._lock:
            self._unproved.pop(request, None)

    def service_actions(self) -> None:
        """Closes the connections that took too long to show a token; called every LOOK_S."""
        now = time.monotonic()
        with self._lock:
            late = [request for request, until in self._unproved.items() if until < now]
        for request in late:
            try:
                request.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it has gone by itself

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: what a broken connection or a port scan brings is no error of ours."""

    def close(self) -> None:
        """No more requests."""
        self.shutdown()
        self.server_close()
        self._thread.join(timeout=5)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "trimtab", ""
    error_message_format, error_content_type = "%(code)d %(message)s\n", "text/plain"
    timeout = IDLE_S
    disable_nagle_algorithm = True  # a request is small and somebody waits for it
    server: PageServer

    def setup(self) -> None:
        super().setup()
        if isinstance(self.request, ssl.SSLSocket):
            self.request.do_handshake()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Nothing: addresses hold the token."""

    def do_GET(self) -> None:
        name = self._name()
        if name is None:
            return
        found = self.server.site.get(name)
        if found is None:
            self._refuse(404)
        else:
            self._send(found)

    def do_POST(self) -> None:
        name = self._name()
        if name is None:
            return
        length = self._length()
        if length is None:
            self._refuse(411)
        elif name.startswith("out/"):
            self._bring(name.removeprefix("out/"), length)
        elif name not in self.server.site.posts:
            self._refuse(404)
        elif length > LARGEST_POST:
            self._refuse(413)
        elif self.headers.get_content_type() != "application/json":
            self._refuse(415)
        else:
            body = self.rfile.read(length)
            if len(body) == length:
                status, answer = self.server.site.post(name, body)
                self._reply(status, Found("application/json", body=json.dumps(answer).encode()))

    def _name(self) -> str | None:
        """What is asked for below the token; None when the request was refused."""
        server, host = self.server, self.headers.get("Host", "")
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site", "none")
        token, slash, rest = self.path.partition("?")[0].removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode("utf-8", "replace"), server.token.encode()):
            self._refuse(404)
            return None
        foreign = origin is not None and origin != f"{server.scheme}://{host}"
        if host not in server.hosts or foreign or (site not in ("none", "same-origin") and self.command != "GET"):
            self._refuse(403)
            return None
        if not slash:
            self._refuse(404)
            return None
        server.proved(self.request)
        return unquote(rest, errors="replace")

    def _length(self) -> int | None:
        told = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (told.isascii() and told.isdigit() and len(told) < 12):
            return None
        return int(told)

    def _bring(self, name: str, length: int) -> None:
        """A tensor that the page was asked to bring, written to the file that is meant for it."""
        path = self.server.site.shelf.may_bring(name, length)
        if path is None:
            return self._refuse(404)
        partial, left = path.with_name(f"{path.name}.{threading.get_ident()}.part"), length
        with partial.open("wb") as file:
            while left:
                piece = self.rfile.read(min(left, 1 << 20))
                if not piece:
                    break
                file.write(piece)
                left -= len(piece)
        if left:
            partial.unlink()
            self.close_connection = True
            return None
        partial.replace(path)
        self.server.site.shelf.brought(name, path)
        return self._reply(200, Found("application/json", body=b"{}"))

    def _send(self, found: Found) -> None:
        """A file or bytes; large engine files compressed where the browser takes that."""
        if found.path is None:
            return self._reply(200, found)
        small = found.path.with_name(f"{found.path.name}.gz")
        squeezed = found.keep and "gzip" in self.headers.get("Accept-Encoding", "") and small.is_file()
        try:
            file = (small if squeezed else found.path).open("rb")
        except OSError:
            return self._refuse(404)
        with file:
            size = file.seek(0, 2)
            file.seek(0)
            self._head(200, found, size, {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"} if squeezed else {})
            shutil.copyfileobj(file, self.wfile, 1 << 18)
        return None

    def _reply(self, status: int, found: Found) -> None:
        self._head(status, found, len(found.body), {})
        self.wfile.write(found.body)

    def _head(self, status: int, found: Found, size: int, more: dict[str, str]) -> None:
        self.send_response(status)
        keep = "private, max-age=86400, immutable" if found.keep else "no-store"
        fields = {
            "Content-Type": found.kind,
            "Content-Length": str(size),
            "Cache-Control": keep,
            **_SAFE,
            **found.headers,
            **more,
        }
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()

    def _refuse(self, status: int) -> None:
        """A refusal ends the connection. A small body is read first: closing on unread bytes can lose the client its answer."""
        self.close_connection = True
        length = self._length()
        if length is not None and length <= SMALL_BODY:
            self.rfile.read(length)
        self.send_error(status)
