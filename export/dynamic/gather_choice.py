"""Which gated convolutions are worth gathering: an estimate from sizes and from the share of channels that is usually on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A convolution without groups: the gate on its output and the one whose channels it reads ("": none), and its sizes.

    `pixels` of its output map, `area` of its kernel, `width` output channels and `depth` input channels.
    """

    gate: str
    reads: str
    pixels: int
    area: int
    width: int
    depth: int


def gain(layer: Layer, *, outputs: float, inputs: float | None) -> float:
    """What gathering these shares of a layer's channels saves, in MACs of a dense convolution; below 0 it costs. None: input full.

    The constants were fitted to ONNX Runtime 1.32 on one x86 core: a convolution whose weight changes takes 1.25 times as long
    for each MAC, and more where few channels fill its registers; copying rows of weights costs 10 MACs for each number, and
    picking columns from them 210 + 88 · area for each pair of channels.
    """
    pair = outputs * (1.0 if inputs is None else inputs)
    picking = 0.0 if inputs is None else pair * (210 + 88 * layer.area)
    saved = layer.pixels * layer.area * (1 - (1.25 + 10 / layer.width) * pair)
    return (saved - 10 * layer.area * outputs - picking) * layer.width * layer.depth


def narrow(layer: Layer, shares: Mapping[str, float], chosen: Collection[str]) -> bool:
    """Whether a layer reads only the channels that are on, rather than all."""
    if layer.reads not in chosen:
        return False
    inputs, own = shares[layer.reads], shares[layer.gate] if layer.gate in chosen else None
    if own is None:
        return gain(layer, outputs=1.0, inputs=inputs) > 0
    return gain(layer, outputs=own, inputs=inputs) >= gain(layer, outputs=own, inputs=None)


def worth(layer: Layer, shares: Mapping[str, float], chosen: Collection[str]) -> float:
    """What a layer saves when these gates' layers are gathered."""
    inputs = shares[layer.reads] if narrow(layer, shares, chosen) else None
    if layer.gate not in chosen and inputs is None:
        return 0.0
    return gain(layer, outputs=shares[layer.gate] if layer.gate in chosen else 1.0, inputs=inputs)


def choose(layers: Sequence[Layer], shares: Mapping[str, float]) -> set[str]:
    """The gates whose layers are gathered: from all of them the one that costs most is taken away, until each saves time.

    What a gate saves is counted with the layers that read its channels.
    """
    chosen = {layer.gate for layer in layers if layer.gate}
    touched = {gate: [layer for layer in layers if gate in (layer.gate, layer.reads)] for gate in chosen}
    while chosen:
        saved = {}
        for gate in chosen:
            without = chosen - {gate}
            saved[gate] = sum(worth(layer, shares, chosen) - worth(layer, shares, without) for layer in touched[gate])
        worst = min(sorted(saved), key=lambda gate: saved[gate])
        if saved[worst] > 0:
            break
        chosen.discard(worst)
    return chosen if sum(worth(layer, shares, chosen) for layer in layers) > 0 else set()
