"""What `trimtab inspect --filters` says: a row a layer, what to cut and how, and the shift to another network."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import output
from .models.errors import UserError

if TYPE_CHECKING:
    from .compress.analyse.filter_shift import FilterShift, Kernels, Shift
    from .compress.analyse.filters import FilterRow
    from .models.bundle import Bundle
    from .options import Selection


LEGEND = (
    "S: kernels all of whose weights are below a hundredth of the layer's largest.",
    "0: weights that are exactly 0. H: entropy, how evenly kernels vary in all",
    "directions (3×3: 0 … 0.954). H/T: above 1 as untrained; not 3×3: H/log10(size).",
    "O: 1 = filters at right angles. Verdicts and T are for 3×3 kernels.",
)


def show_filters(bundle: Bundle, against: Path | None, selection: Selection) -> None:
    """None; the filters' quality, and with `against` the shift, told and given as the result."""
    from .compress.analyse.filter_shift import filter_shift, network_kernels
    from .compress.analyse.filters import filter_quality

    module = bundle.module()
    rows = filter_quality(module)
    _say_layers(bundle.manifest.architecture.name, rows)
    _say_cuts(rows)
    found: dict[str, Any] = {"layers": [asdict(row) for row in rows], "param_ratio": param_ratio(rows)}
    if against is not None:
        kernels, ordered = other_kernels(against, selection)
        shift = filter_shift(network_kernels(module), kernels, ordered=ordered)
        _say_shift(shift, against)
        found["shift"] = asdict(shift)
    output.result(found)


def other_kernels(path: Path, selection: Selection) -> tuple[Kernels, bool]:
    """The 3×3 kernels of a Bundle, or of a checkpoint of any network, and whether they stand in their network's order."""
    from .compress.analyse.filter_shift import network_kernels, state_kernels
    from .loading import open_network
    from .models.bundle import MANIFEST
    from .models.checkpoint import load_state

    if path.is_dir() or path.name == MANIFEST:
        with ExitStack() as stack:
            # --model names the first network's code, --data its task
            other, _ = open_network(path, stack, replace(selection, model=None, model_args=[], task=None, data=None))
            return network_kernels(other.module()), True
    if not path.exists():
        raise UserError(f"--against {path} does not exist", hint="a Bundle's folder, or a .safetensors/.pt checkpoint")
    return state_kernels(load_state(path)), path.suffix != ".safetensors"


def param_ratio(rows: Sequence[FilterRow]) -> float:
    """The share of parameters left when every layer loses its suggested share of filters."""
    return 1 - sum(row.cut * row.params for row in rows) / sum(row.params for row in rows)


def _say_layers(name: str, rows: Sequence[FilterRow]) -> None:
    table = [
        (
            row.path or "(root)",
            f"{row.kernels} {'×'.join(map(str, row.kernel)) if row.kernel else row.kind.lower()}",
            f"{100 * row.sparsity:.0f}",
            f"{100 * row.zeros:.0f}",
            _number(row.entropy, 2),
            _number(row.ratio, 3),
            _number(row.orthogonality, 2),
            row.verdict,
            f"{row.cut:.0%}" if row.cut >= 0.005 else "",
        )
        for row in rows
    ]
    output.table(f"filters of {name}", ("layer", "kernels", ">S %", ">0 %", ">H", ">H/T", ">O", "verdict", ">cut"), table)
    output.say()
    for line in LEGEND:
        output.say(line)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _say_cuts(rows: Sequence[FilterRow]) -> None:
    """The verdicts counted, the reasons of those that are not healthy, and the recipe's step."""
    counts = Counter(row.verdict for row in rows)
    output.say()
    output.say(", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()))
    if not any(row.kernel for row in rows):
        output.say("no convolution: linear layers have no spatial kernels, so neither entropy nor a verdict on it")
    for row in rows:
        if row.verdict in {"random-like", "redundant", "degenerate"}:
            output.say(f"  {row.path or '(root)'}: {row.verdict}: {row.reason}")
    cut = [row for row in rows if row.cut >= 0.005]
    if not cut:
        output.say("nothing to cut by these figures: no filter is empty and no layer redundant")
        return
    output.say("to cut, a heuristic to be measured: " + ", ".join(f"{row.path} {row.cut:.0%}" for row in cut))
    output.say(f'  with the step kind = "structured", param_ratio = {param_ratio(rows):.2f}{_kept(rows)}')


def _kept(rows: Sequence[FilterRow]) -> str:
    """The `keep` of layers that look untrained."""
    kept = [row.path for row in rows if row.verdict == "random-like"]
    return f", keep = {json.dumps(kept)}" if kept else ""


def _say_shift(shift: FilterShift, against: Path) -> None:
    output.say()
    rows = [_shift_row("all layers", shift.overall)]
    rows += [_shift_row(row.name, row) for row in shift.layers]
    rows += [_shift_row(f"depth {row.name}", row) for row in shift.depths]
    output.table(f"shift to {against.name} (3×3 kernels)", ("where", ">kernels", ">in the other", ">D", ">by chance"), rows)
    if shift.note:
        output.say(shift.note)
    output.say("D: 0 for the same kernels. By chance: D of random splits of both together; with")
    output.say("few kernels it is large, and a D about as large says nothing.")


def _shift_row(name: str, row: Shift) -> tuple[str, str, str, str, str]:
    return name, str(row.kernels[0]), str(row.kernels[1]), f"{row.divergence:.4f}", f"{row.chance:.4f}"
