"""The libraries of the extra "isp", imported when they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np

from ..errors import UserError

PURPOSES = {
    "rawpy": "reads cameras' RAW files",
    "colour_demosaicing": "renders mosaics classically",
    "colour": "measures colour differences",
}
PACKAGES = {"colour": "colour-science"}
"""Names under which they are installed, where those differ."""


def library(name: str) -> ModuleType:
    """The module of this name. Raises UserError, with the line that installs it, when it is missing or doesn't load."""
    try:
        with np.printoptions():  # colour sets numpy's printing to that of 1.13 for the whole process
            return importlib.import_module(name)
    except ImportError as error:
        package = PACKAGES.get(name, name.replace("_", "-"))
        raise UserError(
            f"{package}, which {PURPOSES[name]}, is not installed ({error})", hint="pip install 'trimtab[isp]'"
        ) from None
