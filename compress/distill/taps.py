"""Reading a network's signals by name: its logits, its embedding, or what any of its modules returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...models.bundle import bare
from ...models.errors import UserError, did_you_mean

LOGITS, EMBEDDING, INPUT = "logits", "embedding", ":in"


class Taps:
    """The named signals of one network, recorded during a forward pass.

    "logits" is what the network returns, "embedding" the classifier's input (spatial and token dimensions averaged: (N, d)),
    any other name the path of a module whose output is read, or "PATH:in" for its first input. Paths are those of the user's own
    module. Raises UserError, with a did-you-mean, for a path that is not there.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], *, whose: str, classifier: str = "") -> None:
        self.names = tuple(dict.fromkeys(names))
        self._values: dict[str, Tensor] = {}
        self._on = False
        self._handles = [
            self._attach(bare(network), name, whose=whose, classifier=classifier) for name in self.names if name != LOGITS
        ]

    def _attach(self, root: nn.Module, name: str, *, whose: str, classifier: str) -> Any:
        if name == EMBEDDING:
            return module_at(root, classifier, whose=whose).register_forward_pre_hook(
                lambda _module, args: self._keep(name, _pooled(args[0]))
            )
        module = module_at(root, name.removesuffix(INPUT), whose=whose)
        if name.endswith(INPUT):
            return module.register_forward_pre_hook(lambda _module, args: self._keep(name, args[0]))
        # a copy: an activation that follows may work in place
        return module.register_forward_hook(lambda _module, _args, out: self._keep(name, _tensor(out, name, whose).clone()))

    def _keep(self, name: str, value: Tensor) -> None:
        if self._on:
            self._values[name] = value

    @contextmanager
    def recording(self) -> Iterator[None]:
        """A context in which forward passes are recorded; outside of it the hooks keep nothing alive."""
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def take(self, output: Tensor) -> dict[str, Tensor]:
        """The values of the last recorded pass, by name, and none kept. Raises UserError for a module that was not run."""
        values = {**self._values, LOGITS: output}
        self._values = {}
        if missing := [name for name in self.names if name not in values]:
            raise UserError(
                f"{missing[0]!r} was not run in the forward pass", hint="tap a module that every input goes through"
            )
        return {name: values[name] for name in self.names}

    def remove(self) -> None:
        """None; the network has no hooks of ours any more."""
        for handle in self._handles:
            handle.remove()


def module_at(root: nn.Module, path: str, *, whose: str) -> nn.Module:
    """The module at `path`. Raises UserError with the nearest paths there are."""
    modules = dict(root.named_modules())
    if not path or path not in modules:
        raise UserError(f"the {whose} has no module {path!r}", hint=did_you_mean(path, [name for name in modules if name]))
    return modules[path]


def _pooled(value: Tensor) -> Tensor:
    """(N, d) of features (N, d), (N, d, H, W) or tokens (N, T, d)."""
    if value.ndim == 4:
        return value.mean((2, 3))
    return value.mean(1) if value.ndim == 3 else value


def _tensor(value: Any, name: str, whose: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, tuple | list) and value and isinstance(value[0], Tensor):
        return value[0]
    raise UserError(f"{name!r} of the {whose} returns a {type(value).__name__}", hint="tap a module that returns a tensor")


@torch.no_grad()
def find_classifier(network: nn.Module, example: Tensor, *, whose: str, key: str) -> str:
    """The path of the layer whose output is the network's own: the one that makes the logits.

    `example` (1, C, H, W) is run once in eval mode. Raises UserError, naming the config `key` to set, when the last thing that
    happens to the output is not a linear layer or a convolution.
    """
    root = bare(network)
    made: list[tuple[str, int]] = []
    handles = [
        module.register_forward_hook(lambda _m, _a, out, name=name: made.append((name, out.untyped_storage().data_ptr())))
        for name, module in root.named_modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    ]
    try:
        with evaluating(network):
            output = network(example)
            address = output.untyped_storage().data_ptr() if isinstance(output, Tensor) else None
    finally:
        for handle in handles:
            handle.remove()
    if not made or made[-1][1] != address:
        raise UserError(
            f"the {whose}'s classifier can't be found: its output is not that of a linear layer or a convolution",
            hint=f'name the layer that makes the logits: {key} = "PATH"' + (f", such as {made[-1][0]!r}" if made else ""),
        )
    return made[-1][0]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """A context in which `network` is in eval mode; every submodule gets its own mode back."""
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@torch.no_grad()
def shape_of(network: nn.Module, tap: str, example: Tensor, *, whose: str, classifier: str = "") -> tuple[int, ...]:
    """The shape of one signal without its batch dimension."""
    taps = Taps(network, (tap,), whose=whose, classifier=classifier)
    try:
        with evaluating(network), taps.recording():
            return tuple(taps.take(network(example))[tap].shape[1:])
    finally:
        taps.remove()
