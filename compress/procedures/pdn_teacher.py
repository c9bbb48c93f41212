"""The recipe step "pdn-teacher": a patch description network learns to say what a large frozen network says of every patch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ...models.errors import UserError
from ..method import Context, MethodCard, MethodConfig, Result, register_method
from ..trainconfig import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...models.contract import Contract
    from ...models.tasks.task import Task
    from ..train import TrainBatch
    from .teacher_targets import Targets


class PdnTeacherConfig(TrainConfig, MethodConfig):
    """Distillation of a frozen backbone into a patch description network."""

    kind: Literal["pdn-teacher"] = "pdn-teacher"
    backbone: str = Field(
        "efficientnet_lite0",
        min_length=1,
        description="the network to learn from: efficientnet_lite0, mobilenet_v2, NAME:FILE (wide_resnet101_2:FILE is published) or a Bundle",
    )
    stages: tuple[int, ...] = Field((), description="its stages; empty = the deepest of stride 8 and of stride 16")
    images: str = Field(
        "",
        description="pictures to learn on: photos:DIR, folder:DIR, … (ImageNet is published); empty = the task's training pictures",
    )
    scale: float = Field(
        2.0, gt=0, le=8, description="how much larger the backbone sees each picture (512 for 256 is published)"
    )
    pooled: int = Field(
        1024, ge=1, description="numbers per stage and place, before they are averaged to the network's channels"
    )
    grey: float = Field(0.1, ge=0, le=1, description="share of pictures shown without colour")
    statistics: int = Field(10_000, ge=1, description="training pictures that the features are standardised by, at most")
    cache_mb: int = Field(1024, ge=0, description="memory for targets computed once instead of at every step; 0 = none")
    iterations: int = Field(0, ge=0, description="training steps; 0 = as `epochs` says (60000 of batch_size 16 are published)")
    l2: float = Field(
        1e-5, ge=0, allow_inf_nan=False, description="pull on all weights, within the loss, as Adam's weight_decay"
    )
    optimizer: Literal["sgd", "adamw"] = Field("adamw", description="adamw with weight_decay 0 is Adam (published)")
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="decoupled; see l2 for the published kind")
    lr: float = Field(1e-4, gt=0, allow_inf_nan=False, description="learning rate")
    epochs: float = Field(100.0, gt=0, allow_inf_nan=False, description="passes over the pictures")
    batch_size: int = Field(16, ge=1, description="pictures per step (16 is published)")
    schedule: Literal["cosine", "multistep", "constant"] = Field(
        "constant", description="the learning rate's shape over the run"
    )
    amp: Literal["auto", "off", "bf16", "fp16"] = Field("off", description="mixed precision")
    augment: bool = Field(False, description="the task's augmentation of training images (none is published)")

    def bundles(self) -> tuple[str, ...]:
        """The backbone, where it is a Bundle."""
        return (self.backbone,) if (Path(self.backbone).expanduser() / "bundle.json").exists() else ()

    def files(self) -> tuple[str, ...]:
        """The backbone's weights, where they are a file of the user's."""
        file = self.backbone.partition(":")[2]
        return (file,) if file else ()


@register_method(
    "pdn-teacher",
    PdnTeacherConfig,
    MethodCard(
        title="Distil a frozen backbone into a patch description network",
        source="Batzner, Heckler, König: EfficientAD, WACV 2024, section 3.1",
        needs_data=True,
        needs_labels=False,
        changes_structure=False,
        trains=True,
    ),
)
def pdn_teacher(module: nn.Module, task: Task | None, config: PdnTeacherConfig, context: Context) -> Result:
    """The module with its teacher (or itself, where it is a bare PDN) trained, with the error before and after on validation pictures.

    The targets are standardised, so an error of 1 is that of a network which always says the mean. Raises UserError for a network
    without a PDN, pictures below its receptive field, a backbone whose weights are missing, and features that do not vary.
    """
    if task is None:
        raise UserError("pdn-teacher needs data, and this run has none", hint="add --data mvtec:DIR, elpv, photos:DIR, …")
    import torch

    from ...models.bundle import bare
    from ..train import fit, runtime_for
    from .efficientad import check_input
    from .iterations import over
    from .patch_features import open_features
    from .pictures import PictureTask, open_pictures
    from .teacher_targets import grey_of

    net = pdn_of(bare(module))
    size = check_input(task, getattr(bare(module), "size", None))
    runtime = runtime_for(config, context)
    features = open_features(config.backbone, stages=config.stages, pooled=config.pooled, out_channels=net.out_channels)
    runtime.place(features)
    shown: Any = task
    if config.images:
        large = (round(size[0] * config.scale), round(size[1] * config.scale))
        shown = PictureTask(task, open_pictures(config.images, large, what="images"))
    count = len(shown.samples("train"))
    run, total = over(config, count)
    targets, kept = _targets(config, shown, net, features, size=size, shown_in_all=total * config.batch_size, runtime=runtime)

    def objective(network: nn.Module, batch: TrainBatch) -> tuple[Tensor, dict[str, Tensor]]:
        without = torch.rand(len(batch.inputs)).to(batch.inputs.device) < config.grey
        seen = torch.where(without[:, None, None, None], grey_of(batch.inputs), batch.inputs)
        wanted = targets.stored(batch.index, without) if kept else targets.of(seen)
        error = (network(targets.small(seen)) - wanted).square().mean()
        if not config.l2:
            return error, {"mse": error}
        pull = 0.5 * config.l2 * torch.stack([p.square().sum() for p in net.parameters()]).sum()
        return error + pull, {"mse": error, "l2": pull}

    def evaluator(_: nn.Module) -> dict[str, float]:
        return runtime.from_main(_errors(net, targets, task, limit=config.max_eval))

    net.requires_grad_(True)
    with net.padded():
        before = evaluator(net)
        history = fit(
            net,
            shown,
            run,
            objective=objective,
            context=context,
            label="pdn-teacher",
            identity={
                "backbone": features.backbone.digest or features.backbone.source,
                "stages": list(features.backbone.stages),
            },
            runtime=runtime,
            evaluator=evaluator,
        )
    bare_pdn = net is bare(module)
    net.requires_grad_(bare_pdn)
    figures = {
        "val_before": before,
        "val_after": history.val,
        "iterations": total,
        "backbone": features.backbone.source,
        "backbone_sha256": features.backbone.digest,
        "images": shown.data if config.images else f"the task's training pictures ({count})",
        "history": history.as_dict(),
    }
    notes = (*_said(config, total), *history.notes)
    return Result(module.eval(), figures=figures, notes=notes, contract=_contract(task, net, size) if bare_pdn else None)


def pdn_of(module: nn.Module) -> Any:
    """The patch description network that `module` is or has as its teacher. Raises UserError when there is none."""
    net = getattr(module, "teacher", module)
    if not all(hasattr(net, name) for name in ("padded", "features", "out_channels")):
        raise UserError(
            f"pdn-teacher trains a patch description network, and {type(module).__name__} neither is one nor has one as teacher",
            hint="take pdn_small, pdn_medium, efficientad_s or efficientad_m",
        )
    return net


def _targets(
    config: PdnTeacherConfig, task: Any, net: Any, features: Any, *, size: tuple[int, int], shown_in_all: int, runtime: Any
) -> tuple[Targets, bool]:
    """(the targets, fitted; whether they are kept): kept where that saves passes of the backbone and fits into `cache_mb`."""
    import torch

    from .teacher_targets import Targets

    runtime.place(net)
    with net.padded(), torch.no_grad():
        height, width = net(torch.zeros(1, 3, *size, device=runtime.device)).shape[2:]
    targets = Targets(features, size=size, map_size=(height, width), scale=config.scale, runtime=runtime)
    count, versions = len(task.samples("train")), 2 if config.grey > 0 else 1
    needed = 2 * count * versions * net.out_channels * height * width
    keep = needed <= config.cache_mb * 2**20 and count * versions <= shown_in_all and count <= config.statistics
    targets.fitted(task, limit=config.statistics, keep=keep, grey=versions > 1)
    return targets, keep


def _errors(net: Any, targets: Targets, task: Task, *, limit: int) -> dict[str, float]:
    """{"mse"} of the network's features over the first `limit` (0: all) validation pictures."""
    import torch

    from ..distill.taps import evaluating
    from .efficientad_calibrate import batches_of

    targets.runtime.place(net)
    total, places = 0.0, 0
    with evaluating(net), torch.no_grad():
        for images in batches_of(task, "val", runtime=targets.runtime, limit=limit):
            error = (net(images) - targets.of(images)).square()
            total, places = total + float(error.sum(dtype=torch.float64)), places + error.numel()
    return {"mse": total / places}


def _contract(task: Task, net: Any, size: tuple[int, int]) -> Contract:
    """Pictures as the task has them → "features" (N, C, h, w)."""
    import torch

    from ...models.contract import Contract, TensorSpec

    with torch.no_grad():
        shape = net(torch.zeros(1, 3, *size)).shape
    return Contract(inputs=task.contract.inputs, outputs=(TensorSpec(name="features", shape=("N", *shape[1:]), layout="NCHW"),))


def _said(config: PdnTeacherConfig, total: int) -> list[str]:
    said = []
    if total * config.batch_size < 960_000:
        said.append(f"{total} steps of {config.batch_size} (60 000 of 16 are published): iterations = 60000 trains as long")
    if not config.backbone.startswith("wide_resnet101_2"):
        said.append(f"the teacher learned from {config.backbone}, the published one from a Wide ResNet-101-2")
    return said
