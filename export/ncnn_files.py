"""ncnn's two files: the graph as text, checked and given the contract's names, and what it says of itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.errors import UserError

if TYPE_CHECKING:
    from ..models.contract import Contract

PARAM, BIN = "model.ncnn.param", "model.ncnn.bin"
_HEAD = 2
"""Lines before the layers: the magic number, and how many layers and blobs there are."""


@dataclass(frozen=True)
class Layer:
    """One line of the graph: its type, its name, the blobs it reads and writes, and its settings as they stand there."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: tuple[str, ...]

    def line(self) -> str:
        """The line as ncnn reads it."""
        counts = (str(len(self.inputs)), str(len(self.outputs)))
        return " ".join((f"{self.kind:<24} {self.name:<24}", *counts, *self.inputs, *self.outputs, *self.settings))


def layers_of(path: Path) -> list[Layer]:
    """The layers of a `.param` file. Raises UserError when it is none."""
    try:
        lines = path.read_text().splitlines()
        found = [_layer(line.split()) for line in lines[_HEAD:] if line.strip()]
        whole = lines[0].strip() == "7767517" and int(lines[1].split()[0]) == len(found)
    except (OSError, UnicodeDecodeError, ValueError, IndexError):
        whole, found = False, []
    if not whole:
        raise UserError(f"{path.name} is not an ncnn graph", hint="the file is damaged or missing; export again")
    return found


def _layer(words: list[str]) -> Layer:
    reads, writes = int(words[2]), int(words[3])
    blobs = words[4 : 4 + reads + writes]
    if len(blobs) != reads + writes:
        raise ValueError("a line is cut")
    return Layer(words[0], words[1], tuple(blobs[:reads]), tuple(blobs[reads:]), tuple(words[4 + reads + writes :]))


def unknown_kinds(layers: list[Layer]) -> list[str]:
    """The layer types that ncnn has not, each once."""
    import ncnn

    return [kind for kind in dict.fromkeys(layer.kind for layer in layers) if ncnn.layer_to_index(kind) < 0]


def histogram(layers: list[Layer]) -> dict[str, int]:
    """Layers by type; inputs and splits, which compute nothing, left out."""
    counts = Counter(layer.kind for layer in layers if layer.kind not in ("Input", "Split", "MemoryData"))
    return dict(counts.most_common())


def renamed(path: Path, contract: Contract) -> list[Layer]:
    """The layers after pnnx's names "in0", "out0", … have become the contract's in the file at `path`.

    Raises UserError for names that ncnn can't hold, and for a graph with other inputs or outputs than the contract's.
    """
    layers = layers_of(path)
    names = {f"in{i}": spec.name for i, spec in enumerate(contract.inputs)}
    names |= {f"out{i}": spec.name for i, spec in enumerate(contract.outputs)}
    blobs = {blob for layer in layers for blob in (*layer.inputs, *layer.outputs)}
    if gone := [names[blob] for blob in names if blob not in blobs]:
        raise UserError(
            f"pnnx dropped {gone[0]!r} from the graph: it does not take part in what ncnn computes",
            hint="take it out of the contract, or export to another format such as onnx",
        )
    for name in names.values():
        if not name.isascii() or name.isdigit() or any(c.isspace() or c in "=," for c in name) or name in blobs - names.keys():
            raise UserError(
                f"tensor name {name!r} is not legal in ncnn, or an inner value has it",
                hint="use letters, digits and _ in the contract's names, not digits alone",
            )

    def told(blobs: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(names.get(blob, blob) for blob in blobs)

    layers = [Layer(x.kind, names.get(x.name, x.name), told(x.inputs), told(x.outputs), x.settings) for x in layers]
    head = path.read_text().splitlines()[:_HEAD]
    path.write_text("\n".join([*head, *(layer.line() for layer in layers)]) + "\n")
    return layers


def exact(options: Any, *, threads: int) -> None:
    """None; the options of a network (`net.opt`) ask for float32 throughout, on the CPU, with so many threads."""
    options.num_threads = threads
    options.use_vulkan_compute = False
    for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage"):
        if hasattr(options, f"use_{name}"):
            setattr(options, f"use_{name}", False)
