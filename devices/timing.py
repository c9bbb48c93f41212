"""The timing loop: sittings of fresh models, in them interleaved rounds in random order with warm calls, and an A/A twin.

A fixed order invents differences of 5…12 % between identical models (each inherits the caches of the one before it); a fresh
order every round and one untimed warm call remove that. What stays is every loaded model's luck with its place in memory,
±1 % for as long as it lives: so all models are loaded anew several times, in random order and with random gaps, and these
sittings are the repetitions that intervals are made of. The twin, a second instance of the first model, shows what is left.
The loop knows no runtime: it takes makers of callables and a clock.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from ..export.manifest import UserError, did_you_mean
from .intervals import FEWEST, paired_ratio, relative_precision

Call = Callable[[], object]
Clock = Callable[[], int]
Stop = Literal["precise", "budget", "interrupted"]

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

    def __post_init__(self) -> None:
        if not (self.budget_s > 0 and math.isfinite(self.budget_s)):
            raise UserError(f"a time budget of {self.budget_s:g} s leaves nothing to measure in", hint="give seconds above 0")


PRESETS: Mapping[str, Plan] = {
    "quick": Plan(budget_s=10.0, precision=0.05, ratio_precision=0.025, min_sittings=6, min_rounds=10),
    "standard": Plan(),
    "thorough": Plan(budget_s=120.0, precision=0.01, ratio_precision=0.005, min_sittings=15),
}


def plan_of(preset: str, *, budget_s: float | None = None, seed: int = 0) -> Plan:
    """The preset's plan with its own seed and, when given, another budget. Raises UserError for an unknown preset."""
    if preset not in PRESETS:
        raise UserError(f"unknown timing preset {preset!r}", hint=did_you_mean(preset, PRESETS))
    plan = replace(PRESETS[preset], seed=seed)
    return plan if budget_s is None else replace(plan, budget_s=budget_s)


@dataclass
class Timed:
    """One model's samples, in ns per call: the i-th belongs to round i. `steady_sittings`: those whose warm-up became steady."""

    warmups: int = 0
    steady_sittings: int = 0
    block: int = 0
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

    @property
    def rounds(self) -> int:
        """All rounds of all sittings."""
        return sum(self.sittings)

    @property
    def partial(self) -> bool:
        """Whether the user stopped it."""
        return self.stopped_because == "interrupted"


def measure(
    makers: Mapping[str, Maker],
    *,
    plan: Plan,
    clock: Clock = time.perf_counter_ns,
    tick: Callable[[float], None] = lambda seconds: None,
) -> Outcome:
    """Per-call samples of every model and of a twin of the first one, measured in the same rounds.

    `tick` hears, between rounds, the seconds since it was last called. A KeyboardInterrupt ends the loop and keeps all whole
    rounds. Raises UserError when there is nothing to time.
    """
    if not makers:
        raise UserError("there is nothing to time", hint="name at least one artifact")
    loop = _Loop([*makers.values(), next(iter(makers.values()))], plan, clock, tick)
    with collector_off():
        try:
            stop = loop.sit_until_known()
        except KeyboardInterrupt:
            stop = "interrupted"
    sittings = tuple(length for length in loop.sittings if length)
    for record in loop.timed:
        del record.samples_ns[sum(sittings) :]  # an interrupt may fall between two models' notes of the same round
    named = dict(zip(makers, loop.timed[:-1], strict=True))
    return Outcome(timed=named, twin=loop.timed[-1], sittings=sittings, stopped_because=stop)


class _Loop:
    """The state of one `measure`. The last maker is the twin's."""

    def __init__(self, makers: list[Maker], plan: Plan, clock: Clock, tick: Callable[[float], None]) -> None:
        self.makers, self.plan, self.clock, self.tick = makers, plan, clock, tick
        self.timed = [Timed() for _ in makers]
        self.sittings: list[int] = []
        self.rng = np.random.default_rng(plan.seed)
        self.begin = self.said = clock()

    def sit_until_known(self) -> Stop:
        """Sitting after sitting; why it ended."""
        plan = self.plan
        while True:
            left_s = plan.budget_s - (self.clock() - self.begin) / 1e9
            # a third more sittings than are needed are planned for, so that time is left when the first ones disagree
            planned = max(1, math.ceil(plan.min_sittings * 4 / 3) - len(self.sittings))
            self._sit(max(0.0, left_s / planned))
            done = len(self.sittings)
            if done >= max(plan.min_sittings, FEWEST) and self._known(self.sittings, 0, 1):
                return "precise"
            over = self.clock() - self.begin >= plan.budget_s * 1e9
            if done >= FEWEST and (over or done >= plan.max_sittings):
                return "budget"

    def _sit(self, share_s: float) -> None:
        """One sitting: all models loaded, warmed up and timed for `share_s` seconds at most."""
        gc.collect()  # the models of the sitting before: the collector itself is off
        until = self.clock() + round(share_s * 1e9)
        calls, _gaps = self._load()
        for call, record in zip(calls, self.timed, strict=True):
            _warm_up(call, record, plan=self.plan, share_ns=share_s * 1e9 * 0.2 / len(calls), clock=self.clock)
        self.timed[-1].block = self.timed[0].block  # the twin is timed exactly as its sibling, or it would not be one
        start = len(self.timed[0].samples_ns)
        self.sittings.append(0)
        next_check = self.plan.min_rounds
        while True:
            self._round(calls)
            self.sittings[-1] += 1
            done = self.sittings[-1]
            if done >= next_check:
                if self._known(None, start, 2):
                    return
                next_check = done + max(5, done // 8)
            if done >= LEAST_ROUNDS and (self.clock() >= until or done >= self.plan.max_rounds):
                return

    def _load(self) -> tuple[list[Call], list[bytearray]]:
        """Fresh calls in the makers' order, loaded in random order with gaps between them that move their memory about."""
        made: dict[int, Call] = {}
        gaps = []
        for index in self.rng.permutation(len(self.makers)):
            gaps.append(bytearray(int(self.rng.integers(1, LARGEST_GAP))))
            gaps.append(bytearray(int(self.rng.integers(1, 4096))))
            made[int(index)] = self.makers[index]()
        return [made[index] for index in range(len(self.makers))], gaps

    def _round(self, calls: list[Call]) -> None:
        """One sample of every call, in random order."""
        row = [0.0] * len(calls)
        for index in self.rng.permutation(len(calls)):
            calls[index]()  # refills caches and branch predictors that the model before it took over
            row[index] = _block(calls[index], self.timed[index].block, self.clock)
        now = self.clock()
        self.tick((now - self.said) / 1e9)
        self.said = now
        for record, sample in zip(self.timed, row, strict=True):
            record.samples_ns.append(sample)

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


def _block(call: Call, size: int, clock: Clock) -> float:
    """Nanoseconds per call over `size` calls in a row."""
    start = clock()
    for _ in range(size):
        call()
    return max((clock() - start) / size, 1e-3)  # a clock too coarse for the block must not give a zero: ratios take logs


def _warm_up(call: Call, record: Timed, *, plan: Plan, share_ns: float, clock: Clock) -> None:
    """Calls until two successive windows agree, at most `max_windows` of them or `share_ns` of time; sets the block size, once."""
    begin = clock()
    before: float | None = None
    median = 0.0
    for _ in range(plan.max_windows):
        window: list[float] = []
        while len(window) < plan.window and (len(window) < 2 or clock() - begin < share_ns):
            window.append(_block(call, 1, clock))
        record.warmups += len(window)
        median = float(np.median(window))
        if before is not None and abs(median - before) <= plan.steady * before:
            record.steady_sittings += 1
            break
        if clock() - begin >= share_ns:
            break
        before = median
    if not record.block:
        record.block = min(LARGEST_BLOCK, max(1, math.ceil(plan.block_ns / max(median, 1.0))))


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
