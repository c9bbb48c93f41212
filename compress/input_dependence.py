"""What every layer is fed: the range of each input channel over random inputs, and whether it depends on the network's inputs at all.

Dependence is found by running the network on NaN. A convolution or linear layer passes NaN on only through weights that are not 0;
all that is elementwise, normalisation in eval mode and pooling keep it in its channel. What is a number in the end cannot have come
from the inputs. An operation that loses NaN (a comparison) is caught by the random inputs, which must show one value as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
EQUAL = 1e-12
"""Largest spread of a constant relative to it, in float64: positions computed by other instructions differ by rounding, about 1e-16."""


@dataclass(frozen=True)
class Fed:
    """Per input channel of a layer (per feature of a linear one): lowest and highest value, and whether the inputs decide it."""

    low: Tensor
    high: Tensor
    dependent: Tensor

    @property
    def constant(self) -> Tensor:
        """bool (channels,): one value everywhere in all runs."""
        return self.high - self.low <= EQUAL * torch.maximum(self.high.abs(), self.low.abs())


@torch.no_grad()
def observe(module: nn.Module, probes: Sequence[Sequence[Tensor]]) -> dict[str, Fed]:
    """What each convolution and linear layer that is called as a module is fed, by path. `module` is in float64 and eval mode."""
    ranges: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [layer.register_forward_pre_hook(_ranging(ranges, path)) for path, layer in _layers(module)]
    try:
        for probe in probes:
            module(*probe)
    finally:
        for hook in hooks:
            hook.remove()
    dependent = _dependent(module, probes[0])
    return {
        path: Fed(low, high, dependent.get(path, torch.ones_like(low, dtype=torch.bool)))
        for path, (low, high) in ranges.items()
    }


def outputs_of(module: nn.Module, probes: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """All tensors that the network returns for all probes."""
    with torch.no_grad():
        return [leaf for probe in probes for leaf in tree_leaves(module(*probe)) if isinstance(leaf, Tensor)]


def deviation(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """The largest difference between two lists of outputs over the largest wanted value; 0 for outputs that are all 0 in both."""
    gap = max((float((a - b).abs().max()) for a, b in zip(wanted, got, strict=True) if a.numel()), default=0.0)
    scale = max((float(a.abs().max()) for a in wanted if a.numel()), default=0.0)
    return gap / scale if scale else gap


def _layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(path, layer) for path, layer in module.named_modules() if isinstance(layer, LAYERS)]


def _by_channel(layer: nn.Module, x: Tensor) -> Tensor:
    """(channels, all else) of a layer's input."""
    axis = x.dim() - 1 if isinstance(layer, nn.Linear) else x.dim() - len(layer.kernel_size) - 1  # type: ignore[arg-type]
    return x.movedim(axis, 0).flatten(1) if x.dim() > 1 else x[:, None]


def _ranging(ranges: dict[str, tuple[Tensor, Tensor]], path: str) -> Any:
    def record(layer: nn.Module, args: tuple[Any, ...]) -> None:
        values = _by_channel(layer, args[0])
        low, high = values.amin(1), values.amax(1)
        if path in ranges:
            low, high = torch.minimum(low, ranges[path][0]), torch.maximum(high, ranges[path][1])
        ranges[path] = low, high

    return record


def _dependent(module: nn.Module, probe: Sequence[Tensor]) -> dict[str, Tensor]:
    """Per layer and input channel: whether any of its values is NaN when the inputs are. Empty where inputs can't be NaN."""
    if not all(value.is_floating_point() for value in probe):
        return {}
    found: dict[str, Tensor] = {}
    hooks = []
    for path, layer in _layers(module):
        hooks.append(layer.register_forward_pre_hook(_marking(found, path)))
        hooks.append(layer.register_forward_hook(_through_weights))
    try:
        module(*[torch.full_like(value, torch.nan) for value in probe])
    except (RuntimeError, ValueError, IndexError):  # a network that looks at its values and refuses these
        return {}
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _marking(found: dict[str, Tensor], path: str) -> Any:
    def record(layer: nn.Module, args: tuple[Any, ...]) -> None:
        marked = _by_channel(layer, args[0]).isnan().any(1)
        found[path] = marked | found[path] if path in found else marked

    return record


def _through_weights(layer: Any, args: tuple[Any, ...], _output: Tensor) -> Tensor:
    """The layer's output with NaN only where a weight that is not 0 meets one."""
    x, rest = args[0], args[1:]
    clean = layer.forward(x.nan_to_num(0.0), *rest)
    weight = layer.weight.data
    try:
        layer.weight.data = (weight != 0).to(weight.dtype)
        met = layer.forward(x.isnan().to(x.dtype), *rest) - layer.forward(torch.zeros_like(x), *rest)
    finally:
        layer.weight.data = weight
    return clean.masked_fill(met > 0.5, torch.nan)
