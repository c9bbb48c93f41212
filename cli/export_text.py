"""What exporting says as it goes: artifacts with their verdicts, layers kept in float, forms tried."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .console import output

if TYPE_CHECKING:
    from .compress.apply import StepDone
    from .dynamic import Trial
    from .export.convert import Converted
    from .latency_target import Target
    from .max_drop import Reverted


def say_reverted(found: Reverted) -> None:
    """What was kept in float, in the order of sensitivity, and its price."""
    r = found.record
    first = r.trials[0]
    name = f"{found.format} {found.precision}"
    if not found.keep:
        output.say(
            f"{name}: every layer in integers loses {100 * first.drop:.2f} points on validation ({100 * r.max_drop:g} allowed)"
        )
        return
    kept = [each for each in r.ranking if each.node in found.keep]
    last = next(trial for trial in reversed(r.trials) if set(trial.kept) == found.keep)
    output.say(
        f"{name}: {len(kept)} of {len(r.ranking)} layers in float bring the loss on validation from {100 * first.drop:.2f} to "
        f"{100 * last.drop:.2f} points ({100 * r.max_drop:g} allowed, {len(r.trials)} tries)"
    )
    for each in kept:
        output.say(f"   {each.op} {each.node}: {each.sqnr_db:.1f} dB when it alone is in integers")
    if r.latency is not None and r.over_fp32 is not None:
        output.say(f"   price on {r.runtime}: {r.latency:.2f}× the time of all integers, {r.over_fp32:.2f}× as fast as fp32")


def say_features(step: StepDone) -> None:
    """How many features were kept, what that does to accuracy and cost, and how they were cut."""
    f = step.figures
    accuracy = ""
    if "val_after" in f:
        before, after = f["val_before"]["accuracy"], f["val_after"]["accuracy"]
        accuracy = f", validation accuracy {before:.4f} → {after:.4f}"
    output.say(
        f"{f['k']} of {f['features']} features kept{accuracy}, MACs {f['macs_before'] / 1e6:.2f} → {f['macs_after'] / 1e6:.2f} M, "
        f"params {f['params_before']:,} → {f['params_after']:,}"
    )
    for note in step.notes:
        output.say(f"   {note}")


def say_target(found: Target) -> None:
    """What each way takes here, and the thresholds that keep the mean within the target."""
    ways = ", ".join(f"{ms:.3f}" for ms in found.paths_ms)
    shares = ", ".join(f"{share:.0%}" for share in found.shares)
    output.say(
        f"{found.format} {found.precision} on {found.runtime}: the ways to branches 1 to {len(found.paths_ms)} take {ways} ms; "
        f"within {found.max_ms:g} ms: thresholds {', '.join(f'{t:.4f}' for t in found.thresholds)}, branches answer {shares}, "
        f"{found.expected_ms:.3f} ms expected, validation accuracy {found.accuracy:.4f} (largest branch {found.reference:.4f})"
    )


def say_trial(trial: Trial) -> None:
    """One form of `--dynamic auto`: what it cost here, or why it is out."""
    a = trial.made.artifact
    found = f"{trial.latency_ms:.3f} ms" if trial.latency_ms is not None else f"not measured: {trial.reason}"
    output.say(f"{a.format} {a.precision} {trial.mode}: {found}, validation {trial.metric:.4f}")


def say_artifact(made: Converted) -> None:
    """One artifact and its verdict, on one line; its warnings below."""
    a, p = made.artifact, made.artifact.parity
    agreement = f", top-1 agreement {p.top1_agreement:.1%}" if p.top1_agreement is not None else ""
    verdict = "proven" if made.ok else "REJECTED"
    download = f" ({a.deflated_bytes / 1e6:.2f} MB to download)" if a.deflated_bytes is not None else ""
    output.say(
        f"{a.format} {a.precision}: {verdict}, SQNR {p.sqnr_db:.1f} dB (gate {p.gate_db:g}){agreement}, {p.inputs} inputs, "
        f"{a.size_bytes / 1e6:.2f} MB{download} → {made.folder}"
    )
    if p.reason:
        output.say(f"   {p.reason}")
    if a.route:
        output.say(f"   {a.route}")
    for warning in a.warnings:
        output.say(f"   warning: {warning}")
