"""Multi-aspect distillation: the student also answers yes/no questions about each image, as a large model answered them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .objectives import ObjectiveCard, TermConfig, register_objective

if TYPE_CHECKING:
    from torch import Tensor

    from .term import Setup, Term

log = logging.getLogger("trimtab")


class AspectsConfig(TermConfig):
    """Binary cross-entropy between a second head's Q logits and the answers q in 0…1."""

    kind: Literal["aspects"] = "aspects"
    weight: float = Field(
        4.0, ge=0, allow_inf_nan=False, description="factor of this term in the sum; 4 is the published configuration's"
    )
    source: str = Field(
        min_length=1,
        description="the answers: an .npz file (`trimtab aspects pack` writes one), or the name of a registered source",
    )
    shuffle: Literal["no", "all", "class"] = Field(
        "no",
        description='a control: the answers dealt out again among all training images ("all"), or among those of one class',
    )

    def files(self) -> tuple[str, ...]:
        """The answers' file, when they come from one."""
        return (self.source,) if self.source.endswith(".npz") else ()


def aspects_loss(logits: Tensor, answers: Tensor) -> Tensor:
    """−q·log σ(z) − (1−q)·log(1−σ(z)) in nats, mean over batch and questions; logits z and answers q in 0…1, both (N, Q).

    Computed in float32 from the logits. Raises ValueError when the shapes differ.
    """
    from torch.nn import functional as F

    if logits.shape != answers.shape:
        raise ValueError(f"aspect logits {tuple(logits.shape)}, answers {tuple(answers.shape)}: not alike")
    return F.binary_cross_entropy_with_logits(logits.float(), answers.float())


def shuffled(answers: Tensor, positions: Tensor, *, within: Tensor | None, seed: int) -> Tensor:
    """The rows of `answers` (n, Q) at `positions` (m,) dealt out again among them, or among those alike in `within` (m,)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(positions), generator=generator)
    given = torch.arange(len(positions))
    if within is not None:  # sorting both by class pairs every image with one of its own class
        given = torch.argsort(within, stable=True)
        order = order[torch.argsort(within[order], stable=True)]
    dealt = answers.clone()
    dealt[positions[given]] = answers[positions[order]]
    return dealt


def _class_of(setup: Setup) -> Tensor:
    """The classes of the training images. Raises UserError for a task whose targets are not classes."""
    from ...models.errors import UserError

    targets = setup.training_targets()
    if targets.ndim != 1 or targets.is_floating_point():
        raise UserError(
            f'aspects: shuffle = "class" needs one class per image, the targets of {setup.task.data!r} have shape '
            f"{tuple(targets.shape)}",
            hint='use shuffle = "all"',
        )
    return targets


@register_objective(
    "aspects",
    AspectsConfig,
    ObjectiveCard(
        title="Multi-aspect distillation",
        source="Lee et al.: Multi-aspect Knowledge Distillation with Large Language Model, 2025",
        formula="binary cross-entropy of Q further logits against P(yes) of Q questions, mean over batch and questions",
    ),
)
def build(config: AspectsConfig, setup: Setup) -> Term:
    """The term on a second linear layer over the embedding.

    The paper widens the last layer to C + Q outputs and tests on the first C. A linear layer's rows do not touch each other, so
    the second layer here is those last Q rows, and leaving it behind at the end of the run is the slice.
    Raises UserError for answers that do not fit the task, and for an unknown source.
    """
    from torch import nn

    from ..sampling import derived_seed
    from .aspect_source import answers_of
    from .term import Term

    found = answers_of(config.source, setup.task)
    answers = found.values
    if config.shuffle != "no":
        within = _class_of(setup) if config.shuffle == "class" else None
        answers = shuffled(answers, setup.positions(), within=within, seed=derived_seed(setup.seed, "aspects"))
    (width,) = setup.student_shape("embedding")
    table = {"answers": answers}

    def rows(index: Tensor) -> Tensor:
        if table["answers"].device != index.device:  # once: it stays where the batches are
            table["answers"] = table["answers"].to(index.device)
        return table["answers"][index]

    class Head(nn.Linear):
        """The rows C … C+Q−1 of the widened classifier."""

        def forward(self, taps: Mapping[str, Tensor]) -> Tensor:  # type: ignore[override]  # heads get their taps by name
            return super().forward(taps["embedding"])

    return Term(
        loss=lambda s: aspects_loss(s.head, rows(s.batch.index)),
        student=("embedding",),
        head=Head(width, len(found.questions)),
        identity=found.digest,
        notes=(f"aspects: {len(found.questions)} questions from {found.origin}, shuffled: {config.shuffle}",),
    )
