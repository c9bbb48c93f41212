"""What is pruned together: single weights, N of every M neighbours, whole blocks. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pattern:
    """What is kept or pruned together. `keep` of `group` consecutive input channels stay ("2:4": keep 2, group 4), or weights go in
    blocks of `rows` outputs × `columns` inputs ("4x1"); 1 × 1 without a group is unstructured."""

    rows: int = 1
    columns: int = 1
    keep: int = 0
    group: int = 0

    @staticmethod
    def parse(text: str) -> Pattern:
        """The pattern in "none", "N:M" or "RxC". Raises ValueError saying what is allowed."""
        if text == "none":
            return Pattern()
        if (found := re.fullmatch(r"(\d+):(\d+)", text)) and 0 < int(found[1]) < int(found[2]) <= 64:
            return Pattern(keep=int(found[1]), group=int(found[2]))
        if (found := re.fullmatch(r"(\d+)x(\d+)", text)) and 1 < int(found[1]) * int(found[2]) <= 1024:
            return Pattern(rows=int(found[1]), columns=int(found[2]))
        raise ValueError(f"pattern {text!r} is not known: none, N:M with N < M ≤ 64 (2:4), or ROWSxCOLUMNS up to 1024 (4x1)")

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a weight of this shape can have the pattern: N:M wants input channels in multiples of M; biases have none."""
        if self.group:
            return len(shape) >= 2 and shape[1] % self.group == 0
        return len(shape) >= 2 or self.rows * self.columns == 1
