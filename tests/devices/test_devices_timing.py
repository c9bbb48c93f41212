"""The loop on a made-up clock: every callable moves it by a drawn time, so nothing here depends on this machine's speed."""

from __future__ import annotations

import gc
import itertools
import math
import weakref

import numpy as np
import pytest

from trimtab.devices import timing
from trimtab.devices.intervals import paired_ratio, relative_precision
from trimtab.devices.measurement import is_significant
from trimtab.devices.timing import PRESETS, Plan, measure, plan_of
from trimtab.export.manifest import UserError

MS = 1_000_000


class World:
    """A clock, makers of callables that take time on it, and a record of what was made ("+a") and called ("a")."""

    def __init__(self, seed=0):
        self.now, self.log, self.rng = 0, [], np.random.default_rng(seed)

    def clock(self):
        return self.now

    def maker(self, name, ns, *, spread=0.0, first=(), luck=0.0, load_ns=0):
        """`first`: costs of a fresh instance's first calls; `luck`: the spread between instances; `spread`: between calls."""

        def make():
            self.log.append("+" + name)
            self.now += load_ns
            warm, own = list(first), ns * self.rng.lognormal(0, luck)

            def call():
                self.log.append(name)
                self.now += round(warm.pop(0) if warm else own * self.rng.lognormal(0, spread))

            return call

        return make


def run(world, makers, **plan):
    return measure(makers, plan=Plan(**plan), clock=world.clock)


def sittings_of(log):
    """The log cut where loading begins, without the names of what was loaded."""
    parts = []
    for before, entry in zip(["", *log], log, strict=False):
        if entry.startswith("+"):
            if not before.startswith("+"):
                parts.append([])
        else:
            parts[-1].append(entry)
    return parts


def test_every_round_calls_each_twice_and_the_orders_differ():
    world = World()
    outcome = run(world, {name: world.maker(name, MS) for name in "abc"})
    assert outcome.stopped_because == "precise"
    assert outcome.sittings == (20,) * 9
    orders = []
    for sitting in sittings_of(world.log):
        timed_part = sitting[-20 * 8 :]  # four instances, two calls each, twenty rounds; before that the warm-up
        for row in (timed_part[i : i + 8] for i in range(0, 160, 8)):
            assert row[0::2] == row[1::2]  # the untimed warm call, then the timed one
            assert sorted(row[0::2]) == ["a", "a", "b", "c"]  # the baseline and its twin
            orders.append(tuple(row[0::2]))
    assert len(set(orders)) == 12  # all orders of a, a, b, c; 180 draws miss one with a chance of 12·(11/12)^180 ≈ 2e-6


def test_every_sitting_loads_everything_anew_in_an_order_of_its_own():
    world = World()
    outcome = run(world, {name: world.maker(name, MS) for name in "abc"})
    loads = [entry for entry in world.log if entry.startswith("+")]
    orders = [tuple(loads[i : i + 4]) for i in range(0, len(loads), 4)]
    assert len(orders) == len(outcome.sittings) == 9
    assert all(sorted(order) == ["+a", "+a", "+b", "+c"] for order in orders)
    assert len(set(orders)) > 2  # of 12


def test_the_seed_decides_the_orders():
    logs = []
    for seed in (1, 1, 2):
        world = World()
        run(world, {name: world.maker(name, MS) for name in "abc"}, seed=seed)
        logs.append(world.log)
    assert logs[0] == logs[1] != logs[2]


def test_the_warm_call_is_not_in_the_sample():
    world = World()

    def make():
        own = object()

        def cold_after_another():
            world.now += MS if world.log and world.log[-1] is own else 9 * MS  # slow unless it ran just before
            world.log.append(own)

        return cold_after_another

    outcome = measure({"a": make, "b": make}, plan=Plan(), clock=world.clock)
    assert set(outcome.timed["a"].samples_ns) == set(outcome.twin.samples_ns) == {MS}


def test_a_long_call_gets_as_many_warm_calls_as_its_caches_need():
    """After another model a call is slow, and each that follows is nearer to what it takes alone."""
    world = World()

    def make():
        own, since = object(), [0]

        def call():
            since[0] = since[0] + 1 if world.log and world.log[-1] is own else 0
            world.now += round(5 * MS * (1 + 0.1 * 0.5 ** since[0]))
            world.log.append(own)

        return call

    outcome = measure({"a": make, "b": make}, plan=Plan(budget_s=300.0), clock=world.clock)
    for timed in (*outcome.timed.values(), outcome.twin):
        assert timed.warm == 8
        assert max(timed.samples_ns) == pytest.approx(5 * MS, rel=0.0005)  # 0.1 / 2^8
    world = World()
    assert run(world, {"a": world.maker("a", MS)}).timed["a"].warm == 1
    assert run(world, {"a": world.maker("a", 20 * MS)}, budget_s=300.0).timed["a"].warm == 3  # 50 ms of them are enough


def test_warm_up_goes_on_until_the_windows_agree():
    world = World()
    slow_start = [50 * MS] * 5 + [10 * MS] * 5 + [2 * MS] * 5
    outcome = run(world, {"b": world.maker("b", MS), "a": world.maker("a", MS, first=slow_start)}, budget_s=300.0)
    record = outcome.timed["a"]
    assert record.warmups == 25 * len(outcome.sittings)  # three slow windows, then two that agree
    assert record.steady_sittings == len(outcome.sittings)
    assert set(record.samples_ns) == {MS}
    assert outcome.twin.warmups == 10 * len(outcome.sittings)


def test_warm_up_that_never_agrees_is_bounded_and_said():
    world = World()
    falling = [MS * 0.9**i for i in range(400)]
    outcome = run(world, {"a": world.maker("a", 1, first=falling)}, max_windows=6)
    assert outcome.timed["a"].warmups == 30 * len(outcome.sittings)
    assert outcome.timed["a"].steady_sittings == 0


def test_a_slow_model_gets_the_fewest_sittings_that_give_an_interval():
    world = World()
    outcome = run(world, {"a": world.maker("a", 2_000 * MS)}, budget_s=1.0)
    assert outcome.sittings == (3,) * 6
    assert outcome.timed["a"].warmups == 2 * 6
    assert outcome.stopped_because == "budget"


def test_loading_counts_against_the_budget():
    world = World(1)
    outcome = run(world, {"a": world.maker("a", MS, spread=1.0, load_ns=400 * MS)}, budget_s=10.0)
    assert outcome.stopped_because == "budget"
    assert 10e9 <= world.now < 12e9
    assert len(outcome.sittings) >= 6


def test_stops_when_every_figure_is_precise_and_not_before():
    world = World(1)
    makers = {"a": world.maker("a", MS, spread=0.05, luck=0.01), "b": world.maker("b", 1.4 * MS, spread=0.05, luck=0.01)}
    outcome = run(world, makers, budget_s=60.0)
    assert outcome.stopped_because == "precise"
    assert len(outcome.sittings) >= 9
    a = outcome.timed["a"].samples_ns
    for other in (outcome.timed["b"], outcome.twin):
        assert relative_precision(other.samples_ns, outcome.sittings) <= 0.02
        assert paired_ratio(a, other.samples_ns, outcome.sittings).half_width <= 0.01


def test_noise_that_never_settles_ends_with_the_budget():
    world = World(1)
    outcome = run(world, {"a": world.maker("a", MS, spread=1.0)}, budget_s=0.5)
    assert outcome.stopped_because == "budget"
    assert 0.5e9 <= world.now < 0.8e9
    assert outcome.rounds == sum(outcome.sittings) == len(outcome.timed["a"].samples_ns) == len(outcome.twin.samples_ns)


def test_fast_callables_are_timed_in_blocks_and_samples_are_per_call():
    world = World()
    outcome = run(world, {"a": world.maker("a", 1_500), "b": world.maker("b", 5 * MS)})
    assert outcome.timed["a"].block == outcome.twin.block == 134  # ceil(200 µs / 1.5 µs)
    assert outcome.timed["a"].samples_ns[0] == pytest.approx(1_500)
    assert outcome.timed["b"].block == 1


def test_block_size_stays_that_of_the_first_sitting():
    world = World()
    costs = iter([1_000, 3_000, *[1_000] * 100])  # the first sitting's two instances differ

    def make():
        cost = next(costs)

        def call():
            world.now += cost

        return call

    outcome = measure({"a": make}, plan=Plan(), clock=world.clock)
    assert outcome.timed["a"].block == outcome.twin.block
    assert outcome.timed["a"].block in (67, 200)


def stops_after(world, calls):
    left = [calls]

    def stop():
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        world.now += MS

    return lambda: stop


def test_interrupt_keeps_whole_rounds_and_marks_them():
    world = World()
    makers = {"a": world.maker("a", MS), "b": world.maker("b", MS), "c": stops_after(world, 157)}
    outcome = run(world, makers)
    assert outcome.stopped_because == "interrupted"
    assert outcome.partial
    assert {len(t.samples_ns) for t in (*outcome.timed.values(), outcome.twin)} == {outcome.rounds}
    # a sitting is 10 warm-up calls and 20 rounds of two: three whole ones, then 7 calls into the fourth's warm-up
    assert outcome.sittings == (20, 20, 20)
    again = run(world, {**makers, "c": stops_after(world, 138)})
    assert again.sittings[:2] == (20, 20)
    assert again.sittings[2] == (138 - 100 - 10 - 1) // 2


def test_interrupt_while_warming_up_leaves_no_rounds():
    world = World()
    outcome = run(world, {"a": stops_after(world, 1)})
    assert (outcome.rounds, outcome.sittings, outcome.stopped_because) == (0, (), "interrupted")


def test_collector_is_off_while_timing_and_back_on_afterwards():
    world, seen = World(), []

    def look():
        seen.append(gc.isenabled())
        world.now += MS

    run(world, {"a": lambda: look})
    assert not any(seen)
    assert gc.isenabled()

    def broken():
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        run(world, {"a": lambda: broken})
    assert gc.isenabled()


def test_models_of_a_past_sitting_are_freed_though_they_hold_cycles():
    world, alive = World(), []

    class Model:
        def __init__(self):
            self.itself = self
            alive.append(weakref.ref(self))

        def __call__(self):
            world.now += MS

    most = []
    measure({"a": lambda: most.append(sum(r() is not None for r in alive)) or Model()}, plan=Plan(), clock=world.clock)
    assert len(alive) == 18
    assert max(most) <= 1  # when a model is loaded, at most its sibling of this sitting is there


def test_tick_hears_all_the_time_that_passed():
    world, heard = World(), []
    measure({"a": world.maker("a", MS, load_ns=MS)}, plan=Plan(), clock=world.clock, tick=heard.append)
    assert sum(heard) == pytest.approx(world.now / 1e9)


def test_clock_too_coarse_to_see_a_call_gives_no_zero_samples():
    outcome = measure({"a": lambda: lambda: None}, plan=Plan(block_ns=1), clock=lambda: 0)
    assert min(outcome.timed["a"].samples_ns) > 0


def trial(seed, slow, budget_s=3.0):
    """One simulated comparison: heavy-tailed noise, a drift shared by all, and luck of ±1 % that stays with each instance."""
    world = World(seed)
    noise = world.rng.lognormal(0, 0.05, 10_000) * np.where(world.rng.random(10_000) < 0.03, 4.0, 1.0)
    draws = itertools.cycle(noise.tolist())

    def noisy(ns):
        def make():
            own = ns * world.rng.lognormal(0, 0.01)

            def call():
                world.now += round(own * (1 + 0.1 * math.sin(world.now / 4e8)) * next(draws))

            return call

        return make

    outcome = run(world, {"a": noisy(MS), "b": noisy(MS * slow)}, seed=seed, budget_s=budget_s)
    a = outcome.timed["a"].samples_ns
    floor = paired_ratio(a, outcome.twin.samples_ns, outcome.sittings).reach
    ratio = paired_ratio(a, outcome.timed["b"].samples_ns, outcome.sittings)
    return is_significant(ratio, floor), ratio


@pytest.fixture
def light(monkeypatch):
    """Hundreds of simulated runs need neither collections nor gaps in memory: their models are small closures."""
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)
    monkeypatch.setattr(timing, "LARGEST_GAP", 4096)


@pytest.mark.usefixtures("light")
def test_a_planted_5_percent_slow_down_is_found_in_95_of_100_trials():
    found = [trial(seed, 1.05) for seed in range(100)]
    assert sum(hit for hit, _ in found) >= 95
    assert all(ratio.value < 1 for hit, ratio in found if hit)  # and with the right sign


@pytest.mark.usefixtures("light")
def test_identical_models_are_called_different_in_at_most_5_of_100_trials():
    assert sum(trial(seed, 1.0)[0] for seed in range(1000, 1100)) <= 5


@pytest.mark.usefixtures("light")
def test_a_short_budget_finds_less_but_invents_nothing():
    assert sum(trial(seed, 1.0, budget_s=0.1)[0] for seed in range(100)) <= 5


@pytest.mark.parametrize("budget", [0, -3, float("nan"), float("inf")])
def test_budget_must_be_positive(budget):
    with pytest.raises(UserError, match=r"a time budget of .* leaves nothing to measure in") as caught:
        plan_of("quick", budget_s=budget)
    assert "above 0" in caught.value.hint


def test_presets_and_their_misspelling():
    assert plan_of("standard", seed=7) == Plan(seed=7)
    assert PRESETS["quick"].precision > PRESETS["standard"].precision > PRESETS["thorough"].precision
    with pytest.raises(UserError, match="unknown timing preset 'quik'") as caught:
        plan_of("quik")
    assert "'quick'" in caught.value.hint


def test_nothing_to_time():
    with pytest.raises(UserError, match="nothing to time"):
        run(World(), {})
