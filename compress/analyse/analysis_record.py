"""What an analysis of several models found, as a folder: `analysis.json` (figures) beside `analysis.npz` (every sample)."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from ...models import files
from ...models.errors import UserError
from ...models.tasks.sources_npz import read_arrays

JSON, NPZ = "analysis.json", "analysis.npz"
FORMAT = 1
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_AGAIN = "the record is damaged or of another version; run `trimtab analyze` again"


@with_config(STRICT)
class ModelRow(TypedDict):
    """One model: `accuracy` on clean samples, `params` and how many of them are not 0; `macs` None where they can't be counted."""

    name: str
    hash: str
    accuracy: float
    params: int
    nonzero: int
    macs: NotRequired[int | None]


@with_config(STRICT)
class CorruptionRow(TypedDict):
    """One corruption: its name, its family (noise, blur, weather, digital, geometry) and what it does in a line."""

    name: str
    family: str
    help: str


@with_config(STRICT)
class ClassAccuracy(TypedDict):
    """Accuracy by class, None for a class that no sample has: clean [model][class], corrupted [model][corruption][class]."""

    clean: list[list[float | None]]
    corrupted: list[list[list[float | None]]]


@with_config(STRICT)
class SurvivalRow(TypedDict):
    """Survival of one model under one corruption (or "all"): see `survival.survival_row`."""

    model: str
    corruption: str
    n: int
    survived: int
    auc_margin: float | None
    auc_confidence: float | None
    auc_norm: float | None
    auc_angle: float | None
    difference: float | None
    low: float | None
    high: float | None
    reason: str


@with_config(STRICT)
class Redundancy(TypedDict):
    """Correlations of margin shifts between corruptions, K × K: the mean over models and each model's; None = undefined.

    `clusters`: names that belong together (mean correlation ≥ 0.5 between groups); `nearest`: the two most alike.
    """

    mean: list[list[float | None]]
    by_model: list[list[list[float | None]]]
    clusters: list[list[str]]
    nearest: list[str]


@with_config(STRICT)
class ClassFall(TypedDict):
    """The fall of one class's accuracy on one benchmark ("clean" or a corruption), from what it is held against."""

    index: int
    name: str
    model: str
    benchmark: str
    against: str
    n: int
    before: float
    after: float
    fall: float


@with_config(STRICT)
class SampleFall(TypedDict):
    """The fall of one sample's margin, averaged over corruptions, severities and the pruned models."""

    index: int
    target: int
    fall: float
    before: float
    by_model: list[float]
    against: str


@with_config(STRICT)
class Info(TypedDict):
    """What `analysis.json` holds. The first model is the reference that the others are held against."""

    format: int
    created: str
    command: str
    data: str
    data_id: str
    split: str
    samples: int
    classes: list[str]
    models: list[ModelRow]
    corruptions: list[CorruptionRow]
    severities: list[int]
    severity_kept: int
    accuracy: list[list[list[float]]]
    clean_accuracy: list[float]
    class_accuracy: ClassAccuracy
    survival: list[SurvivalRow]
    redundancy: Redundancy
    worst_classes: list[ClassFall]
    worst_samples: list[SampleFall]
    versions: dict[str, str]
    seed: int


_INFO = TypeAdapter(Info)

SHAPES: dict[str, tuple[str, str]] = {
    "targets": ("int16", "n"),
    "clean_norm": ("float32", "mn"),
    "clean_angle": ("float32", "mn"),
    "clean_margin": ("float32", "mn"),
    "clean_confidence": ("float32", "mn"),
    "clean_predicted": ("int16", "mn"),
    "norm": ("float16", "mkn"),
    "angle": ("float16", "mkn"),
    "margin": ("float16", "mkn"),
    "confidence": ("float16", "mkn"),
    "predicted": ("int16", "mkn"),
    "survived": ("uint8", "mkn"),
    "images": ("uint8", "iChw"),
    "image_index": ("int32", "i"),
}
"""Every array of `analysis.npz`: its dtype and dimensions (m models, k corruptions, n samples, i images kept, C h w)."""


@dataclass(frozen=True, eq=False)
class AnalysisRecord:
    """An analysis: `info` is what analysis.json holds (see `Info`), `arrays` what analysis.npz holds (see `SHAPES`).

    Samples are the first n of the split. Arrays without "clean" are those at severity `severity_kept`; `survived` counts the
    severities at which a sample that was right when clean stayed right (0 for one that was wrong when clean). Angles in degrees;
    float16 arrays end at ±65504. `images` are thumbnails of the worst-hit and of random samples, `image_index` their positions.
    """

    info: Info
    arrays: dict[str, np.ndarray]

    def __post_init__(self) -> None:
        """None. Raises UserError when figures and arrays do not belong together."""
        _validated(self.info, JSON)
        _check_info(self.info)
        _check_arrays(self.info, self.arrays)

    def save(self, folder: Path, *, force: bool = False) -> Path:
        """`folder`, written whole or not at all. Raises UserError when it is taken."""
        packed = io.BytesIO()
        np.savez_compressed(packed, allow_pickle=False, **{name: self.arrays[name] for name in SHAPES})
        with files.new_folder(folder, force=force) as temp:
            files.write_json(temp / JSON, self.info)
            files.write_bytes(temp / NPZ, packed.getvalue())
        return folder

    @staticmethod
    def load(folder: Path) -> AnalysisRecord:
        """The record in `folder` (or of the path of its analysis.json). Raises UserError when it is not one, or damaged."""
        folder = folder.parent if folder.name == JSON else folder
        if not (folder / JSON).exists():
            raise UserError(
                f"{folder} is no analysis: it has no {JSON}", hint="an analysis is the folder that `trimtab analyze -o` wrote"
            )
        raw = files.read_json(folder / JSON)
        if isinstance(raw, dict) and raw.get("format") != FORMAT:
            raise UserError(f"{folder / JSON} has format {raw.get('format')}, this version reads {FORMAT}", hint=_AGAIN)
        info = _validated(raw, str(folder / JSON))
        return AnalysisRecord(info, read_arrays(folder / NPZ, needed=tuple(SHAPES), optional=()))


def _validated(raw: Any, path: str) -> Info:
    try:
        return _INFO.validate_python(raw, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}", hint=_AGAIN) from None


def _check_info(info: Info) -> None:
    models, corruptions, classes = len(info["models"]), len(info["corruptions"]), len(info["classes"])
    severities = info["severities"]
    nested = {
        "accuracy": (info["accuracy"], (models, corruptions, len(severities))),
        "clean_accuracy": (info["clean_accuracy"], (models,)),
        "class_accuracy.clean": (info["class_accuracy"]["clean"], (models, classes)),
        "class_accuracy.corrupted": (info["class_accuracy"]["corrupted"], (models, corruptions, classes)),
        "redundancy.mean": (info["redundancy"]["mean"], (corruptions, corruptions)),
        "redundancy.by_model": (info["redundancy"]["by_model"], (models, corruptions, corruptions)),
    }
    for name, (value, shape) in nested.items():
        if not _has_shape(value, shape):
            raise UserError(f"the analysis's {name} is not a table of {'×'.join(map(str, shape))}", hint=_AGAIN)
    if info["severity_kept"] not in severities:
        raise UserError(f"severity_kept={info['severity_kept']} is none of the severities {severities}", hint=_AGAIN)


def _has_shape(value: Any, shape: tuple[int, ...]) -> bool:
    if not shape:
        return not isinstance(value, list)
    return isinstance(value, list) and len(value) == shape[0] and all(_has_shape(part, shape[1:]) for part in value)


def _check_arrays(info: Info, arrays: dict[str, np.ndarray]) -> None:
    sizes = {"m": len(info["models"]), "k": len(info["corruptions"]), "n": info["samples"]}
    for name, (dtype, dims) in SHAPES.items():
        if name not in arrays:
            raise UserError(f"the analysis lacks the array {name!r}", hint=_AGAIN)
        array = arrays[name]
        sizes = {**dict(zip(dims, array.shape, strict=False)), **sizes} if array.ndim == len(dims) else sizes
        want = tuple(sizes.get(dim, -1) for dim in dims)
        if array.dtype != np.dtype(dtype) or array.shape != want:
            raise UserError(f"the analysis's array {name!r} is {array.dtype} {array.shape}, not {dtype} {want}", hint=_AGAIN)
    for name in ("targets", "clean_predicted", "predicted"):
        if arrays[name].size and not 0 <= arrays[name].min() <= arrays[name].max() < len(info["classes"]):
            raise UserError(f"the analysis's array {name!r} names a class that there is not", hint=_AGAIN)
    index = arrays["image_index"]
    if index.size and not 0 <= index.min() <= index.max() < info["samples"]:
        raise UserError("the analysis's array 'image_index' names a sample that there is not", hint=_AGAIN)
