"""Gates: small predictors that look at a layer's input and decide which of its output channels are computed for this sample.

Source: Elkerdawy et al., "Fire Together Wire Together: A Dynamic Pruning Approach with Self-Supervised Mask Prediction"
(CVPR 2022), §3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from .edits import HINT, submodule
from .errors import UserError

CHILD = "gate"
_STATE = "_trimtab_gate"


class GateSpec(BaseModel):
    """One gate: the convolution whose input it sees, and the modules whose outputs its mask multiplies.

    `points[0]` is the convolution's normalisation (or the convolution itself, without one); the others are those of depthwise
    convolutions fed by it, which share its mask. `rectified`: a ReLU-like activation follows, so that only positive values fire.
    `scale` is what happens to the pooled input: the paper's softmax over channels, or standardisation by running statistics.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    conv: str
    points: tuple[str, ...] = Field(min_length=1)
    inputs: int = Field(ge=1)
    channels: int = Field(ge=1)
    rectified: bool = True
    pool: Literal["max", "avg"] = "max"
    scale: Literal["softmax", "standardise"] = "softmax"
    hidden: int = Field(0, ge=0)


class Gate(nn.Module):
    """The mask predictor: global pooling → scaling → linear (→ ReLU → linear); a channel is on where its logit is positive.

    After a forward pass of the network: `logits` and `mask` (N, C) of that pass, and with `taping` the `saliency` (N, C), each
    channel's largest response over space before the mask. `chooser`, when set, makes the mask from the saliency in the
    predictor's stead. `detach` keeps the predictor's loss out of the layers before it (the paper's decoupled mode).
    """

    def __init__(self, spec: GateSpec) -> None:
        super().__init__()
        self.spec = spec
        self.norm = nn.BatchNorm1d(spec.inputs, affine=False) if spec.scale == "standardise" else nn.Softmax(dim=1)
        wide = spec.hidden or spec.inputs
        self.embed = nn.Sequential(nn.Linear(spec.inputs, wide), nn.ReLU()) if spec.hidden else nn.Identity()
        self.linear = nn.Linear(wide, spec.channels)
        self.detach = True
        self.taping = False
        self.chooser: Callable[[Tensor], Tensor] | None = None
        self.logits: Tensor | None = None
        self.mask: Tensor | None = None
        self.saliency: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: not what the last pass left, which may hang on a graph that can't be copied."""
        return {**self.__dict__, "logits": None, "mask": None, "saliency": None}

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C_out) for a layer's input (N, C_in, H, W)."""
        pooled = x.amax((2, 3)) if self.spec.pool == "max" else x.mean((2, 3))
        return self.linear(self.embed(self.norm(pooled)))

    def look(self, x: Tensor) -> None:
        """None; predicts from the layer's input, unless a chooser does it later."""
        if self.chooser is None or self.taping:
            self.logits = self(x.detach() if self.detach else x)

    def close(self, output: Tensor, *, first: bool) -> Tensor:
        """`output` (N, C, H, W) with the channels that are off set to zero."""
        if first:
            if self.taping or self.chooser is not None:
                self.saliency = _saliency(output.detach(), rectified=self.spec.rectified)
            if self.chooser is not None and self.saliency is not None:
                self.mask = self.chooser(self.saliency).to(output.dtype)
            elif self.logits is not None:
                self.mask = (self.logits > 0).to(output.dtype)
        if self.mask is None:
            raise RuntimeError(f"the gate of {self.spec.conv} did not see its layer's input")
        return output * self.mask[:, :, None, None]


def _saliency(output: Tensor, *, rectified: bool) -> Tensor:
    """Each channel's largest response over space, (N, C, H, W) → (N, C) float32: of what a ReLU lets through, or of |output|."""
    return (output.clamp_min(0) if rectified else output.abs()).amax((2, 3)).float()


def attach(module: nn.Module, specs: Iterable[GateSpec]) -> nn.Module:
    """`module` with a Gate at every spec's convolution (its child "gate"); the names of its own weights stay as they were.

    Raises UserError when a spec is for another network.
    """
    for spec in specs:
        conv = submodule(module, spec.conv)
        if not isinstance(conv, nn.Conv2d) or (conv.in_channels, conv.out_channels) != (spec.inputs, spec.channels):
            shown = f"{conv.in_channels}→{conv.out_channels}" if isinstance(conv, nn.Conv2d) else type(conv).__name__
            raise UserError(f"a gate of {spec.inputs}→{spec.channels} channels is planned at {spec.conv}, a {shown}", hint=HINT)
        if hasattr(conv, CHILD):
            raise UserError(f"{spec.conv} has a gate already", hint="a layer takes one gate")
        gate = Gate(spec).to(conv.weight.device)
        conv.add_module(CHILD, gate)
        conv.register_forward_pre_hook(_look)
        for number, path in enumerate(spec.points):
            point = submodule(module, path)
            point.__dict__[_STATE] = (gate, number == 0)  # not a child: it has its place at the convolution
            point.register_forward_hook(_close)
    return module


def detach_gates(module: nn.Module) -> nn.Module:
    """`module` without its gates: the dense network."""
    for part in module.modules():
        if CHILD in part._modules and isinstance(part._modules[CHILD], Gate):
            del part._modules[CHILD]
            _drop(part._forward_pre_hooks, _look)
        if part.__dict__.pop(_STATE, None) is not None:
            _drop(part._forward_hooks, _close)
    return module


def gates_of(module: nn.Module) -> dict[str, Gate]:
    """The gates of a network by their convolution's path, in the network's order."""
    return {gate.spec.conv: gate for gate in module.modules() if isinstance(gate, Gate)}


def _look(conv: nn.Module, args: tuple[Tensor, ...]) -> None:
    conv.get_submodule(CHILD).look(args[0])  # type: ignore[operator]  # it is a Gate: `attach` put it there


def _close(point: nn.Module, _args: Any, output: Tensor) -> Tensor:
    gate, first = point.__dict__[_STATE]
    return gate.close(output, first=first)


def _drop(hooks: dict[int, Any], hook: Callable[..., Any]) -> None:
    for key in [key for key, value in hooks.items() if value is hook]:
        del hooks[key]
