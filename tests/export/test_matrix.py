"""The contract suite of the exporters: every format × precision that the registry holds, proven, judged and described alike.

A new format is tested by being registered. `make test-export` runs the slow part too: the zoo in every format and precision.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_convert import lively
from torch import nn

from trimtab.export.artifact import load_artifact
from trimtab.export.convert import convert, module_source
from trimtab.export.exporter import exporters
from trimtab.export.parity import gate_db
from trimtab.export.tflite.roads import ready
from trimtab.models.architectures import architectures
from trimtab.models.contract import image_classifier
from trimtab.models.errors import UserError

PAIRS = [(entry.name, precision) for entry in exporters for precision, why in entry.card.precisions.items() if not why]
REFUSED = [(entry.name, precision) for entry in exporters for precision, why in entry.card.precisions.items() if why]
OWN_FAULTS = ("openvino", "executorch", "ncnn", "mnn")
"""Formats whose own test files plant the faults in all precisions."""
COARSE = {"int4": 12.0, "palette4": 12.0, "palette6": 20.0, "sparse-palette4": 12.0}
"""dB that few bits must reach without training: below the gate of 25, where the task's metric decides."""
CONTRACT = image_classifier(channels=3, height=16, width=16, classes=tuple("abcde"), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


class Sharp(nn.Module):
    """A net whose outputs depend on every pixel and channel, so that no fault hides; `sparse` takes out four of five weights."""

    def __init__(self, *, sparse):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 5, stride=4, padding=1)
        self.head = nn.Linear(32 * 4 * 4, 5)
        with torch.no_grad():
            self.head.weight *= 5  # what varies with the image is as large as what does not
            self.head.bias += torch.tensor([3.0, -3.0, 2.0, -2.0, 1.0])
            if sparse:
                for layer in (self.first, self.second, self.head):
                    layer.weight[torch.rand_like(layer.weight) < 0.8] = 0
                    layer.weight *= 2

    def forward(self, image):
        x = torch.relu(self.second(torch.relu(self.first(image))))
        return self.head(torch.flatten(x, 1))


@pytest.fixture(scope="module")
def sources():
    return {sparse: module_source(Sharp(sparse=sparse).eval(), CONTRACT, label="sharp") for sparse in (False, True)}


def images(count, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 3, 16, 16)).astype(np.float32) / 255  # whole pixels, as image inputs take them
    return CONTRACT.inputs[0].normalised(pixels)


def the(sources, precision):
    return sources["sparse" in precision]


def need(name, precision):
    """None, or a skip that says what is not there."""
    if gone := exporters.entry(name).card.missing():
        pytest.skip(f"{', '.join(gone)} not installed: pip install 'trimtab[{exporters.entry(name).card.extra}]'")
    if (name, precision) == ("tflite", "sparse") and not ready("tensorflow"):
        pytest.skip("the environment of TensorFlow's converter is not set up: trimtab export --setup tensorflow")


def exported(source, name, precision, folder):
    (made,) = convert(source, [(name, precision)], folder, real=images(16, 1), calibration=images(32, 2))
    return made


def ids(pair):
    return "-".join(pair)


@pytest.mark.parametrize("pair", PAIRS, ids=ids)
def test_every_format_and_precision_is_written_proven_and_described(sources, tmp_path, pair):
    need(*pair)
    name, precision = pair
    card = exporters.entry(name).card
    made = exported(the(sources, precision), name, precision, tmp_path)
    artifact = made.artifact
    assert artifact.parity.sqnr_db >= COARSE.get(precision, gate_db(precision)), artifact.parity.reason
    if precision not in COARSE:
        assert made.ok
        assert load_artifact(made.folder) == artifact
    assert (artifact.format, artifact.precision) == pair
    assert artifact.ops
    assert sum(artifact.ops.values()) > 0
    assert artifact.audit is not None
    assert artifact.tool_versions
    assert artifact.spec_version
    assert artifact.parity.evaluator
    assert len({case.dims["N"] for case in artifact.parity.cases}) == 3  # batches 1, 2 and 5
    assert (made.folder / "golden.npz").exists()
    if precision not in ("fp32", "sparse"):
        assert artifact.parity.sqnr_db < 100  # not float32 in disguise
    assert card.defaults
    assert set(card.defaults) <= {p for p, why in card.precisions.items() if not why}


@pytest.mark.parametrize("pair", REFUSED, ids=ids)
def test_what_a_format_cannot_hold_is_refused_with_its_reason(pair):
    name, precision = pair
    card = exporters.entry(name).card
    with pytest.raises(UserError) as caught:
        card.refuse(precision)
    assert card.precisions[precision] in caught.value.what
    assert len(card.precisions[precision].split()) >= 4  # a reason, in words


def plant(module, fault):
    import copy

    module = copy.deepcopy(module)
    with torch.no_grad():
        match fault:
            case "a wrong weight":
                module.head.weight[3].neg_()
            case "swapped channels":
                module.first.weight.copy_(module.first.weight[:, [2, 1, 0]])
            case "a dropped bias":
                module.head.bias.zero_()
            case "a wrong normalisation":
                module.first.weight.mul_(4)  # as if the pixels had not been divided by the standard deviation
    return module


@pytest.mark.parametrize("fault", ["a wrong weight", "swapped channels", "a dropped bias", "a wrong normalisation"])
@pytest.mark.parametrize("pair", [p for p in PAIRS if p[0] not in OWN_FAULTS and p[1] not in COARSE], ids=ids)
def test_a_planted_fault_is_caught(sources, tmp_path, pair, fault):
    need(*pair)
    sound = the(sources, pair[1])
    wrong = module_source(plant(sound.module, fault), CONTRACT, label="wrong")
    made = exported(replace(sound, graph=wrong.graph, module=wrong.module), *pair, tmp_path)
    assert not made.ok
    assert "below the" in made.artifact.parity.reason


REFUSES = {("vit_nano", "ncnn"): "ncnn has no layer for .*torch.unbind .*module blocks.0.attn"}
"""What a format can't hold of the zoo, and what it says."""
ZOO = ("resnet20", "vgg16_bn", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_lite0", "vit_nano")


@pytest.mark.slow
@pytest.mark.parametrize("pair", [p for p in PAIRS if "sparse" not in p[1]], ids=ids)
@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_in_every_format_and_precision(tmp_path, name, pair):
    """Untrained, so reduced precisions have no gate to hold here: they must be written, run at every batch, and be near."""
    need(*pair)
    card = architectures.entry(name).card
    side = min(card.input[1], 64)
    contract = image_classifier(
        channels=3, height=side, width=side, classes=tuple("abcdefghij"), mean=(0.5,) * 3, std=(0.25,) * 3
    )
    torch.manual_seed(0)
    source = module_source(lively(architectures.get(name)(num_classes=10)), contract, label=name)
    real = contract.inputs[0].normalised(
        np.random.default_rng(0).integers(0, 256, (40, 3, side, side)).astype(np.float32) / 255
    )
    if (name, pair[0]) in REFUSES:
        with pytest.raises(UserError, match=REFUSES[name, pair[0]]):
            convert(source, [pair], tmp_path, real=real[:8], calibration=real[8:])
        return
    (made,) = convert(source, [pair], tmp_path, real=real[:8], calibration=real[8:])
    floor = {"fp32": 90.0, "fp16": 40.0}.get(pair[1], 0.0)
    assert made.artifact.parity.sqnr_db >= floor, made.artifact.parity.reason
    assert made.artifact.parity.max_abs_error is not None  # it ran
