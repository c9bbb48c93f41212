"""The recipe step "static-average": a gated network's average mask, sliced once. What is left is plain, dense and ungated.

It is the control that every dynamic form must beat: as many channels, chosen once for all inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ...models.errors import UserError
from ..method import Context, MethodCard, MethodConfig, Result, register_method

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...models.bundle import Bundle
    from ...models.surgery import SurgeryPlan
    from ...models.tasks.task import Task

BATCH = 128


class StaticAverageConfig(MethodConfig):
    """How the average mask becomes a choice of channels."""

    kind: Literal["static-average"] = "static-average"
    images: int = Field(2048, ge=32, description="training images whose masks are averaged")
    rule: Literal["mean-k", "half"] = Field(
        "mean-k", description='"mean-k": as many channels as are on in the average; "half": those on for half of the images'
    )
    round_to: int = Field(1, ge=1, le=256, description="kept channels are a multiple of this; 1 turns rounding off")
    unsliced: Literal["zero", "leave"] = Field(
        "zero", description="channels that are off but shared with other layers: set to zero, or computed as before the gates"
    )
    recalibrate: bool = Field(True, description="measure batch-norm statistics anew on the same images")


@register_method(
    "static-average",
    StaticAverageConfig,
    MethodCard(
        title="Slice a gated network's average mask once",
        source="the static control of Elkerdawy et al., Fire Together Wire Together, CVPR 2022",
        needs_data=True,
        needs_labels=False,
        changes_structure=True,
        trains=False,
    ),
)
def static_average(module: nn.Module, task: Task | None, config: StaticAverageConfig, context: Context) -> Result:
    """The dense network of the average mask; nothing is trained.

    Raises UserError without data, for a network without gates, and for a routed one.
    """
    import torch

    from ...models.gates import detach_gates, gates_of
    from ..cost import count
    from ..runtime import Runtime
    from .average import average_plan, silence

    bundle = context.current
    if task is None:
        raise UserError("static-average needs data, and this run has none", hint="add --data fashion-mnist, folder:PATH, …")
    if bundle.plan.routes:
        raise UserError("static-average wants gates, and the network is routed", hint="put it in the place of the route step")
    runtime = Runtime(context.device, amp="off")
    means = mean_masks(module, task, images=config.images, seed=context.seed, runtime=runtime)
    contract = context.parent.contract
    inputs = [torch.from_numpy(v) for v in contract.random_inputs(contract.example_dims(), seed=context.seed).values()]
    channels = {path: len(mean) for path, mean in means.items()}
    specs = {path: gate.spec for path, gate in gates_of(module).items()}
    before = count(detach_gates(module), inputs)
    done = average_plan(module, means, inputs, rule=config.rule, round_to=config.round_to)
    if config.unsliced == "zero":
        silence(module, done.kept, specs)
    done.plan.replay(module)
    if config.recalibrate:
        _recalibrate(module, task, images=config.images, seed=context.seed, runtime=runtime)
    after = count(module, inputs)
    figures = {
        "macs_before": before.macs,
        "macs_after": after.macs,
        "mac_ratio": after.macs / before.macs,
        "params_before": before.params,
        "params_after": after.params,
        "param_ratio": after.params / before.params,
        "mean_share": {path: float(mean.mean()) for path, mean in means.items()},
        "kept": {path: [channels[path], len(own)] for path, own in done.kept.items()},
        "widths": {e.path: [e.size, len(e.kept)] for e in done.plan.edits if e.side == "out"},
        "wider": done.wider,
    }
    return _rebuilt(bundle, module, done.plan, figures)


def _rebuilt(bundle: Bundle, module: nn.Module, plan: SurgeryPlan, figures: dict[str, Any]) -> Result:
    """A Result built as `bundle` is, without its gates and with these cuts after its own."""
    from ...models.bundle import CODE
    from ...models.surgery import SurgeryPlan

    own = bundle.manifest
    return Result(
        module,
        plan=SurgeryPlan(edits=bundle.plan.edits).then(plan),
        figures=figures,
        architecture=own.architecture,
        output=own.output,
        code=bundle.folder / CODE if own.architecture.is_file else None,
    )


def mean_masks(module: nn.Module, task: Task, *, images: int, seed: int, runtime: Any) -> dict[str, Tensor]:
    """Every gate's mask averaged over `images` training images, (C,) by its convolution's path; the network runs in eval mode.

    Raises UserError when the network has no gates.
    """
    import torch

    from ...models.gates import gates_of
    from ..runtime import home_of

    gates = gates_of(module)
    if not gates:
        raise UserError("the network has no gates to average", hint='put the step after "ftwt", which makes them')
    home, modes = home_of(module), [(part, part.training) for part in module.modules()]
    sums = {path: torch.zeros(gate.spec.channels, dtype=torch.float64) for path, gate in gates.items()}
    seen = 0
    runtime.place(module).eval()
    try:
        with torch.no_grad():
            for batch in _inputs(task, images, seed):
                module(runtime.layout(batch.to(runtime.device)))
                seen += len(batch)
                for path, gate in gates.items():
                    if gate.mask is None:
                        raise UserError(f"the gate of {path} is never reached", hint="gate layers that run for every input")
                    sums[path] += gate.mask.sum(0).double().cpu()
    finally:
        module.to(home).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stub lacks it
        for part, training in modes:
            part.training = training
        for gate in gates.values():
            gate.mask = gate.logits = None
    return {path: total / seen for path, total in sums.items()}


def _inputs(task: Task, images: int, seed: int) -> Iterator[Tensor]:
    """The network's inputs of the chosen training images, in batches, as they are in evaluation."""
    from ..sampling import chosen_positions

    samples = task.samples("train")
    order = chosen_positions(len(samples), images, seed).tolist()
    return (task.inputs(samples.__getitems__(order[i : i + BATCH])) for i in range(0, len(order), BATCH))


def _recalibrate(module: nn.Module, task: Task, *, images: int, seed: int, runtime: Any) -> None:
    """None; batch-norm statistics measured anew by torch's `update_bn`, which runs the network in training mode."""
    import torch
    from torch.optim.swa_utils import update_bn

    from ..runtime import home_of

    home, training = home_of(module), module.training
    with torch.random.fork_rng(devices=[]):  # dropout
        torch.default_generator.manual_seed(seed)
        update_bn(
            (runtime.layout(batch) for batch in _inputs(task, images, seed)), runtime.place(module), device=runtime.device
        )
    module.to(home).to(memory_format=torch.contiguous_format).train(training)  # type: ignore[call-overload]
