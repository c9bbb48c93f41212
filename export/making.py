"""One artifact made: written, run back and judged. The order is plain data, so that another process can take it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..models.contract import Contract
from .artifact import Parity
from .exporter import Exported, ExportRequest, Options, Runner, Tensors, exporters
from .parity import Probe, judge

if TYPE_CHECKING:
    import onnx
    from torch import nn


@dataclass(frozen=True)
class Order:
    """What to write where, and the probes to judge it on. `doubt` is added to the reason of a failed verdict; `name` is the
    network's."""

    format: str
    precision: str
    path: Path
    contract: Contract
    graph: onnx.ModelProto | None
    module: nn.Module | None
    probes: tuple[Probe, ...]
    inputs: Literal["real", "random"]
    options: Options
    feeds: tuple[Tensors, ...] = ()
    keep_float: frozenset[str] = frozenset()
    doubt: str = ""
    name: str = "model"

    @property
    def label(self) -> str:
        """Format and precision, in words."""
        return f"{self.format} {self.precision}"


@dataclass(frozen=True)
class Product:
    """What was written, and the verdict on the file as it was saved."""

    exported: Exported
    parity: Parity


def make(order: Order) -> Product:
    """The artifact at `order.path`, judged. Raises UserError for what the format can't hold."""
    import onnx

    entry = exporters.entry(order.format)
    graph = None
    if order.graph is not None:
        graph = onnx.ModelProto()
        graph.CopyFrom(order.graph)  # exporters may change theirs
    request = ExportRequest(
        order.contract,
        order.precision,
        order.path,
        graph=graph,
        module=order.module,
        calibration=order.feeds,
        options=order.options,
        keep_float=order.keep_float,
        label=order.name,
    )
    exported = entry.value.export(request)
    parity = judge(
        _lazy(entry.value.runner, order.path, exported.contract),
        order.probes,
        module=order.contract,
        artifact=exported.contract,
        precision=order.precision,
        inputs=order.inputs,
        evaluator=exported.evaluator or entry.card.title,
    )
    if order.doubt and not parity.ok:
        parity = parity.model_copy(update={"reason": f"{parity.reason}; {order.doubt}"})
    return Product(exported, parity)


def _lazy(runner: Callable[[Path, Contract], Runner], path: Path, contract: Contract) -> Runner:
    """A runner that loads the artifact at its first call, so that a file its runtime rejects is a failed parity, not a crash."""
    loaded: list[Runner] = []

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        if not loaded:
            loaded.append(runner(path, contract))
        return loaded[0](inputs)

    return run
