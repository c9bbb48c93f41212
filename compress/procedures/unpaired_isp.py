"""The recipe step "isp": a network learns to develop RAW from mosaics and from pictures that have nothing to do with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from ..method import Context, MethodCard, MethodConfig, Result, register_method
from ..trainconfig import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from ...models.tasks.task import Task

TERMS = ("content", "tv", "texture_shallow", "texture_deep", "colour")
CRITICS = TERMS[2:]


class IspConfig(TrainConfig, MethodConfig):
    """Training of a network that develops RAW, without pairs or with them (Arhire & Timofte, CVPR workshops 2025).

    Without pairs the content is compared with a fixed classical rendering of the same mosaic; texture and colour are judged by three
    critics that know target pictures of other scenes. With pairs the true target is the reference and the critics' real picture;
    with pairs and the three critics off (weights of 0) it is the paper's paired training without adversaries.

    Paper and released code: γ of R1 and R2 is 10 in the paper and the default here; the code multiplies it by 100 more (`penalty=1000`).
    The code's Gaussian in front of the colour critic is √2 times wider than the σ = 3 it names (`blur_sigma=4.243`). The code never
    trains the first linear layer of its texture critics, starts from a checkpoint of unknown origin, and keeps the iterate with the best
    PSNR on pairs; here all layers are trained, the network starts as it comes, and the rule of `isp_selection` chooses.
    """

    kind: Literal["isp"] = "isp"
    mode: Literal["unpaired", "paired"] = Field("unpaired", description="whether the true picture of a mosaic may be looked at")
    content: float = Field(1.0, ge=0, allow_inf_nan=False, description="strength of the content term; 0 = off")
    tv: float = Field(1.0, ge=0, allow_inf_nan=False, description="strength of total variation; 0 = off")
    texture_shallow: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="strength of the shallow texture critic; 0 = off"
    )
    texture_deep: float = Field(1.0, ge=0, allow_inf_nan=False, description="strength of the deep texture critic; 0 = off")
    colour: float = Field(1.0, ge=0, allow_inf_nan=False, description="strength of the colour critic; 0 = off")
    balance: Literal["gradient-norm", "none"] = Field(
        "gradient-norm", description="terms divided by the norm of their own gradient in every step (published), or as they are"
    )
    content_features: str = Field("efficientnet_lite0", description="frozen network of the content term (published: VGG-19)")
    content_stage: int = Field(-1, ge=-1, description="its stage; -1 = the backbone's late one (published: relu5_4)")
    content_channels: Literal["luminance", "rgb"] = Field("luminance", description="CIELab's L (published), or the colours too")
    texture_features: str = Field(
        "efficientnet_lite0", description="frozen network of the texture critics (published: AlexNet)"
    )
    texture_stages: tuple[int, ...] = Field((), description="its shallow and its deep stage; () = the backbone's usual ones")
    colour_features: str = Field("efficientnet_lite0", description="frozen network of the colour critic (published: ViT-B/16)")
    colour_stage: int = Field(-1, ge=-1, description="its stage; -1 = the backbone's late one")
    colour_size: int = Field(0, ge=0, description="side the blurred picture is resized to; 0 = as it is (a ViT wants 224)")
    blur_sigma: float = Field(3.0, gt=0, allow_inf_nan=False, description="σ of the 21×21 Gaussian (the released code: 4.243)")
    penalty: float = Field(10.0, ge=0, allow_inf_nan=False, description="γ of R1 + R2 (the released code: 1000)")
    discriminator_lr: float = Field(1e-5, gt=0, allow_inf_nan=False, description="learning rate of the critics")
    discriminator_width: float = Field(1.0, gt=0, le=8, description="factor on the critics' channels")
    critic_every: int = Field(10, ge=1, description="steps of the network for one of the critics")
    candidates: int = Field(10, ge=1, description="iterates that are judged at the end, evenly over the run")
    judged: int = Field(256, ge=8, description="validation mosaics and target pictures that judge them, at most")
    optimizer: Literal["sgd", "adamw"] = Field(
        "adamw", description="sgd with momentum, or adamw (without decay: Adam, published)"
    )
    lr: float = Field(5e-4, gt=0, allow_inf_nan=False, description="learning rate of the network")
    betas: tuple[float, float] = Field((0.5, 0.9), description="adamw's decay rates of its two moments")
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="pull on the network's weights (adamw: decoupled)")
    schedule: Literal["cosine", "multistep", "constant"] = Field(
        "constant", description="the learning rate's shape over the run"
    )
    amp: Literal["auto", "off", "bf16", "fp16"] = Field("off", description="mixed precision of the network (published: off)")
    batch_size: int = Field(8, ge=1, description="mosaics per step (32 are published; 8 suit a CPU)")

    @model_validator(mode="after")
    def _possible(self) -> IspConfig:
        if not any(self.strengths().values()):
            raise ValueError(f"the strengths of {', '.join(TERMS)} are all 0: set one, such as content = 1")
        stages = self.texture_stages
        if stages and (len(stages) != 2 or not 0 <= stages[0] < stages[1]):
            raise ValueError(f"texture_stages {list(stages)} must be two, rising, from 0: the shallow and the deep stage")
        return self

    def strengths(self) -> dict[str, float]:
        """The strength of every term by name."""
        return {name: getattr(self, name) for name in TERMS}

    @property
    def colour_blind(self) -> bool:
        """Whether no term of the run sees colours, which are then left to chance (total variation only evens them out)."""
        return not self.colour and (self.content_channels == "luminance" or not self.content)

    def bundles(self) -> tuple[str, ...]:
        """See MethodConfig: the backbones that are Bundles."""
        return tuple(text for text in self._backbones() if ":" not in text and Path(text).expanduser().is_dir())

    def files(self) -> tuple[str, ...]:
        """See MethodConfig: the checkpoints of backbones."""
        return tuple(text.partition(":")[2] for text in self._backbones() if ":" in text)

    def _backbones(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.content_features, self.texture_features, self.colour_features)))


@register_method(
    "isp",
    IspConfig,
    MethodCard(
        title="Train an ISP network without pairs",
        source="Arhire, Timofte: Learned Lightweight Smartphone ISP with Unpaired Data, CVPR workshops 2025",
        needs_data=True,
        needs_labels=False,
        changes_structure=False,
        trains=True,
    ),
)
def isp(module: nn.Module, task: Task | None, config: IspConfig, context: Context) -> Result:
    """The module with the weights of the iterate that the rule chose, its terms, norms, critics and selection in the figures.

    Raises UserError without data, for a task that isn't `isp`, for the paired mode on data without pairs, for patches that are too
    small, more than one process, and a term that is no longer finite (named; the last finite state is kept).
    """
    from .isp_run import checked, run

    return run(module, checked(task, config), config, context)
