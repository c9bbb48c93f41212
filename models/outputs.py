"""Networks that return more than one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from .errors import UserError, did_you_mean


class SelectOutput(nn.Module):
    """The named entry of what `module` returns: a key of a dict, an attribute of a (named) tuple, or a position in a tuple."""

    def __init__(self, module: nn.Module, output: str) -> None:
        super().__init__()
        self.module = module
        self.output = output

    def forward(self, *inputs: Tensor) -> Tensor:
        """The selected tensor."""
        return select(self.module(*inputs), self.output)


def select(returned: Any, output: str) -> Tensor:
    """Entry `output` of a dict, tuple or list. Raises UserError naming the entries that there are."""
    names = entries(returned)
    if output not in names:
        raise UserError(f"the network returns no output {output!r}", hint=did_you_mean(output, names))
    return names[output]


def entries(returned: Any) -> dict[str, Any]:
    """What a network returned, by name: dict keys, field names, or "0", "1", … for plain tuples; "" for a single tensor."""
    if isinstance(returned, Tensor):
        return {"": returned}
    if isinstance(returned, Mapping):
        return {str(key): value for key, value in returned.items()}
    if isinstance(returned, tuple | list):
        fields = getattr(returned, "_fields", None) or [str(i) for i in range(len(returned))]
        return dict(zip(fields, returned, strict=True))
    raise UserError(f"the network returns {type(returned).__name__}", hint="return a tensor, a dict or a tuple of tensors")


class AnomalyOutput(NamedTuple):
    """What a network that looks for anomalies returns: `map` (N, 1, h, w), higher where something is odd, and `score` (N, 1), its maximum."""

    map: Tensor
    score: Tensor


def first_tensor(returned: Any) -> Tensor:
    """The first tensor that a network returned: the output that its task judges (`Contract.outputs[0]`)."""
    return next(iter(entries(returned).values()))


def require_tensor(returned: Any) -> Tensor:
    """The single tensor that a network returned. Raises UserError, with the names to choose from, when there are several."""
    if isinstance(returned, Tensor):
        return returned
    names = entries(returned)
    shown = ", ".join(
        f"{name!r} {tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}" for name, value in names.items()
    )
    raise UserError(
        f"the network returns a {type(returned).__name__} with {shown}",
        hint=f"choose one with --output {next(iter(names), '0')}",
    )
