"""The TFLite Metadata flatbuffer ("M001"): its tables as data, written from nested dictionaries and read back into them.

Field numbers as in TensorFlow Lite Support's `metadata_schema.fbs`, version 1.1.0; tables that trimtab never writes are left out.
A union's value is a dictionary of one entry, {table: fields}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flatbuffers
from flatbuffers import number_types
from flatbuffers.table import Table

IDENTIFIER = b"M001"

Fields = Mapping[str, Any]

_TABLES: dict[str, tuple[tuple[str, str], ...]] = {
    "ModelMetadata": (
        ("name", "string"),
        ("description", "string"),
        ("version", "string"),
        ("subgraph_metadata", "[SubGraphMetadata]"),
        ("author", "string"),
        ("license", "string"),
        ("associated_files", "[AssociatedFile]"),
        ("min_parser_version", "string"),
    ),
    "SubGraphMetadata": (
        ("name", "string"),
        ("description", "string"),
        ("input_tensor_metadata", "[TensorMetadata]"),
        ("output_tensor_metadata", "[TensorMetadata]"),
        ("associated_files", "[AssociatedFile]"),
    ),
    "TensorMetadata": (
        ("name", "string"),
        ("description", "string"),
        ("dimension_names", "[string]"),
        ("content", "Content"),
        ("process_units", "[ProcessUnit]"),
        ("stats", "Stats"),
        ("associated_files", "[AssociatedFile]"),
    ),
    "Content": (("content_properties", "|ContentProperties"),),
    "FeatureProperties": (),
    "ImageProperties": (("color_space", "byte"), ("default_size", "ImageSize")),
    "ImageSize": (("width", "uint"), ("height", "uint")),
    "ProcessUnit": (("options", "|ProcessUnitOptions"),),
    "NormalizationOptions": (("mean", "[float]"), ("std", "[float]")),
    "Stats": (("max", "[float]"), ("min", "[float]")),
    "AssociatedFile": (("name", "string"), ("description", "string"), ("type", "byte"), ("locale", "string")),
}
_UNIONS = {
    "ContentProperties": {1: "FeatureProperties", 2: "ImageProperties"},
    "ProcessUnitOptions": {1: "NormalizationOptions"},
}


def pack(fields: Fields) -> bytes:
    """The flatbuffer of a `ModelMetadata` table."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(_write(builder, "ModelMetadata", fields), IDENTIFIER)
    return bytes(builder.Output())


def unpack(data: bytes) -> dict[str, Any]:
    """The fields that a `ModelMetadata` flatbuffer holds. Raises ValueError for another kind of flatbuffer."""
    if data[4:8] != IDENTIFIER:
        raise ValueError(f"its identifier is {data[4:8]!r}, that of TFLite Metadata is {IDENTIFIER!r}")
    start = int.from_bytes(data[:4], "little")
    return _read(Table(bytearray(data), start), "ModelMetadata")


def _slots(table: str) -> list[tuple[int, str, str]]:
    """(slot, name, type) of every field; a union takes two slots, its table's number before its value."""
    found, slot = [], 0
    for name, kind in _TABLES[table]:
        found.append((slot, name, kind))
        slot += 2 if kind.startswith("|") else 1
    return found


def _write(builder: Any, table: str, fields: Fields) -> int:
    slots = _slots(table)
    known = {name for _, name, _ in slots}
    if unknown := set(fields) - known:
        raise KeyError(f"{table} has no field {min(unknown)!r}")
    ready = {slot: _prepared(builder, kind, fields[name]) for slot, name, kind in slots if fields.get(name) is not None}
    builder.StartObject(sum(2 if kind.startswith("|") else 1 for _, _, kind in slots))
    for slot, _, kind in slots:
        if slot not in ready:
            continue
        if kind == "byte":
            builder.PrependInt8Slot(slot, ready[slot], 0)
        elif kind == "uint":
            builder.PrependUint32Slot(slot, ready[slot], 0)
        elif kind.startswith("|"):
            number, value = ready[slot]
            builder.PrependUint8Slot(slot, number, 0)
            builder.PrependUOffsetTRelativeSlot(slot + 1, value, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(slot, ready[slot], 0)
    return int(builder.EndObject())


def _prepared(builder: Any, kind: str, value: Any) -> Any:
    """A number as it is; of everything else the offset at which it was written."""
    if kind in ("byte", "uint"):
        return int(value)
    if kind == "string":
        return builder.CreateString(value)
    if kind.startswith("|"):
        ((table, fields),) = value.items()
        numbers = {name: number for number, name in _UNIONS[kind[1:]].items()}
        return numbers[table], _write(builder, table, fields)
    if kind == "[float]":
        builder.StartVector(4, len(value), 4)
        for number in reversed(value):
            builder.PrependFloat32(float(number))
        return builder.EndVector()
    if kind.startswith("["):
        offsets = [_prepared(builder, kind[1:-1], entry) for entry in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    return _write(builder, kind, value)


def _read(table: Table, name: str) -> dict[str, Any]:
    found = {}
    for slot, field, kind in _slots(name):
        at = table.Offset(4 + 2 * slot)
        if at:
            found[field] = _value(table, kind, at, slot)
    return found


def _value(table: Table, kind: str, at: int, slot: int) -> Any:
    """The value `at` bytes into a table."""
    place = at + table.Pos
    if kind == "byte":
        return table.Get(number_types.Int8Flags, place)
    if kind == "uint":
        return table.Get(number_types.Uint32Flags, place)
    if kind == "string":
        return table.String(place).decode()
    if kind.startswith("|"):
        held = _UNIONS[kind[1:]].get(table.Get(number_types.Uint8Flags, place), "")
        inner = table.Offset(4 + 2 * (slot + 1))
        return {held: _read(Table(table.Bytes, table.Indirect(inner + table.Pos)), held)} if held and inner else {}
    if kind.startswith("["):
        start, count = table.Vector(at), table.VectorLen(at)
        return [_entry(table, kind[1:-1], start + 4 * number) for number in range(count)]
    return _read(Table(table.Bytes, table.Indirect(place)), kind)


def _entry(table: Table, kind: str, place: int) -> Any:
    if kind == "float":
        return table.Get(number_types.Float32Flags, place)
    if kind == "string":
        return table.String(place).decode()
    return _read(Table(table.Bytes, table.Indirect(place)), kind)
