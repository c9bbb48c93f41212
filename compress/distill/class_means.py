"""Where the teacher's classes lie: the direction of each class's mean embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...models.errors import UserError
from .pairs import class_names

if TYPE_CHECKING:
    from .term import Setup


def class_directions(setup: Setup, kind: str, which: str = "") -> Tensor:
    """Unit class means float32 (K, d) of a teacher's embeddings over the training split's clean views (one cached pass).

    Source: Wang et al. 2023, e_c = m_c / ‖m_c‖. Raises UserError when the task has no classes, a class has no training sample,
    or its mean has no direction.
    """
    names = class_names(setup, kind)
    embeddings = setup.training_signal("embedding", which)
    return unit_means(embeddings, setup.training_targets().to(embeddings.device), names)


def unit_means(embeddings: Tensor, targets: Tensor, names: Sequence[str]) -> Tensor:
    """Unit means float32 (K, d) of embeddings (n, d) by class, targets int64 (n,); summed in float64, `names` for the errors."""
    sums = embeddings.new_zeros((len(names), embeddings.shape[1]), dtype=torch.float64)
    sums.index_add_(0, targets, embeddings.double())
    counts = torch.bincount(targets, minlength=len(names))
    if empty := _named(counts == 0, names):
        raise UserError(
            f"class {empty[0]!r} has no sample among the {len(targets)} training images, so its mean is not defined"
            + (f" ({len(empty)} classes are without)" if len(empty) > 1 else ""),
            hint="train on more samples (max_train), or leave the class out of the data set",
        )
    means = sums / counts[:, None]
    norms = torch.linalg.vector_norm(means, dim=1, keepdim=True)
    if lost := _named(~((norms[:, 0] > 0) & norms[:, 0].isfinite()), names):
        raise UserError(
            f"the teacher's mean embedding of class {lost[0]!r} is zero or not finite: it has no direction",
            hint="check the teacher: its embedding must not be dead for a whole class",
        )
    return (means / norms).float()


def _named(flags: Tensor, names: Sequence[str]) -> list[str]:
    return [names[i] for i in flags.nonzero().flatten().tolist()]
