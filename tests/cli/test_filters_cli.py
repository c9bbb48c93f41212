"""`trimtab inspect --filters`, from Bundles and checkpoints to words and JSON."""

import json

import pytest
import torch
from safetensors.torch import save_file

from trimtab.models.architectures import architectures
from trimtab.models.bundle import Manifest, save_bundle
from trimtab.models.contract import image_classifier
from trimtab.models.source import Architecture


def saved(folder, name, change=None, **kwargs):
    """A Bundle of an untrained network, its module changed by `change`."""
    torch.manual_seed(0)
    kwargs = {"num_classes": 4, "in_channels": 1, **kwargs}
    net = architectures.get(name)(**kwargs)
    if change:
        change(net)
    contract = image_classifier(channels=1, height=32, width=32, classes=tuple("abcd"), mean=(0.5,), std=(0.5,))
    save_bundle(folder, net, Manifest(architecture=Architecture(name=name, kwargs=kwargs), contract=contract))
    return folder


def worn(net):
    """layer3's second convolution says one thing over and over; half of layer2's first filters are gone; the rest learnt something."""
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, torch.nn.Conv2d) and part.kernel_size == (3, 3):
                part.weight *= torch.tensor([3.0, 1.0, 0.3]).view(1, 1, 3, 1)
        net.layer3[0].conv2.weight[:] = net.layer3[0].conv2.weight[0, 0].clone()
        net.layer2[0].conv1.weight[:20] = 0


def test_filters_of_a_bundle(cli, tmp_path):
    fresh, old = saved(tmp_path / "fresh", "resnet8"), saved(tmp_path / "old", "resnet8", worn)
    code, out, err = cli("inspect", fresh, "--filters")
    assert code == 0, err
    assert "5 random-like" in out
    assert "as of untrained weights: train longer" in out
    assert "nothing to cut" in out
    assert "MACs" not in out  # the ordinary tables are not printed
    code, out, err = cli("inspect", old, "--filters")
    assert code == 0, err
    assert "layer3.0.conv2: redundant: its kernels vary in about 1.0 of 9 directions" in out
    assert "layer2.0.conv1: degenerate: 62% of its kernels" in out
    assert "layer2.0.conv1 62%, layer3.0.conv2 89%" in out
    assert 'kind = "structured", param_ratio = ' in out
    assert max(len(line) for line in out.splitlines() if line.startswith("layer")) <= 80


def test_the_result_is_json(cli, tmp_path):
    old = saved(tmp_path / "old", "resnet8", worn)
    code, out, err = cli("inspect", old, "--filters", "--against", saved(tmp_path / "fresh", "resnet8"), "--json")
    assert code == 0, err
    found = json.loads(out)
    rows = {row["path"]: row for row in found["layers"]}
    assert rows["layer3.0.conv2"]["verdict"] == "redundant"
    assert rows["layer2.0.conv1"]["cut"] == pytest.approx(20 / 32)
    left = sum(row["params"] * (1 - row["cut"]) for row in found["layers"])
    assert found["param_ratio"] == pytest.approx(left / sum(row["params"] for row in found["layers"]))
    assert found["shift"]["overall"]["divergence"] > found["shift"]["overall"]["chance"]
    assert {row["name"] for row in found["shift"]["layers"]} == {path for path, row in rows.items() if row["kernel"] == [3, 3]}


def test_the_shift_to_checkpoints_and_other_networks(cli, tmp_path):
    net = saved(tmp_path / "net", "resnet8")
    code, out, err = cli("inspect", net, "--filters", "--against", net)
    assert code == 0, err
    assert all(line.split()[-2] == "0.0000" for line in out.splitlines() if line.startswith(("all layers", "depth")))
    code, out, err = cli("inspect", net, "--filters", "--against", net / "weights.safetensors", "--json")
    assert (code, json.loads(out)["shift"]["overall"]["divergence"]) == (0, 0), err
    other = saved(tmp_path / "other", "vgg16_bn", width=0.125)
    code, out, err = cli("inspect", net, "--filters", "--against", other)
    assert code == 0, err
    assert "no layer's name is in both networks" in out
    assert "depth 90–100 %" in out


def test_what_is_refused(cli, tmp_path):
    net = saved(tmp_path / "net", "resnet8")
    save_file({"fc.weight": torch.ones(3, 3)}, tmp_path / "linear.safetensors")
    for options, message in (
        (["--against", net], "--against compares filters, and there is no --filters"),
        (["--filters", "--against", "nowhere"], "--against nowhere does not exist"),
        (["--filters", "--against", "linear.safetensors"], "the second network has no 3×3 kernel"),
    ):
        code, _, err = cli("inspect", net, *options)
        assert (code, message in err) == (2, True), err
    state = architectures.get("resnet8")(num_classes=4, in_channels=1).state_dict()
    state["layer1.0.conv1.weight"][0] = torch.nan
    torch.save(state, tmp_path / "nan.pt")
    model = ["--model", "resnet8", "--model-arg", "num_classes=4", "--model-arg", "in_channels=1", "--size", "1x32x32"]
    code, _, err = cli("inspect", "nan.pt", "--filters", *model)
    assert (code, "layer1.0.conv1" in err) == (2, True), err


def test_without_the_flag_everything_is_as_before(cli, tmp_path):
    code, out, err = cli("inspect", saved(tmp_path / "net", "resnet8"))
    assert code == 0, err
    assert "MACs" in out
    assert "random-like" not in out
