"""What the server answers to which address: the page, the engine files, the artifacts, and the page's posts."""

from __future__ import annotations

import html
import json
import mimetypes
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from . import engines
from .desk import Desk
from .shelf import Shelf

PAGE_FILES = (
    "style.css",
    "beat.js",
    "main.js",
    "runner.js",
    "machine.js",
    "tensors.js",
    "told.js",
    "engine_ort.js",
    "engine_litert.js",
    "flatbuffer.js",
)
POLL_S = 20.0
"""How long the server keeps a page waiting for the next request."""
Id = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]


class _Post(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Last(_Post):
    id: int = Field(ge=0, le=2**53)
    answer: dict[str, Any]


class Join(_Post):
    """A page that wants to work."""


class Next(_Post):
    """A page that wants the next request; `last` is what it was asked last, with its answer."""

    runner: Id
    last: _Last | None


class State(_Post):
    """What a page tells of its life."""

    runner: Id
    state: Literal["beat", "hidden", "visible", "closing"]


@dataclass(frozen=True)
class Found:
    """A file to send, or bytes; `keep`: the browser may keep it, since its address never means anything else."""

    kind: str
    body: bytes = b""
    path: Path | None = None
    keep: bool = False
    headers: dict[str, str] = field(default_factory=dict)


class Site:
    """`local`: the engine files are here; else the page fetches them from `cdn`. `certificate`: what a phone may install."""

    def __init__(
        self, desk: Desk, shelf: Shelf, *, local: Path | None, cdn: str = engines.CDN, certificate: Path | None = None
    ) -> None:
        self.desk, self.shelf, self.local, self.cdn = desk, shelf, local, cdn
        self.certificate = certificate
        self.posts: dict[str, tuple[type[_Post], Callable[[Any], dict[str, Any] | None]]] = {
            "join": (Join, lambda _: self.desk.join()),
            "next": (Next, self._next),
            "state": (State, lambda told: {} if self.desk.note(told.runner, told.state) else None),
        }

    def get(self, name: str) -> Found | None:
        """What lies at that exact name below the token, None when nothing does."""
        if not name:
            return self._index()
        if name in PAGE_FILES:
            return Found(_kind(name), path=engines.PAGE / name)
        if name.startswith("engine/") and self.local is not None and (file := name.removeprefix("engine/")) in engines.FILES:
            return Found(_kind(file), path=self.local / file, keep=True)
        if name == "certificate.pem" and self.certificate is not None:
            return Found("application/x-x509-ca-cert", path=self.certificate)
        path = self.shelf.given(name)
        return None if path is None else Found("application/octet-stream", path=path)

    def post(self, name: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and answer of a post. A body that is not exactly what belongs there has status 400."""
        model, act = self.posts[name]
        try:
            told = model.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            return 400, {"error": f"{'.'.join(str(part) for part in first['loc']) or 'body'}: {first['msg']}"[:300]}
        answer = act(told)
        return (403, {"error": "this page does not take part"}) if answer is None else (200, answer)

    def _next(self, told: Next) -> dict[str, Any]:
        last = None if told.last is None else (told.last.id, told.last.answer)
        return self.desk.next(told.runner, last, wait_s=POLL_S)

    def _index(self) -> Found:
        nonce, away = secrets.token_urlsafe(12), "" if self.local else self.cdn
        utils = "@litertjs/wasm-utils"
        where = f"./engine/{utils}/dist/index.js" if self.local else engines.cdn_url(f"{utils}/dist/index.js", base=self.cdn)
        fields = {
            "nonce": nonce,
            "imports": json.dumps({"imports": {utils: where}}).replace("<", "\\u003c"),
            "engines": "./engine/" if self.local else self.cdn,
            "versions": html.escape(
                json.dumps({"runtimes": engines.runtime_versions(), "packages": {} if self.local else engines.versions()})
            ),
        }
        text = (engines.PAGE / "index.html").read_text(encoding="utf-8")
        for key, value in fields.items():
            text = text.replace("{{" + key + "}}", value)
        return Found("text/html; charset=utf-8", body=text.encode(), headers={"Content-Security-Policy": _policy(nonce, away)})


def _policy(nonce: str, away: str) -> str:
    """What the page may load: itself, and the CDN's engine files where they are not here."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' 'nonce-{nonce}' 'wasm-unsafe-eval' blob: {away}".strip(),
            "worker-src 'self' blob:",
            f"connect-src 'self' blob: data: {away}".strip(),
            "style-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _kind(name: str) -> str:
    """The media type: browsers refuse modules and WebAssembly under another, and systems' tables differ."""
    known = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".css": "text/css"}
    return known.get(Path(name).suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
