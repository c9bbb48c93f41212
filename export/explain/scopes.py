"""From the names of ONNX nodes to torch modules, and from those to lines of the user's source."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ...models.contract import Contract

if TYPE_CHECKING:
    from torch import nn

_FRAME = re.compile(r"^(?P<file>.+?)\((?P<line>\d+)\): ", re.MULTILINE)
_REPEATED = re.compile(r"^(?P<name>.+)_(?P<call>\d+)$")
_SPELT = {
    "averagepool": ("avg_pool",),
    "clip": ("clamp", "hardtanh"),
    "concat": ("cat", "stack"),
    "conv": ("_convolution",),
    "convtranspose": ("_convolution",),
    "gemm": ("linear", "addmm"),
    "globalaveragepool": ("adaptive_avg_pool", "mean"),
    "matmul": ("matmul", "linear", "bmm", "addmm", "scaled_dot_product_attention"),
    "reducemean": ("mean",),
    "reducesum": ("sum",),
    "reducemax": ("max", "amax"),
    "resize": ("upsample", "interpolate"),
    "depthtospace": ("pixel_shuffle",),
}
"""ONNX operators whose torch operations are named otherwise."""


class Traced(Protocol):
    """What `locate` wants of a Source."""

    @property
    def contract(self) -> Contract:
        """The network's contract."""

    @property
    def module(self) -> nn.Module | None:
        """The torch module, None for a user's own ONNX file."""


@dataclass(frozen=True)
class Origin:
    """One torch operation of a trace: its name ("relu"), the module that it ran in, and the user's line ("net.py:41")."""

    op: str
    module: str
    line: str

    def __str__(self) -> str:
        return f"{self.module or 'the network itself'} ({self.line})" if self.line else self.module


def module_path(scope: str, modules: Collection[str]) -> tuple[str, int]:
    """(torch module, number of its call) of an ONNX node's scope: "/layer1/layer1.0/conv1/Conv" → ("layer1.0.conv1", 0).

    ("", 0) for the network itself, and for names that are no scopes of these modules.
    """
    parts = [part for part in scope.split("/")[1:-1] if part] if scope.startswith("/") else []
    path, local, call = "", "", 0
    for part in parts:
        # a Sequential's children repeat its own name: "layer1.0" inside "layer1"
        inside = part[len(local) + 1 :] if local and part.startswith(f"{local}.") else part
        found = f"{path}.{inside}" if path else inside
        if found not in modules and (repeated := _REPEATED.match(found)) and repeated["name"] in modules:
            found, call = repeated["name"], int(repeated["call"])
            local = _REPEATED.sub(r"\g<name>", part)
        else:
            local = part
        if found not in modules:
            return "", 0
        path = found
    return path, call


def origins(module: nn.Module, contract: Contract) -> list[Origin]:
    """Every torch operation of one traced run, in order; none where the network can't be traced."""
    import torch

    example = tuple(torch.from_numpy(v) for v in contract.random_inputs(contract.example_dims(batch=2), seed=0).values())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            graph = torch.jit.trace(module, example, check_trace=False, strict=False).inlined_graph
        except Exception:  # networks refuse to be traced with every kind of exception; a place is a courtesy
            return []
    own = str(Path(torch.__file__).parent)
    found = []
    for node in graph.nodes():
        if node.kind().startswith("aten::"):
            path = node.scopeName().split("/")[-1].removeprefix("__module").lstrip(".")
            found.append(Origin(node.kind().removeprefix("aten::"), path, _line(node.sourceRange(), own)))
    return found


def _line(frames: str, own: str) -> str:
    """The innermost line outside torch of a trace's Python stack: "net.py:41", "" where there is none."""
    for frame in _FRAME.finditer(frames):
        if not frame["file"].startswith(own):
            return f"{Path(frame['file']).name}:{frame['line']}"
    return ""


def locate(source: Traced, name: str) -> str:
    """Where an ONNX node or a torch operation comes from: "layer1.0.act (net.py:41)"; "" when it can't be told.

    `name` is a node's name in the graph ("/layer1/layer1.0/act/Relu") or an operator ("aten::linalg_svd", "Relu"), which is
    looked for from the front.
    """
    if source.module is None:
        return ""
    found = origins(source.module, source.contract)
    if not name.startswith("/"):
        return str(next(_spelt(found, name), ""))
    path, _ = module_path(name, {p for p, _ in source.module.named_modules()})
    op, nth = _kind(name)
    inside = [origin for origin in found if origin.module == path]
    same = list(_spelt(inside, op))
    if same:
        return str(same[min(nth, len(same) - 1)])
    lines = {origin.line for origin in inside}
    return str(inside[0]) if len(lines) == 1 else path


def _kind(name: str) -> tuple[str, int]:
    """(operator, how many of it came before in its scope) of a node's name: "/gate/Mul_1" → ("Mul", 1)."""
    last = name.rsplit("/", 1)[-1]
    repeated = _REPEATED.match(last)
    return (repeated["name"], int(repeated["call"])) if repeated else (last, 0)


def _spelt(found: list[Origin], op: str) -> Iterator[Origin]:
    """The operations that an operator's name means; overloads ("relu_", "aten::add.Tensor") are the same one."""
    plain = op.rpartition("::")[2].partition(".")[0].strip("_").lower()
    names = _SPELT.get(plain, (plain,))
    for origin in found:
        torch_name = origin.op.strip("_").lower()
        if any(torch_name == n.strip("_") or torch_name.startswith(n) for n in names) or torch_name.replace("_", "") == plain:
            yield origin
