"""One registry shape for architectures, tasks, methods, exporters, devices and runtimes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from .errors import UserError, did_you_mean

T = TypeVar("T")
Card = TypeVar("Card")


@dataclass(frozen=True)
class Entry(Generic[T, Card]):
    """A registered thing beside its capability record."""

    name: str
    value: T
    card: Card


class Registry(Generic[T, Card]):
    """Things by explicit name, each with a capability record (`card`).

    `modules` are the absolute module names whose import registers the entries; they are imported at the first look-up, so
    that naming a registry costs nothing.
    """

    def __init__(self, kind: str, *, modules: Sequence[str] = ()) -> None:
        self.kind = kind
        self._modules = tuple(modules)
        self._loaded = False
        self._entries: dict[str, Entry[T, Card]] = {}

    def register(self, name: str, card: Card) -> Callable[[T], T]:
        """A decorator that files its target under `name`. Raises ValueError when the name is taken."""

        def file_it(value: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = Entry(name, value, card)
            return value

        return file_it

    def entry(self, name: str) -> Entry[T, Card]:
        """The entry under `name`. Raises UserError with a did-you-mean."""
        self._load()
        if name not in self._entries:
            raise UserError(f"unknown {self.kind} {name!r}", hint=did_you_mean(name, self._entries))
        return self._entries[name]

    def get(self, name: str) -> T:
        """The thing registered under `name`. Raises UserError with a did-you-mean."""
        return self.entry(name).value

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load()
        return sorted(self._entries)

    def __iter__(self) -> Iterator[Entry[T, Card]]:
        self._load()
        return iter(sorted(self._entries.values(), key=lambda entry: entry.name))

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def _load(self) -> None:
        if not self._loaded:
            self._loaded = True  # first: a module being imported may look something up here
            try:
                for module in self._modules:
                    importlib.import_module(module)
            except BaseException:
                self._loaded = False
                raise
