"""ELPV: electroluminescence images of solar cells, functional or defective.

2 624 grey images of 300×300 from 44 modules (18 monocrystalline, 26 polycrystalline), each with the probability that experts
gave it of being defective (0, 1/3, 2/3 or 1). Here a cell is defective from a probability of 0.5 on. Sources: Buerhop-Lutz et al.,
A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence Imagery, EU PVSEC 2018; Deitsch et al.,
Segmentation of Photovoltaic Module Cells in Uncalibrated Electroluminescence Images, 2021.

The images are licensed CC BY-NC-SA 4.0 (attribution, no commercial use, share alike). They are read from where the user
installed them and are never downloaded or copied by this package.

The test split is the same quarter of the images at every seed, stratified by class and cell type. Which cells come from one module is not
published, so modules are shared among the splits: figures are those of unseen cells of known modules, not of unseen modules.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import UserError
from ..files import digest_of
from .images import ArrayImages, Dataset
from .sources_folder import THREADS, report_bad
from .splits import stratified

CLASSES = ("functional", "defective")
TYPES = ("mono", "poly")
DEFECTIVE_FROM = 0.5
TEST_SHARE = 0.25
PACKAGE = "elpv_dataset"
PORTION = 256
BILINEAR = Image.Resampling.BILINEAR


@dataclass(frozen=True)
class Cell:
    """One line of labels.csv: the image, the probability that the cell is defective, and its type."""

    path: Path
    probability: float
    kind: str

    @property
    def label(self) -> int:
        """Its place among `CLASSES`."""
        return int(self.probability >= DEFECTIVE_FROM)

    @property
    def stratum(self) -> int:
        """Its class and type as one number, 0 … 3."""
        return self.label * len(TYPES) + TYPES.index(self.kind)


def find_elpv() -> Path:
    """The data folder of the installed package elpv-dataset, which is not imported. Raises UserError when there is none."""
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations if spec else None) or ():
        folder = Path(place) / "data"
        if (folder / "labels.csv").is_file():
            return folder
    raise UserError(
        "the ELPV solar-cell images are not installed",
        hint="pip install --no-deps elpv-dataset (91 MB; its images are CC BY-NC-SA 4.0: no commercial use), or elpv:DIR with "
        "a folder that holds labels.csv and images/",
    )


def open_elpv(folder: Path | None = None, *, size: tuple[int, int] | None = None, skip_bad: bool = False) -> Dataset:
    """Training and test images (1, H, W) of ELPV in `folder`, or of the installed package, decoded once into memory.

    Without `size`, the first image's counts. Raises UserError for a missing package, a damaged labels.csv, and images that
    cannot be read (unless `skip_bad`).
    """
    cells = read_labels(folder or find_elpv())
    pictures, digests, problems = decode_all([cell.path for cell in cells], size)
    report_bad(problems, total=len(cells), skip_bad=skip_bad)
    good = np.array([place for place, cell in enumerate(cells) if cell.path not in problems], dtype=np.int64)
    if not len(good):
        raise UserError("no image of ELPV can be read", hint="install the data again")
    targets = np.array([cell.label for cell in cells], dtype=np.int64)
    train, test = _split(good, np.array([cell.stratum for cell in cells]))
    images = ArrayImages(pictures, targets)
    content = digest_of([(digests[place], cells[place].probability, cells[place].kind) for place in good.tolist()])
    return Dataset(images.take(train), None, images.take(test), CLASSES, flips=True, content=content)


def decode_all(paths: list[Path], size: tuple[int, int] | None) -> tuple[np.ndarray, list[str], dict[Path, str]]:
    """(uint8 pixels (N, 1, H, W), the files' digests, what is wrong with which file), read by several threads."""
    found: np.ndarray | None = None
    digests = [""] * len(paths)
    problems: dict[Path, str] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(paths), PORTION):
            for place, (digest, picture) in enumerate(pool.map(_decode, paths[start : start + PORTION]), start):
                if isinstance(picture, str):
                    problems[paths[place]] = picture
                    continue
                width, height = (size[1], size[0]) if size else picture.size
                if found is None:
                    found, size = np.zeros((len(paths), 1, height, width), dtype=np.uint8), (height, width)
                digests[place] = digest
                found[place, 0] = np.asarray(
                    picture if picture.size == (width, height) else ImageOps.fit(picture, (width, height), BILINEAR)
                )
    return np.zeros((len(paths), 1, 1, 1), dtype=np.uint8) if found is None else found, digests, problems


def _decode(path: Path) -> tuple[str, Image.Image | str]:
    """The digest of a file and its picture in grey, or what is wrong with it."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            return hashlib.sha256(data).hexdigest(), image.convert("L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow's message ends in the address of our buffer, which helps nobody
        return "", "not an image that Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else str(error)


def read_labels(folder: Path) -> list[Cell]:
    """The cells in `folder`/labels.csv, in its order. Raises UserError, with the line, for what is not a label."""
    listing = folder / "labels.csv"
    if not listing.is_file():
        raise UserError(f"{listing} does not exist", hint="elpv:DIR, where DIR holds labels.csv and images/")
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{listing} cannot be read: {error}", hint="install the data again") from None
    cells = [_cell(line, folder, where=f"{listing}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not cells:
        raise UserError(f"{listing} lists no image", hint="install the data again")
    return cells


def _cell(line: str, folder: Path, *, where: str) -> Cell:
    parts = line.split()
    expected = 'a line is "images/cell0001.png  1.0  mono": the image, the probability of a defect (0 … 1), mono or poly'
    if len(parts) != 3 or parts[2] not in TYPES:
        raise UserError(f"{where} is not a label: {line.strip()[:80]!r}", hint=expected)
    try:
        probability = float(parts[1])
    except ValueError:
        probability = float("nan")
    if not 0 <= probability <= 1:
        raise UserError(f"{where}: {parts[1]!r} is not a probability", hint=expected)
    path = folder / parts[0]
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{where}: {parts[0]!r} lies outside {folder}", hint="images lie in the folder of labels.csv")
    return Cell(path, probability, parts[2])


def _split(positions: np.ndarray, strata: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the training and the test images: the same at every seed, each class and type in proportion."""
    return stratified(positions, strata, round(TEST_SHARE * len(positions)), seed=0)
