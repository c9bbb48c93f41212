"""Structured pruning: whole channels leave, and the network really gets smaller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from ..models.errors import UserError
from .method import Context, MethodCard, MethodConfig, Result, register_method

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..models.surgery import SurgeryPlan
    from ..models.tasks.task import Task
    from .allocate import Target
    from .cost import Cost
    from .groups import Analysis

TOLERANCE = 0.02


class StructuredConfig(MethodConfig):
    """Parameters of structured pruning. Exactly one of `mac_ratio` and `param_ratio` is the target."""

    kind: Literal["structured"] = "structured"
    mac_ratio: float | None = Field(
        None, gt=0, lt=1, description="MACs to keep, as a share of the network that enters the step"
    )
    param_ratio: float | None = Field(None, gt=0, lt=1, description="parameters to keep, as a share")
    importance: Literal["l1", "l2", "bn-scale", "taylor", "random"] = Field(
        "l2", description="what a channel's weight is judged by"
    )
    reduction: Literal["group", "first"] = Field(
        "group", description="average over all coupled layers, or the root layer alone"
    )
    scope: Literal["global", "layer"] = Field(
        "global", description="rank channels across the network, or the same share everywhere"
    )
    iterations: int = Field(1, ge=1, le=100, description="prune in this many equal steps, scoring anew before each")
    round_to: int = Field(8, ge=1, le=256, description="kept channels are a multiple of this; 1 turns rounding off")
    max_ratio: float = Field(0.9, gt=0, lt=1, description="no layer loses more than this share of its channels")
    keep: tuple[str, ...] = Field((), description="module names that stay whole")
    taylor_images: int = Field(512, ge=1, description="training images whose gradients the Taylor criterion sums")

    @property
    def target(self) -> tuple[float, Target]:
        """The ratio to reach, and the quantity it is of."""
        return (self.mac_ratio, "macs") if self.mac_ratio is not None else (self.param_ratio or 1.0, "params")

    @model_validator(mode="after")
    def _one_target(self) -> StructuredConfig:
        if (self.mac_ratio is None) == (self.param_ratio is None):
            raise ValueError("give one of mac_ratio and param_ratio (0 to 1)")
        return self


@register_method(
    "structured",
    StructuredConfig,
    MethodCard(
        title="Structured channel pruning over the dependency graph",
        source="Fang et al., DepGraph (CVPR 2023); Li et al. (ICLR 2017); Liu et al. (ICCV 2017); Molchanov et al. (CVPR 2019)",
        needs_data=False,
        needs_labels=False,
        changes_structure=True,
        trains=False,
    ),
)
def apply(module: nn.Module, task: Task | None, config: StructuredConfig, context: Context) -> Result:
    """The module cut to its target (within 2 points of the dense cost, below it where the grid allows), and what could not be cut.

    Raises UserError when nothing can be cut, the target is out of reach, or Taylor scores are asked without data.
    """
    import torch

    from ..models.surgery import SurgeryPlan
    from .cost import count
    from .groups import analyse

    if config.importance == "taylor" and task is None:
        raise UserError('importance = "taylor" needs data for its gradients', hint='add --data, or use importance = "l2"')
    contract = context.parent.contract
    inputs = [torch.from_numpy(v) for v in contract.random_inputs(contract.example_dims(), seed=context.seed).values()]
    dense = count(module, inputs)
    ratio, quantity = config.target
    plan, analysis = SurgeryPlan(), analyse(module, inputs, keep=config.keep)
    with context.progress.meter("prune", config.iterations, "step") as meter:
        for i in range(config.iterations):
            share = 1 - (1 - ratio) * (i + 1) / config.iterations
            step = _cut(module, task, config, context, inputs, goal=share * getattr(dense, quantity), quantity=quantity)
            plan = plan.then(step)
            meter.advance(ratio=share)
    pruned = count(module, inputs)
    return Result(module=module, plan=plan, figures=_figures(config, dense, pruned, plan, analysis))


def _cut(
    module: nn.Module,
    task: Task | None,
    config: StructuredConfig,
    context: Context,
    inputs: list[Tensor],
    *,
    goal: float,
    quantity: Target,
) -> SurgeryPlan:
    """One round of scoring and cutting, in place: the plan that brings `quantity` down to `goal`.

    The cost model does not see costs outside layers (attention products); a second look at the real count corrects for that.
    """
    import copy

    import torch

    from .allocate import choose
    from .cost import count
    from .groups import analyse, build_plan
    from .importance import accumulate_gradients, score, scorer

    cost = count(module, inputs)
    now = getattr(cost, quantity)
    groups = analyse(module, inputs, keep=config.keep).groups
    if not groups:
        raise UserError("no layer of this network can be cut", hint="`trimtab inspect` lists the reason for every layer")
    if config.importance == "taylor" and task is not None:
        accumulate_gradients(module, task, images=config.taylor_images, batch_size=128, seed=context.seed)
    generator = torch.Generator().manual_seed(context.seed)
    importance = scorer(config.importance, config.reduction)
    scored = [(group, score(group, importance, generator)) for group in groups]
    module.zero_grad()
    aim = goal / now
    for _ in range(4):
        cuts = choose(
            module,
            cost,
            scored,
            target=quantity,
            ratio=aim,
            tolerance=TOLERANCE,
            round_to=config.round_to,
            max_ratio=config.max_ratio,
            scope=config.scope,
        )
        plan = build_plan(cuts)
        reached = getattr(count(plan.replay(copy.deepcopy(module)), inputs), quantity) / now
        if abs(reached - goal / now) <= TOLERANCE:
            plan.replay(module)
            return plan
        aim -= reached - goal / now
    raise UserError(
        f"{quantity} ratio {goal / now:.3f} can't be reached within {TOLERANCE:.0%}; the last try gave {reached:.3f}",
        hint="raise the ratio, or lower round_to",
    )


def _figures(config: StructuredConfig, dense: Cost, pruned: Cost, plan: SurgeryPlan, analysis: Analysis) -> dict[str, Any]:
    """What the step reports: ratios reached, widths layer by layer, and the layers left whole with their reasons."""
    return {
        "macs_before": dense.macs,
        "macs_after": pruned.macs,
        "mac_ratio": pruned.macs / dense.macs,
        "params_before": dense.params,
        "params_after": pruned.params,
        "param_ratio": pruned.params / dense.params,
        "widths": {e.path: [e.size, len(e.kept)] for e in plan.edits if e.side == "out"},
        "fixed": [{"path": f.path, "channels": f.channels, "reason": f.reason} for f in analysis.fixed],
        "off_grid": [e.path for e in plan.edits if e.side == "out" and len(e.kept) % config.round_to],
    }
