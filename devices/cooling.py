"""Waiting until a device is cool again: the one that is measured second would else be measured warm."""

from __future__ import annotations

import time
from collections.abc import Callable

USUAL_S = 60.0
"""How long to wait at most where nobody says."""
STEP_S = 2.0
ENOUGH_C = 3.0
"""It is cool when it is this near to what it was at the begin."""


def cool_down(
    heat: Callable[[], object],
    *,
    to_c: float | None,
    limit_s: float | None,
    first: bool = False,
    tick: Callable[[float], None] = lambda seconds: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """None, once `heat()` in °C is at `to_c` again or `limit_s` seconds are over. `tick` hears the seconds waited.

    A device that does not tell its temperature is waited for only when the user said how long, and never before its `first` job.
    """
    begin = clock()
    while (left := (USUAL_S if limit_s is None else limit_s) - (clock() - begin)) > 0:
        now = heat()
        if isinstance(now, float):
            if to_c is None or now <= to_c + ENOUGH_C:
                return
        elif limit_s is None or first:
            return
        sleep(min(STEP_S, left))
        tick(min(STEP_S, left))
