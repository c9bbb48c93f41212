"""The real Bayer frame of the benchmarks: what its maker's camera needs to be developed with true colours.

`data/n900_bayer_raw.png` is one frame of a Nokia N900 (from the Halide project's test images, MIT licence beside it): 2592×1968 counts of
10 bits in a 16-bit PNG, GRBG, black level 25, white level 1023, stored as the sensor lies, a quarter turn from upright. The two colour
matrices (3×4, from the same source) take sensor counts to linear colour under light of 3200 K and 7000 K; the offsets hold the black
level. In between they are interpolated in 1/T.

Halide's own rendering is called with 3700 K, but gives the 3200 K matrix the weight that belongs to the 7000 K one (0.25 instead of 0.75),
which is what a right interpolation gives at 5404 K. That is the balance in which the white dog is white, so it is taken here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from trimtab.models.raw.frame import RawFrame
from trimtab.models.raw.reading import read_raw

FRAME = Path(__file__).parent / "data" / "n900_bayer_raw.png"
PATTERN, BLACK, WHITE = "GRBG", 25, 1023
ROTATE = 270
"""Degrees clockwise that make it upright."""
KELVIN = 5404
MATRICES = {
    3200: ((1.6697, -0.2693, -0.4004, -42.4346), (-0.3576, 1.0615, 1.5949, -37.1158), (-0.2175, -1.8751, 6.9640, -26.6970)),
    7000: ((2.2997, -0.4478, 0.1706, -39.0923), (-0.3826, 1.5906, -0.2080, -25.4311), (-0.0888, -0.7344, 2.2832, -20.0826)),
}
OPTIONS = ["--pattern", PATTERN, "--black", str(BLACK), "--white", str(WHITE), "--rotate", str(ROTATE)]
"""What `trimtab isp develop` is told about it."""


def colour_matrix(kelvin: float = KELVIN) -> np.ndarray:
    """float64 (3, 4): sensor counts (red, green, blue, 1) → linear colour in counts, for light of this temperature."""
    (cold, first), (warm, second) = ((1 / t, np.array(m)) for t, m in sorted(MATRICES.items()))
    share = (1 / kelvin - cold) / (warm - cold)
    return first + share * (second - first)


def balance_and_matrix(kelvin: float = KELVIN) -> tuple[tuple[float, float, float], np.ndarray]:
    """White-balance gains (red, green = 1, blue), and the matrix (3, 3) from balanced camera RGB to linear sRGB, rows of sum 1.

    The grey of the sensor is what the 3×3 part takes to equal red, green and blue; the gains make it grey before the matrix.
    """
    matrix = colour_matrix(kelvin)[:, :3]
    grey = np.linalg.solve(matrix, np.ones(3))
    gains = grey[1] / grey
    balanced = matrix / gains
    return (float(gains[0]), 1.0, float(gains[2])), balanced / balanced.sum(axis=1, keepdims=True)


def frame(kelvin: float = KELVIN) -> RawFrame:
    """The frame with its balance and matrix, as a DNG would have them."""
    gains, matrix = balance_and_matrix(kelvin)
    return dataclasses.replace(read_raw(FRAME, pattern=PATTERN, black=BLACK, white=WHITE), gains=gains, matrix=matrix)
