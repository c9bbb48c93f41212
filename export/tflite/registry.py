"""The conversion rules: one ONNX operator, one small function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .graph import Node

if TYPE_CHECKING:
    from .convert import Converter

Rule = Callable[["Converter", Node], None]
ShapeRule = Callable[[Sequence[tuple[int, ...]], dict[str, Any], Sequence[np.ndarray | None]], Sequence[tuple[int, ...]]]

rules: dict[str, Rule] = {}
shape_rules: dict[str, ShapeRule] = {}


class UnsupportedError(Exception):
    """TFLite cannot hold this node; the reason in words (several for a node that holds others)."""


def rule(*ops: str, shapes: ShapeRule | None = None) -> Callable[[Rule], Rule]:
    """A decorator that files a rule for ONNX operators ("Relu"; "domain.Op" outside the standard set).

    A rule for an operator that ONNX itself cannot infer gives `shapes`: the shapes of the inputs that are there, the
    attributes, and the inputs' values where known → output shapes.
    Raises ValueError when an operator has a rule already.
    """

    def file_it(function: Rule) -> Rule:
        for op in ops:
            if op in rules:
                raise ValueError(f"ONNX operator {op!r} has two TFLite rules")
            rules[op] = function
            if shapes is not None:
                shape_rules[op] = shapes
        return function

    return file_it
