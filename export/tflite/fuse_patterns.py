"""Rewrites that recognise one function behind several nodes: Gelu, PixelShuffle, GroupNorm, broadcasting."""

from __future__ import annotations

import numpy as np

from .editor import Editor
from .graph import Node

_SHUFFLES = {
    (0, 1, 4, 2, 5, 3): ("CRD", (1, 2, 3)),
    (0, 3, 4, 1, 5, 2): ("DCR", (3, 1, 2)),
}
"""Reshape → Transpose by this order → Reshape is DepthToSpace; where channels and the block's two sides are before it."""


_RELABELS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})


def gelu(edit: Editor) -> None:
    """x·½·(1 + erf(x/√2)) in any order of its factors: one Gelu."""
    for erf in [n for n in edit.graph.nodes if n.op == "Erf"]:
        source = _scaled_by(edit, erf.inputs[0], float(np.sqrt(0.5)))
        plus = edit.only(erf.outputs[0])
        if source is None or plus is None or plus.op != "Add" or 1.0 not in [edit.number(n) for n in plus.inputs]:
            continue
        factors, last = [source], plus
        wanted: list[str | float] = [source, 0.5]
        while wanted:
            product = edit.only(last.outputs[0])
            if product is None or product.op not in ("Mul", "Div"):
                break
            other = product.inputs[1] if product.inputs[0] == last.outputs[0] else product.inputs[0]
            taken = _factor(edit, other, source, product.op == "Div")
            if taken is None or any(t not in wanted for t in taken):
                break
            for t in taken:
                wanted.remove(t)
            last = product
        if not wanted and factors:
            edit.replace(last, "Gelu", [source], {"approximate": "none"})


def hard_swish(edit: Editor) -> None:
    """x·HardSigmoid(x) with slope 1/6 and offset ½: one HardSwish."""
    for gate in [n for n in edit.graph.nodes if n.op == "HardSigmoid"]:
        product = edit.only(gate.outputs[0])
        slope, offset = float(gate.attr("alpha", 0.2)), float(gate.attr("beta", 0.5))
        if product is None or product.op != "Mul" or abs(slope - 1 / 6) > 1e-6 or abs(offset - 0.5) > 1e-6:
            continue
        if set(product.inputs) == {gate.inputs[0], gate.outputs[0]}:
            edit.replace(product, "HardSwish", [gate.inputs[0]], {})


def _factor(edit: Editor, name: str, source: str, division: bool) -> list[str | float] | None:
    """Which of Gelu's factors a value is: x, ½ or both (x·½)."""
    number = edit.number(name)
    if number is not None:
        value = 1 / number if division else number
        return [0.5] if value == 0.5 else None
    if division:
        return None
    if name == source:
        return [source]
    return [source, 0.5] if _scaled_by(edit, name, 0.5) == source else None


def _scaled_by(edit: Editor, name: str, factor: float) -> str | None:
    """The value that `name` is `factor` times of, within float32's rounding."""
    node = edit.producers.get(name)
    if node is None or node.op not in ("Mul", "Div"):
        return None
    for one, other in ((0, 1), (1, 0)):
        number = edit.number(node.inputs[one])
        if number is None or (node.op == "Div" and one == 0):
            continue
        value = 1 / number if node.op == "Div" else number
        if abs(value - factor) < 1e-6:
            return node.inputs[other]
    return None


def _image_before(edit: Editor, name: str) -> str | None:
    """The nearest rank-4 value of which `name` is a mere reshape."""
    while (node := edit.producers.get(name)) is not None and node.op in _RELABELS:
        name = node.inputs[0]
        probe = edit.probe(name)
        if probe is not None and probe.shape[1] == 4:
            return name
    return None


def _image_after(edit: Editor, name: str) -> Node | None:
    """The nearest node that reshapes `name`, read by it alone, to rank 4."""
    while (node := edit.only(name)) is not None and node.op in _RELABELS:
        name = node.outputs[0]
        probe = edit.probe(name)
        if probe is not None and probe.shape[1] == 4:
            return node
    return None


def pixel_shuffle(edit: Editor) -> None:
    """Reshape → 6-D Transpose → Reshape: DepthToSpace, or torch's pixel_unshuffle."""
    for turn in [n for n in edit.graph.nodes if n.op == "Transpose"]:
        image, merge = _image_before(edit, turn.inputs[0]), _image_after(edit, turn.outputs[0])
        if image is None or merge is None:
            continue
        before, inside, after = (edit.probe(n) for n in (image, turn.inputs[0], merge.outputs[0]))
        if before is None or inside is None or after is None or inside.shape[1] != 6:
            continue
        perm = tuple(turn.attr("perm", ()))
        if perm in _SHUFFLES:
            mode, (c, r, s) = _SHUFFLES[perm]
            block = int(inside[0, r])
            expected = np.stack([before[:, 0], inside[:, c], before[:, 2] * block, before[:, 3] * block], axis=1)
            square = np.all(inside[:, [r, s]] == block) and np.array_equal(inside[:, 4:], before[:, 2:])
            if square and np.array_equal(after, expected):
                edit.replace(merge, "DepthToSpace", [image], {"blocksize": block, "mode": mode})
        elif perm == (0, 1, 3, 5, 2, 4):
            block = int(inside[0, 3])
            grid = np.stack([before[:, 0], before[:, 1] * block**2, inside[:, 2], inside[:, 4]], axis=1)
            square = np.all(inside[:, [3, 5]] == block) and np.array_equal(inside[:, :2], before[:, :2])
            if square and np.array_equal(inside[:, [2, 4]] * block, before[:, 2:]) and np.array_equal(after, grid):
                edit.replace(merge, "PixelUnshuffle", [image], {"blocksize": block})


def group_norm(edit: Editor) -> None:
    """Reshape (N, G, …) → InstanceNormalization → Reshape back: GroupNormalization, which needs no reshape of the map."""
    for norm in [n for n in edit.graph.nodes if n.op == "InstanceNormalization"]:
        split, merge = edit.producers.get(norm.inputs[0]), edit.only(norm.outputs[0])
        if split is None or merge is None or split.op != "Reshape" or merge.op != "Reshape":
            continue
        before, inside, after = (edit.probe(n) for n in (split.inputs[0], norm.inputs[0], merge.outputs[0]))
        if before is None or inside is None or after is None or not np.array_equal(before, after):
            continue
        groups = int(inside[0, 1])
        channels = int(before[0, 1]) if before.shape[1] > 2 else 0
        fixed = np.all(before[:, 1] == channels) and np.all(inside[:, 1] == groups)
        if not channels or not fixed or channels % groups or not np.array_equal(before[:, 0], inside[:, 0]):
            continue
        scale, bias = edit.const(norm.inputs[1]), edit.const(norm.inputs[2])
        if scale is None or bias is None:
            continue
        per = channels // groups
        names = [edit.add(norm.outputs[0] + s, np.repeat(v, per)) for s, v in (("_scale", scale), ("_bias", bias))]
        attrs = {"num_groups": groups, "epsilon": norm.attr("epsilon", 1e-5)}
        edit.replace(merge, "GroupNormalization", [split.inputs[0], *names], attrs)


def skip_expand(edit: Editor) -> None:
    """Expand before an operator that broadcasts by itself to the same shape: nothing."""
    broadcasting = {"Add", "Sub", "Mul", "Div", "Where", "Min", "Max", "Equal", "Greater", "Less", "And", "Or"}
    for grow in [n for n in edit.graph.nodes if n.op == "Expand"]:
        reader, small = edit.only(grow.outputs[0]), edit.probe(grow.inputs[0])
        wide = edit.probe(grow.outputs[0])
        if reader is None or reader.op not in broadcasting or small is None or wide is None or small.shape != wide.shape:
            continue
        others = [edit.probe(n) for n in reader.inputs if n != grow.outputs[0]]
        if any(o is not None and np.array_equal(o, wide) for o in others):
            reader.inputs = [grow.inputs[0] if n == grow.outputs[0] else n for n in reader.inputs]
