"""A table of answers as one writes it while asking: one line per image, read into the arrays of an answers file."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from ...models.errors import UserError

FIRST = "position"


def columns_for(questions: int, *, probabilities: bool) -> list[str]:
    """The columns of a table: position, then yes_1, no_1, yes_2, … (logits), or p_1, p_2, … (P(yes)), in the questions' order."""
    numbers = range(1, questions + 1)
    return (
        [FIRST, *(f"p_{i}" for i in numbers)]
        if probabilities
        else [FIRST, *(f"{a}_{i}" for i in numbers for a in ("yes", "no"))]
    )


def read_table(path: Path, *, questions: int, count: int) -> dict[str, np.ndarray]:
    """{"logits": (n, Q, 2)} or {"probabilities": (n, Q)}, float64, of a .csv with one line for every image 0 … count − 1.

    The lines may come in any order; a position may be written as the image's file name. Raises UserError, with the line, for
    missing or unknown columns, cells that are not numbers, and positions that are missing, repeated or out of range.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist", hint="the table of answers: one line per image")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        header = [name.strip() for name in next(reader, [])]
        probabilities = "p_1" in header
        wanted = columns_for(questions, probabilities=probabilities)
        _check_header(header, wanted, path)
        order = [header.index(name) for name in wanted]
        values, line_of = np.empty((count, len(wanted) - 1)), np.zeros(count, np.int64)
        for row in reader:
            if not row:
                continue
            position, numbers = _line(
                [row[i] if i < len(row) else "" for i in order], wanted, f"{path}, line {reader.line_num}"
            )
            _check_position(position, line_of, f"{path}, line {reader.line_num}")
            values[position], line_of[position] = numbers, reader.line_num
    if missing := np.flatnonzero(line_of == 0).tolist():
        shown = ", ".join(map(str, missing[:5])) + (" …" if len(missing) > 5 else "")
        raise UserError(
            f"{path} has no answers for {len(missing)} of {count} images: {shown}", hint="every training image needs a line"
        )
    return {"probabilities": values} if probabilities else {"logits": values.reshape(count, questions, 2)}


def _check_header(header: list[str], wanted: list[str], path: Path) -> None:
    missing, extra = [n for n in wanted if n not in header], [n for n in header if n not in wanted]
    if missing or extra or len(header) != len(wanted):
        wrong = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(extra) or 'a column twice'} beside them"
        raise UserError(
            f"the first line of {path} must name the columns {wanted[0]}, {wanted[1]} … {wanted[-1]}; it {wrong}",
            hint=f"{(len(wanted) - 1) // (1 if 'p_1' in wanted else 2)} questions are in aspects.json: a yes_ and a no_ column "
            "(logits) for each, or one p_ column (probability of yes)",
        )


def _line(cells: list[str], names: list[str], where: str) -> tuple[int, list[float]]:
    """(position, numbers) of one line."""
    text = cells[0].strip().removesuffix(".png")
    if not text.isdecimal():
        raise UserError(f"{where}: {cells[0]!r} is not a position", hint="0, 1, 2 …, or the image's file name")
    numbers = []
    for name, cell in zip(names[1:], cells[1:], strict=True):
        try:
            numbers.append(float(cell))
        except ValueError:
            raise UserError(f"{where}: {name} is {cell!r}, not a number", hint="write every answer as a number") from None
    return int(text), numbers


def _check_position(position: int, line_of: np.ndarray, where: str) -> None:
    if position >= len(line_of):
        raise UserError(f"{where}: position {position} is outside 0…{len(line_of) - 1}", hint="the images' names are positions")
    if line_of[position]:
        raise UserError(
            f"{where}: position {position} was answered in line {line_of[position]} already", hint="keep one line per image"
        )
