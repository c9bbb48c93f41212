"""How good a network is with its first k features alone, and how many of them are enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...models.bundle import bare
from ...models.errors import UserError
from ..runtime import Runtime, home_of
from .taps import evaluating, find_classifier

if TYPE_CHECKING:
    from ...models.tasks.task import Task

PENALTY = 1e-5
"""What a feature costs, in accuracy, when the number of features is chosen (Chen et al. 2022)."""
BATCH = 256


def linear_head(module: nn.Module, example: Tensor, *, path: str = "") -> tuple[str, nn.Linear]:
    """(path in the user's own module, layer) of the linear layer that makes the logits, found or checked.

    Raises UserError when there is none.
    """
    path = path or find_classifier(module, example, whose="network", key="classifier")
    layer = dict(bare(module).named_modules()).get(path)
    if not path or not isinstance(layer, nn.Linear):
        what = f"is a {type(layer).__name__}" if layer is not None else "is not there"
        raise UserError(
            f"features can be counted off before a linear classifier inside the network; {path or 'the network itself'!r} {what}",
            hint='name the layer that makes the logits: classifier = "PATH"',
        )
    return path, layer


def accuracy_by_features(
    module: nn.Module, task: Task, ks: Sequence[int], runtime: Runtime, *, limit: int = 0, path: str = ""
) -> dict[int, float]:
    """Validation accuracy of the network that reads its first k features alone, for each k of `ks`, from one pass.

    The logits of k features are those of the next smaller k plus the contribution of the features between, so all ks together
    cost what the classifier costs once; sums in float64. `limit` > 0: the first so many images. The module comes back where it
    was. Raises UserError for a task without classes and for a k that the classifier has no features for.
    """
    samples = task.samples("val")
    count = min(limit or len(samples), len(samples))
    if task.metric != "accuracy" or not task.contract.classes:
        raise UserError(
            f"accuracy by features needs a task with classes; {task.name!r} is judged by {task.metric}", hint="say k yourself"
        )
    home, ordered = home_of(module), sorted(set(ks))
    hits = torch.zeros(len(ordered), dtype=torch.int64)
    with ExitStack() as stack:
        stack.callback(module.to, home)
        runtime.place(module)
        example = runtime.layout(task.inputs(samples.__getitems__([0])).to(runtime.device))
        _, layer = linear_head(module, example, path=path)
        if not ordered or ordered[0] < 1 or ordered[-1] > layer.in_features:
            raise UserError(f"features {list(ks)} must lie in 1…{layer.in_features}", hint="the classifier has no others")
        kept: list[Tensor] = []
        stack.callback(layer.register_forward_pre_hook(lambda _layer, args: kept.append(args[0])).remove)
        stack.enter_context(evaluating(module))
        for start in range(0, count, BATCH):
            raw = samples.__getitems__(range(start, min(start + BATCH, count)))
            with torch.inference_mode(), torch.autocast(runtime.device.type, enabled=False):
                module(runtime.layout(task.inputs(raw).to(runtime.device)))
                hits += _hits(kept.pop(), layer, ordered, raw.targets)
    return dict(zip(ordered, (hits.double() / count).tolist(), strict=True))


def _hits(features: Tensor, layer: nn.Linear, ordered: Sequence[int], targets: Tensor) -> Tensor:
    """How many of a batch are right with each number of features, int64 (len(ordered),)."""
    if features.ndim != 2:
        raise UserError(
            f"the classifier's input has shape {tuple(features.shape)}", hint="features (N, D) are wanted: pool before it"
        )
    features, weight = features.double().cpu(), layer.weight.double().cpu().T
    logits = torch.zeros(len(features), layer.out_features, dtype=torch.float64)
    if layer.bias is not None:
        logits += layer.bias.double().cpu()
    hits, done = [], 0
    for k in ordered:
        logits.addmm_(features[:, done:k], weight[done:k])
        hits.append((logits.argmax(1) == targets.cpu()).sum())
        done = k
    return torch.stack(hits)


def choose_k(accuracy: Mapping[int, float], *, penalty: float = PENALTY) -> int:
    """The k that maximises accuracy(k) − penalty·k; of several, the smallest."""
    return min(accuracy, key=lambda k: (-(accuracy[k] - penalty * k), k))
