"""What `trimtab isp develop` does with each file: read it, say what is odd about it, develop it, write it, and the strip beside it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .console import ConsoleProgress, output
from .develop import classical, develop
from .develop_files import KINDS, check_target, strip, turned, write_picture
from .develop_network import IspNetwork
from .models import files
from .models.errors import UserError

if TYPE_CHECKING:
    from .models.raw.frame import RawFrame

FIXED = "fixed rendering"


@dataclass(frozen=True)
class Wishes:
    """How frames are to be read and developed: the verb's options. `strip`: also side by side with the fixed rendering."""

    pattern: str | None = None
    black: tuple[float, ...] | None = None
    white: float | None = None
    tile: int = 512
    whole: bool = False
    gains: tuple[float, ...] | None = None
    demosaic: str = "menon"
    rotate: int = 0
    bits: int = 8
    strip: bool = False


def numbers(text: str | None, flag: str, counts: Sequence[int]) -> tuple[float, ...] | None:
    """The comma-separated numbers of an option; None without it. Raises UserError for other words and another count of them."""
    if text is None:
        return None
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError:
        found = ()
    if len(found) not in counts:
        wanted = " or ".join(map(str, counts))
        raise UserError(
            f"{flag} {text!r} is not {wanted} comma-separated number{'s' * (counts[-1] > 1)}", hint=f"{flag} {_example(flag)}"
        )
    return found


def _example(flag: str) -> str:
    return {"--gains": "1.6,1.2,1.4", "--black": "64, or one for each site: 62,60,58,61"}[flag]


def targets(photos: Sequence[Path], out: Path, wishes: Wishes, *, force: bool) -> list[tuple[Path, Path]]:
    """(photo, picture) of each: `out` itself for one photo, `out`/NAME.png for several or when `out` names a folder.

    Raises UserError for files that are not there, two photos of one name, and pictures that are there already, unless `force`.
    """
    if missing := [photo for photo in photos if not photo.is_file()]:
        raise UserError(f"{missing[0]} is not a file", hint="check the path")
    folder = len(photos) > 1 or out.is_dir() or not out.suffix
    if folder and out.suffix.lower() in KINDS:
        raise UserError(
            f"-o {out} is one picture, and there are {len(photos)} RAW files", hint=f"-o {out.with_suffix('')}, a folder"
        )
    pairs = [(photo, out / f"{photo.stem}.png" if folder else out) for photo in photos]
    taken: dict[Path, Path] = {}
    for photo, path in pairs:
        check_target(path, bits=wishes.bits)
        if path in taken:
            raise UserError(f"{taken[path]} and {photo} would both become {path}", hint="develop them into two folders")
        taken[path] = photo
        for written in (path, *([strip_path(path)] if wishes.strip else [])):
            if written.resolve() == photo.resolve():
                raise UserError(f"-o {out} would replace the RAW file {photo}", hint="give another -o")
            files.refuse_overwrite(written, force=force)
    return pairs


def strip_path(path: Path) -> Path:
    """Where the strip of a picture goes: NAME-strip.png beside it."""
    return path.with_name(f"{path.stem}-strip.png")


def develop_all(pairs: Sequence[tuple[Path, Path]], networks: Sequence[IspNetwork], wishes: Wishes) -> None:
    """None; every photo is developed, and the facts are the command's result. Of several photos, one that can't be developed is named
    and the others are developed all the same. Raises UserError in the end that counts those."""
    facts: list[dict[str, Any]] = []
    for photo, path in pairs:
        try:
            facts.append(develop_file(photo, path, networks, wishes))
        except UserError as error:
            if len(pairs) == 1:
                raise
            output.error(str(error))
            facts.append({"raw": str(photo), "error": error.what})
    output.result({"pictures": facts})
    if failed := [one["raw"] for one in facts if "error" in one]:
        raise UserError(
            f"{len(failed)} of {len(pairs)} files were not developed: {', '.join(failed[:5])}{', …' * (len(failed) > 5)}",
            hint="the reasons stand above; the other pictures are written",
        )


def develop_file(photo: Path, path: Path, networks: Sequence[IspNetwork], wishes: Wishes) -> dict[str, Any]:
    """Facts about the picture written to `path`: its size, and the seconds that developing took. No network: the fixed rendering."""
    frame = read_frame(photo, wishes)
    doubts = [text for network in networks if (text := network.check(frame))]
    for text in doubts:
        output.say(f"warning: {text}")
    started = time.perf_counter()
    if networks:
        pixels = develop(frame, networks[0], tile=wishes.tile, whole=wishes.whole, bits=wishes.bits, progress=ConsoleProgress())
    else:
        pixels = classical(frame, gains=wishes.gains, demosaic=wishes.demosaic, bits=wishes.bits)
    seconds = time.perf_counter() - started
    write_picture(path, turned(pixels, wishes.rotate))
    height, width = frame.size
    by = networks[0].label if networks else FIXED
    output.say(f"{photo} ({width}×{height}, {frame.pattern}) by {by} in {seconds:.1f} s: {path}")
    facts = {"raw": str(photo), "picture": str(path), "by": by, "width": width, "height": height, "pattern": frame.pattern}
    facts |= {"seconds": seconds, "warnings": [*frame.notes, *doubts]}
    if wishes.strip:
        facts["strip"] = str(_write_strip(frame, pixels, path, networks, wishes))
    return facts


def _write_strip(frame: RawFrame, pixels: np.ndarray, path: Path, networks: Sequence[IspNetwork], wishes: Wishes) -> Path:
    """Where the strip lies: the fixed rendering, the picture, and what the other networks make of the frame."""
    pictures = [classical(frame, gains=wishes.gains, demosaic=wishes.demosaic), _shallow(pixels)]
    pictures += [develop(frame, other, tile=wishes.tile, whole=wishes.whole) for other in networks[1:]]
    captions = [f"{FIXED} ({wishes.demosaic})", *(Path(network.label).name for network in networks)]
    sheet = strip([turned(picture, wishes.rotate) for picture in pictures], captions)
    target = write_picture(strip_path(path), np.asarray(sheet))
    output.say(f"side by side: {target}")
    return target


def _shallow(pixels: np.ndarray) -> np.ndarray:
    """The picture in 8 bits."""
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels / 257).astype(np.uint8)


def read_frame(photo: Path, wishes: Wishes) -> RawFrame:
    """The RAW file's frame; what is odd about it is said as warnings."""
    from .models.raw.reading import read_raw

    black = wishes.black[0] if wishes.black and len(wishes.black) == 1 else wishes.black
    frame = read_raw(photo, pattern=wishes.pattern, black=black, white=wishes.white)
    for note in frame.notes:
        output.say(f"warning: {photo}: {note}")
    return frame
