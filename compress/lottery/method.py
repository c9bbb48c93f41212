"""The recipe step "lottery": a sparse network found in rounds, held to a budget of missed positives.

Source: Frankle, Carbin: The Lottery Ticket Hypothesis (ICLR 2019); Entezari, Saukh: Class-dependent Compression of Deep Neural
Networks (SenSys-ML 2020), whose magnitude-increase criterion, pruning per layer and losses by round are the defaults here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...models.errors import UserError
from ..method import Context, MethodCard, Result, register_method
from .config import LotteryConfig

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from ...models.tasks.task import Task
    from ..runtime import Runtime
    from .judging import Judge
    from .rounds import Lottery, Round

SLACK = 1e-9
"""Rounding of rates, when one is held against a budget."""


@register_method(
    "lottery",
    LotteryConfig,
    MethodCard(
        title="Lottery pruning in rounds, with a budget of missed positives",
        source="Frankle, Carbin (ICLR 2019); Entezari, Saukh (SenSys-ML 2020); SNIP: Lee et al. (ICLR 2019)",
        needs_data=True,
        needs_labels=True,
        changes_structure=False,
        trains=True,
    ),
)
def apply(module: nn.Module, task: Task | None, config: LotteryConfig, context: Context) -> Result:
    """The network of the last round within the budget (without one: the last), masked; every round stays as a Bundle beside it.

    Raises UserError without data, for critical classes that the task lacks or a split misses, for a density that the network
    already has, and in a run of several processes.
    """
    if task is None:
        raise UserError("lottery needs data, and this run has none", hint="add --data fashion-mnist, folder:PATH, …")
    from ..train import evaluate, runtime_for
    from .judging import Judge

    runtime = runtime_for(config, context)
    if runtime.accelerator.num_processes > 1:
        raise UserError("lottery runs in one process", hint="start it without `accelerate launch`")
    judge = Judge(task, config.critical, runtime, limit=config.max_eval)
    if config.max_fnr_increase is not None and judge.critical is None:
        raise UserError(
            f"max_fnr_increase = {config.max_fnr_increase} is a budget of missed positives, and no class is critical",
            hint='name them: critical = ["defective"]',
        )
    before = evaluate(module, task, "val", runtime=runtime, limit=config.max_eval)
    run = _Run(module, task, config, context, runtime, judge)
    run.finish()
    chosen = run.done[run.chosen]
    figures = run.figures() | {"val_before": before, "val_after": chosen.figures["metrics"]["val"]}
    return Result(chosen.bundle.module(), figures=figures, notes=tuple(run.notes()))


@dataclass
class _Run:
    """Rounds under way, beside their control."""

    module: nn.Module
    task: Task
    config: LotteryConfig
    context: Context
    runtime: Runtime
    judge: Judge
    done: list[Round] = field(default_factory=list)
    controls: list[Round] = field(default_factory=list)
    max_fpr: float = 0.0
    allowed: float = 1.0
    chosen: int = 0
    stopped: str = ""

    def finish(self) -> None:
        """None; rounds run until the last, or the first that breaks the budget, each with its control."""
        control = self._lottery("control", self._densities(), plain=True).run() if self._controlled() else None
        for found in self._lottery("round", self._densities(), plain=False).run():
            self.done.append(found)
            if control is not None:
                self.controls.append(next(control))
            if found.number == 0 and self.judge.critical is not None:
                self._reference(found)
            if self._breaks_budget(found):
                break
            self.chosen = found.number

    def _controlled(self) -> bool:
        """Whether a plain lottery runs beside: asked for, and not the same thing."""
        if self.judge.critical is None or not self.config.control:
            return False
        return any(not self.config.emphasis(n, critical=True).plain for n in range(len(self._densities())))

    def _lottery(self, label: str, shares: tuple[float, ...], *, plain: bool) -> Lottery:
        from .config import Emphasis
        from .rounds import Lottery

        folder = (self.context.folder or self.context.workdir) / ("control" if plain else "rounds")
        folder.mkdir(parents=True, exist_ok=True)
        critical = self.judge.critical is not None
        return Lottery(
            label=label,
            module=copy.deepcopy(self.module),
            task=self.task,
            config=self.config,
            context=self.context,
            runtime=self.runtime,
            judge=self.judge,
            folder=folder,
            densities=shares,
            emphasis=(lambda _: Emphasis(1.0, 0.0)) if plain else (lambda n: self.config.emphasis(n, critical=critical)),
        )

    def _densities(self) -> tuple[float, ...]:
        """The density of every round. Raises UserError when the network is as sparse already."""
        import torch

        from ...models.bundle import bare
        from ...models.masks import density, masks_of
        from .pruning import densities, group_densities
        from .scores import prunable
        from .shape import Pattern

        config, net = self.config, bare(self.module)
        pattern = Pattern.parse(config.pattern)
        if pattern.group:
            return group_densities(pattern.keep, pattern.group, config.prune_share, one_shot=config.one_shot)
        own = masks_of(net)
        weights = prunable(net, biases=config.biases, keep=config.keep)
        start = density({name: own.get(name, torch.ones_like(w, dtype=torch.bool)) for name, w in weights.items()})
        if start <= config.final_density:
            raise UserError(
                f"the network has {start:.2%} of its weights left, and density = {config.final_density} asks for as many or more",
                hint="ask for less, or take the step out",
            )
        return densities(config.final_density, config.prune_share, start=start, one_shot=config.one_shot)

    def _reference(self, first: Round) -> None:
        """None; sets the operating point's false-positive rate and the allowed miss rate, from validation."""
        scores = first.scores
        if self.config.reference == "parent":
            _, scores = self.judge.measure(self.context.parent.module())
        own = self.judge.rates(scores, "val")
        self.max_fpr = self.config.max_fpr if self.config.max_fpr is not None else _known(own.fpr)
        if self.config.max_fnr_increase is not None:
            at = self.judge.rates(scores, "val", self.judge.threshold(scores, self.max_fpr))
            self.allowed = _known(at.fnr) + self.config.max_fnr_increase

    def _breaks_budget(self, found: Round) -> bool:
        if self.config.max_fnr_increase is None:
            return False
        at = self.judge.rates(found.scores, "val", self.judge.threshold(found.scores, self.max_fpr))
        if _known(at.fnr) <= self.allowed + SLACK:
            return False
        self.stopped = (
            f"round {found.number} ({found.figures['density']:.2%} of the weights) misses {at.missed} of {at.positives} on validation, "
            f"{_known(at.fnr):.2%}; {self.allowed:.2%} are allowed"
        )
        return True

    def figures(self) -> dict[str, Any]:
        """What the step reports, JSON-able."""
        rows = []
        for found in self.done:
            row = dict(found.figures)
            if self.judge.critical is not None:
                row["critical"] = self._report(found.scores)
                if self.controls:
                    control = self.controls[found.number]
                    row["control"] = {"metrics": control.figures["metrics"]} | self._report(control.scores)
                    row["difference"] = self.judge.compare(control.scores, found.scores, self.max_fpr, seed=self.context.seed)
            rows.append(row)
        return {
            "rounds": rows,
            "chosen": self.chosen,
            "stopped": self.stopped,
            "density": rows[self.chosen]["density"],
            "critical": list(self.judge.names),
            "max_fpr": self.max_fpr if self.judge.critical is not None else None,
            "allowed_fnr": self.allowed if self.config.max_fnr_increase is not None else None,
        }

    def _report(self, scores: dict[str, np.ndarray]) -> dict[str, Any]:
        return self.judge.report(scores, self.max_fpr, seed=self.context.seed)

    def notes(self) -> Iterator[str]:
        """What a user must know, in words."""
        if self.stopped:
            back = (
                f"the Bundle is round {self.chosen}"
                if self.chosen < self.done[-1].number
                else "no round kept to it: the first one is taken"
            )
            yield f"stopped by the budget: {self.stopped}; {back}"
        chosen = self.done[self.chosen].figures
        if chosen["minimum"]:
            yield f"layers that would have lost every weight and kept their best: {', '.join(chosen['minimum'])}"
        if chosen["whole"]:
            yield f"layers that do not take the pattern {self.config.pattern} and stay whole: {', '.join(chosen['whole'])}"
        if self.judge.critical is not None and not self.controls and self.config.control:
            yield "no control was run: the losses are plain, so the run is its own control"
        if self.judge.critical is not None and not self.config.control:
            yield "control = false: whether the losses did more than move the threshold was not measured"


def _known(rate: float | None) -> float:
    """A rate that exists: the judge has refused splits without both sides."""
    if rate is None:
        raise RuntimeError("a rate without samples")
    return rate
