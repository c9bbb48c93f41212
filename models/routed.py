"""A routed network: branches of different size cut from one architecture, of which one answers for each sample.

Every branch is dense, so that a runtime runs it at full speed. The smallest branch whose score reaches its threshold answers, the
last one when none does; the score is the branch's own confidence (cascade) or what a router predicts from the input.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from .edits import Edit, cut, submodule
from .errors import UserError

_OWNER = "_trimtab_owner"
Rule = Literal["cascade", "router", "cluster"]


class RouterSpec(BaseModel):
    """The predictor of a one-shot route. `at` names the module whose output it reads, in the largest branch; "" = the input.

    `pool` averages the input over pool × pool pixels first; `inputs` is the number of channels it reads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: str = ""
    inputs: int = Field(ge=1)
    pool: int = Field(2, ge=1)
    width: int = Field(8, ge=1)


class RouteSpec(BaseModel):
    """K branches, smallest first, as edits on the network that the plan's own edits leave, and the rule that picks one.

    `shared` names modules that all branches use as they are (uncut; a prefix is computed once in an artifact). `nested`: the
    convolution and linear weights of smaller branches are slices of the largest one's; otherwise each has its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    branches: tuple[tuple[Edit, ...], ...] = Field(min_length=2, max_length=8)
    rule: Rule = "cascade"
    shared: tuple[str, ...] = ()
    nested: bool = False
    router: RouterSpec | None = None

    @model_validator(mode="after")
    def _coherent(self) -> RouteSpec:
        if (self.rule == "cascade") != (self.router is None):
            raise ValueError(f"rule {self.rule!r} {'takes no' if self.rule == 'cascade' else 'needs a'} router")
        return self


class Router(nn.Module):
    """Scores (N, outputs) from pixels or features: two strided convolutions (pixels) or none (features), mean, linear.

    Sigmoids (the chance that each branch but the last suffices) under rule "router", logits of the K clusters under "cluster".
    """

    def __init__(self, spec: RouterSpec, outputs: int, *, rule: Rule) -> None:
        super().__init__()
        self.rule = rule
        if spec.at:
            self.body: nn.Module = nn.Identity()
            wide = spec.inputs
        else:
            self.body = nn.Sequential(
                nn.AvgPool2d(spec.pool) if spec.pool > 1 else nn.Identity(),
                nn.Conv2d(spec.inputs, spec.width, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Conv2d(spec.width, 2 * spec.width, 3, stride=2, padding=1),
                nn.ReLU(),
            )
            wide = 2 * spec.width
        self.head = nn.Sequential(nn.Linear(wide, 2 * spec.width), nn.ReLU(), nn.Linear(2 * spec.width, outputs))

    def logits(self, x: Tensor) -> Tensor:
        """Logits (N, outputs): what training works on."""
        return self.head(self.body(x).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, outputs) for an input or feature map (N, C, H, W)."""
        return self.logits(x) if self.rule == "cluster" else torch.sigmoid(self.logits(x))


class RoutedNet(nn.Module):
    """Branches, a rule, and K−1 thresholds in 0…1 (a buffer: calibrated after training, changeable at any time).

    A higher threshold sends more samples to larger branches. `taken` (N,) int64 is the branch that answered each sample of the
    last pass. A batch is split among the branches; an exported artifact takes one sample at a time.
    """

    thresholds: Tensor

    def __init__(self, module: nn.Module, spec: RouteSpec) -> None:
        super().__init__()
        self.spec = spec
        branches = [copy.deepcopy(module) for _ in spec.branches]
        for branch, edits in zip(branches, spec.branches, strict=True):
            for edit in edits:
                cut(branch, edit)
        for branch in branches[:-1]:
            for path in spec.shared:
                owner_path, _, name = path.rpartition(".")
                setattr(submodule(branch, owner_path), name, submodule(branches[-1], path))
        if spec.nested:
            for branch, edits in zip(branches[:-1], spec.branches[:-1], strict=True):
                _nest(branch, branches[-1], edits, spec.branches[-1], spec.shared)
        self.branches = nn.ModuleList(branches)
        count = len(branches)
        self.router = (
            None if spec.router is None else Router(spec.router, count if spec.rule == "cluster" else count - 1, rule=spec.rule)
        )
        self.register_buffer("thresholds", torch.full((0 if spec.rule == "cluster" else count - 1,), 0.5))
        self.taken = torch.zeros(0, dtype=torch.int64)

    def forward(self, x: Tensor, thresholds: Tensor | None = None) -> Tensor:
        """The answers of the branches that were picked, (N, …). `thresholds` (K−1,): in place of the network's own."""
        limits = self.thresholds if thresholds is None else thresholds
        if self.router is None:
            return self._cascade(x, limits)
        taken = self.pick(x, limits)
        self.taken = taken
        rows = [(taken == number).nonzero()[:, 0] for number in range(len(self.branches))]
        answers = [branch(x[chosen]) for branch, chosen in zip(self.branches, rows, strict=True) if len(chosen)]
        return torch.cat(answers)[torch.cat(rows).argsort()]

    def pick(self, x: Tensor, limits: Tensor) -> Tensor:
        """The router's branch for every sample, (N,) int64."""
        if self.router is None:
            raise RuntimeError("a cascade picks as it goes")
        scores = self.router(self.router_input(x))
        if self.spec.rule == "cluster":
            return scores.argmax(1)
        return first_reaching(scores, limits)

    def router_input(self, x: Tensor) -> Tensor:
        """What the router reads: the input, or the features at its module of the largest branch."""
        at = self.spec.router.at if self.spec.router else ""
        return features_at(self.branches[-1], at, x) if at else x

    def _cascade(self, x: Tensor, limits: Tensor) -> Tensor:
        left = torch.arange(len(x), device=x.device)
        rows, answers = [], []
        for number, branch in enumerate(self.branches):
            answer = branch(x[left])
            last = number + 1 == len(self.branches)
            done = torch.ones_like(left, dtype=torch.bool) if last else confidence(answer) >= limits[number]
            rows.append(left[done])
            answers.append(answer[done])
            left = left[~done]
            if not len(left):
                break
        order = torch.cat(rows).argsort()
        self.taken = torch.cat([torch.full_like(chosen, number) for number, chosen in enumerate(rows)])[order]
        return torch.cat(answers)[order]


def confidence(logits: Tensor) -> Tensor:
    """The largest softmax probability of each row, (N, classes) → (N,)."""
    return logits.float().softmax(1).amax(1)


def first_reaching(scores: Tensor, limits: Tensor) -> Tensor:
    """The first branch whose score reaches its limit, else the last: scores (N, K−1), limits (K−1,) → (N,) int64."""
    short = (scores < limits).to(torch.int64)
    return short.cumprod(1).sum(1)


def features_at(module: nn.Module, path: str, x: Tensor) -> Tensor:
    """The output of the submodule at `path` for input `x`; nothing after it is computed."""
    seen: list[Tensor] = []

    def stop(_module: nn.Module, _args: Any, output: Tensor) -> None:
        seen.append(output)
        raise _ReachedError

    handle = submodule(module, path).register_forward_hook(stop)
    try:
        module(x)
    except _ReachedError:
        return seen[0]
    finally:
        handle.remove()
    raise UserError(f"the network's forward pass never reaches {path!r}", hint="name a module that runs for every input")


class _ReachedError(Exception):
    """The forward pass has come as far as it is needed."""


def plain_branch(net: RoutedNet, number: int) -> nn.Module:
    """A copy of one branch that stands alone, nested weights made its own: what exporters and cost counters take."""
    branch = copy.deepcopy(net.branches[number])
    for part in branch.modules():
        nested = part.__dict__.pop(_OWNER, None)
        if nested is not None:
            part._forward_pre_hooks.clear()
            part._forward_hooks.clear()
            part.__dict__.pop("weight", None)
            part.register_parameter("weight", nn.Parameter(nested.weight().detach().clone()))
    return branch


class _Nested:
    """Where a nested weight comes from: the layer that owns it and the kept positions of its two dimensions (None = all)."""

    def __init__(self, owner: nn.Module, outputs: Tensor | None, inputs: Tensor | None) -> None:
        self.owner, self.outputs, self.inputs = owner, outputs, inputs

    def weight(self) -> Tensor:
        """The slice, differentiable with respect to the owner's weight."""
        weight: Tensor = self.owner.weight  # type: ignore[assignment]  # a convolution or linear layer has one
        if self.outputs is not None:
            weight = weight.index_select(0, self.outputs.to(weight.device))
        if self.inputs is not None:
            weight = weight.index_select(1, self.inputs.to(weight.device))
        return weight


def _nest(
    branch: nn.Module, largest: nn.Module, edits: tuple[Edit, ...], its: tuple[Edit, ...], shared: tuple[str, ...]
) -> None:
    """None; the dense convolutions and linear layers of `branch` take their weights from `largest`."""
    for path, layer in branch.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear) or any(path == s or path.startswith(f"{s}.") for s in shared):
            continue
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
        if depthwise and isinstance(layer, nn.Conv2d) and layer.groups != layer.in_channels:
            continue  # a grouped convolution keeps weights of its own
        outputs = _within(path, "out", edits, its)
        inputs = None if depthwise else _within(path, "in", edits, its)
        nested = _Nested(largest.get_submodule(path), outputs, inputs)
        del layer._parameters["weight"]
        layer.__dict__[_OWNER] = nested
        layer.register_forward_pre_hook(_borrow)
        layer.register_forward_hook(_return)
        _borrow(layer, ())
        _return(layer)


def _borrow(layer: nn.Module, _args: Any) -> None:
    layer.__dict__["weight"] = layer.__dict__[_OWNER].weight()


def _return(layer: nn.Module, *_: Any) -> None:
    layer.__dict__["weight"] = layer.__dict__["weight"].detach()  # a tensor with a history could not be copied


def _within(path: str, side: str, edits: tuple[Edit, ...], its: tuple[Edit, ...]) -> Tensor | None:
    """The positions that `edits` keep among those that `its` keep. Raises UserError when they are not nested."""
    mine = next((e for e in edits if e.path == path and e.side == side), None)
    theirs = next((e for e in its if e.path == path and e.side == side), None)
    if mine is None:
        if theirs is not None:
            raise UserError(f"the branches are not nested at {path} ({side})", hint="make the route again")
        return None
    index = {channel: i for i, channel in enumerate(theirs.kept if theirs else range(mine.size))}
    if missing := [k for k in mine.kept if k not in index]:
        raise UserError(f"the branches are not nested at {path} ({side}): channel {missing[0]}", hint="make the route again")
    return torch.tensor([index[k] for k in mine.kept], dtype=torch.int64)
