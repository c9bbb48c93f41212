"""The training loop: steps, losses fetched in windows, epochs' records, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn

from ..models.errors import UserError
from .alignment import AlignedLoss, aligned_backward
from .checkpointing import Checkpoint, Position
from .evaluation import evaluate
from .history import Epoch
from .interrupts import Interrupts
from .masking import Masking
from .runtime import Runtime
from .sampling import derived_seed
from .schedule import Plan, learning_rate
from .trainconfig import TrainConfig

if TYPE_CHECKING:
    from ..models.progress import Meter, Progress
    from ..models.tasks.task import RawBatch, Task

WINDOW_S = 0.25
"""Losses are fetched from the device this often: often enough for a progress bar, too seldom to cost anything."""


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """One step's data on the device: `inputs` float32 (N, C, H, W) normalised, `targets` as the task has them (classes int64 (N,),
    landmarks float32 (N, 2L) …), `index` int64 (N,) = positions in the training split, `epoch` = epochs done when the step
    starts (a fraction within an epoch)."""

    inputs: Tensor
    targets: Tensor
    index: Tensor
    epoch: float


Objective = Callable[[nn.Module, TrainBatch], tuple[Tensor | AlignedLoss, Mapping[str, Tensor]]]
"""(network, batch) → the scalar loss to minimise (or two whose gradients are aligned), and named scalar parts for the record."""

Evaluator = Callable[[nn.Module], dict[str, float]]
"""What is measured on the validation samples."""


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that learn at a rate of their own, whatever the schedule: `lr` until the fraction `until` of the run, then 0.

    `momentum` counts with sgd alone; the optimiser is the run's.
    """

    parameters: tuple[nn.Parameter, ...]
    lr: float
    weight_decay: float = 0.0
    momentum: float = 0.9
    until: float = 1.0


def build_optimizer(module: nn.Module, config: TrainConfig, own: Sequence[ParamGroup] = ()) -> torch.optim.Optimizer:
    """The optimiser over the trainable parameters; weight decay reaches weights alone (2-D and up) unless `decay_norm_bias`.

    Parameters in one of the `own` groups follow that group instead, after all others. Fused kernels: one call per step instead of
    one per parameter (3-6 times faster for small networks on a CPU). Raises UserError when nothing is trainable.
    """
    apart = {id(p) for group in own for p in group.parameters}
    parameters = [p for p in module.parameters() if p.requires_grad and id(p) not in apart]
    if not parameters:
        raise UserError("the network has no trainable parameters", hint="unfreeze some (requires_grad) or leave this step out")
    plain = [] if config.decay_norm_bias else [p for p in parameters if p.ndim < 2]
    decayed = parameters if config.decay_norm_bias else [p for p in parameters if p.ndim >= 2]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
        *(_own_group(group, config) for group in own),
    ]
    groups = [group for group in groups if group["params"]]
    fused = parameters[0].device.type in ("cpu", "cuda")
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused)


def _own_group(group: ParamGroup, config: TrainConfig) -> dict[str, Any]:
    found: dict[str, Any] = {
        "params": [p for p in group.parameters if p.requires_grad],
        "weight_decay": group.weight_decay,
        "own_lr": group.lr,
        "until": group.until,
    }
    return found | ({"momentum": group.momentum, "nesterov": False} if config.optimizer == "sgd" else {})


def rate_of(group: Mapping[str, Any], scheduled: float, done: float) -> float:
    """A parameter group's learning rate where the schedule says `scheduled` and the fraction `done` of the run is over."""
    if "own_lr" not in group:
        return scheduled
    return group["own_lr"] if done < group["until"] else 0.0


@contextmanager
def _meter(progress: Progress, label: str, plan: Plan, done: int, *, shown: bool) -> Iterator[Meter | None]:
    if not shown:
        yield None
        return
    with progress.meter(label, plan.total * plan.batch, "images", done=done * plan.batch) as meter:
        yield meter


@dataclass
class Loop:
    """One run under way. `network` is what the objective calls (wrapped), `module` the user's own inside it."""

    network: nn.Module
    module: nn.Module
    task: Task
    config: TrainConfig
    plan: Plan
    objective: Objective
    runtime: Runtime
    checkpoint: Checkpoint
    optimizer: torch.optim.Optimizer
    position: Position
    seed: int
    label: str
    masking: Masking
    evaluator: Evaluator | None = None
    _window: list[list[Tensor]] = field(default_factory=list)
    _names: tuple[str, ...] = ()
    _meter: Meter | None = None
    _mark: float = 0.0
    _saved: float = 0.0

    def run(self, raw_batches: Iterator[RawBatch], progress: Progress) -> None:
        """Every step from the position to the end of the plan. A signal is delivered after the state was saved."""
        first = self.position.step
        if first == self.plan.total:
            return
        self.network.train()
        self._mark = self._saved = time.monotonic()
        window_s = min(WINDOW_S, self.config.checkpoint_s)
        generator = torch.Generator(self.runtime.device)
        with Interrupts() as interrupts, _meter(progress, self.label, self.plan, first, shown=self.runtime.main) as self._meter:
            for step, raw in zip(range(first, self.plan.total), raw_batches, strict=True):
                self._step(step, raw, generator)
                last = step + 1 == self.plan.total
                boundary = last or (step + 1) % self.plan.per_epoch == 0
                if boundary or interrupts.caught is not None or time.monotonic() - self._mark >= window_s:
                    self._settle(step + 1, boundary=boundary, last=last)
                    if last or interrupts.caught is not None or time.monotonic() - self._saved >= self.config.checkpoint_s:
                        self._save()
                if interrupts.caught is not None:
                    interrupts.deliver()
        self._agree()

    def _step(self, step: int, raw: RawBatch, generator: torch.Generator) -> None:
        seed = derived_seed(self.seed, "step", step, self.runtime.accelerator.process_index)
        generator.manual_seed(seed)
        torch.default_generator.manual_seed(seed)  # dropout; torch.manual_seed would visit every backend: 150 µs a step
        if self.runtime.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.runtime.device.type == "mps":
            torch.mps.manual_seed(seed)
        if self.runtime.device.type != "cpu":
            raw = raw.to(self.runtime.device)
        inputs, targets = self.task.training_pair(raw, augment=self.config.augment, generator=generator)
        rate = learning_rate(self.config, self.plan, step)
        done = self.plan.epochs_done(step) / self.config.epochs
        for group in self.optimizer.param_groups:
            group["lr"] = rate_of(group, rate, done)
        loss, parts = self.objective(
            self.network, TrainBatch(self.runtime.layout(inputs), targets, raw.index, self.plan.epochs_done(step))
        )
        self.optimizer.zero_grad()
        loss = self._backward(loss)
        self._update()
        self._names = tuple(parts)
        self._window.append([loss.detach(), *(part.detach() for part in parts.values())])

    def _backward(self, loss: Tensor | AlignedLoss) -> Tensor:
        """The loss's value; its gradients lie on the parameters afterwards."""
        if isinstance(loss, AlignedLoss):
            aligned_backward(loss, list(self.module.parameters()), self.runtime.accelerator.backward)
            return loss.primary + loss.secondary
        self.runtime.accelerator.backward(loss)
        return loss

    def _update(self) -> None:
        self.masking.gradients()
        scaler = self.runtime.accelerator.scaler
        if self.config.clip_norm:
            if scaler is not None:
                scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip_norm)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()

    def _settle(self, step: int, *, boundary: bool, last: bool) -> None:
        """The steps since the last call: losses fetched and checked, sums and clock brought up to date, an epoch closed."""
        width = 1 + len(self._names)
        values = torch.stack([value.float() for row in self._window for value in row]).tolist()
        rows = [values[at : at + width] for at in range(0, len(values), width)]
        self._window.clear()
        for offset, row in enumerate(rows):
            if not math.isfinite(row[0]):
                raise self._diverged(self._guilty(row), step - len(rows) + offset)
        sums = self.position.sums
        for row in rows:  # one by one, so that the sum does not depend on where the windows fell
            for name, value in zip(("loss", *self._names), row, strict=True):
                sums[name] = sums.get(name, 0.0) + value
        now = time.monotonic()
        self.position.step, self.position.seconds = step, self.position.seconds + now - self._mark
        if self._meter is not None:
            recent = sum(row[0] for row in rows) / len(rows)
            self._meter.advance(len(rows) * self.plan.batch, loss=recent, lr=self.optimizer.param_groups[0]["lr"])
        if boundary:
            self._close_epoch(step, last=last)
        self._mark = time.monotonic()

    def _guilty(self, row: list[float]) -> str:
        """What of a step's loss and its parts is not finite, in words."""
        parts = dict(zip(self._names, row[1:], strict=True))
        broken = [f"{name!r} became {value}" for name, value in parts.items() if not math.isfinite(value)]
        if broken:
            return f"the term {broken[0]}"
        of = f", the sum of {', '.join(f'{name} {value:.3g}' for name, value in parts.items())}" if parts else ""
        return f"the loss became {row[0]}{of}"

    def _close_epoch(self, step: int, *, last: bool) -> None:
        steps = (step - 1) % self.plan.per_epoch + 1
        sums = self.position.sums
        if self.runtime.accelerator.num_processes > 1:
            mine = torch.tensor([sums[name] for name in ("loss", *self._names)], device=self.runtime.device)
            sums = dict(zip(("loss", *self._names), self.runtime.accelerator.reduce(mine, "mean").tolist(), strict=True))
        every, epoch = self.config.evaluate_every, self.plan.epoch_of(step - 1) + 1
        val = self._validate() if last or (every and epoch % every == 0) else None
        record = Epoch(
            epoch=self.plan.epochs_done(step),
            train_loss=sums["loss"] / steps,
            lr=self.optimizer.param_groups[0]["lr"],
            seconds=self.position.seconds,
            images_per_s=steps * self.plan.batch / max(self.position.seconds, 1e-9),
            parts={name: sums[name] / steps for name in self._names},
            val=val,
        )
        self.position.epochs.append(asdict(record))
        self.position.sums, self.position.seconds = {}, 0.0

    def _validate(self) -> dict[str, float]:
        self._agree()
        if self.evaluator is not None:
            return self.evaluator(self.module)
        return evaluate(self.module, self.task, "val", runtime=self.runtime, limit=self.config.max_eval)

    def _save(self) -> None:
        scaler = self.runtime.accelerator.scaler
        self.position.scaler = scaler.state_dict() if scaler is not None else {}
        if self.runtime.main and not self.checkpoint.save(self.module, self.optimizer, self.position):
            raise self._diverged("the weights are no longer finite", self.position.step - 1)
        self._saved = self._mark = time.monotonic()

    def _agree(self) -> None:
        """Buffers (running statistics) equal to the main process's, which are the ones that are measured and saved."""
        if self.runtime.accelerator.num_processes > 1:
            for buffer in self.module.buffers():
                broadcast(buffer, from_process=0)

    def _diverged(self, what: str, step: int) -> UserError:
        rate = learning_rate(self.config, self.plan, step)
        kept = (
            f"the last finite state is kept in {self.checkpoint.path}" if self.checkpoint.path.exists() else "nothing was saved"
        )
        return UserError(
            f"{self.label}: {what} at step {step + 1} of {self.plan.total} (epoch {self.plan.epochs_done(step):.2f}), lr {rate:.3g}",
            hint=f"try lr = {self.config.lr / 10:.3g}, clip_norm = 1, warmup_epochs = 1 or amp = 'off'; {kept}",
        )
