"""The RunRecord: everything a report says, as data. The pipeline writes it to `run.json`; the report only renders it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .devices.measurement import ProfileResult
from .export.artifact import Artifact


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerRecord(_Record):
    """One leaf module of a network: its kind, output shape (without the batch), MACs and params at batch 1."""

    path: str
    kind: str
    output: tuple[int, ...]
    macs: int
    params: int


class ModelRecord(_Record):
    """One network of the run ("parent", "compressed"): its cost at batch 1 and its test metrics.

    Of one that adapts to its input, `macs` is the mean over test samples, and `macs_worst` the dearest that a sample can cost.
    """

    name: str
    architecture: str
    bundle: str
    macs: int
    macs_worst: int | None = None
    params: int
    weight_bytes: int
    activation_peak_bytes: int
    metrics: dict[str, float]
    layers: tuple[LayerRecord, ...]


class StepRecord(_Record):
    """One compression step as it was run: its full config, what it reported, and the seconds it took."""

    kind: str
    config: dict[str, Any]
    figures: dict[str, Any]
    notes: tuple[str, ...] = ()
    seconds: float


class ArtifactRecord(_Record):
    """One exported artifact, accepted or rejected, of one of the run's networks."""

    model: str
    folder: str
    status: Literal["accepted", "rejected"]
    artifact: Artifact


class FailedRecord(_Record):
    """An artifact of one of the run's networks that could not be written at all, and why."""

    model: str
    format: str
    precision: str
    reason: str


class PictureRecord(_Record):
    """A picture of what the network does to a test sample: `data` is a data URI, its sides are in pixels."""

    title: str
    caption: str
    alt: str
    width: int
    height: int
    data: str


class StageRecord(_Record):
    """One stage of the run: seconds that it took when it ran, and whether this run reused it."""

    name: str
    seconds: float
    reused: bool


class RunRecord(_Record):
    """A whole run."""

    format_version: Literal[1] = 1
    title: str
    created: str
    command: str
    seed: int
    task: str
    data: str
    data_id: str
    metric: str
    test_samples: int
    models: tuple[ModelRecord, ...] = Field(min_length=1)
    steps: tuple[StepRecord, ...] = ()
    artifacts: tuple[ArtifactRecord, ...] = ()
    failed: tuple[FailedRecord, ...] = ()
    profile: ProfileResult | None = None
    pictures: tuple[PictureRecord, ...] = ()
    stages: tuple[StageRecord, ...] = ()
    versions: dict[str, str] = {}
    host: dict[str, str] = {}
    notes: tuple[str, ...] = ()
