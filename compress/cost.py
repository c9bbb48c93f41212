"""What a network costs: MACs, params, bytes and activation peak, in all and per layer.

MACs are the multiply-accumulates of convolutions (plain, grouped, transposed), linear layers, matrix products and scaled
dot-product attention: exactly half of what `torch.utils.flop_counter` counts. Additions of biases, normalisations,
activations and pooling are not counted, as the field does not count them.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


@dataclass(frozen=True)
class LayerCost:
    """One module's own cost, its children's left out: MACs at the counted batch, params, and its last output's shape without N."""

    path: str
    kind: str
    output: tuple[int, ...]
    macs: int
    params: int


@dataclass(frozen=True)
class Cost:
    """A network's cost for the inputs it was counted with.

    `activation_peak_bytes` is the peak of live intermediate tensors in an eager forward pass, inputs and outputs included,
    weights not.
    """

    macs: int
    params: int
    weight_bytes: int
    activation_peak_bytes: int
    layers: tuple[LayerCost, ...]


def count(module: nn.Module, inputs: Sequence[Tensor]) -> Cost:
    """The cost of one forward pass of `module` in eval mode on `inputs` (batch 1 for the usual figures)."""
    outputs: dict[str, tuple[int, ...]] = {}
    hooks = [m.register_forward_hook(_shape_recorder(outputs, name)) for name, m in module.named_modules()]
    training = module.training
    counter, peak = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION), _LivePeak()
    try:
        module.eval()
        with torch.no_grad(), peak, counter:
            result = module(*inputs)
    finally:
        module.train(training)
        for hook in hooks:
            hook.remove()
    del result
    totals = _macs_by_path(counter, type(module).__name__)
    layers = tuple(
        LayerCost(
            path=name,
            kind=type(m).__name__,
            output=outputs.get(name, ()),
            macs=totals.get(name, 0)
            - sum(totals.get(f"{name}.{child}" if name else child, 0) for child, _ in m.named_children()),
            params=sum(p.numel() for p in m.parameters(recurse=False)),
        )
        for name, m in module.named_modules()
    )
    unique = {id(p): p for p in module.parameters()}.values()
    return Cost(
        macs=counter.get_total_flops() // 2,
        params=sum(p.numel() for p in unique),
        weight_bytes=sum(p.numel() * p.element_size() for p in unique)
        + sum(b.numel() * b.element_size() for b in module.buffers()),
        activation_peak_bytes=peak.bytes + sum(t.numel() * t.element_size() for t in inputs),
        layers=tuple(layer for layer in layers if layer.macs or layer.params),
    )


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """The operations of the two products of scaled dot-product attention, from the shapes of its operands."""
    return sdpa_flop_count(query, key, value)


# torch counts attention in its GPU kernels and, decomposed, in matrix products; the CPU's own fused kernel it forgets
_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


def _shape_recorder(outputs: dict[str, tuple[int, ...]], name: str) -> Any:
    def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs[name] = tuple(output.shape[1:])

    return record


def _macs_by_path(counter: FlopCounterMode, root: str) -> dict[str, int]:
    """MACs of every module with its children, by its name in the root module ("" is the root)."""
    totals = {}
    for key, ops in counter.get_flop_counts().items():
        if key == root or key.startswith(f"{root}."):
            totals[key.removeprefix(root).removeprefix(".")] = sum(ops.values()) // 2
    return totals


class _LivePeak(TorchDispatchMode):
    """Tracks the bytes of tensors made inside the block that are alive at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._now = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self._enter(tensor.untyped_storage())
        return result

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key, size = storage.data_ptr(), storage.nbytes()
        if key in self._seen or not size:
            return
        self._seen.add(key)
        self._now += size
        self.bytes = max(self.bytes, self._now)
        weakref.finalize(storage, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._now -= size
