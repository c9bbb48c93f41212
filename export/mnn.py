"""MNN: the ONNX graph through MNN's own converter, run back in MNN on the CPU.

Never run the wheel's console scripts `mnnconvert` and `mnnquant`: they install a telemetry package with pip and report each
conversion, with the machine's id, to a server of the vendor. The native module below them (`_tools`) does neither.
"""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..models import files
from ..models.contract import Contract
from ..models.errors import UnchangedError, UserError
from .artifact import Audit
from .exporter import Exported, ExporterCard, ExportRequest, Runner, Tensors, exporters
from .feeding import fed
from .noise import hushed
from .tool import Said, run_tool

if TYPE_CHECKING:
    import onnx

CARD = ExporterCard(
    title="MNN",
    suffix=".mnn",
    source="onnx",
    precisions={
        "fp32": "",
        "fp16": "",
        "int8": "MNN's own quantiser crashes (KL), forgets samples (ADMM) or is far off where blocks are added (EMA)",
        "int8-weights": "",
    },
    defaults=("fp32",),
    packages=("MNN", "_tools"),
    extra="mnn",
    runtimes=("mnn",),
    keeps_float="its converter takes no list of layers to leave out",
)
CONVERT = "import sys, _tools; _tools.mnnconvert(sys.argv)"
FLAGS = {"fp32": (), "fp16": ("--fp16",), "int8-weights": ("--weightQuantBits", "8")}
_UNSUPPORTED = re.compile(r"These Op Not Support: (.+)")
_NO_WORK = ("Const", "Input", "Shape", "Rank")
_TYPES = {"float32": "float", "int32": "int", "int64": "int", "uint8": "uint8", "int8": "int8"}


class MnnExporter:
    """Writes `.mnn` files and runs them in MNN with one thread and float32 arithmetic ("precision": "high").

    "fp16" and "int8-weights" hold the weights of convolutions and products so and compute in float.
    """

    def export(self, request: ExportRequest) -> Exported:
        """Facts about the file written at `request.out`.

        Raises UserError for operators that MNN has not (with their names), tensor types it has not, a converter that crashes or
        does not end, and int8-weights where there are none.
        """
        CARD.refuse(request.precision)
        if request.graph is None:
            raise UserError(
                "MNN files are written from an ONNX graph and none was given", hint="export the module to ONNX first"
            )
        contract, warnings = narrowed(request.contract)
        with tempfile.TemporaryDirectory(prefix="trimtab-mnn-") as name:
            folder = Path(name)
            made = converted(request.graph, folder, *FLAGS[request.precision])
            files.write_bytes(request.out, made.read_bytes())
        ops = histogram(request.out)
        if request.precision == "int8-weights" and not any(kind.startswith("Conv") for kind in ops):
            request.out.unlink()
            raise UnchangedError(
                "MNN int8-weights was asked, and the network has no convolution or product whose weights could be so held",
                hint="export fp32",
            )
        return Exported(
            contract=contract,
            ops=ops,
            spec_version=f"MNN {version('mnn')}",
            warnings=tuple(warnings),
            evaluator=f"MNN {version('mnn')} (CPU, precision high, 1 thread)",
            tool_versions={"mnn": version("mnn")},
            audit=Audit(transposes=ops.get("Permute", 0) + ops.get("Transpose", 0), casts=ops.get("Cast", 0)),
        )

    def runner(self, path: Path, contract: Contract) -> Runner:
        """Evaluates the saved file, resized to its inputs as they come. Raises UserError when MNN rejects it."""
        return Session(path, contract)


exporters.register("mnn", CARD)(MnnExporter())


def narrowed(contract: Contract) -> tuple[Contract, list[str]]:
    """The contract with int64 as int32, and a warning for each. Raises UserError for types that MNN's arrays have not."""
    warnings = []
    for spec in (*contract.inputs, *contract.outputs):
        if spec.dtype not in _TYPES:
            raise UserError(f"tensor {spec.name!r} is {spec.dtype}, MNN arrays are {', '.join(_TYPES)}", hint="make it float32")
        if spec.dtype == "int64":
            warnings.append(f"MNN has no int64 arrays: {spec.name!r} is int32 in the file")
    sides = {
        side: tuple(s.model_copy(update={"dtype": "int32"}) if s.dtype == "int64" else s for s in getattr(contract, side))
        for side in ("inputs", "outputs")
    }
    return contract.model_copy(update=sides), warnings


def converted(graph: onnx.ModelProto, folder: Path, *flags: str) -> Path:
    """The `.mnn` file of an ONNX graph, in `folder`. Raises UserError with the converter's reason."""
    import onnx

    onnx.save(graph, folder / "model.onnx")
    made = folder / "model.mnn"
    named = ("-f", "ONNX", "--modelFile", "model.onnx", "--MNNModel", made.name, "--bizCode", "trimtab")
    said = run_tool([sys.executable, "-P", "-c", CONVERT, *named, *flags], folder=folder, title="MNN's converter")
    if said.code or not made.exists():  # it ends with 0 when it failed, too
        raise refusal(said, graph)
    return made


def refusal(said: Said, graph: onnx.ModelProto) -> UserError:
    """The converter's refusal as an error the user can act on."""
    if found := _UNSUPPORTED.search(said.text):
        kinds = [word.removeprefix("ONNX::") for word in re.split(r"[\s,]+", found[1].strip()) if word]
        nodes = [f"{n.op_type} (node {n.name or n.output[0]})" for n in graph.graph.node if n.op_type in kinds]
        return UserError(
            f"MNN has no operator for {', '.join(nodes or kinds)}",
            hint="replace that layer, or export to another format such as onnx",
        )
    how = said.ending() if said.code else "it wrote no file"
    return UserError(f"MNN's converter failed: {how}; {said.tail()}", hint="export to another format such as onnx", exit_code=1)


def histogram(path: Path) -> dict[str, int]:
    """The operators of a saved file by kind; constants, inputs and shape queries left out."""
    with hushed():
        import MNN

        counts = Counter(str(var.op_type) for var in MNN.expr.load_as_list(str(path)))
    return {kind: count for kind, count in counts.most_common() if kind not in _NO_WORK}


class Session:
    """A loaded module, called with input arrays by name."""

    def __init__(self, path: Path, contract: Contract) -> None:
        self.path, self.contract = path, contract
        if not path.is_file():
            raise UserError(f"{path} does not exist", hint="export again")
        names = [s.name for s in contract.inputs], [s.name for s in contract.outputs]
        try:
            with hushed() as heard:
                import MNN

                settings = ({"backend": "CPU", "precision": "high", "numThread": 1},)
                self.manager = MNN.nn.create_runtime_manager(settings)
                self.module = MNN.nn.load_module_from_file(str(path), *names, runtime_manager=self.manager)
        except (SystemError, RuntimeError, ValueError) as error:
            raise UserError(
                f"MNN cannot load {path.name}: {(heard.lines() or [str(error.__cause__ or error)])[-1][:200]}",
                hint="the file is damaged, or it is not the one that the contract describes; export again",
            ) from None
        self.mnn = MNN

    def __call__(self, tensors: Tensors) -> dict[str, np.ndarray]:
        """The outputs by name. Raises UserError for inputs that are not the contract's and when MNN can't compute."""
        arrays = fed(self.contract.inputs, tensors, file=self.path.name)
        expr = self.mnn.expr
        with hushed() as heard:
            variables = []
            for spec in self.contract.inputs:
                array = arrays[spec.name]
                variable = expr.placeholder(list(array.shape), expr.NCHW, getattr(expr, _TYPES[spec.dtype]))
                variable.write(array)
                variables.append(variable)
            outputs: list[Any] = []
            with contextlib.suppress(SystemError, RuntimeError, ValueError):
                outputs = list(self.module.forward(variables))
            found = [np.array(expr.convert(value, expr.NCHW).read()) for value in outputs]
        if len(found) != len(self.contract.outputs):  # it answers what it cannot compute with an empty list
            shapes = ", ".join(f"{name} {'×'.join(map(str, array.shape))}" for name, array in arrays.items())
            said = (heard.lines() or ["it gives no reason"])[-1][:200]
            raise UserError(f"MNN cannot run {self.path.name} on {shapes}: {said}", hint="see the contract's shapes")
        return {s.name: value.astype(s.dtype, copy=False) for s, value in zip(self.contract.outputs, found, strict=True)}
