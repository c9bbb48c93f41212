"""The Artifact: an exported file beside `artifact.json`, which says what it is and how it was proven."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..models import files
from ..models.contract import Contract
from ..models.errors import UserError

MANIFEST = "artifact.json"
GOLDEN = "golden.npz"
SAMPLES = "samples.npz"
"""Real inputs, beside artifacts whose time depends on the input: `inputs` (N, …) of the first input, in the artifact's layout."""


def _is_none(value: object) -> bool:
    return value is None


class ParityCase(BaseModel):
    """The comparison at one input size: errors of the artifact's outputs against the torch module's, over all inputs.

    `max_abs_error` is None when the artifact could not be run. `branch`: the one that answered all of them, in a routed network.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dims: dict[str, int]
    inputs: int = Field(ge=1)
    max_abs_error: float | None
    sqnr_db: float
    top1_agreement: float | None = None
    branch: int | None = Field(default=None, exclude_if=_is_none)


class MetricGate(BaseModel):
    """The second gate of reduced precisions: the task's metric on real samples, against the torch module's on the same ones.

    `drop` is how much worse the artifact is (below 0: better), `allowed` how much it may be.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    samples: int = Field(ge=1)
    reference: float
    artifact: float
    drop: float
    allowed: float


class Parity(BaseModel):
    """The verdict: does the artifact compute the same function as the torch module?

    `sqnr_db` is the worst case's signal-to-quantisation-noise ratio, 10·log10(Σ ref² / Σ (out − ref)²) in dB. Where it stays below the
    gate of a reduced precision, the task's metric may decide: `metric` then says how.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ok: bool
    gate_db: float
    sqnr_db: float
    max_abs_error: float | None
    top1_agreement: float | None
    inputs: Literal["real", "random"]
    evaluator: str
    cases: tuple[ParityCase, ...] = Field(min_length=1)
    reason: str = ""
    metric: MetricGate | None = Field(default=None, exclude_if=_is_none)


class Unplaced(BaseModel):
    """Operators of one kind that a delegate would leave to slower kernels, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    op: str
    count: int = Field(ge=1)
    reason: str


class Audit(BaseModel):
    """What converters do to a network unasked: layout moves, casts, float inside integers, and what delegates won't take.

    `islands` counts, in an integer artifact, the operators by kind that compute in float. `delegates` has one entry per delegate that
    was looked at (XNNPACK, Core ML, NNAPI …); an empty one takes everything.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    transposes: int = Field(ge=0)
    casts: int = Field(ge=0)
    islands: dict[str, int] = {}
    delegates: dict[str, tuple[Unplaced, ...]] = {}


class RevertTrial(BaseModel):
    """One try of accuracy-controlled quantisation: the layers in float, the metric, and how much worse than the network it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kept: tuple[str, ...]
    metric: float
    drop: float


class Ranked(BaseModel):
    """A layer, and the outputs' SQNR in dB when it alone is quantised."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: str
    op: str
    sqnr_db: float


class Reverts(BaseModel):
    """How the layers to keep in float were chosen: the ranking, what was tried on validation samples, and the price in time.

    `latency` is measured here, over the same artifact with every layer in integers (1.2: it takes 1.2 times as long), with its
    interval; None where no runtime here runs the format, or nothing had to be kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    samples: int
    reference: float
    max_drop: float
    ranking: tuple[Ranked, ...]
    trials: tuple[RevertTrial, ...]
    runtime: str = ""
    latency: float | None = None
    latency_low: float | None = None
    latency_high: float | None = None
    over_fp32: float | None = None


class Artifact(BaseModel):
    """An exported model: the manifest of the folder it lies in.

    `dynamic` says of a network that adapts to its input how it does (mode, rule, branches, …); it is empty for others. `route` is the
    converter of a format that several write, and why it was taken. `options` are those that differ from the format's defaults,
    `kept_float` the nodes that compute in float in spite of the precision. `deflated_bytes` is what a download costs, as zip, apk and
    ipa packages deflate it (zlib level 9); None in manifests of older versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    name: str
    format: str
    precision: str
    file: str
    size_bytes: int
    deflated_bytes: int | None = Field(default=None, exclude_if=_is_none)
    sha256: str
    contract: Contract
    spec_version: str
    ops: dict[str, int]
    audit: Audit | None = None
    parity: Parity
    warnings: tuple[str, ...] = ()
    source: dict[str, str] = {}
    dynamic: dict[str, Any] = Field(default={}, exclude_if=operator.not_)
    route: str = Field(default="", exclude_if=operator.not_)
    options: dict[str, Any] = Field(default={}, exclude_if=operator.not_)
    kept_float: tuple[str, ...] = Field(default=(), exclude_if=operator.not_)
    reverts: Reverts | None = Field(default=None, exclude_if=_is_none)
    tool_versions: dict[str, str] = {}

    def path(self, folder: Path) -> Path:
        """The exported file (or folder: `.mlpackage`, `.openvino`, `.ncnn`) inside the artifact's folder."""
        return files.confined(folder, self.file)


def load_artifact(folder: Path) -> Artifact:
    """The manifest of an artifact's folder, its file checked against the recorded hash.

    Raises UserError when the manifest is missing or damaged, names a path outside its folder, or the file has changed.
    """
    folder = folder.parent if folder.name == MANIFEST else folder
    try:
        artifact = Artifact.model_validate(files.read_json(folder / MANIFEST))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{folder / MANIFEST}: {where}: {first['msg']}", hint="export again with this version of trimtab"
        ) from None
    path = artifact.path(folder)
    if not path.exists():
        raise UserError(f"{path} is missing though {MANIFEST} names it", hint="export again")
    if files.sha256(path) != artifact.sha256:
        raise UserError(
            f"{path} is not the file that {MANIFEST} describes (its sha256 differs)", hint="export again; do not edit artifacts"
        )
    return artifact
