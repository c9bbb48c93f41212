"""The parameters of the recipe step "lottery". Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ..method import MethodConfig
from ..trainconfig import TrainConfig
from .shape import Pattern

Scenario = Literal["plain", "rank", "gamma-then-rank", "strong-gamma"]

SCENARIOS: dict[Scenario, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "plain": ((1.0,), (0.0,)),
    "rank": ((1.0,), (5.0,)),
    "gamma-then-rank": ((1.0, 5.0), (5.0,)),
    "strong-gamma": ((10.0,), (5.0,)),
}
"""γ and λ by round of the paper's scenarios (its red, blue, black and green curves); the last value goes on."""


@dataclass(frozen=True)
class Emphasis:
    """One round's loss: the weight of critical classes in the cross-entropy, and of the ranking hinge."""

    gamma: float
    rank_weight: float

    @property
    def plain(self) -> bool:
        """Whether this is the task's own loss."""
        return self.gamma == 1 and self.rank_weight == 0


class LotteryConfig(TrainConfig, MethodConfig):
    """Lottery pruning in rounds: train, score, mask, rewind, again. Training parameters hold for every round."""

    kind: Literal["lottery"] = "lottery"
    density: float | None = Field(
        None, gt=0, lt=1, description="weights that are left at the end, as a share; left out: 0.05, or N/M with an N:M pattern"
    )
    prune_share: float = Field(0.5, gt=0, lt=1, description="share of the remaining weights that each round prunes")
    criterion: Literal["magnitude-increase", "magnitude", "movement", "snip", "random"] = Field(
        "magnitude-increase",
        description="what a weight is judged by: |w|-|w0|, |w|, |w-w0|, |gradient*w| before training, or chance",
    )
    scope: Literal["layer", "global"] = Field(
        "layer", description="the same share in every layer, or the lowest scores across the network"
    )
    pattern: str = Field(
        "none", description='"none": single weights; "2:4": 2 of every 4 input channels; "4x1": blocks of 4 outputs by 1 input'
    )
    one_shot: bool = Field(False, description="one pruning to the final density instead of rounds")
    rewind: Literal["start", "none"] = Field(
        "start",
        description="survivors go back to the weights that entered (or to rewind_epoch), or train on from where they are",
    )
    rewind_epoch: float = Field(
        0.0,
        ge=0,
        description="rewind to the weights after so many epochs of the first round; later rounds train the rest; 0 = start",
    )
    biases: bool = Field(False, description="prune biases too, as the paper's released code does")
    keep: tuple[str, ...] = Field((), description="module names whose weights are never pruned")
    snip_images: int = Field(512, ge=1, description="training images whose gradients the snip criterion sums")
    critical: tuple[str, ...] = Field(
        (), description="classes that must not be missed, by name; left out: the task's own, if any"
    )
    scenario: Scenario | None = Field(
        None, description="losses by round; left out: gamma-then-rank with critical classes, plain without"
    )
    critical_weight: tuple[float, ...] = Field(
        (),
        description="gamma: weight of critical classes in the cross-entropy, by round (the last goes on); left out: the scenario's",
    )
    rank_weight: tuple[float, ...] = Field((), description="weight of the ranking hinge by round; left out: the scenario's")
    rank: Literal["sorted", "pairwise", "hardest"] = Field(
        "sorted",
        description="the ranking hinge: against the sorted outputs' boundary, over all pairs, or the code's hardest negative",
    )
    class_weights: Literal["critical", "effective"] = Field(
        "critical",
        description="critical_weight for critical classes and 1 for others, or every class by its effective number where that is not 1",
    )
    beta: float = Field(0.99997, ge=0, lt=1, description="beta of the effective numbers")
    max_fnr_increase: float | None = Field(
        None,
        ge=0,
        le=1,
        description="budget: stop at the first round that misses more positives on validation, and go back one",
    )
    max_fpr: float | None = Field(
        None, gt=0, lt=1, description="false-positive rate of the operating point; left out: the reference's own at argmax"
    )
    reference: Literal["dense", "parent"] = Field(
        "dense",
        description="who sets operating point and budget: the first round (all weights), or the Bundle that entered the recipe",
    )
    control: bool = Field(
        True,
        description="run plain lottery beside it and move its threshold to the same false-positive rate (doubles the time)",
    )

    @field_validator("pattern")
    @classmethod
    def _known(cls, text: str) -> str:
        Pattern.parse(text)
        return text

    @model_validator(mode="after")
    def _agrees(self) -> LotteryConfig:
        if self.rewind_epoch >= self.epochs:
            raise ValueError(f"rewind_epoch {self.rewind_epoch} lies beyond training, which ends after {self.epochs} epochs")
        if self.rewind_epoch and self.rewind == "none":
            raise ValueError('rewind_epoch says where to rewind to, and rewind = "none" says not to')
        if self.rewind_epoch and (self.one_shot and self.criterion in ("snip", "random")):
            raise ValueError(f"{self.criterion} in one shot trains once: there is nothing to rewind")
        if self.warmup_epochs >= self.epochs - self.rewind_epoch:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} must be below the {self.epochs - self.rewind_epoch} epochs after rewinding"
            )
        if Pattern.parse(self.pattern).group and self.density is not None and self.density != self.final_density:
            raise ValueError(f"pattern {self.pattern} leaves {self.final_density:.4g} of the weights: leave density out")
        if any(not g > 0 for g in self.critical_weight) or any(w < 0 for w in self.rank_weight):
            raise ValueError("every critical_weight must be above 0 and every rank_weight 0 or more")
        return self

    @property
    def final_density(self) -> float:
        """The share of weights that is left at the end."""
        pattern = Pattern.parse(self.pattern)
        if pattern.group:
            return pattern.keep / pattern.group
        return 0.05 if self.density is None else self.density

    def emphasis(self, number: int, *, critical: bool) -> Emphasis:
        """The loss of round `number` (0 = the first, with all weights)."""
        gamma, rank = SCENARIOS[self.scenario or ("gamma-then-rank" if critical else "plain")]
        gamma, rank = self.critical_weight or gamma, self.rank_weight or rank
        return Emphasis(gamma[min(number, len(gamma) - 1)], rank[min(number, len(rank) - 1)])

    def training(self, number: int) -> TrainConfig:
        """How round `number` trains: after a rewind to an epoch, the epochs that are left."""
        shorter = {"epochs": self.epochs - self.rewind_epoch} if number and self.rewind_epoch else {}
        fields = {name: getattr(self, name) for name in TrainConfig.model_fields}
        return TrainConfig(**{**fields, **shorter})
