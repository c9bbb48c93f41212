"""Does a runtime compute what the artifact's golden outputs say? Checked on the device before anything is timed."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..export.manifest import GOLDEN, Artifact, UserError

SLACK_DB = 3.0
"""Golden holds one batch, the export's gate was over many: a factor √2 in the error's amplitude is allowed between them."""

REDUCED_GATE_DB = 25.0
"""The gate when the user let the runtime compute in bfloat16 or float16: 8 bits of mantissa, carried through a deep network."""


@dataclass(frozen=True)
class Verdict:
    """`ok` is None when there was nothing to compare with. Errors are the worst over all outputs; `sqnr_db` None when exact."""

    ok: bool | None
    max_abs_error: float | None = None
    sqnr_db: float | None = None
    reason: str = ""


UNCHECKED = Verdict(None, reason=f"the artifact brings no {GOLDEN}, so its outputs were not checked here")


def verdict(
    rows: Sequence[Mapping[str, Any]], artifact: Artifact, *, shapes: Mapping[str, list[int]], reduced: bool
) -> Verdict:
    """The verdict on what a runner's `check` found. `shapes` are the golden outputs'; `reduced`: it computes in half precision."""
    parity = artifact.parity
    proven_db = min(parity.gate_db, parity.sqnr_db) if parity.ok else parity.gate_db  # below the gate where the metric decided
    gate = min(proven_db, REDUCED_GATE_DB if reduced else np.inf) - SLACK_DB
    worst_error, worst_db = 0.0, np.inf
    for row in rows:
        name, shape = row["name"], shapes[row["name"]]
        if list(row["shape"]) != shape:
            return Verdict(False, reason=f"output {name} has shape {tuple(row['shape'])}, golden {tuple(shape)}")
        if not row["finite"]:
            return Verdict(False, reason=f"output {name} holds values that are not finite")
        worst_error = max(worst_error, float(row["max_abs_error"]))
        worst_db = min(worst_db, _sqnr_db(float(row["signal"]), float(row["noise"])))
    return Verdict(
        ok=bool(worst_db >= gate),
        max_abs_error=worst_error,
        sqnr_db=float(worst_db) if np.isfinite(worst_db) else None,
        reason=""
        if worst_db >= gate
        else f"outputs are {worst_db:.1f} dB from golden, {gate:.1f} dB are asked (max error {worst_error:.3g})",
    )


def _sqnr_db(signal: float, noise: float) -> float:
    """10·log10(Σ ref² / Σ err²): infinite for no error at all, −infinite for an error where the reference is all zeros."""
    if noise == 0:
        return float("inf")
    return 10 * float(np.log10(signal / noise)) if signal else float("-inf")


def read_golden(folder: Path, artifact: Artifact) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None:
    """Golden inputs and outputs by name, None when there are none. Raises UserError when the file is damaged."""
    path, contract = folder / GOLDEN, artifact.contract
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            inputs = {spec.name: stored[f"input:{spec.name}"] for spec in contract.inputs}
            outputs = {spec.name: stored[f"output:{spec.name}"] for spec in contract.outputs}
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged: {error}", hint="export again") from None
    return inputs, outputs
