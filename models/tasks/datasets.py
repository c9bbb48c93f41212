"""From a data spec such as "fashion-mnist" or "folder:PATH" to a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, did_you_mean
from .images import Dataset

NAMED = {
    "fashion-mnist": "60 000 + 10 000 grey clothes, 28×28, 10 classes",
    "digits": "1 797 handwritten digits, 8×8 shown at 32×32, 10 classes; needs no download",
    "elpv": "2 624 grey electroluminescence images of solar cells, 300×300, functional or defective; `pip install elpv-dataset`",
}
WITH_PATH = {
    "folder": "train/CLASS/*.jpg … and val/ or test/ beside it",
    "npz": "x_train, y_train, x_test, y_test [, x_val, y_val]",
    "idx": "a folder in MNIST's layout (…-images-idx3-ubyte[.gz])",
    "cifar10": "the folder cifar-10-batches-py",
    "cifar100": "the folder cifar-100-python",
    "elpv": "a folder with labels.csv and images/",
}


@dataclass(frozen=True)
class DataSpec:
    """A parsed data spec: its kind, and the path that it names (None for data with a name of its own)."""

    kind: str
    path: Path | None

    @staticmethod
    def parse(text: str) -> DataSpec:
        """The spec in `text`. Raises UserError with a did-you-mean, or when a path is missing or too much."""
        kind, colon, rest = text.partition(":")
        if kind not in NAMED and kind not in WITH_PATH:
            known = [*NAMED, *(f"{name}:PATH" for name in WITH_PATH)]
            near = did_you_mean(kind, {*NAMED, *WITH_PATH}) if kind else ""
            hint = near if near.startswith("did") else f"known: {', '.join(known)}"
            raise UserError(f"unknown data {text!r}", hint=hint)
        if kind in NAMED and not (colon and kind in WITH_PATH):
            if colon:
                raise UserError(f"data {text!r}: {kind} takes no path", hint=f"write just {kind!r}")
            return DataSpec(kind, None)
        if not rest:
            raise UserError(f"data {text!r} names no path", hint=f"write {kind}:PATH with {WITH_PATH[kind]}")
        path = Path(rest).expanduser()
        if not path.exists():
            raise UserError(f"{path} (from data {text!r}) does not exist", hint="check the path; `ls` its folder")
        return DataSpec(kind, path)


def open_dataset(text: str, *, size: tuple[int, int] | None = None, skip_bad: bool = False, download: bool = True) -> Dataset:
    """The data set that `text` names, at (H, W) = `size` or its own. Raises UserError where data is missing or damaged."""
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise UserError(f"size={size} must be a height and a width of 1 or more", hint="in pixels, such as (224, 224)")
    size = None if size is None else (int(size[0]), int(size[1]))
    spec = DataSpec.parse(text)
    if spec.kind == "folder" and spec.path is not None:
        from .sources_folder import open_folder

        return open_folder(spec.path, size=size, skip_bad=skip_bad)
    if spec.kind == "elpv":
        from .sources_elpv import open_elpv

        return open_elpv(spec.path, size=size, skip_bad=skip_bad)
    data = _open_arrays(spec, download=download)
    if spec.kind == "digits" and size is None:
        size = (32, 32)
    if size is None:
        return data
    val = None if data.val is None else data.val.resized(size)
    return Dataset(data.train.resized(size), val, data.test.resized(size), data.classes, data.flips, data.content)


def _open_arrays(spec: DataSpec, *, download: bool) -> Dataset:
    if spec.path is None:
        if spec.kind == "digits":
            from .sources_digits import open_digits

            return open_digits()
        from .sources_fashion import open_fashion_mnist

        return open_fashion_mnist(download=download)
    if spec.kind == "npz":
        from .sources_npz import open_npz

        return open_npz(spec.path)
    if spec.kind == "idx":
        from .sources_idx import open_idx

        return open_idx(spec.path)
    from .sources_cifar import open_cifar

    return open_cifar(spec.path, fine=spec.kind == "cifar100")
