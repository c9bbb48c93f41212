"""From a data spec such as "photos:DIR" to RAW patches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError, did_you_mean
from .isp_data import IspData, checked_size

log = logging.getLogger(__name__)
WITH_PATH = {
    "photos": "a folder of photographs, of which synthetic RAW is made, or train/, val/ and test/ of them",
    "raws": "raw/ with RAW files of one camera, and rgb/ with finished pictures of other scenes",
    "zurich": "Zurich RAW-to-RGB: train/huawei_raw/NAME.png, train/canon/NAME.jpg, test/ alike",
    "fujifilm": "Fujifilm UltraISP: train/mediatek_raw/NAME.png, train/fujifilm/NAME.png, val/ and test/ alike",
}
SIZE = (128, 128)
"""Sides of the patches where the data has none of its own; 256 are published."""


def open_isp_data(
    text: str,
    *,
    size: tuple[int, int] | None,
    pattern: str | None,
    black: float | Sequence[float] | None,
    white: float | None,
    seed: int,
    val_fraction: float,
    test_fraction: float,
    patches: int,
    noise: bool,
    skip_bad: bool,
) -> IspData:
    """The patches that `text` names. Raises UserError for unknown data, a missing path, and options that the data does not have."""
    kind, path = _parsed(text)
    chosen = None if size is None else checked_size(size)
    if patches < 1:
        raise UserError(f"patches={patches} must be 1 or more", hint="how many patches a photograph or frame gives at most")
    if not noise and kind != "photos":
        raise UserError(
            f"noise=False goes with photos, the data is {text!r}", hint="leave noise out: the RAW is as the camera gave it"
        )
    if kind == "photos":
        from .sources_isp_photos import camera_of, open_photos

        camera = camera_of(pattern, black, white, noise=noise)
        found = open_photos(
            path,
            size=chosen or SIZE,
            camera=camera,
            seed=seed,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            patches=patches,
            skip_bad=skip_bad,
        )
    elif kind == "raws":
        from .sources_isp_raws import open_raws

        found = open_raws(
            path,
            size=chosen or SIZE,
            pattern=pattern,
            black=black,
            white=white,
            seed=seed,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            patches=patches,
            skip_bad=skip_bad,
        )
    else:
        from .sources_isp_pairs import open_pairs

        found = open_pairs(
            path, kind, size=chosen, pattern=pattern, black=black, white=white, seed=seed, val_fraction=val_fraction
        )
    for note in found.notes:
        log.warning("%s: %s", text, note)
    return found


def _parsed(text: str) -> tuple[str, Path]:
    kind, _, rest = text.partition(":")
    if kind not in WITH_PATH:
        near = did_you_mean(kind, WITH_PATH) if kind else ""
        known = ", ".join(f"{name}:DIR" for name in WITH_PATH)
        raise UserError(f"unknown data {text!r} for the task isp", hint=near if near.startswith("did") else f"known: {known}")
    if not rest:
        raise UserError(f"data {text!r} names no path", hint=f"write {kind}:DIR with {WITH_PATH[kind]}")
    path = Path(rest).expanduser()
    if not path.is_dir():
        raise UserError(f"{path} (from data {text!r}) is not a folder", hint=f"{kind}:DIR is {WITH_PATH[kind]}")
    return kind, path
