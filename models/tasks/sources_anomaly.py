"""From a data spec such as "mvtec:DIR" to pictures with anomalies."""

from __future__ import annotations

import logging
from pathlib import Path

from ..errors import UserError, did_you_mean
from .anomaly_data import AnomalyData

log = logging.getLogger("trimtab")

NAMED = {
    "elpv": "2 624 grey pictures of solar cells, functional or defective; `pip install --no-deps elpv-dataset`",
    "scenes": "drawn pictures with structural and logical anomalies and masks; needs no download",
}
WITH_PATH = {
    "mvtec": "one category of MVTec AD: train/good, test/KIND, ground_truth/KIND",
    "loco": "one category of MVTec LOCO AD: as mvtec, with validation/good",
    "visa": "one category of VisA: in MVTec's layout, or as published, beside split_csv/1cls.csv",
    "folder": "train/good, test/good, test/KIND and, if there are masks, ground_truth/KIND",
    "elpv": "a folder with labels.csv and images/",
}


def open_anomaly(
    text: str,
    *,
    size: tuple[int, int] | None = None,
    cells: str = "all",
    counts: tuple[int, int, int] | None = None,
    skip_bad: bool = False,
) -> AnomalyData:
    """The data that `text` names, at (H, W) = `size` or its own; what was noticed is logged as a warning.

    Raises UserError where data is unknown, missing or damaged, for a size below 1, and for `cells` or `counts` that do not go with it.
    """
    kind, path = _parsed(text)
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise UserError(f"size={size} must be a height and a width of 1 or more", hint="in pixels, such as (256, 256)")
    size = None if size is None else (int(size[0]), int(size[1]))
    if cells != "all" and kind != "elpv":
        raise UserError(f"cells={cells!r} goes with elpv, the data is {text!r}", hint="leave cells out")
    if counts is not None and kind != "scenes":
        raise UserError(f"counts={counts} goes with scenes, the data is {text!r}", hint="leave counts out, or use max_train")
    found = _opened(kind, path, size=size, cells=cells, counts=counts, skip_bad=skip_bad)
    for note in found.notes:
        log.warning("%s: %s", text, note)
    return found


def _opened(
    kind: str,
    path: Path | None,
    *,
    size: tuple[int, int] | None,
    cells: str,
    counts: tuple[int, int, int] | None,
    skip_bad: bool,
) -> AnomalyData:
    if kind == "elpv":
        from .sources_anomaly_elpv import open_elpv_anomaly

        return open_elpv_anomaly(path, cells=cells, size=size, skip_bad=skip_bad)
    if path is None:
        from .anomaly_scenes import COUNTS, open_scenes

        return open_scenes(size=size or (64, 64), counts=tuple(counts) if counts is not None else COUNTS)  # type: ignore[arg-type]
    if kind == "visa" and not (path / "train").is_dir():
        from .sources_anomaly_visa import open_visa

        return open_visa(path, size=size, skip_bad=skip_bad)
    from .sources_anomaly_folder import open_layout

    return open_layout(path, own_validation=kind == "loco", size=size, skip_bad=skip_bad)


def _parsed(text: str) -> tuple[str, Path | None]:
    kind, colon, rest = text.partition(":")
    if kind not in NAMED and kind not in WITH_PATH:
        known = [*NAMED, *(f"{name}:DIR" for name in WITH_PATH)]
        near = did_you_mean(kind, {*NAMED, *WITH_PATH}) if kind else ""
        hint = near if near.startswith("did") else f"known: {', '.join(known)}"
        raise UserError(f"unknown data {text!r} for the task anomaly", hint=hint)
    if not colon and kind in NAMED:
        return kind, None
    if kind not in WITH_PATH:
        raise UserError(f"data {text!r}: {kind} takes no path", hint=f"write just {kind!r}")
    if not rest:
        raise UserError(f"data {text!r} names no path", hint=f"write {kind}:DIR with {WITH_PATH[kind]}")
    path = Path(rest).expanduser()
    if not path.is_dir():
        raise UserError(f"{path} (from data {text!r}) is not a folder", hint=f"{kind}:DIR is {WITH_PATH[kind]}")
    return kind, path
