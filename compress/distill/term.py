"""What a term of the loss is made of: the signals it reads, a head that is trained beside the student, and a pure loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from ...models.tasks.task import Task
    from ..loop import TrainBatch


@dataclass(frozen=True)
class Signals:
    """What a term sees at one step, all floating-point tensors in float32.

    `student` and `teachers[role]` hold the values of the taps that the term asked for, by tap; `head` is what its head returned.
    Teachers' values carry no gradient.
    """

    batch: TrainBatch
    student: Mapping[str, Tensor]
    teachers: Mapping[str, Mapping[str, Tensor]]
    head: Any = None

    @property
    def teacher(self) -> Mapping[str, Tensor]:
        """The taps of the role "teacher": the only one of most terms."""
        return self.teachers["teacher"]


@dataclass(frozen=True)
class Need:
    """A teacher that a term follows: its role within the term, which one it is ("" = the step's own), and the taps read from it."""

    role: str = "teacher"
    which: str = ""
    taps: tuple[str, ...] = ("logits",)


@dataclass(frozen=True)
class Term:
    """One term, ready to run.

    `student` names the taps it reads ("logits", "embedding", a module's path for its output, "PATH:in" for its input); "embedding"
    is the input of the classifier, pooled to (N, d). `head` is trained with the student and never leaves the run: it is called
    inside the student's forward pass, in training mode only, with the mapping of these taps. `hooks` puts hooks on the
    student for the run (they must do nothing when it is not in training mode) and returns their handles. `aligned` asks for
    one-way gradient alignment against the rest of the loss. `same_view` says that its teachers must see the very view that
    the targets of the step belong to: signals cached on clean views won't do for augmented ones. `identity` is a digest of
    what the term learns from beside the task and its teachers: a run that was stopped does not go on with another.
    """

    loss: Callable[[Signals], Tensor]
    student: tuple[str, ...] = ("logits",)
    teachers: tuple[Need, ...] = ()
    head: nn.Module | None = None
    hooks: Callable[[nn.Module], Sequence[RemovableHandle]] | None = None
    aligned: bool = False
    same_view: bool = False
    identity: str = ""
    notes: tuple[str, ...] = field(default=())


class Setup(Protocol):
    """What a term may ask about the run while it is built. Nothing here is used during the steps."""

    task: Task
    seed: int

    def student_shape(self, tap: str) -> tuple[int, ...]:
        """The shape of a student's tap without its batch dimension. Raises UserError for a path that is not there."""

    def teacher_shape(self, tap: str, which: str = "") -> tuple[int, ...]:
        """The shape of a teacher's tap without its batch dimension."""

    def classifier(self) -> nn.Module:
        """The student's last layer: the one whose output is the network's and whose input is the tap "embedding"."""

    def student_module(self, path: str) -> nn.Module:
        """A module of the student. Raises UserError with a did-you-mean for a path that is not there."""

    def student_map(self, given: str) -> str:
        """The path of the student's last feature map, or `given` where it is one. Raises UserError where there is none."""

    def teacher_module(self, path: str, which: str = "") -> nn.Module:
        """A module of a teacher. Raises UserError with a did-you-mean for a path that is not there."""

    def training_signal(self, tap: str, which: str = "") -> Tensor:
        """A teacher's tap over the whole training split, clean views: (n, …) float32, row i = position positions()[i]."""

    def positions(self) -> Tensor:
        """The positions in the training split that the run trains on, int64 (n,)."""

    def training_targets(self) -> Tensor:
        """The targets of positions(), as the task stores them."""
