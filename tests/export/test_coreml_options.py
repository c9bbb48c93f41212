"""Core ML packages of other shapes, of images and of classes; which torch module an inner value belongs to; the audit."""

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from user_net import make

from trimtab.export.coreml import CARD, CoremlExporter
from trimtab.export.coreml_eval import evaluate, load_program
from trimtab.export.coreml_options import CoremlOptions
from trimtab.export.exporter import ExportRequest, Options
from trimtab.export.parity import GATES_DB, Probe, judge, probes, sqnr_db
from trimtab.export.source import torch_reference
from trimtab.models.contract import Contract, TensorSpec, image_classifier
from trimtab.models.errors import UserError

ct = pytest.importorskip("coremltools", reason="needs coremltools (pip install 'trimtab[coreml]')")
torch.set_num_threads(1)
CLASSES = tuple(f"class {i}" for i in range(10))
SIDE = 32
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
EVEN = {"mean": (0.4, 0.5, 0.6), "std": (0.25, 0.25, 0.25)}


def pictures(height=SIDE, width=SIDE, channels=3, **normalised):
    normalised = normalised or EVEN
    return image_classifier(channels=channels, height=height, width=width, classes=CLASSES, **normalised)


def lively(module):
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
    return module.eval()


class Small(nn.Module):
    """A cheap network for questions about the doors; takes any height and width."""

    def __init__(self, channels=3):
        super().__init__()
        self.stem, self.block = nn.Conv2d(channels, 8, 3, padding=1), nn.Sequential(nn.Conv2d(8, 16, 3, 2), nn.ReLU())
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.block(F.relu(self.stem(x))).mean((2, 3)))


def small(channels=3):
    torch.manual_seed(0)
    return Small(channels).eval()


def exported(module, io, folder, precision="fp16", **options):
    out = folder / "net.mlpackage"
    done = CoremlExporter.export(
        ExportRequest(contract=io, precision=precision, out=out, module=module, options=CARD.configured(options))
    )
    return done, out


def verdict(module, io, done, path, precision, found=None):
    """What the judge says, over the probes that every artifact is judged on."""
    return judge(
        CoremlExporter.runner(path, done.contract),
        found or probes(io, torch_reference(module, io), real=None, seed=0),
        module=io,
        artifact=done.contract,
        precision=precision,
        inputs="random",
        evaluator="test",
    )


# options as given on the command line


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ("224x224,192x160", ((224, 224), (192, 160))),
        ("1, 4,8", ((1,), (4,), (8,))),
        ([[1, 3, 64, 64], [1, 3, 32, 32]], ((1, 3, 64, 64), (1, 3, 32, 32))),
        ([64, 32, 64], ((64,), (32,))),
        ("64×48, 32X24", ((64, 48), (32, 24))),
    ],
)
def test_sizes_as_text_or_numbers(given, sizes):
    options = CARD.configured({"shapes": "enumerated", "sizes": given})
    assert options.sizes == sizes
    assert CARD.configured(options.model_dump(mode="json", exclude_defaults=True)) == options


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shapes": "enumerated"}, "sizes = ().*: enumerated shapes want 2 to 128 different sizes"),
        ({"shapes": "enumerated", "sizes": "64,64"}, "enumerated shapes want 2 to 128"),
        ({"shapes": "enumerated", "sizes": list(range(1, 130))}, "enumerated shapes want 2 to 128"),
        ({"sizes": "64,32"}, "sizes go with shapes = enumerated"),
        ({"shapes": "enumerated", "sizes": "0,4"}, "sizes are 1 and more"),
        ({"shapes": "enumerated", "sizes": "big,4"}, "sizes"),
        ({"shapes": "free"}, "shapes = 'free'"),
        ({"minimum_target": "iOS15"}, "minimum_target = 'iOS15'"),
        ({"group": -1}, "group = -1"),
        ({"clasifier": True}, "has no option 'clasifier'"),
    ],
)
def test_wrong_options_are_refused_in_words(given, message):
    with pytest.raises(UserError, match=message):
        CARD.configured(given)


def test_every_option_is_described_and_has_a_default():
    assert CARD.options is CoremlOptions
    assert all(info.description for info in CoremlOptions.model_fields.values())
    assert CoremlOptions().model_dump(exclude_defaults=True) == {}


@pytest.mark.parametrize(
    ("shape", "sizes", "dims"),
    [
        (("N", 3, "H", "W"), "64,48x32", [{"N": 1, "H": 64, "W": 64}, {"N": 1, "H": 48, "W": 32}]),
        (("N", 3, "H", "W"), "2x64x48,1x3x8x9", [{"N": 2, "H": 64, "W": 48}, {"N": 1, "H": 8, "W": 9}]),
        (("N", 3, 32, 32), "1,4", [{"N": 1}, {"N": 4}]),
        ((1, 3, "S", "S"), "64,1x3x32x32", [{"S": 64}, {"S": 32}]),
    ],
)
def test_what_a_size_says_of_the_free_dimensions(shape, sizes, dims):
    io = Contract(inputs=(TensorSpec(name="x", shape=shape),), outputs=(TensorSpec(name="y", shape=("N", 10)),))
    assert list(CARD.configured({"shapes": "enumerated", "sizes": sizes}).dims(io)) == dims
    assert CoremlOptions().dims(io) == ()


def test_sizes_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(UserError, match=r"size 1x4x64x64 does not fit input 'image' \('N', 3, 'H', 'W'\)"):
        exported(small(), pictures("H", "W"), tmp_path, shapes="enumerated", sizes="1x4x64x64,64")
    with pytest.raises(UserError, match="0 inputs of this network have free dimensions"):
        exported(small(), Contract(inputs=(TensorSpec(name="x", shape=(1, 3, 8, 8)),), outputs=pictures().outputs), tmp_path,
                 shapes="enumerated", sizes="1,2")  # fmt: skip


# enumerated shapes


def test_enumerated_sizes_are_taken_and_no_others(tmp_path):
    module, io = lively(make()), pictures("H", "W")
    done, path = exported(module, io, tmp_path, shapes="enumerated", sizes="64,96x112,48x64")
    assert done.warnings == ()
    assert done.contract.inputs[0].shape == (1, 3, "H", "W")
    assert done.contract.outputs[0].shape == (1, 10)
    feature = ct.utils.load_spec(str(path)).description.input[0].type.multiArrayType
    assert list(feature.shape) == [1, 3, 64, 64], "the first size is the default"
    assert sorted(list(one.shape) for one in feature.enumeratedShapes.shapes) == [
        [1, 3, 48, 64],
        [1, 3, 64, 64],
        [1, 3, 96, 112],
    ]
    reference = torch_reference(module, io)
    found = [
        Probe(dims, inputs := io.random_inputs(dims, seed=k), reference(inputs))
        for dims in CARD.configured({"shapes": "enumerated", "sizes": "64,96x112,48x64"}).dims(io)
        for k in range(2)
    ]
    assert verdict(module, io, done, path, "fp16", found).ok
    run = CoremlExporter.runner(path, done.contract)
    with pytest.raises(
        UserError, match=re.escape("has shape (1, 3, 64, 48), the package takes (1, 3, 48, 64), (1, 3, 64, 64)")
    ):
        run({"image": np.zeros((1, 3, 64, 48), np.float32)})
    with pytest.raises(UserError, match=re.escape("has shape (2, 3, 64, 64)")):
        run({"image": np.zeros((2, 3, 64, 64), np.float32)})


def test_enumerated_batches(tmp_path):
    module, io = small(), pictures()
    done, path = exported(module, io, tmp_path, shapes="enumerated", sizes="1,4")
    assert done.contract == io
    run = CoremlExporter.runner(path, done.contract)
    for batch in (1, 4):
        inputs = io.random_inputs({"N": batch}, seed=batch)
        assert sqnr_db(torch_reference(module, io)(inputs)["logits"], run(inputs)["logits"]) >= GATES_DB["fp16"]
    with pytest.raises(UserError, match=re.escape("(2, 3, 32, 32), the package takes (1, 3, 32, 32), (4, 3, 32, 32)")):
        run(io.random_inputs({"N": 2}, seed=0))


# images


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("normalised", [EVEN, IMAGENET], ids=["even", "imagenet"])
def test_an_image_package_passes_the_judge_on_random_inputs(normalised, precision, tmp_path):
    module, io = lively(make()), pictures(**normalised)
    done, path = exported(module, io, tmp_path, precision, image=True)
    assert verdict(module, io, done, path, precision).ok
    image = ct.utils.load_spec(str(path)).description.input[0].type.imageType
    assert (image.width, image.height, image.ColorSpace.Name(image.colorSpace)) == (SIDE, SIDE, "RGB")
    assert done.warnings == ("Core ML's image packages take one sample at a time: the batch is 1",)
    assert done.contract.inputs[0].value_range == (0, 255)
    scales = [op for op in ("mul", "add") if done.ops.get(op)]
    assert scales == ["mul", "add"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_pixels_become_the_networks_numbers(channels, value_range, tmp_path):
    """Whole pixels fed to the package itself, against the module on pixels normalised here."""
    low, high = value_range
    mean, std = ((0.3, 0.1, 0.2), (0.5, 0.25, 2.0)) if channels == 3 else ((0.3,), (0.5,))
    spec = TensorSpec(
        name="image", shape=("N", channels, SIDE, SIDE), layout="NCHW", value_range=value_range, mean=mean, std=std
    )
    module, io = small(channels), Contract(inputs=(spec,), outputs=(TensorSpec(name="logits", shape=("N", 10)),))
    done, path = exported(module, io, tmp_path, "fp32", image=True)
    pixels = np.random.default_rng(0).integers(0, 256, (1, channels, SIDE, SIDE))
    side = (1, channels, 1, 1)
    numbers = (low + pixels / 255 * (high - low) - np.reshape(mean, side)) / np.reshape(std, side)
    with torch.no_grad():
        wanted = module(torch.from_numpy(numbers.astype(np.float32))).numpy()
    got = evaluate(load_program(path), {"image": pixels.astype(np.float32)})["logits"]
    assert sqnr_db(wanted, got) >= GATES_DB["fp32"]
    assert sqnr_db(wanted, CoremlExporter.runner(path, done.contract)({"image": numbers.astype(np.float32)})["logits"]) >= 90
    named = ct.utils.load_spec(str(path)).description.input[0].type.imageType
    assert named.ColorSpace.Name(named.colorSpace) == ("RGB" if channels == 3 else "GRAYSCALE")


def test_the_runner_gives_whole_pixels_back_exactly(tmp_path, monkeypatch):
    from trimtab.export import coreml_runner

    module, io = small(), pictures(**IMAGENET)
    done, path = exported(module, io, tmp_path, image=True)
    fed = []
    monkeypatch.setattr(
        coreml_runner,
        "evaluate",
        lambda program, inputs, **more: (fed.append(inputs["image"]), evaluate(program, inputs, **more))[1],
    )
    pixels = np.arange(256).repeat(12).reshape(1, 3, SIDE, SIDE)
    spec = io.inputs[0]
    CoremlExporter.runner(path, done.contract)({"image": spec.normalised(pixels / 255)})
    assert np.array_equal(fed[0], pixels)
    assert fed[0].dtype == np.float32
    assert done.contract.inputs[0].normalised(pixels.astype(np.float32)) == pytest.approx(
        spec.normalised(pixels / 255), abs=1e-5
    )
    with pytest.raises(UserError, match=r"'image' holds what is pixels .*…510.0, an image has 0…255"):
        CoremlExporter.runner(path, done.contract)({"image": spec.normalised(pixels / 255 * 2)})


def test_images_of_any_size_and_of_listed_ones(tmp_path):
    module, io = small(), pictures("H", "W", **IMAGENET)
    done, path = exported(module, io, tmp_path, "fp16", image=True)
    assert verdict(module, io, done, path, "fp16").ok
    assert "H 8…4096, default 64" in done.warnings[1]
    assert "N" not in done.contract.symbols
    with pytest.raises(UserError, match=re.escape("(1, 3, 7, 64), the package takes (1, 3, 8…4096, 8…4096)")):
        CoremlExporter.runner(path, done.contract)(io.random_inputs({"N": 1, "H": 7, "W": 64}, seed=0))
    done, path = exported(module, io, tmp_path, "fp16", image=True, shapes="enumerated", sizes="64,48x80")
    run = CoremlExporter.runner(path, done.contract)
    for dims in ({"N": 1, "H": 64, "W": 64}, {"N": 1, "H": 48, "W": 80}):
        inputs = io.random_inputs(dims, seed=1)
        assert sqnr_db(torch_reference(module, io)(inputs)["logits"], run(inputs)["logits"]) >= GATES_DB["fp16"]
    with pytest.raises(UserError, match=re.escape("(1, 3, 80, 48), the package takes (1, 3, 48, 80), (1, 3, 64, 64)")):
        run(io.random_inputs({"N": 1, "H": 80, "W": 48}, seed=0))


def test_what_is_no_image_is_refused(tmp_path):
    four = pictures(channels=4, mean=(0.5,) * 4, std=(0.2,) * 4)
    with pytest.raises(UserError, match=r"wants one float32 input \(N, 1 or 3, H, W\), this network takes image"):
        exported(small(4), four, tmp_path, image=True)
    silent = Contract(inputs=(TensorSpec(name="x", shape=(1, 3, 8, 8)),), outputs=(TensorSpec(name="y", shape=(1, 10)),))
    with pytest.raises(UserError, match="does not say which values the pixels of 'x' have"):
        exported(small(), silent, tmp_path, image=True)
    assert not list(tmp_path.iterdir())


# classifiers


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_classifier_names_classes_and_keeps_its_logits(precision, tmp_path):
    module, io = lively(make()), pictures()
    done, path = exported(module, io, tmp_path, precision, classifier=True)
    assert verdict(module, io, done, path, precision).ok
    description = ct.utils.load_spec(str(path)).description
    assert (description.predictedFeatureName, description.predictedProbabilitiesName) == ("classLabel", "classLabel_probs")
    assert [feature.name for feature in description.output] == ["classLabel", "classLabel_probs", "logits"]
    program = load_program(path)
    for seed in range(4):
        inputs = io.random_inputs({"N": 1}, seed=seed)
        found = evaluate(program, inputs)
        shares = np.exp(found["logits"][0] - found["logits"].max())
        assert str(found["classLabel"]) == CLASSES[int(found["logits"].argmax())]
        np.testing.assert_allclose(found["classLabel_probs"], shares / shares.sum(), atol=2e-3)  # a float16 softmax


def test_the_classify_operation_is_written_as_coremltools_writes_it(tmp_path):
    """For a network with one output coremltools can write a classifier itself: the operations are the same but for names."""
    module, io = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Softmax(1)).eval(), pictures(2, 2)
    io = io.model_copy(update={"classes": ("a", "b", "c"), "outputs": (TensorSpec(name="shares", shape=("N", 3)),)})
    done, path = exported(module, io, tmp_path, "fp32", classifier=True)
    assert done.ops.get("softmax") == 1, "what is probabilities already is not put through softmax again"
    theirs = ct.convert(
        torch.jit.trace(module, torch.rand(1, 3, 2, 2)),
        inputs=[ct.TensorType(name="image", shape=(1, 3, 2, 2))],
        outputs=[ct.TensorType(name="shares")],
        classifier_config=ct.ClassifierConfig(["a", "b", "c"], predicted_feature_name="classLabel"),
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    ).get_spec()
    ours = ct.utils.load_spec(str(path))
    written = []
    for spec in (ours, theirs):
        function = spec.mlProgram.functions["main"]
        (operation,) = [op for op in function.block_specializations[function.opset].operations if op.type == "classify"]
        del operation.attributes["name"]
        written.append(operation)
    assert written[0] == written[1]
    assert [f for f in ours.description.output if f.name != "shares"] == list(theirs.description.output)
    assert list(theirs.mlProgram.functions["main"].inputs) == list(ours.mlProgram.functions["main"].inputs)


def test_image_and_classifier_together_in_packed_weights(tmp_path):
    module, io = lively(make()), pictures(**IMAGENET)
    done, path = exported(module, io, tmp_path, "int8", image=True, classifier=True)
    assert verdict(module, io, done, path, "int8").ok
    tapped = CoremlExporter.tapped(path, done.contract)(io.random_inputs({"N": 3}, seed=0))
    assert tapped["logits"].shape == (3, 10)
    assert tapped["inverted.gate.squeeze"].shape == (3, 24, 1, 1)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (CLASSES[:9], r"names 9 classes, and output 'logits' has shape \('N', 10\)"),
        ((), "wants class names, and the contract has none"),
        ((*CLASSES[:9], CLASSES[0]), "two classes are named 'class 0'"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(classes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        exported(small(), pictures().model_copy(update={"classes": classes}), tmp_path, classifier=True)
    assert not list(tmp_path.iterdir())


# systems and defaults


def test_the_oldest_system_can_be_set(tmp_path):
    module, io = small(), pictures()
    for system, specification in (("iOS16", 7), ("iOS17", 8), ("iOS18", 9)):
        done, path = exported(module, io, tmp_path, "int8", minimum_target=system)
        assert done.spec_version == f"mlprogram spec {specification} ({system})"
    assert done.ops["constexpr_blockwise_shift_scale"] == 3
    assert verdict(module, io, done, path, "int8").ok


def test_plain_options_are_the_defaults(tmp_path):
    """A request without options of ours, and one with our defaults, write the same bytes."""
    module, io, written = small(), pictures(), []
    for name, options in (("a", Options()), ("b", CoremlOptions())):
        out = tmp_path / f"{name}.mlpackage"
        CoremlExporter.export(ExportRequest(contract=io, precision="fp16", out=out, module=module, options=options))
        written.append(ct.utils.load_spec(str(out)).SerializeToString(deterministic=True))
    assert written[0] == written[1]


# the audit


def test_the_audit_counts_what_was_done_and_says_what_apple_documents(tmp_path):
    module, io = small(), pictures()
    free, _ = exported(module, io, tmp_path, "fp16")
    (unplaced,) = free.audit.delegates["Neural Engine"]
    assert "default shape alone" in unplaced.reason
    assert unplaced.count == sum(free.ops.values())
    assert (free.audit.casts, free.audit.transposes) == (2, 0), "float32 doors around float16"
    listed, _ = exported(module, io, tmp_path, "fp16", shapes="enumerated", sizes="1,4")
    assert listed.audit.delegates == {}
    full, _ = exported(module, io, tmp_path, "fp32")
    assert "float16" in full.audit.delegates["Neural Engine"][0].reason
    assert full.audit.casts == 0
    small8, _ = exported(module, io, tmp_path, "int8")
    assert small8.audit.delegates == free.audit.delegates, "unpacking weights is no operation to place"


# inner values by module


class Branches(nn.Module):
    """Returns a dict, holds a list of modules, and runs one ReLU twice."""

    def __init__(self):
        super().__init__()
        self.paths, self.relu = nn.ModuleList([nn.Conv2d(3, 8, k, padding=k // 2) for k in (1, 3)]), nn.ReLU()
        self.tail = nn.Sequential(
            nn.Conv2d(8, 8, 3, 2, 1), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
        )

    def forward(self, x):
        first, second = (self.relu(path(x)) for path in self.paths)
        return {"logits": self.tail(first + second), "features": first.mean((2, 3))}


def inner(module, inputs):
    """{path: what the module there returns} for those that run once."""
    seen, handles = {}, []
    for path, part in module.named_modules():
        handles.append(part.register_forward_hook(lambda _m, _i, out, path=path: seen.setdefault(path, []).append(out)))
    with torch.no_grad():
        module(*map(torch.from_numpy, inputs.values()))
    for handle in handles:
        handle.remove()
    return {path: outs[0].numpy() for path, outs in seen.items() if len(outs) == 1 and isinstance(outs[0], torch.Tensor)}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "sparse-int8"])
@pytest.mark.parametrize("options", [{}, {"image": True, "classifier": True}], ids=["arrays", "image-classifier"])
def test_taps_are_what_the_modules_return(precision, options, tmp_path):
    torch.manual_seed(0)
    module = Branches().eval()
    with torch.no_grad():
        module.tail[0].weight[:, ::2] = 0
    io = pictures(**IMAGENET)
    io = io.model_copy(update={"outputs": (*io.outputs, TensorSpec(name="features", shape=("N", 8)))})
    done, path = exported(module, io, tmp_path, precision, **options)
    inputs = io.random_inputs({"N": 2}, seed=5)
    found, wanted = CoremlExporter.tapped(path, done.contract)(inputs), inner(module, inputs)
    assert list(found)[:2] == ["logits", "features"]
    assert set(found) - {"logits", "features"} == {"paths.0", "paths.1", "tail", "tail.0", "tail.2", "tail.3", "tail.4"}
    gate = {"fp32": 90, "fp16": 45, "sparse-int8": 25}[precision]
    for name in set(found) - {"logits", "features"}:
        assert found[name].dtype == np.float32
        assert found[name].shape == wanted[name].shape
        assert sqnr_db(wanted[name], found[name]) >= gate, name


@pytest.mark.parametrize("wrong", ["entry.0", "inverted.depth.0", "inverted.gate.excite", "grouped.0", "head"])
def test_the_first_tap_that_departs_is_the_layer_with_the_planted_fault(wrong, tmp_path):
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    def folded():
        module = lively(make())
        for part in list(module.modules()):
            if isinstance(part, nn.Sequential) and len(part) > 1 and isinstance(part[1], nn.BatchNorm2d):
                part[0], part[1] = fuse_conv_bn_eval(part[0], part[1]), nn.Identity()
        return module

    right, faulty, io = folded(), folded(), pictures()
    with torch.no_grad():
        faulty.get_submodule(wrong).weight[1] *= 4
    done, path = exported(faulty, io, tmp_path)
    inputs = io.random_inputs({"N": 1}, seed=0)
    found, wanted = CoremlExporter.tapped(path, done.contract)(inputs), inner(right, inputs)
    leaves = [name for name in wanted if name in found and not list(right.get_submodule(name).children())]
    assert wrong in leaves
    departed = [name for name in leaves if sqnr_db(wanted[name], found[name]) < GATES_DB["fp16"]]
    assert departed[0] == wrong


def test_layers_stand_in_the_package_and_survive_packing(tmp_path):
    done, path = exported(lively(make()), pictures(), tmp_path, "palette6")
    told = json.loads(ct.utils.load_spec(str(path)).description.metadata.userDefined["com.trimtab.layers"])
    assert {"inverted.gate.squeeze", "inverted", "left.2", "head"} <= set(told)
    assert set(told) <= set(CoremlExporter.tapped(path, done.contract)(pictures().random_inputs({"N": 1}, seed=0)))


def test_a_package_without_layers_says_why(tmp_path, monkeypatch):
    from trimtab.export import coreml_trace

    def refuse(*_, **__):
        raise RuntimeError("tracing is broken today")

    monkeypatch.setattr(coreml_trace, "trace", refuse)
    done, path = exported(small(), pictures(), tmp_path)
    with pytest.raises(UserError, match=r"does not say which layer .* converted through torch.export") as caught:
        CoremlExporter.tapped(path, done.contract)
    assert "export the network again" in caught.value.hint
