"""Numbers as a reader wants them: the report's Jinja filters. Each takes a value and gives a short string."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

NONE = "–"
_SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def si(value: float | None) -> str:
    """Three significant digits with an SI prefix: 31_200_000 → "31.2 M"."""
    if value is None:
        return NONE
    for scale, prefix in _SI:
        if abs(value) >= 0.9995 * scale:
            return f"{significant(value / scale)}\u00a0{prefix}"
    return significant(value)


def significant(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits, no exponent between 1e-4 and 1e15, a true minus sign, ∞ for infinity."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("-", "−")
    rounded = float(f"{value:.{digits - 1}e}")  # 0.9996 is 1.00, not 1.000
    places = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{value:,.{places}f}".replace(",", "\u202f").replace("-", "−")


def fixed(value: float | None, places: int = 2) -> str:
    """`places` decimals with thin spaces between thousands; ∞ for infinity."""
    if value is None or not math.isfinite(value):
        return significant(value)
    return f"{round(value, places) + 0.0:,.{places}f}".replace(",", "\u202f").replace("-", "−")


def whole(value: float | None) -> str:
    """An integer with thin spaces between thousands."""
    return fixed(value, 0)


def percent(value: float | None, places: int = 2) -> str:
    """A fraction as "91.83 %"."""
    return NONE if value is None else f"{fixed(100 * value, places)}\u00a0%"


def signed(value: float | None, places: int = 2) -> str:
    """`places` decimals, always with a sign (zero has none)."""
    text = fixed(value, places)
    return f"+{text}" if value is not None and round(value, places) > 0 else text


def kilobytes(value: float | None) -> str:
    """Bytes in kB (1000 bytes), for a column headed "kB"."""
    return NONE if value is None else fixed(value / 1000, 1)


def size(value: float | None) -> str:
    """Bytes with a decimal unit: "274 kB"."""
    return NONE if value is None else f"{si(value)}B" if value >= 1000 else f"{whole(value)}\u00a0B"


def seconds(value: float) -> str:
    """A duration: "0.42 s", "3 min 20 s", "2 h 05 min"."""
    if value < 99.5:
        return f"{significant(value)} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def shape(value: tuple[int, ...] | None) -> str:
    """Dimensions joined by ×: "16 × 32 × 32"."""
    return NONE if value is None else " × ".join(str(d) for d in value)


def plain(value: Any) -> str:
    """Any value of a config or a figure in one line: numbers as they are (floats to 6 digits), the rest as compact JSON."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: NONE}[value]
    if isinstance(value, int | str):
        return str(value)
    if isinstance(value, float):
        return f"{value:.6g}".replace("-", "−")
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {plain(item)}" for key, item in value.items()) or NONE
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or NONE
    return json.dumps(value, default=str)


ABBREVIATIONS = frozenset(("psnr", "ssim", "auroc"))
"""Metrics whose names are abbreviations."""


def headed(value: str) -> str:
    """The text with its first letter large and the rest as it is: "accuracy" → "Accuracy", "NME" stays; abbreviations are large all over."""
    return value.upper() if value in ABBREVIATIONS else value[:1].upper() + value[1:]


def by_reason(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """(names joined, reason) from (name, reason): every reason once, in the order of its first name."""
    names: dict[str, list[str]] = {}
    for name, reason in pairs:
        names.setdefault(reason, []).append(name)
    return [(", ".join(who), reason) for reason, who in names.items()]


FILTERS: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (si, significant, fixed, whole, percent, signed, kilobytes, size, seconds, shape, plain, headed)
}
