"""The recipe step "efficientad": a student learns to imitate its teacher on normal pictures, and so fails on others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ...models.errors import UserError
from ..method import Context, MethodCard, MethodConfig, Result, register_method
from ..trainconfig import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...models.source import Architecture
    from ...models.tasks.task import Task
    from ..runtime import Runtime
    from ..train import TrainBatch

log = logging.getLogger("trimtab")
PARTS = ("teacher", "student", "autoencoder", "raw_maps", "describe", "q_st", "q_ae")
TEXTURES = "textures"


class EfficientadConfig(TrainConfig, MethodConfig):
    """Training of EfficientAD's student and autoencoder on normal pictures."""

    kind: Literal["efficientad"] = "efficientad"
    p_hard: float = Field(
        0.999, ge=0, lt=1, description="the student learns from the elements above this quantile of its error; 0 = from all"
    )
    penalty: str = Field(
        TEXTURES,
        description="pictures that it shall not learn to imitate: textures (made by code), photos:DIR, folder:DIR, … "
        "(ImageNet's are published); empty = none",
    )
    autoencoder: bool = Field(
        True, description="train the branch for parts in the wrong place; false takes it out of the network"
    )
    normalisation: Literal["quantile", "gaussian"] = Field(
        "quantile",
        description="how both maps are brought to one scale on validation pictures: by quantiles (published) or mean and std",
    )
    iterations: int = Field(0, ge=0, description="training steps; 0 = as `epochs` says (70000 of batch_size 1 are published)")
    l2: float = Field(
        1e-5, ge=0, allow_inf_nan=False, description="pull on all weights, within the loss, as Adam's weight_decay"
    )
    optimizer: Literal["sgd", "adamw"] = Field("adamw", description="adamw with weight_decay 0 is Adam (published)")
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="decoupled; see l2 for the published kind")
    lr: float = Field(1e-4, gt=0, allow_inf_nan=False, description="learning rate")
    epochs: float = Field(20.0, gt=0, allow_inf_nan=False, description="passes over the training pictures")
    batch_size: int = Field(1, ge=1, description="pictures per step (1 is published)")
    schedule: Literal["cosine", "multistep", "constant"] = Field(
        "multistep", description="the learning rate's shape over the run"
    )
    milestones: tuple[float, ...] = Field((0.95,), description="multistep: fractions of the run, rising, within (0, 1)")
    amp: Literal["auto", "off", "bf16", "fp16"] = Field(
        "off", description="mixed precision; differences of features want float32"
    )
    augment: bool = Field(False, description="the task's augmentation of training images (none is published)")


@register_method(
    "efficientad",
    EfficientadConfig,
    MethodCard(
        title="Train EfficientAD's student and autoencoder on normal pictures",
        source="Batzner, Heckler, König: EfficientAD, WACV 2024",
        needs_data=True,
        needs_labels=False,
        changes_structure=False,
        trains=True,
    ),
)
def efficientad(module: nn.Module, task: Task | None, config: EfficientadConfig, context: Context) -> Result:
    """The network with student and autoencoder trained, the teacher's statistics and the maps' scale set; the teacher is as it was.

    Raises UserError for a network of another kind, pictures of another size, a training or validation split that holds anomalies,
    features or maps that do not vary, and a loss that is no longer finite (naming its term).
    """
    if task is None:
        raise UserError("efficientad needs data, and this run has none", hint="add --data mvtec:DIR, elpv, scenes, …")
    from ...models.bundle import bare
    from ..train import fit, runtime_for
    from .efficientad_calibrate import anchors, batches_of, channel_statistics, map_values
    from .efficientad_lesson import Lesson
    from .iterations import over

    net = as_efficientad(bare(module))
    notes, architecture = [], None
    if not config.autoencoder and net.autoencoder is not None:
        architecture = _smaller(context)
        net = module = net.without_autoencoder()
    check_pictures(task, net)
    runtime = runtime_for(config, context)
    strange, about, content = penalty_pictures(config.penalty, net.size)
    runtime.place(net)
    net.eval()
    mean, std = channel_statistics(lambda x: net.teacher.features(net.norm(x)), batches_of(task, "train", runtime=runtime))
    net.teacher_mean.copy_(mean)
    net.teacher_std.copy_(std)
    lesson = Lesson(net, p_hard=config.p_hard, l2=config.l2)
    if lesson.few:
        notes.append(lesson.few)
        log.warning("efficientad: %s", lesson.few)
    run, total = over(config, len(task.samples("train")))

    def objective(network: nn.Module, batch: TrainBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return lesson.loss(network, batch.inputs, strange(len(batch.inputs)) if strange is not None else None)

    def evaluator(_: nn.Module) -> dict[str, float]:
        return runtime.from_main(_mean_maps(net, task, runtime, config.max_eval))

    lesson.frozen_teacher()
    history = fit(
        lesson,
        task,
        run,
        objective=objective,
        context=context,
        label="efficientad",
        identity={"penalty": content},
        runtime=runtime,
        evaluator=evaluator,
    )
    runtime.place(net)
    values = map_values(net.eval(), task, "val", runtime=runtime)
    for buffer, name, found in zip((net.q_st, net.q_ae), ("M_ST", "M_AE"), values, strict=False):
        buffer.copy_(buffer.new_tensor(anchors(found, config.normalisation, name=name)))
    net.to("cpu")
    figures: dict[str, Any] = {
        "val_after": history.val,
        "iterations": total,
        "penalty": about,
        "hard_elements": lesson.hard_elements,
        "normalisation": config.normalisation,
        "q_st": net.q_st.tolist(),
        "q_ae": net.q_ae.tolist() if net.autoencoder is not None else None,
        "history": history.as_dict(),
    }
    notes += [*_untaught(context), *_short(total, config.batch_size), *history.notes]
    return Result(module.eval(), figures=figures, notes=tuple(notes), architecture=architecture)


def as_efficientad(module: nn.Module) -> Any:
    """`module`, which has a teacher, a student and EfficientAD's maps. Raises UserError naming what it lacks."""
    lacks = [name for name in PARTS if not hasattr(module, name)]
    if lacks:
        raise UserError(
            f"efficientad trains an EfficientAD network; {type(module).__name__} lacks {', '.join(lacks)}",
            hint="take efficientad_s or efficientad_m",
        )
    return module


def check_pictures(task: Task, net: Any) -> None:
    """None, when the task's pictures are this network's and all normal. Raises UserError otherwise."""
    from ..evaluation import targets_of

    check_input(task, net.size)
    for split in ("train", "val"):
        odd = int((targets_of(task, split) != 0).sum())
        if odd:
            raise UserError(
                f"the {split} split of {task.data!r} holds {odd} pictures that are not normal (target other than 0)",
                hint="EfficientAD learns from normal pictures alone: take the task anomaly, with defects in the test split only",
            )


def check_input(task: Task, size: tuple[int, int] | None) -> tuple[int, int]:
    """(H, W) of the task's pictures: three channels in 0…1, of `size` where given. Raises UserError otherwise, and below a PDN's patch."""
    from ...models.patches import sides

    spec = task.contract.inputs[0]
    if spec.layout != "NCHW" or spec.shape[1] != 3 or not all(isinstance(side, int) for side in spec.shape[2:]):
        raise UserError(
            f"a PDN wants pictures (N, 3, H, W); this task's are {spec.layout} {spec.shape}", hint="take the task anomaly"
        )
    if spec.mean:
        raise UserError(
            "the network normalises its pictures itself, and this task normalises them too", hint="take the task anomaly"
        )
    height, width = int(spec.shape[2]), int(spec.shape[3])
    if size is not None and size != (height, width):
        raise UserError(
            f"the network was built for {size[0]}×{size[1]}, and the pictures are {height}×{width}",
            hint=f"build it for these: --model-arg image_size={height}, or give --size {size[0]}",
        )
    return sides((height, width))


def penalty_pictures(text: str, size: tuple[int, int]) -> tuple[Callable[[int], Tensor] | None, str, str]:
    """(count → pictures float32 (count, 3, H, W), or None; what they are; the digest of their content) for the option `penalty`."""
    from .pictures import open_pictures
    from .textures import textures

    if not text:
        return None, "none", ""
    if text == TEXTURES:
        return (
            (lambda count: textures(count, size)),
            "textures made by code, in place of the paper's ImageNet pictures",
            TEXTURES,
        )
    found = open_pictures(text, size, what="penalty")
    return found.drawn, found.about, found.content


def _mean_maps(net: Any, task: Task, runtime: Runtime, limit: int) -> dict[str, float]:
    """{"st", "ae"}: the mean of either map over validation pictures."""
    from ..distill.taps import evaluating
    from .efficientad_calibrate import map_values

    with evaluating(net):
        values = map_values(net, task, "val", runtime=runtime, limit=limit)
    return {name: float(found.mean(dtype="float64")) for name, found in zip(("st", "ae"), values, strict=False)}


def _smaller(context: Context) -> Architecture:
    """The entering network's architecture without its autoencoder. Raises UserError when its structure was changed before."""
    manifest = context.current.manifest
    if manifest.plan.get("edits"):
        raise UserError(
            "autoencoder = false rebuilds the network, and this one was cut before", hint="put the step before those that cut"
        )
    known = manifest.architecture
    return known.model_copy(update={"kwargs": {**known.kwargs, "autoencoder": False}})


def _untaught(context: Context) -> list[str]:
    manifest = getattr(context.current, "manifest", None)
    if manifest is None or any(entry.step == "pdn-teacher" for entry in manifest.lineage):
        return []
    return ["no step pdn-teacher trained this network's teacher: a random one knows little of pictures"]


def _short(total: int, batch: int) -> list[str]:
    return (
        [f"{total} steps of {batch} (70 000 of 1 are published): iterations = 70000 trains as long"]
        if total * batch < 70_000
        else []
    )
