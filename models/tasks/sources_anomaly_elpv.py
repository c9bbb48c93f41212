"""ELPV as anomaly detection: learn the functional solar cells, find the defective ones.

Normal are the cells that all experts called functional (probability 0), anomalous those that all called defective (probability 1);
what they were unsure about (1/3 and 2/3) is left out. Of the normal ones 70 % are for training (validation comes out of them) and the
rest is tested, the same at every seed. Which cells come from one module is not published, so modules are shared among the splits:
figures are those of unseen cells of known modules. Labels are per picture: there are no masks. See `sources_elpv` for the data itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import digest_of
from .anomaly_data import GOOD, AnomalyData, Part, constant_note
from .images import ArrayImages
from .sources_elpv import TYPES, Cell, decode_all, find_elpv, read_labels
from .sources_folder import report_bad

CELLS = (*TYPES, "all")
TRAIN_SHARE = 0.7
DEFECTIVE = "defective"


def open_elpv_anomaly(
    folder: Path | None = None, *, cells: str = "all", size: tuple[int, int] | None = None, skip_bad: bool = False
) -> AnomalyData:
    """Normal training cells and the test, grey (1, H, W), decoded once into memory.

    `cells` picks monocrystalline or polycrystalline ones; with "all" the kinds of anomalies are "defective-mono" and "defective-poly".
    Raises UserError for a missing package, unknown `cells`, damaged labels, and for labels without normal or anomalous cells.
    """
    if cells not in CELLS:
        raise UserError(f"cells={cells!r} is unknown", hint=f"one of {', '.join(CELLS)}")
    sure = [c for c in read_labels(folder or find_elpv()) if c.probability in (0.0, 1.0) and cells in (c.kind, "all")]
    pixels, digests, problems = decode_all([cell.path for cell in sure], size)
    report_bad(problems, total=len(sure), skip_bad=skip_bad)
    good = np.array([place for place, cell in enumerate(sure) if cell.path not in problems], dtype=np.int64)
    train, test = _divided(sure, good, cells)
    targets = np.array([int(cell.probability) for cell in sure], dtype=np.int64)
    constant = pixels.reshape(len(pixels), -1)
    flat = constant.min(1) == constant.max(1)
    notes = constant_note([sure[i].path.name for i in train if flat[i]], of=len(train), where="ELPV's training")
    content = digest_of([(digests[i], sure[i].probability, sure[i].kind) for i in good.tolist()])
    parts = [_part(sure, pixels, targets, where, cells) for where in (train, test)]
    return AnomalyData(parts[0], None, parts[1], content, groups={}, notes=notes)


def _divided(sure: list[Cell], good: np.ndarray, cells: str) -> tuple[np.ndarray, np.ndarray]:
    """Places of the training and of the test cells: the normal ones of each type 70 to 30, the anomalous ones all in the test."""
    train: list[int] = []
    test = [int(i) for i in good if sure[int(i)].probability == 1.0]
    if not test:
        raise UserError(f"ELPV lists no defective cell (probability 1, cells={cells})", hint="check labels.csv")
    for kind in TYPES:
        normal = np.array([i for i in good if sure[int(i)].probability == 0.0 and sure[int(i)].kind == kind], dtype=np.int64)
        mixed = np.random.default_rng(0).permutation(normal)
        count = round(TRAIN_SHARE * len(mixed))
        train += mixed[:count].tolist()
        test += mixed[count:].tolist()
    if len(train) < 2:
        raise UserError(
            f"ELPV lists {len(train)} functional cell(s) for training (probability 0, cells={cells})", hint="check labels.csv"
        )
    return np.array(train, dtype=np.int64), np.array(test, dtype=np.int64)


def _part(sure: list[Cell], pixels: np.ndarray, targets: np.ndarray, where: np.ndarray, cells: str) -> Part:
    names = [DEFECTIVE if cells != "all" else f"{DEFECTIVE}-{sure[i].kind}" for i in where]
    kinds = tuple(name if targets[i] else GOOD for name, i in zip(names, where, strict=True))
    return Part(ArrayImages(pixels[where], targets[where]), kinds)
