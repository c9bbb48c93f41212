"""The last feature map of a network: what its classifier pools."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..models.bundle import bare
from ..models.errors import UserError
from .distill.taps import evaluating, shape_of

PASSING = (nn.modules.dropout._DropoutNd, nn.Identity)
"""Layers after the map that only disturb it or pass it on."""


@torch.no_grad()
def find_feature_map(network: nn.Module, example: Tensor, *, key: str) -> str:
    """The path of the last module to return a 4-D map of more than one position, dropout and identities left out.

    `example` (1, C, H, W) is run once in eval mode. Raises UserError, naming the config `key` to set, when no module does, and when
    tokens (N, T, d) come after the map: a transformer's only map is its embedded patches.
    """
    seen: list[tuple[str, Tensor]] = []

    def record(name: str) -> Any:
        return lambda _module, _args, out: seen.append((name, out)) if isinstance(out, Tensor) else None

    handles = [
        module.register_forward_hook(record(name))
        for name, module in bare(network).named_modules()
        if name and not isinstance(module, PASSING)
    ]
    try:
        with evaluating(network):
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    maps = [at for at, (_, out) in enumerate(seen) if out.ndim == 4 and out.shape[2] * out.shape[3] > 1]
    hint = f'name the module whose output is meant: {key} = "PATH"'
    if not maps:
        raise UserError("the network has no feature map: no module returns (N, C, H, W) with more than one position", hint=hint)
    name, _ = seen[maps[-1]]
    if any(out.ndim == 3 for _, out in seen[maps[-1] + 1 :]):
        raise UserError(f"the network works on tokens after its last feature map ({name!r})", hint=hint)
    return name


def feature_map(network: nn.Module, example: Tensor, given: str, *, key: str) -> str:
    """The path that the user gave, or the one that is found when `given` is "".

    Raises UserError for a path that is not there, that is not run, or that returns a single number a sample, and as
    `find_feature_map` does.
    """
    if not given:
        return find_feature_map(network, example, key=key)
    shape = shape_of(network, given, example, whose="network")
    if torch.Size(shape).numel() < 2:
        raise UserError(
            f"{key} = {given!r} returns one number a sample, and one has no variance",
            hint="name the last convolution's module, before pooling",
        )
    return given
