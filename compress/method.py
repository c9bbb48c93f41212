"""What a compression method is: a typed config and a function from module to module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict

from ..models.progress import LogProgress, Progress
from ..models.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from ..models.bundle import Bundle
    from ..models.contract import Contract
    from ..models.source import Architecture
    from ..models.surgery import SurgeryPlan
    from ..models.tasks.task import Task


class MethodConfig(BaseModel):
    """The parameters of one recipe step. Frozen; unknown keys are errors; `version` rises when a field changes meaning."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    version: int = 1

    def bundles(self) -> tuple[str, ...]:
        """The folders of other Bundles that the step reads: when one of them changes, the step is made again."""
        return ()

    def files(self) -> tuple[str, ...]:
        """The other files that the step reads, with the same effect."""
        return ()


@dataclass(frozen=True)
class MethodCard:
    """What a method needs and changes, readable without importing torch."""

    title: str
    source: str
    needs_data: bool
    needs_labels: bool
    changes_structure: bool
    trains: bool


@dataclass(frozen=True)
class Context:
    """Where a step runs: its scratch folder (checkpoints live there until the step is done), its seed and its neighbours.

    `parent` is the Bundle that entered the recipe: the teacher, unless a step names another. `steps` are the Bundles that the
    recipe's finished steps made, in order. `folder` stays when the step is done: what it leaves there beside its Bundle (rounds
    that are Bundles of their own) is kept with the result.
    """

    workdir: Path
    parent: Bundle
    seed: int = 0
    device: str = "auto"
    progress: Progress = field(default_factory=LogProgress)
    steps: tuple[Bundle, ...] = ()
    folder: Path | None = None

    @property
    def current(self) -> Bundle:
        """The Bundle that enters this step."""
        return self.steps[-1] if self.steps else self.parent


@dataclass(frozen=True)
class Result:
    """What a step made: the module, the surgery it did on top of what was done before (None: structure untouched), its figures.

    With `architecture` the module is another network than the one before: `plan` is then its whole surgery, `output` the entry it
    picks of what it returns, and `code` its Python file, when it is a user's own. `contract` is the network's new I/O contract,
    where the step changed what goes in or comes out.
    """

    module: nn.Module
    plan: SurgeryPlan | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    architecture: Architecture | None = None
    output: str = ""
    code: Path | None = None
    contract: Contract | None = None


class Apply(Protocol):
    """A method: (module, task, config, context) → Result. `task` is None when the recipe runs without data."""

    def __call__(self, module: nn.Module, task: Task | None, config: Any, context: Context) -> Result: ...


@dataclass(frozen=True)
class Method:
    """A registered method."""

    config: type[MethodConfig]
    apply: Apply


methods: Registry[Method, MethodCard] = Registry(
    "recipe step",
    modules=tuple(
        f"trimtab.compress.{name}"
        for name in (
            "structured",
            "readout",
            "finetune",
            "keep_features",
            "distill.method",
            "student",
            "procedures.mae",
            "procedures.unpaired_isp",
            "procedures.pdn_teacher",
            "procedures.efficientad",
            "lottery.method",
            "threshold",
            "dynamic.method",
            "dynamic.static",
            "routing.method",
            "anomaly_fit",
            "raw_input",
        )
    ),
)


def register_method(name: str, config: type[MethodConfig], card: MethodCard) -> Callable[[Apply], Apply]:
    """A decorator that registers a method's `apply` with its config class and capability record."""

    def file_it(apply: Apply) -> Apply:
        methods.register(name, card)(Method(config, apply))
        return apply

    return file_it
