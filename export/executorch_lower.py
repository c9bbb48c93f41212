"""A module through torch.export and XNNPACK's partitioner to an ExecuTorch program, and what became of its operators."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..models.contract import Contract
from ..models.errors import UnchangedError, UserError
from .artifact import Audit, Unplaced
from .executorch_errors import kind_of, refusal

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")
Ranges = Mapping[str, tuple[int, int]]
"""Free dimension → the least and greatest size it may have."""

_FREE = {"view", "alloc", "getitem", "sym_size", "free", "cond", "executorch_call_delegate"}
"""Calls that compute nothing: memory seen in another shape, sizes, the choice of a branch."""
_MOVES = {"view_copy", "permute_copy", "squeeze_copy", "unsqueeze_copy", "expand_copy", "slice_copy", "clone", "cat", "getitem"}
_ROUNDS = {"quantize_per_tensor", "dequantize_per_tensor", "quantize_per_channel", "dequantize_per_channel"}
_PRODUCTS = {"convolution", "linear", "addmm", "mm", "bmm"}
_CASTS = {"_to_dim_order_copy", "_to_copy"}
_FUSED = {"relu", "hardtanh", "clamp", "_native_batch_norm_legit_no_training", "getitem"}
"""What XNNPACK computes together with the operator before it, in the same integers."""
REASON = "XNNPACK's partitioner leaves it to ExecuTorch's portable kernels, which are not optimised"


@dataclass(frozen=True)
class Lowered:
    """A program's bytes, its operators by kind (delegate calls, those inside them, and portable ones), and the audit."""

    data: bytes
    ops: dict[str, int]
    audit: Audit


@contextlib.contextmanager
def unguarded() -> Iterator[None]:
    """Convolutions do not look, while they are traced, at which of torch's own CPU kernels would run them.

    They would otherwise ask whether the batch reaches 16, and torch.export would take that as a bound: a batch free up to 64 becomes
    one of 15, without a word.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.backends.nnpack.flags(enabled=False), torch.backends.mkldnn.flags(enabled=False):
            yield


def shapes_of(contract: Contract, ranges: Ranges) -> tuple[dict[int, Any], ...]:
    """The free axes of each input, as torch.export takes them; one symbol is one dimension, shared between inputs."""
    from torch.export import Dim

    dims = {symbol: Dim(symbol, min=low, max=high) for symbol, (low, high) in ranges.items()}
    return tuple({axis: dims[d] for axis, d in enumerate(spec.shape) if isinstance(d, str)} for spec in contract.inputs)


def _bracketed(shapes: tuple[Any, ...], module: nn.Module) -> tuple[Any, ...]:
    """`shapes` as `module`'s forward takes its inputs: those of a `*inputs` are one tuple."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return shapes
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:named], shapes[named:])


def program_of(
    module: nn.Module, example: tuple[Tensor, ...], contract: Contract, ranges: Ranges
) -> torch.export.ExportedProgram:
    """The `torch.export` program of `module`. Raises UserError with the line of the network that stands in the way."""
    import torch

    def exported() -> torch.export.ExportedProgram:
        with unguarded(), torch.no_grad():
            return torch.export.export(module, example, dynamic_shapes=_bracketed(shapes_of(contract, ranges), module))

    return _worded(exported, None)


def lowered(program: torch.export.ExportedProgram, contract: Contract, ranges: Ranges, *, integer: bool) -> Lowered:
    """The ExecuTorch program of an exported one, with XNNPACK taking what it can.

    Raises UserError for an operator ExecuTorch has not, for free dimensions that the network narrows, and when `integer` was asked
    and no convolution or product became so.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass

    def edged() -> Any:
        with unguarded():
            return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])

    edge = _worded(edged, program)
    inside = [graph for _, graph in _delegates(edge.exported_program())]
    planning = MemoryPlanningPass(
        alloc_graph_input=False
    )  # inputs stay where the app has them: no copy, no memory for the largest

    def finished() -> Any:
        with unguarded():
            return edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning))

    made = _worded(finished, None)
    _refuse_narrowed(made.executorch_program.execution_plan[0], contract, ranges)
    portable = _portable(made.exported_program().graph_module)
    taken = Counter(kind_of(node) for graph in inside for node in graph.nodes if node.op == "call_function")
    islands = _islands(inside, portable) if integer else {}
    products = sum(count for kind, count in (taken + portable).items() if kind in _PRODUCTS)
    if integer and products == sum(islands.get(kind, 0) for kind in _PRODUCTS):
        raise UnchangedError(
            f"int8 was asked, and none of the network's {products} convolutions and products became integer",
            hint="export fp32 or fp16",
        )
    ops = Counter({"XNNPACK delegate": len(inside)}) + portable
    ops.update({f"XNNPACK: {kind}": count for kind, count in taken.items() if kind != "getitem" and kind not in _ROUNDS})
    kinds = taken + portable
    unplaced = tuple(Unplaced(op=kind, count=count, reason=REASON) for kind, count in portable.most_common())
    audit = Audit(
        transposes=kinds["permute_copy"] + kinds["permute"],
        casts=sum(kinds[kind] for kind in _CASTS),
        islands=islands,
        delegates={"XNNPACK": unplaced},
    )
    return Lowered(bytes(made.buffer), dict(ops.most_common()), audit)


def _delegates(program: Any) -> list[tuple[str, Any]]:
    """(name, graph) of every part that a delegate took, those inside branches too."""
    from executorch.exir.lowered_backend_module import get_lowered_submodules

    return [(name, part.original_module.graph) for name, part, _ in _everywhere(get_lowered_submodules, program.graph_module)]


def _everywhere(find: Callable[[Any], Sequence[T]], module: Any) -> list[T]:
    import torch

    graphs = [child for child in module.modules() if isinstance(child, torch.fx.GraphModule)]
    return [found for graph in graphs for found in find(graph)]


def _portable(module: Any) -> Counter[str]:
    """The operators of a finished program that portable kernels compute, by kind."""

    def kernels(graph: Any) -> list[str]:
        return [kind_of(node) for node in graph.graph.nodes if node.op == "call_function"]

    return Counter(kind for kind in _everywhere(kernels, module) if kind not in _FREE)


def _islands(graphs: Sequence[Any], portable: Counter[str]) -> dict[str, int]:
    """The operators of an integer program that compute in float, by kind: XNNPACK has them in float alone, or they do not sit
    between rounded values."""
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType

    configs = [config() for config in ALL_PARTITIONER_CONFIGS]
    integer = {
        c.target_name.split(".")[0] for c in configs if ConfigPrecisionType.STATIC_QUANT in c.supported_precision_types()
    }
    found = Counter({kind: count for kind, count in portable.items() if kind not in _MOVES | _ROUNDS | _CASTS})
    for graph in graphs:
        for node in graph.nodes:
            kind = kind_of(node) if node.op == "call_function" else "getitem"
            if kind not in _MOVES | _ROUNDS and not (kind in integer and _fed_integers(node) and _rounded(node)):
                found[kind] += 1
    return dict(found.most_common())


def _fed_integers(node: Any) -> bool:
    """Whether what `node` reads comes from integers: at once, or by the operator that it is fused with."""
    before = [n for n in node.all_input_nodes if n.op == "call_function"]
    return bool(before) and all(
        kind_of(n).startswith("dequantize") or (kind_of(node) in _FUSED and kind_of(n) in _PRODUCTS | {"add", "getitem", "mul"})
        for n in before
    )


def _rounded(node: Any) -> bool:
    """Whether what `node` returns is rounded to integers: at once, or behind what it is fused with."""
    return bool(node.users) and all(
        n.op == "output" or kind_of(n).startswith("quantize") or (kind_of(n) in _FUSED and _rounded(n)) for n in node.users
    )


def _refuse_narrowed(plan: Any, contract: Contract, ranges: Ranges) -> None:
    """None, when the sizes a finished program holds reach the asked bounds. Raises UserError when some pass narrowed them."""
    for spec, place in zip(contract.inputs, plan.inputs, strict=True):
        for symbol, reached in zip(spec.shape, plan.values[place].val.sizes, strict=True):
            if isinstance(symbol, str) and reached < ranges[symbol][1]:
                raise UserError(
                    f"{symbol} of {spec.name!r} was to be free up to {ranges[symbol][1]}, and the network's own code allows at most "
                    f"{reached}",
                    hint=f"fix {symbol} in the contract, or ask for less with --set executorch.max_batch or executorch.max_side",
                )


def _worded(work: Callable[[], T], program: Any) -> T:
    """What `work` returns. Raises UserError in place of torch's and ExecuTorch's refusals."""
    try:
        return work()
    except UserError:
        raise
    except Exception as error:  # they refuse with every kind of exception
        raise refusal(error, program) from error
