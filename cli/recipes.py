"""The shipped recipes, and new ones written from the methods' own descriptions."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files as resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .models.errors import UserError, did_you_mean
from .recipe_text import option, term_lines

if TYPE_CHECKING:
    from .compress.recipe import Recipe

EXAMPLES: dict[str, dict[str, Any]] = {
    "structured": {"mac_ratio": 0.5},
    "student": {"model": "resnet20"},
    "ftwt": {"target_mac_reduction": 0.5},
}
"""What a step can't do without, as a new recipe says it."""


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
        fields = {name: f for name, f in entry.value.config.model_fields.items() if name not in ("kind", "version")}
        said = EXAMPLES.get(kind, {})
        lines += [option(name, value, fields[name].description, on=True) for name, value in said.items()]
        for name, info in fields.items():
            if name == "objectives":
                lines += term_lines()
            elif name not in said:
                lines.append(option(name, info.get_default(call_default_factory=True), info.description))
    return "\n".join(lines) + "\n"


def distil_recipe(
    objective: str,
    *,
    student: str | None = None,
    student_args: Mapping[str, Any] | None = None,
    teacher: str | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Recipe:
    """The recipe of a distillation that was asked for in words: a student (None: the network itself), then its lessons.

    `student` as in the step "student"; `teacher` a Bundle's folder, "ema", or None: the network that enters. `settings` are
    further parameters of the step "distill". Raises UserError naming the option that is wrong.
    """
    from .compress.recipe import Recipe, parse_step

    if student_args and student is None:
        raise UserError(f"--student-arg {min(student_args)} says nothing without --student", hint="add --student resnet20")
    for key, flag in (("kind", "--objective"), ("objective", "--objective"), ("teacher", "--teacher")):
        if key in (settings or {}):
            raise UserError(f"--set {key}= is said with {flag}", hint=f"{flag} {(settings or {})[key]}")
    steps = []
    if student is not None:
        steps.append(parse_step({"kind": "student", "model": student, "args": dict(student_args or {})}, origin="--student"))
    lessons = {"kind": "distill", "objective": objective, "teacher": _teacher(teacher), **(settings or {})}
    steps.append(parse_step(lessons, origin="--objective, --set"))
    return Recipe(name=objective, steps=tuple(steps), seed=seed)


def _teacher(name: str | None) -> str:
    """`--teacher` as a recipe says it. Raises UserError for a folder that is not there."""
    if name is None or name in ("parent", "ema"):
        return name or "parent"
    path = Path(name).expanduser().resolve()
    if not path.is_dir():
        raise UserError(
            f"--teacher {name} is not a Bundle's folder", hint="leave it out and the checkpoint itself is the teacher"
        )
    return str(path)


def teaches_itself(recipe: Recipe) -> bool:
    """True when the network that enters is at once the only student and a teacher."""
    from .compress.distill.method import DistillConfig
    from .compress.distill.objectives import TaughtTermConfig

    first = recipe.steps[0]
    if not isinstance(first, DistillConfig):
        return False
    taught = [term for term in first.terms()[1] if isinstance(term, TaughtTermConfig)]
    return any((term.teacher or first.teacher) == "parent" for term in taught)
