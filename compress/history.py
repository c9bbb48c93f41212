"""What a training run did, epoch by epoch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Epoch:
    """One epoch (the last may be a part of one). `seconds` is training time alone, validation not counted."""

    epoch: float
    train_loss: float
    lr: float
    seconds: float
    images_per_s: float
    parts: dict[str, float] = field(default_factory=dict)
    val: dict[str, float] | None = None


@dataclass(frozen=True)
class History:
    """A run's record, JSON-able through `as_dict`. `resumed_at` is the step it continued from (0: from the start)."""

    label: str
    epochs: tuple[Epoch, ...]
    steps: int
    images: int
    runtime: dict[str, Any]
    resumed_at: int = 0
    notes: tuple[str, ...] = ()

    @property
    def val(self) -> dict[str, float]:
        """The last validation's metrics."""
        return next((dict(e.val) for e in reversed(self.epochs) if e.val is not None), {})

    @property
    def seconds(self) -> float:
        """Training time over all epochs, in seconds."""
        return sum(e.seconds for e in self.epochs)

    @property
    def images_per_s(self) -> float:
        """Training throughput over the whole run."""
        return self.images / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        lists = {"epochs": [asdict(epoch) for epoch in self.epochs], "notes": list(self.notes)}
        return asdict(self) | lists | {"val": self.val, "seconds": self.seconds, "images_per_s": self.images_per_s}
