"""Several networks in one `.tflite` file, each under a signature of its own: branches and their router, for a host that chooses.

Tensors that are equal to the last bit are stored once, so that what the networks share costs nothing; slices of one another are
not shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...models import files
from ...models.contract import Contract
from ...models.errors import UserError, did_you_mean
from ..exporter import Runner, Tensors
from .exporter import nhwc

if TYPE_CHECKING:
    import onnx

    from .ir import Program


@dataclass(frozen=True)
class Part:
    """One network of the file: its ONNX graph and the contract that goes with it."""

    graph: onnx.ModelProto
    contract: Contract


@dataclass(frozen=True)
class Signed:
    """What was written: each signature's own contract (images NHWC) and operators, and the bytes that sharing saved."""

    contracts: Mapping[str, Contract]
    ops: Mapping[str, Mapping[str, int]]
    size_bytes: int
    shared_bytes: int


def export_signatures(parts: Mapping[str, Part], out: Path) -> Signed:
    """Facts about the file written at `out`; the first part is what runs when no signature is named.

    Raises UserError without parts, for a nameless one, for operators that TFLite cannot hold, and for a graph that is not its
    contract's.
    """
    if not parts or not all(parts):
        raise UserError(f"the signatures are {list(parts)}", hint="give at least one network, each under a name")
    from .model import build
    from .sizes import default_shapes
    from .writer import signed

    contracts = {key: nhwc(part.contract) for key, part in parts.items()}
    programs = {key: _built(key, partial(build, part.graph, contracts[key])) for key, part in parts.items()}
    data = signed(programs, description="trimtab", shapes={key: default_shapes(program) for key, program in programs.items()})
    files.write_bytes(out, data)
    ops = {key: program.histogram() for key, program in programs.items()}
    return Signed(contracts, ops, len(data), _repeated(programs.values()))


def _built(key: str, make: Callable[[], Program]) -> Program:
    try:
        return make()
    except UserError as error:
        raise UserError(f"signature {key!r}: {error.what}", hint=error.hint) from None


def _repeated(programs: Iterable[Program]) -> int:
    """The bytes of constants that several programs hold, but for those of the first that does."""
    seen: set[bytes] = set()
    repeated = 0
    for program in programs:
        own = {t.data.tobytes() for inner in program.programs() for t in inner.tensors() if t.data is not None}
        repeated += sum(map(len, own & seen))
        seen |= own
    return repeated


class SignedFile:
    """A loaded file, whose signatures run one at a time on one thread."""

    def __init__(self, path: Path) -> None:
        """Raises UserError when the file is missing or no TFLite model."""
        from ai_edge_litert.interpreter import Interpreter

        self.path = path
        if not path.is_file():
            raise UserError(f"{path} does not exist", hint="export again")
        data = path.read_bytes()
        if data[4:8] != b"TFL3":
            raise UserError(f"{path} is not a TFLite model (its identifier is {data[4:8]!r})", hint="export again")
        try:
            self.interpreter: Any = Interpreter(model_content=data, num_threads=1)
            self.keys: tuple[str, ...] = tuple(self.interpreter.get_signature_list())
        except (ValueError, RuntimeError) as error:
            raise UserError(f"LiteRT cannot load {path}: {error}", hint="the file is damaged; export again") from None

    def runner(self, key: str, contract: Contract) -> Runner:
        """A function that runs one signature. Raises UserError when the file has none of that name."""
        if key not in self.keys:
            raise UserError(f"{self.path} has no signature {key!r}", hint=did_you_mean(key, self.keys))
        call = self.interpreter.get_signature_runner(key)

        def run(tensors: Tensors) -> dict[str, np.ndarray]:
            missing = [spec.name for spec in contract.inputs if spec.name not in tensors]
            if missing:
                raise UserError(f"signature {key!r} of {self.path} needs the input {missing[0]!r}, not given", hint="pass it")
            given = {s.name: np.asarray(tensors[s.name], dtype=s.dtype, order="C") for s in contract.inputs}
            try:
                found = call(**given)
            except (ValueError, RuntimeError) as error:
                shapes = {name: array.shape for name, array in given.items()}
                raise UserError(
                    f"LiteRT cannot run {key!r} of {self.path} on {shapes}: {error}", hint="see its contract"
                ) from None
            return {spec.name: np.array(found[spec.name]) for spec in contract.outputs}

        return run
