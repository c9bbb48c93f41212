"""Profiles of several devices, with operations, long runs, metrics and counted instructions."""

from __future__ import annotations

import math

import numpy as np
from report_kit import artifacts, digest, profile

from trimtab.devices.measurement import ProfileResult, Reading, Skipped
from trimtab.devices.records import Evaluated, InstructionCount, OpRecord, OpTime, Sustained, SustainedPoint


def op_record(
    label: str, device: str, runtime: str, *, unit: str = "ns", total: float = 4_400_000.0, **more: object
) -> OpRecord:
    """Fourteen operations: the first on a GPU, the rest by XNNPACK, their shares falling by a fifth each."""
    shares = 0.8 ** np.arange(14)
    ops = tuple(
        OpTime(
            name=f"stage{i // 4 + 1}/block{i % 4}/convolution_with_bias_and_relu_{i}",
            kind="CONV_2D" if i % 2 else "DEPTHWISE_CONV_2D",
            ns=float(total * share / shares.sum()),
            where="GPU" if i == 0 and unit == "ns" else "XNNPACK",
        )
        for i, share in enumerate(shares)
    )
    return OpRecord(label=label, device=device, runtime=runtime, unit=unit, runs=50, ops=ops, **more)


def long_run(label: str, device: str, runtime: str, *, hot: bool, windows: int = 60, warmth: bool = True) -> Sustained:
    """Ten minutes; when `hot`, the clock falls after four and latency rises by a third."""
    rng = np.random.default_rng(2)
    points = tuple(
        SustainedPoint(
            t_s=10.0 * (i + 1),
            p50_ms=float(4.0 * (1 + (0.33 / (1 + math.exp(-(i - 26) / 3)) if hot else 0)) * rng.lognormal(0, 0.006)),
            calls=2400,
            temperature_c=round(34 + 14 * (1 - math.exp(-i / 15)), 1) if warmth else None,
        )
        for i in range(windows)
    )
    return Sustained(label=label, device=device, runtime=runtime, asked_s=600.0, points=points)


def counted(label: str, precision: str, *repeats: int, core: str = "cortex-a76", **changes: object) -> InstructionCount:
    fields = {
        "label": label,
        "artifact": label,
        "sha256": digest(label),
        "format": "tflite",
        "precision": precision,
        "device": f"qemu:{core}",
        "core": core,
        "runtime": "litert",
        "runtime_version": "2.3.0",
        "emulator": "qemu-aarch64 7.2",
        "dims": {"N": 1},
        "repeats": repeats,
        "outputs_ok": True,
        "max_abs_error": 1e-6,
        "sqnr_db": 90.0,
    }
    return InstructionCount(**(fields | changes))


def on(profile: ProfileResult, device: str, *, factor: float = 1.0, emulated: bool = False) -> ProfileResult:
    """The same profile as if taken on another device, `factor` times as slow."""
    moved = []
    for m in profile.measurements:
        told = m.conditions.model_copy(
            update={
                "device": device,
                "emulated": emulated,
                "cpu_model": Reading(value=f"the CPU of {device}"),
                "machine": "aarch64",
            }
        )
        moved.append(m.model_copy(update={"conditions": told, "samples_ns": tuple(factor * s for s in m.samples_ns)}))
    return profile.model_copy(
        update={
            "devices": (device,),
            "measurements": tuple(moved),
            "comparisons": tuple(c.model_copy(update={"device": device}) for c in profile.comparisons),
            "aa": tuple(a.model_copy(update={"device": device}) for a in profile.aa),
            "skipped": tuple(s.model_copy(update={"device": device}) for s in profile.skipped),
        }
    )


def device_profile() -> ProfileResult:
    """Two devices, an emulated board and two counted cores, with everything that a profile can hold."""
    here = profile(artifacts())
    phone, board = on(here, "pixel", factor=6.1), on(here, "emulated board", factor=40.0, emulated=True)
    wrong = Skipped(
        label="compressed-tflite-int8",
        runtime="litert",
        device="pixel",
        kind="wrong outputs",
        reason="9.3 dB where 25.0 dB are asked",
        sqnr_db=9.3,
    )
    label = here.measurements[2].label
    ratios = {"parent-tflite-fp32": 5_144_025, "compressed-tflite-fp32": 2_459_064}
    return ProfileResult(
        trimtab="0.1.0",
        devices=("local", "pixel", "emulated board", "qemu:cortex-a76"),
        preset="standard",
        seed=0,
        budget_s=90.0,
        measurements=(*here.measurements, *phone.measurements, *board.measurements),
        comparisons=(*here.comparisons, *phone.comparisons, *board.comparisons),
        aa=(*here.aa, *phone.aa, *board.aa),
        ops=(
            op_record(label, "pixel", "litert", note="Times of fused operations are of the whole group."),
            op_record(label, "qemu:cortex-a76", "litert", unit="instructions", total=5_144_025.0, emulated=True),
            op_record(label, "emulated board", "litert", emulated=True),
            OpRecord(label=label, device="local", runtime="onnxruntime", reason="its profiler was not built in"),
        ),
        sustained=(
            long_run(label, "pixel", "litert", hot=True),
            long_run(here.measurements[0].label, "local", "onnxruntime", hot=False, warmth=False),
        ),
        evaluated=(
            Evaluated(
                label=label,
                device="local",
                runtime="litert",
                data="fashion-mnist",
                samples=500,
                metrics={"accuracy": 0.93},
                seconds=1.0,
            ),
            Evaluated(
                label=label,
                device="pixel",
                runtime="litert",
                data="fashion-mnist",
                samples=500,
                metrics={"accuracy": 0.928},
                seconds=9.0,
            ),
        ),
        counts=tuple(counted(name, "fp32", *(3 * (count,))) for name, count in ratios.items()),
        skipped=(*here.skipped, wrong),
        warnings=("pixel: the screen was off",),
    )
