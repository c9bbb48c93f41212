"""Multi-sample dropout: several dropout masks on one embedding, in one step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .nested_dropout import linear_classifier
from .objectives import ObjectiveCard, TermConfig, register_objective

if TYPE_CHECKING:
    from torch import Tensor

    from .term import Setup, Term


class MultiSampleDropoutConfig(TermConfig):
    """The mean of the task's losses under M dropout masks. It takes the label loss's place: label_weight = 0."""

    kind: Literal["multi-sample-dropout"] = "multi-sample-dropout"
    samples: int = Field(8, ge=1, le=256, description="dropout masks per step (M); gains level off at about 8")
    p: float = Field(0.5, ge=0, lt=1, allow_inf_nan=False, description="share of the features that a mask sets to 0")


def dropped(features: Tensor, samples: int, p: float) -> Tensor:
    """(M·N, D): M copies of `features` (N, D), each with a mask of its own; what is kept is divided by 1 − p."""
    from torch.nn import functional as F

    return F.dropout(features.repeat(samples, 1), p)


@register_objective(
    "multi-sample-dropout",
    MultiSampleDropoutConfig,
    ObjectiveCard(
        title="Multi-sample dropout",
        source="Inoue: Multi-Sample Dropout for Accelerated Training and Better Generalization, 2019",
        formula="the mean over M dropout masks of the task's loss of the masked embedding's logits",
        needs_labels=True,
    ),
)
def build(config: MultiSampleDropoutConfig, setup: Setup) -> Term:
    """The term on the embedding, through the student's own classifier: one pass over M·N rows.

    The task's loss is a mean over rows, so that of all rows is the mean of the M losses. Dropout that the network has before its
    classifier still acts. Raises UserError for a classifier that is not linear.
    """
    from .term import Signals, Term

    classifier = linear_classifier(setup, config.kind)

    def loss(s: Signals) -> Tensor:
        targets = s.batch.targets
        logits = classifier(dropped(s.student["embedding"], config.samples, config.p)).float()
        return setup.task.loss(logits, targets.repeat(config.samples, *[1] * (targets.ndim - 1)))

    return Term(loss=loss, student=("embedding",))
