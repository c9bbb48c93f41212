"""Synthetic RAW of finished photographs, split by photograph."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import digest_of
from ..raw.frame import checked_levels
from ..raw.packing import checked_pattern
from ..raw.unprocess import MATRICES, Camera, downscaled, unprocess
from .isp_data import ArrayPatches, ArrayPictures, IspData, Sensor, grid, split_of
from .sources_folder import SUFFIXES, THREADS, decoded, look_at_all, report_bad
from .task import Split

MOST_SHRUNK = 4
"""Largest factor that photographs are shrunk by before RAW is made of them: JPEG blocks and earlier demosaicing are gone by then."""
SHORTER_SIDE = 512
"""A photograph is not shrunk below this."""
PHONE = MATRICES[3]
"""One camera, as an ISP network is made for one: the colour matrix of a smartphone (Nexus 6P)."""
PARTS: tuple[Split, ...] = ("train", "val", "test")


def camera_of(pattern: str | None, black: float | Sequence[float] | None, white: float | None, *, noise: bool) -> Camera:
    """The synthetic camera: RGGB, 10 bits, black 63, white 1023 unless told otherwise. Raises UserError for what makes no sense."""
    levels, top = checked_levels(63.0 if black is None else black, 1023.0 if white is None else white, source="photos")
    bits = max(10, int(top).bit_length())
    chosen = checked_pattern(pattern or "RGGB")
    if noise:
        return Camera(chosen, bits=bits, black=levels, white=top, matrices=(PHONE,))
    return Camera(chosen, bits=bits, black=levels, white=top, matrices=(PHONE,), shot=None)


def open_photos(
    root: Path,
    *,
    size: tuple[int, int],
    camera: Camera,
    seed: int,
    val_fraction: float,
    test_fraction: float,
    patches: int,
    skip_bad: bool,
) -> IspData:
    """Patches of the photographs under `root`, up to `patches` of each, and RAW made of them.

    Every photograph has its own light, exposure and noise, drawn from its content alone. It belongs to one split as a whole, by `seed`
    or by folders train/, val/ and test/; half of the training photographs are the unpaired pictures, the other half become mosaics.

    Raises UserError for fewer than four photographs, unreadable ones (unless `skip_bad`), and when none is large enough.
    """
    listed = _listed(root)
    looks = look_at_all(list(dict.fromkeys(path for paths in listed.values() for path in paths)))
    report_bad({path: look.problem for path, look in looks.items() if look.problem}, total=len(looks), skip_bad=skip_bad)
    files = {part: [path for path in paths if not looks[path].problem] for part, paths in listed.items()}
    small = [path for paths in files.values() for path in paths if _too_small(looks[path].size, size)]
    files = {part: [path for path in paths if path not in small] for part, paths in files.items()}
    split = _split(root, files, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction)
    digests = {path: looks[path].digest for paths in split.values() for path in paths}
    with ThreadPoolExecutor(THREADS) as workers:
        made = dict(
            zip(digests, workers.map(lambda p: pictures_of(p, digests[p], size=size, count=patches), digests), strict=True)
        )
    parts = {part: _patches([(made[p], digests[p]) for p in split[part]], camera) for part in PARTS}
    pool = np.concatenate([made[path] for path in split["pool"]])
    content = digest_of([repr(camera), size, patches, {part: [digests[p] for p in paths] for part, paths in split.items()}])
    notes = (f"{len(small)} photograph(s) are smaller than a patch and were left out",) if small else ()
    levels, top = checked_levels(camera.black, camera.white)
    return IspData(parts, ArrayPictures(pool), Sensor(camera.pattern, levels, top), content, notes)


def pictures_of(path: Path, digest: str, *, size: tuple[int, int], count: int) -> np.ndarray:
    """uint8 (n, 3, H, W): up to `count` patches of a photograph, shrunk first, which patches by the file's digest."""
    whole = np.asarray(decoded(str(path), channels=3)).transpose(2, 0, 1)
    factor = max(1, min(MOST_SHRUNK, min(whole.shape[1:]) // max(SHORTER_SIDE, *size)))
    shrunk = np.rint(255 * downscaled(whole, factor)).astype(np.uint8)
    places = grid(shrunk.shape, size, count, _rng(digest, "patches"))
    return np.stack([shrunk[:, top : top + size[0], left : left + size[1]] for top, left in places])


def _patches(photographs: list[tuple[np.ndarray, str]], camera: Camera) -> ArrayPatches:
    """RAW of the photographs' patches, in a shuffled order: the first n are a fair sample."""
    pictures = np.concatenate([patches for patches, _ in photographs])
    counts = np.concatenate([_mosaics(patches, camera, digest) for patches, digest in photographs])
    order = np.random.default_rng(0).permutation(len(counts))
    return ArrayPatches(counts[order], pictures[order])


def _mosaics(patches: np.ndarray, camera: Camera, digest: str) -> np.ndarray:
    """uint16 (n, H, W): all patches of one photograph under one light, as one tall picture."""
    count, _, height, width = patches.shape
    tall = patches.transpose(1, 0, 2, 3).reshape(3, count * height, width)
    return unprocess(tall, camera, _rng(digest, "camera")).mosaic.reshape(count, height, width)


def _listed(root: Path) -> dict[str, list[Path]]:
    """Photographs by part, or all of them under "" where there are no folders train/, val/ and test/."""
    there = [part for part in PARTS if (root / part).is_dir()]
    if there and len(there) < len(PARTS):
        raise UserError(
            f"{root} has {', '.join(there)} but not {', '.join(p for p in PARTS if p not in there)}",
            hint="put all photographs side by side, or lay out the three folders train/, val/ and test/",
        )
    folders: dict[str, Path] = {str(part): root / part for part in there} or {"": root}
    found = {part: sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES) for part, folder in folders.items()}
    for part, paths in found.items():
        if not paths:
            raise UserError(
                f"{folders[part]} holds no photographs", hint="JPEG or PNG files; several megapixels each serve best"
            )
    return found


def _split(
    root: Path, files: Mapping[str, list[Path]], *, seed: int, val_fraction: float, test_fraction: float
) -> dict[str, list[Path]]:
    """The photographs of train, val, test and of the pool of unpaired pictures."""
    if "" not in files:
        split = {part: list(paths) for part, paths in files.items()}
        split["train"] = [split["train"][i] for i in np.random.default_rng(seed).permutation(len(split["train"]))]
    else:
        every = files[""]
        if len(every) < 4:
            raise UserError(
                f"{root} holds {len(every)} photograph(s) that are large enough",
                hint="four at least: mosaics, unpaired pictures, validation and test are of different scenes",
            )
        drawn = split_of(len(every), seed=seed, val_fraction=val_fraction, test_fraction=test_fraction, what="photographs")
        split = {part: [every[i] for i in places] for part, places in drawn.items()}
    half = len(split["train"]) // 2
    if not half or not split["val"] or not split["test"]:
        raise UserError(
            f"{root}: {len(split['train'])} photograph(s) to train on, {len(split['val'])} for validation, {len(split['test'])} to test",
            hint="two to train on at least (one becomes RAW, one an unpaired picture), and one for each of the others",
        )
    return split | {"train": split["train"][half:], "pool": split["train"][:half]}


def _too_small(have: tuple[int, int], size: tuple[int, int]) -> bool:
    return have[0] < size[0] or have[1] < size[1]


def _rng(digest: str, what: str) -> np.random.Generator:
    """A generator that depends on a file's content and on what it is for."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{digest} {what}".encode()).digest()[:8], "big"))
