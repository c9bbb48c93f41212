"""ncnn: a traced torch module through pnnx, ncnn's own converter, run back in ncnn on the CPU.

ncnn has no batch: a file takes one image. The contract's free batch therefore becomes 1, and it is the runner here, not ncnn, that
goes through the images of a larger batch one after the other.
"""

from __future__ import annotations

import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..models.contract import Contract, TensorSpec
from ..models.errors import UserError
from .artifact import Audit
from .exporter import Exported, ExporterCard, ExportRequest, Runner, Tensors, exporters
from .feeding import fed
from .ncnn_files import BIN, PARAM, Layer, exact, histogram, layers_of, renamed, unknown_kinds
from .noise import hushed
from .tool import Said, run_tool

if TYPE_CHECKING:
    from torch import Tensor, nn

ONE_IMAGE = "ncnn has no batch: a file takes one image, and an app calls it once for each"
CARD = ExporterCard(
    title="ncnn",
    suffix=".ncnn",
    source="module",
    precisions={
        "fp32": "",
        "fp16": "",
        "int8": "its quantisers ncnn2table and ncnn2int8 are C++ programs that no Python package brings",
    },
    defaults=("fp16",),
    packages=("ncnn", "pnnx"),
    extra="ncnn",
    runtimes=("ncnn",),
    free={"batch": ONE_IMAGE, "size": ""},
    keeps_float="there is no int8",
)
_USUAL = ("model inputshape", "FLOPS", "memory OPS", "convert interp expression")
"""How the lines begin that pnnx prints about every network."""


class NcnnExporter:
    """Writes `model.ncnn/` folders with `model.ncnn.param` and `model.ncnn.bin`, and runs them with one thread.

    "fp16" holds the weights of convolutions and products in half precision. The runner computes in float32 either way; ncnn on a
    phone computes in half by itself, unless an app switches that off.
    """

    def export(self, request: ExportRequest) -> Exported:
        """Facts about the folder written at `request.out`.

        Raises UserError for a request without a module, a routed network, tensors that are no batch of float32, layers that ncnn has
        not (with the module and the line they come from), and a converter that crashes or does not end.
        """
        CARD.refuse(request.precision)
        if request.module is None:
            raise UserError(
                "ncnn files are written from a torch module, and this request has only an ONNX graph",
                hint="start from a checkpoint or bundle, or export the graph to onnx, tflite or mnn",
            )
        refuse_routed(request.module)
        contract, warnings = single(request.contract)
        with tempfile.TemporaryDirectory(prefix="trimtab-ncnn-") as name:
            folder = Path(name)
            layers, heard = _converted(request, contract, folder)
            shutil.rmtree(request.out, ignore_errors=True)
            request.out.mkdir(parents=True)
            for file in (PARAM, BIN):
                shutil.copyfile(folder / file, request.out / file)
        ops = histogram(layers)
        return Exported(
            contract=contract,
            ops=ops,
            spec_version="ncnn param 7767517",
            warnings=(*warnings, *heard),
            evaluator=f"ncnn {version('ncnn')} (CPU, float32, 1 thread, one image at a time)",
            tool_versions={name: version(name) for name in ("ncnn", "pnnx", "torch")},
            audit=Audit(transposes=ops.get("Permute", 0), casts=ops.get("Cast", 0)),
        )

    def runner(self, path: Path, contract: Contract) -> Runner:
        """Evaluates the saved files, image by image. Raises UserError when ncnn rejects them."""
        return Session(path, contract)


exporters.register("ncnn", CARD)(NcnnExporter())


def refuse_routed(module: nn.Module) -> None:
    """None for a network without branches. Raises UserError for a routed one."""
    from ..models.routed import RoutedNet

    if isinstance(module, RoutedNet):
        raise UserError(
            "ncnn has no control flow: a network that picks a branch for each image cannot be written",
            hint="export it to onnx, tflite or coreml, or one branch of it to ncnn",
        )


def single(contract: Contract) -> tuple[Contract, list[str]]:
    """The contract for one image, and a warning where its batch was free. Raises UserError for what is no batch of float32."""

    def one(spec: TensorSpec) -> TensorSpec:
        if spec.dtype != "float32":
            raise UserError(
                f"tensor {spec.name!r} is {spec.dtype}, ncnn arrays are float32", hint="let the network take and return float32"
            )
        if not spec.shape or spec.shape[0] not in ("N", 1) or len(spec.shape) == 1:
            raise UserError(
                f"tensor {spec.name!r} has shape {spec.shape}: ncnn takes and returns one image, and its first dimension must be a "
                "batch of 1 or a free one",
                hint='make the first dimension 1 or "N" in the contract',
            )
        return spec.model_copy(update={"shape": (1, *spec.shape[1:])})

    sides = {side: tuple(one(s) for s in getattr(contract, side)) for side in ("inputs", "outputs")}
    warned = [f"the batch is 1 in the file: {ONE_IMAGE}"] if "N" in contract.symbols else []
    return contract.model_copy(update=sides), warned


def _converted(request: ExportRequest, contract: Contract, folder: Path) -> tuple[list[Layer], list[str]]:
    """(the layers of the files written in `folder`, what pnnx warned of)."""
    import pnnx
    import torch

    from .tracing import example_sides, examples, tensors_only

    sides = example_sides(contract, request.example)
    example = examples(contract, sides)
    module = tensors_only(request.module, example, contract, title="ncnn")  # type: ignore[arg-type]  # the exporter has looked
    try:
        with hushed(), torch.no_grad():
            traced = torch.jit.trace(module, example, check_trace=False, strict=False)
            traced.save(str(folder / "model.pt"))
    except Exception as error:  # torch refuses with every kind of exception
        first = (str(error).splitlines() or [""])[0][:300]
        raise UserError(
            f"the network can't be traced: {type(error).__name__}: {first}", hint="torch.jit.trace must accept it"
        ) from error
    arguments = [pnnx.EXEC_PATH, "model.pt", f"inputshape={_shapes(example)}", f"fp16={int(request.precision == 'fp16')}"]
    if sides:
        others = examples(contract, {symbol: side + 16 * (i + 1) for i, (symbol, side) in enumerate(sides.items())})
        arguments.append(f"inputshape2={_shapes(others)}")
    said = run_tool(arguments, folder=folder, title="pnnx")
    if said.code or not (folder / PARAM).exists() or not (folder / BIN).exists():
        raise _failed(said)
    if unknown := unknown_kinds(layers_of(folder / PARAM)):
        found = ", ".join(f"{kind}{origin(kind, traced)}" for kind in unknown)
        raise UserError(
            f"ncnn has no layer for {found}", hint="replace that layer, or export to another format such as onnx or mnn"
        )
    return renamed(folder / PARAM, contract), _warned(said)


def _shapes(tensors: tuple[Tensor, ...]) -> str:
    return ",".join(f"[{','.join(map(str, tensor.shape))}]f32" for tensor in tensors)


def _failed(said: Said) -> UserError:
    how = said.ending() if said.code else "it wrote no ncnn files"
    return UserError(f"pnnx failed: {how}; {said.tail()}", hint="export to another format such as onnx or mnn", exit_code=1)


def _warned(said: Said) -> list[str]:
    """What pnnx says of the ncnn graph beside its usual lines: settings it ignored, forms it has not."""
    lines = (line.strip() for line in said.text.rpartition("pass_ncnn")[2].splitlines())
    return [f"pnnx: {line}" for line in dict.fromkeys(lines) if line and not line.startswith(_USUAL)]


def origin(kind: str, traced: Any) -> str:
    """Where a layer comes from: " (module features.3, net.py:12)", or "" when the trace does not tell."""
    wanted = kind.replace("::", ".").split(".")[-1]
    for node in traced.inlined_graph.nodes():
        if node.kind().split("::")[-1] != wanted:
            continue
        path = ".".join(p for p in node.scopeName().split("/")[-1].removeprefix("__module").split(".") if p)
        if traced.original_name == "TensorsOnly":
            path = path.removeprefix("module").lstrip(".")
        line = _source_line(node.sourceRange())
        told = [f"module {path}"] * bool(path) + [line] * bool(line)
        return f" ({', '.join(told)})" if told else ""
    return ""


def _source_line(source: str) -> str:
    """ "net.py:12" of the innermost frame that TorchScript noted for a node."""
    first = next((line for line in source.splitlines() if ".py(" in line), "")
    file, _, rest = first.partition("(")
    number = rest.partition(")")[0]
    return f"{Path(file.strip()).name}:{number}" if number.isdigit() else ""


class Session:
    """A loaded network, called with input arrays by name."""

    def __init__(self, path: Path, contract: Contract) -> None:
        self.path, self.contract = path, contract
        layers = layers_of(path / PARAM)
        with hushed():
            import ncnn

        if unknown := unknown_kinds(layers):
            raise UserError(f"{path.name}: ncnn {version('ncnn')} has no layer {unknown[0]}", hint="export again")
        if not (path / BIN).is_file():
            raise UserError(f"{path / BIN} does not exist", hint="export again")
        blobs = {blob for layer in layers for blob in layer.outputs}
        if gone := [s.name for s in (*contract.inputs, *contract.outputs) if s.name not in blobs]:
            raise UserError(f"{path.name} has no tensor named {gone[0]!r}", hint="use the contract beside it")
        self.ncnn, self.net = ncnn, ncnn.Net()
        exact(self.net.opt, threads=1)
        with hushed():
            codes = self.net.load_param(str(path / PARAM)), self.net.load_model(str(path / BIN))
        if any(codes):
            raise UserError(f"ncnn cannot load {path.name} (codes {codes})", hint="the files are damaged; export again")

    def __call__(self, tensors: Tensors) -> dict[str, np.ndarray]:
        """The outputs by name, images of a batch one after the other.

        Raises UserError for inputs that are not the contract's (ncnn itself would read past their end) and when ncnn fails.
        """
        arrays = fed(self.contract.inputs, tensors, file=self.path.name, any_batch=True)
        counts = {name: len(array) for name, array in arrays.items()}
        if len(set(counts.values())) != 1:
            raise UserError(f"the inputs have batches of different sizes: {counts}", hint="give as many of each")
        found = [self._one({name: array[i] for name, array in arrays.items()}) for i in range(next(iter(counts.values())))]
        return {spec.name: np.stack([outputs[spec.name] for outputs in found]) for spec in self.contract.outputs}

    def _one(self, image: Tensors) -> dict[str, np.ndarray]:
        outputs: dict[str, np.ndarray] = {}
        kept = {name: np.ascontiguousarray(array) for name, array in image.items()}  # ncnn reads their memory while it runs
        with hushed(), self.net.create_extractor() as extractor:
            for name, array in kept.items():
                extractor.input(name, self.ncnn.Mat(array))
            for spec in self.contract.outputs:
                code, value = extractor.extract(spec.name)
                if code:
                    raise UserError(
                        f"ncnn cannot compute {spec.name!r} of {self.path.name} (code {code})", hint="see its contract"
                    )
                outputs[spec.name] = np.array(value)
        return outputs
