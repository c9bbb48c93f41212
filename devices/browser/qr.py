"""A QR code as lines of text, small enough for a narrow terminal."""

from __future__ import annotations

QUIET = 2
"""Light modules around the code: half of what the standard asks for, which phones read, to save columns."""
_BLOCKS = {(True, True): "█", (True, False): "▀", (False, True): "▄", (False, False): " "}


def qr_lines(text: str) -> list[str]:
    """The code in half blocks, two modules a character: light modules are drawn, as suits a dark terminal (phones read both)."""
    import segno

    code = segno.make(text, error="l", micro=False, boost_error=False)
    light = [[not dark for dark in row] for row in code.matrix_iter(border=QUIET)]
    if len(light) % 2:
        light.append([False] * len(light[0]))
    return [
        "".join(_BLOCKS[above, below] for above, below in zip(*pair, strict=True))
        for pair in zip(light[::2], light[1::2], strict=True)
    ]
