"""The deployment mode "gathered": a gated network whose switched-off channels are not computed, for ONNX Runtime at batch 1.

For every sample the rows of a gated convolution's weight that are on, and the columns of the inputs that are on, are gathered
before the convolution. The function is the masked network's own, since only products with zero are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...models.contract import Contract, TensorSpec
from ...models.errors import UserError
from ..source import Source, gate_margin, torch_reference

if TYPE_CHECKING:
    import onnx
    from torch import nn

Keep = float | Mapping[str, float]

REFUSALS: Mapping[str, str] = {
    "tflite": "TFLite has no kernels for it here (NonZero with a length that depends on the data), and a LiteRT convolution whose "
    "filter is not a constant leaves XNNPACK and is slower than the dense one",
    "coreml": "a Core ML convolution wants a constant bias before the iOS 18 operators; those convert, yet nobody has run them",
}
"""Why the other formats don't hold a gathered network."""
ONLY_HERE = "it runs in ONNX Runtime alone: OpenVINO's CPU plugin (2026.4) does not compile a convolution whose weight changes its shape"


def refuse(format_name: str) -> None:
    """None for "onnx". Raises UserError with the reason for every other format."""
    if format_name != "onnx":
        reason = REFUSALS.get(format_name, "only ONNX Runtime was found to run convolutions with gathered weights")
        raise UserError(
            f"{format_name} can't hold a gathered network: {reason}",
            hint="use --to onnx, or --dynamic masked, static or routed",
        )


def single(contract: Contract) -> Contract:
    """The contract with batch 1. Raises UserError where another size is free, or the batch is fixed at another number."""
    free = [symbol for symbol in contract.symbols if symbol != "N"]
    if free:
        raise UserError(
            f"a gathered network needs fixed sizes, and {', '.join(free)} of the input are free",
            hint="fix the image size in the contract, or use --dynamic masked",
        )
    for spec in contract.inputs:
        if spec.shape and spec.shape[0] not in ("N", 1):
            raise UserError(
                f"a gathered network takes one sample at a time, and the batch of {spec.name!r} is fixed at {spec.shape[0]}",
                hint="make the network with a free batch, or use --dynamic masked",
            )

    def one(spec: TensorSpec) -> TensorSpec:
        return spec.model_copy(update={"shape": tuple(1 if d == "N" else d for d in spec.shape)})

    return contract.model_copy(
        update={"inputs": tuple(map(one, contract.inputs)), "outputs": tuple(map(one, contract.outputs))}
    )


def gathered_graph(
    module: nn.Module, contract: Contract, *, keep: Keep = 0.5, seed: int = 0
) -> tuple[onnx.ModelProto, Contract, tuple[str, ...]]:
    """The ONNX graph of a gated network that gathers, its contract (batch 1), and notes: what is gathered, what not and why.

    `keep` is the share of channels that are usually on, one for all or by the convolution's path: it decides where gathering
    pays. Small maps need few channels on; 0 gathers wherever it can be done.
    Raises UserError when the network has no gates, when none of its layers can be gathered, and for a contract with free sizes.
    """
    import torch

    from ...models.gates import gates_of
    from ..onnx import to_graph
    from .gather_rewrite import rewrite

    gates = gates_of(module)
    if not gates:
        raise UserError(
            "the network has no gates, so there is nothing to gather",
            hint='train it with the recipe step "ftwt" first, or export it without --dynamic',
        )
    contract = single(contract)
    example = tuple(torch.from_numpy(v) for v in contract.random_inputs({}, seed=seed).values())
    done = rewrite(to_graph(module, contract, example), lambda node: _share(keep, _path(node)))
    paths = {_path(name): "" for name in done.gathered} | {_path(name): reason for name, reason in done.masked.items()}
    reasons = {name: paths.get(name, "its mask is not applied to the convolution's own output") for name in gates}
    left = [f"{name} stays masked: {reason}" for name, reason in reasons.items() if reason]
    if not done.gathered:
        raise UserError(
            f"none of the {len(gates)} gated convolutions can be gathered: {left[0]}", hint="use --dynamic masked or static"
        )
    notes = [f"{len(done.gathered)} of {len(gates)} gated convolutions are gathered", *left]
    shared = sum(len(gate.spec.points) - 1 for gate in gates.values())
    if shared:
        notes.append(
            f"{shared} depthwise convolutions compute all their channels: ONNX fixes the number of groups, so channels can't come and go"
        )
    notes.append(ONLY_HERE)
    return done.model, contract, tuple(notes)


def gathered_source(
    module: nn.Module,
    contract: Contract,
    *,
    label: str,
    origin: dict[str, str] | None = None,
    keep: Keep = 0.5,
    seed: int = 0,
) -> Source:
    """A gated network as a Source that gathers; the masked module is the reference. Only "onnx" can be written from it.

    The notes of `gathered_graph` are in `origin["notes"]`, a line each. Raises UserError as `gathered_graph` does.
    """
    module = module.eval()
    graph, contract, notes = gathered_graph(module, contract, keep=keep, seed=seed)
    return Source(
        label,
        contract,
        torch_reference(module, contract),
        graph,
        None,
        {**(origin or {}), "notes": "\n".join(notes)},
        dynamic={"mode": "gathered"},
        margin=gate_margin(module, contract),
    )


def _share(keep: Keep, path: str) -> float:
    return float(keep.get(path, 0.5)) if isinstance(keep, Mapping) else float(keep)


def _path(node: str) -> str:
    """The module that an ONNX node came from: "/layer1/layer1.0/conv1/Conv" is layer1.0.conv1."""
    parts: list[str] = []
    for part in node.strip("/").split("/")[:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts[-1] = part
        else:
            parts.append(part)
    return ".".join(parts)
