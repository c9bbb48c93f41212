"""What every runtime looks like: a capability record, a `load`, and sessions that run and can be timed."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from ..export.light import Registry, UserError, did_you_mean

Tensors = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]

NO_RUNTIME: Mapping[str, str] = {
    "coreml": "Core ML runs on macOS and iOS alone; its numerics were checked by the export, its speed needs an Apple device",
}


class Port(Protocol):
    """What a runtime needs to know of one input or output; a string in `shape` is free at run time."""

    @property
    def name(self) -> str:
        """The tensor's name in the file."""

    @property
    def shape(self) -> tuple[int | str, ...]:
        """Its dimensions."""

    @property
    def dtype(self) -> str:
        """Its NumPy type."""


class Ports(Protocol):
    """The inputs and outputs of an artifact: its whole contract here, a shorter list of them on a device."""

    @property
    def inputs(self) -> Sequence[Port]:
        """What goes in."""

    @property
    def outputs(self) -> Sequence[Port]:
        """What comes out."""


class RejectedError(UserError):
    """A runtime won't load or run an artifact."""

    def __init__(self, runtime: str, path: Path, error: object) -> None:
        lines = [line.strip() for line in str(error).replace(str(path), path.name).splitlines() if line.strip()]
        said = lines[-1] if lines and lines[0].startswith("Exception from") else " ".join(lines[:2])
        super().__init__(
            f"{runtime} rejects {path.name}: {said or type(error).__name__}",
            hint="export it again, or name other runtimes with --runtime",
            exit_code=1,
        )

    @classmethod
    def told(cls, what: str, hint: str) -> RejectedError:
        """The same error, as a runner elsewhere worded it."""
        error = cls.__new__(cls)
        UserError.__init__(error, what, hint=hint, exit_code=1)
        return error


@dataclass(frozen=True)
class RuntimeFacts:
    """What a session says of itself. `hints`: settings in force as the runtime reports them, not as they were asked for."""

    runtime: str
    version: str
    threads: int
    provider: str
    hints: Mapping[str, str]
    timed_region: str
    reduced_precision: bool = False


class Session(Protocol):
    """One loaded artifact."""

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Output arrays by name. Raises RejectedError."""

    def bind(self, inputs: Tensors) -> Callable[[], object]:
        """A call that runs once on `inputs`, bound now; what it includes stands in `describe().timed_region`. Raises RejectedError."""

    def cycle(self, inputs: Sequence[Tensors]) -> Callable[[], object]:
        """A call that runs all of `inputs`, one after the other, as `bind` would run each. Raises RejectedError."""

    def describe(self) -> RuntimeFacts:
        """Version, threads, provider and settings in force."""


def in_turn(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """One call that makes all of `calls`."""

    def call() -> None:
        for each in calls:
            each()

    return call


class Runtime(Protocol):
    """Loads artifacts of the formats on its card."""

    def version(self) -> str:
        """The runtime's version; imports it."""

    def load(self, path: Path, contract: Ports, *, shapes: Shapes, threads: int, options: Mapping[str, str]) -> Session:
        """A session for the exported file, made ready for inputs of `shapes`. `options` are complete. Raises RejectedError."""


_SYSTEMS: Mapping[str, str] = {"Darwin": "macOS"}
"""What systems are called here, where they call themselves something else."""


@dataclass(frozen=True)
class RuntimeCard:
    """What a runtime can do, readable without importing it. An option maps to its choices, the default first.

    `systems`: the operating systems that it runs on, () when that is no matter of the system.
    """

    title: str
    formats: tuple[str, ...]
    packages: tuple[str, ...]
    extra: str
    threads: str
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    systems: tuple[str, ...] = ()

    @property
    def at_home(self) -> bool:
        """Whether this machine's system is one that it runs on: elsewhere it cannot be installed, and is not offered."""
        return not self.systems or _SYSTEMS.get(platform.system(), platform.system()) in self.systems

    @property
    def install(self) -> str:
        """The command that installs it."""
        if not self.at_home:
            return f"measure on a machine with {' or '.join(self.systems)}, over ssh"
        return f"pip install 'trimtab[{self.extra}]'" if self.extra else "pip install trimtab"

    def missing(self) -> tuple[str, ...]:
        """The importable packages that this runtime needs and that are not installed, or the system that it needs."""
        if not self.at_home:
            return (" or ".join(self.systems),)
        return tuple(name for name in self.packages if importlib.util.find_spec(name) is None)

    def complete(self, options: Mapping[str, str]) -> dict[str, str]:
        """`options` with every default filled in. Raises UserError for an unknown option or choice."""
        return completed(self.title, self.options, options)


def completed(title: str, known: Mapping[str, tuple[str, ...]], given: Mapping[str, str]) -> dict[str, str]:
    """The options of the runtime `title`: what is `given`, else the first of each one's choices. Raises UserError for others."""
    for name, choice in given.items():
        if name not in known:
            raise UserError(f"{title} has no option {name!r}", hint=did_you_mean(name, known))
        if choice not in known[name]:
            raise UserError(f"{title}: option {name} cannot be {choice!r}", hint="one of " + ", ".join(known[name]))
    return {name: given.get(name, choices[0]) for name, choices in known.items()}


runtimes: Registry[Runtime, RuntimeCard] = Registry(
    "runtime",
    modules=(
        "trimtab.devices.runtimes_onnxruntime",
        "trimtab.devices.runtimes_litert",
        "trimtab.devices.runtimes_openvino",
        "trimtab.devices.runtimes_executorch",
        "trimtab.devices.runtimes_ncnn",
        "trimtab.devices.runtimes_mnn",
        "trimtab.devices.runtimes_coreml",
    ),
)


def require(name: str) -> Runtime:
    """The runtime, with its packages present. Raises UserError for an unknown name, another system or a missing package."""
    entry = runtimes.entry(name)
    if not entry.card.at_home:
        raise UserError(f"{entry.card.title} needs {' or '.join(entry.card.systems)}", hint=entry.card.install)
    if gone := entry.card.missing():
        raise UserError(f"{entry.card.title} needs {', '.join(gone)}, not installed", hint=entry.card.install)
    return entry.value


def fitting(format_name: str) -> list[str]:
    """The names of the runtimes that run a format on this system, installed or not."""
    return [entry.name for entry in runtimes if format_name in entry.card.formats and entry.card.at_home]


def why_none(format_name: str) -> str:
    """Why no runtime here runs a format."""
    formats = sorted({name for entry in runtimes if entry.card.at_home for name in entry.card.formats})
    return NO_RUNTIME.get(format_name, f"no runtime here runs {format_name!r} files; they run " + ", ".join(formats))


def check_shapes(runtime: str, path: Path, *, contract: Ports, inputs: Tensors, any_batch: bool = False) -> None:
    """None, when every input has a shape of its contract; `any_batch`: the first dimension apart. Raises RejectedError."""
    start = 1 if any_batch else 0
    for spec in contract.inputs:
        shape = inputs[spec.name].shape if spec.name in inputs else ()
        fits = len(shape) == len(spec.shape)
        if not fits or any(isinstance(d, int) and d != n for d, n in zip(spec.shape[start:], shape[start:], strict=True)):
            raise RejectedError(runtime, path, f"input {spec.name!r} is {shape}, it takes {spec.shape}")


def check_names(runtime: str, path: Path, *, wanted: list[str], present: list[str], kind: str) -> None:
    """None, when a model has every tensor that its contract names. Raises RejectedError."""
    if gone := [name for name in wanted if name not in present]:
        raise RejectedError(runtime, path, f"it has no {kind} {', '.join(gone)}; it has {', '.join(present)}")
