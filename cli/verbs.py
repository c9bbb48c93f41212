"""The verbs. Each is a thin shell: heavy packages are imported when the verb runs."""

from __future__ import annotations

import typer

from . import (
    verbs_analyze,
    verbs_aspects,
    verbs_compare,
    verbs_compress,
    verbs_convert,
    verbs_devices,
    verbs_export,
    verbs_formats,
    verbs_info,
    verbs_isp,
    verbs_profile,
    verbs_run,
)


def register(app: typer.Typer) -> None:
    """None; `app` has its verbs afterwards (once, however often it is called)."""
    if app.registered_commands:
        return
    for verb in (
        verbs_run.demo,
        verbs_run.run,
        verbs_info.inspect,
        verbs_analyze.analyze,
        verbs_compress.train,
        verbs_compress.compress,
        verbs_convert.export,
        verbs_formats.formats,
        verbs_export.evaluate,
        verbs_profile.profile,
        verbs_compare.compare,
        verbs_run.report,
        verbs_info.convert_checkpoint,
    ):
        app.command(name=verb.__name__.replace("_", "-"))(verb)
    app.add_typer(verbs_aspects.aspects, name="aspects")
    app.add_typer(verbs_isp.isp, name="isp")
    app.add_typer(verbs_info.models, name="models")
    app.add_typer(verbs_info.recipes, name="recipes")
    app.add_typer(verbs_devices.devices, name="devices")
