"""The training engine: `fit` trains any module on any task towards any objective."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..models.errors import UserError
from .checkpointing import Checkpoint, Position, state_digest
from .evaluation import evaluate
from .history import Epoch, History
from .loop import Evaluator, Loop, Objective, ParamGroup, TrainBatch, build_optimizer
from .masking import Masking, masks_digest
from .runtime import Runtime
from .sampling import StepSampler, batches, chosen_positions
from .schedule import plan_run
from .trainconfig import TrainConfig

if TYPE_CHECKING:
    from ..models.tasks.task import Task
    from .method import Context

__all__ = ["History", "Objective", "ParamGroup", "Runtime", "TrainBatch", "TrainConfig", "evaluate", "fit", "runtime_for"]

log = logging.getLogger("trimtab")


def runtime_for(config: TrainConfig, context: Context) -> Runtime:
    """The device and precision that `config` asks for in `context`. Raises UserError when they are not to be had."""
    return Runtime(context.device, amp=config.amp, channels_last=config.channels_last)


def fit(
    module: nn.Module,
    task: Task,
    config: TrainConfig,
    *,
    objective: Objective,
    context: Context,
    label: str = "train",
    identity: Mapping[str, Any] | None = None,
    runtime: Runtime | None = None,
    evaluator: Evaluator | None = None,
    groups: Sequence[ParamGroup] = (),
) -> History:
    """The record of training `module` in place; the module comes back on its own device, in eval mode.

    The engine wraps the network that it hands to `objective` (autocast with float32 outputs, DistributedDataParallel):
    attributes are reached through the caller's own `module`. Everything random derives from (context.seed, step), so a run
    that was stopped continues from `context.workdir/LABEL.safetensors` and ends with the weights of one that was not (bit for
    bit on a CPU). `identity` names what else decides the result (a teacher's hash …): a checkpoint that differs in it, in the
    configuration, the data or the starting weights is not used, and the history's notes say so. `evaluator` measures the module
    on the validation samples in the task's stead, for a network whose outputs are not the task's. `groups` are parameters of `module`
    that learn at rates of their own.
    Raises UserError for an empty split, a network with nothing to train, and a loss that is no longer finite.
    """
    runtime = runtime or runtime_for(config, context)
    samples = task.samples("train")
    positions = _positions(len(samples), task, config, context.seed, world=runtime.accelerator.num_processes)
    plan = plan_run(config, len(positions))
    checkpoint = Checkpoint(
        context.workdir / f"{label}.safetensors",
        _identity(module, task, config, context.seed, runtime) | dict(identity or {}),
    )
    cuda = [runtime.device] if runtime.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), runtime.prepared(module) as network:  # the caller's random stream is left alone
        optimizer = build_optimizer(module, config, groups)
        position, why_not = checkpoint.load(module, optimizer)
        if why_not and runtime.main:
            log.warning("%s: %s", label, why_not)
        resumed_at = position.step if position else 0
        position = position or Position()
        if runtime.accelerator.scaler is not None and position.scaler:
            runtime.accelerator.scaler.load_state_dict(position.scaler)
        runtime.accelerator.wait_for_everyone()  # everybody has read the checkpoint before anybody writes one
        loop = Loop(
            network=network,
            module=module,
            task=task,
            config=config,
            plan=plan,
            objective=objective,
            runtime=runtime,
            checkpoint=checkpoint,
            optimizer=optimizer,
            position=position,
            seed=context.seed,
            label=label,
            masking=Masking(module),
            evaluator=evaluator,
        )
        rank, world = runtime.accelerator.process_index, runtime.accelerator.num_processes
        steps = StepSampler(positions, plan, seed=context.seed, first=resumed_at, rank=rank, world=world)
        pin = runtime.device.type == "cuda"
        loop.run(batches(samples, steps, workers=config.workers, pin=pin), context.progress)
    return History(
        label=label,
        epochs=tuple(Epoch(**record) for record in position.epochs),
        steps=plan.total,
        images=plan.total * plan.batch,
        runtime=runtime.describe(),
        resumed_at=resumed_at,
        notes=(why_not,) if why_not else (),
    )


def _positions(samples: int, task: Task, config: TrainConfig, seed: int, *, world: int) -> torch.Tensor:
    if samples == 0:
        raise UserError(f"the training split of {task.data!r} is empty", hint="check the data set's path and how it is split")
    positions = chosen_positions(samples, config.max_train, seed)
    batch = min(config.batch_size, len(positions))
    if batch % world:
        raise UserError(
            f"{batch} images a step cannot be shared by {world} processes",
            hint=f"make batch_size a multiple of {world}, at most {len(positions)}",
        )
    return positions


def _identity(module: nn.Module, task: Task, config: TrainConfig, seed: int, runtime: Runtime) -> dict[str, Any]:
    masks = masks_digest(module)
    return ({"masks": masks} if masks else {}) | {
        **config.identity(),
        "seed": seed,
        "data_id": task.data_id,
        "start": state_digest(module),
        "device": runtime.device.type,
        "precision": runtime.amp,
        "processes": runtime.accelerator.num_processes,
    }
