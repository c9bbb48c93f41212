"""The recipe step "anomaly-fit": a network on frozen features learns in closed form what normal pictures look like."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ..models.errors import UserError
from .method import Context, MethodCard, MethodConfig, Result, register_method

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..models.contract import Contract
    from ..models.fitting import FitsNormals, Pictures
    from ..models.tasks.task import Task

OPTIONS = ("reduction", "variance", "epsilon", "sampling", "candidates")
"""What only some networks have: those that are left out are the network's own."""


class AnomalyFitConfig(MethodConfig):
    """Whose features, of how many pictures, and what the network itself can choose. Nothing is trained by gradients."""

    kind: Literal["anomaly-fit"] = "anomaly-fit"
    backbone: str = Field(
        "",
        description='where the trained features come from: "efficientnet_lite0" or "mobilenet_v2" (an installed package), NAME:FILE, or '
        "a Bundle's folder; empty = the network's own, from its package",
    )
    stages: tuple[int, ...] = Field((), description="stages of the backbone, 0 = the stem; empty = the network's own")
    batch_size: int = Field(32, ge=1, description="pictures at once")
    max_train: int = Field(0, ge=0, description="fit on the first n training pictures; 0 = all")
    reduction: Literal["none", "pca", "npca"] | None = Field(
        None, description="gaussian_ad: directions kept of each stage, all, the leading or the trailing ones"
    )
    variance: float | None = Field(
        None, gt=0, lt=1, description="gaussian_ad with pca or npca: the leading directions' share of the variance"
    )
    epsilon: float | None = Field(None, gt=0, description="gaussian_ad with per_position: added to each variance")
    sampling: Literal["coreset", "random"] | None = Field(None, description="memory_bank: how the patches are chosen")
    candidates: int | None = Field(None, ge=1, description="memory_bank: patches to choose from")

    def bundles(self) -> tuple[str, ...]:
        """The folder that the features come from."""
        from ..models.bundle import MANIFEST

        return (self.backbone,) if self.backbone and (Path(self.backbone).expanduser() / MANIFEST).exists() else ()

    def files(self) -> tuple[str, ...]:
        """The checkpoint that the features come from."""
        return (self.backbone.partition(":")[2],) if ":" in self.backbone and not self.bundles() else ()


@register_method(
    "anomaly-fit",
    AnomalyFitConfig,
    MethodCard(
        title="Fit gaussian_ad or memory_bank to normal pictures",
        source="Rippel et al., ICPR 2020; Defard et al. (PaDiM), ICPR 2021; Roth et al. (PatchCore), CVPR 2022",
        needs_data=True,
        needs_labels=False,
        changes_structure=True,
        trains=True,
    ),
)
def anomaly_fit(module: nn.Module, task: Task | None, config: AnomalyFitConfig, context: Context) -> Result:
    """The fitted network on trained features, for the task's size of picture; its threshold and mean score on normal validation pictures.

    Raises UserError without anomaly data, for a network that cannot be fitted, for options that it does not have, and for a backbone
    whose weights are not there.
    """
    from ..models.source import Architecture
    from .evaluation import evaluate
    from .runtime import Runtime

    network, task = _fits(module, task)
    runtime = Runtime(context.device, amp="off")
    features = _backbone(network, config)
    runtime.place(features)
    _, _, height, width = task.contract.inputs[0].shape
    options = {name: value for name in OPTIONS if (value := getattr(config, name)) is not None}
    try:
        fit = network.fitted(
            features, _pictures(task, config), size=(int(height), int(width)), seed=context.seed, options=options
        )
    finally:
        features.to("cpu")
    contract = fitting_contract(fit.module.to("cpu").eval(), task.contract)
    found = evaluate(fit.module, task, "val", runtime=runtime)
    name = context.current.manifest.architecture.name
    figures = {
        "backbone": features.source,
        "weights_sha256": features.digest,
        **fit.figures,
        **{f"val_{k}": v for k, v in found.items()},
    }
    return Result(
        fit.module, figures=figures, notes=fit.notes, architecture=Architecture(name=name, kwargs=fit.kwargs), contract=contract
    )


def fitting_contract(module: nn.Module, contract: Contract) -> Contract:
    """The task's contract with the size of the map that `module` really returns."""
    import torch

    inputs = [torch.from_numpy(v) for v in contract.random_inputs(contract.example_dims(), seed=0).values()]
    with torch.no_grad():
        found = module(*inputs)[0]
    spec = contract.outputs[0].model_copy(update={"shape": ("N", 1, int(found.shape[2]), int(found.shape[3]))})
    return contract.model_copy(update={"outputs": (spec, *contract.outputs[1:])})


def _fits(module: nn.Module, task: Task | None) -> tuple[FitsNormals, Task]:
    from ..models.fitting import FitsNormals

    if not isinstance(module, FitsNormals):
        raise UserError(
            f"anomaly-fit cannot fit {type(module).__name__}",
            hint="it fits gaussian_ad and memory_bank; efficientad_s and efficientad_m are trained by the steps pdn-teacher and efficientad",
        )
    if task is None or task.name != "anomaly":
        given = "no data" if task is None else f"the task {task.name}"
        raise UserError(
            f"anomaly-fit needs the task anomaly, this run has {given}", hint="--task anomaly --data elpv, mvtec:DIR, scenes, …"
        )
    return module, task


def _backbone(network: FitsNormals, config: AnomalyFitConfig) -> Any:
    """The trained features: at the stages of the config, else of the network where the backbone is its own, else the backbone's."""
    from ..models.architectures import architectures
    from ..models.backbones import open_backbone

    own = network.features
    text = config.backbone or own.name
    stages = config.stages or (own.stages if text.partition(":")[0] == own.name else None)
    features = open_backbone(text, stages=stages)
    if features.name not in architectures:
        raise UserError(
            f"the backbone {text} is a network of the user's own code, {features.name}",
            hint="a fitted network is rebuilt from stock parts: take a backbone of the zoo",
        )
    return features


def _pictures(task: Task, config: AnomalyFitConfig) -> Pictures:
    samples = task.samples("train")
    count = min(config.max_train or len(samples), len(samples))

    def batches() -> Iterator[Tensor]:
        for start in range(0, count, config.batch_size):
            yield task.inputs(samples.__getitems__(range(start, min(start + config.batch_size, count))))

    return batches
