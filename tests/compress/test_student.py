"""The step "student": whose structure, whose weights, and who teaches it then."""

import pytest
import torch
from user_net import make, make_dict

from trimtab.compress.apply import run_recipe
from trimtab.compress.method import Context
from trimtab.compress.recipe import parse_recipe
from trimtab.compress.student import StudentConfig, student
from trimtab.loading import open_task, task_ref
from trimtab.models.bundle import Manifest, load_bundle, save_bundle
from trimtab.models.errors import UserError
from trimtab.models.source import parse
from trimtab.models.surgery import describe

QUICK = {"kind": "distill", "epochs": 0.5, "batch_size": 40, "amp": "off", "augment": False}


@pytest.fixture(scope="module")
def task(tiny_npz):
    return open_task("classification", {"data": f"npz:{tiny_npz}"})


@pytest.fixture
def parent(task, tmp_path, user_net):
    """A network of the user's own."""
    torch.manual_seed(0)
    manifest = Manifest(architecture=parse(f"{user_net}:make", {"width": 16}), contract=task.contract, task=task_ref(task))
    return save_bundle(tmp_path / "parent", make(width=16), manifest)


def run(parent, task, folder, *steps, seed=0):
    return run_recipe(parent, parse_recipe({"format": 1, "seed": seed, "step": list(steps)}, origin="test"), task, folder)


def same_weights(a, b):
    one, two = a.module().state_dict(), b.module().state_dict()
    return all(torch.equal(one[name], two[name]) for name in one)


def test_a_zoo_network_takes_its_sizes_from_the_one_it_replaces(parent, tmp_path):
    (done,) = run(parent, None, tmp_path / "w", {"kind": "student", "model": "resnet8", "args": {"width": 0.5}}, seed=7)
    made = load_bundle(done.bundle.folder).manifest
    assert (made.architecture.name, made.architecture.kwargs) == (
        "resnet8",
        {"num_classes": 10, "in_channels": 3, "width": 0.5},
    )
    assert (made.architecture.file, made.plan, made.contract) == ("", {"edits": []}, parent.contract)
    assert made.task == parent.manifest.task
    assert done.figures["params_after"] == sum(p.numel() for p in done.bundle.module().parameters())
    assert done.figures["param_ratio"] == done.figures["params_after"] / done.figures["params_before"]
    torch.manual_seed(7)  # the weights that plain training with this seed starts from
    for name, tensor in made.architecture.build().state_dict().items():
        assert torch.equal(tensor, done.bundle.module().state_dict()[name])


@pytest.mark.parametrize("model", ["parent", "resnet8"])
def test_building_a_student_leaves_the_run_s_random_numbers_alone(parent, tmp_path, model):
    module, config = parent.module(), StudentConfig(model=model)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    student(module, None, config, Context(workdir=tmp_path, parent=parent))
    assert torch.equal(torch.rand(4), expected)


def test_born_again_keeps_the_pruned_structure_and_starts_each_generation_anew(parent, task, tmp_path):
    """The parent's own code and its surgery, other weights each time, the same at every run of a seed."""
    cut = run(parent, task, tmp_path / "cut", {"kind": "structured", "mac_ratio": 0.6})[0].bundle
    again = {"kind": "student", "model": "parent"}
    first, _, second, _ = run(cut, task, tmp_path / "w", again, QUICK, again, {**QUICK, "teacher": "step:2"})
    assert describe(first.bundle.module()) == describe(cut.module()) != describe(parent.module())
    assert first.bundle.manifest.plan == cut.manifest.plan
    assert not same_weights(first.bundle, cut)
    assert not same_weights(first.bundle, second.bundle)
    repeat = run(cut, task, tmp_path / "w2", again)[0]
    assert same_weights(first.bundle, repeat.bundle)
    assert not same_weights(first.bundle, run(cut, task, tmp_path / "w3", again, seed=1)[0].bundle)


def test_step_2_teaches_and_not_the_parent(parent, task, tmp_path, monkeypatch):
    """Steps and their teachers: what find_teacher gave each distillation."""
    from trimtab.compress.distill import setup

    found, original = [], setup.find_teacher
    monkeypatch.setattr(setup, "find_teacher", lambda name, context: found.append(original(name, context)) or found[-1])
    again = {"kind": "student", "model": "parent"}
    steps = run(parent, task, tmp_path / "w", again, QUICK, again, {**QUICK, "teacher": "step:2"})
    assert [bundle.hash for bundle in found] == [parent.hash, steps[1].bundle.hash]
    with pytest.raises(UserError, match=r"teacher is 'step:3', and no such step has been made\n.*step:1 … step:1"):
        run(parent, task, tmp_path / "x", again, {**QUICK, "teacher": "step:3"})


def test_a_step_follows_the_steps_before_a_student_too(parent, task, tmp_path):
    """What step 2 made teaches step 4, past the fresh network of step 3: another step 2 is another step 4."""
    again, last = {"kind": "student", "model": "parent"}, {**QUICK, "teacher": "step:2"}
    run(parent, task, tmp_path / "w", again, QUICK, again, last)
    assert [s.reused for s in run(parent, task, tmp_path / "w", again, QUICK, again, last)] == [True] * 4
    steps = run(parent, task, tmp_path / "w", again, {**QUICK, "lr": 0.01}, again, last)
    assert [s.reused for s in steps] == [True, False, False, False]


def test_a_bundle_s_folder_brings_its_weights_its_output_and_its_code(parent, task, tmp_path, user_net):
    torch.manual_seed(5)
    architecture = parse(f"{user_net}:make_dict", {})
    manifest = Manifest(architecture=architecture, contract=task.contract, output="logits")
    other = save_bundle(tmp_path / "other", make_dict(), manifest)
    step = {"kind": "student", "model": str(other.folder)}
    (done,) = run(parent, None, tmp_path / "w", step)
    assert same_weights(done.bundle, other)
    assert (done.bundle.manifest.architecture, done.bundle.manifest.output) == (architecture, "logits")
    assert (done.bundle.folder / "architecture.py").read_bytes() == user_net.read_bytes()
    assert done.notes == ()
    (back,) = run(done.bundle, None, tmp_path / "back", {"kind": "student", "model": "resnet8"})
    assert back.bundle.manifest.output == ""  # and it reloads: save_bundle has proven it
    assert not (back.bundle.folder / "architecture.py").exists()
    assert run(parent, None, tmp_path / "w", step)[0].reused
    save_bundle(tmp_path / "other", make_dict(), manifest, force=True)  # other weights in the same folder
    assert not run(parent, None, tmp_path / "w", step)[0].reused


def test_another_normalisation_is_said(parent, task, tmp_path):
    theirs = task.normalised_by((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).contract
    kwargs = {"num_classes": 10, "in_channels": 3}
    architecture = parse("resnet8", kwargs)
    other = save_bundle(tmp_path / "other", architecture.build(), Manifest(architecture=architecture, contract=theirs))
    (done,) = run(parent, None, tmp_path / "w", {"kind": "student", "model": str(other.folder)})
    assert "was made for inputs of mean (0.5, 0.5, 0.5)" in done.notes[0]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"model": "resnet21"}, "student: unknown model 'resnet21'\n.*did you mean .*written as a path: ./resnet21"),
        ({"model": "./nowhere"}, "nowhere is not a Bundle"),
        ({"model": "resnet8", "args": {"num_classes": 4}}, r"output for one image has shape \(1, 4\).*gives \('N', 10\)"),
        ({"model": "resnet8", "args": {"in_channels": 1}}, r"the student fails on an input of \(1, 3, 16, 16\)"),
        ({"model": "resnet8", "args": {"widht": 2}}, "student: resnet8.*'widht'\n.*check args {'widht': 2} in the recipe"),
    ],
)
def test_a_student_that_does_not_fit_is_refused_before_it_is_taught(parent, task, tmp_path, step, message):
    with pytest.raises(UserError, match=message):
        run(parent, task, tmp_path / "w", {"kind": "student", **step}, QUICK)
    assert not (tmp_path / "w" / "01-student" / "stage.json").exists()
