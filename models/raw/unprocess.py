"""Synthetic RAW: the mosaic a camera might have recorded, from a finished photograph.

After Brooks et al., "Unprocessing Images for Learned Raw Denoising" (CVPR 2019): the photograph's tone curve, gamma, colour
correction and white balance are undone in turn, then a mosaic is sampled and shot and read noise are added. The curves, the ranges
of the gains and the noise model are as published; the colour matrices are those of the four cameras of the Darmstadt data set, which
the paper names. Counts, black level and number of bits are this project's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from .frame import RawFrame, checked_levels
from .packing import checked_pattern, sample

GAMMA = 2.2
INFLECTION = 0.9
"""Grey level from which on highlights are darkened less than the gains ask for, so that white stays white."""
SRGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
"""Linear sRGB → CIE XYZ under D65 (IEC 61966-2-1)."""
Matrix = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]
MATRICES: tuple[Matrix, ...] = (
    ((0.4913, -0.0541, -0.0202), (-0.6130, 1.3513, 0.2906), (-0.1564, 0.2151, 0.7183)),  # Sony ILCE-7R
    ((0.6596, -0.2079, -0.0562), (-0.4782, 1.3016, 0.1933), (-0.0970, 0.1581, 0.5181)),  # Sony DSC-RX100M4
    ((0.8380, -0.2630, -0.0639), (-0.2887, 1.0725, 0.2496), (-0.0627, 0.1427, 0.5438)),  # Olympus E-M10
    ((1.0234, -0.2969, -0.2266), (-0.5625, 1.6328, -0.0469), (-0.0703, 0.2188, 0.6406)),  # Huawei Nexus 6P
)
"""CIE XYZ → camera RGB under D65: the ColorMatrix2 that the makers' DNG files and Adobe's converter carry."""


@dataclass(frozen=True)
class Camera:
    """What synthetic RAW is made for: sensor levels, and the ranges that each photograph's camera is drawn from.

    `black` is one level or four by position in the cell. `red_gain` and `blue_gain` are uniform ranges of the white-balance
    gains; `exposure` = (mean, standard deviation) of the share of the sensor's range that the photograph's white fills. `shot` is
    the range of the log-uniform shot noise (None: no noise at all), `read` = (slope, offset, standard deviation) of the
    log read variance given the log shot noise. Raises UserError for levels, bits and ranges that make no sense.
    """

    pattern: str = "RGGB"
    bits: int = 10
    black: float | tuple[float, float, float, float] = 63.0
    white: float = 1023.0
    red_gain: tuple[float, float] = (1.9, 2.4)
    blue_gain: tuple[float, float] = (1.5, 1.9)
    exposure: tuple[float, float] = (0.8, 0.1)
    matrices: tuple[Matrix, ...] = MATRICES
    shot: tuple[float, float] | None = (1e-4, 1.2e-2)
    read: tuple[float, float, float] = (2.18, 1.20, 0.26)

    def __post_init__(self) -> None:
        checked_pattern(self.pattern)
        checked_levels(self.black, self.white, source="synthetic camera")
        if not 10 <= self.bits <= 16 or self.white > 2**self.bits - 1:
            raise UserError(
                f"bits={self.bits} with white={self.white:g}",
                hint=f"10…16 bits, and a white level of at most {2**self.bits - 1}",
            )
        shot = self.shot or (1.0, 1.0)
        for name, (low, high) in (("red_gain", self.red_gain), ("blue_gain", self.blue_gain), ("shot", shot)):
            if not 0 < low <= high < np.inf:
                raise UserError(f"{name}=({low:g}, {high:g})", hint="a range low…high of positive numbers")
        if not (self.exposure[0] > 0 <= self.exposure[1] and self.read[2] >= 0):
            raise UserError(
                f"exposure={self.exposure}, read={self.read}", hint="a positive mean exposure, and spreads of at least 0"
            )
        if not self.matrices:
            raise UserError(
                "the synthetic camera has no colour matrix", hint="one or more 3×3 matrices from CIE XYZ to camera RGB"
            )


@dataclass(frozen=True, eq=False)
class Synthetic:
    """A synthetic mosaic, uint16 (H, W), and how it was made.

    `gains` (red, green = 1, blue) times 1/`exposure` and then `matrix` (balanced camera RGB → linear sRGB, float64 (3, 3)) lead
    back to the photograph's linear light; `noise` = (shot, read): variance = shot · signal + read, signal in 0…1.
    """

    mosaic: np.ndarray
    gains: tuple[float, float, float]
    exposure: float
    matrix: np.ndarray
    noise: tuple[float, float]
    camera: Camera

    def frame(self, *, source: str = "synthetic RAW") -> RawFrame:
        """The mosaic as a frame, as if it had been read from a file."""
        black, white = checked_levels(self.camera.black, self.camera.white)
        pattern = checked_pattern(self.camera.pattern)
        return RawFrame(self.mosaic, pattern, black, white, gains=self.gains, matrix=self.matrix, source=source)


def unprocess(rgb: np.ndarray, camera: Camera, rng: np.random.Generator) -> Synthetic:
    """A mosaic of the photograph `rgb`, (3, H, W), uint8 or float in 0…1, by a camera drawn from `camera`'s ranges.

    All that is random comes from `rng`: equal state, equal mosaic. Raises UserError for another shape or type, odd sides, and
    floats that are not in 0…1.
    """
    gains = (float(rng.uniform(*camera.red_gain)), 1.0, float(rng.uniform(*camera.blue_gain)))
    # a spread of several deviations would make a black photograph: half the mean is the least
    exposure = max(float(rng.normal(*camera.exposure)), camera.exposure[0] / 2)
    matrix = drawn_matrix(camera, rng)
    clean = sample(to_camera(rgb, gains=gains, exposure=exposure, matrix=matrix), camera.pattern)
    shot, read = drawn_noise(camera, rng)
    if shot:
        spread = np.sqrt(np.float32(shot) * clean + np.float32(read))
        spread *= rng.standard_normal(clean.shape, dtype=np.float32)
        clean += spread
    return Synthetic(_counts(clean, camera), gains, exposure, matrix, (shot, read), camera)


def to_camera(rgb: np.ndarray, *, gains: tuple[float, float, float], exposure: float, matrix: np.ndarray) -> np.ndarray:
    """float32 (3, H, W) in 0…1: the linear camera RGB that `process` makes `rgb` of; the paper's steps 1 to 4 undone.

    `matrix` is balanced camera RGB → linear sRGB. Pixels whose mean of the three colours is above 0.9 are darkened less than the
    gains ask for (the paper's highlight-preserving gains), so that a photograph's white saturates the sensor. Raises UserError
    as `unprocess` does.
    """
    linear = _linear(rgb)
    height, width = linear.shape[1:]
    camera = np.matmul(np.linalg.inv(matrix).astype(np.float32), linear.reshape(3, -1)).reshape(3, height, width)
    grey = camera.mean(axis=0)
    keep = np.square(np.maximum(grey - np.float32(INFLECTION), 0) / np.float32(1 - INFLECTION))
    np.minimum(keep, 1, out=keep)
    for channel, gain in enumerate(gains):
        inverse = np.float32(exposure / gain)
        camera[channel] *= np.maximum(keep + (1 - keep) * inverse, inverse)
    return np.clip(camera, 0, 1, out=camera)


def process(camera_rgb: np.ndarray, *, gains: tuple[float, float, float], exposure: float, matrix: np.ndarray) -> np.ndarray:
    """float32 (3, H, W) in 0…1: the photograph of linear camera RGB: gains, colour matrix, gamma 1/2.2 and smoothstep.

    Undoes `to_camera` wherever neither clips and no highlight was preserved. Raises UserError for another shape.
    """
    if camera_rgb.ndim != 3 or camera_rgb.shape[0] != 3:
        raise UserError(
            f"camera RGB of shape {tuple(camera_rgb.shape)}", hint="(3, H, W): red, green, blue, each at every pixel"
        )
    balanced = camera_rgb * (np.asarray(gains, np.float32) / np.float32(exposure))[:, None, None]
    linear = np.matmul(np.asarray(matrix, np.float32), np.clip(balanced, 0, 1).reshape(3, -1)).reshape(camera_rgb.shape)
    coded = np.power(np.clip(linear, 0, 1), np.float32(1 / GAMMA))
    return coded * coded * (3 - 2 * coded)


def drawn_matrix(camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """float64 (3, 3), balanced camera RGB → linear sRGB, of a camera blended from `camera.matrices` with random weights.

    The blend goes from XYZ to camera RGB; with sRGB in front and rows scaled to sum 1 (white stays white) it is inverted.
    """
    weights = rng.uniform(size=len(camera.matrices))
    blend = np.tensordot(weights / weights.sum(), np.asarray(camera.matrices, np.float64), axes=1)
    forward = blend @ SRGB_TO_XYZ
    return np.linalg.inv(forward / forward.sum(axis=1, keepdims=True))


def drawn_noise(camera: Camera, rng: np.random.Generator) -> tuple[float, float]:
    """(shot, read): the noise's variance is shot · signal + read; (0, 0) for a camera without noise.

    log shot is uniform; log read is normal around a line in log shot (the paper's fit to the Darmstadt data set's cameras).
    """
    if camera.shot is None:
        return 0.0, 0.0
    slope, offset, deviation = camera.read
    log_shot = rng.uniform(*np.log(camera.shot))
    return float(np.exp(log_shot)), float(np.exp(slope * log_shot + offset + rng.normal(0, deviation)))


def downscaled(rgb: np.ndarray, factor: int) -> np.ndarray:
    """float32 (3, H // factor, W // factor) in 0…1: area means in linear light, coded again with gamma 1/2.2.

    Takes JPEG blocks, an earlier demosaicing and noise out of a large photograph before it is unprocessed. A rest of rows or
    columns is cut off. Raises UserError for a factor below 1 or above the picture's sides, and as `unprocess` does.
    """
    _check_picture(rgb, even=False)
    height, width = rgb.shape[1] // max(factor, 1), rgb.shape[2] // max(factor, 1)
    if factor < 1 or not height or not width:
        raise UserError(f"factor={factor} for a picture of {rgb.shape[1]}×{rgb.shape[2]}", hint="1 up to the shorter side")
    out = np.empty((3, height, width), np.float32)
    for channel, mean in zip(rgb, out, strict=True):
        cut = channel[: height * factor, : width * factor]
        blocks = _decoded(cut, tone=False).reshape(height, factor, width, factor)
        np.power(blocks.mean(axis=(1, 3), dtype=np.float32), np.float32(1 / GAMMA), out=mean)
    return out


def _linear(rgb: np.ndarray) -> np.ndarray:
    """float32 (3, H, W): tone curve and gamma undone."""
    _check_picture(rgb, even=True)
    return _decoded(rgb, tone=True)


def _decoded(values: np.ndarray, *, tone: bool) -> np.ndarray:
    """float32 of the same shape: gamma, and with `tone` the smoothstep before it, undone; 8-bit values by a table of 256."""
    if values.dtype == np.uint8:
        return _decoded(np.arange(256, dtype=np.float32) / 255, tone=tone)[values]
    coded: np.ndarray = values.astype(np.float32)
    if tone:  # the real root of 3y² − 2y³ = x in 0…1
        coded = 0.5 - np.sin(np.arcsin(1 - 2 * coded) / 3)
        np.clip(coded, 0, 1, out=coded)
    return np.power(coded, np.float32(GAMMA), out=coded)


def _counts(signal: np.ndarray, camera: Camera) -> np.ndarray:
    """uint16 (H, W): the signal as counts above the black level, clipped where the sensor's counts end; overwrites `signal`."""
    black, white = checked_levels(camera.black, camera.white)
    for site, level in enumerate(black):
        part = signal[site // 2 :: 2, site % 2 :: 2]
        part *= np.float32(white - level)
        part += np.float32(level)
    np.rint(signal, out=signal)
    return np.clip(signal, 0, np.floor(white), out=signal).astype(np.uint16)


def _check_picture(rgb: np.ndarray, *, even: bool) -> None:
    shape = tuple(rgb.shape)
    if len(shape) != 3 or shape[0] != 3 or min(shape) < 1 or (rgb.dtype != np.uint8 and rgb.dtype.kind != "f"):
        raise UserError(f"a picture of {rgb.dtype} and shape {shape}", hint="(3, H, W), uint8 or floats in 0…1")
    if even and (shape[1] % 2 or shape[2] % 2):
        raise UserError(
            f"a picture of {shape[1]}×{shape[2]} has an odd side", hint="cut a row or column: a mosaic is made of 2×2 cells"
        )
    if rgb.dtype.kind == "f" and not (rgb.min() >= 0 and rgb.max() <= 1):
        raise UserError(
            f"picture values in {rgb.min():g}…{rgb.max():g}", hint="floats must be in 0…1; divide 8-bit values by 255"
        )
