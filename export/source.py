"""What is exported: a torch module or an ONNX file as a Source, with the reference that artifacts are judged against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..models import files
from ..models.contract import Contract
from ..models.errors import UserError

if TYPE_CHECKING:
    import onnx
    from torch import nn


@dataclass(frozen=True)
class Source:
    """A network to export: its contract, its reference function, and the forms that exporters read.

    For one that adapts to its input: `dynamic` says how, `branch` tells which branch answers given inputs, and `settings` are
    the values of inputs with a default that make each branch answer, one after the other; `margin` tells how far, in logits, the
    nearest of all gates is from deciding otherwise. A module that can't be traced to ONNX has no `graph`, and `untraced` says why:
    formats that are written from the module itself may hold it all the same.
    """

    label: str
    contract: Contract
    reference: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
    graph: onnx.ModelProto | None
    module: nn.Module | None
    origin: dict[str, str]
    dynamic: dict[str, Any] = field(default_factory=dict)
    branch: Callable[[Mapping[str, np.ndarray]], int] | None = None
    settings: tuple[Mapping[str, np.ndarray], ...] = ()
    margin: Callable[[Mapping[str, np.ndarray]], float] | None = None
    warnings: tuple[str, ...] = ()
    untraced: UserError | None = None

    def traced(self) -> onnx.ModelProto:
        """The ONNX graph. Raises UserError where there is none."""
        if self.graph is None:
            raise self.untraced or UserError(f"{self.label} has no ONNX graph", hint="export it to coreml or executorch")
        return self.graph


def module_source(
    module: nn.Module, contract: Contract, *, label: str, origin: dict[str, str] | None = None, seed: int = 0
) -> Source:
    """A torch module as a Source: traced once to ONNX; the module itself is the reference.

    Raises UserError for a network that decides in Python on its input's values.
    """
    import torch

    from .control_flow import refuse_decisions
    from .onnx import to_graph

    module = module.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stub lacks it
    example = tuple(torch.from_numpy(v) for v in contract.random_inputs(contract.example_dims(batch=2), seed=seed).values())
    refuse_decisions(module, example)
    graph, untraced = None, None
    try:
        graph = to_graph(module, contract, example)
    except UserError as error:
        untraced = error
    return Source(
        label,
        contract,
        torch_reference(module, contract),
        graph,
        module,
        origin or {},
        margin=gate_margin(module, contract),
        untraced=untraced,
    )


def torch_reference(module: nn.Module, contract: Contract) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """A torch module as a function of named arrays, with the contract's names."""
    import torch

    from ..models.outputs import entries

    def reference(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            returned = entries(module(*(torch.from_numpy(inputs[s.name]) for s in contract.inputs)))
        return {spec.name: tensor.numpy() for spec, tensor in zip(contract.outputs, returned.values(), strict=True)}

    return reference


def gate_margin(module: nn.Module, contract: Contract) -> Callable[[Mapping[str, np.ndarray]], float] | None:
    """How near to zero the gates' logits come for given inputs; None for a network without gates."""
    from ..models.gates import gates_of

    gates, reference = gates_of(module).values(), torch_reference(module, contract)
    if not gates:
        return None

    def margin(inputs: Mapping[str, np.ndarray]) -> float:
        reference(inputs)
        return min(float(gate.logits.abs().min()) for gate in gates if gate.logits is not None)

    return margin


def file_source(path: Path) -> Source:
    """A user's own `.onnx` file as a Source: the original file in ONNX Runtime is the reference."""
    from .onnx import OnnxExporter, contract_of, load_graph

    graph = load_graph(path)
    contract = contract_of(graph)
    return Source(path.stem, contract, OnnxExporter.runner(path, contract), graph, None, {"onnx_sha256": files.sha256(path)})
