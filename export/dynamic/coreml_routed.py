"""Core ML: a routed network as one mlprogram that decides inside, by nested `cond` operations, and runs on iOS 16 and later.

The branches, the prefix that they share and the router are traced one by one; a scripted module of nothing but choices joins
them, since tracing follows no choice. The prefix is computed once. A package with a function per branch (iOS 18) would leave the
decision, and the prefix's second computation, to the app.

In a float16 package the scores are computed from float16 logits, but the decision (softmax or sigmoid, comparison) stays in
float32 and the thresholds are float32: a sample is decided otherwise than in float32 only where its score lies within the logits'
own rounding of a threshold.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...models.contract import Contract, TensorSpec
from ...models.edits import submodule
from ...models.errors import UserError
from ...models.routed import RoutedNet, confidence, plain_branch
from ..coreml import CARD, saved
from ..coreml_audit import audited
from ..coreml_inputs import features, narrowed_contract
from ..coreml_quiet import quiet
from ..coreml_trace import converted, first_line, systems, trace
from ..coreml_weights import FORMS, Weight, islands, left_alone, packed
from ..exporter import Exported

_DECISION = frozenset(
    {"softmax", "reduce_max", "reduce_argmax", "sigmoid", "greater_equal", "equal", "slice_by_index", "squeeze"}
)
"""Operations between what the network computes and a choice; they stay in float32."""


def routed_contract(net: RoutedNet, contract: Contract) -> Contract:
    """The contract of the routed artifact: one sample at a time, and the input "thresholds" (K−1,) unless clusters decide.

    `contract` is the plain network's, or names the thresholds already. Raises UserError when the network has several inputs or
    outputs, or leaves more than the batch free.
    """
    count = len(net.thresholds)
    limits = (TensorSpec(name="thresholds", shape=(count,), value_range=(0.0, 1.0)),) if count else ()
    if count and len(contract.inputs) == 2 and contract.inputs[1].shape == (count,):
        limits = contract.inputs[1:]
        contract = contract.model_copy(update={"inputs": contract.inputs[:1]})
    if len(contract.inputs) != 1 or len(contract.outputs) != 1:
        raise UserError(
            f"the network has {len(contract.inputs)} inputs and {len(contract.outputs)} outputs; a route takes one of each",
            hint="export its branches one by one",
        )
    free = [symbol for symbol in contract.symbols if contract.inputs[0].shape[0] != symbol]
    if free:
        raise UserError(
            f"a routed network decides at one size, and the contract leaves {', '.join(free)} free",
            hint="fix the image's size in the contract",
        )

    def single(spec: TensorSpec) -> TensorSpec:
        return spec.model_copy(update={"shape": (1, *spec.shape[1:])})

    return contract.model_copy(
        update={"inputs": (single(contract.inputs[0]), *limits), "outputs": (single(contract.outputs[0]),)}
    )


def export_routed(net: RoutedNet, contract: Contract, out: Path, precision: str) -> Exported:
    """Facts about the package written at `out`; `contract` is the plain network's, or the routed one's.

    Raises UserError for a contract that a route cannot have, and for operations that Core ML or coremltools has not.
    """
    CARD.refuse(precision)
    whole, warnings = narrowed_contract(routed_contract(net, contract))
    image = torch.from_numpy(whole.random_inputs({}, seed=0)[whole.inputs[0].name])
    try:
        with torch.no_grad(), quiet() as heard:
            module = torch.jit.script(_assembled(net.eval(), image))
            inputs, outputs = features(whole, {})
            least = FORMS[precision].specification if precision in FORMS else 7
            model = converted(
                module,
                inputs=inputs,
                outputs=outputs,
                half=precision != "fp32",
                exact=_decides,
                specifications=systems("", least=least),
            )
            rest: list[Weight] = []
            if precision in FORMS:
                model, rest = packed(model, precision, group=0, places={})
                warnings += left_alone(rest, precision, {})
    except UserError:
        raise
    except Exception as error:  # torch and coremltools refuse with every kind of exception
        raise UserError(
            f"coremltools cannot convert this routed network: {first_line(error)}",
            hint="export the largest branch alone to see which layer it is (or route to onnx or tflite)",
        ) from error
    heard = [text for text in heard if "Torch Script Models is experimental" not in text]
    facts = saved(model, whole, out, (*warnings, *heard))
    wanted = len(net.branches) - 1
    if facts.ops.get("cond", 0) != wanted:
        raise UserError(
            f"the package holds {facts.ops.get('cond', 0)} choices, {len(net.branches)} branches want {wanted}",
            hint="report this network: coremltools decided some of them while it converted",
        )
    return replace(facts, audit=audited(facts.ops, half=precision != "fp32", flexible=False, islands=islands(rest)))


def _decides(op: Any) -> bool:
    """Whether everything that reads an MIL operation's outputs belongs to a decision."""
    if op.op_type not in _DECISION:
        return False
    readers = [reader for var in op.outputs for reader in var.child_ops]
    return bool(readers) and all(reader.op_type == "cond" or _decides(reader) for reader in readers)


def _assembled(net: RoutedNet, image: Tensor) -> nn.Module:
    """Traced parts under modules that only choose, ready to be scripted: (image, thresholds) or (image) → logits."""
    shared = _prefix_of(net, image)
    prefix = _Prefix(plain_branch(net, len(net.branches) - 1), shared, net.spec.router.at if net.spec.router else "")
    seen = prefix(image)
    branches = [
        trace(_Rest(plain_branch(net, number), shared).eval(), (seen,), sides_known=True) for number in range(len(net.branches))
    ]
    limits = net.thresholds if len(net.thresholds) else torch.zeros(1)
    if net.router is None:
        answer = branches[-1](seen)
        tree: nn.Module = _Leaf(branches[-1])
        for number in reversed(range(len(branches) - 1)):
            enough = trace(_Enough(number, cascade=True), (answer, limits), sides_known=True)
            tree = _Try(branches[number], enough, tree)
    else:
        router = trace(_Route(net.router, at=bool(prefix.at)).eval(), (seen,), sides_known=True)
        scores = router(seen)
        tree = _Plain(branches[-1])
        for number in reversed(range(len(branches) - 1)):
            test: nn.Module = _Cluster(number) if net.spec.rule == "cluster" else _Enough(number, cascade=False)
            tree = _Choose(trace(test, (scores, limits), sides_known=True), branches[number], tree)
        tree = _Routed(router, tree)
    start = trace(prefix.eval(), (image,), sides_known=True)
    return (_Whole(start, tree) if len(net.thresholds) else _WholeAlone(start, tree)).eval()


def _prefix_of(net: RoutedNet, image: Tensor) -> tuple[str, ...]:
    """The shared modules that say the same in every branch: those before any difference. Others are computed where they stand."""
    said = [_outputs_of(branch, net.spec.shared, image) for branch in net.branches]
    return tuple(
        path for path in net.spec.shared if all(path in words and torch.equal(words[path], said[-1][path]) for words in said)
    )


def _outputs_of(module: nn.Module, paths: Sequence[str], image: Tensor) -> dict[str, Tensor]:
    """What the submodules at `paths` return in one run; those that do not run, run twice, or return no tensor are left out."""
    seen: dict[str, list[Any]] = {path: [] for path in paths}
    handles = [
        submodule(module, path).register_forward_hook(lambda _m, _a, output, key=path: seen[key].append(output))
        for path in paths
    ]
    try:
        module(image)
    finally:
        for handle in handles:
            handle.remove()
    return {path: found[0] for path, found in seen.items() if len(found) == 1 and isinstance(found[0], Tensor)}


class _Prefix(nn.Module):
    """image → [image, the outputs of the shared modules, the features that the router reads]; the rest of its net is dead code."""

    def __init__(self, largest: nn.Module, shared: tuple[str, ...], at: str) -> None:
        super().__init__()
        self.largest, self.shared, self.at = largest, shared, at

    def forward(self, image: Tensor) -> list[Tensor]:
        wanted = (*self.shared, *((self.at,) if self.at else ()))
        if not wanted:
            return [image]
        found = _outputs_of(self.largest, tuple(dict.fromkeys(wanted)), image)
        return [image, *(found[path] for path in wanted)]


class _Given(nn.Module):
    """Stands for a shared module and returns what that has computed."""

    def __init__(self, slot: list[Tensor]) -> None:
        super().__init__()
        self.__dict__["slot"] = slot

    def forward(self, *_args: Any, **_kwargs: Any) -> Tensor:
        return self.__dict__["slot"][0]


class _Rest(nn.Module):
    """What `_Prefix` returns → a branch's answer."""

    def __init__(self, branch: nn.Module, shared: tuple[str, ...]) -> None:
        super().__init__()
        slots: dict[str, list[Tensor]] = {path: [] for path in shared}
        for path, slot in slots.items():
            owner, _, name = path.rpartition(".")
            setattr(submodule(branch, owner), name, _Given(slot))
        self.branch = branch
        self.__dict__["slots"] = list(slots.values())

    def forward(self, seen: list[Tensor]) -> Tensor:
        for slot, value in zip(self.__dict__["slots"], seen[1:], strict=False):
            slot[:] = [value]
        return self.branch(seen[0])


class _Route(nn.Module):
    """What `_Prefix` returns → the router's scores."""

    def __init__(self, router: nn.Module, *, at: bool) -> None:
        super().__init__()
        self.router, self.index = copy.deepcopy(router), -1 if at else 0

    def forward(self, seen: list[Tensor]) -> Tensor:
        return self.router(seen[self.index])


class _Enough(nn.Module):
    """(answer or scores, thresholds) → whether the branch's score reaches its threshold, (1,)."""

    def __init__(self, number: int, *, cascade: bool) -> None:
        super().__init__()
        self.number, self.cascade = number, cascade

    def forward(self, given: Tensor, limits: Tensor) -> Tensor:
        score = confidence(given) if self.cascade else given[:, self.number]
        return score >= limits[self.number : self.number + 1]


class _Cluster(nn.Module):
    """(scores, …) → whether this cluster has the largest, (1,)."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, scores: Tensor, limits: Tensor) -> Tensor:
        return scores.argmax(1) == self.number


class _Try(nn.Module):
    """A branch's own answer where it is sure enough, else the rest's."""

    def __init__(self, branch: nn.Module, enough: nn.Module, rest: nn.Module) -> None:
        super().__init__()
        self.branch, self.enough, self.rest = branch, enough, rest

    def forward(self, seen: list[Tensor], limits: Tensor) -> Tensor:
        answer = self.branch(seen)
        return answer if bool(self.enough(answer, limits)) else self.rest(seen, limits)


class _Leaf(nn.Module):
    """The last branch of a cascade."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, seen: list[Tensor], limits: Tensor) -> Tensor:
        return self.branch(seen)


class _Choose(nn.Module):
    """One branch where its score reaches, else the rest."""

    def __init__(self, test: nn.Module, branch: nn.Module, rest: nn.Module) -> None:
        super().__init__()
        self.test, self.branch, self.rest = test, branch, rest

    def forward(self, seen: list[Tensor], scores: Tensor, limits: Tensor) -> Tensor:
        return self.branch(seen) if bool(self.test(scores, limits)) else self.rest(seen, scores, limits)


class _Plain(nn.Module):
    """The last branch of a one-shot route."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, seen: list[Tensor], scores: Tensor, limits: Tensor) -> Tensor:
        return self.branch(seen)


class _Routed(nn.Module):
    """The router's scores, then the choice."""

    def __init__(self, router: nn.Module, tree: nn.Module) -> None:
        super().__init__()
        self.router, self.tree = router, tree

    def forward(self, seen: list[Tensor], limits: Tensor) -> Tensor:
        return self.tree(seen, self.router(seen), limits)


class _Whole(nn.Module):
    """(image, thresholds) → logits."""

    def __init__(self, prefix: nn.Module, tree: nn.Module) -> None:
        super().__init__()
        self.prefix, self.tree = prefix, tree

    def forward(self, image: Tensor, limits: Tensor) -> Tensor:
        return self.tree(self.prefix(image), limits)


class _WholeAlone(nn.Module):
    """image → logits, where clusters decide and no threshold is asked."""

    def __init__(self, prefix: nn.Module, tree: nn.Module) -> None:
        super().__init__()
        self.prefix, self.tree = prefix, tree

    def forward(self, image: Tensor) -> Tensor:
        return self.tree(self.prefix(image), torch.zeros(1))
