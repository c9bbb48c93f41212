"""How different colours look: CIEDE2000 by the library colour-science."""

from __future__ import annotations

import numpy as np

from ..raw.libraries import library


def delta_e(made: np.ndarray, true: np.ndarray) -> np.ndarray:
    """float64 (N,): the mean over pixels of CIEDE2000 between sRGB pictures (N, 3, H, W) in 0…1, seen under D65.

    About 1 is the least difference that is seen side by side (CIE 142-2001). Raises UserError when the library is missing.
    """
    colour = library("colour")
    lab = [colour.XYZ_to_Lab(colour.sRGB_to_XYZ(np.moveaxis(np.asarray(part, np.float64), 1, -1))) for part in (made, true)]
    return np.asarray(colour.delta_E(*lab, method="CIE 2000"), np.float64).mean(axis=(1, 2))
