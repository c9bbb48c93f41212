"""The recipe step "route": branches of different size, of which the smallest that suffices answers for each input."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from ...models.errors import UserError
from ..method import Context, MethodCard, MethodConfig, Result, register_method
from ..trainconfig import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from ...models.tasks.task import Task

MOST = 8
"""Branches at most."""


class RouteConfig(TrainConfig, MethodConfig):
    """Branches, the rule that picks one, and how both are trained. `epochs` are the branches'."""

    kind: Literal["route"] = "route"
    by: Literal["difficulty", "masks", "classes"] = Field(
        "difficulty",
        description='what branches differ by: their size ("difficulty"), or at equal size the channels of inputs that fire alike '
        '("masks") or of classes that do ("classes")',
    )
    ratios: tuple[float, ...] = Field(
        (0.1, 0.35, 1.0), description="MACs of the branches, smallest first, as shares of the network that enters the step"
    )
    ratio: float = Field(0.35, gt=0, lt=1, description='MACs of every branch, with by = "masks" or "classes"')
    clusters: int = Field(4, ge=2, le=MOST, description='number of branches, with by = "masks" or "classes"')
    mass: float = Field(
        0.9, gt=0, le=1, description="a sample needs the channels that carry this share of a layer's activation mass"
    )
    rule: Literal["cascade", "router"] = Field(
        "cascade",
        description='"cascade": each branch is run until one is sure; "router": a small predictor picks one at once '
        "(clusters are always picked at once)",
    )
    nested: bool = Field(False, description="smaller branches are slices of the largest one's weights; all train them")
    shared: tuple[str, ...] = Field(
        (), description="module names that all branches use whole; those at the network's start are computed once"
    )
    scope: Literal["global", "layer"] = Field(
        "global", description="rank channels across the network, or the same share everywhere"
    )
    round_to: int = Field(4, ge=1, le=256, description="kept channels are a multiple of this; 1 turns rounding off")
    max_ratio: float = Field(0.9, gt=0, lt=1, description="no layer loses more than this share of its channels")
    importance: Literal["l1", "l2", "bn-scale", "taylor", "activity"] | None = Field(
        None,
        description='what ranks channels, as in structured; "activity": how often their gates have them on, or their share of the '
        "activation mass; left out: activity for a gated network, l2 for any other",
    )
    score_images: int = Field(2048, ge=32, description="training images that channels are ranked by (taylor, activity)")
    train_largest: bool | None = Field(
        None, description="train the largest branch too; left out: unless it is the network as it was, whole and trained"
    )
    distill_weight: float = Field(
        0.3, ge=0, allow_inf_nan=False, description="weight of distillation from the parent beside the labels' 1; 0 = off"
    )
    temperature: float = Field(
        4.0, gt=0, allow_inf_nan=False, description="softening of both distributions, in units of logits"
    )
    router_at: str = Field("", description="module whose output the router reads (in or below a shared one); empty = the input")
    router_width: int = Field(8, ge=1, le=256, description="channels of the router's first layer")
    router_pool: int = Field(2, ge=1, le=32, description="the router averages its input over so many pixels a side first")
    router_epochs: float = Field(4.0, gt=0, allow_inf_nan=False, description="passes of the router over the training images")
    router_lr: float = Field(0.005, gt=0, allow_inf_nan=False, description="the router's learning rate (adamw)")
    signal: Literal["suffices", "mass", "both"] = Field(
        "suffices",
        description='what a router learns: whether a branch suffices, how few channels an input needs ("mass"), or both',
    )
    joint_epochs: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="passes in which branches see the inputs routed to them: half with the router fixed, half with it",
    )
    max_accuracy_drop: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="thresholds are the cheapest that stay within this of the largest branch on validation data; 0.005 if left out",
    )
    target_mac_ratio: float | None = Field(
        None, gt=0, description="or the most accurate thresholds that cost at most this share of the MACs on average"
    )

    @property
    def count(self) -> int:
        """The number of branches."""
        return len(self.ratios) if self.by == "difficulty" else self.clusters

    @model_validator(mode="after")
    def _branches(self) -> RouteConfig:
        if not 2 <= len(self.ratios) <= MOST:
            raise ValueError(f"ratios has {len(self.ratios)} values: there are 2 to {MOST} branches, one for each")
        if bad := [r for r in self.ratios if not 0 < r <= 1]:
            raise ValueError(f"ratios has {bad[0]:g}: a share of the network's MACs is above 0 and at most 1")
        if any(a >= b for a, b in pairwise(self.ratios)):
            raise ValueError(f"ratios {self.ratios} must rise: write {tuple(sorted(set(self.ratios)))}")
        if self.max_accuracy_drop is not None and self.target_mac_ratio is not None:
            raise ValueError("max_accuracy_drop and target_mac_ratio are two targets: leave one out")
        if self.router_at and not any(self.router_at == s or self.router_at.startswith(f"{s}.") for s in self.shared):
            raise ValueError(
                f"router_at {self.router_at!r} is not in a shared module: its features would be computed for the router alone; "
                f'write shared = ["{self.router_at}"], or let the router read the input'
            )
        return self

    @model_validator(mode="after")
    def _rules(self) -> RouteConfig:
        whole = self.by == "difficulty" and self.ratios[-1] == 1
        if self.train_largest is False and (self.nested or not whole):
            why = "nested branches learn through its weights" if self.nested else "it is cut, and unfit until it is trained"
            raise ValueError(f"train_largest = false leaves the largest branch as it is: {why}")
        if self.by != "difficulty":
            unfit = [
                name
                for name, given in (
                    ("rule", self.rule != "cascade"),
                    ("nested", self.nested),
                    ("ratios", "ratios" in self.model_fields_set),
                    ("importance", self.importance is not None),
                    ("signal", self.signal != "suffices"),
                    ("max_accuracy_drop", self.max_accuracy_drop is not None),
                    ("target_mac_ratio", self.target_mac_ratio is not None),
                )
                if given
            ]
            if unfit:
                raise ValueError(
                    f'{unfit[0]} goes with by = "difficulty": clusters have one size (ratio), and a predictor picks one'
                )
        elif self.rule == "cascade" and self.joint_epochs:
            raise ValueError(f'joint_epochs {self.joint_epochs:g} is for a router: a cascade has none (rule = "router")')
        return self


@register_method(
    "route",
    RouteConfig,
    MethodCard(
        title="Branches of different size, routed by difficulty (dynamic pruning that runs fast)",
        source="Bolukbasi et al., Adaptive Neural Networks for Efficient Inference, ICML 2017; Yu et al., Slimmable Networks, "
        "ICLR 2019; masks as in Elkerdawy et al., CVPR 2022",
        needs_data=True,
        needs_labels=True,
        changes_structure=True,
        trains=True,
    ),
)
def route(module: nn.Module, task: Task | None, config: RouteConfig, context: Context) -> Result:
    """The routed network, its thresholds calibrated on validation data, with every branch alone as its control.

    A gated network gives its masks as the measure of channels and leaves its gates behind. Raises UserError without data, for a
    network that is routed already, for ratios and targets out of reach, and when a task without classes is to be routed by
    difficulty.
    """
    if task is None:
        raise UserError("route needs data, and this run has none", hint="add --data fashion-mnist, folder:PATH, …")
    from .run import Run

    return Run(module, task, config, context, context.current).result()
