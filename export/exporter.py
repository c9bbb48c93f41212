"""What every exporter looks like: a capability record, an `export` and a `runner`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from ..models.contract import Contract
from ..models.errors import UserError
from ..models.registry import Registry

if TYPE_CHECKING:
    import onnx
    from torch import nn

Tensors = Mapping[str, np.ndarray]
Runner = Callable[[Tensors], dict[str, np.ndarray]]
"""Runs the saved artifact: input arrays by name, in the artifact's own contract (layout, dtype) → output arrays by name."""


@dataclass(frozen=True)
class ExporterCard:
    """What a format can do, readable without importing its packages. A precision maps to "" or to the reason why not.

    `calibrated` names the precisions whose ranges are taken from real inputs.
    """

    title: str
    suffix: str
    source: Literal["module", "onnx"]
    precisions: Mapping[str, str]
    defaults: tuple[str, ...]
    packages: tuple[str, ...]
    extra: str
    runtimes: tuple[str, ...] = ()
    calibrated: tuple[str, ...] = ()

    def missing(self) -> tuple[str, ...]:
        """The importable packages that this format needs and that are not installed."""
        return tuple(name for name in self.packages if importlib.util.find_spec(name) is None)

    def refuse(self, precision: str) -> None:
        """None, when `precision` can be written here. Raises UserError with the reason when not."""
        if precision not in self.precisions:
            raise UserError(f"{self.title} has no precision {precision!r}", hint="one of " + ", ".join(self.precisions))
        if reason := self.precisions[precision]:
            able = ", ".join(name for name, why in self.precisions.items() if not why)
            raise UserError(f"{self.title} cannot be written as {precision}: {reason}", hint=f"use {able}")
        if gone := self.missing():
            raise UserError(f"{self.title} needs {', '.join(gone)}, not installed", hint=f"pip install 'trimtab[{self.extra}]'")


@dataclass(frozen=True)
class ExportRequest:
    """One export to do. `module` is in eval mode with BatchNorm folded; `graph` is the slimmed ONNX graph of the same function.

    A user's own `.onnx` file comes with `module=None`. `calibration` holds feeds of real inputs, in the contract's layout, for a
    precision that wants them.
    """

    contract: Contract
    precision: str
    out: Path
    graph: onnx.ModelProto | None = None
    module: nn.Module | None = None
    example: tuple[Any, ...] = ()
    calibration: tuple[Tensors, ...] = ()


@dataclass(frozen=True)
class Exported:
    """What an exporter wrote at `request.out`: the artifact's own contract (its layout may differ from the module's) and facts."""

    contract: Contract
    ops: Mapping[str, int]
    spec_version: str
    warnings: tuple[str, ...] = ()
    evaluator: str = ""
    tool_versions: Mapping[str, str] = field(default_factory=dict)


class Exporter(Protocol):
    """One format: write it, and run what was written."""

    def export(self, request: ExportRequest) -> Exported:
        """Facts about the artifact written at `request.out`. Raises UserError for what the format can't hold."""

    def runner(self, path: Path, contract: Contract) -> Runner:
        """A function that evaluates the *saved* artifact in the format's own runtime (one thread)."""


exporters: Registry[Exporter, ExporterCard] = Registry(
    "export format",
    modules=("trimtab.export.onnx", "trimtab.export.tflite.exporter", "trimtab.export.coreml"),
)
