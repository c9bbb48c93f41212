"""What a job does beside timing: long runs, cooling down, metrics on the device, rules instead of precision, several devices."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.devices import job as job_module
from trimtab.devices import sustained
from trimtab.devices.cooling import cool_down
from trimtab.devices.intervals import FEWEST
from trimtab.devices.known import add_device
from trimtab.devices.link import LinkLostError, ProcessLink
from trimtab.devices.local import LocalDevice
from trimtab.devices.profile import Evaluation, profile
from trimtab.devices.records import InstructionCount, OpRecord, OpTime, Sustained, SustainedPoint, over_budget
from trimtab.devices.timing import PRESETS, CallStand, Plan, measure, measure_on
from trimtab.export.manifest import UserError

FAST = {"budget_s": 0.2, "preset": "quick", "seed": 3, "runtimes": ["onnxruntime"]}
MS = 1_000_000


class World:
    """A clock that calls move."""

    def __init__(self):
        self.now = 0

    def clock(self):
        return self.now

    def maker(self, ns):
        def call():
            self.now += ns

        return lambda: call


def test_mlperf_takes_queries_and_seconds_whatever_the_precision():
    world = World()
    plan = PRESETS["mlperf"]
    outcome = measure({"fast": world.maker(MS), "slow": world.maker(3 * MS)}, plan=plan, clock=world.clock)
    assert outcome.stopped_because == "rules"
    assert len(outcome.sittings) == FEWEST
    for timed in (*outcome.timed.values(), outcome.twin):
        assert timed.block == 1  # a query is a sample
        assert len(timed.samples_ns) >= 1024
        assert sum(timed.samples_ns) >= 60e9
    assert len(outcome.timed["slow"].samples_ns) == pytest.approx(60e9 / MS, rel=0.05)  # the fast one needs that many rounds


def test_mlperf_ends_with_its_budget_and_says_so():
    world = World()
    outcome = measure({"a": world.maker(5_000 * MS)}, plan=PRESETS["mlperf"], clock=world.clock)
    assert outcome.stopped_because == "budget"
    assert outcome.rounds < 1024


def test_a_lost_device_keeps_whole_rounds():
    world = World()

    class Lost(CallStand):
        batch_s = 1.0

        def time(self, slots, blocks, *, warm):
            if world.now > 500 * MS:
                raise LinkLostError("unplugged")
            return super().time(slots, blocks, warm=warm)

    stand = Lost([world.maker(MS)] * 2, world.clock)
    outcome = measure_on(stand, ["a"], plan=Plan(), lost=LinkLostError)
    assert (outcome.stopped_because, outcome.reason, outcome.partial) == ("lost", "unplugged", True)
    assert len(outcome.timed["a"].samples_ns) == len(outcome.twin.samples_ns) == outcome.rounds > 0


def test_many_rounds_go_in_one_request_where_asking_costs():
    world, requests = World(), []

    class Far(CallStand):
        batch_s = 0.5

        def time(self, slots, blocks, *, warm):
            requests.append(len(slots))
            return super().time(slots, blocks, warm=warm)

    outcome = measure_on(Far([world.maker(MS)] * 3, world.clock), ["a", "b"], plan=Plan())
    assert outcome.stopped_because == "precise"
    assert sum(size // 3 for size in requests if size > 1) == outcome.rounds
    assert max(requests) > 30


def test_a_long_run_has_windows_and_conditions(onnx_folder, monkeypatch):
    monkeypatch.setattr(sustained, "WINDOWS", 20)
    result = profile([onnx_folder("a"), onnx_folder("b")], sustained_s=0.6, **FAST)
    assert [long.label for long in result.sustained] == ["a", "b"]
    for long in result.sustained:
        assert not long.partial
        assert len(long.points) >= 10
        assert all(point.p50_ms > 0 and point.calls >= 1 for point in long.points)
        assert sorted(point.t_s for point in long.points) == [point.t_s for point in long.points]
        assert long.points[-1].t_s >= 0.5  # the last window begins before 0.6 s, and may end on it
        assert long.slowdown is not None


def test_a_long_run_that_is_cut_keeps_its_windows(onnx_folder, monkeypatch):
    ask, seen = ProcessLink.ask, [0]
    monkeypatch.setattr(sustained, "WINDOWS", 20)

    def asks(self, request, **more):
        seen[0] += request["do"] == "snapshot"
        if seen[0] > 6:
            raise LinkLostError("unplugged")
        return ask(self, request, **more)

    monkeypatch.setattr(ProcessLink, "ask", asks)
    (long,) = profile([onnx_folder("a")], sustained_s=30, **FAST).sustained
    assert long.partial
    assert 1 <= len(long.points) <= 6


def sustained_of(latencies):
    points = tuple(SustainedPoint(t_s=float(i), p50_ms=value, calls=9) for i, value in enumerate(latencies))
    return Sustained(label="a", device="phone", runtime="litert", asked_s=60, points=points)


def test_throttling_is_a_lasting_slow_down():
    rng = np.random.default_rng(0)
    steady = rng.normal(10, 0.1, 100)
    assert sustained_of(steady).throttled is False
    assert sustained_of(np.where(np.arange(100) > 60, 1.3, 1) * steady).throttled is True
    assert sustained_of([*steady[:99], 90]).throttled is False  # one slow window is no throttling
    assert sustained_of(steady[:9]).throttled is None
    again = Sustained.model_validate_json(sustained_of(steady).model_dump_json())
    assert again == sustained_of(steady)


@pytest.mark.parametrize(
    ("heat", "wishes", "waits"),
    [
        ([70, 60, 50, 44, 40], {}, 3),  # until 41 + 3
        ([None] * 9, {}, 0),  # it does not tell: nobody waits for nothing
        ([70] * 99, {"limit_s": 8}, 4),  # it never cools: as long as asked for
        ([70] * 99, {}, 30),  # or as long as is usual
        ([None] * 99, {"limit_s": 8}, 4),  # the user knows better
        ([None] * 99, {"limit_s": 8, "first": True}, 0),  # before the first job there is nothing to cool down from
        ([70] * 99, {"to_c": None}, 0),
        ([70] * 99, {"limit_s": 0}, 0),
    ],
)
def test_waiting_until_the_device_is_cool(heat, wishes, waits):
    clock, slept, temps = [0.0], [], iter(heat)

    def sleep(seconds):
        slept.append(seconds)
        clock[0] += seconds

    def now():
        value = next(temps)
        return None if value is None else float(value)

    cool_down(now, **{"to_c": 41.0, "limit_s": None, **wishes}, clock=lambda: clock[0], sleep=sleep)
    assert len(slept) == waits


def test_every_job_after_the_first_waits_for_the_begin_s_temperature(onnx_folder, monkeypatch):
    pytest.importorskip("openvino", reason="pip install 'trimtab[openvino]'")
    ask, asked = ProcessLink.ask, []

    def asks(self, request, **more):
        answer = ask(self, request, **more)
        if request["do"] == "snapshot":
            answer["snapshot"]["temperature_c"] = {"value": 41.0, "unit": "°C", "reason": ""}
        return answer

    monkeypatch.setattr(ProcessLink, "ask", asks)
    monkeypatch.setattr(job_module, "cool_down", lambda heat, **told: asked.append((told["first"], told["to_c"], heat())))
    result = profile([onnx_folder()], **{**FAST, "runtimes": ["onnxruntime", "openvino"]})
    assert asked == [(True, None, 41.0), (False, 41.0, 41.0)]
    assert {m.conditions.before.temperature_c.value for m in result.measurements} == {41.0}


def test_metrics_are_taken_through_the_device(onnx_folder):
    folder = onnx_folder(width=8)
    seen = {}

    def score(artifact, run):
        rng = np.random.default_rng(0)
        images = rng.uniform(size=(7, 3, 16, 16)).astype(np.float32)
        whole = run({"image": images})["logits"]
        alone = np.concatenate([run({"image": images[k : k + 1]})["logits"] for k in range(7)])
        seen.update(shape=whole.shape, name=artifact.name)
        np.testing.assert_allclose(whole, alone, rtol=1e-5)
        return {"accuracy": 0.5}

    result = profile([folder], evaluation=Evaluation("made-up", 7, score), **FAST)
    assert seen == {"shape": (7, 10), "name": "net"}
    (found,) = result.evaluated
    assert (found.label, found.device, found.runtime, found.samples, found.metrics) == (
        "net",
        "local",
        "onnxruntime",
        7,
        {"accuracy": 0.5},
    )


def test_metrics_of_a_fixed_batch_fill_the_last_one(onnx_folder):
    folder = onnx_folder(batch=2)

    def score(artifact, run):
        images = np.random.default_rng(0).uniform(size=(5, 3, 16, 16)).astype(np.float32)
        found = run({"image": images})["logits"]
        np.testing.assert_allclose(found[4:], run({"image": images[[4, 4]]})["logits"][:1], rtol=1e-5)
        return {"rows": float(len(found))}

    (found,) = profile([folder], evaluation=Evaluation("made-up", 5, score), **FAST).evaluated
    assert found.metrics == {"rows": 5.0}


def test_a_metric_that_fails_is_said_and_the_latency_stays(onnx_folder):
    def score(artifact, run):
        raise UserError("the disk there is full")

    result = profile([onnx_folder()], evaluation=Evaluation("made-up", 5, score), **FAST)
    assert result.measurements
    assert result.evaluated == ()
    assert any("not evaluated: the disk there is full" in text for text in result.warnings)


def test_one_device_of_several_that_fails_costs_only_itself(onnx_folder, monkeypatch):
    add_device("gone", "local", {})
    prepare = LocalDevice.prepare

    def fails(self, say):
        if self.name == "gone":
            raise UserError("gone can't be reached", hint="switch it on")
        prepare(self, say)

    monkeypatch.setattr(LocalDevice, "prepare", fails)
    result = profile([onnx_folder()], on=["gone", "local"], **FAST)
    assert result.devices == ("gone", "local")
    assert [m.conditions.device for m in result.measurements] == ["local"]
    (entry,) = result.skipped
    assert (entry.device, entry.kind, entry.reason) == ("gone", "device", "gone can't be reached (switch it on)")
    with pytest.raises(UserError, match="gone can't be reached"):
        profile([onnx_folder("other")], on="gone", **FAST)


def test_a_runtime_that_crashes_is_lost_with_its_reason(onnx_folder, monkeypatch):
    """A real death of a real runner: it is told to kill itself in the middle of timing."""
    ask = ProcessLink.ask

    def asks(self, request, **more):
        if request["do"] == "time" and len(request["order"]) > 1:
            self.process.kill()
        return ask(self, request, **more)

    monkeypatch.setattr(ProcessLink, "ask", asks)
    result = profile([onnx_folder()], **FAST)
    assert result.partial
    (entry,) = result.skipped
    assert entry.kind == "lost"
    assert "local: the runner was killed, as the kernel does when memory runs out" in entry.reason


def test_operations_read_from_the_top():
    record = OpRecord(
        label="a",
        device="phone",
        runtime="litert",
        ops=(OpTime(name="a", kind="Conv", ns=10, where="GPU"), OpTime(name="b", kind="Conv", ns=30, where="CPU")),
    )
    assert [(op.name, share) for op, share in record.top(1)] == [("b", 0.75)]
    assert record.placement() == {"GPU": (1, 0.25), "CPU": (1, 0.75)}
    assert OpRecord(label="a", device="d", runtime="r", reason="none").placement() == {}


def count_of(label, *repeats):
    return InstructionCount(
        label=label,
        artifact=label,
        sha256="0",
        format="tflite",
        precision="fp32",
        device="qemu:cortex-a76",
        core="cortex-a76",
        runtime="litert",
        runtime_version="2.3.0",
        emulator="qemu",
        dims={},
        repeats=repeats,
        outputs_ok=True,
        max_abs_error=0.0,
        sqnr_db=None,
    )


def test_counts_are_exact_and_budgets_are_kept():
    steady, moving = count_of("a", 100, 100), count_of("b", 120, 100)
    assert (steady.instructions, steady.stable, moving.stable) == (100, True, False)
    assert [c.label for c in over_budget((steady, count_of("c", 101)), 100)] == ["c"]
    assert InstructionCount.model_validate_json(steady.model_dump_json()) == steady
