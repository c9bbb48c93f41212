"""The recipe step "mae": a vision transformer learns from images alone, by filling in the patches it is not shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ...models.errors import UserError
from ..method import Context, MethodCard, MethodConfig, Result, register_method
from ..trainconfig import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...models.tasks.task import Task
    from ..runtime import Runtime
    from ..train import TrainBatch
    from .masked_autoencoder import MaskedAutoencoder


class MaeConfig(TrainConfig, MethodConfig):
    """Masked-autoencoder pre-training of a vision transformer."""

    kind: Literal["mae"] = "mae"
    mask_ratio: float = Field(0.75, gt=0, lt=1, description="share of the patches that are hidden from the encoder")
    decoder_dim: int = Field(
        64, ge=16, multiple_of=16, description="width of the decoder, which is dropped afterwards (512 is published for ViT-L)"
    )
    decoder_depth: int = Field(2, ge=1, description="blocks of the decoder (8 are published for ViT-L)")
    norm_pixels: bool = Field(
        True, description="every patch's pixels are normalised to mean 0 and variance 1 before they are guessed"
    )
    optimizer: Literal["sgd", "adamw"] = Field("adamw", description="sgd with momentum, or adamw (published)")
    lr: float = Field(1e-3, gt=0, allow_inf_nan=False, description="peak learning rate")
    weight_decay: float = Field(0.05, ge=0, allow_inf_nan=False, description="pull on the weights (adamw: decoupled)")
    epochs: float = Field(50.0, gt=0, allow_inf_nan=False, description="passes over the training images (800 are published)")
    warmup_epochs: float = Field(0.5, ge=0, description="epochs over which the learning rate rises linearly; below `epochs`")
    clip_norm: float = Field(1.0, ge=0, allow_inf_nan=False, description="largest L2 norm of the whole gradient; 0 = off")


@register_method(
    "mae",
    MaeConfig,
    MethodCard(
        title="Pre-train a vision transformer by masked autoencoding",
        source="He et al.: Masked Autoencoders Are Scalable Vision Learners, CVPR 2022",
        needs_data=True,
        needs_labels=False,
        changes_structure=False,
        trains=True,
    ),
)
def mae(module: nn.Module, task: Task | None, config: MaeConfig, context: Context) -> Result:
    """The module after pre-training, its decoder dropped and its classifier as it was, with the masked loss before and after.

    Raises UserError for a network that is no vision transformer with timm's attribute names, and for images that are not the
    size it was built for.
    """
    if task is None:
        raise UserError(
            "mae needs images, and this run has none", hint="add --data fashion-mnist, folder:PATH, … or take the step out"
        )
    import torch

    from ...models.bundle import bare
    from ..sampling import derived_seed
    from ..train import fit, runtime_for
    from .masked_autoencoder import MaskedAutoencoder

    spec = task.contract.inputs[0]
    if spec.layout != "NCHW":
        raise UserError(f"mae wants images, and the task's input is {spec.layout}", hint="take a task on images")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(context.seed, "mae decoder"))
        net = MaskedAutoencoder(
            bare(module),
            image=tuple(int(side) for side in spec.shape[1:]),
            mask_ratio=config.mask_ratio,
            decoder_dim=config.decoder_dim,
            decoder_depth=config.decoder_depth,
            norm_pixels=config.norm_pixels,
        )
    runtime = runtime_for(config, context)

    def objective(network: nn.Module, batch: TrainBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return net.loss(batch.inputs, network(batch.inputs)), {}

    def evaluator(_: nn.Module) -> dict[str, float]:
        return runtime.from_main(masked_figures(net, task, runtime=runtime, limit=config.max_eval, seed=context.seed))

    before = evaluator(net)
    with net.only_trained_parts():
        history = fit(
            net, task, config, objective=objective, context=context, label="mae", runtime=runtime, evaluator=evaluator
        )
    figures = {"val_before": before, "val_after": history.val, "history": history.as_dict()}
    note = "mae trained the transformer's tokens, not its classifier: a step with labels (finetune, distill) has to follow"
    return Result(module.eval(), figures=figures, notes=(note, *history.notes))


def masked_figures(
    net: MaskedAutoencoder, task: Task, *, runtime: Runtime, limit: int = 0, seed: int = 0, batch_size: int = 256
) -> dict[str, float]:
    """{"masked_loss", "masked_explained"} over the first `limit` (0: all) validation images, hidden patches drawn from `seed`.

    masked_explained = 1 − masked_loss / mean square of the targets: 0 for guessing every pixel as its patch's (norm_pixels) or the
    data's mean, 1 for a perfect guess. In eval mode and float32; raises UserError for an empty split.
    """
    import torch

    from ..distill.taps import evaluating
    from ..runtime import home_of
    from ..sampling import derived_seed

    samples = task.samples("val")
    count = min(limit or len(samples), len(samples))
    if count == 0:
        raise UserError(f"the validation split of {task.data!r} is empty", hint="check the data set's path and how it is split")
    generator = torch.Generator().manual_seed(derived_seed(seed, "mae validation"))
    home = home_of(net)
    error = power = 0.0
    runtime.place(net)
    with evaluating(net), torch.inference_mode(), torch.autocast(runtime.device.type, enabled=False):
        for start in range(0, count, batch_size):
            raw = samples.__getitems__(range(start, min(start + batch_size, count))).to(runtime.device)
            images = runtime.layout(task.inputs(raw))
            noise = torch.rand(len(images), net.patches, generator=generator).to(runtime.device)
            seen = net(images, noise)
            error += len(images) * float(net.loss(images, seen))
            power += len(images) * float(net.loss(images, {**seen, "prediction": torch.zeros_like(seen["prediction"])}))
    net.to(home)
    return {"masked_loss": error / count, "masked_explained": 1 - error / power if power else 0.0}
