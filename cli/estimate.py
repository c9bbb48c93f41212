"""`compress --estimate`: what gates would save, over r, before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .console import output

if TYPE_CHECKING:
    from .compress.dynamic.estimate import Estimate, Point
    from .compress.dynamic.method import FtwtConfig
    from .compress.recipe import Recipe
    from .models.bundle import Bundle
    from .models.tasks.task import Task


def estimate_gates(bundle: Bundle, task: Task, recipe: Recipe | None, *, seed: int, device: str) -> Estimate:
    """The curve of a Bundle's dense network under ground-truth masks, with the gates of the recipe's step "ftwt" (or its defaults).

    Raises UserError for a network that is dynamic already, one without a layer to gate, and a recipe without that step.
    """
    import torch

    from .compress.dynamic.candidates import candidates, spec_of
    from .compress.dynamic.estimate import estimate, require_some
    from .compress.dynamic.gating import refuse_dynamic
    from .compress.train import Runtime

    config = _gates_of(recipe)
    module = bundle.module()
    refuse_dynamic(module)
    drawn = bundle.contract.random_inputs(bundle.contract.example_dims(), seed=seed)
    inputs = [torch.from_numpy(value) for value in drawn.values()]
    found = candidates(module, inputs, keep=config.keep)
    require_some(found)
    return estimate(
        module,
        task,
        inputs,
        runtime=Runtime(device, amp="off"),
        criterion=config.criterion,
        images=config.estimate_images,
        specs=[spec_of(c, pool=config.pool, scale=config.scale, hidden=config.hidden) for c in found.found],
        found=found,
        on_point=lambda point: output.say(f"  {point.level:g}: {point.mac_reduction:.1%} of the MACs saved"),
    )


def _gates_of(recipe: Recipe | None) -> FtwtConfig:
    """What the recipe says of its gates; says so when steps before them change the network."""
    from .compress.dynamic.method import FtwtConfig
    from .models.errors import UserError

    if recipe is None:
        return FtwtConfig.model_validate({"kind": "ftwt", "r": 1.0})
    before: list[str] = []
    for step in recipe.steps:
        if isinstance(step, FtwtConfig):
            if before:
                output.say(
                    f"the estimate is of the checkpoint as it is, without the recipe's {', '.join(before)} before the gates"
                )
            return step
        before.append(step.kind)
    raise UserError(
        f"--estimate is about gates, and the recipe has none: {', '.join(before)}",
        hint='name a recipe with the step "ftwt", or leave --recipe out',
    )


def say_estimate(found: Estimate, metric: str) -> None:
    """The curve as a table, and what to do with it."""
    name = "r" if found.criterion == "mass" else "keep"
    rows = [_row(point, metric) for point in found.points]
    output.table("", (f">{name}", ">MACs saved", ">MMACs", f">{metric}, untrained"), rows)
    output.say(
        f"dense: {found.dense_macs / 1e6:.2f} MMACs, {metric} {found.dense_metrics[metric]:.4f}; gates cost "
        f"{found.gate_macs / found.dense_macs:.2%} of that, counted above; {found.samples} {found.split} images, ground-truth masks"
    )
    output.say("in the recipe: r = … as above, or target_mac_reduction = … and r is found by measuring")


def _row(point: Point, metric: str) -> tuple[str, str, str, str]:
    return (f"{point.level:g}", f"{point.mac_reduction:.1%}", f"{point.macs / 1e6:.2f}", f"{point.metrics[metric]:.4f}")
