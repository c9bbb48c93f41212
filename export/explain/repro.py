"""A failure as the smallest script that shows it: `repro.py`, and its tensors beside it where they are not short."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from ...models.contract import Contract, TensorSpec
from ..exporter import Options
from ..parity import gate_db
from .bisect import Culprit
from .pieces import Piece
from .repro_code import FILE, GRAPH_FILE, Code, piece_code, plain_names, tensors_code
from .repro_formats import Template, template

if TYPE_CHECKING:
    from ..source import Source

_MAIN = """\
def main():
    worst = float("inf")
    numbers = sorted({{int(name.split(".")[1]) for name in TENSORS if name.startswith("x.")}})
    model, run = {model}, None
    for number in numbers:
        inputs = {{name: np.ascontiguousarray(TENSORS[f"x.{{number}}.{{name}}"]) for name in INPUTS}}
        expected = {expected}
        try:
            run = run or convert(model, inputs)
            made = [np.asarray(value) for value in run(inputs)]
        except Exception as error:
            print(f"FAILED: {{type(error).__name__}}: {{error}}")
            return 1
        for name, reference, value in zip(OUTPUTS, expected, made, strict=True):
            if value.size != reference.size:
                print(f"FAILED: {{name}} has shape {{value.shape}}, expected {{reference.shape}}")
                return 1
            ratio, error = sqnr_db(reference, value.reshape(reference.shape))
            worst = min(worst, ratio)
            print(f"input {{number}}, {{name}}: SQNR {{ratio:.1f}} dB, greatest error {{error:.3g}}")
    if worst < GATE_DB:
        print(f"FAILED: SQNR {{worst:.1f}} dB is below {{GATE_DB}} dB")
        return 1
    print(f"It does not happen here: SQNR {{worst:.1f}} dB, at least {{GATE_DB}} dB is wanted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
"""
_SQNR = '''\
def sqnr_db(reference, value):
    """(10 log10(sum ref^2 / sum (value - ref)^2) in dB, the greatest error)"""
    reference, value = reference.astype(np.float64), value.astype(np.float64)
    if not np.isfinite(value).all():
        return -200.0, float("inf")
    noise, signal = np.square(value - reference).sum(), np.square(reference).sum()
    if noise == 0 or signal == 0:
        return (200.0 if noise == 0 else -200.0), float(np.abs(value - reference).max())
    return float(10 * np.log10(signal / noise)), float(np.abs(value - reference).max())
'''


def write_repro(
    source: Source, exporter_name: str, precision: str, culprit: Culprit, folder: Path, *, options: Options | None = None
) -> Path:
    """The path of `repro.py` in `folder`, which shows the culprit's failure under plain `python repro.py`.

    It ends with exit code 1 and the failure while it is there, with 0 when it is gone. It needs torch or ONNX and the format's own
    packages; where trimtab itself writes the format (TFLite, integers), it calls trimtab and says so in its first lines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (FILE, GRAPH_FILE):
        (folder / name).unlink(missing_ok=True)
    piece = culprit.piece
    set_by_user = options.model_dump(mode="json", exclude_defaults=True) if options else {}
    made = template(
        exporter_name,
        precision,
        "graph" if piece.graph is not None else "module",
        contract=_plain_contract(piece).model_dump_json(),
        options=set_by_user,
    )
    if culprit.kind == "conversion":
        piece = replace(piece, probes=piece.probes[:1])
    network = piece_code(piece, folder, feeds="trimtab" in made.packages)
    path = folder / "repro.py"
    path.write_text(_script(source, exporter_name, precision, culprit, made, network, folder))
    return path


def _script(source: Source, name: str, precision: str, culprit: Culprit, made: Template, network: Code, folder: Path) -> str:
    piece, contract = culprit.piece, _plain_contract(culprit.piece)
    tensors = tensors_code(network.tensors, folder)
    by_module = piece.graph is None
    expected = "call(model, inputs)" if by_module else '[TENSORS[f"y.{number}.{name}"] for name in OUTPUTS]'
    call = (
        "def call(model, inputs):\n"
        "    with torch.inference_mode():\n"
        "        made = model(*(torch.from_numpy(value) for value in inputs.values()))\n"
        "    return [value.numpy() for value in ((made,) if isinstance(made, torch.Tensor) else made)]\n"
    )
    settings = (
        f"INPUTS = {[spec.name for spec in contract.inputs]!r}\nOUTPUTS = {[spec.name for spec in contract.outputs]!r}\n"
        f"GATE_DB = {gate_db(precision):g}\nHALF = {precision == 'fp16'}"
    )
    imports = {"import sys", "import numpy as np", *made.imports, *network.imports, *tensors.imports}
    parts = [
        _header(source, name, precision, culprit, made),
        _ordered(imports),
        f"{tensors.body}\n{settings}\n",
        network.body,
        *([call] if by_module else []),
        made.body,
        _SQNR,
        _MAIN.format(model="Piece().eval()" if by_module else "build()", expected=expected),
    ]
    return "\n\n".join(part.rstrip("\n") + "\n" for part in parts)


def _header(source: Source, name: str, precision: str, culprit: Culprit, made: Template) -> str:
    where = " ".join(part for part in (culprit.module, f"({culprit.line})" if culprit.line else "") if part)
    versions = [f"{package}=={found}" for package in made.packages if (found := _version(package))]
    told = " ".join(culprit.message.split())[:600].replace("\\", "/").replace('"""', "'''")
    lines = [
        f'"""{name} {precision} of {source.label}: {culprit.op}{f" in {where}" if where else ""}',
        "",
        f"Found: {told}",
        f"Needs: {' '.join(versions) or ' '.join(made.packages)}",
        "Run:   python repro.py   (exit code 1: the failure is there; 0: it is gone)",
    ]
    lines += [made.note] if made.note else []
    return "\n".join([*lines, '"""'])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _ordered(lines: set[str]) -> str:
    """Import lines, the standard library's first, each group by name."""
    standard = re.compile(r"(import|from) (io|math|pathlib|sys|tempfile)\b")
    groups = [sorted(line for line in lines if bool(standard.match(line)) is first) for first in (True, False)]
    return "\n\n".join("\n".join(sorted(group, key=lambda line: line.startswith("from"))) for group in groups if group)


def _plain_contract(piece: Piece) -> Contract:
    """The piece's contract with the names that the script uses."""
    if piece.graph is None:
        return piece.contract
    names = plain_names(piece.graph)

    def plain(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(spec.model_copy(update={"name": names[spec.name]}) for spec in specs)

    return piece.contract.model_copy(update={"inputs": plain(piece.contract.inputs), "outputs": plain(piece.contract.outputs)})
