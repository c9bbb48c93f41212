"""A network from RAW to RGB, ready to run: of a Bundle, or of an artifact in its own runtime."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .develop_tiles import EXACT, Call, Reach, measured_reach
from .models.contract import Contract, TensorSpec
from .models.errors import UserError
from .models.raw.packing import FORMS, Form, in_form
from .models.tasks.isp_data import takes_counts

if TYPE_CHECKING:
    from .models.bundle import Bundle
    from .models.raw.frame import RawFrame
    from .models.source import Architecture

FORM_OF = {channels: form for form, channels in FORMS.items()}
"""The form that a network's number of input channels means."""
SENSOR = "sensor"
"""The key in an artifact's `source`."""
REDUCED = 1e-3
"""What answers of artifacts in a reduced precision may differ by and still be equal: a quarter of an 8-bit step."""


@dataclass(frozen=True)
class Levels:
    """Phase and levels that a network with packing inside was made for; `black` by site in reading order."""

    pattern: str
    black: tuple[float, ...]
    white: float

    def __str__(self) -> str:
        black = f"{self.black[0]:g}" if len(set(self.black)) == 1 else ", ".join(f"{b:g}" for b in self.black)
        return f"{self.pattern}, black {black}, white {self.white:g}"


@dataclass(frozen=True, eq=False)
class IspNetwork:
    """A network from RAW to RGB, ready to run: `call` takes (1, C, h, w) in the form and dtype of `spec` (NCHW) and gives float32
    (1, 3, scale · h, scale · w). `fixed`: the only input size it takes. `levels`: what it has inside, None where it takes
    normalised numbers. `module`: the torch module of a Bundle."""

    label: str
    spec: TensorSpec
    call: Call
    levels: Levels | None = None
    tolerance: float = EXACT
    module: Any = None

    @property
    def form(self) -> Form:
        """How the mosaic goes in."""
        return FORM_OF[int(self.spec.shape[1])]

    @property
    def scale(self) -> int:
        """Mosaic pixels for an input pixel, along a side."""
        return 2 if self.form == "packed" else 1

    @property
    def fixed(self) -> tuple[int, int] | None:
        """The only input size (h, w) that it takes; None where any will do."""
        height, width = self.spec.shape[2:]
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None

    @property
    def counts(self) -> bool:
        """Whether it takes sensor counts, not numbers normalised to 0…1."""
        return takes_counts(self.spec)

    @functools.cached_property
    def reach(self) -> Reach:
        """How far it looks, measured (see `develop_tiles`)."""
        return self.measured(self.call)

    def measured(self, call: Call) -> Reach:
        """How far it looks when it is run by `call`."""
        channels = int(self.spec.shape[1])
        return measured_reach(call, self.drawn, channels=channels, scale=self.scale, fixed=self.fixed, tolerance=self.tolerance)

    def drawn(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers in 0…1 as its input holds them."""
        top = self.spec.value_range[1] if self.counts and self.spec.value_range else 1.0
        return self.spec.stored(np.rint(numbers * top) if self.counts else numbers)

    def inputs(self, frame: RawFrame) -> np.ndarray:
        """(1, C, h, w): the frame in the network's form and dtype."""
        if self.form == "packed" and not self.counts:
            found = frame.packed()  # the same as below, in less memory
        else:
            found = in_form(frame.mosaic if self.counts else frame.normalised(), frame.pattern, self.form)
        return self.spec.stored(found[None])

    def check(self, frame: RawFrame) -> str:
        """ "", when the frame is what the network was made for, or a warning that it can't be told. Raises UserError naming both
        when phase or levels differ."""
        if self.levels is None:
            unknown = f"{self.label} takes sensor counts and does not say which phase and levels it was made for: taken to be the frame's"
            return unknown if self.counts else ""
        own = Levels(frame.pattern, frame.black, frame.white)
        same = len(self.levels.black) in (1, 4) and all(
            a == b for a, b in zip((*self.levels.black * (4 // len(self.levels.black)),), own.black, strict=True)
        )
        if not same or (self.levels.pattern, self.levels.white) != (own.pattern, own.white):
            raise UserError(
                f"{self.label} was made for {self.levels}; {frame.source or 'the frame'} has {own}",
                hint="use the network with packing outside, which takes any phase and levels, or make one for this camera "
                "(recipe step 'raw-input')",
            )
        return ""


def open_isp(path: Path) -> IspNetwork:
    """The network of a Bundle's folder or of an artifact's. Raises UserError for one that makes no picture of a RAW frame."""
    from .export.artifact import MANIFEST as ARTIFACT
    from .models.bundle import load_bundle

    if path.name == ARTIFACT or (path / ARTIFACT).exists():
        return _artifact(path.parent if path.name == ARTIFACT else path)
    return bundle_isp(load_bundle(path))


def bundle_isp(bundle: Bundle) -> IspNetwork:
    """A Bundle's network, on the CPU. Raises UserError as `open_isp` does."""
    label = str(bundle.folder)
    spec = _checked(bundle.contract, label)
    import torch

    module = bundle.module().eval()

    def call(values: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(np.ascontiguousarray(values))).numpy(), np.float32)

    return IspNetwork(label, _freed(spec, call), call, levels=levels_of(bundle.manifest.architecture), module=module)


def _freed(spec: TensorSpec, call: Call) -> TensorSpec:
    """The input with its size free, when the module takes another than the patches that it was trained on."""
    if not any(isinstance(side, int) for side in spec.shape[2:]):
        return spec
    other = [side + 32 if isinstance(side, int) else 64 for side in spec.shape[2:]]
    try:
        call(spec.stored(np.zeros((1, int(spec.shape[1]), *other), np.float32)))
    except Exception:  # whatever it is that a module of a fixed size raises
        return spec
    return spec.model_copy(update={"shape": (*spec.shape[:2], "H", "W")})


def levels_of(architecture: Architecture) -> Levels | None:
    """The levels among a network's arguments (`packing="inside"`, pattern, black, white); None when it has none inside."""
    from .models.architectures import architectures

    given = dict(architecture.kwargs)
    if architecture.name in architectures:
        known = inspect.signature(architectures.get(architecture.name)).parameters.values()
        given = {p.name: p.default for p in known if p.default is not p.empty} | given
    if given.get("packing") != "inside":
        return None
    black = given["black"]
    several = (black,) if isinstance(black, int | float) else tuple(black)
    return Levels(str(given["pattern"]), tuple(float(b) for b in several), float(given["white"]))


def _artifact(folder: Path) -> IspNetwork:
    from .export.artifact import load_artifact
    from .export.exporter import exporters
    from .export.parity import run_in_layout
    from .scoring import channels_first

    artifact = load_artifact(folder)
    original = channels_first(artifact.contract)
    spec = _checked(original, str(folder))
    runner = exporters.get(artifact.format).runner(artifact.path(folder), artifact.contract)
    settings, given, made = original.defaults(), original.inputs[0].name, original.outputs[0]

    def call(values: np.ndarray) -> np.ndarray:
        got = run_in_layout(runner, {given: values, **settings}, module=original, artifact=artifact.contract)
        return np.asarray(made.real(got[made.name]), np.float32)

    tolerance = EXACT if artifact.precision == "fp32" else REDUCED
    return IspNetwork(str(folder), spec, call, levels=_noted(artifact.source.get(SENSOR, "")), tolerance=tolerance)


def sensor_note(architecture: Architecture) -> dict[str, str]:
    """What an artifact's `source` says of a network with packing inside, so that frames of another camera are refused; else {}."""
    levels = levels_of(architecture)
    if levels is None:
        return {}
    return {SENSOR: f"{levels.pattern} {','.join(f'{b:g}' for b in levels.black)} {levels.white:g}"}


def _noted(text: str) -> Levels | None:
    """The levels that `sensor_note` wrote; None where there are none. Raises UserError for other words."""
    if not text:
        return None
    try:
        pattern, black, white = text.split()
        return Levels(pattern, tuple(float(b) for b in black.split(",")), float(white))
    except ValueError:
        raise UserError(f"the artifact's source says sensor {text!r}", hint="export it again") from None


def _checked(contract: Contract, label: str) -> TensorSpec:
    """The first input (NCHW) of a contract from RAW to RGB. Raises UserError when it is another."""
    spec, made = contract.inputs[0].as_layout("NCHW"), contract.outputs[0].as_layout("NCHW")
    if spec.layout != "NCHW" or spec.shape[1] not in FORM_OF or made.layout != "NCHW" or made.shape[1] != 3:
        raise UserError(
            f"{label} takes {_shown(spec)} and gives {_shown(made)}: no network from RAW to RGB",
            hint="4 channels (packed), 3 (planes) or 1 (mosaic) go in and a picture of 3 comes out: `trimtab train efficient-isp …`",
        )
    if isinstance(spec.shape[0], int) and spec.shape[0] != 1:
        raise UserError(f"{label} takes {spec.shape[0]} pictures at once", hint="export it for one: --fix N=1, or a free batch")
    return spec


def _shown(spec: TensorSpec) -> str:
    return f"{spec.name!r} ({' × '.join(map(str, spec.shape))})"
