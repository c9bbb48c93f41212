"""What a task is: data in three splits, a loss and a metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..contract import Contract
from ..errors import UserError
from ..registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class RawBatch:
    """Samples as stored: pixels uint8 (N, C, H, W), index int64 (N,) = positions in the split, and the task's targets: classes
    int64 (N,), or float32 (N, …) for what is regressed."""

    pixels: Tensor
    targets: Tensor
    index: Tensor

    def to(self, device: torch.device) -> RawBatch:
        """The same batch on `device`."""
        return RawBatch(*(t.to(device, non_blocking=True) for t in (self.pixels, self.targets, self.index)))

    def pin_memory(self) -> RawBatch:
        """The same batch in page-locked memory (called by torch's DataLoader)."""
        return RawBatch(self.pixels.pin_memory(), self.targets.pin_memory(), self.index.pin_memory())


class Samples(Protocol):
    """A torch-style dataset that is read in batches."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> RawBatch:
        """The samples at these positions, in this order, as one batch (a DataLoader with `collate_fn=lambda b: b` passes it on)."""


def batches(samples: Samples, *, limit: int | None, batch_size: int) -> Iterator[RawBatch]:
    """The first `limit` samples (None: all), in order, in batches. Raises UserError for numbers below 1 and where there are none."""
    count = len(samples) if limit is None else min(limit, len(samples))
    if count < 1 or batch_size < 1:
        raise UserError(
            f"limit={limit} and batch_size={batch_size} must be 1 or more", hint="leave limit out to use all samples"
        )
    for start in range(0, count, batch_size):
        yield samples.__getitems__(range(start, min(start + batch_size, count)))


class Task(Protocol):
    """One job on one data set.

    `data_id` is a digest over the data's content, the split rule and the seed: two tasks with the same id deliver the same
    samples. `options` are the factory's arguments that differ from their defaults: `tasks.get(name)(**options)` opens it again.
    `contract` is the contract of a network made for this task. `metric` names the figure that decides.
    """

    name: str
    data: str
    data_id: str
    options: dict[str, Any]
    contract: Contract
    metric: str

    def normalised_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Task:
        """The same task for a network that was trained with another normalisation."""

    def samples(self, split: Split) -> Samples:
        """The samples of a split, in a fixed order."""

    def inputs(self, batch: RawBatch, *, augment: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """The network's input: float32 (N, C, H, W), normalised by the contract; `augment` draws from `generator` alone."""

    def training_pair(self, batch: RawBatch, *, augment: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The network's input and the targets that go with it: what moves the picture moves its landmarks too."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The scalar training loss of network outputs (N, …)."""

    def evaluate(
        self, predict: Callable[[Tensor], Tensor], split: Split = "test", *, limit: int | None = None, batch_size: int = 256
    ) -> dict[str, float]:
        """Metrics of `predict` (normalised inputs → outputs) over the first `limit` samples of a split."""


@dataclass(frozen=True)
class TaskCard:
    """What a task needs and which way its deciding metric points, readable without importing torch."""

    title: str
    data: str
    higher_is_better: bool = True


tasks: Registry[Callable[..., Task], TaskCard] = Registry(
    "task", modules=tuple(f"trimtab.models.tasks.{name}" for name in ("classification", "landmarks", "anomaly", "isp"))
)
"""Task factories: `tasks.get("classification")(data="fashion-mnist", seed=0, …) -> Task`."""
