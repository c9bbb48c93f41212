"""Distillation without a recipe file, and tasks by name."""

import json

import numpy as np
import pytest

from trimtab.app import main

SHORT = ["--set", "epochs=1", "--set", "batch_size=40", "--set", "amp=off"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tiny_npz):
    """A ResNet-8 trained for a moment on the squares."""
    out = tmp_path_factory.mktemp("teacher") / "big"
    args = ["train", "resnet8", "--data", f"npz:{tiny_npz}", "--set", "lr=0.1", *SHORT, "--set", "epochs=3", "-o", out]
    assert main([str(a) for a in args]) == 0
    return out


def manifest(folder):
    return json.loads((folder / "bundle.json").read_text())


def test_one_line_distils_into_a_student(cli, teacher, tmp_path):
    line = ["compress", teacher, "--student", "resnet8", "--student-arg", "width=0.5", "--objective", "kd++", *SHORT]
    code, out, err = cli(*line, "--seed", "3", "-o", "small")
    assert code == 0, err
    assert "1. student: MACs" in out
    assert "2. distill: accuracy" in out
    assert "taught by itself" not in out
    made = manifest(tmp_path / "small")
    assert made["architecture"]["kwargs"] == {"num_classes": 10, "in_channels": 3, "width": 0.5}
    assert [(entry["step"], entry["seed"]) for entry in made["lineage"][-2:]] == [("student", 3), ("distill", 3)]
    lessons = made["lineage"][-1]["config"]
    assert (lessons["objective"], lessons["epochs"], lessons["teacher"]) == ("kd++", 1, "parent")
    assert set(made["metrics"]) >= {"accuracy"}
    assert cli("evaluate", "small")[0] == 0


def test_the_user_s_own_student_and_a_teacher_from_another_folder(cli, teacher, tmp_path, user_net):
    line = ["compress", teacher, "--student", f"{user_net}:make", "--student-arg", "width=8", "--teacher", teacher]
    code, _, err = cli(*line, "--objective", "logit-mse", *SHORT, "-o", "small")
    assert code == 0, err
    made = manifest(tmp_path / "small")
    assert (made["architecture"]["name"], made["architecture"]["kwargs"]) == ("make", {"width": 8})
    assert (tmp_path / "small" / "architecture.py").read_bytes() == user_net.read_bytes()
    assert made["lineage"][-1]["config"]["teacher"] == str(teacher)
    assert not (tmp_path / "small" / ".work").exists()
    code, _, err = cli("compress", teacher, "--student", "small", "--objective", "kd", *SHORT, "-o", "smaller")
    assert code == 0, err  # a Bundle's folder as the student: it goes on from its weights


def test_without_a_student_the_network_teaches_itself_and_that_is_said(cli, teacher):
    code, out, err = cli("compress", teacher, "--objective", "kd", *SHORT, "-o", "same")
    assert code == 0, err
    assert "no --student: the network is taught by itself as it was (self-distillation)" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "nothing says what to do to the network\n  → give one: --recipe half"),
        (["--recipe", "half", "--objective", "kd"], "--recipe and --objective both say what to do"),
        (["--recipe", "half", "--student", "resnet8"], "--student goes with --objective, not with --recipe"),
        (["--recipe", "half", "--set", "lr=1"], "--set goes with --objective, not with --recipe"),
        (["--student", "resnet8"], "nothing says what to do to the network"),
        (["--objective", "kdpp", "--student", "resnet8"], "unknown objective 'kdpp': did you mean"),
        (["--objective", "kd", "--student", "resnet9"], "unknown model 'resnet9'\n  → did you mean"),
        (
            ["--objective", "kd", "--student", "net.py"],
            "--student net.py names a file but no factory\n  → --student net.py:NAME",
        ),
        (["--objective", "kd", "--student", "net.py:make"], "--student net.py:make: "),
        (["--objective", "kd", "--student", "resnet8", "--student-arg", "widht=2"], "widht"),
        (["--objective", "kd", "--teacher", "nowhere"], "--teacher nowhere is not a Bundle's folder"),
        (["--objective", "kd", "--set", "epocs=2"], "did you mean 'epochs'"),
        (["--objective", "kd", "--task", "landmarks"], "--task landmarks says what --data is for, and there is no --data"),
    ],
)
def test_a_mistake_is_exit_2_with_what_to_do(cli, teacher, args, message):
    code, out, err = cli("compress", teacher, *args, "-o", "out")
    assert code == 2, err
    assert message in err
    assert "→" in err
    assert "Traceback" not in out + err


def test_the_task_is_named_on_the_command_line(cli, teacher, tiny_npz):
    data = ["--data", f"npz:{tiny_npz}"]
    code, _, err = cli("evaluate", teacher, *data, "--task", "clasification")
    assert code == 2
    assert "unknown task 'clasification'\n  → did you mean 'classification'?" in err
    assert cli("evaluate", teacher, *data, "--task", "classification")[0] == 0
    assert cli("evaluate", teacher, "--task", "classification")[0] == 0  # the Bundle's own
    assert "unknown task" in cli("train", "resnet8", *data, "--task", "clasification", "-o", "x")[2]


class _Points:
    """A task that regresses 3 points: outputs (N, 6), no classes; the figure that decides is an error."""

    name, metric, data_id = "points", "nme", "squares"

    def __init__(self, *, data, seed=0, size=None, base=None):
        from trimtab.loading import open_task
        from trimtab.models.contract import Contract, TensorSpec

        self.base = base or open_task("classification", {"data": data, "seed": seed})
        self.data, self.options = data, {"data": data}
        outputs = (TensorSpec(name="points", shape=("N", 6), layout="NC"),)
        self.contract = Contract(inputs=self.base.contract.inputs, outputs=outputs)

    def normalised_by(self, mean, std):
        return _Points(data=self.data, base=self.base.normalised_by(mean, std))

    def samples(self, split):
        return _Targets(self.base.samples(split))

    def inputs(self, batch, *, augment=False, generator=None):
        return self.base.inputs(batch, augment=augment, generator=generator)

    def training_pair(self, batch, *, augment, generator):
        return self.inputs(batch, augment=augment, generator=generator), batch.targets

    def loss(self, outputs, targets):
        return (outputs - targets).square().mean()

    def evaluate(self, predict, split="test", *, limit=None, batch_size=256):
        samples = self.samples(split)
        batch = samples.__getitems__(range(min(limit or len(samples), len(samples))))
        outputs = predict(self.inputs(batch)).cpu()
        return {"nme": float((outputs - batch.targets).square().mean())}


class _Targets:
    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitems__(self, indices):
        import dataclasses

        import torch

        batch = self.samples.__getitems__(indices)
        grid = torch.stack([batch.targets % 4, batch.targets // 4], 1).float() / 4
        return dataclasses.replace(batch, targets=grid.repeat(1, 3))


@pytest.fixture
def points(monkeypatch):
    """The task "points" registered for a test."""
    from trimtab.models.registry import Entry
    from trimtab.models.tasks.task import TaskCard, tasks

    tasks.names()
    monkeypatch.setitem(tasks._entries, "points", Entry("points", _Points, TaskCard(title="Points", data="npz")))


def test_a_task_without_classes_goes_the_whole_road(cli, points, teacher, tiny_npz, tmp_path):
    """Trained, distilled, exported, reported: sizes come from the outputs, words from the metric."""
    data = ["--task", "points", "--data", f"npz:{tiny_npz}"]
    code, out, err = cli("train", "resnet8", *data, *SHORT, "-o", "net")
    assert code == 0, err
    assert "test nme" in out
    made = manifest(tmp_path / "net")
    assert (made["architecture"]["kwargs"]["num_classes"], made["task"]["name"]) == (6, "points")
    line = ["compress", "net", "--student", "resnet8", "--student-arg", "width=0.5", "--objective", "logit-mse"]
    code, out, err = cli(*line, *SHORT, "-o", "small")
    assert code == 0, err
    assert "nme" in out
    other = ["--data", f"npz:{tiny_npz}"]  # other data, and the Bundle still knows what for
    assert set(json.loads(cli("evaluate", "small", *other, "--json")[1])) == {"nme"}
    code, _, err = cli("evaluate", teacher, *data)
    assert code == 2
    assert "the network gives 10 numbers an image, the task 'points'" in err
    (tmp_path / "r.toml").write_text('format = 1\n[[step]]\nkind = "structured"\nmac_ratio = 0.7\n')
    code, out, err = cli("run", "net", "--recipe", "r.toml", "--to", "onnx", "--budget", "1", "-o", "job")
    assert code == 0, err
    assert "top-1" not in out
    page = (tmp_path / "job" / "report.html").read_text()
    assert "Nme on the test set goes from" in page
    assert "nme is not a share of independent hits" in page


def test_weights_and_a_zoo_name_get_the_task_s_number_of_outputs(cli, points, tiny_npz, tmp_path):
    import torch

    from trimtab.models.source import parse

    torch.save(parse("resnet8", {"num_classes": 6, "in_channels": 3}).build().state_dict(), tmp_path / "w.pt")
    network = ["w.pt", "--model", "resnet8", "--data", f"npz:{tiny_npz}"]
    assert cli("evaluate", *network, "--task", "points")[0] == 0
    code, _, err = cli("evaluate", *network)
    assert code == 2
    assert "(10," in err  # built for ten classes, the weights are for six numbers
    np.testing.assert_equal(cli("inspect", *network[:3], "--task", "points")[0], 2)


def test_recipes_ls_lists_presets_and_terms(cli):
    found = json.loads(cli("recipes", "ls", "--json")[1])
    assert {"kd", "kd++", "dist++"} <= {preset["name"] for preset in found["presets"]}
    assert {"kd", "dkd", "nd"} <= {entry["kind"] for entry in found["objectives"]}
    assert {"born-again", "kd++"} <= set(found["recipes"])
    assert "preset kd++" in cli("recipes", "ls")[1]
