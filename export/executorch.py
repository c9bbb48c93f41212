"""ExecuTorch: a torch module through torch.export and XNNPACK to a `.pte` program, run back in ExecuTorch's own runtime.

A program's inputs and outputs have no names: they come in the contract's order.
"""

from __future__ import annotations

import copy
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from ..models import files
from ..models.contract import Contract
from ..models.errors import UserError
from .exporter import Exported, ExporterCard, ExportRequest, Options, Runner, Tensors, exporters
from .feeding import fed
from .noise import hushed

if TYPE_CHECKING:
    from torch import Tensor, nn


class ExecuTorchOptions(Options):
    """How far free dimensions reach. The runtime takes memory for the largest input at the first run, however small that one is."""

    max_batch: int = Field(default=8, ge=2, le=1024, description="the largest batch, where it is free (2…1024)")
    max_side: int = Field(default=512, ge=64, le=4096, description="the greatest height, width or other free size (64…4096)")


CARD = ExporterCard(
    title="ExecuTorch",
    suffix=".pte",
    source="module",
    precisions={"fp32": "", "fp16": "", "int8": ""},
    defaults=("fp32",),
    packages=("executorch", "torchao"),
    extra="executorch",
    runtimes=("executorch",),
    calibrated=("int8",),
    options=ExecuTorchOptions,
    keeps_float="its quantiser works on the torch module, where nodes of the ONNX graph have no place",
)
_LEAST_SIDE = 8
_HALF_WARNING = (
    "XNNPACK keeps the weights of a half-precision program in float32: it computes in float16, and the file is no smaller"
)


class ExecuTorchExporter:
    """Writes `.pte` programs for XNNPACK and runs them with one thread.

    "fp16" computes in half precision between float32 doors; "int8" is static (see `executorch_int8`).
    """

    def export(self, request: ExportRequest) -> Exported:
        """Facts about the program written at `request.out`.

        Raises UserError for a request without a module, a routed network, decisions on the values of inputs, operators that
        ExecuTorch has not (with the module and the line they come from), free dimensions that the network fixes, and int8 where
        nothing becomes integer.
        """
        CARD.refuse(request.precision)
        if request.module is None:
            raise UserError(
                "ExecuTorch programs are written from a torch module, and this request has only an ONNX graph",
                hint="start from a checkpoint or bundle, or export the graph to onnx, tflite or mnn",
            )
        _refuse_routed(request.module)
        _refuse_types(request.contract)
        options = request.options if isinstance(request.options, ExecuTorchOptions) else ExecuTorchOptions()
        bounds = ranges_of(request.contract, options, request.example)
        with hushed():
            made, dtype = _made(request, bounds)
        files.write_bytes(request.out, made.data)
        return Exported(
            contract=request.contract,
            ops=made.ops,
            spec_version=f"ExecuTorch program, written by {version('executorch')}",
            warnings=tuple(_warnings(request, bounds, made)),
            evaluator=f"ExecuTorch {version('executorch')} runtime, XNNPACK, 1 thread{dtype}",
            tool_versions={name: version(name) for name in ("executorch", "torchao", "torch")},
            audit=made.audit,
        )

    def runner(self, path: Path, contract: Contract) -> Runner:
        """Evaluates the saved program. Raises UserError when the runtime rejects it."""
        return Session(path, contract)


exporters.register("executorch", CARD)(ExecuTorchExporter())


def _refuse_routed(module: nn.Module) -> None:
    from ..models.routed import RoutedNet

    if isinstance(module, RoutedNet):
        raise UserError(
            "ExecuTorch programs of networks that pick a branch for each image are not written",
            hint="export it to onnx, tflite or coreml, or one branch of it to executorch",
        )


def _refuse_types(contract: Contract) -> None:
    """None, unless a tensor has a type that the runtime's Python door does not take."""
    for spec in (*contract.inputs, *contract.outputs):
        if spec.dtype == "uint16":
            raise UserError(
                f"tensor {spec.name!r} is uint16, which ExecuTorch's runtime does not take",
                hint="give the network a float32 input and let the app convert, or export it to onnx, tflite or openvino",
            )


def ranges_of(contract: Contract, options: ExecuTorchOptions, example: tuple[Any, ...] = ()) -> dict[str, tuple[int, int]]:
    """(least, greatest) of every free dimension: 1…max_batch along the first axis, 8…max_side elsewhere, wider when the example is."""
    from .tracing import example_sides

    sides = example_sides(contract, example)
    found = {}
    for symbol in contract.symbols:
        first = any(spec.shape and spec.shape[0] == symbol for spec in contract.inputs)
        side = sides.get(symbol, _LEAST_SIDE)
        found[symbol] = (1, options.max_batch) if first else (min(_LEAST_SIDE, side), max(options.max_side, side))
    return found


def _made(request: ExportRequest, bounds: dict[str, tuple[int, int]]) -> tuple[Any, str]:
    """(the lowered program, what to add to the evaluator's name)."""
    import torch

    from .executorch_int8 import quantised
    from .executorch_lower import lowered, program_of
    from .tracing import example_sides, examples, tensors_only

    contract, half, integer = request.contract, request.precision == "fp16", request.precision == "int8"
    dims = example_sides(contract, request.example)
    dims |= {symbol: 2 for symbol, (low, _) in bounds.items() if low == 1}  # not 1: torch.export takes a batch of 1 as fixed
    example = examples(contract, dims)
    module = copy.deepcopy(request.module).eval()  # type: ignore[union-attr]  # the exporter has looked
    module = module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # channels_last crashes the lowering
    module = tensors_only(module, example, contract, title="ExecuTorch")
    if half:
        module = half_inside(module).eval()
    if integer:
        module = quantised(module, example, contract, bounds, feeds=request.calibration)
    program = program_of(module, example, contract, bounds)
    return lowered(program, contract, bounds, integer=integer), ", computing in float16" if half else ""


def half_inside(module: nn.Module) -> nn.Module:
    """`module` (changed to float16) between doors that cast float inputs to float16 and float outputs to float32."""
    import torch

    class Half(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module.half()

        def forward(self, *inputs: Tensor) -> Any:
            returned = self.module(*(x.half() if x.is_floating_point() else x for x in inputs))
            if isinstance(returned, torch.Tensor):
                return returned.float() if returned.is_floating_point() else returned
            return tuple(y.float() if y.is_floating_point() else y for y in returned)

    return Half()


def _warnings(request: ExportRequest, bounds: dict[str, tuple[int, int]], made: Any) -> list[str]:
    found = []
    if bounds:
        shown = ", ".join(f"{symbol} {low}…{high}" for symbol, (low, high) in bounds.items())
        found.append(
            f"free dimensions ({shown}): the runtime takes memory for the largest at its first run; set the bounds with "
            "--set executorch.max_batch and executorch.max_side, or fix the dimensions in the contract"
        )
    casts = ("_to_dim_order_copy", "_to_copy")
    left = {one.op: one.count for one in made.audit.delegates["XNNPACK"] if one.op not in casts}
    if left:
        shown = ", ".join(f"{op} ×{count}" for op, count in left.items())
        found.append(f"XNNPACK leaves {shown} to ExecuTorch's portable kernels, which are many times slower")
    if made.audit.islands:
        shown = ", ".join(f"{op} ×{count}" for op, count in made.audit.islands.items())
        found.append(f"these compute in float inside the int8 program: {shown}")
    if request.precision == "fp16":
        found.append(_HALF_WARNING)
    return found


def one_thread(count: int = 1) -> int:
    """The threads of ExecuTorch's pool after `count` were asked for. The pool belongs to the whole process, not to a program."""
    from executorch.extension.pybindings import portable_lib

    if portable_lib._threadpool_get_thread_count() != count:
        portable_lib._unsafe_reset_threadpool(count)
    return int(portable_lib._threadpool_get_thread_count())


class Session:
    """A loaded program, called with input arrays by name."""

    def __init__(self, path: Path, contract: Contract) -> None:
        self.path, self.contract = path, contract
        if not path.is_file():
            raise UserError(f"{path} does not exist", hint="export again")
        try:
            with hushed():
                from executorch.runtime import Runtime, Verification

                one_thread()
                self.program = Runtime.get().load_program(path, verification=Verification.InternalConsistency)
                self.method: Any = self.program.load_method("forward")
        except (RuntimeError, ValueError) as error:
            raise UserError(f"ExecuTorch cannot load {path.name}: {error}", hint="the file is damaged; export again") from None
        facts = self.method.metadata
        if (facts.num_inputs(), facts.num_outputs()) != (len(contract.inputs), len(contract.outputs)):
            raise UserError(
                f"{path.name} has {facts.num_inputs()} inputs and {facts.num_outputs()} outputs, the contract {len(contract.inputs)} "
                f"and {len(contract.outputs)}",
                hint="use the contract beside it",
            )

    def __call__(self, tensors: Tensors) -> dict[str, np.ndarray]:
        """The outputs by name. Raises UserError for inputs that are not the contract's, or larger than the program was made for."""
        import torch

        arrays = fed(self.contract.inputs, tensors, file=self.path.name)
        try:
            with hushed() as heard:
                outputs = self.method.execute([torch.from_numpy(arrays[spec.name]) for spec in self.contract.inputs])
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {'×'.join(map(str, array.shape))}" for name, array in arrays.items())
            told = next((line for line in heard.lines() if "Attempted to resize" in line), str(error))
            raise UserError(
                f"ExecuTorch cannot run {self.path.name} on {shapes}: {told.partition('] ')[2] or told}",
                hint="the program's bounds are in its warnings; raise them with --set executorch.max_batch or executorch.max_side",
            ) from None
        return {spec.name: np.array(value.numpy()) for spec, value in zip(self.contract.outputs, outputs, strict=True)}
