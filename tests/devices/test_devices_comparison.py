"""Comparing two profiles: what may be compared, and simulated trials of what is found. Nothing is timed here."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from trimtab.devices.comparison import compare_profiles, missing
from trimtab.devices.measurement import AAPair, Conditions, Measurement, ProfileResult, Reading, Skipped, Snapshot
from trimtab.devices.records import InstructionCount
from trimtab.devices.shift import mann_whitney_ways, rank_of, unpaired_ratio
from trimtab.export.manifest import UserError

SITTINGS, ROUNDS = 9, 20  # the standard preset's fewest


def snapshot(governor="performance"):
    return Snapshot(
        governor=Reading(value=governor),
        clock_mhz=Reading(value=2400.0, unit="MHz"),
        temperature_c=Reading(reason="no thermal zone is visible"),
        load_average=Reading(value=0.1),
    )


def conditions(**changes):
    fields = {
        "device": "board",
        "cpu_model": Reading(value="Cortex-A76"),
        "machine": "aarch64",
        "cores_online": 4,
        "affinity": (0,),
        "cpu_quota": Reading(value="none"),
        "virtualised": Reading(reason="no flag"),
        "emulated": False,
        "power_source": Reading(value="mains"),
        "os": "Linux 6.6",
        "python": "3.11.2",
        "runtime": "litert",
        "runtime_version": "2.3.0",
        "threads": 1,
        "provider": "XNNPACK",
        "hints": {"precision": "fp32"},
        "timed_region": "one inference",
        "before": snapshot(),
        "after": snapshot(),
    }
    return Conditions(**(fields | changes))


def measured(samples, *, label="net", under=None, **changes):
    fields = {
        "label": label,
        "artifact": label,
        "sha256": "0" * 64,
        "format": "tflite",
        "precision": "fp32",
        "size_bytes": 1000,
        "runtime": "litert",
        "dims": {"N": 1},
        "shapes": {"x": (1, 3, 8, 8)},
        "samples_ns": tuple(float(s) for s in samples),
        "sittings": (ROUNDS,) * (len(samples) // ROUNDS),
        "block": 1,
        "warmups": 5,
        "steady_sittings": 9,
        "load_ms": 1.0,
        "first_inference_ms": 1.0,
        "peak_memory_bytes": Reading(reason="not asked"),
        "stopped_because": "precise",
        "partial": False,
        "outputs_ok": True,
        "max_abs_error": 0.0,
        "sqnr_db": 100.0,
        "conditions": under or conditions(),
    }
    return Measurement(**(fields | changes))


def counted(*repeats, **changes):
    fields = {
        "label": "net",
        "artifact": "net",
        "sha256": "0" * 64,
        "format": "tflite",
        "precision": "int8",
        "device": "qemu:cortex-a76",
        "core": "cortex-a76",
        "runtime": "litert",
        "runtime_version": "2.3.0",
        "emulator": "qemu 7.2",
        "dims": {"N": 1},
        "repeats": repeats,
        "outputs_ok": True,
        "max_abs_error": 0.0,
        "sqnr_db": 90.0,
    }
    return InstructionCount(**(fields | changes))


def luck(rng, *, median_ms=2.0, sittings=SITTINGS):
    """Samples in ns: every sitting keeps its own luck of ±1 %, rounds scatter by 3 %, one in twenty is disturbed."""
    placed = np.repeat(rng.normal(0, 0.01, sittings), ROUNDS)
    logs = math.log(median_ms * 1e6) + placed + rng.normal(0, 0.03, sittings * ROUNDS)
    return np.exp(logs) * np.where(rng.random(len(logs)) < 0.05, rng.uniform(1.2, 2.2, len(logs)), 1.0)


def profile(rng=None, *, factor=1.0, sittings=SITTINGS, with_aa=True, **fields):
    """A profile of one artifact, whose time is `factor` times 2 ms, with its A/A pair."""
    rng = rng or np.random.default_rng(0)
    base = luck(rng, sittings=sittings) * factor
    pair = AAPair(
        runtime="litert",
        device="board",
        artifact="net",
        baseline_ns=tuple(base),
        twin_ns=tuple(luck(rng, sittings=sittings) * factor),
        sittings=(ROUNDS,) * sittings,
    )
    kept = {"measurements": (measured(base),), "aa": (pair,) if with_aa else ()}
    told = {"trimtab": "0.1.0", "devices": ("board",), "preset": "standard", "seed": 0, "budget_s": 30.0}
    return ProfileResult(**(told | kept | fields))


def under(**changes):
    """A profile whose one measurement was taken under other conditions."""
    result = profile()
    other = result.measurements[0].model_copy(update={"conditions": conditions(**changes)})
    return result.model_copy(update={"measurements": (other,)})


@pytest.mark.parametrize(("n", "m"), [(4, 4), (6, 9), (9, 9), (3, 12)])
def test_the_rank_is_that_of_scipys_exact_test(n, m):
    ways = mann_whitney_ways(n, m)
    assert sum(ways) == math.comb(n + m, n)
    rank = rank_of(n, m)
    for u in (max(0, rank - 1), rank):  # P(U ≤ rank − 1) is the last at most 2.5 %
        shifted = np.ones((n, m), dtype=bool)
        shifted.flat[:u] = False  # u pairs in which x is the larger one: rows fill up in turn
        ys = np.arange(m, dtype=float)
        xs = np.array([m - 0.5 - row.sum() - 1e-3 * i for i, row in enumerate(shifted)])
        told = mannwhitneyu(xs, ys, alternative="less", method="exact")
        assert told.statistic == u
        assert told.pvalue == pytest.approx(sum(ways[: u + 1]) / sum(ways), rel=1e-9)
        assert (told.pvalue <= 0.025) == (u < rank)


def test_three_values_on_a_side_have_no_interval_and_four_have():
    assert unpaired_ratio([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).low is None
    assert unpaired_ratio([2.0] * 4, [1.0] * 4).low == pytest.approx(2.0)
    with pytest.raises(ValueError, match="at least one value"):
        unpaired_ratio([], [1.0])


def test_the_interval_covers_a_planted_factor_in_95_percent():
    rng = np.random.default_rng(11)
    inside = 0
    for _ in range(1000):
        ratio = unpaired_ratio(1.3 * rng.lognormal(0, 0.1, 9), rng.lognormal(0, 0.1, 9))
        inside += ratio.low <= 1.3 <= ratio.high
    assert inside >= 936  # 95 % of 1000 less two standard errors (2 · 6.9)


def test_identical_profiles_raise_no_alarm_in_95_percent():
    rng = np.random.default_rng(5)
    alarms = sum(compare_profiles(profile(rng), profile(rng))[0].significant for _ in range(100))
    assert alarms <= 5


def test_a_planted_slow_down_of_5_percent_is_found_in_95_of_100_trials():
    rng = np.random.default_rng(6)
    found = [compare_profiles(profile(rng), profile(rng, factor=1.05))[0] for _ in range(100)]
    assert sum(change.significant and change.ratio > 1 for change in found) >= 95
    # One sitting's median scatters by √(1² + (1.25 · 3 / √20)²) % = 1.3 %, a ratio of nine on each side by 0.8 %: the mean by 0.08 %.
    assert np.mean([change.ratio for change in found]) == pytest.approx(1.05, abs=0.003)


def test_a_speed_up_is_the_other_direction():
    change = compare_profiles(profile(), profile(np.random.default_rng(1), factor=0.8))[0]
    assert change.significant
    assert change.high < 1
    assert not change.exceeds(0.0)
    assert change.old == pytest.approx(2.0, rel=0.05)


def test_a_slow_down_within_what_is_allowed_does_not_exceed():
    change = compare_profiles(profile(), profile(np.random.default_rng(1), factor=1.2))[0]
    assert change.significant
    assert change.exceeds(0.1)
    assert not change.exceeds(0.3)


def test_without_an_a_a_pair_or_sittings_nothing_is_proven_and_it_says_why():
    change = compare_profiles(profile(), profile(factor=2.0, with_aa=False))[0]
    assert not change.significant
    assert change.reason == "the new profile has no A/A pair with an interval there"
    change = compare_profiles(profile(sittings=3), profile(factor=2.0, sittings=3))[0]
    assert not change.significant
    assert change.low is None
    assert "3 and 3 sittings are too few for an interval" in change.reason


def test_the_larger_noise_floor_counts():
    rng = np.random.default_rng(3)
    noisy = profile(rng, factor=1.05)
    pair = noisy.aa[0]
    noisy = noisy.model_copy(update={"aa": (pair.model_copy(update={"twin_ns": tuple(1.2 * t for t in pair.twin_ns)}),)})
    change = compare_profiles(profile(rng), noisy)[0]
    assert change.low > 1
    assert change.noise_floor == pytest.approx(noisy.aa[0].noise_floor)
    assert not change.significant


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"cpu_model": Reading(value="Cortex-A55")}, "CPU: Cortex-A76 → Cortex-A55"),
        ({"runtime_version": "2.4.0"}, "runtime version: 2.3.0 → 2.4.0"),
        ({"threads": 4}, "threads: 1 → 4"),
        ({"affinity": (2, 3)}, "affinity: CPU 0 → CPU 2, 3"),
        ({"affinity": None}, "affinity: CPU 0 → not known"),
        ({"before": snapshot("powersave"), "after": snapshot("powersave")}, "governor: performance → powersave"),
        ({"after": snapshot("powersave")}, "governor: performance → performance, then powersave"),
        ({"power_source": Reading(value="battery")}, "power source: mains → battery"),
        ({"power_source": Reading(reason="no battery is reported")}, "power source: mains → not known"),
        ({"emulated": True}, "emulated: no → yes"),
        ({"provider": "reference"}, "provider: XNNPACK → reference"),
        ({"hints": {"precision": "fp16"}}, "setting precision: fp32 → fp16"),
        ({"hints": {}}, "setting precision: fp32 → not known"),
        ({"cpu_quota": Reading(value=2.0, unit="cores")}, "CPU quota: none → 2.0"),
        ({"timed_region": "with copies"}, "timed region: one inference → with copies"),
        ({"device": "phone"}, "device: board → phone"),
    ],
)
def test_unequal_conditions_are_refused_and_named_and_told_when_forced(change, told):
    with pytest.raises(UserError) as refused:
        compare_profiles(profile(), under(**change))
    assert f"{told}  (net on " in str(refused.value)
    assert "--force" in refused.value.hint
    assert compare_profiles(profile(), under(**change), force=True)[0].differences == (told,)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("dims", {"N": 4}, "dims: N = 1 → N = 4"),
        ("outputs_ok", False, "outputs are wrong in the new profile"),
    ],
)
def test_other_sizes_and_wrong_outputs_are_refused(field, value, told):
    new = profile()
    new = new.model_copy(update={"measurements": (new.measurements[0].model_copy(update={field: value}),)})
    with pytest.raises(UserError, match=told):
        compare_profiles(profile(), new)


def test_another_preset_is_refused():
    with pytest.raises(UserError, match="preset: standard → quick"):
        compare_profiles(profile(), profile(preset="quick"))


def test_two_emulated_times_are_no_latencies():
    with pytest.raises(UserError, match="no device's latency"):
        compare_profiles(under(emulated=True), under(emulated=True))


def test_what_changes_by_itself_is_no_difference():
    warm = replace(snapshot(), temperature_c=Reading(value=60.0, unit="°C"), load_average=Reading(value=3.0))
    unread = Reading(reason="told otherwise: this kernel has no flag")
    changes = compare_profiles(profile(), under(before=warm, after=warm, virtualised=unread, os="Linux 6.7"))
    assert changes[0].differences == ()


def test_nothing_in_common_is_an_error_that_lists_both():
    other = profile()
    other = other.model_copy(update={"measurements": (other.measurements[0].model_copy(update={"label": "other"}),)})
    with pytest.raises(UserError, match="no artifact in common") as refused:
        compare_profiles(profile(), other)
    assert "net tflite fp32 on board, litert" in refused.value.hint
    assert "other tflite fp32 on board, litert" in refused.value.hint


def test_what_is_gone_is_told_with_its_reason():
    wrong = Skipped(label="net", runtime="litert", device="board", kind="wrong outputs", reason="12 dB where 60 dB are asked")
    lacking = profile(measurements=(), skipped=(wrong,), counts=(counted(5),))
    old = profile(counts=(counted(5),))
    (gone,) = missing(old, lacking)
    assert (gone.label, gone.missing_in, gone.reason) == ("net", "new", "12 dB where 60 dB are asked")
    (came,) = missing(lacking, old)
    assert came.missing_in == "old"
    assert missing(old, old) == ()


def test_counts_are_compared_exactly():
    def change(old, new):
        return compare_profiles(profile(measurements=(), counts=(old,)), profile(measurements=(), counts=(new,)))[0]

    same = change(counted(1000, 1000), counted(1000, 1000))
    assert (same.kind, same.ratio, same.significant) == ("instructions", 1.0, False)
    more = change(counted(1000, 1000), counted(1001, 1001))
    assert more.exceeds(0.0)
    assert not more.exceeds(0.01)
    unsteady = change(counted(1000, 1010), counted(1005, 1005))
    assert not unsteady.significant
    assert "vary" in unsteady.reason
    with pytest.raises(UserError, match=r"emulator: qemu 7.2 → qemu 8.0"):
        change(counted(1), counted(1, emulator="qemu 8.0"))


def test_a_change_is_plain_data():
    change = compare_profiles(profile(), profile(np.random.default_rng(1)))[0]
    assert type(change).model_validate_json(change.model_dump_json()) == change
