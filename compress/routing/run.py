"""One run of the step "route": cut, trained, routed, calibrated."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...models.bundle import CODE
from ...models.errors import UserError
from ...models.gates import detach_gates, gates_of
from ...models.routed import RoutedNet, RouterSpec, RouteSpec, features_at
from ...models.surgery import SurgeryPlan, describe
from ..importance import accumulate_gradients, score, scorer
from ..method import Context, Result
from ..sampling import derived_seed
from ..train import History, evaluate, fit, runtime_for
from .activity import Activity, positions_of
from .answers import answers, branch_metrics, validation_answers
from .branches import Cutter
from .calibration import MIN_SAMPLES, Curve, Point, curve, thresholds_for
from .clusters import Clusters, find_clusters
from .cost import RouteCost, route_cost
from .figures import Findings, figures_of, notes_of
from .router import Routing, Together, router_targets, routing_objective, together_objective
from .training import Branches, frozen, frozen_parts, recalibrate, taught_by

if TYPE_CHECKING:
    from ...models.bundle import Bundle
    from ...models.tasks.task import Task
    from .answers import Answers
    from .method import RouteConfig

DROP = 0.005
"""The accuracy that thresholds may cost when the recipe names no target."""
LOOKED_AT = 2048
"""Validation samples whose masks are set beside the branches' errors."""


class Run:
    """A network on its way to being routed. `source` is the Bundle that it came from."""

    def __init__(self, module: nn.Module, task: Task, config: RouteConfig, context: Context, source: Bundle) -> None:
        self.module, self.task, self.config, self.context, self.source = module, task, config, context, source
        self.classes = len(task.contract.classes)
        self._refuse()
        self.runtime = runtime_for(config, context)
        contract = context.parent.contract
        drawn = contract.random_inputs(contract.example_dims(), seed=context.seed)
        self.inputs = [torch.from_numpy(value) for value in drawn.values()]
        self.gated = bool(gates_of(module))
        self.positions = positions_of(task, config.max_train, context.seed)
        self.clusters: Clusters | None = None

    def _refuse(self) -> None:
        if any(isinstance(part, RoutedNet) for part in self.module.modules()):
            raise UserError("the network is routed already", hint='take one of the two "route" steps out of the recipe')
        if self.config.by != "masks" and not self.classes:
            what = "its answers can't be sure or right" if self.config.by == "difficulty" else "there is nothing to cluster"
            raise UserError(
                f"route by {self.config.by} is for a task with classes, and {self.task.name} has none: {what}",
                hint='by = "masks" routes any task',
            )
        samples = len(self.task.samples("val"))
        if self.config.by == "difficulty" and samples < MIN_SAMPLES:
            raise UserError(
                f"thresholds from {samples} validation samples would be chance: at least {MIN_SAMPLES} are wanted",
                hint="give more validation data (val_fraction of the task)",
            )

    def result(self) -> Result:
        """The routed network and all that was found on the way."""
        before = evaluate(self.module, self.task, "val", runtime=self.runtime, limit=self.config.max_eval)
        cutter, spec = self._spec()
        net = self._network(cutter.module, spec)
        cost = route_cost(net, self.inputs)
        self._refuse_target(cost, cutter.dense.macs)
        learning = self._learning(spec)
        cut = [i for i, edits in enumerate(spec.branches) if edits or i in learning]
        recalibrate(
            net, cut, self.task, self._scored, runtime=self.runtime, seed=derived_seed(self.context.seed, "route-norms")
        )
        history = {"branches": self._train_branches(net, spec, learning)}
        if net.router is not None:
            table = self._router_table(net)
            history["router"] = self._train_router(net, spec, table)
            if self.config.joint_epochs:
                self._calibrate(net, cost, cutter.dense.macs)
                history |= self._train_together(net, spec, table, learning)
        observed, found, chosen = self._calibrate(net, cost, cutter.dense.macs)
        findings = Findings(
            dense=cutter.dense,
            cost=cost,
            branches=branch_metrics(net, self.task, runtime=self.runtime, limit=self.config.max_eval),
            before=before,
            after=evaluate(net, self.task, "val", runtime=self.runtime),
            shares=self._shares(net) if chosen is None else chosen.shares,
            curve=found,
            chosen=chosen,
            answers=observed,
            demand=self._demand("val") if observed is not None else None,
            history={name: entry.as_dict() for name, entry in history.items()},
            learning=tuple(learning),
        )
        notes = [*notes_of(findings, self.config), *(note for entry in history.values() for note in entry.notes)]
        return self._packed(net.eval(), spec, figures_of(net, findings, self.config), tuple(notes))

    def _packed(self, net: RoutedNet, spec: RouteSpec, figures: dict[str, Any], notes: tuple[str, ...]) -> Result:
        """The Result: a plan on top of the one before, or, where gates are left behind, the whole plan without them."""
        if not self.gated:
            return Result(net, plan=SurgeryPlan(routes=spec), figures=figures, notes=notes)
        own = self.source.manifest
        return Result(
            net,
            plan=SurgeryPlan(edits=self.source.plan.edits, routes=spec),
            figures=figures,
            notes=notes,
            architecture=own.architecture,
            output=own.output,
            code=self.source.folder / CODE if own.architecture.is_file else None,
        )

    # ---------------------------------------------------------------- structure

    @cached_property
    def _scored(self) -> list[int]:
        """The training samples whose activations are looked at."""
        return self.positions[: self.config.score_images] if self.config.max_train else self._some_positions()

    def _some_positions(self) -> list[int]:
        return positions_of(self.task, self.config.score_images, self.context.seed)

    def _spec(self) -> tuple[Cutter, RouteSpec]:
        """The branches, cut from the network without gates by what its channels do."""
        config = self.config
        cutter = Cutter.of(
            detach_gates(copy.deepcopy(self.module)),
            self.inputs,
            shared=config.shared,
            round_to=config.round_to,
            max_ratio=config.max_ratio,
            scope=config.scope,
        )
        self.groups = cutter.groups
        if config.by == "difficulty":
            branches = cutter.nested(self._scores(cutter), config.ratios)
            rule: Any = config.rule
        else:
            seen = self._activity(self._scored)
            self.clusters = find_clusters(
                seen, config.by, config.clusters, classes=self.classes, seed=derived_seed(self.context.seed, "clusters") % 2**32
            )
            owner = self.clusters.assign(seen)
            rows = [(owner == k).nonzero()[:, 0] for k in range(config.clusters)]
            branches = tuple(cutter.at(seen.majority(own), config.ratio) for own in rows)
            rule = "cluster"
        router = None if rule == "cascade" else self._router_spec(cutter.module)
        return cutter, RouteSpec(branches=branches, rule=rule, shared=config.shared, nested=config.nested, router=router)

    def _scores(self, cutter: Cutter) -> list[Tensor]:
        """How much every channel of the cutter's groups matters."""
        criterion = self.config.importance or ("activity" if self.gated else "l2")
        if criterion == "activity":
            return self._activity(self._scored).scores()
        if criterion == "taylor":
            images, seed = self.config.score_images, self.context.seed
            accumulate_gradients(cutter.module, self.task, images=images, batch_size=128, seed=seed)
        importance, generator = scorer(criterion, "group"), torch.Generator().manual_seed(self.context.seed)
        found = [score(group, importance, generator) for group in cutter.groups]
        cutter.module.zero_grad(set_to_none=True)
        return found

    def _activity(self, positions: Sequence[int], split: Any = "train") -> Activity:
        return Activity(
            self.module,
            self.groups,
            self.task,
            positions,
            runtime=self.runtime,
            mass=self.config.mass,
            split=split,
        )

    def _router_spec(self, dense: nn.Module) -> RouterSpec:
        config = self.config
        seen = self.inputs[0]
        if config.router_at:
            with torch.no_grad():
                seen = features_at(dense.eval(), config.router_at, seen)
        if seen.ndim != 4:
            raise UserError(
                f"the router reads images or feature maps, and {config.router_at or 'the input'} has shape {tuple(seen.shape)}",
                hint="name a module that gives (N, C, H, W)",
            )
        return RouterSpec(
            at=config.router_at,
            inputs=seen.shape[1],
            pool=1 if config.router_at else config.router_pool,
            width=config.router_width,
        )

    @cached_property
    def _trained_whole(self) -> nn.Module | None:
        """The dense network with weights that were trained without gates: the parent, where it has this structure."""
        if not self.gated:
            return self.module
        parent = self.context.parent.module()
        dense = detach_gates(copy.deepcopy(self.module))
        return parent if not gates_of(parent) and describe(parent) == describe(dense) else None

    def _network(self, dense: nn.Module, spec: RouteSpec) -> RoutedNet:
        """The untrained branches. The largest takes the parent's weights where gates had come in between."""
        whole = self._trained_whole
        base = whole if spec.nested and whole is not None else dense
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(self.context.seed, "router"))
            net = RoutedNet(base, spec)
        if self.gated and whole is not None and not spec.nested and not spec.branches[-1]:
            net.branches[-1].load_state_dict(whole.state_dict())
        return net.requires_grad_(True)

    def _learning(self, spec: RouteSpec) -> list[int]:
        """The branches that are trained: all, but for a largest one that is whole and was trained before."""
        ready = not spec.branches[-1] and not spec.nested and self._trained_whole is not None
        train = self.config.train_largest if self.config.train_largest is not None else not ready
        return list(range(len(spec.branches) if train else len(spec.branches) - 1))

    def _refuse_target(self, cost: RouteCost, dense: int) -> None:
        wanted, least = self.config.target_mac_ratio, min(cost.paths) / dense
        if wanted is not None and wanted < least:
            raise UserError(
                f"target_mac_ratio {wanted:g} can't be reached: the smallest branch alone costs {least:.4f}",
                hint="raise it, or lower the first of ratios",
            )

    # ---------------------------------------------------------------- training

    @cached_property
    def _teacher(self) -> nn.Module | None:
        """The parent, frozen, on the run's device."""
        if not self.config.distill_weight and self.config.by != "difficulty":
            return None
        return self.runtime.place(self.context.parent.module().requires_grad_(False)).eval()

    def _identity(self, spec: RouteSpec, **more: Any) -> dict[str, Any]:
        return {"route": spec.model_dump(mode="json"), "teacher": self.context.parent.hash, **more}

    def _train_branches(self, net: RoutedNet, spec: RouteSpec, learning: Sequence[int]) -> History:
        config = self.config
        objective = taught_by(
            self._teacher,
            self.task,
            self.runtime,
            weight=config.distill_weight,
            temperature=config.temperature,
            classes=bool(self.classes),
            common=spec.nested or bool(spec.shared and len(spec.branches) - 1 in learning),
        )
        with frozen(frozen_parts(net, learning)):
            return fit(
                Branches(net, learning),
                self.task,
                config,
                objective=objective,
                context=self.context,
                label="route-branches",
                identity=self._identity(spec),
                runtime=self.runtime,
                evaluator=lambda _: self._metrics(net, learning),
            )

    def _metrics(self, net: RoutedNet, which: Sequence[int]) -> dict[str, float]:
        """The task's metric of some branches, by number."""
        metrics = branch_metrics(net, self.task, runtime=self.runtime, limit=self.config.max_eval, which=which)
        return {f"{self.task.metric} of branch {i + 1}": m[self.task.metric] for i, m in zip(which, metrics, strict=True)}

    def _router_table(self, net: RoutedNet) -> Tensor:
        """What the router is to say of each training sample, by its position in the split."""
        positions = torch.tensor(self.positions)
        samples = len(self.task.samples("train"))
        if self.clusters is not None:
            of_cluster = self.clusters.assign(self._activity(self.positions))
            return torch.zeros(samples, dtype=torch.int64).index_copy(0, positions, of_cluster)
        said = answers(net, self.task, self.positions, runtime=self.runtime, split="train", parent=self._teacher)
        demand = self._activity(self.positions).demand() if self.config.signal != "suffices" else None
        wanted = router_targets(self.config.signal, said.suffices, demand)
        return torch.zeros(samples, wanted.shape[1]).index_copy(0, positions, wanted)

    def _train_router(self, net: RoutedNet, spec: RouteSpec, table: Tensor) -> History:
        """The router trained on the images as they are: what is wanted of it was found on these."""
        config = self.config.model_copy(
            update={
                "epochs": self.config.router_epochs,
                "optimizer": "adamw",
                "lr": self.config.router_lr,
                "weight_decay": 1e-4,
                "schedule": "cosine",
                "warmup_epochs": 0.0,
                "augment": False,
                "evaluate_every": 0,
            }
        )
        with frozen([net.branches]):
            return fit(
                Routing(net),
                self.task,
                config,
                objective=routing_objective(table),
                context=self.context,
                label="route-router",
                identity=self._identity(spec, table=_digest(table)),
                runtime=self.runtime,
                evaluator=lambda _: {},
            )

    def _train_together(self, net: RoutedNet, spec: RouteSpec, table: Tensor, learning: Sequence[int]) -> dict[str, History]:
        """Branches on the samples routed to them: first with the router fixed, then with it, at a tenth of the learning rate."""
        if self.runtime.accelerator.num_processes > 1:
            raise UserError("joint_epochs run in one process", hint="set joint_epochs = 0, or start one process")
        base = self.config
        config = base.model_copy(update={"epochs": base.joint_epochs / 2, "lr": base.lr / 10, "warmup_epochs": 0.0})
        found = {}
        for name, learn in (("specialise", False), ("joint", True)):
            parts = frozen_parts(net, learning)
            with frozen([part for part in parts if part is not net.router or not learn]):
                found[name] = fit(
                    Together(net, learning, learn=learn),
                    self.task,
                    config,
                    objective=together_objective(
                        table,
                        self._teacher,
                        self.task,
                        self.runtime,
                        weight=base.distill_weight,
                        temperature=base.temperature,
                        classes=bool(self.classes),
                        learn=learn,
                    ),
                    context=self.context,
                    label=f"route-{name}",
                    identity=self._identity(spec, table=_digest(table), thresholds=net.thresholds.tolist()),
                    runtime=self.runtime,
                    evaluator=lambda _: evaluate(net, self.task, "val", runtime=self.runtime, limit=base.max_eval),
                )
        return found

    # ---------------------------------------------------------------- calibration

    def _calibrate(self, net: RoutedNet, cost: RouteCost, dense: int) -> tuple[Answers | None, Curve | None, Point | None]:
        """The network's thresholds set from all validation samples; the branches' answers, the curve, and the point chosen on it."""
        if net.spec.rule == "cluster":
            return None, None, None
        said = validation_answers(net, self.task, runtime=self.runtime)
        found = curve(said.observed(cost.paths, dense))
        config = self.config
        if config.target_mac_ratio is not None:
            chosen = thresholds_for(found, target_mac_ratio=config.target_mac_ratio)
        else:
            drop = DROP if config.max_accuracy_drop is None else config.max_accuracy_drop
            chosen = thresholds_for(found, max_accuracy_drop=drop)
        net.thresholds.copy_(torch.tensor(chosen.thresholds))
        return said, found, chosen

    def _shares(self, net: RoutedNet) -> tuple[float, ...]:
        """How many validation samples each branch answers."""
        taken: list[Tensor] = []
        handle = net.register_forward_hook(lambda module, _a, _o: taken.append(module.taken.cpu()))
        try:
            evaluate(net, self.task, "val", runtime=self.runtime)
        finally:
            handle.remove()
        counts = torch.bincount(torch.cat(taken), minlength=len(net.branches)).double()
        return tuple((counts / counts.sum()).tolist())

    def _demand(self, split: Any) -> Tensor:
        """How many channels each of the first samples of a split needs."""
        return self._activity(range(min(LOOKED_AT, len(self.task.samples(split)))), split).demand()


def _digest(table: Tensor) -> str:
    from ...models.files import digest_of

    return digest_of([list(table.shape), str(table.dtype), table.flatten().tolist()])
