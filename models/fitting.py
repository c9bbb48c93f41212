"""What a network offers that is fitted to normal pictures in closed form, instead of trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .backbones import FeatureNet

Pictures = Callable[[], "Iterable[Tensor]"]
"""All normal pictures, batch by batch, float32 (N, 3, H, W) in 0…1 and in the same order; may be gone through more than once."""


class Fit(NamedTuple):
    """A fitted network, the keyword arguments that its factory builds its structure with, what was found, and what to tell the user."""

    module: nn.Module
    kwargs: dict[str, Any]
    figures: dict[str, Any]
    notes: tuple[str, ...] = ()


@runtime_checkable
class FitsNormals(Protocol):
    """A network on frozen features, `features`, of which `fitted` gives another one that knows what is normal."""

    features: FeatureNet

    def fitted(
        self, features: FeatureNet, pictures: Pictures, *, size: tuple[int, int], seed: int, options: dict[str, Any]
    ) -> Fit:
        """The network for pictures of (H, W) = `size` on trained `features`. Raises UserError for options that it does not have."""
