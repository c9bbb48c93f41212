"""What follows what in a network: the graph of operations behind its outputs, with the modules that made them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...models.errors import UserError

Node = Any
"""A node of torch's autograd graph: one operation, functional or of a module."""

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_MIXING = frozenset({"Convolution", "Addmm", "Mm", "Bmm", "Baddbmm"})


def op(node: Node) -> str:
    """The operation's name in torch's words: "Relu", "NativeBatchNorm", "Add" …"""
    return re.sub(r"Backward\d*$", "", type(node).__name__)


class Wiring:
    """The operations of one pass in eval mode, forwards: who consumes a convolution's output, be it module or function.

    Raises UserError when the network can't be differentiated. `module` is left with gradients on for all its parameters.
    """

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor]) -> None:
        self.calls: dict[str, int] = {}
        self.made: dict[str, Node] = {}
        self.ranks: dict[str, int] = {}
        self._normalised: dict[Node, list[str]] = {}
        self._layer_of: dict[Node, nn.Module] = {}
        self.consumers: dict[Node, list[Node]] = {}
        module.requires_grad_(True)
        hooks = [
            layer.register_forward_hook(partial(self._saw, path))
            for path, layer in module.named_modules()
            if isinstance(layer, (nn.modules.conv._ConvNd, *_NORMS))
        ]
        training = module.training
        try:
            with torch.enable_grad():
                returned = module.eval()(*inputs)
        finally:
            module.train(training)
            for hook in hooks:
                hook.remove()
        self.outputs = {t.grad_fn for t in tree_leaves(returned) if isinstance(t, Tensor) and t.grad_fn is not None}
        if not self.outputs:
            raise UserError(
                "the network's output does not depend on its weights by differentiable steps",
                hint="gates need a network that can be trained",
            )
        self._walk()

    def _saw(self, path: str, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.calls[path] = self.calls.get(path, 0) + 1
        if not (args and isinstance(args[0], Tensor) and isinstance(output, Tensor)):
            return
        self.ranks[path] = output.ndim
        self.made[path] = output.grad_fn
        if isinstance(layer, nn.modules.conv._ConvNd):
            self._layer_of[output.grad_fn] = layer
        elif args[0].grad_fn is not None:
            self._normalised.setdefault(args[0].grad_fn, []).append(path)

    def _walk(self) -> None:
        seen, todo = set(self.outputs), list(self.outputs)
        while todo:
            node = todo.pop()
            for before, _ in node.next_functions:
                if before is None:
                    continue
                self.consumers.setdefault(before, []).append(node)
                if before not in seen:
                    seen.add(before)
                    todo.append(before)
        self.reached = seen

    def norms_of(self, path: str) -> list[str]:
        """The normalisation modules that read a convolution's output."""
        return self._normalised.get(self.made[path], [])

    def after(self, path: str) -> list[Node]:
        """The operations that read a module's output."""
        return self.consumers.get(self.made[path], [])

    def onward(self, path: str, carriers: frozenset[str]) -> Iterator[Node]:
        """The first operations after a module's output that are not carriers (views, pooling, concatenation …)."""
        seen: set[Node] = set()
        todo = list(self.after(path))
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            if op(node) in carriers:
                todo += self.consumers.get(node, [])
            else:
                yield node

    def is_output(self, path: str) -> bool:
        """Whether a module's channels are among the network's outputs: no layer that mixes channels stands between."""
        seen: set[Node] = set()
        todo = [self.made[path]]
        while todo:
            node = todo.pop()
            if node in self.outputs:
                return True
            for after in self.consumers.get(node, []):
                if after not in seen and not self._mixes(after):
                    seen.add(after)
                    todo.append(after)
        return False

    def _mixes(self, node: Node) -> bool:
        return op(node) in _MIXING and not is_depthwise(self._layer_of.get(node))


def is_depthwise(layer: nn.Module | None) -> bool:
    """Whether a layer is a convolution of each channel by itself."""
    return isinstance(layer, nn.modules.conv._ConvNd) and 1 < layer.groups == layer.in_channels == layer.out_channels
