"""Finished compression steps in words, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .console import output
from .lottery_text import say_rounds, summary_of_rounds

if TYPE_CHECKING:
    from .compress.apply import StepDone


def say_step(step: StepDone) -> None:
    """One finished step, in words."""
    reused = "  (as before)" if step.reused else ""
    output.say(f"{step.index}. {step.config.kind}: {summary(step.figures)}  {step.seconds:.1f} s{reused}")
    for note in step.notes:
        output.say(f"   {note}")
    if "rounds" in step.figures:
        say_rounds(step.figures)
    if tenths := step.figures.get("variance_deciles"):
        shown = " ".join(f"{100 * tenth['accuracy']:.0f}" for tenth in tenths)
        output.say(f"   % right by variance of {step.figures['features']}, lowest tenth to highest: {shown}")
    if fixed := step.figures.get("fixed"):
        output.say("   left whole:")
        for layer in fixed:
            output.say(f"     {layer['path']} ({layer['channels']}): {layer['reason']}")


def summary(figures: Mapping[str, Any]) -> str:
    """The figures of a step that matter most, on one line."""
    if "rounds" in figures:
        return summary_of_rounds(figures)
    if "diversity" in figures:
        return _gated(figures)
    if "mac_ratio" in figures:
        expected = " expected" if "macs_worst" in figures else ""
        return (
            f"MACs {figures['macs_before'] / 1e6:.2f} → {figures['macs_after'] / 1e6:.2f} M{expected} ({figures['mac_ratio']:.3f}), "
            f"params {figures['params_before']:,} → {figures['params_after']:,} ({figures['param_ratio']:.3f})"
            + _routed(figures)
        )
    if val := figures.get("val_after"):
        before: dict[str, Any] = figures.get("val_before") or {}
        return ", ".join(
            f"{name} {before[name]:.4f} → {value:.4f}" if name in before else f"{name} {value:.4f}"
            for name, value in val.items()
        )
    return ""


def _gated(figures: Mapping[str, Any]) -> str:
    """MACs as estimated and as they came out, and whether masks look at their input."""
    realised, varied = figures["realised"], figures["diversity"]
    return (
        f"MACs {realised['macs_before'] / 1e6:.2f} → {realised['macs_mean'] / 1e6:.2f} M expected "
        f"({realised['mac_ratio']:.3f}; estimated {1 - figures['estimate']['mac_reduction']:.3f}), "
        f"{varied['distinct']} different masks for {varied['samples']} images, {varied['dynamic_layers']} of {varied['gates']} "
        "gates dynamic"
    )


def _routed(figures: Mapping[str, Any]) -> str:
    """How the samples are shared out among branches, where there are some."""
    if "shares" not in figures:
        return ""
    shares = " / ".join(f"{100 * share:.0f}" for share in figures["shares"])
    return f", branches take {shares} % of the images"
