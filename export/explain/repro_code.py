"""A piece as source text: tensors, a torch module or an ONNX graph that anybody can read, run and change."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .pieces import Piece

if TYPE_CHECKING:
    import onnx
    from torch import fx

INLINE = 4096
"""Tensors go into the script itself when their text is shorter than this many characters."""
FILE = "repro.safetensors"
GRAPH_FILE = "repro.onnx"


@dataclass(frozen=True)
class Code:
    """Parts of a script: import lines, and definitions; `tensors` is what they read from `TENSORS`."""

    imports: tuple[str, ...]
    body: str
    tensors: Mapping[str, np.ndarray]


def module_code(module: fx.GraphModule) -> Code:
    """A class `Piece(nn.Module)` that computes the same, its weights as buffers."""
    import torch

    names: dict[str, str] = {}
    tensors: dict[str, np.ndarray] = {}
    flat = torch.fx.Graph()
    val_map: dict[fx.Node, fx.Node] = {}
    flat.graph_copy(module.graph, val_map)
    for node, copy in val_map.items():
        if node.op == "get_attr":
            name = names.setdefault(str(node.target), _unique(str(node.target), set(names.values())))
            copy.target = name
            value = _attribute(module, str(node.target))
            tensors[f"weight.{name}"] = value.detach().cpu().contiguous().numpy()
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    flat.output(torch.fx.node.map_arg(output.args[0], lambda n: val_map[n]))
    made = flat.python_code("self")
    lines = [line.split("  # ")[0].rstrip() for line in made.src.splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("def forward"))
    header = re.sub(r" ?: ?[\w.]+(?=[,)=])|\s*->.*(?=:$)", "", lines[start])
    forward = [header, *(line for line in lines[start + 1 :] if line.strip())]
    buffers = [f'        self.register_buffer("{name}", torch.from_numpy(TENSORS["weight.{name}"]))' for name in names.values()]
    body = ["class Piece(torch.nn.Module):"]
    if buffers:
        body += ["    def __init__(self):", "        super().__init__()", *buffers, ""]
    body += [f"    {_without_clearing(line)}" for line in forward]
    extra = [name for name in ("inf", "nan", "device") if re.search(rf"\b{name}\b", made.src)]
    imports = ("import torch", *(["from math import inf"] if "inf" in extra else []))
    imports += ("from math import nan",) if "nan" in extra else ()
    imports += ("from torch import device",) if "device" in extra else ()
    return Code(imports, "\n".join(body), tensors)


def _attribute(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module


def _without_clearing(line: str) -> str:
    """The line without torch.fx's "x = None", which frees memory and hides the code."""
    return re.sub(r";\s+(\w+ = )+None\s*$", "", line)


def graph_code(graph: onnx.ModelProto, folder: Path) -> Code:
    """A function `build()` that makes the graph with `onnx.helper`; one with branches is read from a file in `folder` instead."""
    import onnx

    if any(a.type == onnx.AttributeProto.GRAPH for node in graph.graph.node for a in node.attribute):
        onnx.save(graph, folder / GRAPH_FILE)
        body = f'def build():\n    return onnx.load(Path(__file__).parent / "{GRAPH_FILE}")'
        return Code(("import onnx", "from pathlib import Path"), body, {})
    names = plain_names(graph)

    def named(name: str) -> str:
        return names[name] if name else ""

    inputs = [_value(named(value.name), value) for value in graph.graph.input]
    tensors: dict[str, np.ndarray] = {}
    for weight in graph.graph.initializer:
        tensors[f"weight.{named(weight.name)}"] = onnx.numpy_helper.to_array(weight)
    nodes = []
    for node in graph.graph.node:
        attributes = [f"{a.name}={_attribute_code(a, node, tensors)}" for a in node.attribute]
        outside = [f"domain={node.domain!r}"] if node.domain else []
        arguments = [repr(node.op_type), repr([named(n) for n in node.input]), repr([named(n) for n in node.output])]
        nodes.append(f"        helper.make_node({', '.join([*arguments, *attributes, *outside])}),")
    outputs = [_value(named(value.name), value) for value in graph.graph.output]
    opsets = ", ".join(f"helper.make_opsetid({o.domain!r}, {o.version})" for o in graph.opset_import)
    lines = [
        "def build():",
        "    nodes = [",
        *nodes,
        "    ]",
        f"    inputs = [{', '.join(inputs)}]",
        f"    outputs = [{', '.join(outputs)}]",
        '    weights = {name[7:]: value for name, value in TENSORS.items() if name.startswith("weight.")}',
        "    weights = [numpy_helper.from_array(value, name) for name, value in weights.items()]",
        '    graph = helper.make_graph(nodes, "piece", inputs, outputs, weights)',
        f"    return helper.make_model(graph, opset_imports=[{opsets}], ir_version={graph.ir_version})",
    ]
    return Code(("import onnx", "from onnx import helper, numpy_helper"), "\n".join(lines), tensors)


def plain_names(graph: onnx.ModelProto) -> dict[str, str]:
    """The names that `graph_code` gives to the graph's values; their own in a graph that comes from a file."""
    inner = [name for node in graph.graph.node for name in (*node.input, *node.output) if name]
    every = dict.fromkeys([*(v.name for v in graph.graph.input), *(w.name for w in graph.graph.initializer), *inner])
    if any(attribute.HasField("g") for node in graph.graph.node for attribute in node.attribute):
        return {name: name for name in every}
    names: dict[str, str] = {}
    for name in every:
        names[name] = _unique(name, set(names.values()))
    return names


def _attribute_code(attribute: onnx.AttributeProto, node: onnx.NodeProto, tensors: dict[str, np.ndarray]) -> str:
    import onnx

    value = onnx.helper.get_attribute_value(attribute)
    if attribute.type == onnx.AttributeProto.TENSOR:
        key = _unique(f"constant.{node.output[0]}.{attribute.name}", set(tensors))
        tensors[key] = onnx.numpy_helper.to_array(value)
        return f"numpy_helper.from_array(TENSORS[{key!r}])"
    if isinstance(value, bytes):
        return repr(value.decode())
    if attribute.type == onnx.AttributeProto.STRINGS:
        return repr([item.decode() for item in value])
    return repr(list(value) if not isinstance(value, int | float) else value)


def _value(name: str, value: onnx.ValueInfoProto) -> str:
    import onnx

    kind = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim]
    return (
        f"helper.make_tensor_value_info({name!r}, onnx.TensorProto.{onnx.TensorProto.DataType.Name(kind.elem_type)}, {shape!r})"
    )


def _unique(name: str, taken: set[str]) -> str:
    """A Python name for anything: "/left/left.0/Conv_output_0" → "left_left_0_Conv"."""
    plain = re.sub(r"\W+", "_", name).removesuffix("_output_0").strip("_") or "x"
    plain = f"t{plain}" if plain[0].isdigit() else plain
    count, found = 1, plain
    while found in taken:
        count, found = count + 1, f"{plain}_{count}"
    return found


def tensors_code(tensors: Mapping[str, np.ndarray], folder: Path) -> Code:
    """`TENSORS` by name: in the script where that is short, else in a file that is written beside it."""
    lines = [f"    {name!r}: {_array(value)}," for name, value in tensors.items()]
    if sum(map(len, lines)) < INLINE:
        return Code(("import numpy as np",), "\n".join(["TENSORS = {", *lines, "}"]), {})
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / FILE)
    body = f'TENSORS = load_file(Path(__file__).parent / "{FILE}")'
    return Code(("from pathlib import Path", "from safetensors.numpy import load_file"), body, {})


def _array(value: np.ndarray) -> str:
    """The array as an expression that gives the same bits back."""
    flat = value.reshape(-1)
    with np.printoptions(legacy=False):  # libraries that ask for numpy 1.13's printing would cost digits
        items = ", ".join(str(item) for item in flat)
    items = re.sub(r"\b(nan|inf)\b", r"np.\1", items)
    shape = "" if value.ndim == 1 else f".reshape({', '.join(map(str, value.shape)) if value.ndim else '()'})"
    return f"np.array([{items}], dtype=np.{value.dtype}){shape}"


def piece_code(piece: Piece, folder: Path, *, feeds: bool) -> Code:
    """The network of a piece, and in its tensors the inputs ("x.0.NAME"), a graph's expected outputs ("y.0.NAME") and, if asked,
    calibration inputs ("feed.0.NAME")."""
    names: dict[str, str] = {}
    if piece.graph is not None:
        code, names = graph_code(piece.graph, folder), plain_names(piece.graph)
    else:
        code = module_code(piece.module)  # type: ignore[arg-type]  # pieces of modules are graph modules
    tensors = dict(code.tensors)
    for i, probe in enumerate(piece.probes):
        tensors |= {f"x.{i}.{names.get(name, name)}": value for name, value in probe.inputs.items()}
        if piece.graph is not None:
            tensors |= {f"y.{i}.{names.get(name, name)}": value for name, value in probe.outputs.items()}
    for i, feed in enumerate(piece.feeds if feeds else ()):
        tensors |= {f"feed.{i}.{names.get(name, name)}": value for name, value in feed.items()}
    return Code(code.imports, code.body, tensors)
