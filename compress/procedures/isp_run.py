"""A run of the step "isp" from the checks to its figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...models.errors import UserError
from ..distill.taps import evaluating
from ..method import Context, Result
from ..runtime import Runtime, home_of
from ..sampling import derived_seed
from ..schedule import plan_run
from ..train import ParamGroup, evaluate, fit, runtime_for
from .isp_features import Eyes, check_size, open_eyes
from .isp_game import Game, make_critics
from .isp_objective import IspObjective
from .isp_selection import BATCH, RULE, Candidates, Judge, judged

if TYPE_CHECKING:
    from ...models.tasks.task import RawBatch, Task
    from .unpaired_isp import IspConfig


class Rendered:
    """The task with the fixed rendering of its mosaics as what they are trained towards; all else is the task's own."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def training_pair(self, batch: RawBatch, *, augment: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and the fixed rendering, moved alike by augmentation."""
        targets = self._task.references(batch).to(batch.pixels.device)
        return self._task.training_pair(dataclasses.replace(batch, targets=targets), augment=augment, generator=generator)


def checked(task: Task | None, config: IspConfig) -> Any:
    """The task, when the step can run on it. Raises UserError otherwise."""
    if task is None:
        raise UserError(
            "isp needs RAW pictures, and this run has none", hint="add --task isp --data photos:DIR, raws:DIR, zurich:DIR …"
        )
    lacks = [name for name in ("paired", "references", "unpaired") if not hasattr(task, name)]
    if lacks:
        raise UserError(
            f"isp trains a network that develops RAW, and the task is {task.name!r}",
            hint="take --task isp with photos:DIR, raws:DIR, zurich:DIR or fujifilm:DIR",
        )
    if config.mode == "paired" and not task.paired:  # type: ignore[attr-defined]
        raise UserError(
            f"mode = 'paired' needs the true picture of every mosaic, and {task.data!r} has none",
            hint="take mode = 'unpaired', or data with pairs: photos:DIR, zurich:DIR, fujifilm:DIR",
        )
    for split, called in (("train", "training"), ("val", "validation")):
        if not len(task.samples(split)):  # type: ignore[arg-type]
            raise UserError(
                f"the {called} split of {task.data!r} is empty", hint="check the data set's path and how it is split"
            )
    return task


def run(module: nn.Module, task: Any, config: IspConfig, context: Context) -> Result:
    """See `unpaired_isp.isp`."""
    runtime = runtime_for(config, context)
    if runtime.accelerator.num_processes > 1:
        raise UserError("isp trains in one process: its critics belong to one batch", hint="start it without a launcher")
    height, width = _size(task)
    check_size(height, width)
    eyes = open_eyes(config).to(runtime.device)
    critics = make_critics(config.strengths(), eyes.sizes(height, width), width=config.discriminator_width, seed=context.seed)
    game = Game(module, critics)
    samples = len(task.samples("train"))
    total = plan_run(config, min(config.max_train or samples, samples)).total
    candidates = Candidates(context.workdir / "isp-candidates", total=total, count=config.candidates)
    before = evaluate(module, task, "val", runtime=runtime, limit=config.max_eval)
    objective = IspObjective(
        game,
        eyes,
        config,
        pictures=task.unpaired if config.mode == "unpaired" and critics else None,
        seed=context.seed,
        before_step=lambda steps: candidates.keep(steps, module),
    )
    history = fit(
        game,
        task if config.mode == "paired" else Rendered(task),
        config,
        objective=objective,
        context=context,
        label="isp",
        identity={"eyes": eyes.cards()},
        runtime=runtime,
        groups=[ParamGroup(tuple(critic.parameters()), lr=config.discriminator_lr) for critic in critics.values()],
    )
    candidates.keep(total, module)
    rows = _selection(candidates, module, task, config, eyes=eyes, runtime=runtime, seed=context.seed)
    module.eval()
    kept = next(row for row in rows if row["chosen"])
    after = kept.get("paired") or evaluate(module, task, "val", runtime=runtime, limit=config.max_eval)
    figures = {
        "val_before": before,
        "val_after": after,
        "mode": config.mode,
        "features": eyes.cards(),
        "critics": {name: sum(p.numel() for p in critic.parameters()) for name, critic in critics.items()},
        "collapsed": game.collapsed(config.critic_every),
        "still": int(game.still),
        "terms": dict(history.epochs[-1].parts) if history.epochs else {},
        "selection": _about(rows, config),
        "history": history.as_dict(),
    }
    if task.paired:
        figures |= _pairs(rows, rendering_metrics(task, limit=config.max_eval), task)
    return Result(module, figures=figures, notes=(*_notes(task, config, eyes, figures, total), *history.notes))


def _size(task: Any) -> tuple[int, int]:
    first = task.samples("train").__getitems__([0]).targets
    return int(first.shape[-2]), int(first.shape[-1])


def _selection(
    candidates: Candidates, module: nn.Module, task: Any, config: IspConfig, *, eyes: Eyes, runtime: Runtime, seed: int
) -> list[dict[str, Any]]:
    """The rows of the judged iterates; the module has the chosen weights, on the device it was on."""
    samples = task.samples("val")
    count = min(config.judged, len(samples))
    raws = [samples.__getitems__(range(i, min(i + BATCH, count))) for i in range(0, count, BATCH)]
    paired = config.mode == "paired"
    references = [(raw.targets if paired else task.references(raw)).to(runtime.device) for raw in raws]
    if paired:
        real = references
    else:
        generator = torch.Generator().manual_seed(derived_seed(seed, "isp judge"))
        real = [task.unpaired(len(raw.index), generator).to(runtime.device) for raw in raws]
    judge = Judge(eyes, references, real)

    def figures(network: nn.Module) -> dict[str, float]:
        home = home_of(network)
        runtime.place(network)
        with evaluating(network), torch.inference_mode():
            inputs = (runtime.layout(task.inputs(raw.to(runtime.device))) for raw in raws)
            made = [Game(network, {})(batch) for batch in inputs]
        network.to(home)
        return judge.figures(made)

    def metrics(network: nn.Module) -> dict[str, float]:
        return evaluate(network, task, "val", runtime=runtime, limit=config.max_eval)

    return judged(candidates, module, figures, metrics if task.paired else None)


def _about(rows: list[dict[str, Any]], config: IspConfig) -> dict[str, Any]:
    paired = config.mode == "paired"
    rule = RULE.format(
        real="the true pictures" if paired else "unpaired target pictures",
        reference="the true pictures" if paired else "the fixed rendering",
    )
    if paired:
        rule = rule.replace(", no pairs", "")
    return {"rule": rule, "iterates": rows, "step": next(row["step"] for row in rows if row["chosen"])}


def _pairs(rows: list[dict[str, Any]], rendering: dict[str, float], task: Any) -> dict[str, Any]:
    """What only pairs can tell, which no choice was made by: the fixed rendering, the last iterate, and the best one (an oracle)."""
    best = max(rows, key=lambda row: row["paired"][task.metric])
    return {
        "val_rendering": rendering,
        "val_last": rows[-1]["paired"],
        "oracle": {"step": best["step"], "by": task.metric, "val": best["paired"]},
    }


def rendering_metrics(task: Any, split: str = "val", *, limit: int = 0) -> dict[str, float]:
    """The task's metrics of the fixed rendering itself on a split (its first `limit` samples, 0: all)."""
    return task.evaluate(rendered_in_order(task, split), split, limit=limit or None, batch_size=BATCH)


def rendered_in_order(task: Any, split: str) -> Callable[[Tensor], Tensor]:
    """What `task.evaluate` judges once as if it were a network: the fixed rendering, which sees counts, not the network's inputs.

    The inputs only say how many samples come next, in the split's order.
    """
    samples, done = task.samples(split), 0

    def predict(inputs: Tensor) -> Tensor:
        nonlocal done
        raw = samples.__getitems__(range(done, done + len(inputs)))
        done += len(inputs)
        return task.references(raw)

    return predict


def _notes(task: Any, config: IspConfig, eyes: Eyes, figures: dict[str, Any], total: int) -> list[str]:
    selection = figures["selection"]
    notes = [
        eyes.note(),
        f"kept: step {selection['step']} of {total}, one of {len(selection['iterates'])} iterates ({selection['rule']})",
    ]
    for name, steps in figures["collapsed"].items():
        notes.append(
            f"the critic {name!r} collapsed: for the last {steps} of {total} steps it gave one constant or no gradient, so its term "
            "taught nothing; try a lower discriminator_lr, a higher penalty or another backbone"
        )
    if figures["still"]:
        notes.append(
            f"the network stands still: in the last {figures['still']} of {total} steps no term had a gradient on its weights (a last "
            "ReLU gives 0 everywhere); start from other weights (another seed) or lower lr"
        )
    if config.colour_blind:
        notes.append("no term of this run saw colours: they are left to chance; set colour = 1 or content_channels = 'rgb'")
    if not task.paired:
        notes.append("the validation figures compare with the fixed rendering: the data has no pairs")
    return notes
