"""`trimtab devices`: the user's devices, what they need, and what is wrong with them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .console import output
from .options import Force

devices = typer.Typer(help="Devices and runtimes to measure on.", no_args_is_help=True, rich_markup_mode=None)


@devices.command("ls")
def devices_ls() -> None:
    """Your devices, the kinds there are, and the runtimes of this machine."""
    from .devices.device import devices as kinds
    from .devices.known import config_path, known_devices
    from .devices.runtime import runtimes

    own = known_devices()
    rows = [
        (name, table["kind"], ", ".join(f"{k} = {v}" for k, v in table.items() if k != "kind")) for name, table in own.items()
    ]
    if rows:
        output.table(f"yours, in {config_path()}", ("name", "kind", "settings"), rows)
        output.say()
    shown = [(_usage(e.name, e.card.argument), e.card.title, e.card.note) for e in kinds]
    output.table("kinds, for --on and `devices add`", ("name", "what", ""), shown)
    output.say()
    here = [
        (e.name, e.card.title, ", ".join(e.card.formats), "installed" if not e.card.missing() else e.card.install)
        for e in runtimes
    ]
    output.table("runtimes here", ("name", "what", "formats", "state"), here)
    output.result({"own": own, "devices": kinds.names(), "runtimes": [e.name for e in runtimes]})


def _usage(name: str, argument: str) -> str:
    return f"{name}:{argument.upper()}" if argument else name


@devices.command("add")
def devices_add(
    name: Annotated[str, typer.Argument(help="What you will type after --on: pi5, pixel, …")],
    kind: Annotated[str, typer.Argument(help="ssh, adb, browser, qemu or local.")],
    target: Annotated[str | None, typer.Argument(help="ssh: user@host; adb: the serial; qemu: the core.")] = None,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set", help="A setting of that kind as NAME=VALUE (repeatable): python=/opt/venv/bin/python, cores=2,3."
        ),
    ] = [],
    force: Force = False,
) -> None:
    """A device written into devices.toml, so that `profile --on NAME` finds it."""
    from .devices.device import devices as kinds
    from .devices.known import add_device
    from .models.errors import UserError

    card = kinds.entry(kind).card
    fields = _fields(settings)
    if target is not None:
        if not card.argument:
            raise UserError(f"a device of kind {kind!r} takes no {target!r}", hint="leave it out, or --set NAME=VALUE")
        fields[card.argument] = target
    path = add_device(name, kind, fields, force=force)
    output.say(f"{name} is in {path}\nlook at it: trimtab devices doctor {name}")
    output.result({"name": name, "kind": kind, **fields, "file": str(path)})


def _fields(settings: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs with Python's literals, and lists of numbers as 2,3."""
    from .loading import keywords

    found: dict[str, Any] = {}
    for key, value in keywords(settings, "--set").items():
        found[key] = (
            list(value) if isinstance(value, tuple) else [value] if key == "cores" and isinstance(value, int) else value
        )
    return found


@devices.command("remove")
def devices_remove(name: Annotated[str, typer.Argument(help="The device's name in devices.toml.")]) -> None:
    """A device taken out of devices.toml."""
    from .devices.known import remove_device

    output.say(f"{name} is no longer in {remove_device(name)}")
    output.result({"removed": name})


@devices.command("doctor")
def devices_doctor(
    names: Annotated[list[str] | None, typer.Argument(help="Devices to look at, as after --on. Default: this machine.")] = None,
) -> int:
    """What works, what is missing, and the command that mends it, step by step. Exit code 1 when a device named can't be used."""
    from .devices.doctor import doctor, examine

    findings = [finding for name in names for finding in examine(name)] if names else list(doctor())
    for f in findings:
        output.say(f"{f.state:<8} {f.subject}: {f.detail}" + (f"\n         → {f.mend}" if f.mend else ""))
    output.result([vars(f) for f in findings])
    return 1 if names and any(f.state == "broken" for f in findings) else 0


@devices.command("setup")
def devices_setup(
    what: Annotated[str | None, typer.Argument(help="browser or arm64. Default: say what can be set up.")] = None,
) -> None:
    """Fetches or builds, once and into the cache folder, what a kind of device needs on this machine."""
    from .devices.device import devices as kinds
    from .models.errors import UserError, did_you_mean

    steps = {entry.card.set_up_name: entry.card for entry in kinds if entry.card.set_up}
    if what is None:
        output.table("", ("name", "for"), [(name, card.title) for name, card in steps.items()])
        return
    if what not in steps:
        raise UserError(f"nothing is set up as {what!r}", hint=did_you_mean(what, steps))
    set_up = steps[what].set_up
    assert set_up is not None  # noqa: S101 (only those are listed)
    set_up(output.say)
    output.result({"set_up": what})
