"""Parameters and distillation terms as the TOML lines of a commented recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

if TYPE_CHECKING:
    from .compress.distill.objectives import ObjectiveCard, TermConfig
    from .compress.distill.presets import Preset

UNSET = "SET ME"
"""Stands where a parameter has no default."""


def option(name: str, value: Any, description: str | None, *, on: bool = False) -> str:
    """A parameter's line with its value and its meaning; commented out unless `on`."""
    said = f"{name} = {toml(value)}" if value is not None else f"{name} ="
    text = said if on else f"# {said}"
    return f"{text:<34} # {description}" if description else text


def toml(value: Any) -> str:
    """A value as TOML writes it, on one line."""
    plain = to_jsonable_python(value)
    if isinstance(plain, Mapping):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in plain.items() if item is not None) + "}"
    if isinstance(plain, list):
        return "[" + ", ".join(toml(item) for item in plain) + "]"
    return json.dumps(plain, ensure_ascii=False)  # TOML and JSON write numbers, booleans and strings alike


def term_lines() -> list[str]:
    """What `objective` may name, then `objectives` with a line for every registered term, all commented out.

    Taking one "# " off every line from `# objectives = [` to `# ]`, or off those two and some terms between, leaves valid TOML.
    """
    from .compress.distill.objectives import objectives
    from .compress.distill.presets import presets

    wide = max(len(name) for name in presets)
    lines = ["# Sums of terms that `objective` may name (or one term's kind, beside the whole label loss):"]
    lines += [f"#   {name:<{wide}}  {_sum(preset)}" for name, preset in presets.items()]
    lines += ["# Or terms of your own in its place, each with its parameters and their defaults:", "# objectives = ["]
    for entry in objectives:
        lines += [f"#     {line}" for line in _term(entry.name, entry.value.config, entry.card)]
    return [*lines, "# ]"]


def _sum(preset: Preset) -> str:
    """A preset's title, formula and source."""
    parts = [(preset.label_weight, "labels"), *((term.get("weight", 1.0), term["kind"]) for term in preset.terms)]
    formula = " + ".join(f"{weight:g} · {name}" for weight, name in parts if weight)
    return f"{preset.title}: {formula} ({preset.source})"


def _term(kind: str, config: type[TermConfig], card: ObjectiveCard) -> list[str]:
    """A comment with title, formula and source, and the term's table."""
    from .compress.distill.objectives import TaughtTermConfig

    shared = list(TaughtTermConfig.model_fields)[2:]  # all but kind and weight; they come after the term's own
    order = [name for name in config.model_fields if name not in shared] + [n for n in shared if n in config.model_fields]
    values: dict[str, Any] = {"kind": kind}
    unset = []
    for name in order:
        info = config.model_fields[name]
        if name != "kind":
            values[name] = UNSET if info.is_required() else info.get_default(call_default_factory=True)
        if info.is_required() or values[name] is None:
            unset.append(f"{name}: {info.description}")
    about = [f"# {card.title}: {card.formula} ({card.source})"]
    return [*about, *(f"#   {line}" for line in unset), toml(values) + ","]
