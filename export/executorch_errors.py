"""torch.export's and ExecuTorch's refusals in words: the operation, the module it sits in, and the line of the network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..models.errors import UserError


def refusal(error: Exception, program: Any) -> UserError:
    """A refusal as an error the user can act on: the operation, the module it sits in, and the line."""
    text = str(error)
    name = type(error).__name__
    if "GuardOnDataDependent" in name or "data-dependent" in text:
        return UserError(
            f"the network decides on the values of its input{_raised_at(text)}: torch.export cannot follow both ways",
            hint="use torch.cond or torch.where, or make branches with the recipe step 'route'",
        )
    if "is not in Core ATen opset" in text:
        kind = (
            text.partition("Operator ")[2].partition(" ")[0].removeprefix("torch._ops.").removeprefix("aten.").rsplit(".", 1)[0]
        )
        return UserError(
            f"ExecuTorch has no operator for torch's {kind!r}{origin(kind, program)}",
            hint="replace that layer, or export to another format such as onnx",
        )
    first = next((line.strip() for line in text.splitlines() if line.strip()), name)[:300]
    if "Constraints violated" in text or "specialized" in text:
        wish = next((line.strip() for line in text.splitlines() if line.strip().startswith("-")), first)[:300]
        return UserError(
            f"a dimension that the contract leaves free is bound by the network's own code: {wish.lstrip('- ')}",
            hint="fix it in the contract",
        )
    return UserError(
        f"torch.export or ExecuTorch cannot take this network: {name}: {first}{_raised_at(text)}",
        hint="torch.export.export must accept it; or export to another format such as onnx",
    )


def _raised_at(text: str) -> str:
    """ " (net.py:12)" from torch's note about the call that raised, or ""."""
    frames = [
        line
        for line in text.partition("The following call raised this error")[2].splitlines()
        if line.strip().startswith("File ")
    ]
    return f" ({_frame(frames[-1])})" if frames else ""


def _frame(line: str) -> str:
    """ "net.py:12" of a traceback's line."""
    file, _, rest = line.strip().removeprefix('File "').partition('"')
    number = rest.removeprefix(", line ").split(",")[0]
    return f"{Path(file).name}:{number}"


def origin(kind: str, program: Any) -> str:
    """Where the first operator `kind` of an exported program comes from: " (module 1.1, net.py:12)", or ""."""
    for node in program.graph.nodes if program is not None else ():
        if node.op != "call_function" or kind.lstrip("_") not in kind_of(node):
            continue
        path = list(node.meta.get("nn_module_stack", {}).values())[-1:]
        module = (
            re.sub(r"^(module\.?)+", "", path[0][0].removeprefix("L['self'].")) if path else ""
        )  # our own wrappers are no news
        frames = [line for line in str(node.meta.get("stack_trace") or "").splitlines() if line.strip().startswith("File ")]
        told = [f"module {module}"] * bool(module) + [_frame(line) for line in frames[-1:]]
        return f" ({', '.join(told)})" if told else ""
    return ""


def kind_of(node: Any) -> str:
    """An operator's bare name: "convolution", "mean", "getitem"."""
    schema = getattr(node.target, "_schema", None)
    name = schema.name if schema is not None else getattr(node.target, "__name__", str(node.target))
    return str(name).split("::")[-1].split(".")[0]
