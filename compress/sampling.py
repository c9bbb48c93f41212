"""Which samples a step sees, as a function of (seed, epoch, step) alone, so that a run can resume anywhere."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Sampler

from .schedule import Plan

if TYPE_CHECKING:
    from ..models.tasks.task import RawBatch, Samples


def derived_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A 63-bit seed for one purpose (and step, rank …): SHA-256 of its arguments, so streams don't overlap by arithmetic."""
    text = ":".join([purpose, str(seed), *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def chosen_positions(samples: int, limit: int, seed: int) -> torch.Tensor:
    """The positions a run trains on, int64 (n,): all, or the first `limit` of a seeded permutation."""
    if not limit or limit >= samples:
        return torch.arange(samples)
    generator = torch.Generator().manual_seed(derived_seed(seed, "subset"))
    return torch.randperm(samples, generator=generator)[:limit]


class StepSampler(Sampler[list[int]]):
    """The positions of every step from `first` to the end of the run, one list a step, as this process's share of the batch.

    Every epoch is a permutation by (seed, epoch); process r of w takes each w-th position, so that the batches of a run do
    not depend on the number of processes.
    """

    def __init__(
        self, positions: torch.Tensor, plan: Plan, *, seed: int, first: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self.positions, self.plan, self.seed = positions, plan, seed
        self.first, self.rank, self.world = first, rank, world
        self._order = lru_cache(maxsize=2)(self._permuted)

    def _permuted(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "epoch", epoch))
        return self.positions[torch.randperm(len(self.positions), generator=generator)]

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.plan.total):
            epoch, within = divmod(step, self.plan.per_epoch)
            start = within * self.plan.batch
            yield self._order(epoch)[start + self.rank : start + self.plan.batch : self.world].tolist()

    def __len__(self) -> int:
        return self.plan.total - self.first


def _as_is(batch: Any) -> Any:
    return batch


def _leave_ctrl_c_to_main(worker: int) -> None:
    """Ctrl-C reaches the whole process group; a worker that dies of it would break the main process's last step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def batches(samples: Samples, sampler: Sampler[list[int]], *, workers: int, pin: bool) -> Iterator[RawBatch]:
    """The raw batches of `sampler`, read in this process or by `workers` others; nothing before its first step is read."""
    if workers == 0 and not pin:  # a DataLoader would only add its own overhead to each step
        return (samples.__getitems__(indices) for indices in sampler)
    source: Any = samples  # read through __getitems__ alone
    loader: DataLoader[RawBatch] = DataLoader(
        source,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=_leave_ctrl_c_to_main,
        pin_memory=pin,
        generator=torch.Generator().manual_seed(0),  # the loader's own base seed must not be drawn from the global stream
    )
    return iter(loader)
