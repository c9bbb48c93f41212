"""Rewrites of the ONNX graph before conversion: what several nodes say together and one TFLite operator says at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .editor import Editor
from .fuse_layers import fold_affine, fold_pads, gemm, linear
from .fuse_patterns import gelu, group_norm, hard_swish, pixel_shuffle, skip_expand
from .graph import Graph
from .layout import Scramble
from .rules_shape import PIXELS

_PASSING = frozenset(
    {
        "Relu",
        "Sigmoid",
        "Tanh",
        "LeakyRelu",
        "PRelu",
        "Elu",
        "Selu",
        "Celu",
        "HardSigmoid",
        "HardSwish",
        "Mish",
        "Softplus",
        "Softsign",
        "Gelu",
        "Clip",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "BatchNormalization",
        "Identity",
        "Dropout",
        "Abs",
        "Neg",
        "Exp",
        "Sqrt",
        "Swish",
    }
)
"""Operators that pass a scrambled axis on as it is."""


def fuse(graph: Graph) -> None:
    """Rewrite the graph and its branches in place; every value that stays keeps its name, shape and numbers."""
    passes: tuple[Callable[[Editor], None], ...] = (
        gemm,
        linear,
        fold_affine,
        fold_pads,
        gelu,
        hard_swish,
        pixel_shuffle,
        group_norm,
        skip_expand,
        _order_for_reader,
    )
    for step in passes:
        step(Editor(graph))
        graph.prune()
    for node in graph.nodes:
        for block in node.blocks:
            fuse(block)


def _order_for_reader(edit: Editor) -> None:
    """Have a layer write its channels in the order in which a later PixelShuffle or reshape to an image stores them."""
    for node in edit.graph.nodes:
        shape = edit.probe(node.outputs[0]) if node.op in ("DepthToSpace", "Reshape") else None
        source = edit.probe(node.inputs[0]) if shape is not None else None
        if shape is None or source is None:
            continue
        if node.op == "DepthToSpace" and node.attr("mode", "DCR") == "CRD":
            block, channels = int(node.attr("blocksize")), int(source[0, 1])
            order = Scramble((channels // block**2, block, block), PIXELS)
            _ask(edit, node.inputs[0], order, ("Conv",))
        elif node.op == "Reshape" and source.shape[1] == 2 and shape.shape[1] == 4:
            dims = tuple(int(d) for d in shape[0, 1:])
            if (
                np.array_equal(source[:, 0], shape[:, 0])
                and np.all(shape[:, 1:] == dims)
                and dims[0] > 1
                and dims[1:] != (1, 1)
            ):
                _ask(edit, node.inputs[0], Scramble(dims, PIXELS), ("Linear",))


def _ask(edit: Editor, name: str, order: Scramble, layers: tuple[str, ...]) -> None:
    """Mark the layer behind `name` when only element-wise operators, read by nothing else, lie between."""
    while True:
        node = edit.producers.get(name)
        if node is None or edit.only(name) is None:
            return
        if node.op in layers:
            if node.op != "Conv" or int(node.attr("group", 1)) == 1:
                node.attrs = node.attrs | {"_order": order}
            return
        computed = [n for n in node.inputs if n and edit.const(n) is None]
        if node.op not in _PASSING or len(computed) != 1:
            return
        name = computed[0]
