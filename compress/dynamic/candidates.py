"""Which convolutions of a network can be gated, what each gate saves, and why the others can't.

The rules, all read off the graph of operations and the dependency graph, none off class names of blocks:

- The mask stands behind the convolution's own normalisation, or behind the convolution where nothing normalises its output.
- Plain chain: a channel that is off is off for its consumers too, so that their input channels are saved as well. Depthwise
  convolutions in between share the mask. Proven for every convolution: masked equals sliced.
- Residual sum: the branch is masked before the addition, and its own outputs alone are saved.
- Concatenation: consumers' inputs are saved where the gate's channels lie in them.
- A grouped convolution takes no gate; one that is fed by a gate saves nothing of its own.
- An activation behind the mask must keep zero at zero.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from ...models.errors import UserError
from ...models.gates import GateSpec, detach_gates, gates_of
from ..cost import count
from ..groups import ChannelGroup, Member, analyse
from .proof import Prover
from .wiring import Node, Wiring, is_depthwise, op


@dataclass(frozen=True)
class Reach:
    """Channels of one layer that go when a gate's channels go: `own[i]` of the layer's side with `channel[i]` of the gate."""

    path: str
    side: str
    own: tuple[int, ...]
    channel: tuple[int, ...]


@dataclass(frozen=True)
class Candidate:
    """A convolution that can be gated: where its mask stands (`points`), what goes with its channels, and what does not (`note`)."""

    conv: str
    points: tuple[str, ...]
    inputs: int
    channels: int
    rectified: bool
    reach: tuple[Reach, ...]
    depthwise: tuple[str, ...] = ()
    note: str = ""

    @property
    def own_outputs_only(self) -> bool:
        """Whether the consumers compute as much as before."""
        return len(self.reach) == 1


@dataclass(frozen=True)
class Ungated:
    """A layer that takes no gate of its own, and why."""

    path: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Candidates:
    """All convolutions that can be gated, in the network's order, and the layers that can't."""

    found: tuple[Candidate, ...]
    ungated: tuple[Ungated, ...]

    def by_path(self) -> dict[str, Candidate]:
        """The candidates by their convolution's path."""
        return {candidate.conv: candidate for candidate in self.found}


def candidates(module: nn.Module, inputs: Sequence[Tensor], *, keep: Iterable[str] = ()) -> Candidates:
    """What can be gated in `module` (its gates, if it has some, left out of account), judged on `inputs` of batch 1.

    `keep` names modules that stay ungated (a name covers everything below it). Raises UserError for a name that the network lacks,
    and when it can't be differentiated.
    """
    keep = tuple(keep)
    dense = dense_copy(module)
    _check_names(dense, keep)
    survey = _Survey(dense, inputs)
    found: list[Candidate] = []
    ungated: list[Ungated] = []
    for path, layer in dense.named_modules():
        if isinstance(layer, nn.Linear):
            ungated.append(Ungated(path, type(layer).__name__, "linear layers are not gated"))
        elif isinstance(layer, nn.modules.conv._ConvNd):
            reason = _kept(path, keep) or survey.refusal(path, layer)
            if reason:
                ungated.append(Ungated(path, type(layer).__name__, reason))
            else:
                found.append(survey.candidate(path, layer))
    sharing = {path: candidate.conv for candidate in found for path in candidate.depthwise}
    shown = [
        replace(u, reason=f"a depthwise convolution, which shares the mask of {sharing[u.path]}") if u.path in sharing else u
        for u in ungated
    ]
    return Candidates(tuple(found), tuple(shown))


def dense_copy(module: nn.Module) -> nn.Module:
    """A copy of a network without its gates."""
    for gate in gates_of(module).values():
        gate.logits = gate.mask = gate.saliency = None  # what a graph hangs on can't be copied
    return detach_gates(copy.deepcopy(module))


def spec_of(candidate: Candidate, *, pool: str = "max", scale: str = "softmax", hidden: int = 0) -> GateSpec:
    """The gate that a candidate gets."""
    return GateSpec.model_validate(
        {
            "conv": candidate.conv,
            "points": candidate.points,
            "inputs": candidate.inputs,
            "channels": candidate.channels,
            "rectified": candidate.rectified,
            "pool": pool,
            "scale": scale,
            "hidden": hidden,
        }
    )


def _check_names(module: nn.Module, keep: tuple[str, ...]) -> None:
    names = dict(module.named_modules())
    for name in keep:
        if name not in names:
            raise UserError(f"keep names {name!r}, which the network lacks", hint="`trimtab inspect` lists the names")


def _kept(path: str, keep: tuple[str, ...]) -> str:
    name = next((n for n in keep if path == n or path.startswith(f"{n}.")), "")
    return f"the recipe keeps {name}" if name else ""


class _Survey:
    """Everything that is known of a network before its convolutions are judged one by one."""

    def __init__(self, dense: nn.Module, inputs: Sequence[Tensor]) -> None:
        self.net = dense
        self.macs = {layer.path: layer.macs for layer in count(dense, inputs).layers}
        self.wiring = Wiring(dense, inputs)
        self.prover = Prover(dense, inputs)
        self.groups: dict[str, list[ChannelGroup]] = {}
        self.fixed: dict[str, str] = {}
        try:
            analysis = analyse(copy.deepcopy(dense), inputs)
        except UserError as error:  # gates need less than cuts do: each saves its own outputs then
            self.fixed = dict.fromkeys(self.macs, str(error))
            return
        self.fixed = {f.path: f.reason for f in analysis.fixed}
        for group in analysis.groups:
            for path in {m.path for m in group.members if m.side == "out"}:
                self.groups.setdefault(path, []).append(group)

    def refusal(self, path: str, conv: nn.modules.conv._ConvNd) -> str:
        """Why a convolution can't be gated, or ""."""
        wiring, calls = self.wiring, self.wiring.calls.get(path, 0)
        if calls != 1:
            return f"it runs {calls} times in a pass" if calls else "it does not run as a module"
        if wiring.made[path] not in wiring.reached:
            return "it is not on a differentiable path to the output"
        return _kind_refusal(conv) or self._cost_refusal(path, conv) or self._place_refusal(path)

    def _cost_refusal(self, path: str, conv: nn.modules.conv._ConvNd) -> str:
        if self.wiring.ranks[path] != 4:
            return "its input has no batch dimension"
        if self.macs[path] <= conv.in_channels * conv.out_channels:
            return "its gate would compute as much as it does itself"
        return ""

    def _place_refusal(self, path: str) -> str:
        point, reason = self.point(path)
        if reason:
            return reason
        if self.wiring.is_output(path):
            return "its channels are the network's output"
        return _activation_refusal([op(node) for node in self.wiring.onward(point, _CARRIERS)])

    def point(self, path: str) -> tuple[str, str]:
        """Where the mask of a convolution stands, or why there is no such place."""
        norms, after = self.wiring.norms_of(path), self.wiring.after(path)
        if not norms:
            bare = next((op(node) for node in after if "Norm" in op(node)), "")
            return (
                path,
                f"its normalisation is a function ({bare}), not a module behind which a mask could stand" if bare else "",
            )
        norm = self.net.get_submodule(norms[0])
        if len(norms) > 1 or len(after) > 1:
            return path, f"its output goes to {norms[0]} and elsewhere"
        if self.wiring.calls[norms[0]] != 1:
            return path, f"{norms[0]} normalises other layers too"
        if isinstance(norm, nn.LayerNorm) or (isinstance(norm, nn.GroupNorm) and norm.num_groups != norm.num_channels):
            return path, f"{norms[0]}, a {type(norm).__name__}, computes its statistics over several channels"
        return norms[0], ""

    def candidate(self, path: str, conv: nn.modules.conv._ConvNd) -> Candidate:
        """A convolution that is not refused, with all that provably goes with its channels."""
        point, _ = self.point(path)
        ahead = list(self.wiring.onward(point, _CARRIERS))
        rectified = bool(ahead) and all(_rectifies(node) for node in ahead)
        every = tuple(range(conv.out_channels))
        own = Candidate(
            path,
            (point,),
            conv.in_channels,
            conv.out_channels,
            rectified,
            reach=(Reach(path, "out", every, every),),
        )
        groups = self.groups.get(path, [])
        if len(groups) != 1:
            return replace(
                own, note=f"only its own outputs are saved: {self.fixed.get(path, 'several groups share its channels')}"
            )
        return self._with_consumers(own, groups[0])

    def _with_consumers(self, own: Candidate, group: ChannelGroup) -> Candidate:
        """The candidate with its consumers' inputs, where masking is as good as slicing; else as it was, with the reason."""
        if group.blocks > 1:
            tied = next(m.path for m in group.members if _blocks(self.net, m) > 1)
            return replace(own, note=f"only its own outputs are saved: {tied} is grouped")
        me = [m for m in group.members if m.path == own.conv and m.side == "out"]
        root_of = {o: r for m in me for o, r in zip(m.own, m.root, strict=True)}
        if len(root_of) != own.channels or len(set(root_of.values())) != own.channels:
            return replace(own, note="only its own outputs are saved: its channels come several times in what follows")
        depthwise = [m.path for m in group.members if m.side == "out" and is_depthwise(self.net.get_submodule(m.path))]
        places = [self.point(path) for path in depthwise]
        points = (*own.points, *(place for place, reason in places if not reason))
        if any(reason for _, reason in places) or not self.prover.removable(points, group, root_of):
            return replace(own, note=_why_own_only(self.net, own.conv, group))
        return replace(own, points=points, reach=_reach(self.net, own, group, root_of), depthwise=tuple(depthwise))


def _reach(net: nn.Module, own: Candidate, group: ChannelGroup, root_of: dict[int, int]) -> tuple[Reach, ...]:
    """Every layer's channels that go with the gate's; the convolution's own first."""
    channel_of = {root: channel for channel, root in root_of.items()}
    others = [
        Reach(m.path, m.side, m.own, tuple(channel_of[r] for r in m.root))
        for m in group.members
        if m.path != own.conv and m.side in ("out", "in") and isinstance(net.get_submodule(m.path), _COUNTED)
    ]
    return (*own.reach, *others)


_COUNTED = (nn.modules.conv._ConvNd, nn.Linear)


def _blocks(net: nn.Module, member: Member) -> int:
    layer = net.get_submodule(member.path) if member.side in ("out", "in") else None
    if isinstance(layer, nn.modules.conv._ConvNd):
        return 1 if is_depthwise(layer) else layer.groups
    return layer.num_groups if isinstance(layer, nn.GroupNorm) else 1


def _why_own_only(net: nn.Module, conv: str, group: ChannelGroup) -> str:
    makers = [m.path for m in group.members if m.side == "out" and isinstance(net.get_submodule(m.path), _COUNTED)]
    others = [path for path in makers if path != conv and not is_depthwise(net.get_submodule(path))]
    if others:
        shown = ", ".join(list(dict.fromkeys(others))[:2]) + (" …" if len(set(others)) > 2 else "")
        return f"only its own outputs are saved: its channels are one sum with those of {shown}"
    return "only its own outputs are saved: a channel that is off still leaves something behind in what follows"


def _kind_refusal(conv: nn.modules.conv._ConvNd) -> str:
    if conv.transposed or not isinstance(conv, nn.Conv2d):
        return f"a {type(conv).__name__}: gates take plain 2-D convolutions"
    if is_depthwise(conv):
        return "a depthwise convolution that no gated one feeds"
    if conv.groups > 1:
        return f"a grouped convolution ({conv.groups} groups)"
    return "it has one channel" if conv.out_channels < 2 else ""


_RECTIFIERS = frozenset({"Relu", "Hardtanh", "ClampMin", "Clamp", "Threshold"})
_ZERO_AT_ZERO = _RECTIFIERS | {
    "Silu", "Hardswish", "Gelu", "LeakyRelu", "Elu", "Celu", "Mish", "Tanh", "PreluKernel", "RreluWithNoise", "Hardshrink",
    "Softshrink",
}  # fmt: skip
_NOT_ZERO = {
    "Sigmoid": "0.5",
    "Hardsigmoid": "0.5",
    "Softplus": "0.69",
    "LogSigmoid": "−0.69",
    "Exp": "1",
    "Cos": "1",
    "Softmax": "a share",
    "LogSoftmax": "a share",
}
_CARRIERS = frozenset({
    "MaxPool2DWithIndices", "AvgPool2D", "AdaptiveAvgPool2D", "AdaptiveMaxPool2D", "Mean", "Amax", "View", "UnsafeView", "Reshape",
    "ReshapeAlias", "Slice", "Select", "Split", "SplitWithSizes", "Unbind", "Permute", "Transpose", "Squeeze", "Unsqueeze",
    "Expand", "Clone", "ToCopy", "Cat", "ConstantPadNd", "ReflectionPad2D", "ReplicationPad2D", "UpsampleNearest2D",
    "UpsampleBilinear2D", "PixelShuffle", "PixelUnshuffle", "NativeDropout", "AsStrided",
})  # fmt: skip
_ENDS = frozenset({"Add", "Sub", "Mul", "Div", "Convolution", "Addmm", "Mm", "Bmm", "Baddbmm", "Sum"})
"""Operations on a channel that is off that leave it as it is, or that belong to what comes after the sum."""


def _rectifies(node: Node) -> bool:
    lowest = getattr(node, "_saved_min_val", getattr(node, "_saved_min", 0))  # ReLU6 is a hard tanh from 0 to 6
    return op(node) in _RECTIFIERS and lowest == 0


def _activation_refusal(ahead: Sequence[str]) -> str:
    """Why what follows a mask forbids it, or ""."""
    for name in ahead:
        if name in _NOT_ZERO:
            return f"{name} follows, which makes {_NOT_ZERO[name]} of a channel that is off (zero)"
        if name not in _ZERO_AT_ZERO and name not in _ENDS and "Norm" not in name:
            return f"{name} follows, of which it is not known that it leaves a channel that is off at zero"
    return ""
