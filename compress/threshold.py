"""The recipe step "threshold": the decision of critical classes moved to an operating point, inside the network."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from ..models.errors import UserError
from .method import Context, MethodCard, MethodConfig, Result, register_method

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from ..models.tasks.critical import Critical
    from ..models.tasks.task import Task
    from .runtime import Runtime

TOLERANCE = 1e-5
"""Of the largest logit: what float32 may round differently once the bias has changed, about 80 units in its last place."""


class ThresholdConfig(MethodConfig):
    """Which operating point, by one rule. Nothing is trained; the test split is not looked at."""

    kind: Literal["threshold"] = "threshold"
    critical: tuple[str, ...] = Field((), description="classes that must not be missed, by name; left out: the task's own")
    max_fpr: float | None = Field(
        None, ge=0, le=1, description="fewest misses with at most this share of false alarms on validation"
    )
    max_fnr: float | None = Field(
        None, ge=0, le=1, description="fewest false alarms with at most this share of misses on validation"
    )
    match: Literal["parent"] | None = Field(
        None, description='"parent": max_fpr is what the Bundle that entered the recipe has at its argmax; the default rule'
    )
    classifier: str = Field("", description="path of the layer that makes the logits; empty = found")
    max_eval: int = Field(0, ge=0, description="choose on at most so many validation samples; 0 = all")

    @model_validator(mode="after")
    def _one_rule(self) -> ThresholdConfig:
        given = [name for name in ("max_fpr", "max_fnr", "match") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are different rules for one threshold: keep one of them")
        return self


@register_method(
    "threshold",
    ThresholdConfig,
    MethodCard(
        title="Move the decision of critical classes to an operating point",
        source="the control of every class-dependent loss: a shift of the threshold alone",
        needs_data=True,
        needs_labels=True,
        changes_structure=False,
        trains=False,
    ),
)
def threshold(module: nn.Module, task: Task | None, config: ThresholdConfig, context: Context) -> Result:
    """The module with a threshold t, chosen on validation, taken off the biases of its critical logits: argmax then decides there.

    Raises UserError without data or critical classes, when validation lacks either side, and for a network whose last layer has
    no bias to take it from.
    """
    import numpy as np

    from ..models.tasks.critical import require_samples
    from .evaluation import measured, targets_of
    from .runtime import Runtime

    if task is None:
        raise UserError("threshold needs data, and this run has none", hint="add --data elpv, folder:PATH, …")
    critical = _critical(task, config)
    positive = critical.positive(targets_of(task, "val", limit=config.max_eval))
    require_samples(positive, f"the {len(positive)} validation samples of {task.data}", critical=critical)
    runtime = Runtime(context.device, amp="off")
    path, layer = head_with_bias(module, task.inputs(task.samples("val").__getitems__([0])), critical, path=config.classifier)
    metrics, outputs = measured(module, task, "val", runtime=runtime, limit=config.max_eval)
    logits = outputs.numpy()
    score = critical.score(logits)
    t, rule = _chosen(score, positive, task, config, context, critical=critical, runtime=runtime)
    fold(layer, critical, t)
    metrics_after, outputs = measured(module, task, "val", runtime=runtime, limit=config.max_eval)
    logits_after = outputs.numpy()
    wanted = logits.astype(np.float64)
    wanted[:, list(critical.indices)] -= t
    if np.abs(logits_after - wanted).max() > TOLERANCE * (np.abs(logits).max() + abs(t) + 1):
        raise UserError(
            f"a change of {path!r}'s bias does not reach the network's outputs as it is: something works on them afterwards",
            hint='name the layer that makes the logits: classifier = "PATH", or take the step threshold out',
        )
    before, after = (_judged(s, positive, seed=context.seed) for s in (score, critical.score(logits_after)))
    figures = {
        "critical": list(critical.names),
        "rule": rule,
        "threshold": t,
        "classifier": path,
        "before": before,
        "after": after,
        "val_before": metrics | {name: before[name] for name in ("fnr", "fpr", "auc")},
        "val_after": metrics_after | {name: after[name] for name in ("fnr", "fpr", "auc")},
    }
    return Result(module, figures=figures, notes=_notes(figures, positives=int(positive.sum())))


def head_with_bias(module: nn.Module, example: Tensor, critical: Critical, *, path: str = "") -> tuple[str, nn.Module]:
    """(path, layer): the linear layer or 1×1 convolution that makes the logits, with a bias that may be changed for each class.

    Raises UserError when it is something else, has no bias, the bias of a critical class was pruned, or the network is routed.
    """
    from torch import nn

    from ..models.bundle import bare
    from ..models.masks import ATTRIBUTE
    from ..models.routed import RoutedNet
    from .distill.taps import find_classifier, module_at

    if any(isinstance(part, RoutedNet) for part in module.modules()):
        raise UserError(
            "a routed network has a classifier in every branch, and a threshold is folded into one",
            hint="take the step threshold out, or put it before route (whose training may move the operating point again)",
        )
    path = path or find_classifier(module, example, whose="network", key="classifier")
    layer = module_at(bare(module), path, whose="network") if path else bare(module)
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        raise UserError(
            f"{path!r} is a {type(layer).__name__}, and a threshold is folded into a linear layer",
            hint='name the layer that makes the logits: classifier = "PATH"',
        )
    if layer.bias is None:
        raise UserError(
            f"{path or 'the network'!r} makes the logits without a bias, so there is nothing to take a threshold off",
            hint="build the network with a bias in its last layer and train it again, or compare scores with a threshold "
            "where the network is used",
        )
    if len(layer.bias) != len(critical.classes):
        raise UserError(
            f"{path!r} makes {len(layer.bias)} outputs and the task has {len(critical.classes)} classes",
            hint='name the layer that makes the logits: classifier = "PATH"',
        )
    mask = layer.__dict__.get(ATTRIBUTE, {}).get("bias")
    if mask is not None and not bool(mask[list(critical.indices)].all()):
        raise UserError(
            f"the bias of a critical class in {path!r} was pruned, and pruned weights stay 0",
            hint="prune weights alone (biases = false), or keep that layer: keep = [" + f'"{path}"]',
        )
    return path, layer


def fold(layer: Any, critical: Critical, t: float) -> None:
    """None; `t` is taken off the bias of every critical class: score ≥ t before is score ≥ 0, the argmax, now."""
    import torch

    with torch.no_grad():
        changed = layer.bias.double()
        changed[list(critical.indices)] -= t
        layer.bias.copy_(changed)


def _critical(task: Task, config: ThresholdConfig) -> Critical:
    """The critical classes of the step, else the task's. Raises UserError when neither names any."""
    from ..models.tasks.critical import critical_classes

    names = config.critical or tuple(getattr(task, "critical", ()))
    if not task.contract.classes:
        raise UserError(f"threshold needs a task with classes, and {task.name!r} has none", hint="take the step out")
    if not names:
        raise UserError(
            "threshold moves the decision of critical classes, and none is named",
            hint='critical = ["defective"] in the step, or --data-arg critical=defective; classes: '
            + ", ".join(task.contract.classes),
        )
    return critical_classes(names, task.contract.classes)


def _chosen(
    score: np.ndarray,
    positive: np.ndarray,
    task: Task,
    config: ThresholdConfig,
    context: Context,
    *,
    critical: Critical,
    runtime: Runtime,
) -> tuple[float, str]:
    """(threshold, the rule that it follows in words)."""
    from ..models.tasks.critical import rates, threshold_for_fnr, threshold_for_fpr
    from .evaluation import measured

    if config.max_fnr is not None:
        return threshold_for_fnr(score, positive, config.max_fnr), f"FNR ≤ {config.max_fnr:g}"
    if config.max_fpr is not None:
        return threshold_for_fpr(score, positive, config.max_fpr), f"FPR ≤ {config.max_fpr:g}"
    reference = score
    if context.steps:
        _, outputs = measured(context.parent.module(), task, "val", runtime=runtime, limit=config.max_eval)
        reference = critical.score(outputs.numpy())
    own = rates(reference, positive).fpr or 0.0
    return threshold_for_fpr(score, positive, own), f"FPR ≤ {own:.4g}, the parent's at argmax"


def _judged(score: np.ndarray, positive: np.ndarray, *, seed: int) -> dict[str, Any]:
    """Rates of deciding by argmax on validation, with their intervals, as JSON."""
    from ..models.tasks.critical import rates
    from ..models.tasks.intervals import bootstrap

    return {**asdict(rates(score, positive)), "interval": bootstrap(score, positive, 0.0, seed=seed)}


def _notes(figures: dict[str, Any], *, positives: int) -> tuple[str, ...]:
    """What a reader should know, in words."""
    from ..models.tasks.intervals import exact_limit

    names = ", ".join(repr(name) for name in figures["critical"])
    after = figures["after"]
    said = [
        f"decides for {names} from a score of {figures['threshold']:+.4f} on ({figures['rule']}): folded into the bias of "
        f"{figures['classifier'] or 'the network'!r}, so every artifact's argmax decides there",
        f"on validation {_spans(figures['before'])} before, {_spans(after)} after; the threshold was chosen on these samples, so "
        "only the test split, which this step has not seen, says what it is worth",
    ]
    if after["missed"] == 0:
        high = exact_limit(0, positives)[1]
        said.append(f"none of {positives} positives missed on validation still allows an FNR of up to {high:.3f} (95 %, exact)")
    return tuple(said)


def _spans(judged: dict[str, Any]) -> str:
    parts = ((name, judged[name], judged["interval"][name]) for name in ("fnr", "fpr"))
    return ", ".join(f"{name.upper()} {value:.4f} ({low:.4f} … {high:.4f})" for name, value, (low, high) in parts)
