"""EfficientAD as a file: every format computes map and score in one, the same as torch does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trimtab.compress.anomaly_fit import fitting_contract
from trimtab.compress.procedures.efficientad_calibrate import channel_statistics
from trimtab.export.convert import convert, module_source
from trimtab.export.exporter import exporters
from trimtab.models.architectures import architectures
from trimtab.models.tasks.anomaly import anomaly_contract

SIZE = (40, 48)
FORMATS = ("onnx", "tflite", "coreml", "openvino", pytest.param("executorch", marks=pytest.mark.slow), "ncnn", "mnn")


def network(name="efficientad_s", **kwargs):
    """A small network of random weights, with its own statistics and scales.

    Its features vary as a trained one's do. As layers come they hardly do, and dividing by their deviation would magnify the last
    bits; and with a scale that puts scores near 0 these bits would be compared with nothing.
    """
    torch.manual_seed(0)
    net = architectures.get(name)(image_size=SIZE, width=0.125, out_channels=8, **kwargs).eval()
    pictures = torch.rand(8, 3, *SIZE)
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        mean, std = channel_statistics(lambda x: net.teacher.features(net.norm(x)), iter([pictures]))
        net.teacher_mean.copy_(mean)
        net.teacher_std.copy_(std)
        for found, scale in zip(net.raw_maps(pictures), (net.q_st, net.q_ae), strict=True):
            if found is not None:
                scale.copy_(found.mean() * torch.tensor([0.3, 0.8]))
    return net


def source_of(net):
    contract = fitting_contract(net, anomaly_contract(*SIZE))
    assert contract.outputs[0].shape == ("N", 1, *SIZE)
    return module_source(net, contract, label="efficientad")


def exported(net, name, folder):
    if gone := exporters.entry(name).card.missing():
        pytest.skip(f"{', '.join(gone)} not installed: pip install 'trimtab[{exporters.entry(name).card.extra}]'")
    real = np.random.default_rng(0).random((4, 3, *SIZE), dtype=np.float32)
    (made,) = convert(source_of(net), [(name, "fp32")], folder, real=real)
    return made


@pytest.mark.parametrize("name", FORMATS)
def test_one_file_computes_map_and_score(name, tmp_path):
    net = network()
    made = exported(net, name, tmp_path)
    if (
        name == "mnn"
    ):  # its float32 convolutions lose digits that a difference of near-equal features needs: the gate can be missed
        assert made.artifact.parity.sqnr_db > 75
    else:
        assert made.ok, made.artifact.parity.reason
        assert made.artifact.parity.sqnr_db > 90
    assert [spec.name for spec in made.artifact.contract.outputs] == ["map", "score"]


@pytest.mark.parametrize("name", ["onnx", "tflite", "openvino"])
@pytest.mark.parametrize(("kind", "kwargs"), [("efficientad_s", {"autoencoder": False}), ("efficientad_m", {})])
def test_the_other_networks(name, kind, kwargs, tmp_path):
    made = exported(network(kind, **kwargs), name, tmp_path)
    assert made.ok, made.artifact.parity.reason
    assert made.artifact.parity.sqnr_db > 90


@pytest.mark.parametrize("name", ["onnx", "tflite", "openvino"])
def test_an_odd_spot_is_where_the_file_says(name, tmp_path):
    """A student that knows plain pictures: the file's map peaks in the spot, and its score is the map's maximum."""
    net = network(autoencoder=False)
    net.student.load_state_dict(net.teacher.state_dict())
    net.teacher_mean.zero_()
    net.teacher_std.fill_(1)
    with torch.no_grad():  # blind to blue: what is blue, and nothing else, surprises it
        net.student.convs[0].weight[:, 2] = 0
        net.student.convs[0].bias += net.teacher.convs[0].weight[:, 2].sum((1, 2)) * (0 - 0.406) / 0.225
    net.q_st.copy_(torch.tensor([0.0, 1e-3]))
    made = exported(net, name, tmp_path)
    picture = np.zeros((1, 3, *SIZE), np.float32)
    picture[:, :2] = 0.5
    calm = run(made, name, picture)
    picture[:, 2, 18:22, 25:29] = 1
    odd = run(made, name, picture)
    assert odd["score"].item() > calm["score"].item() + 1e-3
    assert odd["score"].item() == pytest.approx(odd["map"].max(), rel=1e-6)
    row, column = np.unravel_index(odd["map"].squeeze().argmax(), SIZE)
    assert abs(row - 20) <= 8  # half of what one place sees, less the spot
    assert abs(column - 27) <= 8


def run(made, name, picture):
    contract = made.artifact.contract
    given = picture.transpose(0, 2, 3, 1) if contract.inputs[0].layout == "NHWC" else picture
    return exporters.get(name).runner(made.artifact.path(made.folder), contract)({"image": np.ascontiguousarray(given)})
