"""What every exporter looks like: a capability record, an `export` and a `runner`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from ..models.contract import Contract
from ..models.errors import UserError, did_you_mean
from ..models.registry import Registry
from .artifact import Audit

if TYPE_CHECKING:
    import onnx
    from torch import nn

Tensors = Mapping[str, np.ndarray]
Runner = Callable[[Tensors], dict[str, np.ndarray]]
"""Runs the saved artifact: input arrays by name, in the artifact's own contract (layout, dtype) → output arrays by name."""


class Options(BaseModel):
    """What a format can be told beside its precision: `--set FORMAT.NAME=VALUE`. Formats with settings derive from it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def wants_module(self) -> bool:
        """Whether a format that is written from the ONNX graph wants the torch module too."""
        return False

    def dims(self, contract: Contract) -> tuple[dict[str, int], ...]:
        """The sizes of the free dimensions that the artifact takes; () when any in its bounds will do."""
        del contract
        return ()


@dataclass(frozen=True)
class ExporterCard:
    """What a format can do, readable without importing its packages. A precision maps to "" or to the reason why not.

    `calibrated` names the precisions whose ranges are taken from real inputs. `free` says of "batch" and "size" (H and W) whether
    they may be free, and `keeps_float` whether single layers of an integer artifact can be kept in float: "" or the reason why not.
    `taps` says by what names the format's inner values can be read: of ONNX values, of torch modules, or not at all ("").
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
    options: type[Options] = Options
    free: Mapping[str, str] = field(default_factory=lambda: {"batch": "", "size": ""})
    keeps_float: str = "its quantiser cannot leave single layers out"
    taps: Literal["values", "modules", ""] = ""

    def configured(self, given: Mapping[str, Any]) -> Options:
        """The format's options with `given` in place of defaults. Raises UserError for unknown names and values."""
        try:
            return self.options.model_validate(dict(given))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                known = list(self.options.model_fields)
                hint = did_you_mean(name, known) if known else f"{self.title} has no options"
                raise UserError(f"{self.title} has no option {name!r}", hint=hint) from None
            told = self.options.model_fields[name].description if name in self.options.model_fields else ""
            raise UserError(
                f"{self.title}: {name} = {first['input']!r}: {first['msg'].removeprefix('Value error, ')}",
                hint=told or "see --help",
            ) from None

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
    precision that wants them. `keep_float` names nodes of `graph` that an integer artifact computes in float all the same.
    `label` is what the network is called.
    """

    contract: Contract
    precision: str
    out: Path
    graph: onnx.ModelProto | None = None
    module: nn.Module | None = None
    example: tuple[Any, ...] = ()
    calibration: tuple[Tensors, ...] = ()
    options: Options = field(default_factory=Options)
    keep_float: frozenset[str] = frozenset()
    label: str = "model"


@dataclass(frozen=True)
class Exported:
    """What an exporter wrote at `request.out`: the artifact's own contract (its layout may differ from the module's) and facts.

    `route`: of a format that several converters write, which one did and why.
    """

    contract: Contract
    ops: Mapping[str, int]
    spec_version: str
    warnings: tuple[str, ...] = ()
    evaluator: str = ""
    tool_versions: Mapping[str, str] = field(default_factory=dict)
    audit: Audit | None = None
    route: str = ""


class Exporter(Protocol):
    """One format: write it, and run what was written."""

    def export(self, request: ExportRequest) -> Exported:
        """Facts about the artifact written at `request.out`. Raises UserError for what the format can't hold."""

    def runner(self, path: Path, contract: Contract) -> Runner:
        """A function that evaluates the *saved* artifact in the format's own runtime (one thread)."""


class Tapped(Protocol):
    """An exporter whose card says `taps`: its artifacts show what they compute inside."""

    def tapped(self, path: Path, contract: Contract) -> Runner:
        """Runs the saved artifact; besides its outputs, every inner value that can be told, in float32, by the name of the ONNX
        value or the path of the torch module ("layer1.0.conv1") that it belongs to; axes as they lie in the artifact."""


exporters: Registry[Exporter, ExporterCard] = Registry(
    "export format",
    modules=(
        "trimtab.export.onnx",
        "trimtab.export.tflite.exporter",
        "trimtab.export.coreml",
        "trimtab.export.openvino",
        "trimtab.export.mnn",
        "trimtab.export.ncnn",
        "trimtab.export.executorch",
    ),
)
