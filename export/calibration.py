"""What integer ranges are taken from: real inputs, checked and cut into feeds that the graph takes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..models.contract import Contract
from ..models.errors import UserError

MIN_SAMPLES = 16
"""Ranges from fewer samples are chance: the next image may lie far outside."""
USUAL = 128
"""Samples that are looked at when nobody says how many."""


def calibration_feeds(contract: Contract, samples: np.ndarray | None, *, what: str) -> tuple[Mapping[str, np.ndarray], ...]:
    """`samples` (N, …) of the first input as one feed each, or as many at once as the contract's batch holds; other inputs have
    their defaults. `what` names the artifact in errors.

    Raises UserError without samples, for fewer than 16, for values that are not finite or all the same, for another shape, and for
    a network with several inputs that have no default.
    """
    if samples is None:
        raise UserError(
            f"{what} takes its ranges from real inputs, and there are none",
            hint="add --data fashion-mnist, folder:PATH, … (inputs like those it will see)",
        )
    settings = contract.defaults()
    drawn = [spec for spec in contract.inputs if spec.name not in settings]
    if len(drawn) != 1:
        raise UserError(
            f"{what} is calibrated on one input, and the network has {len(drawn)}: {', '.join(s.name for s in drawn)}",
            hint="export fp32 or fp16",
        )
    if len(samples) < MIN_SAMPLES:
        raise UserError(
            f"{len(samples)} calibration samples are too few for {what}: ranges would be chance",
            hint=f"give at least {MIN_SAMPLES}, {USUAL} are usual (--calibrate)",
        )
    if not np.isfinite(samples).all():
        raise UserError(f"the calibration samples of {what} hold values that are not finite", hint="look at the data")
    if np.ptp(samples) == 0:
        raise UserError(
            f"all values of the calibration samples of {what} are {samples.flat[0]:g}: there is no range in them",
            hint="look at the data and its normalisation",
        )
    (spec,) = drawn
    fixed = [size if isinstance(size, int) else None for size in spec.shape[1:]]
    if samples.ndim != len(spec.shape) or any(a not in (b, None) for a, b in zip(fixed, samples.shape[1:], strict=True)):
        raise UserError(
            f"calibration samples of {what} are {'×'.join(map(str, samples.shape[1:]))}, input {spec.name!r} is "
            f"{'×'.join(map(str, spec.shape[1:]))}",
            hint="fit the data to the network (--size)",
        )
    batch = spec.shape[0] if isinstance(spec.shape[0], int) else 1
    whole = len(samples) // batch * batch
    return tuple(
        {spec.name: np.ascontiguousarray(samples[i : i + batch].astype(spec.dtype)), **settings} for i in range(0, whole, batch)
    )
