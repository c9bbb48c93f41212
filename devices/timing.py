"""The timing loop: sittings of fresh models, in them interleaved rounds in random order with warm calls, and an A/A twin.

A fixed order invents differences of 5…12 % between identical models (each inherits the caches of the one before it); a fresh
order every round and untimed warm calls remove that. What stays is every loaded model's luck with its place in memory,
±1 % for as long as it lives: so all models are loaded anew several times, in random order and with random gaps, and these
sittings are the repetitions that intervals are made of. The twin, a second instance of the first model, shows what is left.
The loop knows no runtime and no device: it asks a stand, where models are loaded into slots and timed. `measure` times callables
of this process on a stand of its own.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np

from ..export.manifest import UserError, did_you_mean
from .intervals import FEWEST, paired_ratio, relative_precision

Call = Callable[[], object]
Clock = Callable[[], int]
Stop = Literal["precise", "rules", "budget", "interrupted", "lost"]

Maker = Callable[[], Call]
"""Loads a model anew and gives the call that runs it."""

LARGEST_BLOCK = 10_000
LEAST_ROUNDS = 3
LARGEST_GAP = 1 << 20


@dataclass(frozen=True)
class Plan:
    """When to stop, and how to warm up.

    Stops as "precise" once, after `min_sittings`, every median is known to ±`precision` and every ratio to the first model
    (the twin's too) to ±`ratio_precision`; or as "budget" after `budget_s` seconds or `max_sittings`, yet never before
    `FEWEST` sittings of `LEAST_ROUNDS` rounds, without which no interval exists. The budget counts everything: loading too.
    A sitting ends after `min_rounds` when its own rounds agree to twice those precisions, or when its share of time is used.
    Blocks of calls last `block_ns` at least. A warm-up ends when the medians of two successive windows of `window` calls
    differ by less than `steady`.
    In a round every model gets an untimed call first. Where a call takes `long_ns` or more it gets as many as last `warm_ns`, `warm_calls`
    at most: a network whose weights fill the caches needs several, after another one has run, to be as fast as when it runs alone.
    With `min_queries` and `min_timed_s` every model's timed calls are that many and last that long, whatever the precision, one
    query a sample (the rules of MLPerf's single stream); it then stops by the "rules".
    """

    budget_s: float = 30.0
    seed: int = 0
    precision: float = 0.02
    ratio_precision: float = 0.01
    min_sittings: int = 9
    max_sittings: int = 100
    min_rounds: int = 20
    max_rounds: int = 500
    block_ns: int = 200_000
    window: int = 5
    steady: float = 0.05
    max_windows: int = 20
    long_ns: int = 1_500_000
    warm_ns: int = 50_000_000
    warm_calls: int = 8
    min_queries: int = 0
    min_timed_s: float = 0.0

    @property
    def by_rules(self) -> bool:
        """Whether numbers of queries and seconds decide, and not precision."""
        return self.min_queries > 0

    def __post_init__(self) -> None:
        if not (self.budget_s > 0 and math.isfinite(self.budget_s)):
            raise UserError(f"a time budget of {self.budget_s:g} s leaves nothing to measure in", hint="give seconds above 0")


PRESETS: Mapping[str, Plan] = {
    "quick": Plan(budget_s=10.0, precision=0.05, ratio_precision=0.025, min_sittings=6, min_rounds=10),
    "standard": Plan(),
    "thorough": Plan(budget_s=120.0, precision=0.01, ratio_precision=0.005, min_sittings=15),
    "mlperf": Plan(
        budget_s=1800.0, min_sittings=6, max_rounds=100_000, block_ns=0, warm_calls=3, min_queries=1024, min_timed_s=60.0
    ),
}


def plan_of(preset: str, *, budget_s: float | None = None, seed: int = 0) -> Plan:
    """The preset's plan with its own seed and, when given, another budget. Raises UserError for an unknown preset."""
    if preset not in PRESETS:
        raise UserError(f"unknown timing preset {preset!r}", hint=did_you_mean(preset, PRESETS))
    plan = replace(PRESETS[preset], seed=seed)
    return plan if budget_s is None else replace(plan, budget_s=budget_s)


@dataclass
class Timed:
    """One model's samples, in ns per call: the i-th belongs to round i. `steady_sittings`: those whose warm-up became steady.

    `warm`: the untimed calls before each timed block.
    """

    warmups: int = 0
    steady_sittings: int = 0
    block: int = 0
    warm: int = 1
    samples_ns: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What the loop saw. `sittings` lists the rounds of each; every sample list holds their sum.

    An interrupted round is left out whole, so pairs stay pairs.
    """

    timed: Mapping[str, Timed]
    twin: Timed
    sittings: tuple[int, ...]
    stopped_because: Stop
    reason: str = ""

    @property
    def rounds(self) -> int:
        """All rounds of all sittings."""
        return sum(self.sittings)

    @property
    def partial(self) -> bool:
        """Whether the user stopped it, or the device was lost."""
        return self.stopped_because in ("interrupted", "lost")


class Stand(Protocol):
    """Where models are loaded and timed: slots 0, 1, … in the order that they were named in, the twin of the first in the last."""

    batch_s: float
    """How many seconds of rounds one request may hold: 0 for one round at a time."""

    def load(self, slots: Sequence[int], gaps: Sequence[Sequence[int]]) -> None:
        """Everything anew, in this order, each after `gaps` bytes of memory that move it about."""

    def time(self, slots: Sequence[int], blocks: Sequence[int], *, warm: Sequence[int]) -> list[float]:
        """Nanoseconds a call, of a block of calls of each slot in turn, each after as many calls that are not timed as `warm` says."""

    def clock(self) -> int:
        """Nanoseconds that the budget is counted in."""


class CallStand:
    """Callables of this process."""

    batch_s = 0.0

    def __init__(self, makers: Sequence[Maker], clock: Clock = time.perf_counter_ns) -> None:
        self.makers, self.clock = makers, clock
        self.calls: dict[int, Call] = {}
        self.gaps: list[bytearray] = []

    def load(self, slots: Sequence[int], gaps: Sequence[Sequence[int]]) -> None:
        """Fresh calls."""
        self.calls, self.gaps = {}, []
        gc.collect()  # the models of the sitting before: the collector itself is off
        for slot, sizes in zip(slots, gaps, strict=True):
            self.gaps += [bytearray(size) for size in sizes]
            self.calls[slot] = self.makers[slot]()

    def time(self, slots: Sequence[int], blocks: Sequence[int], *, warm: Sequence[int]) -> list[float]:
        """Nanoseconds a call."""
        times = []
        for slot, block, before in zip(slots, blocks, warm, strict=True):
            call = self.calls[slot]
            for _ in range(before):
                call()  # refills caches and branch predictors that the model before it took over
            start = self.clock()
            for _ in range(block):
                call()
            times.append((self.clock() - start) / block)
        return times


def measure(
    makers: Mapping[str, Maker],
    *,
    plan: Plan,
    clock: Clock = time.perf_counter_ns,
    tick: Callable[[float], None] = lambda seconds: None,
) -> Outcome:
    """Per-call samples of every callable and of a twin of the first one, in this process.

    `tick` hears, between rounds, the seconds since it was last called. A KeyboardInterrupt ends the loop and keeps all whole
    rounds. Raises UserError when there is nothing to time.
    """
    if not makers:
        raise UserError("there is nothing to time", hint="name at least one artifact")
    stand = CallStand([*makers.values(), next(iter(makers.values()))], clock)
    with collector_off():
        return measure_on(stand, list(makers), plan=plan, tick=tick)


def measure_on(
    stand: Stand,
    names: Sequence[str],
    *,
    plan: Plan,
    tick: Callable[[float], None] = lambda seconds: None,
    lost: type[Exception] | tuple[type[Exception], ...] = (),
) -> Outcome:
    """Per-call samples of the models in the stand's slots, named in their order, and of the twin in the slot after them.

    A KeyboardInterrupt, or an exception of `lost`, ends the loop and keeps all whole rounds.
    """
    loop = _Loop(stand, len(names) + 1, plan, tick)
    reason = ""
    try:
        stop = loop.sit_until_known()
    except KeyboardInterrupt:
        stop = "interrupted"
    except lost as error:
        stop, reason = "lost", str(error)
    sittings = tuple(length for length in loop.sittings if length)
    for record in loop.timed:
        del record.samples_ns[sum(sittings) :]  # an interrupt may fall between two models' notes of the same round
    named = dict(zip(names, loop.timed[:-1], strict=True))
    return Outcome(timed=named, twin=loop.timed[-1], sittings=sittings, stopped_because=stop, reason=reason)


class _Loop:
    """The state of one measurement. The last slot is the twin's."""

    def __init__(self, stand: Stand, count: int, plan: Plan, tick: Callable[[float], None]) -> None:
        self.stand, self.plan, self.tick = stand, plan, tick
        self.timed = [Timed() for _ in range(count)]
        self.sittings: list[int] = []
        self.rng = np.random.default_rng(plan.seed)
        self.begin = self.said = stand.clock()

    def sit_until_known(self) -> Stop:
        """Sitting after sitting; why it ended."""
        plan = self.plan
        while True:
            left_s = plan.budget_s - (self.stand.clock() - self.begin) / 1e9
            # a third more sittings than are needed are planned for, so that time is left when the first ones disagree
            planned = max(1, math.ceil(plan.min_sittings * 4 / 3) - len(self.sittings))
            self._sit(max(0.0, left_s / planned))
            done = len(self.sittings)
            if done >= max(plan.min_sittings, FEWEST):
                if plan.by_rules and self._ruled(1):
                    return "rules"
                if not plan.by_rules and self._known(self.sittings, 0, 1):
                    return "precise"
            over = self.stand.clock() - self.begin >= plan.budget_s * 1e9
            if done >= FEWEST and (over or done >= plan.max_sittings):
                return "budget"

    def _sit(self, share_s: float) -> None:
        """One sitting: all models loaded, warmed up and timed for `share_s` seconds at most."""
        until = self.stand.clock() + round(share_s * 1e9)
        order = [int(slot) for slot in self.rng.permutation(len(self.timed))]
        self.stand.load(order, [[int(self.rng.integers(1, LARGEST_GAP)), int(self.rng.integers(1, 4096))] for _ in order])
        for slot, record in enumerate(self.timed):
            self._warm_up(slot, record, share_ns=share_s * 1e9 * 0.2 / len(self.timed))
        twin, first = self.timed[-1], self.timed[0]
        twin.block, twin.warm = first.block, first.warm  # it is timed exactly as its sibling, or it would not be one
        start = len(self.timed[0].samples_ns)
        self.sittings.append(0)
        next_check, lasts_s = self.plan.min_rounds, 0.0
        while True:
            before = self.stand.clock()
            left = max(1, min(next_check, self.plan.max_rounds) - self.sittings[-1])
            rounds = max(1, min(left, int(self.stand.batch_s / lasts_s))) if lasts_s else 1
            self._rounds(rounds)
            lasts_s = (self.stand.clock() - before) / 1e9 / rounds
            done = self.sittings[-1]
            if done >= next_check:
                if (
                    self._ruled(len(self.sittings) / self.plan.min_sittings)
                    if self.plan.by_rules
                    else self._known(None, start, 2)
                ):
                    return
                next_check = done + max(5, done // 8)
            if done >= LEAST_ROUNDS and (self.stand.clock() >= until or done >= self.plan.max_rounds):
                return

    def _rounds(self, count: int) -> None:
        """`count` rounds, in each of which every slot is timed once, in random order."""
        orders = [[int(slot) for slot in self.rng.permutation(len(self.timed))] for _ in range(count)]
        slots = [slot for order in orders for slot in order]
        records = [self.timed[slot] for slot in slots]
        times = self.stand.time(slots, [record.block for record in records], warm=[record.warm for record in records])
        now = self.stand.clock()
        self.tick((now - self.said) / 1e9)
        self.said = now
        for record, sample in zip(records, times, strict=True):
            record.samples_ns.append(max(sample, 1e-3))  # a clock too coarse gives no zero: ratios take logs
        self.sittings[-1] += count

    def _warm_up(self, slot: int, record: Timed, *, share_ns: float) -> None:
        """Calls until two successive windows agree, at most `max_windows` or `share_ns`; sets the block size, once."""
        plan, begin = self.plan, self.stand.clock()
        before: float | None = None
        median = 0.0
        for _ in range(plan.max_windows):
            window: list[float] = []
            while len(window) < plan.window and (len(window) < 2 or self.stand.clock() - begin < share_ns):
                window += self.stand.time([slot], [1], warm=[0])
            record.warmups += len(window)
            median = float(np.median(window))
            if before is not None and abs(median - before) <= plan.steady * before:
                record.steady_sittings += 1
                break
            if self.stand.clock() - begin >= share_ns:
                break
            before = median
        if not record.block:
            record.block = _block(plan, median)
            if record.block > 1:  # single short calls look longer than they are
                median = self.stand.time([slot], [record.block], warm=[1])[0]
                record.block = _block(plan, median)
            if median >= plan.long_ns:
                record.warm = min(plan.warm_calls, max(1, math.ceil(plan.warm_ns / median)))

    def _ruled(self, share: float) -> bool:
        """Whether every model has had `share` of the queries and seconds that the rules ask for."""
        wanted, seconds = math.ceil(self.plan.min_queries * share), self.plan.min_timed_s * share
        return all(len(r.samples_ns) >= wanted and sum(r.samples_ns) * r.block >= seconds * 1e9 for r in self.timed)

    def _known(self, sittings: list[int] | None, start: int, slack: float) -> bool:
        """Whether, from sample `start` on, every median and every ratio to the first model is as precise as planned."""
        samples = [record.samples_ns[start:] for record in self.timed]
        for values in samples:
            known = relative_precision(values, sittings)
            if known is None or known > slack * self.plan.precision:
                return False
        for values in samples[1:]:
            width = paired_ratio(samples[0], values, sittings).half_width
            if width is None or width > slack * self.plan.ratio_precision:
                return False
        return True


def _block(plan: Plan, call_ns: float) -> int:
    """How many calls make a block."""
    return min(LARGEST_BLOCK, max(1, math.ceil(plan.block_ns / max(call_ns, 1.0))))


@contextmanager
def collector_off() -> Iterator[None]:
    """Python's garbage collector stands still inside the block, so that its pauses land in nobody's sample.

    What lives already is frozen: a collection between sittings then looks at their own objects only.
    """
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()
