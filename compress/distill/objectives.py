"""The registry of distillation objectives. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...models.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ObjectiveCard:
    """What an objective is: its title, where it was published, and its formula in words."""

    title: str
    source: str
    formula: str


LogitObjective = Callable[["Tensor", "Tensor", float], "Tensor"]
"""(student logits (N, K), teacher logits (N, K) without gradient, temperature) → the scalar term that pulls one to the other."""

objectives: Registry[LogitObjective, ObjectiveCard] = Registry(
    "distillation objective", modules=("trimtab.compress.distill.kd",)
)
