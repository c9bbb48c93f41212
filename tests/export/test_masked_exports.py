"""Gated networks in every format: masks that depend on the input, multiplied in, against the module itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gated_kit import contract, gated_zoo
from torch import nn

from trimtab.export.artifact import load_artifact
from trimtab.export.choices import clearest
from trimtab.export.convert import Source, convert, module_source
from trimtab.export.exporter import exporters
from trimtab.models.architectures import architectures
from trimtab.models.contract import image_classifier
from trimtab.models.gates import Gate, GateSpec, attach, detach_gates, gates_of

CLASSES = tuple("abcdefghij")
CONTRACT = image_classifier(channels=1, height=28, width=28, classes=CLASSES, mean=(0.3,), std=(0.3,))
PAIRS = [("onnx", "fp32"), ("tflite", "fp32"), ("coreml", "fp32"), ("coreml", "fp16")]
NETS = {"resnet20": 0.5, "vgg16_bn": 0.25, "mobilenet_v1": 0.25}
GATES = 5
CALM = 2.0
"""Random layers that are exactly normalised amplify rounding from layer to layer; trained ones do not. This damps them."""
MARGIN = 0.5
"""How far the tests' logits lie from 0: more than float16's error of pooled inputs of size 10 through a linear layer, 0.05."""


def norm_after(modules: dict[str, nn.Module], path: str, channels: int) -> str:
    """The normalisation that follows a convolution in the network's order."""
    names = list(modules)
    nearby = names[names.index(path) + 1 : names.index(path) + 4]
    return next(n for n in nearby if isinstance(modules[n], nn.BatchNorm2d) and modules[n].num_features == channels)


def specs(net: nn.Module, arch: str, options: dict) -> list[GateSpec]:
    """Gates on the first convolutions that can have one; a depthwise one shares the mask of what feeds it."""
    modules = dict(net.named_modules())
    convs = [(n, m) for n, m in modules.items() if isinstance(m, nn.Conv2d)]
    found = []
    for at, (path, conv) in enumerate(convs):
        if conv.groups > 1 or at == 0 or "shortcut" in path or "downsample" in path:
            continue
        points = [norm_after(modules, path, conv.out_channels)]
        if arch == "mobilenet_v1" and at + 1 < len(convs) and convs[at + 1][1].groups > 1:
            points.append(norm_after(modules, convs[at + 1][0], conv.out_channels))
        found.append(GateSpec(conv=path, points=tuple(points), inputs=conv.in_channels, channels=conv.out_channels, **options))
    return found[:GATES]


def gated(arch: str, **options) -> nn.Module:
    """A network that is normalised on varied images and whose gates tell bright ones from dark ones, sure of it.

    A predictor's logit is +2 for one group and −2 for the other where a random direction separates them, else ±2 for all.
    """
    torch.manual_seed(0)
    net = architectures.get(arch)(num_classes=10, in_channels=1, width=NETS[arch])
    images = torch.cat(bright_and_dark())
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(varied())
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var *= CALM
    attach(net, specs(net, arch, options)).eval()
    for gate in gates_of(net).values():
        _settle(net, gate, images)
    return net


def _settle(net: nn.Module, gate: Gate, images: torch.Tensor) -> None:
    """Set a gate's last layer; those before it are set already."""
    if isinstance(gate.norm, nn.BatchNorm1d):
        gate.norm.running_mean.uniform_(0, 1)
        gate.norm.running_var.uniform_(0.5, 2)
    weight, bias = gate.linear.weight.data.normal_(), gate.linear.bias.data.zero_()
    with torch.no_grad():
        net(images)
    bright, dark = gate.logits[:4], gate.logits[4:]
    above, below = bright.amin(0) - dark.amax(0), dark.amin(0) - bright.amax(0)
    gap = torch.maximum(above, below)
    middle = torch.where(above > below, bright.amin(0) + dark.amax(0), dark.amin(0) + bright.amax(0)) / 2
    split = gap > 0.5 * (gate.logits.amax(0) - gate.logits.amin(0))
    weight.mul_(torch.where(split, 4 / gap, 0.0)[:, None])
    always = torch.where(torch.arange(len(bias)) % 2 == 0, 2.0, -2.0)
    bias.copy_(torch.where(split, -middle * 4 / gap, always))


def bright_and_dark() -> list[torch.Tensor]:
    """Two groups of images, each (4, 1, 28, 28), that differ much between the groups and little inside."""
    rng = np.random.default_rng(0)
    base = [rng.uniform(-1, 3, (1, 1, 28, 28)), rng.uniform(-3, 0.2, (1, 1, 28, 28))]
    return [torch.from_numpy((b + rng.normal(0, 0.01, (4, 1, 28, 28))).astype(np.float32)) for b in base]


def varied() -> torch.Tensor:
    """Images (48, 1, 28, 28) of every brightness and contrast, smooth and rough."""
    torch.manual_seed(1)
    rough = torch.randn(48, 1, 28, 28)
    smooth = nn.functional.interpolate(torch.randn(48, 1, 4, 4), size=28, mode="bilinear")
    return torch.linspace(-1.5, 1.5, 48)[:, None, None, None] + smooth + torch.rand(48, 1, 1, 1) * rough


def real() -> np.ndarray:
    """Eight samples, both groups in turn."""
    bright, dark = bright_and_dark()
    return torch.stack([bright, dark], 1).reshape(8, 1, 28, 28).numpy()


def masks(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """All masks, (N, channels of all gates)."""
    with torch.no_grad():
        net(images)
    return torch.cat([gate.mask for gate in gates_of(net).values()], 1)


@pytest.fixture(scope="module", params=[(arch, scale) for arch in NETS for scale in ("softmax", "standardise")], ids="-".join)
def source(request) -> Source:
    arch, scale = request.param
    return module_source(gated(arch, scale=scale), CONTRACT, label=arch)


def test_the_gates_of_these_tests_see_their_input_and_are_sure(source):
    net, images = source.module, torch.from_numpy(real())
    found = masks(net, images)
    assert 0.2 < found.mean() < 0.8
    assert (found != found[0]).any(0).float().mean() > 0.3  # channels that are on for one image and off for another
    assert min(float(gate.logits.abs().min()) for gate in gates_of(net).values()) > MARGIN


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(*p, marks=pytest.mark.skipif(bool(exporters.entry(p[0]).card.missing()), reason=f"{p[0]} not installed"))
        for p in PAIRS
    ],
)
def test_a_gated_network_is_exported_and_proven(source, tmp_path, name, precision):
    (made,) = convert(source, [(name, precision)], tmp_path, real=real())
    assert made.ok, made.artifact.parity.reason
    assert made.artifact.parity.top1_agreement == 1
    assert made.artifact.ops.get("TRANSPOSE", 0) == made.artifact.ops.get("transpose", 0) == 0
    dense = detach_gates(_copy(source.module))
    with torch.no_grad():
        unmasked = dense(torch.from_numpy(real())).numpy()
    artifact = load_artifact(made.folder)
    run = exporters.get(name).runner(artifact.path(made.folder), artifact.contract)
    images = real().transpose(0, 2, 3, 1) if name == "tflite" else real()
    assert np.abs(run({"image": np.ascontiguousarray(images)})["logits"] - unmasked).max() > 1e-3  # the masks do something


def _copy(net: nn.Module) -> nn.Module:
    """A copy of a gated network: rebuilt, since the hooks of a deep copy would close the original's gates."""
    specs_of = [gate.spec for gate in gates_of(net).values()]
    arch = next(a for a in NETS if type(net) is type(architectures.get(a)(num_classes=10, in_channels=1, width=NETS[a])))
    twin = attach(architectures.get(arch)(num_classes=10, in_channels=1, width=NETS[arch]), specs_of)
    twin.load_state_dict(net.state_dict())
    return twin.eval()


@pytest.mark.parametrize(
    "options", [{"hidden": 6}, {"pool": "avg"}, {"hidden": 6, "pool": "avg", "scale": "standardise"}], ids=str
)
def test_every_kind_of_gate_in_tflite(options, tmp_path):
    pytest.importorskip("ai_edge_litert", reason="needs trimtab[tflite]")
    source = module_source(gated("resnet20", **options), CONTRACT, label="net")
    (made,) = convert(source, [("tflite", "fp32")], tmp_path, real=real())
    assert made.ok, made.artifact.parity.reason
    assert "TRANSPOSE" not in made.artifact.ops


def test_the_onnx_file_runs_in_openvino(source, tmp_path):
    openvino = pytest.importorskip("openvino", reason="needs trimtab[openvino]")
    (made,) = convert(source, [("onnx", "fp32")], tmp_path, real=real())
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(str(made.artifact.path(made.folder)), "CPU", options)
    with torch.no_grad():
        wanted = source.module(torch.from_numpy(real())).numpy()
    found = compiled({"image": real()})["logits"]
    np.testing.assert_allclose(found, wanted, atol=1e-4)  # float32; a channel switched wrongly moves logits by 1e-3 and more


def test_gates_add_no_data_movement_in_tflite(tmp_path):
    """Beside what the plain network has, a gate costs a pooling, its predictor, a comparison and a product."""
    pytest.importorskip("ai_edge_litert", reason="needs trimtab[tflite]")
    ops = {}
    for name, module in (("gated", gated("resnet20")), ("plain", detach_gates(gated("resnet20")))):
        (made,) = convert(module_source(module, CONTRACT, label=name), [("tflite", "fp32")], Path(tmp_path) / name, real=real())
        ops[name] = made.artifact.ops
    added = {kind: n - ops["plain"].get(kind, 0) for kind, n in ops["gated"].items() if n != ops["plain"].get(kind, 0)}
    per_gate = {"REDUCE_MAX", "SOFTMAX", "FULLY_CONNECTED", "GREATER", "CAST", "RESHAPE", "MUL"}
    assert added == dict.fromkeys(sorted(per_gate), GATES)


def test_probes_are_the_inputs_whose_gates_decide_clearly():
    net = gated_zoo("resnet8")
    source = module_source(net, contract(), label="net")
    real = contract().random_inputs({"N": 20}, seed=3)["image"]
    kept = clearest(source.contract, source.margin, real)
    margins = [source.margin({"image": image[None]}) for image in kept]
    assert margins == sorted(margins, reverse=True)
    with torch.no_grad():  # the figure itself, from the gates
        net(torch.from_numpy(kept[:1]))
    assert margins[0] == min(float(gate.logits.abs().min()) for gate in gates_of(net).values())
    assert module_source(detach_gates(net), contract(), label="net").margin is None


def test_gates_that_half_precision_moves_are_a_rejection_that_says_so(tmp_path):
    """With every logit within fp16's error of zero, the fp16 artifact switches other channels."""
    net = gated_zoo("resnet8")
    with torch.no_grad():
        for gate in gates_of(net).values():
            gate.linear.bias.zero_()
            gate.linear.weight.mul_(1e-7)
            gate.linear.bias[::2] += 1e-8
    real = contract().random_inputs({"N": 16}, seed=3)["image"]
    (made,) = convert(module_source(net, contract(), label="net"), [("coreml", "fp16")], tmp_path, real=real)
    assert not made.ok
    assert "rounded to fp16 some decide otherwise" in made.artifact.parity.reason
