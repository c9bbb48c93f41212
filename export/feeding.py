"""Inputs checked against a contract before a runtime sees them: some read past the end of an array that is too small."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..models.contract import TensorSpec
from ..models.errors import UserError
from .exporter import Tensors


def fed(specs: Sequence[TensorSpec], tensors: Tensors, *, file: str, any_batch: bool = False) -> dict[str, np.ndarray]:
    """The inputs by name, C-contiguous and in the contract's dtypes. `any_batch`: the first dimension may be other than it says.

    Raises UserError for a missing input, one that `file` has not, and a shape that is not the contract's.
    """
    names = [spec.name for spec in specs]
    if unknown := [name for name in tensors if name not in names]:
        raise UserError(f"{file} has no input {unknown[0]!r}", hint=f"its inputs are {', '.join(names)}")
    found = {}
    for spec in specs:
        if spec.name not in tensors:
            raise UserError(f"{file} needs the input {spec.name!r}, not given", hint="pass every input of the contract")
        array = np.asarray(tensors[spec.name])
        if not _fits(array.shape, spec.shape, any_batch=any_batch):
            raise UserError(
                f"input {spec.name!r} has shape {'×'.join(map(str, array.shape))}, {file} takes {'×'.join(map(str, spec.shape))}",
                hint="see the contract's shapes",
            )
        found[spec.name] = np.ascontiguousarray(array.astype(spec.dtype, copy=False))
    return found


def _fits(shape: tuple[int, ...], wanted: tuple[int | str, ...], *, any_batch: bool) -> bool:
    if len(shape) != len(wanted):
        return False
    skipped = 1 if any_batch else 0
    return all(isinstance(d, str) or d == n for d, n in zip(wanted[skipped:], shape[skipped:], strict=True))
