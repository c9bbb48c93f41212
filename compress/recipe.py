"""Recipes: what to do to a network, as a versioned TOML file that is validated before anything heavy is imported."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ..models import files
from ..models.errors import UserError, did_you_mean
from .method import MethodConfig, methods

FORMAT = 1


@dataclass(frozen=True)
class Recipe:
    """An ordered list of validated steps. `name` is shown in reports."""

    name: str
    steps: tuple[MethodConfig, ...]
    seed: int = 0

    @property
    def needs_data(self) -> bool:
        """True when a step can't run without a task."""
        return any(methods.entry(step.kind).card.needs_data for step in self.steps)

    @property
    def digest(self) -> str:
        """A digest over seed and steps: equal recipes, equal digest."""
        return files.digest_of([self.seed, [step.model_dump(mode="json") for step in self.steps]])


def load_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file. Raises UserError naming the file, the step and the key that is wrong."""
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"recipe {path} does not exist", hint="`trimtab recipes ls` shows the shipped ones; `recipes new` writes one"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not valid TOML: {error}", hint="`trimtab recipes new structured` writes a commented example"
        ) from None
    return parse_recipe(data, origin=str(path), name=path.stem)


def parse_recipe(data: Mapping[str, Any], *, origin: str, name: str = "") -> Recipe:
    """A validated Recipe from parsed TOML: `format`, optional `name` and `seed`, and a list of `[[step]]` tables."""
    unknown = set(data) - {"format", "name", "seed", "step"}
    if unknown:
        key = min(unknown)
        raise UserError(f"{origin}: unknown key {key!r}", hint=did_you_mean(key, ("format", "name", "seed", "step")))
    if data.get("format") != FORMAT:
        raise UserError(f"{origin}: format is {data.get('format')!r}", hint=f"start the recipe with `format = {FORMAT}`")
    seed = data.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UserError(f"{origin}: seed is {seed!r}", hint="a whole number, 0 or more")
    steps = data.get("step")
    if not isinstance(steps, list) or not steps or not all(isinstance(step, dict) for step in steps):
        raise UserError(f"{origin} has no steps", hint='add a table: [[step]] with kind = "structured"')
    parsed = tuple(parse_step(step, origin=f"{origin}: step {i + 1}") for i, step in enumerate(steps))
    return Recipe(name=str(data.get("name", name)), steps=parsed, seed=seed)


def parse_step(step: Mapping[str, Any], *, origin: str) -> MethodConfig:
    """One step's config. Raises UserError with the method's did-you-mean, or the field, its value and its range."""
    if not isinstance(kind := step.get("kind"), str):
        raise UserError(f"{origin} has no kind", hint="kind is one of " + ", ".join(methods.names()))
    if kind not in methods:
        raise UserError(f"{origin}: unknown kind {kind!r}", hint=did_you_mean(kind, methods.names()))
    config = methods.get(kind).config
    try:
        return config.model_validate(dict(step))
    except ValidationError as error:
        raise UserError(
            "\n".join(f"{origin} ({kind}): {_say(e)}" for e in error.errors()), hint=_hint(error.errors()[0], config)
        ) from None


def _say(error: ErrorDetails) -> str:
    """One validation error in words: the key, the value, and what is allowed."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}"
    said = error["msg"].removeprefix("Value error, ")
    return f"{key} = {error['input']!r}: {said[0].lower()}{said[1:]}" if key else said


def _hint(error: ErrorDetails, config: type[MethodConfig]) -> str:
    key = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        return did_you_mean(key, config.model_fields)
    if key in config.model_fields and (text := config.model_fields[key].description):
        return f"{key}: {text}"
    return "`trimtab recipes show` prints every key with its meaning"
