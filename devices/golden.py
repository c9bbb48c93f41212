"""Does a session compute what the artifact's golden outputs say? Checked before anything is timed."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..export.manifest import GOLDEN, Artifact, UserError
from .runtime import Session

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


def verify(session: Session, artifact: Artifact, folder: Path, *, reduced_precision: bool) -> Verdict:
    """The verdict on `session` against `golden.npz`. Raises UserError when that file is damaged, RejectedError when the run fails."""
    path = folder / GOLDEN
    if not path.exists():
        return Verdict(None, reason=f"the artifact brings no {GOLDEN}, so its outputs were not checked here")
    inputs, expected = _read(path, artifact)
    outputs = session.run(inputs)
    parity = artifact.parity
    proven_db = min(parity.gate_db, parity.sqnr_db) if parity.ok else parity.gate_db  # below the gate where the metric decided
    gate = min(proven_db, REDUCED_GATE_DB if reduced_precision else np.inf) - SLACK_DB
    worst_error, worst_db = 0.0, np.inf
    specs = {spec.name: spec for spec in artifact.contract.outputs}
    for name, held in expected.items():
        want, got = specs[name].real(held), specs[name].real(outputs[name])  # integers stand for numbers by their scale
        if got.shape != want.shape:
            return Verdict(False, reason=f"output {name} has shape {got.shape}, golden {want.shape}")
        error = np.abs(got.astype(np.float64) - want.astype(np.float64))
        if not np.isfinite(error).all():
            return Verdict(False, reason=f"output {name} holds values that are not finite")
        worst_error = max(worst_error, float(error.max(initial=0.0)))
        worst_db = min(worst_db, _sqnr_db(want, error))
    return Verdict(
        ok=bool(worst_db >= gate),
        max_abs_error=worst_error,
        sqnr_db=float(worst_db) if np.isfinite(worst_db) else None,
        reason=""
        if worst_db >= gate
        else f"outputs are {worst_db:.1f} dB from golden, {gate:.1f} dB are asked (max error {worst_error:.3g})",
    )


def _sqnr_db(reference: np.ndarray, error: np.ndarray) -> float:
    """10·log10(Σ ref² / Σ err²): infinite for no error at all, −infinite for an error where the reference is all zeros."""
    noise, signal = float(np.sum(error**2)), float(np.sum(reference.astype(np.float64) ** 2))
    if noise == 0:
        return float("inf")
    return 10 * float(np.log10(signal / noise)) if signal else float("-inf")


def _read(path: Path, artifact: Artifact) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Input and output arrays by name."""
    contract = artifact.contract
    try:
        with np.load(path, allow_pickle=False) as stored:
            inputs = {spec.name: stored[f"input:{spec.name}"] for spec in contract.inputs}
            outputs = {spec.name: stored[f"output:{spec.name}"] for spec in contract.outputs}
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged: {error}", hint="export again") from None
    return inputs, outputs
