"""Where a constant that a channel carries can go: into the bias of the layer that reads it, or the mean of the batch norm behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models.masks import masks_of
from .input_dependence import LAYERS, deviation, outputs_of

EXACT = 1e-9
"""Largest deviation in float64 that counts as none: rounding through a deep network is about 1e-14."""
PADDED = "zero padding makes the edges differ"


@dataclass(frozen=True)
class Place:
    """Where a reader's constants go: a module's bias or (`mean`) the running mean of a batch norm. `why_not` exactly: "" if it is."""

    path: str
    mean: bool = False
    why_not: str = ""


def places(module: nn.Module, probes: Sequence[Sequence[Tensor]]) -> dict[str, Place]:
    """Per layer that a constant can be folded into: where it goes. `module` is in float64 and eval mode."""
    masked = masks_of(module)
    behind = _norms_behind(module, probes[:1])
    found = {}
    for path, layer in module.named_modules():
        if not isinstance(layer, LAYERS) or getattr(layer, "transposed", False) or getattr(layer, "groups", 1) > 1:
            continue
        why_not = PADDED if _pads(layer) else ""
        if layer.bias is not None and f"{path}.bias" not in masked:
            found[path] = Place(path, why_not=why_not)
        elif path in behind:
            found[path] = Place(behind[path], mean=True, why_not=why_not)
    return found


def _pads(layer: Any) -> bool:
    """Whether a layer sees zeros beyond the edges (other paddings repeat what is inside: a constant stays one)."""
    return not isinstance(layer, nn.Linear) and layer.padding_mode == "zeros" and any(layer._reversed_padding_repeated_twice)


@torch.no_grad()
def fold(module: nn.Module, path: str, place: Place, constants: Tensor) -> None:
    """None; `module` adds what the layer at `path` makes of `constants` (input channels,) in float64 without being fed them."""
    layer = module.get_submodule(path)
    weight: Any = layer.weight
    constant = weight.detach().double().flatten(2).sum(2) if weight.dim() > 2 else weight.detach().double()
    added = constant @ constants
    target: Any = module.get_submodule(place.path)
    held = target.running_mean if place.mean else target.bias
    held.copy_(held.double() - added if place.mean else held.double() + added)


@torch.no_grad()
def _norms_behind(module: nn.Module, probes: Sequence[Sequence[Tensor]]) -> dict[str, str]:
    """Per layer the batch norm that alone reads its output: proven by shifting both, which must change nothing."""
    made: list[tuple[str, Any]] = []
    pairs: dict[str, list[str]] = {}
    hooks: list[Any] = []
    for path, part in module.named_modules():
        if isinstance(part, LAYERS):
            hooks.append(part.register_forward_hook(_noting(made, path)))
        elif isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            hooks.append(part.register_forward_pre_hook(_matching(made, pairs, path)))
    try:
        outputs = outputs_of(module, probes)
    finally:
        for hook in hooks:
            hook.remove()
    calls = [path for path, _ in made]
    return {
        path: norms[0]
        for path, norms in pairs.items()
        if len(norms) == calls.count(path) == 1 and _alone(module, probes, outputs, path, norms[0])
    }


def _noting(made: list[tuple[str, Any]], path: str) -> Any:
    def note(_layer: nn.Module, _args: Any, output: Any) -> None:
        made.append((path, output))

    return note


def _matching(made: list[tuple[str, Any]], pairs: dict[str, list[str]], path: str) -> Any:
    def match(_norm: nn.Module, args: tuple[Any, ...]) -> None:
        for maker, output in made:
            if output is args[0]:
                pairs.setdefault(maker, []).append(path)

    return match


def _alone(module: nn.Module, probes: Sequence[Sequence[Tensor]], outputs: list[Tensor], path: str, norm: str) -> bool:
    layer, mean = module.get_submodule(path), module.get_submodule(norm).running_mean
    if not isinstance(mean, Tensor):
        return False
    shift = torch.linspace(1, 2, len(mean), dtype=mean.dtype)
    dims = 0 if isinstance(layer, nn.Linear) else len(layer.kernel_size)  # type: ignore[arg-type]
    before = mean.clone()
    hook = layer.register_forward_hook(lambda _m, _a, out: out + shift.view(-1, *[1] * dims))
    try:
        mean.add_(shift)
        return deviation(outputs, outputs_of(module, probes)) <= EXACT
    finally:
        hook.remove()
        mean.copy_(before)
