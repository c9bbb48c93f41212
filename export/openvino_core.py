"""The way to OpenVINO: imported without its telemetry, and with one core that lives as long as the process."""

from __future__ import annotations

import functools
import importlib
import logging
from pathlib import Path
from typing import Any

from .barred import without

MODEL = "model.xml"
"""The graph inside an artifact's folder; its weights lie beside it in `model.bin`."""


@functools.cache
def library(name: str = "openvino") -> Any:
    """The package `openvino` or `nncf`, imported so that it reports nothing.

    Both send usage events to Google Analytics from their import on, asking nobody, and leave files in the home folder; without the
    package that does it they keep silent.
    """
    loggers = logging.getLoggerClass()
    with without("openvino_telemetry"):
        package = importlib.import_module(name)
    logging.setLoggerClass(loggers)  # nncf makes its own class the one of every logger
    return package


@functools.cache
def core() -> Any:
    """The process's one OpenVINO core, never given up.

    Its CPU plugin replaces the main thread's alternate signal stack and, when the last core goes, unmaps it while it is still
    in use (2026.4): the next signal that Python handles on it, Ctrl-C for one, is then a segmentation fault.
    """
    return library().Core()


def graph_file(path: Path) -> Path:
    """The file that OpenVINO reads of an artifact: the graph in its folder, or `path` itself."""
    return path / MODEL if path.is_dir() else path
