"""The recipe step "keep-features": the classifier reads its first k features, and what only made the others leaves too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ..models.errors import UserError
from .method import Context, MethodCard, MethodConfig, Result, register_method

if TYPE_CHECKING:
    from torch import nn

    from ..models.tasks.task import Task
    from .cost import Cost


class KeepFeaturesConfig(MethodConfig):
    """How many features to keep. For a network whose features are in the order of their use (nested dropout)."""

    kind: Literal["keep-features"] = "keep-features"
    k: int = Field(
        0, ge=0, description="features to keep, the first ones; 0 = the k with the best accuracy(k) − 1e-5·k on validation data"
    )
    classifier: str = Field("", description="path of the linear layer that makes the logits; empty = found")
    max_eval: int = Field(0, ge=0, description="measure on at most so many validation images; 0 = all")


@register_method(
    "keep-features",
    KeepFeaturesConfig,
    MethodCard(
        title="Keep the first k features before the classifier",
        source="Chen et al.: Compressing Features for Learning with Noisy Labels, 2022",
        needs_data=False,
        needs_labels=False,
        changes_structure=True,
        trains=False,
    ),
)
def keep_features(module: nn.Module, task: Task | None, config: KeepFeaturesConfig, context: Context) -> Result:
    """The module with k features: exactly the function it had with the others set to 0. Nothing is trained.

    With a task that has classes the figures hold the validation accuracy for every k. Raises UserError when the classifier is not
    linear, for k above its inputs, and for k = 0 without data.
    """
    import torch

    from .cost import count
    from .distill.features import linear_head
    from .prefix_plan import plan_prefix

    contract = context.parent.contract
    inputs = [torch.from_numpy(v) for v in contract.random_inputs(contract.example_dims(), seed=context.seed).values()]
    path, layer = linear_head(module, inputs[0], path=config.classifier)
    width = layer.in_features
    if config.k > width:
        raise UserError(f"k = {config.k} must be at most {width}, the inputs of {path!r}", hint="0 chooses on validation data")
    if config.k == 0 and task is None:
        raise UserError("k = 0 chooses the features to keep by validation accuracy, and this run has no data", hint=_NO_DATA)
    accuracy = _curve(module, task, config, context, path=path, width=width)
    k = config.k or _best(accuracy)
    before = count(module, inputs)
    plan, notes = plan_prefix(module, inputs, path=path, k=k)
    plan.replay(module)
    figures = {
        "k": k,
        "features": width,
        **_costs(before, count(module, inputs)),
        "widths": {e.path: [e.size, len(e.kept)] for e in plan.edits if e.side in ("out", "prefix")},
    }
    if accuracy:
        figures |= {
            "val_before": {"accuracy": accuracy[width]},
            "val_after": {"accuracy": accuracy[k]},
            "accuracy_by_features": list(accuracy.values()),
        }
    return Result(module, plan=plan, figures=figures, notes=notes)


_NO_DATA = "add --data, or say how many: k = 16"


def _curve(
    module: nn.Module, task: Task | None, config: KeepFeaturesConfig, context: Context, *, path: str, width: int
) -> dict[int, float]:
    """Validation accuracy for every k from 1 to `width`; empty without data, and for a task without classes when k is given."""
    from .distill.features import accuracy_by_features
    from .runtime import Runtime

    if task is None or (config.k and task.metric != "accuracy"):
        return {}
    runtime = Runtime(context.device, amp="off")
    return accuracy_by_features(module, task, range(1, width + 1), runtime, limit=config.max_eval, path=path)


def _best(accuracy: dict[int, float]) -> int:
    from .distill.features import choose_k

    return choose_k(accuracy)


def _costs(before: Cost, after: Cost) -> dict[str, Any]:
    return {
        "macs_before": before.macs,
        "macs_after": after.macs,
        "mac_ratio": after.macs / before.macs,
        "params_before": before.params,
        "params_after": after.params,
        "param_ratio": after.params / before.params,
    }
