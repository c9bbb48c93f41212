"""The bias loss as a term: the label loss, each sample weighted by the variance of its last feature map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .objectives import ObjectiveCard, TermConfig, register_objective

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from .term import Setup, Signals, Term


class BiasConfig(TermConfig):
    """The weighted cross-entropy of the labels. It takes the label loss's place: label_weight = 0."""

    kind: Literal["bias"] = "bias"
    normalisation: Literal["local", "global"] = Field(
        "global", description="variances are measured from the batch's minimum (local) or the least since training started"
    )
    alpha: float = Field(0.3, ge=0, le=3, description="weight = exp(alpha · normalised variance) − beta")
    beta: float = Field(0.3, ge=0, lt=1, description="see alpha; the least weight is 1 − beta")
    control: Literal["none", "mean1", "shuffled"] = Field(
        "none", description="for experiments: weights scaled to a batch mean of 1, or dealt out to other samples"
    )
    features: str = Field("", description="path of the student's module whose output's variance counts; empty = the last map")


@register_objective(
    "bias",
    BiasConfig,
    ObjectiveCard(
        title="Bias loss",
        source="Abrahamyan, Ziatchin, Chen, Deligiannis: Bias Loss for Mobile Neural Networks, ICCV 2021",
        formula="(exp(alpha · v) − beta) · cross-entropy, v the normalised variance of the last feature map, mean over the batch",
        needs_labels=True,
    ),
)
def build(config: BiasConfig, setup: Setup) -> Term:
    """The term on the student's own features and logits; its running minimum is kept with the run.

    Raises UserError when the task has no classes or the student no feature map.
    """
    from torch import nn

    from ..bias_loss import SampleWeights, bias_loss
    from .pairs import class_names
    from .term import Term

    class_names(setup, config.kind)
    path = setup.student_map(config.features)
    smoothing = getattr(setup.task, "label_smoothing", 0.0)

    class Head(nn.Module):
        """The weights, from the taps that the engine hands over."""

        def __init__(self) -> None:
            super().__init__()
            self.weights = SampleWeights(config.normalisation, alpha=config.alpha, beta=config.beta, control=config.control)

        def forward(self, taps: Mapping[str, Tensor]) -> Tensor:
            return self.weights(taps[path])

    def loss(s: Signals) -> Tensor:
        return bias_loss(s.student["logits"], s.batch.targets, s.head, label_smoothing=smoothing)

    return Term(loss=loss, student=("logits", path), head=Head())
