"""Readers of point files: .pts, .ljson, .json, .csv, each to records of a picture and its points."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import read_json
from .landmark_data import some
from .sources_folder import SUFFIXES

SIDECARS = (".pts", ".ljson", ".json")
PARTS = ("train", "val", "test")
Points = np.ndarray


@dataclass(frozen=True)
class Record:
    """A picture's file, its points float64 (L, 2) as (x, y) in pixels counted from 0, its part ("" = not divided) and its group."""

    path: Path
    points: Points
    part: str
    group: str


def read_sidecars(root: Path) -> list[Record]:
    """Every picture under `root` with the points in the .pts, .ljson or .json of the same stem beside it, in order.

    Folders train/, val/ and test/ directly under `root` divide it. The group is the name of the folder that the picture lies in.
    Raises UserError when there are no pictures, when pictures have no points, and for damaged point files.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder", hint="points:DIR wants a folder of pictures with .pts files beside them")
    divided = [name for name in PARTS if (root / name).is_dir()]
    found: list[tuple[Path, str]] = []
    for part in divided or [""]:
        files = sorted(p for p in (root / part).rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES)
        found += [(p, part) for p in files if not p.name.startswith(".")]
    if not found:
        raise UserError(f"{root} holds no pictures", hint=f"they end in {', '.join(sorted(SUFFIXES))}")
    beside = {path: [path.with_suffix(s) for s in SIDECARS if path.with_suffix(s).is_file()] for path, _ in found}
    lacking = [str(path) for path, there in beside.items() if not there]
    if lacking:
        raise UserError(
            f"{len(lacking)} of {len(found)} pictures have no points file: {some(lacking)}",
            hint="put a .pts, .ljson or .json of the same name beside each picture",
        )
    readers = {".pts": read_pts, ".ljson": read_ljson, ".json": read_ljson}
    return [Record(path, readers[beside[path][0].suffix](beside[path][0]), part, path.parent.name) for path, part in found]


def read_pts(path: Path) -> Points:
    """float64 (L, 2) from 0 of a .pts file (version 1: `n_points: L`, then one "x y" a line in braces), which counts from 1.

    The counting is that of iBUG's 300-W annotations. Raises UserError for a wrong number of points and for other content.
    """
    lines = [line.strip() for line in _text(path).splitlines() if line.strip()]
    if "{" not in lines or "}" not in lines[lines.index("{") :]:
        raise UserError(f"{path} has no points in braces", hint='a .pts file has "n_points: L", "{", one "x y" a line, "}"')
    first = lines.index("{")
    rows = lines[first + 1 : lines.index("}", first)]
    head = dict(line.replace(" ", "").split(":", 1) for line in lines[:first] if ":" in line)
    if "n_points" in head and head["n_points"] != str(len(rows)):
        raise UserError(f"{path} promises {head['n_points']} points and has {len(rows)}", hint="the file is damaged")
    return _points([row.split() for row in rows], path) - 1


def read_ljson(path: Path) -> Points:
    """float64 (L, 2) of {"landmarks": {"points": [[y, x], …]}} (menpo's .ljson, or version 3 with one group); null = missing."""
    content = read_json(path)
    node = content
    if isinstance(node, dict) and isinstance(groups := node.get("groups"), dict):
        if len(groups) != 1:
            raise UserError(
                f"{path} has {len(groups)} groups of landmarks: {', '.join(groups)}", hint="keep one group in each file"
            )
        node = next(iter(groups.values()))
    landmarks = node.get("landmarks") if isinstance(node, dict) else None
    points = landmarks.get("points") if isinstance(landmarks, dict) else None
    if not isinstance(points, list) or not points:
        raise UserError(f"{path} has no landmarks.points", hint='expected {"landmarks": {"points": [[y, x], …]}}')
    return _points(points, path)[:, ::-1]


def read_csv(path: Path) -> list[Record]:
    """The records of a table with the columns file, x0, y0, x1, y1 … and perhaps group and part, in its order.

    File names are relative to the table's folder. Raises UserError for other columns, cells that are no numbers, unknown parts.
    """
    rows = list(csv.reader(_text(path).splitlines()))
    if not rows:
        raise UserError(f"{path} is empty", hint="the first line names the columns: file,x0,y0,x1,y1,…")
    header = [name.strip() for name in rows[0]]
    named = [name for name in header if name not in ("file", "group", "part")]
    wanted = [f"{axis}{i}" for i in range(len(named) // 2) for axis in "xy"]
    if "file" not in header or not named or sorted(named) != sorted(wanted) or len(set(header)) != len(header):
        raise UserError(
            f"{path} has the columns {', '.join(header[:8])}{' …' if len(header) > 8 else ''}",
            hint="expected file,x0,y0,x1,y1,… in pixels counted from 0, and perhaps group and part",
        )
    records = []
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) != len(header):
            raise UserError(f"{path}, line {number} has {len(row)} cells, the header {len(header)}", hint="complete the line")
        cells = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
        pairs = [(cells[f"x{i}"] or "nan", cells[f"y{i}"] or "nan") for i in range(len(wanted) // 2)]
        file = path.parent / cells["file"]
        part = _part(cells.get("part", ""), f"{path}, line {number}")
        records.append(Record(file, _points(pairs, f"{path}, line {number}"), part, cells.get("group", file.parent.name)))
    return _with_pictures(records, path)


def read_table(path: Path) -> list[Record]:
    """The records of {file: [[x, y], …]}, or of {"train": {file: …}, "test": {…}}, in pixels counted from 0, in the file's order.

    File names are relative to the file's folder. Raises UserError for other content.
    """
    content = read_json(path)
    hint = 'expected {"face1.jpg": [[x, y], …], …}, or such tables under "train", "val" and "test"'
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds no table of files", hint=hint)
    if "landmarks" in content:
        raise UserError(f"{path} holds the points of one picture", hint="put it beside the picture and use points:DIR")
    divided = set(content) <= set(PARTS)
    tables = content if divided else {"": content}
    records = []
    for part, table in tables.items():
        if not isinstance(table, dict):
            raise UserError(f"{path}: {part!r} holds no table of files", hint=hint)
        for name, points in table.items():
            if not isinstance(points, list) or not points:
                raise UserError(f"{path}: {name!r} has no list of points", hint=hint)
            file = path.parent / name
            records.append(Record(file, _points(points, f"{path}: {name}"), part, file.parent.name))
    return _with_pictures(records, path)


def _with_pictures(records: list[Record], path: Path) -> list[Record]:
    if not records:
        raise UserError(f"{path} lists no pictures", hint="one line or entry for each picture")
    absent = [str(record.path) for record in records if not record.path.is_file()]
    if absent:
        raise UserError(
            f"{len(absent)} of {len(records)} pictures in {path} are not there: {some(absent)}",
            hint=f"file names are relative to {path.parent}",
        )
    return records


def _part(name: str, where: str) -> str:
    if name and name not in PARTS:
        raise UserError(f"{where}: part {name!r} is unknown", hint="train, val, test, or empty in every line")
    return name


def _points(rows: Any, where: Path | str) -> Points:
    """float64 (L, 2); null becomes NaN. Raises UserError for a row that is not two numbers."""
    pairs = []
    for number, row in enumerate(rows):
        try:
            x, y = (math.nan if value is None else float(value) for value in row)
        except (TypeError, ValueError):
            said = " ".join(map(str, row)) if isinstance(row, list | tuple) else json.dumps(row)
            raise UserError(f"{where}: point {number} is {said!r}", hint="a point is two numbers") from None
        pairs.append((x, y))
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is not readable text: {error}", hint="the file is damaged or of another kind") from None
