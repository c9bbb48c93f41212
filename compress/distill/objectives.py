"""The registry of distillation objectives: typed terms of a loss, added up by weight. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...models.errors import UserError, did_you_mean
from ...models.registry import Registry

if TYPE_CHECKING:
    from .term import Setup, Term


class TermConfig(BaseModel):
    """One term of the loss, and when it counts. Frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    weight: float = Field(1.0, ge=0, allow_inf_nan=False, description="factor of this term in the sum")
    warmup: float = Field(
        0.0, ge=0, le=1, description="fraction of the run over which the weight rises linearly from 0 to its value"
    )
    until: float = Field(1.0, gt=0, le=1, description="fraction of the run after which the term is left out")

    @model_validator(mode="after")
    def _coherent(self) -> TermConfig:
        if self.warmup > self.until:
            raise ValueError(f"warmup {self.warmup} must not exceed until {self.until}: the term would never reach its weight")
        return self

    def files(self) -> tuple[str, ...]:
        """The files that the term reads: when one of them changes, the step is made again."""
        return ()

    def weight_at(self, done: float) -> float:
        """The weight after `done` (0…1) of the run."""
        if done >= self.until and self.until < 1:
            return 0.0
        return self.weight * (min(1.0, done / self.warmup) if self.warmup else 1.0)


class TaughtTermConfig(TermConfig):
    """A term that follows a teacher."""

    teacher: str = Field(
        "", description='this term\'s own teacher: "parent", "ema", "step:2" or a Bundle\'s folder; empty = the step\'s'
    )


@dataclass(frozen=True)
class ObjectiveCard:
    """What an objective is: its title, where it was published, its formula in words, and whether it needs labels."""

    title: str
    source: str
    formula: str
    needs_labels: bool = False


@dataclass(frozen=True)
class ObjectiveKind:
    """A registered objective: its typed parameters, and what makes a term of them."""

    config: type[TermConfig]
    build: Callable[[Any, Setup], Term]


objectives: Registry[ObjectiveKind, ObjectiveCard] = Registry(
    "distillation objective",
    modules=tuple(
        f"trimtab.compress.distill.{name}"
        for name in (
            "aspects",
            "bias",
            "binary_kl",
            "cosine",
            "dist",
            "dkd",
            "dual_head",
            "hints",
            "kd",
            "landmarks",
            "logit_mse",
            "masking",
            "multi_sample",
            "nd",
            "nested_dropout",
            "relations",
            "tokens",
        )
    ),
)

Build = Callable[[Any, "Setup"], "Term"]


def register_objective(name: str, config: type[TermConfig], card: ObjectiveCard) -> Callable[[Build], Build]:
    """A decorator that registers a term's `build(config, setup)` with its config class and card."""

    def file_it(build: Build) -> Build:
        objectives.register(name, card)(ObjectiveKind(config, build))
        return build

    return file_it


def parse_term(table: Any) -> TermConfig:
    """The typed config of one `{kind = "…", …}` table. Raises ValueError that names the kind, the key, its value and range."""
    if isinstance(table, TermConfig):
        return table
    if not isinstance(table, dict) or not isinstance(kind := table.get("kind"), str):
        raise ValueError(f'{table!r} is not a term: write {{kind = "kd", weight = 1.0}}')
    try:
        config = objectives.get(kind).config
    except UserError as error:
        raise ValueError(str(error)) from None
    try:
        return config.model_validate(table)
    except ValidationError as error:
        raise ValueError("; ".join(_say(kind, e, config) for e in error.errors())) from None


def _say(kind: str, error: Any, config: type[TermConfig]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{kind}: unknown key {key!r} ({did_you_mean(key, config.model_fields)})"
    message = error["msg"].removeprefix("Value error, ")
    return f"{kind}: {key} = {error['input']!r}: {message}" if key else f"{kind}: {message}"
