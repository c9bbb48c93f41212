"""The recipe step "ftwt": gates that learn, from the network's own activations, which filters to compute for each input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from ...models.errors import UserError
from ..method import Context, MethodCard, MethodConfig, Result, register_method
from ..trainconfig import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from ...models.gates import Gate, GateSpec
    from ...models.tasks.task import Task
    from ..loop import Objective, TrainBatch
    from ..runtime import Runtime
    from .accounting import MacModel
    from .candidates import Candidates
    from .estimate import Estimator, Point
    from .ground_truth import Rule
    from .observe import Observation

BATCH = 128
FAR_OFF = 0.03
"""A realised MAC reduction further than this from the estimated one is worth a note."""


class FtwtConfig(TrainConfig, MethodConfig):
    """Gates by self-supervised mask prediction. Exactly one of `r` and `target_mac_reduction` says how much is left out."""

    kind: Literal["ftwt"] = "ftwt"
    lr: float = Field(
        0.01, gt=0, allow_inf_nan=False, description="peak learning rate of the network (adamw wants about 0.001)"
    )
    schedule: Literal["cosine", "multistep", "constant"] = Field(
        "multistep", description="the learning rate's shape over the run (the gates' own rate has none)"
    )
    milestones: tuple[float, ...] = Field(
        (0.405, 0.61, 0.755), description="multistep: fractions of the run (the paper's 81, 122 and 151 of 200 epochs)"
    )
    evaluate_every: int = Field(1, ge=0, description="epochs between validations, which show masks too; 0 = only at the end")
    r: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of a layer's activation mass that the filters kept must carry; 1 drops dead ones only",
    )
    target_mac_reduction: float | None = Field(
        None, gt=0, lt=1, description="MACs to leave out on average, as a share, gates counted; r is then found by estimate"
    )
    criterion: Literal["mass", "uniform"] = Field(
        "mass",
        description='"uniform": the largest filters of every input, a fixed share r of each layer (the paper\'s baseline)',
    )
    allocate: Literal["global", "layer"] = Field(
        "global", description='one r for all layers, or ("layer", with a target) an r for each by what it costs'
    )
    mode: Literal["decoupled", "joint"] = Field(
        "decoupled", description='"joint": the mask loss shapes the network too, not the gates alone'
    )
    pool: Literal["max", "avg"] = Field("max", description="how a gate pools its layer's input (the released code averages)")
    scale: Literal["softmax", "standardise"] = Field(
        "softmax",
        description="what it does to the pooled input; standardise (running statistics) makes masks depend on the input",
    )
    hidden: int = Field(0, ge=0, le=4096, description="units of a hidden layer in every gate; 0 = linear")
    start: Literal["open", "mean", "random"] = Field(
        "open",
        description='first masks: all on, ("mean") each filter as often on as in the estimate, or random, which kills deep networks '
        "without shortcuts",
    )
    predictor_lr: float = Field(
        0.1, gt=0, allow_inf_nan=False, description="learning rate of the gates, constant (adamw wants about 0.01)"
    )
    mask_weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="weight of the mask loss while it is on")
    mask_until: float = Field(0.5, gt=0, le=1, description="fraction of the run after which gates stay as they are")
    calibrate: bool = Field(
        False,
        description="when gates stop learning, move their thresholds so that filters are on as often as in the ground truth",
    )
    keep: tuple[str, ...] = Field((), description="module names that get no gate")
    estimate_images: int = Field(
        1024, ge=32, description="images that the estimate (validation) and the calibration (training) look at"
    )

    @model_validator(mode="after")
    def _one_target(self) -> FtwtConfig:
        if (self.r is None) == (self.target_mac_reduction is None):
            raise ValueError("give one of r (0 to 1) and target_mac_reduction (0 to 1)")
        if self.allocate == "layer" and self.target_mac_reduction is None:
            raise ValueError('allocate = "layer" needs target_mac_reduction: it says how much all layers together leave out')
        if self.calibrate and self.mask_until == 1:
            raise ValueError("calibrate needs mask_until below 1: the network must get used to the moved thresholds")
        if self.scale == "standardise" and self.batch_size < 2:
            raise ValueError('scale = "standardise" needs batch_size 2 or more: one image has no variance')
        return self


@register_method(
    "ftwt",
    FtwtConfig,
    MethodCard(
        title="Gates that choose the filters to compute for each input (dynamic pruning)",
        source="Elkerdawy et al., Fire Together Wire Together, CVPR 2022",
        needs_data=True,
        needs_labels=True,
        changes_structure=True,
        trains=True,
    ),
)
def ftwt(module: nn.Module, task: Task | None, config: FtwtConfig, context: Context) -> Result:
    """The gated module, with the MAC reduction estimated before training and realised after it, and how much masks vary.

    Raises UserError without data, for a network that is dynamic already, when no layer can be gated, when the target is out of
    reach, and when there are too few validation samples for statistics.
    """
    if task is None:
        raise UserError("ftwt needs data, and this run has none", hint="add --data fashion-mnist, folder:PATH, …")
    import torch

    from ...models.surgery import SurgeryPlan
    from ..sampling import derived_seed
    from ..train import ParamGroup, evaluate, fit, runtime_for
    from .candidates import candidates, spec_of
    from .estimate import Estimator, channel_means, require_some
    from .gating import gated, refuse_dynamic, taping

    refuse_dynamic(module)
    runtime = runtime_for(config, context)
    contract = context.parent.contract
    inputs = [torch.from_numpy(v) for v in contract.random_inputs(contract.example_dims(), seed=context.seed).values()]
    found = candidates(module, inputs, keep=config.keep)
    require_some(found)
    specs = tuple(spec_of(c, pool=config.pool, scale=config.scale, hidden=config.hidden) for c in found.found)
    before = evaluate(module, task, "val", runtime=runtime, limit=config.max_eval)
    estimator = Estimator(
        module,
        task,
        inputs,
        runtime=runtime,
        specs=specs,
        found=found,
        criterion=config.criterion,
        images=config.estimate_images,
    )
    rule, point = _rule(estimator, config)
    truth = estimator.look(rule.level)
    seed = derived_seed(context.seed, "gates")
    gates = gated(module, specs, seed=seed, start=config.start, means=channel_means(truth))
    for gate in gates.values():
        gate.detach = config.mode == "decoupled"
    watch = _Watch(task, rule, runtime, config, estimator.cost)
    own = tuple(p for gate in gates.values() for p in gate.parameters())
    with taping(gates):
        history = fit(
            module,
            task,
            config,
            objective=_objective(
                gates, task, rule, config, _freezing(module, gates, task, rule, config, context.seed, runtime)
            ),
            context=context,
            label="ftwt",
            identity={"levels": rule.level},
            runtime=runtime,
            evaluator=watch,
            groups=[ParamGroup(own, lr=config.predictor_lr, until=config.mask_until)],
        )
    seen = watch.last or watch.observe(module)
    figures = {
        "estimate": _estimate_figures(estimator, point, rule, truth),
        "realised": _realised(estimator.cost, seen),
        **_gate_figures(found, specs),
        "val_before": before,
        "val_after": seen.metrics,
        "history": history.as_dict(),
    }
    figures["diversity"] = watch.diversity(seen)
    return Result(module, plan=SurgeryPlan(gates=specs), figures=figures, notes=(*_notes(figures, specs), *history.notes))


def _rule(estimator: Estimator, config: FtwtConfig) -> tuple[Rule, Point]:
    """The ground truth that gates are to learn, and what it saves on the frozen network."""
    from .ground_truth import Rule
    from .per_layer import allocate

    if config.r is not None:
        return Rule(config.r, config.criterion), estimator.point(config.r)
    target = config.target_mac_reduction or 0.0
    if config.allocate == "layer":
        levels, point = allocate(estimator, target)
        return Rule(levels, config.criterion), point
    point = estimator.level_for(target)
    return Rule(point.level, config.criterion), point


def _objective(
    gates: Mapping[str, Gate], task: Task, rule: Rule, config: FtwtConfig, freeze: Callable[[TrainBatch], None]
) -> Objective:
    """Task loss + λ · mask loss, λ = 0 from `mask_until` on.

    A mask carries no gradient, so that the task's loss never reaches a gate. At λ = 0 the mask loss stays in the sum: in a run of
    several processes every parameter takes part in every step.
    """
    from .gating import mask_loss

    def objective(network: nn.Module, batch: TrainBatch) -> tuple[Any, dict[str, Any]]:
        active = batch.epoch / config.epochs < config.mask_until
        freeze(batch)
        for gate in gates.values():
            gate.train(active)  # running statistics stop with the gates
        label = task.loss(network(batch.inputs), batch.targets)
        logits, truths = [], []
        for path, gate in gates.items():
            if gate.logits is None or gate.saliency is None:
                raise UserError(f"the gate of {path} is never reached", hint=f'add keep = ["{path}"] to the step')
            logits.append(gate.logits)
            truths.append(rule.mask(path, gate.saliency))
        masks = mask_loss(logits, truths)
        return label + (config.mask_weight if active else 0.0) * masks, {"label": label, "mask": masks}

    return objective


def _freezing(
    module: nn.Module,
    gates: Mapping[str, Gate],
    task: Task,
    rule: Rule,
    config: FtwtConfig,
    seed: int,
    runtime: Runtime,
) -> Callable[[TrainBatch], None]:
    """What is done before each step: at the first whose gates don't learn any more, `calibrate` moves their thresholds.

    Which step that is follows from the step's number alone, so that a resumed run does it neither twice nor never.
    """
    from ..sampling import chosen_positions
    from ..schedule import plan_run
    from .calibrate import match_rates

    samples = task.samples("train")
    positions = chosen_positions(len(samples), config.max_train, seed)
    plan = plan_run(config, len(positions))

    def active(step: int) -> bool:
        return plan.epochs_done(step) / config.epochs < config.mask_until

    def freeze(batch: TrainBatch) -> None:
        step = round(batch.epoch * plan.per_epoch)
        if not config.calibrate or active(step) or not active(step - 1):
            return
        rows = positions[chosen_positions(len(positions), config.estimate_images, seed)].tolist()
        parts = (samples.__getitems__(rows[at : at + BATCH]) for at in range(0, len(rows), BATCH))
        match_rates(module, gates, rule, (runtime.layout(task.inputs(raw).to(runtime.device)) for raw in parts))

    return freeze


class _Watch:
    """What is measured on the validation samples while gates train: the task's metrics, MACs, and how much masks vary."""

    def __init__(self, task: Task, rule: Rule, runtime: Runtime, config: FtwtConfig, cost: MacModel) -> None:
        self.task, self.rule, self.runtime, self.config, self.cost = task, rule, runtime, config, cost
        self.last: Observation | None = None

    def observe(self, module: nn.Module) -> Observation:
        """The gated network at work."""
        from .observe import observe

        return observe(module, self.task, self.rule, runtime=self.runtime, limit=self.config.max_eval)

    def diversity(self, seen: Observation) -> dict[str, Any]:
        """How much the masks vary."""
        from .diversity import diversity

        return diversity(seen)

    def __call__(self, module: nn.Module) -> dict[str, float]:
        self.last = seen = self.observe(module)
        figures = self.diversity(seen)
        return {
            **seen.metrics,
            "mac_reduction": 1 - float(self.cost.per_sample(seen.masks).mean()) / self.cost.dense,
            "distinct_masks": float(figures["distinct"]),
            "dynamic_layers": float(figures["dynamic_layers"]),
            "beyond_constant": figures["beyond_constant"],
        }


def _estimate_figures(estimator: Estimator, point: Point, rule: Rule, truth: Observation) -> dict[str, Any]:
    """The estimate before training, and how much the ground truth itself varies: what gates can learn at most."""
    from .diversity import diversity

    varied = diversity(truth)
    kept = ("keep", "entropy_bits", "headroom", "class_bits")
    return {
        "level": dict(rule.level) if not isinstance(rule.level, float | int) else rule.level,
        "mac_reduction": point.mac_reduction,
        "metrics": point.metrics,
        "samples": len(truth),
        "curve": [p.as_dict() for p in estimator.measured()],
        "truth": {
            "distinct": varied["distinct"],
            "dynamic_layers": varied["dynamic_layers"],
            "layers": {path: {name: layer[name] for name in kept} for path, layer in varied["layers"].items()},
        },
    }


def _realised(cost: MacModel, seen: Observation) -> dict[str, Any]:
    """MACs over the validation samples, gates included."""
    import torch

    macs = cost.per_sample(seen.masks)
    spread = torch.quantile(macs[:100_000], torch.tensor([0.05, 0.5, 0.95, 0.99], dtype=macs.dtype)).tolist()
    return {
        "mac_reduction": 1 - float(macs.mean()) / cost.dense,
        "mac_ratio": float(macs.mean()) / cost.dense,
        "macs_before": cost.dense,
        "macs_mean": float(macs.mean()),
        "macs_quantiles": dict(zip(("p5", "p50", "p95", "p99"), spread, strict=True)),
        "gate_macs": cost.gate_macs,
        "gate_share": cost.gate_macs / cost.dense,
        "samples": len(seen),
    }


def _gate_figures(found: Candidates, specs: Sequence[GateSpec]) -> dict[str, Any]:
    known = found.by_path()
    return {
        "gates": [
            {
                "path": spec.conv,
                "points": list(spec.points),
                "channels": spec.channels,
                "saves": "own outputs" if known[spec.conv].own_outputs_only else "own outputs, inputs of what follows",
                "note": known[spec.conv].note,
            }
            for spec in specs
        ],
        "ungated": [vars(u) for u in found.ungated if u.kind != "Linear"],
    }


def _notes(figures: Mapping[str, Any], specs: Sequence[GateSpec]) -> list[str]:
    """What a user must know: gates that don't look at their input, an estimate that was off."""
    from .diversity import collapsed

    said = {
        "static": "give practically every input the same mask (static)",
        "all on": "switch nothing off (all on)",
        "all off": "switch everything off (all off)",
    }
    varied = figures["diversity"]
    notes = [
        f"{len(paths)} of {varied['gates']} gates {said[verdict]}: {', '.join(paths)}"
        for verdict, paths in collapsed(varied).items()
        if paths
    ]
    if blind := [spec.conv for spec in specs if spec.scale == "softmax" and spec.inputs == 1]:
        notes.append(f"the gate of {blind[0]} sees one channel, whose softmax is 1 for every input")
    estimated, realised = figures["estimate"]["mac_reduction"], figures["realised"]["mac_reduction"]
    if abs(estimated - realised) > FAR_OFF:
        notes.append(f"the MAC reduction was estimated as {estimated:.3f} and came out as {realised:.3f}")
    return notes
