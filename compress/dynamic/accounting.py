"""Multiply-accumulates of a gated network, sample by sample.

MACs of a layer × the share of its outputs that are on × the share of its inputs that are on, as in Elkerdawy et al. (CVPR 2022),
with two differences to their code: the gates' own MACs are counted, and a depthwise layer scales with its channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...models.gates import GateSpec, gates_of
from ..cost import count
from .candidates import Candidate, Candidates, Reach, candidates, dense_copy
from .wiring import is_depthwise


@dataclass
class _Layer:
    """One layer that some gate touches: its dense MACs, its widths, and what of it goes with which gate."""

    macs: int
    inputs: int
    outputs: int
    depthwise: bool
    touched: list[tuple[str, Reach]] = field(default_factory=list)


class MacModel:
    """The cost of a network with `specs` as its gates, `dense` without them; batch-1 `inputs` say how large the images are.

    `found` are the network's candidates where they are known already; a gate whose mask stands elsewhere than at its candidate's
    points saves its own outputs alone.
    """

    def __init__(
        self, module: nn.Module, inputs: Sequence[Tensor], specs: Sequence[GateSpec], *, found: Candidates | None = None
    ) -> None:
        net = dense_copy(module)
        cost = count(net, inputs)
        known = (found or candidates(net, inputs)).by_path()
        self.dense = cost.macs
        self.gate_macs = sum(gate_macs(spec) for spec in specs)
        self.layers: dict[str, _Layer] = {}
        macs = {layer.path: layer.macs for layer in cost.layers}
        for spec in specs:
            for reach in _reach_of(spec, known.get(spec.conv)):
                self._layer(net, reach.path, macs[reach.path]).touched.append((spec.conv, reach))
        self._rest = self.dense - sum(layer.macs for layer in self.layers.values())

    @classmethod
    def of(cls, gated: nn.Module, inputs: Sequence[Tensor]) -> MacModel:
        """The model of a network that has its gates on, as it comes out of a Bundle."""
        return cls(gated, inputs, [gate.spec for gate in gates_of(gated).values()])

    def _layer(self, net: nn.Module, path: str, macs: int) -> _Layer:
        if path not in self.layers:
            layer = net.get_submodule(path)
            if isinstance(layer, nn.Linear):
                widths = (layer.in_features, layer.out_features)
            elif isinstance(layer, nn.modules.conv._ConvNd):
                widths = (layer.in_channels, layer.out_channels)
            else:
                raise TypeError(f"{path} is a {type(layer).__name__}")
            self.layers[path] = _Layer(macs, *widths, is_depthwise(layer))
        return self.layers[path]

    def per_sample(self, masks: Mapping[str, Tensor]) -> Tensor:
        """MACs of every sample, float64 (N,), gates included; `masks` (N, C) by the convolution's path, non-zero = on.

        A gate without a mask here is taken as all on.
        """
        if not masks:
            raise ValueError("no masks")
        on = {path: (mask.detach() != 0).cpu() for path, mask in masks.items()}
        samples = len(next(iter(on.values())))
        total = torch.full((samples,), float(self._rest + self.gate_macs), dtype=torch.float64)
        for layer in self.layers.values():
            total += layer.macs * self._share(layer, on, samples)
        return total

    @staticmethod
    def _share(layer: _Layer, on: Mapping[str, Tensor], samples: int) -> Tensor:
        """The share of a layer's MACs that is computed for every sample, float64 (N,)."""
        live = {
            "out": torch.ones(samples, layer.outputs, dtype=torch.bool),
            "in": torch.ones(samples, layer.inputs, dtype=torch.bool),
        }
        for conv, reach in layer.touched:
            if conv in on:
                live[reach.side][:, list(reach.own)] &= on[conv][:, list(reach.channel)]
        if layer.depthwise:
            return (live["out"] & live["in"]).sum(1).double() / layer.outputs
        return (live["out"].sum(1) * live["in"].sum(1)).double() / (layer.outputs * layer.inputs)


def gate_macs(spec: GateSpec) -> int:
    """What a gate computes itself: its linear layers (pooling and scaling are not counted, as nowhere)."""
    if spec.hidden:
        return spec.inputs * spec.hidden + spec.hidden * spec.channels
    return spec.inputs * spec.channels


def _reach_of(spec: GateSpec, candidate: Candidate | None) -> tuple[Reach, ...]:
    """What goes with a gate's channels; its own outputs alone where its mask stands elsewhere than was proven."""
    every = tuple(range(spec.channels))
    if candidate is None or candidate.points != spec.points:
        return (Reach(spec.conv, "out", every, every),)
    return candidate.reach
