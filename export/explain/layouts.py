"""One value in two layouts: an artifact's inner values laid out as the reference's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..parity import sqnr_db

_ORDERS: dict[int, tuple[tuple[int, ...], ...]] = {
    3: ((0, 1, 2), (0, 2, 1)),
    4: ((0, 1, 2, 3), (0, 3, 1, 2)),
    5: ((0, 1, 2, 3, 4), (0, 4, 1, 2, 3)),
}
"""Channels first as it is, and from channels last."""


def aligned(reference: np.ndarray, value: np.ndarray, read: np.ndarray | None = None) -> np.ndarray | None:
    """`value` in the layout of `reference`; where several fit (square images), the one nearest to it. None when none fits.

    `read` is what the layer reads, in the reference's layout: a flattened image may be flattened channels last.
    """
    found = list(_candidates(reference, value, read))
    if len(found) < 2:
        return found[0] if found else None
    return max(found, key=lambda candidate: sqnr_db(reference, candidate))


def _candidates(reference: np.ndarray, value: np.ndarray, read: np.ndarray | None) -> Iterator[np.ndarray]:
    wanted = _long(reference.shape)
    for order in _ORDERS.get(value.ndim, (tuple(range(value.ndim)),)):
        turned = value.transpose(order)
        if _long(turned.shape) == wanted:  # axes of length 1 are dropped and added at will
            yield turned.reshape(reference.shape)
    if read is not None and read.ndim == 4 and reference.ndim == 2 and value.size == reference.size == read.size:
        n, c, h, w = read.shape
        yield value.reshape(n, h, w, c).transpose(0, 3, 1, 2).reshape(reference.shape)


def _long(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
