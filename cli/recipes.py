"""The shipped recipes, and new ones written from the methods' own descriptions."""

from __future__ import annotations

import json
from importlib.resources import files as resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .models.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from .compress.recipe import Recipe


def shipped() -> dict[str, Path]:
    """The shipped recipes' files, by name."""
    folder = Path(str(resources("trimtab") / "assets" / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def recipe_path(name: Path | str) -> Path:
    """The file of a recipe named by path or by shipped name. Raises UserError with a did-you-mean."""
    path = Path(name)
    if path.exists():
        return path
    known = shipped()
    if str(name) in known:
        return known[str(name)]
    hint = did_you_mean(str(name), known) if path.suffix != ".toml" else "`trimtab recipes ls` shows the shipped ones"
    raise UserError(f"recipe {name} does not exist", hint=hint)


def find_recipe(name: Path | str) -> Recipe:
    """The validated recipe named by path or by shipped name."""
    from .compress.recipe import load_recipe

    return load_recipe(recipe_path(name))


def commented(kinds: list[str]) -> str:
    """A recipe with one step per kind, every parameter on a commented line with its default and meaning."""
    from .compress.method import methods

    lines = ["format = 1", 'name = "my-recipe"', "seed = 0"]
    for kind in kinds:
        entry = methods.entry(kind)
        lines += ["", f"# {entry.card.title}.", f"# Source: {entry.card.source}.", "[[step]]", f'kind = "{kind}"']
        for name, info in entry.value.config.model_fields.items():
            if name in ("kind", "version"):
                continue
            default = info.get_default(call_default_factory=True)
            text = f"# {name} = {_toml(default)}" if default is not None else f"# {name} ="
            lines.append(f"{text:<34} # {info.description}" if info.description else text)
    if "structured" in kinds:
        at = lines.index('kind = "structured"') + 1
        lines.insert(at, "mac_ratio = 0.5")
        lines = [line for line in lines if not line.startswith("# mac_ratio =")]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return json.dumps(value)  # TOML and JSON write numbers, booleans and plain strings alike
