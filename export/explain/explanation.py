"""The result of a walk through an artifact: what each layer's value is worth, and where it first departs."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field


class Row(BaseModel):
    """One layer: how near the artifact's value is to the float network's, in dB of SQNR.

    `sqnr_db` is the worst over sizes, `at` has one figure per size of the explanation (None: not compared there).
    `added_db` is what the layer loses: the SQNR of the worst value that it reads − its own, both at most 120 dB (float32's own
    rounding). `local_db` is its SQNR against the float layer computed on the artifact's own inputs: its error without what it
    inherits. `traced_db` is the SQNR of the traced graph's value against torch's own: a low one is the trace's fault. None where a
    figure can't be had.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    node: str
    op: str
    module: str
    sqnr_db: float
    added_db: float | None = None
    local_db: float | None = None
    traced_db: float | None = None
    at: tuple[float | None, ...] = ()


class Departure(BaseModel):
    """Where the artifact first leaves its network: the layer, why it is said to, and at which sizes (all of them, or a few)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    node: str
    op: str
    module: str
    sqnr_db: float
    reason: str
    dims: tuple[dict[str, int], ...]


class SizeWalk(BaseModel):
    """One input size: over how many inputs, the first departing layer there, and what the artifact failed with, if it did."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dims: dict[str, int]
    inputs: int = Field(ge=1)
    departs: str = ""
    failure: str = ""


class Unmatched(BaseModel):
    """Layers that were not compared, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str
    count: int = Field(ge=1)
    layers: tuple[str, ...]


class Explanation(BaseModel):
    """The walk through one artifact, layers in execution order. `worst`: the five that add most error of their own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    precision: str
    gate_db: float
    rows: tuple[Row, ...]
    sizes: tuple[SizeWalk, ...]
    first_departing: Departure | None
    worst: tuple[str, ...]
    unmatched: tuple[Unmatched, ...] = ()

    @property
    def departing_sizes(self) -> tuple[dict[str, int], ...]:
        """The sizes at which a layer departs or the artifact fails."""
        return tuple(size.dims for size in self.sizes if size.departs or size.failure)

    def summary(self) -> tuple[str, ...]:
        """The finding in plain lines, the most telling first."""
        lines = []
        if departure := self.first_departing:
            where = f" of {departure.module}" if departure.module else ""
            lines.append(f"first departing: {departure.node} ({departure.op}{where}): {departure.reason}")
            row = next(r for r in self.rows if r.name == departure.layer)
            if row.traced_db is not None and row.traced_db < self.gate_db:
                lines.append(f"the traced graph departs from torch there itself ({row.traced_db:.1f} dB): the trace is wrong")
        else:
            lines.append(f"no layer departs: every one of {len(self.rows)} is above {self.gate_db:g} dB")
        sound = [size.dims for size in self.sizes if not size.departs and not size.failure]
        if self.departing_sizes and sound:
            lines.append(f"only at {shown_sizes(self.departing_sizes)}; right at {shown_sizes(sound)}")
        lines.extend(f"at {shown(size.dims)} it does not run: {size.failure}" for size in self.sizes if size.failure)
        lines.extend(f"{u.count} layers not compared: {u.reason}" for u in self.unmatched)
        return tuple(lines)


def shown(dims: Mapping[str, int]) -> str:
    """A size in words."""
    return " ".join(f"{name}={size}" for name, size in dims.items()) or "the fixed size"


def shown_sizes(sizes: tuple[dict[str, int], ...] | list[dict[str, int]]) -> str:
    """Several sizes in words."""
    return ", ".join(map(shown, sizes))
