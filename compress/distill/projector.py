"""What stands between student and teacher while they are of different width; it ends with the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from ...models.errors import UserError

Choice = Literal["auto", "always", "never"]


def wanted(choice: Choice, student: int, teacher: int, *, kind: str, what: str) -> bool:
    """Whether a projector is wanted between `student` and `teacher` dimensions. Raises UserError when one is needed and refused."""
    if choice == "never" and student != teacher:
        raise UserError(
            f"the term {kind!r} compares the student's {student} {what} with the teacher's {teacher}, and projector = 'never'",
            hint='set projector = "auto" on the term: a layer that is trained beside the student and dropped afterwards',
        )
    return choice == "always" or student != teacher


class EmbeddingProjector(nn.Module):
    """Student embeddings (N, d_s) → (N, d_t): batch norm, dropout 0.5, linear.

    Source: Wang et al. 2023, the branch for teachers of another width (torch's default weights, zero bias).
    """

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        linear = nn.Linear(student, teacher)
        nn.init.zeros_(linear.bias)
        self.layers = nn.Sequential(nn.BatchNorm1d(student), nn.Dropout(0.5), linear)

    def forward(self, taps: Mapping[str, Tensor]) -> Tensor:
        """(N, d_t) of the tap "embedding" (N, d_s). Raises UserError for a batch of one, which has no statistics."""
        return self.layers(batch_of_two(taps["embedding"]))


class Regressor(nn.Module):
    """A tap's features to another number of channels: (N, C, H, W) by a 1×1 convolution, (N, C) and (N, T, C) by a linear layer.

    Source: Romero et al. 2015, the regressor of FitNets, without its spatial extent.
    """

    def __init__(self, tap: str, student: int, teacher: int, *, spatial: bool) -> None:
        super().__init__()
        self.tap = tap
        self.layer = nn.Conv2d(student, teacher, 1) if spatial else nn.Linear(student, teacher)

    def forward(self, taps: Mapping[str, Tensor]) -> Tensor:
        """The projected features."""
        return self.layer(taps[self.tap])


def batch_of_two(values: Tensor) -> Tensor:
    """`values` (N, …). Raises UserError when N is 1: batch norm can't train on it."""
    if values.shape[0] < 2:
        raise UserError(
            "a layer beside the student normalises over the batch, and the batch is one sample",
            hint="set batch_size to 2 or more (in every process)",
        )
    return values
