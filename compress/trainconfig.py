"""The parameters of a training run. Imports no torch: recipes are validated before anything heavy is loaded."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_SPEED_ONLY = frozenset({"checkpoint_s", "workers"})
"""Fields that change how a run is carried out, never what it computes."""


def _usual_betas(value: object) -> bool:
    return value == (0.9, 0.999)  # absent where they are the usual ones: the identities of older runs and recipes stay


class TrainConfig(BaseModel):
    """How a network is trained. Methods that train inherit these fields. Frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: float = Field(10.0, gt=0, allow_inf_nan=False, description="passes over the training samples; 0.5 is half a pass")
    batch_size: int = Field(128, ge=1, description="images per step, over all processes together")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd with momentum, or adamw")
    lr: float = Field(0.05, gt=0, allow_inf_nan=False, description="peak learning rate (adamw wants about 0.001)")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only")
    nesterov: bool = Field(True, description="sgd only; needs momentum > 0")
    betas: tuple[float, float] = Field(
        (0.9, 0.999),
        exclude_if=_usual_betas,
        description="adamw only: decay rates of its two moments, each in 0 … 1 (1 excluded)",
    )
    weight_decay: float = Field(5e-4, ge=0, allow_inf_nan=False, description="L2 pull on the weights (adamw: decoupled)")
    decay_norm_bias: bool = Field(False, description="also decay biases and normalisation parameters (everything below 2-D)")
    schedule: Literal["cosine", "multistep", "constant"] = Field("cosine", description="the learning rate's shape over the run")
    milestones: tuple[float, ...] = Field((0.5, 0.75), description="multistep: fractions of the run, rising, within (0, 1)")
    gamma: float = Field(0.1, gt=0, le=1, description="multistep: the factor at each milestone")
    warmup_epochs: float = Field(0.0, ge=0, description="epochs over which the learning rate rises linearly; below `epochs`")
    clip_norm: float = Field(0.0, ge=0, allow_inf_nan=False, description="largest L2 norm of the whole gradient; 0 = off")
    amp: Literal["auto", "off", "bf16", "fp16"] = Field(
        "auto", description="mixed precision; auto = bf16 (else fp16) on a GPU, bf16 on a CPU with native bf16, else off"
    )
    augment: bool = Field(True, description="the task's augmentation of training images")
    max_train: int = Field(0, ge=0, description="train on the first n of a seeded permutation; 0 = all")
    max_eval: int = Field(0, ge=0, description="measure on the first n validation samples during training; 0 = all")
    channels_last: bool = Field(True, description="NHWC memory order, the faster one for convolutions")
    workers: int = Field(0, ge=0, description="processes that read samples; 0 = in the training process")
    checkpoint_s: float = Field(30.0, ge=0, description="seconds between checkpoints; 0 = after every step")
    evaluate_every: int = Field(0, ge=0, description="epochs between validations; 0 = only at the end")

    @model_validator(mode="after")
    def _coherent(self) -> TrainConfig:
        if any(not 0 < m < 1 for m in self.milestones):
            raise ValueError(f"milestones {self.milestones} must lie strictly between 0 and 1: they are fractions of the run")
        if any(a >= b for a, b in pairwise(self.milestones)):
            raise ValueError(f"milestones {self.milestones} must rise: write {tuple(sorted(set(self.milestones)))}")
        if any(not 0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas} must be at least 0 and below 1: (0.9, 0.999) are usual")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be below epochs {self.epochs}")
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum > 0: raise momentum or set nesterov = false")
        return self

    def identity(self) -> dict[str, Any]:
        """The fields that decide what a run computes, JSON-able: two runs that differ here must not share a checkpoint."""
        return self.model_dump(mode="json", exclude=set(_SPEED_ONLY))
