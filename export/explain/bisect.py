"""Bisection: the first node whose conversion fails or whose values leave the gate, found with a few exports of pieces."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..exporter import Tensors, exporters
from ..parity import Probe
from .pieces import Piece, Pieces, Place, Target, Verdict, convert_and_judge

if TYPE_CHECKING:
    from ..source import Source

SECONDS = 600.0


@dataclass(frozen=True)
class Culprit:
    """What a converter gets wrong: the node, its operator, its torch module, the user's line, and the failure.

    `alone`: the piece fails by itself too; without it, only after what comes before (errors that add up, operators merged).
    `others` are nodes that could not be told apart from it, `tries` how many pieces were exported, `piece` the smallest that
    fails. `complete` is False when time ran out before a single step was left.
    """

    node: str
    op: str
    module: str
    line: str
    kind: Literal["conversion", "parity"]
    message: str
    sqnr_db: float | None
    alone: bool
    complete: bool
    tries: int
    others: tuple[str, ...]
    piece: Piece

    def __str__(self) -> str:
        where = " ".join(part for part in (self.module, f"({self.line})" if self.line else "") if part)
        told = f"{self.op} ({self.node}){f' in {where}' if where else ''}: {self.message}"
        if not self.complete:
            return f"{told} [the search ended early; the fault lies in one of {len(self.others) + 1} nodes]"
        return told if self.alone else f"{told} [by itself it passes: the fault needs what comes before it]"


def bisect(
    pieces: Pieces,
    judge_piece: Callable[[Piece], Verdict],
    *,
    seconds: float = SECONDS,
    on_try: Callable[[int, int], None] | None = None,
) -> Culprit | None:
    """The first failing node of a network, None when the whole passes. About log2(nodes) + 2 pieces are judged.

    After `seconds` no further piece is begun. `on_try` hears (tries made, at most so many in all).
    """
    most = 2 + max(1, pieces.last).bit_length()
    tries, start = 0, time.monotonic()

    def verdict(piece: Piece) -> Verdict:
        nonlocal tries
        tries += 1
        if on_try:
            on_try(tries, most)
        return judge_piece(piece)

    piece = pieces.prefix(pieces.last)
    found = verdict(piece)
    if found.ok:
        return None
    sound, failing = 0, pieces.last
    while failing - sound > 1 and time.monotonic() - start < seconds:
        middle = (sound + failing) // 2
        tried = pieces.prefix(middle)
        now = verdict(tried)
        if now.ok:
            sound = middle
        else:
            failing, piece, found = middle, tried, now
    complete, alone = failing - sound <= 1, False
    step = pieces.between(sound, failing)
    if time.monotonic() - start < seconds:
        by_itself = verdict(step)
        if not by_itself.ok:
            alone, piece, found = True, step, by_itself
    return _culprit(pieces, step.places, piece, found, alone=alone, complete=complete, tries=tries)


def _culprit(
    pieces: Pieces, places: Sequence[Place], piece: Piece, found: Verdict, *, alone: bool, complete: bool, tries: int
) -> Culprit:
    place = next((p for p in places if _named(p, found.message)), places[0])
    line = place.line or (pieces.line(place) if hasattr(pieces, "line") else "")
    return Culprit(
        node=place.node,
        op=place.op,
        module=place.module,
        line=line,
        kind="parity" if found.kind == "parity" else "conversion",
        message=found.message,
        sqnr_db=found.sqnr_db,
        alone=alone,
        complete=complete,
        tries=tries,
        others=tuple(p.node for p in places if p is not place),
        piece=piece,
    )


def _named(place: Place, message: str) -> bool:
    """True when a converter's message names the place's operator."""
    plain = place.op.removeprefix("aten.").split(".")[0]
    return re.search(rf"(?<![A-Za-z]){re.escape(plain)}(?![A-Za-z])", message) is not None


def bisect_source(
    source: Source,
    target: Target,
    *,
    inputs: Sequence[Probe],
    feeds: Sequence[Tensors] = (),
    judge_piece: Callable[[Piece], Verdict] | None = None,
    seconds: float = SECONDS,
    on_try: Callable[[int, int], None] | None = None,
) -> Culprit | None:
    """The culprit in a Source's export to `target`, None when its pieces all pass.

    A format made from torch modules is cut as torch.export sees the module, at the first probe's size; one made from ONNX as the
    graph, at every size. `judge_piece` replaces the export in this process (to put it in a worker). Raises UserError for a module
    that can't be cut.
    """
    from .pieces_onnx import OnnxPieces
    from .pieces_torch import TorchPieces

    by_module = exporters.entry(target.format).card.source == "module" and source.module is not None
    pieces: Pieces
    if by_module and source.module is not None:
        pieces = TorchPieces(source.module, source.contract, inputs, feeds=feeds)
    else:
        pieces = OnnxPieces(source, inputs, feeds=feeds)
    with tempfile.TemporaryDirectory(prefix="trimtab-") as work:
        return bisect(
            pieces,
            judge_piece or (lambda piece: convert_and_judge(piece, target, Path(work))),
            seconds=seconds,
            on_try=on_try,
        )
