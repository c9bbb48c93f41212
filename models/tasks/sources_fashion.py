"""Fashion-MNIST: found on this machine, or downloaded once."""

from __future__ import annotations

import logging
import os
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import digest_of, write_bytes
from .images import ArrayImages, Dataset
from .sources_idx import read_idx

log = logging.getLogger("trimtab")

URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Of the unpacked files: a mirror may have packed them anew."""
LIMIT_BYTES = 64 << 20


def cache_folder() -> Path:
    """Where downloads stay: $XDG_CACHE_HOME/trimtab, or ~/.cache/trimtab."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab"


def search_folders() -> list[Path]:
    """The folders in which Fashion-MNIST is looked for, in order."""
    own = os.environ.get("TRIMTAB_DATA")
    return [*([Path(own) / "fashion-mnist"] if own else []), DEBIAN, cache_folder() / "fashion-mnist"]


def find_fashion_mnist(*, download: bool = True) -> Path:
    """The first folder that holds all four files, filled by a download when none does. Raises UserError when there is none."""
    for folder in search_folders():
        if all((folder / name).is_file() or (folder / f"{name}.gz").is_file() for name in SHA256):
            return folder
    if not download:
        raise _nowhere("it was not to be downloaded")
    return _download(cache_folder() / "fashion-mnist")


def open_fashion_mnist(*, download: bool = True) -> Dataset:
    """60 000 training and 10 000 test images (1, 28, 28), checked against the published digests.

    Source: H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST, a Novel Image Dataset for Benchmarking Machine Learning
    Algorithms, 2017 (MIT licence).
    """
    folder = find_fashion_mnist(download=download)
    arrays = []
    for name, digest in SHA256.items():
        path = folder / name if (folder / name).is_file() else folder / f"{name}.gz"
        arrays.append(read_idx(path, dimensions=3 if "images" in name else 1, sha256=digest))
    train, test = (ArrayImages(x[:, None], y.astype(np.int64)) for x, y in (arrays[:2], arrays[2:]))
    return Dataset(train=train, val=None, test=test, classes=CLASSES, flips=True, content=digest_of(SHA256))


def _nowhere(why: str) -> UserError:
    looked = ", ".join(str(folder) for folder in search_folders())
    return UserError(
        f"Fashion-MNIST was not found in {looked}, and {why}",
        hint="do one of three: `apt-get install dataset-fashion-mnist`; put the four idx files into a folder fashion-mnist and "
        f"set TRIMTAB_DATA to its parent; or connect to the network and run again (31 MB from {URL})",
    )


def _download(folder: Path) -> Path:
    for name, digest in SHA256.items():
        path = folder / f"{name}.gz"
        log.info("downloading %s%s.gz to %s", URL, name, folder)
        try:
            with urllib.request.urlopen(f"{URL}{name}.gz", timeout=30) as reply:  # noqa: S310 (a constant https address)
                data = reply.read(LIMIT_BYTES + 1)
        except (urllib.error.URLError, OSError) as error:
            raise _nowhere(f"the download failed ({getattr(error, 'reason', error)})") from None
        write_bytes(path, data[:LIMIT_BYTES])
        try:
            read_idx(path, dimensions=3 if "images" in name else 1, sha256=digest)
        except UserError:
            path.unlink()
            raise
    return folder
