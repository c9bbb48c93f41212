"""Installed packages that don't go together, found before anything is converted."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ...models.errors import UserError

if TYPE_CHECKING:
    from packaging.requirements import Requirement


class Installed(Protocol):
    """What is known of an installed package: `importlib.metadata` has it."""

    @property
    def version(self) -> str:
        """Its version."""

    @property
    def requires(self) -> list[str] | None:
        """What it requires, as in its metadata."""


@dataclass(frozen=True)
class Conflict:
    """A package whose requirement is not met; `found` is "" when what it requires is not installed."""

    package: str
    version: str
    requirement: str
    found: str

    def __str__(self) -> str:
        state = f"{self.found} is installed" if self.found else "it is not installed"
        return f"{self.package} {self.version} requires {self.requirement}, and {state}"


def refuse_conflicts(modules: Iterable[str]) -> None:
    """None, when all that these importable packages require, directly or not, is installed in fitting versions.

    Raises UserError with every conflict and the pip line that mends it.
    """
    found = conflicts(distributions_of(modules))
    if not found:
        return
    lines = "".join(f"\n  - {conflict}" for conflict in found)
    wanted = " ".join(f"'{requirement}'" for requirement in dict.fromkeys(conflict.requirement for conflict in found))
    raise UserError(f"installed packages don't go together:{lines}", hint=f"pip install {wanted}")


def distributions_of(modules: Iterable[str]) -> list[str]:
    """The distributions that hold these importable packages, in order; those that are not installed are left out."""
    return list(dict.fromkeys(name for module in modules for name in _holding(module)))


def _holding(module: str) -> tuple[str, ...]:
    """The distributions that hold a module: the one of its name, else (that takes a look at all files) those that say so."""
    try:
        return (importlib.metadata.distribution(module).metadata["Name"],)
    except importlib.metadata.PackageNotFoundError:
        return tuple(_holders().get(module, ()))


@functools.cache
def _holders() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def conflicts(names: Iterable[str], installed: Mapping[str, Installed] | None = None) -> list[Conflict]:
    """Every requirement of these distributions, and of those that they require, that is not met.

    `installed`: by normalised name, what there is; by default this environment. Optional extras are not looked at.
    """
    from packaging.utils import canonicalize_name

    there = _environment() if installed is None else installed
    found, seen, waiting = [], set(), [str(canonicalize_name(name)) for name in names]
    while waiting:
        name = waiting.pop(0)
        if name in seen or name not in there:
            continue
        seen.add(name)
        for requirement in _requirements(there[name]):
            needed = str(canonicalize_name(requirement.name))
            waiting.append(needed)
            version = there[needed].version if needed in there else ""
            if not version or not requirement.specifier.contains(version, prereleases=True):
                plain = f"{requirement.name}{requirement.specifier}"
                found.append(Conflict(name, there[name].version, plain, version))
    return found


def _requirements(package: Installed) -> list[Requirement]:
    """What a package requires here, without its extras."""
    from packaging.requirements import InvalidRequirement, Requirement

    kept = []
    for text in package.requires or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue  # old metadata that pip skips too
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            kept.append(requirement)
    return kept


def _environment() -> dict[str, Installed]:
    """This environment's distributions; of two of one name, the one that is imported."""
    from packaging.utils import canonicalize_name

    there: dict[str, Installed] = {}
    for package in importlib.metadata.distributions():
        there.setdefault(str(canonicalize_name(package.metadata["Name"])), package)
    return there
