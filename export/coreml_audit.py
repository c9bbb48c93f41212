"""What became of a network on its way to Core ML: layout moves, casts, unpacked weights, and what keeps it off the Neural Engine."""

from __future__ import annotations

from collections.abc import Mapping

from .artifact import Audit, Unplaced

ENGINE = "Neural Engine"
_FLOAT32 = "float32 arithmetic runs on CPU and GPU, the Neural Engine computes in float16"
_FLEXIBLE = "free dimensions: the Neural Engine takes the default shape alone, other shapes run on CPU or GPU"


def audited(ops: Mapping[str, int], *, half: bool, flexible: bool, islands: Mapping[str, int]) -> Audit:
    """The audit of a package with these operations: `half` of float16 arithmetic, `flexible` of dimensions free in a range.

    Only what Apple documents is said of the Neural Engine: that it has no float32 (coremltools' guide to typed execution), and
    that it runs models with range flexibility at the default shape alone (Apple's engineers in the developer forums). Which single
    operations it takes is decided on the device; Xcode's performance report shows it.
    """
    reason = _FLEXIBLE if flexible else ""
    reason = reason if half else _FLOAT32
    count = sum(number for op, number in ops.items() if not op.startswith("constexpr_"))  # those unpack weights
    unplaced: dict[str, tuple[Unplaced, ...]] = {}
    if reason and count:
        unplaced[ENGINE] = (Unplaced(op="every operation", count=count, reason=reason),)
    return Audit(transposes=ops.get("transpose", 0), casts=ops.get("cast", 0), islands=dict(islands), delegates=unplaced)
