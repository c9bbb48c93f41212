"""The report: one self-contained HTML file made from a RunRecord, and nothing but the record."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from pydantic import ValidationError

from .models import files
from .models.errors import UserError
from .record import RunRecord
from .report_text import FILTERS
from .report_view import view

RECORD = "run.json"
REPORT = "report.html"


def render(record: RunRecord) -> str:
    """The HTML page. Equal records give equal pages; every name in it is escaped; it asks the network for nothing."""
    return page("report.html.j2", record=record, **view(record))


def page(name: str, **values: Any) -> str:
    """The page that the template `name` makes of `values`, with the report's own style sheet."""
    assets = resources.files(__package__) / "assets"
    # Block tags keep their line; every value is untrusted, so escaping is on for all of them.
    parts = FunctionLoader(lambda name: (assets / name).read_text(encoding="utf-8"))
    environment = Environment(loader=parts, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(FILTERS)
    css = Markup((assets / "report.css").read_text(encoding="utf-8"))  # noqa: S704 (our own file)
    return environment.get_template(name).render(css=css, **values)


def write_report(record: RunRecord, path: Path) -> Path:
    """`path`, holding the report (whole or not at all). A folder gets `report.html` inside."""
    return files.write_text(path / REPORT if path.is_dir() else path, render(record))


def load_record(path: Path) -> RunRecord:
    """The RunRecord of a run's folder, or of its `run.json`.

    Raises UserError when there is none, it is damaged, or it has another format version.
    """
    file = path / RECORD if path.is_dir() else path
    if not file.exists():
        what = f"{path} is not a run's folder: it holds no {RECORD}" if path.is_dir() else f"{path} does not exist"
        raise UserError(what, hint=f"give the folder of a finished run, the one with {RECORD} in it")
    data = files.read_json(file)
    version = data.get("format_version") if isinstance(data, dict) else None
    known = RunRecord.model_fields["format_version"].default
    if version != known:
        raise UserError(
            f"{file} has format_version {version!r}, this trimtab reads {known}",
            hint="open it with the trimtab that wrote it, or run again" if version else f"is it a run's {RECORD} at all?",
        )
    try:
        return RunRecord.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{file}: {where}: {first['msg']}", hint="the file is damaged or of another trimtab; run again to make it anew"
        ) from None
