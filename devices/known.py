"""The user's devices: devices.toml in the config folder, and what `--on` may say."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import ValidationError

from ..export.manifest import UserError, did_you_mean, write_text
from .device import Device, DeviceConfig, devices

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,40}")


def config_path() -> Path:
    """Where devices.toml lies: $XDG_CONFIG_HOME/trimtab, or ~/.config/trimtab."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "trimtab" / "devices.toml"


def known_devices() -> dict[str, dict[str, Any]]:
    """Name → its table. Raises UserError when the file is damaged."""
    path = config_path()
    try:
        tables = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(
            f"{path} can't be read: {error}", hint="mend it, or remove it and `trimtab devices add` again"
        ) from None
    for name, table in tables.items():
        if not isinstance(table, dict) or "kind" not in table:
            raise UserError(f'{path}: [{name}] has no kind = "…"', hint="one of " + ", ".join(devices.names()))
    return tables


def check_config(kind: str, fields: Mapping[str, Any]) -> DeviceConfig:
    """The typed config of a device. Raises UserError for an unknown kind or field, or a value out of its range."""
    model = devices.entry(kind).card.config
    try:
        return model.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        if first["type"] == "extra_forbidden":
            raise UserError(
                f"a device of kind {kind!r} has no {where!r}", hint=did_you_mean(where, model.model_fields)
            ) from None
        if first["type"] == "missing":
            raise UserError(f"a device of kind {kind!r} needs {where!r}", hint=f"--{where.replace('_', '-')} …") from None
        said = first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"{where} = {first['input']!r} won't do: {said}", hint=f"see `trimtab devices add --help` ({kind})"
        ) from None


def open_device(spec: str, settings: Mapping[str, Mapping[str, Any]] | None = None) -> Device:
    """The device that `--on` names: one of devices.toml, or a kind by itself, with its argument after a colon.

    `settings` override what stands there, by kind. Raises UserError.
    """
    kind, fields = resolve(spec)
    return devices.get(kind)(spec, check_config(kind, {**fields, **(settings or {}).get(kind, {})}))


def resolve(spec: str) -> tuple[str, dict[str, Any]]:
    """The kind and the fields of the device that `--on` names. Raises UserError."""
    known = known_devices()
    if spec in known:
        table = dict(known[spec])
        kind = table.pop("kind")
        devices.entry(kind)
        return kind, table
    kind, colon, argument = spec.partition(":")
    if kind not in devices.names():
        raise UserError(f"unknown device {spec!r}", hint=did_you_mean(spec, [*known, *devices.names()]))
    card = devices.entry(kind).card
    if colon and not card.argument:
        raise UserError(f"{spec!r}: {kind!r} takes nothing after a colon", hint=f"--on {kind}")
    return kind, {card.argument: argument} if colon else {}


def add_device(name: str, kind: str, fields: Mapping[str, Any], *, force: bool = False) -> Path:
    """devices.toml with the device in it; what stood there, comments too, is kept. Raises UserError."""
    if not NAME.fullmatch(name) or name in devices.names():
        raise UserError(
            f"{name!r} is no name for a device",
            hint="letters, digits, - _ and . (it is typed after --on), and none of the kinds: " + ", ".join(devices.names()),
        )
    check_config(kind, fields)
    path = config_path()
    if name in known_devices() and not force:
        raise UserError(f"{path} has a device {name!r} already", hint="another name, or --force to replace it")
    document = tomlkit.parse(path.read_text()) if path.exists() else tomlkit.document()
    table = tomlkit.table()
    table.add("kind", kind)
    for key, value in fields.items():
        table.add(key, list(value) if isinstance(value, tuple) else value)
    document[name] = table
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_text(path, tomlkit.dumps(document))


def remove_device(name: str) -> Path:
    """devices.toml without the device. Raises UserError when it has none of that name."""
    known = known_devices()
    if name not in known:
        raise UserError(f"{config_path()} has no device {name!r}", hint=did_you_mean(name, known))
    document = tomlkit.parse(config_path().read_text())
    del document[name]
    return write_text(config_path(), tomlkit.dumps(document))
