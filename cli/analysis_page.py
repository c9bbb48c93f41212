"""The page of an analysis: six linked views in one HTML file that asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from .analysis_data import CELLS, deflated, page_arrays, thumbnails
from .models import files
from .report import page

if TYPE_CHECKING:
    from .compress.analyse.analysis_record import AnalysisRecord

PAGE = "analysis.html"
SCRIPTS = ("data", "state", "plots", "local", "matrices", "samples", "main")
SHOWN = ("samples", "classes", "models", "corruptions", "severities", "severity_kept", "survival", "worst_classes")


def write_analysis_page(record: AnalysisRecord, path: Path) -> Path:
    """`path`, holding the page (whole or not at all)."""
    return files.write_text(path, render_analysis(record))


def render_analysis(record: AnalysisRecord, *, cells: int = CELLS) -> str:
    """The HTML page. Equal records give equal pages; every name in it is data, never markup."""
    arrays = page_arrays(record, cells=cells)
    plotly, script = plotly_script(), own_script()
    data = {**page_info(record), "arrays": arrays.index, "pictures": thumbnails(record)}
    return page(
        "analysis.html.j2",
        info=record.info,
        title=_title(record),
        data=Markup(in_script(data)),  # noqa: S704 (JSON whose < are escaped)
        arrays=Markup(arrays.packed()),  # noqa: S704 (base 64)
        plotly=Markup(deflated(plotly.encode())),  # noqa: S704 (base 64)
        plotly_version=metadata.version("plotly"),
        script=Markup(script),  # noqa: S704 (our own file)
        style=Markup(_asset("analysis.css")),  # noqa: S704 (our own file)
        allowed=f"'{integrity(script)}' '{integrity(plotly)}'",
    )


def page_info(record: AnalysisRecord) -> dict[str, Any]:
    """The figures that the page's script reads: those of analysis.json, rounded to what a page can show."""
    info: dict[str, Any] = dict(record.info)
    worst = [{"index": fall["index"], "fall": fall["fall"], "against": fall["against"]} for fall in info["worst_samples"]]
    return rounded(
        {
            **{name: info[name] for name in SHOWN},
            "clean": info["clean_accuracy"],
            "accuracy": info["accuracy"],
            "classClean": info["class_accuracy"]["clean"],
            "classCorrupted": info["class_accuracy"]["corrupted"],
            "redundancy": info["redundancy"],
            "worst": worst,
        }
    )


def rounded(value: Any) -> Any:
    """The same, floats to five decimals."""
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value


def in_script(data: Any) -> str:
    """JSON that can stand in a script element, whatever its texts are: no <, and no line separators of JavaScript."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def plotly_script() -> str:
    """The text of plotly.min.js, as the package plotly brings it."""
    return (resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes().decode()


def own_script() -> str:
    """The page's own script: its parts in one function, so that it leaves no global names."""
    parts = "\n".join(_asset(f"analysis/{name}.js") for name in SCRIPTS)
    return f'(function () {{\n"use strict";\n{parts}}})();\n'


def integrity(text: str) -> str:
    """The script's hash as a content security policy wants it: nothing else may run in the page."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _asset(name: str) -> str:
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _title(record: AnalysisRecord) -> str:
    models = record.info["models"]
    who = models[0]["name"] if len(models) == 1 else f"{len(models)} models"
    return f"{who} on {record.info['data']}"
