"""The average mask, sliced once: the function of the gated network whose masks never change, and a plain network that reloads."""

import copy
from types import SimpleNamespace

import pytest
import torch
from gated_kit import fix, gated, gated_zoo, save_gated, specs_for
from torch import nn
from training_kit import make_context, make_net, make_task
from user_net import UserNet, make

from trimtab.compress.apply import run_recipe
from trimtab.compress.cost import count
from trimtab.compress.dynamic.average import average_plan, count_kept, static_network, top
from trimtab.compress.dynamic.static import StaticAverageConfig, mean_masks, static_average
from trimtab.compress.recipe import parse_recipe
from trimtab.compress.runtime import Runtime
from trimtab.loading import open_task, task_ref
from trimtab.models.bundle import Manifest, load_bundle, save_bundle
from trimtab.models.errors import UserError
from trimtab.models.gates import attach, gates_of
from trimtab.models.source import parse
from trimtab.models.surgery import SurgeryPlan

X = torch.zeros(1, 3, 32, 32)


def random_means(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {path: torch.rand(gate.spec.channels, generator=generator).double() for path, gate in gates_of(net).items()}


def nets():
    yield from (pytest.param(lambda name=name: gated_zoo(name), id=name) for name in ("vgg16_bn", "resnet8", "mobilenet_v1"))
    yield pytest.param(lambda: gated(UserNet(), X), id="user")


@pytest.mark.parametrize("make_gated", nets())
@pytest.mark.parametrize("rule", ["mean-k", "half"])
def test_it_computes_what_the_gated_network_does_when_its_masks_never_change(make_gated, rule):
    net = make_gated()
    means = random_means(net)
    frozen = copy.deepcopy(net)
    static, done = static_network(net, means, [X], rule=rule)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, got = fix(frozen, done.kept)(x), static(x)
    # float32 sums over fewer terms: 1e-4 of the output's scale
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert not gates_of(static)
    assert count(static, [X]).macs < 0.6 * count(frozen, [X]).macs


def test_as_many_channels_stay_as_are_on_in_the_average_and_they_are_the_highest():
    net = gated_zoo("vgg16_bn")
    means = random_means(net)
    static, done = static_network(net, means, [X])
    for path, mean in means.items():
        k = round(float(mean.sum()))
        assert static.get_submodule(path).out_channels == k
        assert done.kept[path] == tuple(sorted(sorted(range(len(mean)), key=lambda c: -mean[c])[:k]))
    assert done.wider == {}


@pytest.mark.parametrize(
    ("rule", "round_to", "expected"), [("mean-k", 1, 5), ("half", 1, 4), ("mean-k", 4, 4), ("half", 8, 8), ("mean-k", 16, 10)]
)
def test_the_number_of_kept_channels_by_rule_and_grid(rule, round_to, expected):
    mean = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.45, 0.45, 0.4, 0.4, 0.3, 0.2])  # sums to 5.2; four reach one half
    assert count_kept(mean, rule=rule, round_to=round_to) == expected


def test_a_gate_that_is_never_on_keeps_one_channel_and_equal_means_keep_the_first():
    assert count_kept(torch.zeros(8), rule="mean-k", round_to=1) == 1
    assert top(torch.full((8,), 0.5), 3) == (0, 1, 2)


def test_a_residual_stream_loses_the_channels_that_all_its_layers_have_off():
    net = gated_zoo("resnet8")
    means = random_means(net)
    static, done = static_network(net, means, [X])
    both = set(done.kept["layer2.0.conv2"]) | set(done.kept["layer2.0.downsample.0"])
    assert static.layer2[0].conv2.out_channels == len(both) < 32
    assert done.wider["layer2.0.conv2"] == f"{len(both)} of its channels stay: it shares them with layer2.0.downsample.0"
    silent = [i for i, c in enumerate(sorted(both)) if c not in done.kept["layer2.0.conv2"]]
    assert static.layer2[0].bn2.weight[silent].abs().max() == 0


def test_channels_that_can_t_be_cut_may_be_left_as_they_were():
    means = random_means(gated_zoo("resnet8"))
    left = static_network(gated_zoo("resnet8"), means, [X], unsliced="leave")[0]
    zeroed = static_network(gated_zoo("resnet8"), means, [X], unsliced="zero")[0]
    assert left.layer2[0].bn2.weight.abs().min() > 0
    assert zeroed.layer2[0].bn2.weight.abs().min() == 0
    assert count(left, [X]).macs == count(zeroed, [X]).macs


def test_a_layer_without_a_gate_in_the_same_sum_keeps_the_others_whole():
    torch.manual_seed(0)
    plain = UserNet()
    specs = [s for s in specs_for(plain, X) if s.conv != "entry.0"]
    net = attach(plain, specs)
    done = average_plan(net, random_means(net), [X])
    assert done.wider["inverted.project.0"] == "entry.0, which has no gate, makes the same channels"
    assert not any(e.path == "inverted.project.0" and e.side == "out" for e in done.plan.edits)
    assert len(gates_of(net)) == len(specs)  # planning leaves the network as it is


def test_grouped_convolutions_keep_as_many_channels_in_every_block():
    static, _ = static_network(gated(UserNet(), X), random_means(gated(UserNet(), X)), [X])
    assert static.grouped[0].in_channels % 4 == 0
    assert static(X).shape == (1, 10)


def test_means_of_another_network_are_refused():
    net = gated_zoo("resnet8")
    with pytest.raises(UserError, match=r"mean mask of 'conv1' has shape \(7,\), its layer makes 16 channels"):
        average_plan(net, {"conv1": torch.zeros(7)}, [X])


# ---------------------------------------------------------------- the masks of a task, and the recipe step


def toy_task():
    return make_task(train=96, channels=3)


def toy():
    return gated(make_net(channels=3), torch.zeros(1, 3, 8, 8))


def test_mean_masks_are_the_share_of_images_that_a_channel_is_on_for():
    task, net = toy_task(), toy()
    (mean,) = mean_masks(net, task, images=96, seed=0, runtime=Runtime("cpu")).values()
    x = task.inputs(task.samples("train").__getitems__(range(96)))
    gate = net[0].gate
    pooled = torch.softmax(x.amax((2, 3)), 1)
    expected = ((pooled @ gate.linear.weight.T + gate.linear.bias) > 0).double().mean(0)
    assert torch.equal(mean, expected)
    assert ((mean > 0) & (mean < 1)).any()
    assert net[0].gate.mask is None


@pytest.fixture(scope="module")
def task(tiny_npz):
    return open_task("classification", {"data": f"npz:{tiny_npz}"})


@pytest.fixture
def bundle(task, tmp_path, user_net):
    torch.manual_seed(0)
    manifest = Manifest(architecture=parse(f"{user_net}:make", {"width": 16}), contract=task.contract, task=task_ref(task))
    return save_gated(tmp_path / "gated", save_bundle(tmp_path / "parent", make(width=16), manifest))


def recipe(*steps):
    return parse_recipe({"format": 1, "step": list(steps)}, origin="test")


AVERAGE = {"kind": "static-average", "images": 96}
TUNE = {"kind": "finetune", "epochs": 0.5, "batch_size": 40, "amp": "off", "augment": False}


def test_the_step_makes_a_plain_bundle_that_trains_on(bundle, task, tmp_path):
    average, tuned = run_recipe(bundle, recipe(AVERAGE, TUNE), task, tmp_path / "run")
    plan = load_bundle(average.bundle.folder).plan
    assert plan.gates == ()
    assert plan.edits
    figures = average.figures
    net = average.bundle.module()
    inputs = [torch.zeros(1, 3, 16, 16)]
    assert not gates_of(net)
    assert figures["macs_after"] == count(net, inputs).macs == figures["mac_ratio"] * figures["macs_before"]
    assert figures["kept"]["left.0"][0] == 16
    assert figures["kept"]["left.0"][1] == net.left[0].out_channels == round(16 * figures["mean_share"]["left.0"])
    assert tuned.bundle.module()(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    assert [entry.step for entry in tuned.bundle.manifest.lineage] == ["static-average", "finetune"]


def test_cuts_made_before_the_gates_stay(task, tmp_path, user_net):
    torch.manual_seed(0)
    manifest = Manifest(architecture=parse(f"{user_net}:make", {"width": 16}), contract=task.contract, task=task_ref(task))
    parent = save_bundle(tmp_path / "parent", make(width=16), manifest)
    (cut,) = run_recipe(parent, recipe({"kind": "structured", "mac_ratio": 0.7, "round_to": 1}), task, tmp_path / "cut")
    net = save_gated(tmp_path / "gated", cut.bundle)
    (average,) = run_recipe(net, recipe(AVERAGE), task, tmp_path / "run")
    widths = {e.path: (e.size, len(e.kept)) for e in average.bundle.plan.edits if e.side == "out"}
    before = cut.bundle.module().left[0].out_channels
    assert widths["left.0"][0] == 16
    assert widths["left.0"][1] == average.bundle.module().left[0].out_channels <= before


def test_batch_norm_statistics_are_those_of_the_images_it_saw(tmp_path):
    task, net = toy_task(), toy()
    context = make_context(tmp_path, parent=bundle_like(task))
    fresh = static_average(copy.deepcopy(net), task, StaticAverageConfig(images=96), context).module
    stale = static_average(copy.deepcopy(net), task, StaticAverageConfig(images=96, recalibrate=False), context).module
    x = task.inputs(task.samples("train").__getitems__(range(96)))
    expected = fresh[0](x).mean((0, 2, 3))
    # one batch of 96, its mean in float32
    torch.testing.assert_close(fresh[1].running_mean, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(stale[1].running_mean, expected, atol=1e-2)
    assert not fresh.training


def bundle_like(task):
    """What the step reads of a Bundle."""
    manifest = SimpleNamespace(architecture=SimpleNamespace(is_file=False), output="")
    return SimpleNamespace(contract=task.contract, plan=SurgeryPlan(), manifest=manifest)


def test_without_gates_or_data_there_is_nothing_to_average(tmp_path):
    task = toy_task()
    context = make_context(tmp_path, parent=bundle_like(task))
    with pytest.raises(UserError, match="the network has no gates to average"):
        static_average(nn.Sequential(nn.Conv2d(1, 4, 3)), task, StaticAverageConfig(), context)
    with pytest.raises(UserError, match="static-average needs data"):
        static_average(toy(), None, StaticAverageConfig(), context)


def test_too_few_images_are_refused():
    with pytest.raises(UserError, match="images = 8: input should be greater than or equal to 32"):
        recipe({"kind": "static-average", "images": 8})
