"""Pieces of a network: sub-networks that are exported and judged by themselves, to find the layer that a converter gets wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from ...models.contract import Contract, TensorSpec
from ...models.errors import UserError
from ..exporter import ExportRequest, Options, Tensors, exporters
from ..parity import Probe, judge

if TYPE_CHECKING:
    import onnx
    from torch import nn

_LAYOUTS: Mapping[int, Literal["NCHW", "NC"]] = {4: "NCHW", 2: "NC"}


@dataclass(frozen=True)
class Place:
    """One node of a network: its name, its operator, the torch module it belongs to, and the user's line ("net.py:41")."""

    node: str
    op: str
    module: str = ""
    line: str = ""

    def __str__(self) -> str:
        where = " ".join(part for part in (self.module, f"({self.line})" if self.line else "") if part)
        return f"{self.op} {self.node}" + (f" in {where}" if where else "")


@dataclass(frozen=True)
class Piece:
    """A sub-network with inputs, and the outputs that the whole network has there (`probes`).

    It is a torch `module`, or an ONNX `graph` where the network was cut as one. `feeds`: what its inputs are on calibration
    samples. `places` are its nodes.
    """

    contract: Contract
    probes: tuple[Probe, ...]
    places: tuple[Place, ...]
    module: nn.Module | None = None
    graph: onnx.ModelProto | None = None
    feeds: tuple[Tensors, ...] = ()

    @property
    def example(self) -> tuple[np.ndarray, ...]:
        """One array per input."""
        return tuple(self.probes[0].inputs[spec.name] for spec in self.contract.inputs)


class Pieces(Protocol):
    """A network that can be cut: cut 0 lies before its first node, cut `last` after its last."""

    @property
    def last(self) -> int:
        """The number of the last cut."""

    def prefix(self, cut: int) -> Piece:
        """Everything before `cut`, with the network's own inputs; all values that pass the cut are its outputs."""

    def between(self, start: int, end: int) -> Piece:
        """The nodes between two cuts; its inputs are what the network computes before."""


@dataclass(frozen=True)
class Verdict:
    """Whether a piece passed; if not, whether its conversion failed or its values are wrong, and how."""

    ok: bool
    kind: Literal["", "conversion", "parity"] = ""
    message: str = ""
    sqnr_db: float | None = None


@dataclass(frozen=True)
class Target:
    """What pieces are exported to."""

    format: str
    precision: str
    options: Options = field(default_factory=Options)


def convert_and_judge(piece: Piece, target: Target, folder: Path) -> Verdict:
    """The verdict on a piece exported to `folder`: by the format's own converter and runtime, against the gate of the precision.

    Nothing is raised for what a converter refuses. The function and its arguments can be handed to another process.
    """
    entry = exporters.entry(target.format)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"piece{entry.card.suffix}"
    try:
        request = ExportRequest(
            piece.contract,
            target.precision,
            path,
            graph=graph_of(piece) if entry.card.source == "onnx" else None,
            module=piece.module,
            example=_tensors(piece.example),
            calibration=piece.feeds,
            options=target.options,
        )
        exported = entry.value.export(request)
        run = entry.value.runner(path, exported.contract)  # a file that its own runtime rejects is a failed conversion
    except UserError as error:
        return Verdict(ok=False, kind="conversion", message=error.what)
    except Exception as error:  # converters refuse with every kind of exception
        first = (str(error).splitlines() or [""])[0][:300]
        return Verdict(ok=False, kind="conversion", message=f"{type(error).__name__}: {first}")
    parity = judge(
        run,
        piece.probes,
        module=piece.contract,
        artifact=exported.contract,
        precision=target.precision,
        inputs="real",
        evaluator=exported.evaluator,
    )
    return Verdict(ok=parity.ok, kind="" if parity.ok else "parity", message=parity.reason, sqnr_db=parity.sqnr_db)


def graph_of(piece: Piece) -> onnx.ModelProto:
    """The piece as an ONNX graph of its own. Raises UserError when it can't be traced."""
    import onnx

    from ..onnx import to_graph

    if piece.graph is not None:
        graph = onnx.ModelProto()
        graph.CopyFrom(piece.graph)
        return graph
    if piece.module is None:
        raise ValueError("a piece is a module or a graph")
    return to_graph(piece.module, piece.contract, _tensors(piece.example))


def spec_of(name: str, shapes: Sequence[tuple[int, ...]], dtype: np.dtype[Any]) -> TensorSpec:
    """A tensor that was seen in these shapes: axes that differ between them are free."""
    sizes = [
        seen[0] if len(set(seen)) == 1 else "N" if axis == 0 else f"D{axis}"
        for axis, seen in enumerate(zip(*shapes, strict=True))
    ]
    layout = _LAYOUTS.get(len(sizes), "other")
    return TensorSpec.model_validate({"name": name, "shape": tuple(sizes), "dtype": str(dtype), "layout": layout})


def _tensors(arrays: Sequence[np.ndarray]) -> tuple[Any, ...]:
    import torch

    return tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
