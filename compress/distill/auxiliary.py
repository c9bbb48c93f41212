"""The second head of dual-head distillation; it ends with the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from ...models.errors import UserError
from .projector import batch_of_two

HIDDEN = 200


class AuxiliaryHead(nn.Module):
    """Logits (N, K) of student embeddings (N, d): linear, or Linear(d, 200) → Dropout(0.1) → BN(200) → ReLU → Linear(200, K).

    Source: Yang et al. 2025.
    """

    def __init__(self, dim: int, classes: int, *, nonlinear: bool) -> None:
        super().__init__()
        self.nonlinear = nonlinear
        self.layers: nn.Module = nn.Linear(dim, classes)
        if nonlinear:
            first = (nn.Linear(dim, HIDDEN), nn.Dropout(0.1), nn.BatchNorm1d(HIDDEN), nn.ReLU())
            self.layers = nn.Sequential(*first, nn.Linear(HIDDEN, classes))

    def forward(self, taps: Mapping[str, Tensor]) -> Tensor:
        """(N, K) of the tap "embedding" (N, d). Raises UserError for a batch of one where there is batch norm."""
        embedding = taps["embedding"]
        return self.layers(batch_of_two(embedding) if self.nonlinear else embedding)


def auxiliary_head(kind: Literal["linear", "nonlinear"], dim: int, shape: Sequence[int]) -> AuxiliaryHead:
    """A head from embeddings of `dim` to a teacher's logits of `shape` (K,). Raises UserError for outputs of another rank."""
    if len(shape) != 1:
        raise UserError(
            f"a second head follows logits (N, K), and the teacher's output for one image has shape {tuple(shape)}",
            hint='for outputs with spatial dimensions take the term "logit-mse" or "hints"',
        )
    return AuxiliaryHead(dim, shape[0], nonlinear=kind == "nonlinear")
