"""TFLite Metadata: what an app's image pipeline has to know, inside the file itself, with the class names appended as a zip entry."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models.contract import Contract, TensorSpec
from ...models.errors import UserError

LABELS = "labels.txt"
ENTRY = "TFLITE_METADATA"
"""The name under which a `.tflite` file lists its metadata buffer."""
_AXIS_LABELS = 2
"""`AssociatedFileType.TENSOR_AXIS_LABELS`."""
_COLOURS = {3: 1, 1: 2}
"""`ColorSpaceType` by the number of channels: RGB and grayscale; 0, unknown, of others."""
_DIMENSIONS = {"NHWC": ["batch", "height", "width", "channel"], "NCHW": ["batch", "channel", "height", "width"]}
_BITS = 255.0
"""The greatest pixel of the image that an app reads."""


@dataclass(frozen=True)
class About:
    """Who and what the model is."""

    name: str
    description: str
    version: str
    author: str = ""
    licence: str = ""


def with_metadata(data: bytes, contract: Contract, about: About) -> bytes:
    """The file with metadata for the tensors of its contract. Nothing may re-write it afterwards: the class names are appended.

    Raises UserError when the class names are not as many as an output's entries, or can't be written one a line.
    """
    from . import metadata_schema
    from .writer import packed, schema, unpacked

    labelled = _labelled(contract)
    model = unpacked(data)
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = list(metadata_schema.pack(_fields(contract, about, labelled)))
    entry.name, entry.buffer = ENTRY, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    made = packed(model)
    return _zipped(made, {LABELS: "\n".join(contract.classes) + "\n"}) if labelled else made


def read_metadata(path: Path) -> dict[str, Any]:
    """What the metadata of a file says, by the names of its schema, and under "files" the text of every appended file.

    Raises UserError when the file has none.
    """
    from . import metadata_schema
    from .writer import unpacked

    data = path.read_bytes()
    model = unpacked(data)
    names = {_text(entry.name): entry.buffer for entry in model.metadata or []}
    if ENTRY not in names:
        raise UserError(f"{path} holds no TFLite Metadata", hint="export with metadata = true")
    found = metadata_schema.unpack(bytes(model.buffers[names[ENTRY]].data))
    files = {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name).decode() for name in archive.namelist()}
    return {**found, "files": files}


def normalisation(spec: TensorSpec) -> tuple[list[float], list[float]] | None:
    """Mean and std per channel in pixels of 0…255: the tensor is (pixel − mean) / std. None when the contract doesn't tell.

    A pixel p stands for low + p·(high − low)/255 of the value range, which is 0…1 where mean and std come without one.
    """
    if spec.value_range is None and not spec.mean:
        return None
    low, high = spec.value_range or (0.0, 1.0)
    step = (high - low) / _BITS
    mean, std = spec.mean or (0.0,), spec.std or (1.0,)
    return [(m - low) / step for m in mean], [s / step for s in std]


def _labelled(contract: Contract) -> TensorSpec | None:
    """The output whose entries have the class names; None without class names."""
    if not contract.classes:
        return None
    if broken := next((name for name in contract.classes if not name or name.splitlines() != [name]), None):
        raise UserError(f"the class name {broken!r} can't be written as one line of {LABELS}", hint="rename the class")
    count = len(contract.classes)
    fitting = [spec for spec in contract.outputs if spec.shape and spec.shape[_class_axis(spec)] == count]
    if not fitting:
        shapes = ", ".join(f"{spec.name!r} {'×'.join(map(str, spec.shape))}" for spec in contract.outputs)
        raise UserError(
            f"the contract names {count} classes and no output has as many entries ({shapes})",
            hint="correct the contract's class names, or export with metadata = false",
        )
    return fitting[0]


def _class_axis(spec: TensorSpec) -> int:
    return spec.channel_axis if spec.layout in ("NCHW", "NHWC") else len(spec.shape) - 1


def _fields(contract: Contract, about: About, labelled: TensorSpec | None) -> dict[str, Any]:
    graph = {
        "input_tensor_metadata": [_input(spec) for spec in contract.inputs],
        "output_tensor_metadata": [_output(spec, named=spec is labelled) for spec in contract.outputs],
    }
    return {
        "name": about.name,
        "description": about.description,
        "version": about.version,
        "author": about.author or None,
        "license": about.licence or None,
        "subgraph_metadata": [graph],
        "min_parser_version": "1.0.0",
    }


def _input(spec: TensorSpec) -> dict[str, Any]:
    if spec.layout not in ("NHWC", "NCHW"):
        return _tensor(spec, "Numbers that the network takes beside its images")
    channels, (height, width) = spec.shape[spec.channel_axis], (spec.shape[a] for a in _plane(spec))
    image: dict[str, Any] = {"color_space": _COLOURS.get(channels, 0) if isinstance(channels, int) else 0}
    if isinstance(height, int) and isinstance(width, int):
        image["default_size"] = {"width": width, "height": height}
    found = _tensor(spec, "Image, normalised by the options given")
    found["content"] = {"content_properties": {"ImageProperties": image}}
    if (scale := normalisation(spec)) is not None:
        mean, std = scale
        found["process_units"] = [{"options": {"NormalizationOptions": {"mean": mean, "std": std}}}]
        found["stats"] = {
            "max": [(_BITS - m) / s for m, s in zip(mean, std, strict=True)],
            "min": [-m / s for m, s in zip(mean, std, strict=True)],
        }
    return found


def _plane(spec: TensorSpec) -> tuple[int, int]:
    return (1, 2) if spec.layout == "NHWC" else (2, 3)


def _output(spec: TensorSpec, *, named: bool) -> dict[str, Any]:
    found = _tensor(spec, "One number per class" if named else "What the network computes")
    if named:
        label = {"name": LABELS, "description": "The class names, one a line", "type": _AXIS_LABELS}
        found["associated_files"] = [label]
    return found


def _tensor(spec: TensorSpec, description: str) -> dict[str, Any]:
    return {
        "name": spec.name,
        "description": f"{description} ({spec.dtype} {'×'.join(map(str, spec.shape))})",
        "dimension_names": _DIMENSIONS.get(spec.layout),
        "content": {"content_properties": {"FeatureProperties": {}}},
    }


def _zipped(data: bytes, texts: dict[str, str]) -> bytes:
    """The file with a zip archive behind it; the flatbuffer in front stays as it is. The same texts give the same bytes."""
    held = io.BytesIO(data)
    with zipfile.ZipFile(held, "a") as archive:
        for name, text in texts.items():
            archive.writestr(zipfile.ZipInfo(name), text)  # dated 1980, so that two exports are equal
    return held.getvalue()


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
