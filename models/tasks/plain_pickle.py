"""Numbers, strings, containers and arrays out of a pickle, without running what a pickle may ask for."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError

DTYPES = ("u1", "i1", "i2", "i4", "i8", "f4", "f8")


def _text(value: bytes | str) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


class _Dtype:
    """Stands for numpy.dtype: a code and a byte order, checked; nothing of numpy is called with a pickle's arguments."""

    def __init__(self, code: bytes | str, *_: Any) -> None:
        self.code, self.order = _text(code), "|"
        if self.code not in DTYPES:
            raise pickle.UnpicklingError(f"array type {self.code!r} is not a plain number")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = _text(state[1])
        if self.order not in ("|", "<", ">", "="):
            raise pickle.UnpicklingError(f"unknown byte order {self.order!r}")


class _Array:
    """Stands for numpy.ndarray: filled from a shape, a type and bytes whose lengths must agree."""

    def __init__(self, *_: Any) -> None:
        self.values = np.empty(0, dtype=np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array does not hold plain numbers")
        flat = np.frombuffer(data, dtype=np.dtype(dtype.order + dtype.code))
        self.values = flat.reshape(shape, order="F" if fortran else "C")


ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise UserError(f"the pickle asks for {module}.{name}, which is refused: pickles can run code")
        return ALLOWED[module, name]


def read_plain_pickle(path: Path, *, hint: str) -> dict[str, Any]:
    """The dictionary in a pickle of numbers, strings, containers and arrays; its keys become text, Python 2 strings bytes.

    Any other name is refused, not imported. Raises UserError with `hint` for that, for damage, and for other content.
    """
    try:
        with path.open("rb") as file:
            data = _PlainUnpickler(file, encoding="bytes").load()
    except UserError as error:
        raise UserError(f"{path}: {error.what}", hint=hint) from None
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", hint=hint) from None
    except Exception as error:  # a damaged pickle can fail in any way; nothing of it has been kept
        raise UserError(f"{path} is damaged or of another kind: {type(error).__name__}: {error}", hint=hint) from None
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}, not a dictionary", hint=hint)
    return {_text(key): value.values if isinstance(value, _Array) else value for key, value in data.items()}
