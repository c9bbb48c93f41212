"""A realistic RunRecord: ResNet-20 for 32×32 images, pruned to half its MACs, exported six times and timed on two runtimes."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch

from trimtab.compress.dynamic.diversity import diversity
from trimtab.compress.dynamic.observe import Observation
from trimtab.devices.measurement import AAPair, Conditions, Measurement, ProfileResult, Reading, Skipped, Snapshot, compare
from trimtab.export.artifact import Artifact, Parity, ParityCase
from trimtab.models.contract import image_classifier
from trimtab.record import ArtifactRecord, LayerRecord, ModelRecord, RunRecord, StageRecord, StepRecord

CONTRACT = image_classifier(
    channels=1, height=28, width=28, classes=tuple(f"class {i}" for i in range(10)), mean=(0.2860,), std=(0.3530,)
)
TESTS = 10_000


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def layers(widths: tuple[int, int, int], inner: float) -> tuple[LayerRecord, ...]:
    """ResNet-20's layers; every block's inner width is `inner` times its own (structured pruning leaves the residual sums alone)."""
    found = [LayerRecord(path="", kind="ResNet", output=(10,), macs=0, params=0)]

    def conv(path: str, cin: int, cout: int, side: int, k: int = 3) -> None:
        weights = cin * cout * k * k
        found.append(
            LayerRecord(path=path, kind="Conv2d", output=(cout, side, side), macs=weights * side * side, params=weights)
        )
        found.append(
            LayerRecord(path=path.replace("conv", "bn"), kind="BatchNorm2d", output=(cout, side, side), macs=0, params=2 * cout)
        )

    conv("conv1", 1, widths[0], 28)
    cin, side = widths[0], 28
    for stage, width in enumerate(widths):
        side = side if stage == 0 else side // 2
        for block in range(3):
            mid = max(1, round(width * inner))
            conv(f"stage{stage + 1}.{block}.conv1", cin, mid, side)
            conv(f"stage{stage + 1}.{block}.conv2", mid, width, side)
            found.append(
                LayerRecord(path=f"stage{stage + 1}.{block}.relu", kind="ReLU", output=(width, side, side), macs=0, params=0)
            )
            cin = width
    found.append(LayerRecord(path="fc", kind="Linear", output=(10,), macs=10 * widths[2], params=10 * widths[2] + 10))
    return tuple(found)


def model(name: str, inner: float, accuracy: float) -> ModelRecord:
    table = layers((16, 32, 64), inner)
    params = sum(layer.params for layer in table)
    return ModelRecord(
        name=name,
        architecture="resnet20",
        bundle=digest(f"bundle {name}"),
        macs=sum(layer.macs for layer in table),
        params=params,
        weight_bytes=4 * params,
        activation_peak_bytes=round(200_704 * (0.6 + 0.4 * inner)),
        metrics={"accuracy": accuracy, "loss": 0.21 + (0.93 - accuracy) * 3, "macro_f1": accuracy - 0.0004},
        layers=table,
    )


def parity(
    *, ok: bool = True, db: float, gate: float = 60.0, top1: float | None = 1.0, evaluator: str, reason: str = ""
) -> Parity:
    error = 4.0 * 10 ** (-db / 20)
    case = ParityCase(dims={"N": 1}, inputs=64, max_abs_error=error / 2, sqnr_db=db + 1.5, top1_agreement=top1)
    batch = ParityCase(dims={"N": 4}, inputs=64, max_abs_error=error, sqnr_db=db, top1_agreement=top1)
    return Parity(
        ok=ok,
        gate_db=gate,
        sqnr_db=db,
        max_abs_error=error,
        top1_agreement=top1,
        inputs="real",
        evaluator=evaluator,
        cases=(case, batch),
        reason=reason,
    )


def artifact(
    model_name: str, kind: str, precision: str, *, verdict: Parity, file: str, size: int, **more: object
) -> ArtifactRecord:
    name = f"{model_name}-{kind}-{precision}"
    return ArtifactRecord(
        model=model_name,
        folder=f"artifacts/{name}",
        status="accepted" if verdict.ok else "rejected",
        artifact=Artifact(
            name=name,
            format=kind,
            precision=precision,
            file=file,
            size_bytes=size,
            sha256=digest(name),
            contract=CONTRACT,
            spec_version="opset 18" if kind == "onnx" else "3" if kind == "tflite" else "spec 7",
            ops={"Conv": 19, "Relu": 19, "Add": 9, "GlobalAveragePool": 1, "Gemm": 1},
            parity=verdict,
            tool_versions={"torch": "2.13.0", kind: "1.23.2"},
            source={"bundle": digest(f"bundle {model_name}")},
            **more,
        ),
    )


def artifacts() -> tuple[ArtifactRecord, ...]:
    found = []
    for name, share in (("parent", 1.0), ("compressed", 0.52)):
        size = round(1_092_000 * share)
        found += [
            artifact(
                name, "onnx", "fp32", file="model.onnx", size=size, verdict=parity(db=118.4, evaluator="onnxruntime 1.32.0")
            ),
            artifact(
                name,
                "tflite",
                "fp32",
                file="model.tflite",
                size=size + 9_000,
                verdict=parity(db=121.7, evaluator="LiteRT 2.3.0"),
            ),
        ]
    half = parity(db=63.2, gate=40.0, top1=0.9984, evaluator="trimtab's own evaluator of the saved package")
    bad = "10.9 dB where 40.0 dB are asked: stage3.2.conv2 overflows half precision on 3 of 64 inputs"
    found += [
        artifact(
            "compressed",
            "coreml",
            "fp16",
            file="model.mlpackage",
            size=296_512,
            verdict=half,
            warnings=("the batch is fixed at 1",),
        ),
        artifact(
            "compressed",
            "tflite",
            "fp16",
            file="model.tflite",
            size=291_004,
            verdict=parity(ok=False, db=10.9, gate=40.0, top1=0.71, evaluator="LiteRT 2.3.0", reason=bad),
        ),
    ]
    return tuple(found)


def snapshot() -> Snapshot:
    return Snapshot(
        governor=Reading(value="performance"),
        clock_mhz=Reading(value=2794.5, unit="MHz"),
        temperature_c=Reading(reason="no thermal zone is readable here"),
        load_average=Reading(value=0.42),
    )


def conditions(runtime: str, version: str, provider: str, *, emulated: bool = False) -> Conditions:
    return Conditions(
        device="local",
        cpu_model=Reading(value="Example CPU 8-core"),
        machine="x86_64",
        cores_online=8,
        affinity=(0, 1),
        cpu_quota=Reading(reason="no cgroup limit is set"),
        virtualised=Reading(value="kvm"),
        emulated=emulated,
        power_source=Reading(reason="no battery and no mains sensor"),
        os="Linux 6.1",
        python="3.11.2",
        runtime=runtime,
        runtime_version=version,
        threads=1,
        provider=provider,
        hints={"precision": "float32", "graph_optimisation": "all"},
        timed_region="one inference from bound inputs to bound outputs",
        before=snapshot(),
        after=snapshot(),
    )


def samples(median_ms: float, rounds: int, rng: np.random.Generator) -> tuple[float, ...]:
    """Log-normal latency (ns) with a tail: one round in twenty meets the operating system."""
    body = rng.lognormal(math.log(median_ms * 1e6), 0.03, rounds)
    return tuple(float(v) for v in body * np.where(rng.random(rounds) < 0.05, rng.uniform(1.2, 2.2, rounds), 1.0))


def sittings(rounds: int) -> tuple[int, ...]:
    """Ten sittings where that goes, one otherwise (and then there is no interval)."""
    return (rounds // 10,) * 10 if rounds >= 10 and rounds % 10 == 0 else (rounds,)


def measured(entry: ArtifactRecord, runtime: tuple[str, str, str], times: tuple[float, ...], **more: bool) -> Measurement:
    name, version, provider = runtime
    return Measurement(
        label=entry.artifact.name,
        artifact=entry.artifact.name,
        sha256=entry.artifact.sha256,
        format=entry.artifact.format,
        precision=entry.artifact.precision,
        size_bytes=entry.artifact.size_bytes,
        runtime=name,
        dims={"N": 1},
        shapes={"image": (1, 1, 28, 28)},
        samples_ns=times,
        sittings=sittings(len(times)),
        block=2,
        warmups=20,
        steady_sittings=len(sittings(len(times))),
        load_ms=14.2,
        first_inference_ms=6.1,
        peak_memory_bytes=Reading(value=61_000_000.0, unit="B"),
        stopped_because="precise",
        partial=False,
        outputs_ok=True,
        max_abs_error=2.1e-6,
        sqnr_db=118.0,
        conditions=conditions(name, version, provider, **more),
    )


def profile(entries: tuple[ArtifactRecord, ...], *, rounds: int = 240, emulated: bool = False) -> ProfileResult:
    """Parent against compressed, fp32: 1.6× on ONNX Runtime; on LiteRT the difference drowns in noise."""
    rng = np.random.default_rng(7)
    runs, comparisons, twins = [], [], []
    speeds = {"onnx": (0.742, 0.457), "tflite": (0.611, 0.609)}
    for kind, runtime in (
        ("onnx", ("onnxruntime", "1.32.0", "CPUExecutionProvider")),
        ("tflite", ("litert", "2.3.0", "XNNPACK")),
    ):
        chosen = [e for e in entries if e.artifact.format == kind and e.artifact.precision == "fp32"]
        pair = [
            measured(e, runtime, samples(ms, rounds, rng), emulated=emulated)
            for e, ms in zip(chosen, speeds[kind], strict=True)
        ]
        baseline = pair[0].samples_ns
        twin = tuple(s * f for s, f in zip(baseline, rng.lognormal(0, 0.03, rounds), strict=True))
        aa = AAPair(
            runtime=runtime[0], artifact=pair[0].artifact, baseline_ns=baseline, twin_ns=twin, sittings=sittings(rounds)
        )
        runs += pair
        comparisons.append(compare(*pair, noise_floor=aa.noise_floor))
        twins.append(aa)
    skipped = Skipped(
        label="compressed-coreml-fp16", runtime=None, kind="no runtime", reason="Core ML models run on Apple devices alone"
    )
    return ProfileResult(
        trimtab="0.1.0",
        devices=("local",),
        preset="standard",
        seed=0,
        budget_s=30.0,
        measurements=tuple(runs),
        comparisons=tuple(comparisons),
        aa=tuple(twins),
        skipped=(skipped,),
        warnings=("the CPU's clock may change while measuring: turbo is on",),
    )


def history(epochs: int = 12) -> dict[str, object]:
    return {
        "epochs": [
            {
                "epoch": e,
                "train_loss": round(0.42 * 0.86**e + 0.16, 4),
                "lr": round(0.01 * (1 + math.cos(math.pi * e / epochs)), 6),
                "seconds": 21.3,
                "val": {"accuracy": round(0.925 - 0.06 * 0.75**e, 4), "loss": round(0.24 + 0.1 * 0.8**e, 4)},
            }
            for e in range(1, epochs + 1)
        ]
    }


def steps() -> tuple[StepRecord, ...]:
    pruned = {f"stage{s}.{b}.conv1": [width, round(width * 0.49)] for s, width in ((1, 16), (2, 32), (3, 64)) for b in range(3)}
    return (
        StepRecord(
            kind="structured",
            config={
                "kind": "structured",
                "version": 1,
                "target_macs": 0.5,
                "importance": "taylor",
                "batches": 32,
                "round_to": 4,
            },
            figures={"macs_before": 31_239_296, "macs_after": 15_410_112, "layers_cut": 9, "channels": pruned},
            notes=("conv1 and fc are kept: the input and the classes fix their width",),
            seconds=41.7,
        ),
        StepRecord(
            kind="distill",
            config={
                "kind": "distill",
                "version": 1,
                "objective": "kd",
                "objectives": [{"kind": "kd", "weight": 0.7, "temperature": 4.0}],
                "label_weight": 0.3,
                "epochs": 12,
                "lr": 0.02,
            },
            figures={"history": history(), "best_epoch": 11, "best_val_accuracy": 0.9213},
            seconds=1361.0,
        ),
    )


def record(**changes: object) -> RunRecord:
    """The whole run; `changes` replace fields."""
    exported = artifacts()
    fields = {
        "title": "ResNet-20 at half its MACs",
        "created": "2026-03-14 15:09 UTC",
        "command": "trimtab demo --seed 0 -o runs/resnet20-half",
        "seed": 0,
        "task": "classification",
        "data": "Fashion-MNIST (in place of CIFAR-10)",
        "data_id": digest("data"),
        "metric": "accuracy",
        "test_samples": TESTS,
        "models": (model("parent", 1.0, 0.9268), model("compressed", 0.49, 0.9231)),
        "steps": steps(),
        "artifacts": exported,
        "profile": profile(exported),
        "stages": tuple(
            StageRecord(name=name, seconds=seconds, reused=reused)
            for name, seconds, reused in (
                ("train", 1822.4, True),
                ("compress", 1402.7, False),
                ("export", 33.1, False),
                ("evaluate", 12.9, False),
                ("profile", 64.0, False),
            )
        ),
        "versions": {"trimtab": "0.1.0", "torch": "2.13.0", "onnx": "1.23.2", "onnxruntime": "1.32.0", "numpy": "2.3.4"},
        "host": {"os": "Linux 6.1", "cpu": "Example CPU 8-core", "memory": "15.6 GB"},
        "notes": ("One seed: this run says nothing about the spread between seeds.",),
    }
    return RunRecord(**(fields | changes))


def gated_step(*, samples: int = 200, classes: int = 10) -> StepRecord:
    """A step "ftwt" with two gates: the masks of the first follow the class, those of the second never change."""
    rng = np.random.default_rng(3)
    targets = torch.from_numpy(np.arange(samples) % classes)
    wanted = torch.from_numpy(rng.random((classes, 16)) < 0.6)[targets]
    masks = {"conv1": wanted ^ torch.from_numpy(rng.random((samples, 16)) < 0.05), "conv2": torch.ones(samples, 8).bool()}
    masks["conv2"][:, :3] = False
    truths = {"conv1": wanted, "conv2": torch.from_numpy(rng.random((samples, 8)) < 0.7)}
    curve = [{"level": r, "mac_reduction": 1.1 - r} for r in (0.5, 0.7, 0.85, 1.0)]
    return StepRecord(
        kind="ftwt",
        config={"kind": "ftwt", "r": 0.7},
        figures={
            "diversity": diversity(Observation(masks, truths, targets)),
            "estimate": {"level": 0.7, "mac_reduction": 0.4, "samples": samples, "curve": curve},
            "realised": {
                "mac_reduction": 0.36,
                "macs_mean": 20e6,
                "macs_quantiles": {"p5": 18e6, "p50": 20e6, "p95": 22e6, "p99": 23e6},
                "gate_share": 0.001,
            },
            "gates": [],
            "ungated": [
                {"path": "stem.depthwise", "kind": "Conv2d", "reason": "a depthwise convolution that no gated one feeds"}
            ],
        },
        notes=("1 of 2 gates give practically every input the same mask (static): conv2",),
        seconds=12.0,
    )


def routed_step() -> StepRecord:
    """A step "route" with three branches."""
    branches = [
        {"mac_ratio": ratio, "path_ratio": path, "params": params, "val": {"accuracy": value}}
        for ratio, path, params, value in (
            (0.1, 0.1, 17_000, 0.8867),
            (0.35, 0.45, 55_000, 0.9123),
            (1.0, 1.45, 272_000, 0.9434),
        )
    ]
    points = [{"mac_ratio": m, "accuracy": a} for m, a in ((0.1, 0.887), (0.2, 0.91), (0.37, 0.937), (0.9, 0.941))]
    return StepRecord(
        kind="route",
        config={"kind": "route"},
        figures={
            "rule": "cascade",
            "by": "difficulty",
            "shared": [],
            "macs_after": 11_600_000.0,
            "macs_worst": 44_700_000,
            "thresholds": [0.9761, 0.8127],
            "shares": [0.613, 0.242, 0.145],
            "branches": branches,
            "calibration": {"samples": 6000, "curve": points, "chosen": points[2]},
            "signals": {"confidence": [0.898, 0.909]},
            "history": {"branches": history(3), "router": history(2)},
        },
        seconds=60.0,
    )
